"""`on_key_refused: wait` as the gateway sees it: hundreds of generations, and one try in five minutes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from longtake.gateway.breaker import TRIAL_PAUSE, KeyBreaker
from longtake.models import (
    AwaitKeyInput,
    FailureDetails,
    GenerateVideoInput,
    KeyProblem,
    KeyTrial,
    Paid,
    PrepareInput,
    SubmissionReceipt,
    SubmitInput,
)
from simulator import Simulator, SimulatorSettings, serve
from simulator.personalities import DOCUMENT, NEWAPI
from tests.activities.conftest import API_KEY, Hire, Worker
from tests.activities.failing import Failure, failure_of

Request = Callable[..., GenerateVideoInput]
PRICE = 425_000


@pytest.fixture(params=[DOCUMENT, NEWAPI])
async def sim(request: pytest.FixtureRequest, tmp_path: Path, clips: Path) -> AsyncIterator[Simulator]:
    settings = SimulatorSettings(
        tmp_path / "simulator", API_KEY, cache_dir=clips, seconds=1e-6, like=request.param, granted_quota=PRICE - 1
    )
    async with serve(settings) as simulator:
        yield simulator


class Site:
    """One worker, and its clock for the key."""

    def __init__(self, worker: Worker, sim: Simulator, request: GenerateVideoInput) -> None:
        self.worker, self.sim, self.request = worker, sim, request
        self.now = 0.0
        worker.submission._breaker = KeyBreaker(lambda: self.now)

    @property
    def posts(self) -> int:
        return len(self.sim.ledger.submissions())

    @property
    def asked(self) -> int:
        return len(self.sim.ledger.entries)

    async def prepare(self, number: int, *, trial: bool = False) -> None:
        input = PrepareInput(key=f"order-{number}", request=self.request, trial=trial)
        await self.worker.run(self.worker.submission.prepare_generation, input)

    async def submit(self, number: int, *, trial: bool = False) -> SubmissionReceipt:
        input = SubmitInput(key=f"order-{number}", request=self.request, trial=trial)
        receipt = await self.worker.run(self.worker.submission.submit_generation, input)
        assert isinstance(receipt, SubmissionReceipt)
        return receipt

    async def wait(self, number: int, problem: KeyProblem = KeyProblem.OUT_OF_QUOTA) -> KeyTrial | Failure:
        input = AwaitKeyInput(key=f"order-{number}", details=FailureDetails(key_problem=problem), message="no quota")
        try:
            trial = await self.worker.run(self.worker.submission.await_api_key, input)
        except Exception as error:  # noqa: BLE001 - read by the test
            return await failure_of(_raising(error))
        assert isinstance(trial, KeyTrial)
        return trial


async def _raising(error: Exception) -> None:
    raise error


@pytest.fixture
def site(hire: Hire, sim: Simulator, request_for: Request) -> Site:
    return Site(hire(), sim, request_for(on_key_refused="wait"))


async def test_out_of_quota_is_distinguished_from_a_wrong_key(
    hire: Hire, site: Site, request_for: Request, sim: Simulator
) -> None:
    empty = await failure_of(site.submit(1))
    assert (empty.type, empty.retried, empty.details.paid) == ("SubmissionRefused", False, Paid.NO)
    assert (empty.details.key_problem, empty.details.gateway_code) == (
        KeyProblem.OUT_OF_QUOTA,
        "insufficient_user_quota",
    )
    sim.world.account_quota, sim.world.key_quota = 10 * PRICE, PRICE - 1
    share = await failure_of(site.submit(1, trial=True))
    assert (share.details.key_problem, share.details.gateway_code) == (
        KeyProblem.OUT_OF_QUOTA,
        "pre_consume_token_quota_failed",
    )
    stranger = hire(key="another")
    wrong = await failure_of(
        stranger.run(stranger.submission.submit_generation, SubmitInput(key="w", request=request_for()))
    )
    assert wrong.details.key_problem is KeyProblem.REFUSED
    assert wrong.details.advice != empty.details.advice


async def test_five_hundred_that_wait_do_not_hammer_the_gateway(site: Site, sim: Simulator) -> None:
    slots = asyncio.Semaphore(4)  # as LONGTAKE_SUBMIT_CONCURRENCY

    async def one(number: int) -> Failure:
        async with slots:
            return await failure_of(site.submit(number))

    refused = await asyncio.gather(*(one(number) for number in range(500)))
    assert {failure.details.key_problem for failure in refused} == {KeyProblem.OUT_OF_QUOTA}
    assert site.posts <= 4
    before, after_posts = site.asked, site.posts
    waits = [await site.wait(number) for number in range(500)]
    assert all(isinstance(wait, Failure) and wait.retried for wait in waits)
    assert site.asked == before, "not even a free request"

    site.now += TRIAL_PAUSE.total_seconds()
    waits = [await site.wait(number) for number in range(500)]
    assert [wait for wait in waits if wait == KeyTrial(trial=True)] == [KeyTrial(trial=True)]
    await failure_of(site.submit(waits.index(KeyTrial(trial=True)), trial=True))
    assert site.posts == after_posts + 1

    sim.world.account_quota = 10_000 * PRICE
    site.now += TRIAL_PAUSE.total_seconds()
    assert await site.wait(7) == KeyTrial(trial=True)
    assert not (await site.submit(7, trial=True)).attached
    assert {(await site.wait(number)) == KeyTrial(trial=False) for number in range(10)} == {True}
    assert sim.ledger.paid()["total"] == 1


async def test_a_refusal_out_of_memory_uses_no_slot_of_the_ledger(site: Site, sim: Simulator) -> None:
    await failure_of(site.submit(1))
    for _ in range(5):
        await failure_of(site.submit(1))
    sim.world.account_quota = 10 * PRICE
    assert (await site.submit(1, trial=True)).slot == 2


async def test_what_was_paid_is_found_whatever_is_remembered_of_the_key(site: Site, sim: Simulator) -> None:
    sim.world.account_quota = PRICE
    receipt = await site.submit(1)
    await failure_of(site.submit(2))
    assert (await site.submit(1)).task_id == receipt.task_id


async def test_who_does_not_wait_asks_himself(site: Site, request_for: Request, sim: Simulator) -> None:
    await failure_of(site.submit(1))
    sim.world.account_quota = 10 * PRICE
    site.request = request_for()
    assert not (await site.submit(2)).attached


async def test_a_wrong_key_is_tried_by_free_requests_only(hire: Hire, sim: Simulator, request_for: Request) -> None:
    sim.world.account_quota = 10 * PRICE
    site = Site(hire(key="another"), sim, request_for(on_key_refused="wait"))
    for number in range(20):
        refused = await failure_of(site.prepare(number))
        assert refused.details.key_problem is KeyProblem.REFUSED
    assert site.asked == 1
    site.now += TRIAL_PAUSE.total_seconds()
    assert [isinstance(await site.wait(number, KeyProblem.REFUSED), Failure) for number in range(20)] == [True] * 20
    assert site.asked == 2

    sim.world.keys = {"another"}
    site.now += TRIAL_PAUSE.total_seconds()
    assert await site.wait(1, KeyProblem.REFUSED) == KeyTrial(trial=True)
    assert await site.wait(2, KeyProblem.REFUSED) == KeyTrial(trial=False)
    await site.prepare(2)
    assert (await site.submit(2)).slot == 1
    assert site.posts == 1


async def test_a_gateway_that_cannot_be_asked_is_waited_for(hire: Hire, sim: Simulator, request_for: Request) -> None:
    site = Site(hire(url="http://127.0.0.1:9"), sim, request_for(on_key_refused="wait"))
    away: Any = await site.wait(1)
    assert (away.type, away.retried, away.details.paid) == ("PollFailing", True, Paid.NO)


@pytest.mark.parametrize("problem", [KeyProblem.OUT_OF_QUOTA, KeyProblem.REFUSED])
async def test_who_is_not_the_one_to_try_is_refused_as_the_workflow_remembers_it(
    worker: Worker, problem: KeyProblem
) -> None:
    """The worker was started anew, so it has met no refusal itself."""
    worker.submission._breaker = KeyBreaker(lambda: 0.0)
    details = FailureDetails(http_status=403, gateway_code="no_more", key_problem=problem)
    input = AwaitKeyInput(key="order-1", message="top it up", details=details)
    assert (await worker.run(worker.submission.await_api_key, input)).trial
    refused = await failure_of(worker.run(worker.submission.await_api_key, input))
    assert (refused.details.key_problem, refused.details.http_status) == (problem, 403)
    assert refused.details.gateway_code == "no_more"
