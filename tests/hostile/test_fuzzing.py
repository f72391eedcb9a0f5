"""Every reader of foreign bytes, fed with what is in the corpus and with what hypothesis makes of it."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.fuzzing.targets import CORPUS, Readers, seeds
from tests.hostile.fuzzing.watchdog import MAX_STALL_SECONDS, TooMuch, limited

TARGETS = sorted(path.name for path in CORPUS.iterdir())
# Each image takes a process; the ledger and the settings take some milliseconds.
_EXAMPLES = {"images": 10, "ledger": 60, "settings": 60, "download": 30}
_USUAL_EXAMPLES = 120

_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_pieces = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([b"\0", b"\xff" * 8, b"\x80", b"\r\n", b"9" * 5000, b"-1", b"1e999", b"NaN", b"null", b"[" * 2000]),
    _json.map(lambda value: json.dumps(value).encode()),
    st.text(max_size=8).map(lambda text: text.encode(errors="surrogatepass")),
)


@st.composite
def changed(draw: st.DrawFn, known: list[bytes]) -> bytes:
    """One of the known inputs, with some places cut, overwritten, filled, or taken from another one."""
    data = draw(st.sampled_from(known))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.integers(0, 12) | st.integers(0, 300))
        other = draw(st.sampled_from(known))
        start = draw(st.integers(0, len(other)))
        data = data[:at] + draw(_pieces | st.just(other[start : start + 40])) + data[at + gone :]
    return data[: draw(st.just(len(data)) | st.integers(0, len(data)))]


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with asyncio.Runner() as runner:
        yield runner.get_loop()


@pytest.fixture(scope="module")
def readers(loop: asyncio.AbstractEventLoop) -> Iterator[Readers]:
    with pytest.MonkeyPatch.context() as patch:
        yield Readers(patch)


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_read_or_refused(name: str, readers: Readers, loop: asyncio.AbstractEventLoop) -> None:
    known = seeds(name)
    for data in known:
        loop.run_until_complete(limited(readers.targets[name](data)))

    @settings(
        max_examples=_EXAMPLES.get(name, _USUAL_EXAMPLES),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(changed(known) | st.binary(max_size=200))
    def one(data: bytes) -> None:
        loop.run_until_complete(limited(readers.targets[name](data)))

    one()


def test_every_reader_has_a_corpus(readers: Readers) -> None:
    assert sorted(readers.targets) == TARGETS


async def test_the_watchdog_sees_what_holds_up_the_loop() -> None:
    async def busy() -> None:
        await asyncio.sleep(0)
        until = time.thread_time() + MAX_STALL_SECONDS + 0.1
        while time.thread_time() < until:
            pass
        await asyncio.sleep(0)

    with pytest.raises(TooMuch, match="stood still"):
        await limited(busy())


async def test_the_watchdog_sees_what_takes_memory() -> None:
    async def greedy() -> None:
        assert len(b"x" * (310 * 10**6)) > 0

    with pytest.raises(TooMuch, match="MB"):
        await limited(greedy())


def test_what_the_corpus_is_made_of_is_in_the_repository(readers: Readers) -> None:
    assert all(path.stat().st_size < 30_000 for path in CORPUS.rglob("*") if path.is_file())
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.fuzzing", "--list"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == TARGETS
