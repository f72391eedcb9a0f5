"""Real processes, real HTTP, real SIGKILL and SIGSTOP: no instant of death leads to a second paid job."""

import asyncio
import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from simulator import Simulator, SimulatorSettings, serve
from tests.activities.submitting_process import API_KEY, Order, main

SEED = 20_261
KEYS = 8
KILLS_PER_KEY = 2

# Forked from a process that has all modules loaded: a life then takes as long as the submission, not as its imports.
_PROCESSES = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def _fork_server() -> Iterator[None]:
    from multiprocessing import forkserver  # noqa: PLC0415 - only here, to end what this module started

    others = forkserver._forkserver._preload_modules  # type: ignore[attr-defined]
    # pytest too: each child imports what the main module imported.
    _PROCESSES.set_forkserver_preload(["pytest", "tests.activities.submitting_process"])
    yield
    _PROCESSES.set_forkserver_preload(others)
    # It waits until its last child has ended, and a worker of other tests may be one of them.
    if not multiprocessing.active_children():
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.fixture
async def sim(tmp_path: Path) -> AsyncIterator[Simulator]:
    async with serve(SimulatorSettings(tmp_path / "simulator", API_KEY)) as simulator:
        yield simulator


class Submitter:
    """Starts processes that submit, and sees how they end."""

    def __init__(self, sim: Simulator, folder: Path, *, with_ledger: bool = True) -> None:
        self._sim = sim
        self._folder = folder
        self._with_ledger = with_ledger
        self._started = itertools.count()

    def input(self, key: str, *, answer_after: float = 0.0, **more: object) -> Order:
        return Order(
            gateway_url=self._sim.url,
            store_folder=str(self._folder / "store"),
            key=key,
            prompt=f"a storm [sim:submit_delay,delay={answer_after},label={key}]",
            result=self._folder / f"result-{next(self._started)}",
            with_ledger=self._with_ledger,
            **more,  # type: ignore[arg-type]
        )

    def start(self, input: Order) -> ForkServerProcess:
        process = _PROCESSES.Process(target=main, args=(input,), daemon=True)
        process.start()
        return process

    async def run(self, input: Order) -> str:
        """To its end; tells how it ended."""
        process = self.start(input)
        await ended(process)
        assert process.exitcode == 0
        return input.result.read_text()

    async def run_and_kill(self, input: Order, after: float) -> str | None:
        """Kill it after so many seconds; tells how it ended, if it was faster."""
        process = self.start(input)
        await asyncio.sleep(after)
        process.kill()
        await ended(process)
        return input.result.read_text() if input.result.exists() else None

    async def life_seconds(self) -> float:
        """How long one undisturbed life takes here and now."""
        await self.run(self.input("to warm up"))
        began = time.monotonic()
        await self.run(self.input("to measure"))
        return time.monotonic() - began

    async def let_an_hour_pass(self) -> None:
        for path in (self._folder / "store/submit").glob("*/*/intent"):
            record = json.loads(path.read_text())
            record["sent_at"] = (datetime.fromisoformat(record["sent_at"]) - timedelta(hours=1)).isoformat()
            path.write_text(json.dumps(record))


async def ended(process: ForkServerProcess) -> None:
    await asyncio.to_thread(process.join, 30)
    assert not process.is_alive()


async def until_stopped(process: ForkServerProcess) -> None:
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":  # noqa: ASYNC110 - a state of the kernel, which tells nobody
        await asyncio.sleep(0.01)


