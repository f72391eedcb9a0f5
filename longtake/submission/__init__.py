"""The ledger of paid submissions, and how a submission in doubt is reconciled with the account's records."""
