"""The ledger of paid submissions, and how a submission in doubt is reconciled with the account's records.

Here: who may send, and what a submission led to. Not here: HTTP (`gateway`), Temporal, what people are shown.
"""
