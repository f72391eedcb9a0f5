"""Temporal as longtake uses it: names, connection, search attributes, payload encryption, tracing, ledger registration.

Belongs here: what needs `temporalio` and is neither a workflow, an activity nor the client.
Does not belong here: what happens to a generation. Only this package and `longtake.client` import `temporalio`.
"""
