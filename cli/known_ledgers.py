"""The ledgers that this user has used: warns before a key that one of them knows is paid for again in another one.

One small file for each ledger, named by its identity, in `$XDG_STATE_HOME/longtake/ledgers`. Only ledgers on this
machine are read. The files are optional: if they cannot be written or read, there is no warning.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from longtake.settings import state_folder
from longtake.storage import Store, StoreProblem
from longtake.submission.errors import LedgerError
from longtake.submission.ledger import SubmissionLedger

_NO_EXCHANGE = timedelta(0)
"""Nothing is submitted through these ledgers."""


async def remember(store: Store) -> str | None:
    """Remember the ledger of a store, if it has one.

    A store and its copy have the same identity. The first one stays remembered: the copy does not know what is paid for
    in the original later.

    Returns:
        The ledger's identity; None if the store has no ledger.

    Raises:
        LedgerError: The ledger cannot be read.
    """
    identity = await SubmissionLedger(store, longest_exchange=_NO_EXCHANGE).known_identity()
    if identity is not None and not await _remembered(identity):
        with contextlib.suppress(OSError, RuntimeError):  # no home folder, or not writable
            _folder().mkdir(parents=True, exist_ok=True)
            (_folder() / identity).write_text(json.dumps({"store": store.url}))
    return identity


async def elsewhere(key: str, store: Store) -> list[str]:
    """The URLs of other stores of this machine whose ledger knows the key, where the ledger of `store` does not."""
    others = [url async for url in _others_that_know(key, store.url)]
    try:
        if others and not await SubmissionLedger(store, longest_exchange=_NO_EXCHANGE).is_untouched(key):
            return []
    except LedgerError:  # this user may not read the ledger: one warning too many is better than a second payment
        pass
    return others


async def _others_that_know(key: str, ours: str) -> AsyncIterator[str]:
    with contextlib.suppress(RuntimeError):
        for identity in sorted(file.name for file in _folder().glob("*")):
            store = await _remembered(identity)
            if store is None or store.url == ours:
                continue
            with contextlib.suppress(LedgerError):
                if not await SubmissionLedger(store, longest_exchange=_NO_EXCHANGE).is_untouched(key):
                    yield store.url


async def _remembered(identity: str) -> Store | None:
    """The store remembered for a ledger, if it is on this machine and still has that ledger."""
    with contextlib.suppress(OSError, RuntimeError, ValueError, KeyError, TypeError, LedgerError, StoreProblem):
        url = json.loads((_folder() / identity).read_text())["store"]
        parts = urlsplit(url)
        if parts.scheme == "file" and Path(unquote(parts.path)).is_dir():  # opening it would create it
            store = Store.open(url)
            if await SubmissionLedger(store, longest_exchange=_NO_EXCHANGE).known_identity() == identity:
                return store
    return None


def _folder() -> Path:
    return state_folder() / "ledgers"
