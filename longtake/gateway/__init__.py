"""The HTTP boundary to the gateway: its client, its wire formats, its errors, the account's records.

Here: everything that knows a route, a status code or a field of the gateway. Not here: retries (Temporal's), what
the ledger decides (`submission`), downloads (`delivery`).
"""
