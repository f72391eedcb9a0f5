"""Every instant of a paid submission, struck one by one: real processes, real HTTP, real signals."""

import asyncio
import os
import signal
from collections import Counter
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from simulator import Simulator
from tests.crash_points.attempt import Attempt
from tests.crash_points.instants import Blow
from tests.crash_points.processes import (
    attempt_of,
    end_of,
    instants_of,
    intents_of,
    let_an_hour_pass,
    run,
    start,
    strike_all,
    until_stopped,
)

pytestmark = [pytest.mark.proof, pytest.mark.timeout(600)]

STALE_SECONDS = 0.2
IN_DOUBT = {"failed SubmissionInDoubt", "failed LedgerUnavailable", "failed SlotTaken"}
UNKNOWN = "failed SubmissionOutcomeUnknown"


@dataclass
class Case:
    """One key, and one blow at one instant of its first attempt."""

    sim: Simulator
    root: Path
    blow: Blow
    at: int
    workers: int
    without_record: bool = False

    def __post_init__(self) -> None:
        self.key = f"{self.blow}-{self.workers}-{self.at}"
        self.first = attempt_of(
            self.sim,
            self.root,
            self.key,
            blow=self.blow,
            at=self.at,
            without_record=self.without_record,
            stale_after_seconds=STALE_SECONDS if self.blow == "stop" else Attempt.stale_after_seconds,
        )
        self.attempts = 1
        self.wrong: list[str] = []

    @property
    def paid(self) -> list[str]:
        """What the gateway was paid for this key."""
        entries = self.sim.ledger.submissions(paid=True)
        return [entry["task_id"] for entry in entries if f"label={self.key}]" in entry["prompt"]]

    def again(self, *, retry: bool) -> Attempt:
        """One more attempt: of the same activity, which is given the heartbeat, or of another run."""
        self.attempts += 1
        heartbeat_of = 1 if retry else 0
        return replace(
            self.first,
            blow="none",
            at=0,
            number=self.attempts,
            heartbeat_of=heartbeat_of,
            stale_after_seconds=Attempt.stale_after_seconds,
        )

    @property
    def senders(self) -> list[str]:
        """Whose intents the ledger holds."""
        return [record["writer"].rpartition(" ")[2] for record in intents_of(self.first)]

    def hear(self, attempt: Attempt, end: str | None) -> str | None:
        """Hold what an attempt says against what the gateway knows when it says so."""
        if end and end.startswith("accepted") and end.split()[1] not in self.paid:
            self.wrong.append(f"{end}, which is not what was paid: {self.paid}")
        if end and end.startswith("failed") and end not in {*IN_DOUBT, UNKNOWN}:
            # It says that it has sent nothing: then others must have sent what was paid.
            others = [sender for sender in self.senders if sender != str(attempt.number)]
            if len(self.paid) > len(others):
                self.wrong.append(f"{end}, which says that it sent nothing, but {self.paid} was paid")
        return end

    async def strike(self) -> None:
        """Let the first attempt meet its blow, beside a second worker or before it."""
        process = start(self.first)
        if self.blow == "stop":
            await self._freeze(process)
        elif self.workers == 1:
            self.hear(self.first, await end_of(process, self.first))
        else:
            other = self.again(retry=False)
            ends = await asyncio.gather(end_of(process, self.first), run(other))
            self.hear(self.first, ends[0])
            self.hear(other, ends[1])

    async def _freeze(self, process: ForkServerProcess) -> None:
        """Longer than a process may sleep around its intent; with a second worker for a whole other attempt."""
        is_stopped = await until_stopped(process)
        if self.workers == 1:
            await asyncio.sleep(STALE_SECONDS * 1.5)
        elif await self._once_more() in IN_DOUBT:
            let_an_hour_pass(self.first)
            await self._once_more()
        if is_stopped and process.pid:
            os.kill(process.pid, signal.SIGCONT)
        self.hear(self.first, await end_of(process, self.first))

    async def _once_more(self) -> str | None:
        attempt = self.again(retry=True)
        return self.hear(attempt, await run(attempt))

    async def end(self) -> str:
        """What is known in the end, by attempts that nothing disturbs."""
        for _ in range(4):
            end = await self._once_more()
            if end not in IN_DOUBT and not _is_tried_again(end):
                break
            let_an_hour_pass(self.first)
        assert end is not None
        return end


def _is_tried_again(end: str | None) -> bool:
    """Whether Temporal would: nothing was sent by it."""
    return end in {"failed NotSubmitted", "failed SendSuspended", "failed GatewayUnreachable", "failed GatewayBusy"}


@pytest.mark.parametrize(
    ("blow", "workers"), [("kill", 1), ("kill", 2), ("stop", 1), ("stop", 2), ("cut", 1), ("cut", 2)]
)
async def test_no_instant_of_a_submission_pays_twice_or_returns_what_is_not_so(
    sim: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str], blow: Blow, workers: int
) -> None:
    instants = await instants_of(attempt_of(sim, tmp_path, "undisturbed"))
    ends: Counter[str] = Counter()
    wrong: list[str] = []

    async def strike(at: int) -> None:
        case = Case(sim, tmp_path, blow, at, workers)
        await case.strike()
        end = await case.end()
        known = end.split()[0] if end.startswith("accepted") else end
        ends[f"{known}, {len(case.paid)} paid"] += 1
        if len(case.paid) > 1:
            case.wrong.append(f"paid {len(case.paid)} times")
        if known not in {"accepted", UNKNOWN}:
            case.wrong.append(f"ends with {end}")
        wrong.extend(f"{instants[at - 1]}: {what}" for what in case.wrong)

    # All three blows meet every instant once; the other half of the rows, which differs less, every third.
    chosen = range(1, len(instants) + 1, 3 if (blow, workers) in {("stop", 1), ("cut", 2)} else 1)
    await strike_all(strike, chosen)
    with capsys.disabled():
        figures = ", ".join(f"{end}: {count}" for end, count in sorted(ends.items()))
        print(f"\n{blow}, {workers} workers: {len(chosen)} of {len(instants)} instants; {figures}")  # noqa: T201 - the figures count
    assert not wrong, "\n".join(wrong)
    assert sim.ledger.paid()["paid_twice"] == []
    assert ends["accepted, 1 paid"] > len(chosen) // 3
    assert sim.ledger.violations() == []


async def test_a_ledger_that_writes_nothing_before_it_sends_pays_twice_under_the_same_blows(
    sim: Simulator, tmp_path: Path
) -> None:
    instants = await instants_of(attempt_of(sim, tmp_path, "undisturbed", without_record=True))
    paid: list[int] = []

    async def strike(at: int) -> None:
        case = Case(sim, tmp_path, "kill", at, 1, without_record=True)
        await case.strike()
        await case.end()
        paid.append(len(case.paid))

    await strike_all(strike, range(len(instants) // 3, len(instants) + 1, 2))
    assert max(paid) > 1, "the blows show nothing"
