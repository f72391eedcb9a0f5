"""Keys that another ledger of this user knows are found before they are paid for here."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli import known_ledgers
from longtake.gateway.client import SubmittedTask
from longtake.storage import Store
from longtake.submission.ledger import CreateIntent, Submission, SubmissionLedger


@pytest.fixture(autouse=True)
def _state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


async def used(folder: Path, *keys: str) -> Store:
    """A store whose ledger has paid for these keys, and was remembered."""
    store = Store.open(str(folder))
    ledger = SubmissionLedger(store, longest_exchange=timedelta(seconds=1))
    await ledger.establish()

    async def send(create_intent: CreateIntent) -> SubmittedTask:
        await create_intent()
        return SubmittedTask(f"task-{datetime.now(UTC).timestamp()}")

    for key in keys:
        await ledger.submit(key, Submission(digest="d", writer="test"), send)
    assert await known_ledgers.remember(store) == await ledger.identity()
    return store


async def test_a_key_of_another_ledger(tmp_path: Path) -> None:
    first, second = await used(tmp_path / "one", "order-1"), await used(tmp_path / "two", "order-2")
    assert await known_ledgers.elsewhere("order-1", second) == [first.url]
    assert await known_ledgers.elsewhere("order-1", first) == [], "it is at home here"
    assert await known_ledgers.elsewhere("order-3", second) == []


async def test_a_key_that_both_know_is_not_paid_again_here(tmp_path: Path) -> None:
    await used(tmp_path / "one", "order-1")
    assert await known_ledgers.elsewhere("order-1", await used(tmp_path / "two", "order-1")) == []


async def test_what_has_gone_is_not_made_anew(tmp_path: Path) -> None:
    gone = await used(tmp_path / "gone", "order-1")
    here = await used(tmp_path / "here")
    (tmp_path / "gone").rename(tmp_path / "moved")
    assert await known_ledgers.elsewhere("order-1", here) == []
    assert not (tmp_path / "gone").exists()
    assert gone.url


async def test_nothing_depends_on_the_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = await used(tmp_path / "here")
    (tmp_path / "state/longtake/ledgers/damaged").write_text("{")
    assert await known_ledgers.elsewhere("order-1", here) == []
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    assert await known_ledgers.remember(here)


async def test_a_copy_does_not_know_what_the_original_paid_for_since(tmp_path: Path) -> None:
    original = await used(tmp_path / "original", "order-1")
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    await used(tmp_path / "original", "order-2")
    copy = await used(tmp_path / "copy")
    assert await known_ledgers.elsewhere("order-1", copy) == [], "both know it"
    assert await known_ledgers.elsewhere("order-2", copy) == [original.url]


async def test_a_ledger_that_was_moved_is_noted_where_it_is_now(tmp_path: Path) -> None:
    await used(tmp_path / "before", "order-1")
    (tmp_path / "before").rename(tmp_path / "after")
    moved = await used(tmp_path / "after")
    assert await known_ledgers.elsewhere("order-1", await used(tmp_path / "other")) == [moved.url]
