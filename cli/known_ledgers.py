"""The ledgers that this user has used, so that a key which one of them knows is not paid for in another unnoticed.

One small file for each, named by its identity, in `$XDG_STATE_HOME/longtake/ledgers`. Only ledgers on this machine are
looked into; and nothing depends on these files: where they cannot be written or read, nobody is warned.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from longtake.settings import state_folder
from longtake.storage import Store, StoreProblem
from longtake.submission.ledger import LedgerError, SubmissionLedger

_ANY = timedelta(0)
"""Nothing is submitted through these ledgers."""


async def remember(store: Store) -> str | None:
    """Note the ledger of a store, if it has one.

    Of a store and its copy, which have one identity, the one that was noted first stays: what is paid for there is not
    known in the copy.

    Returns:
        Its identity.
    """
    identity = await SubmissionLedger(store, longest_exchange=_ANY).known_identity()
    if identity is not None and not await _noted(identity):
        with contextlib.suppress(OSError, RuntimeError):  # no home, or one that cannot be written
            _folder().mkdir(parents=True, exist_ok=True)
            (_folder() / identity).write_text(json.dumps({"store": store.url}))
    return identity


async def elsewhere(key: str, store: Store) -> list[str]:
    """The URLs of other stores of this machine whose ledger knows the key, where the ledger of `store` does not."""
    others = [url async for url in _others_that_know(key, store.url)]
    try:
        if others and not await SubmissionLedger(store, longest_exchange=_ANY).is_untouched(key):
            return []
    except LedgerError:  # a caller's role cannot read it: what is about money is rather said once too often
        pass
    return others


async def _others_that_know(key: str, ours: str) -> AsyncIterator[str]:
    with contextlib.suppress(RuntimeError):
        for identity in sorted(note.name for note in _folder().glob("*")):
            store = await _noted(identity)
            if store is None or store.url == ours:
                continue
            with contextlib.suppress(LedgerError):
                if not await SubmissionLedger(store, longest_exchange=_ANY).is_untouched(key):
                    yield store.url


async def _noted(identity: str) -> Store | None:
    """The store that was noted for a ledger, where it is on this machine and still holds it."""
    with contextlib.suppress(OSError, RuntimeError, ValueError, KeyError, TypeError, LedgerError, StoreProblem):
        url = json.loads((_folder() / identity).read_text())["store"]
        parts = urlsplit(url)
        if parts.scheme == "file" and Path(unquote(parts.path)).is_dir():  # to open it would make it
            store = Store.open(url)
            if await SubmissionLedger(store, longest_exchange=_ANY).known_identity() == identity:
                return store
    return None


def _folder() -> Path:
    return state_folder() / "ledgers"
