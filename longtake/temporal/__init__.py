"""Temporal: names, connection, payload encryption, tracing, and the namespace's memory of its ledger."""
