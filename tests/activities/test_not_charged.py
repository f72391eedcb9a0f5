"""What the account's records show of a submission in doubt, and what is submitted again by itself: both gateways."""

import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from longtake.models import GenerateVideoInput, Paid, ReconcileInput, Reconciliation, SubmissionReceipt, SubmitInput
from simulator import Simulator, SimulatorSettings, serve
from simulator.personalities import DOCUMENT, NEWAPI
from tests.activities.conftest import API_KEY, Hire, Worker
from tests.activities.failing import failure_of

KEY, MODEL = "order-1", "veo_3_1-fast-remix"
BROKEN = "submit_500,unpaid,times=1"
AGE = timedelta(hours=2)
Request = Callable[..., GenerateVideoInput]


@pytest.fixture(params=[DOCUMENT, NEWAPI])
async def sim(request: pytest.FixtureRequest, tmp_path: Path, clips: Path) -> AsyncIterator[Simulator]:
    settings = SimulatorSettings(tmp_path / "simulator", API_KEY, cache_dir=clips, seconds=1e-6, like=request.param)
    async with serve(settings) as simulator:
        yield simulator


class Site:
    """A worker that may submit again by itself, and time that has passed."""

    def __init__(self, sim: Simulator, worker: Worker, request_for: Request, store: Path) -> None:
        self.sim, self.worker, self.request_for, self.store = sim, worker, request_for, store
        worker.submission._resubmit_not_charged = True

    async def submit(self, tag: str = "ok", key: str = KEY) -> SubmissionReceipt:
        input = SubmitInput(key=key, request=self.request_for(f"{tag},label={key}"))
        receipt = await self.worker.run(self.worker.submission.submit_generation, input)
        assert isinstance(receipt, SubmissionReceipt)
        return receipt

    async def in_doubt(self, tag: str = BROKEN) -> None:
        failure = await failure_of(self.submit(tag))
        assert failure.type == "SubmissionOutcomeUnknown"

    async def check(self, *, confirms: bool = True) -> Reconciliation:
        input = ReconcileInput(key=KEY, model=MODEL, confirms_not_charged=confirms)
        found = await self.worker.run(self.worker.submission.reconcile_submission, input)
        assert isinstance(found, Reconciliation)
        return found

    def passes(self, time: timedelta = AGE) -> None:
        """Everything so far was so long ago, by every clock."""
        for task in self.sim.world.tasks:
            task.submitted_at -= time.total_seconds()
        for name, path in (("sent_at", "*/*/intent"), ("at", "*/*/response"), ("sent_at", "owners/*")):
            for file in self.store.glob(f"submit/{path}"):
                record: dict[str, Any] = json.loads(file.read_text())
                at = datetime.fromisoformat(record[name]) - time
                file.write_text(json.dumps(record | {name: at.isoformat()}))
        for entry in self.store.glob("open/*"):
            os.utime(entry, times=(entry.stat().st_mtime - time.total_seconds(),) * 2)

    @property
    def posts(self) -> int:
        return len(self.sim.ledger.submissions())

    @property
    def paid(self) -> int:
        return len(self.sim.ledger.submissions(paid=True))


@pytest.fixture
def site(sim: Simulator, worker: Worker, request_for: Request, tmp_path: Path) -> Site:
    return Site(sim, worker, request_for, tmp_path / "store")


LOST = "submit_reset,unpaid,times=1"


@pytest.mark.parametrize("tag", [BROKEN, LOST])
async def test_what_was_not_charged_is_closed_and_paid_once(site: Site, tag: str) -> None:
    await site.submit(key="beside")
    await site.in_doubt(tag)
    assert (await site.check()).charged is Paid.UNKNOWN, "nothing shows yet that the log is up to date"
    site.passes()
    await site.submit(key="after")
    first = await site.check(confirms=False)
    assert (first.charged, first.resubmittable, first.clear) == (Paid.NO, True, False)
    second = await site.check()
    assert (second.clear, second.receipt, second.resubmissions) == (True, None, 1)
    receipt = await site.submit(tag)
    assert (receipt.slot, receipt.attached) == (2, False)
    assert (await site.submit(tag)).attached
    assert (site.posts, site.paid) == (4, 3)


