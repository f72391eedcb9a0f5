"""From a link to a verified video in the store: download, MP4 inspection, and the kept records of tasks.

Belongs here: everything that handles the bytes of videos, and where a generation's objects are in the store.
Does not belong here: the gateway's API and the submission ledger. Nothing here is paid.
"""
