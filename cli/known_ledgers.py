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

from longtake.ledger import LedgerError, SubmissionLedger
from longtake.settings import state_folder
from longtake.storage import Store, StoreProblem

_ANY = timedelta(0)
"""Nothing is submitted through these ledgers."""


async def remember(store: Store) -> str | None:
    """Note the ledger of a store, if it has one.

    Returns:
        Its identity.
    """
    identity = await SubmissionLedger(store, longest_exchange=_ANY).known_identity()
    if identity is not None:
        with contextlib.suppress(OSError):
            _folder().mkdir(parents=True, exist_ok=True)
            (_folder() / identity).write_text(json.dumps({"store": store.url}))
    return identity


async def elsewhere(key: str, store: Store) -> list[str]:
    """The URLs of other stores of this machine whose ledger knows the key, where the ledger of `store` does not."""
    others = [url async for url in _others_that_know(key, store.url)]
    if others and await SubmissionLedger(store, longest_exchange=_ANY).is_untouched(key):
        return others
    return []


async def _others_that_know(key: str, ours: str) -> AsyncIterator[str]:
    for note in sorted(_folder().glob("*")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, LedgerError, StoreProblem):
            url = json.loads(note.read_text())["store"]
            parts = urlsplit(url)
            if url == ours or parts.scheme != "file" or not Path(unquote(parts.path)).is_dir():
                continue
            ledger = SubmissionLedger(Store.open(url), longest_exchange=_ANY)
            if await ledger.known_identity() == note.name and not await ledger.is_untouched(key):
                yield url


def _folder() -> Path:
    return state_folder() / "ledgers"