async def test_without_the_setting_it_is_only_shown(site: Site) -> None:
    site.worker.submission._resubmit_not_charged = False
    await site.in_doubt()
    site.passes()
    await site.submit(key="after")
    found = await site.check()
    assert (found.charged, found.resubmittable, found.clear) == (Paid.NO, False, False)
    await failure_of(site.submit(BROKEN))
    assert site.paid == 1


async def test_what_was_charged_is_adopted_and_never_sent_again(site: Site) -> None:
    await site.submit(key="beside")
    await site.in_doubt("submit_500,charged,times=1")
    site.passes()
    await site.submit(key="after")
    found = await site.check()
    assert found.receipt
    assert found.charged is Paid.YES
    assert (await site.submit("submit_500,charged,times=1")).task_id == found.receipt.task_id
    assert site.posts == site.paid == 3


@pytest.mark.parametrize("tag", [BROKEN, LOST])
@pytest.mark.parametrize(
    "faults",
    [{"log": "403"}, {"log": "404"}, {"log": "429"}, {"log": "500"}, {"tasks": "database_error"}, {"tasks": "401"}],
    ids=str,
)
async def test_where_one_of_the_two_records_is_missing_nothing_is_sent(
    site: Site, faults: dict[str, str], tag: str
) -> None:
    await site.submit(key="beside")
    await site.in_doubt(tag)
    site.passes()
    await site.submit(key="after")
    site.sim.world.account_faults.update(faults)
    found = await site.check()
    assert (found.charged, found.resubmittable, found.clear) == (Paid.UNKNOWN, False, False)
    await failure_of(site.submit(tag))
    assert site.paid == 2


@pytest.mark.parametrize("tag", [BROKEN, LOST])
async def test_what_is_accepted_late_is_seen_by_the_second_check(site: Site, tag: str) -> None:
    await site.submit(key="beside")
    await site.in_doubt(tag)
    site.passes()
    await site.submit(key="after")
    assert (await site.check(confirms=False)).resubmittable
    world = site.sim.world
    late = next(task for task in world.tasks)
    world.tasks.add(replace(late, task_id="task_late", request_id="late", submitted_at=late.submitted_at + 400))
    found = await site.check()
    assert (found.clear, found.resubmittable, found.candidates) == (False, False, ("task_late",))


async def test_the_log_of_another_key_proves_nothing(site: Site, hire: Hire) -> None:
    await site.in_doubt()
    site.passes()
    await site.submit(key="after")
    site.sim.world.keys.add("another-key")
    other = hire(key="another-key")
    other.submission._resubmit_not_charged = True
    input = ReconcileInput(key=KEY, model=MODEL, confirms_not_charged=True)
    found = await other.run(other.submission.reconcile_submission, input)
    assert (found.charged, found.resubmittable, found.clear) == (Paid.UNKNOWN, False, False)


async def test_a_gateway_whose_clock_is_wrong_proves_nothing(site: Site) -> None:
    await site.in_doubt()
    site.passes()
    await site.submit(key="after")
    for task in site.sim.world.tasks:
        task.submitted_at -= 600
    found = await site.check()
    assert (found.charged, found.resubmittable, found.clear) == (Paid.UNKNOWN, False, False)


async def test_after_two_that_were_not_charged_a_person_decides(site: Site) -> None:
    tag = "submit_500,unpaid,times=5"
    for number in (1, 2):
        await site.in_doubt(tag)
        site.passes()
        await site.submit(key=f"after-{number}")
        assert (await site.check()).clear
    await site.in_doubt(tag)
    site.passes()
    await site.submit(key="after-3")
    found = await site.check()
    assert (found.charged, found.resubmittable, found.clear) == (Paid.NO, False, False)
    assert site.posts == 6
