"""Temporal activities: what touches the network and the store.

Here: log, call the domain, translate the failure, return a model; the one table of failures. Not here: the logic,
which is in `longtake`, and timeouts and retry policies, which are in `workflows/options.py`.
"""