async def killed_again_and_again(submitter: Submitter, *, keys: int = KEYS, first: int = 0) -> dict[str, str]:
    """Every key is killed some times at random instants of a life, then started until it ends."""
    chance = random.Random(SEED + first)  # noqa: S311 - instants, not secrets
    life = await submitter.life_seconds()
    answer_after = life  # so that about half of the kills hit while the answer is awaited
    ends: dict[str, str] = {}

    async def one(key: str) -> None:
        end = None
        for _ in range(KILLS_PER_KEY):
            input = submitter.input(key, answer_after=answer_after)
            end = await submitter.run_and_kill(input, chance.uniform(0, 2.2 * life))
            if end:
                break
        ends[key] = end or await submitter.run(submitter.input(key))

    for number in range(first, first + keys, 2):
        await asyncio.gather(one(f"key-{number}"), one(f"key-{number + 1}"))
    return ends


@pytest.mark.proof
async def test_no_kill_leads_to_a_second_paid_job(sim: Simulator, tmp_path: Path) -> None:
    submitter = Submitter(sim, tmp_path)
    ends = await killed_again_and_again(submitter)
    await submitter.let_an_hour_pass()
    ends = {key: await submitter.run(submitter.input(key)) for key in ends}

    paid = {entry["prompt"].rpartition("label=")[2].rstrip("]"): entry for entry in sim.ledger.submissions(paid=True)}
    assert sim.ledger.paid()["paid_twice"] == []
    for key, end in ends.items():
        if end != "failed OutcomeUnknown":
            assert end == f"accepted {paid[key]['task_id']}", key
    assert "failed OutcomeUnknown" in ends.values(), "no kill came between the POST and its record: nothing was shown"


@pytest.mark.proof
async def test_the_naive_client_pays_twice_under_the_same_kills(sim: Simulator, tmp_path: Path) -> None:
    naive = Submitter(sim, tmp_path, with_ledger=False)

    def paid_twice() -> list[str]:
        return [prompt for prompt in sim.ledger.paid()["paid_twice"] if "label=key-" in prompt]

    for first in range(0, 30, 6):  # a busy machine spoils the aim: some more then
        await killed_again_and_again(naive, keys=6, first=first)
        if paid_twice():
            break
    assert paid_twice()


async def test_stopped_after_its_intent_and_continued_it_does_not_send(sim: Simulator, tmp_path: Path) -> None:
    submitter = Submitter(sim, tmp_path)
    input = submitter.input("asleep", stops="after", stale_after_seconds=0.2)
    process = submitter.start(input)
    await until_stopped(process)
    assert await submitter.run(submitter.input("asleep")) == "failed SubmissionInDoubt"
    await asyncio.sleep(0.3)
    assert process.pid
    os.kill(process.pid, signal.SIGCONT)
    await ended(process)
    assert input.result.read_text() == "failed SendSuspended"
    assert sim.ledger.submissions() == []
    accepted = await submitter.run(submitter.input("asleep"))
    assert accepted == f"accepted {sim.ledger.submissions(paid=True)[0]['task_id']}"
    assert sim.ledger.paid()["total"] == 1


async def test_stopped_before_its_intent_and_continued_it_leaves_the_slot_to_the_other(
    sim: Simulator, tmp_path: Path
) -> None:
    submitter = Submitter(sim, tmp_path)
    input = submitter.input("asleep", stops="before")
    process = submitter.start(input)
    await until_stopped(process)
    accepted = await submitter.run(submitter.input("asleep"))
    assert process.pid
    os.kill(process.pid, signal.SIGCONT)
    await ended(process)
    assert input.result.read_text() == "failed SlotTaken"
    assert await submitter.run(submitter.input("asleep")) == accepted
    assert sim.ledger.paid()["total"] == 1


async def test_killed_after_its_intent_it_is_unknown_and_never_sent_again(sim: Simulator, tmp_path: Path) -> None:
    submitter = Submitter(sim, tmp_path)
    process = submitter.start(submitter.input("dead", stops="after"))
    await until_stopped(process)
    process.kill()
    await ended(process)
    assert await submitter.run(submitter.input("dead")) == "failed SubmissionInDoubt"
    await submitter.let_an_hour_pass()
    assert await submitter.run(submitter.input("dead")) == "failed OutcomeUnknown"
    assert sim.ledger.submissions() == []
