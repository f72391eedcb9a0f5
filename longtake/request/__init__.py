"""The request: its rules, its images, its prompts.

Belongs here: everything that checks a request before anything is paid, and that lays its images out.
Does not belong here: the gateway, the ledger, Temporal. The only thing outside that is used is the store.
"""
