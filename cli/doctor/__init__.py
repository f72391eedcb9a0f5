"""The command `doctor`: one small function for each check, in the tables of `cli.doctor.run`.

A check reads one live part and reports findings, each with advice. It pays nothing, writes nothing but the store's
probe, and shows no secret. Fixing things does not belong here.
"""
