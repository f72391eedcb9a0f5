"""Taking over a task that something else submitted: the gateway says which task it is, and it has one owner."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.submission import SubmissionActivities
from longtake.gateway.client import GatewayClient
from longtake.models import GenerateVideoInput, Resolution, ResolveInput, SubmissionReceipt, SubmitInput
from longtake.request.rules import request_digest
from longtake.storage import Store
from longtake.submission.ledger import Submission
from tests.activities.conftest import POLICY, Hire, Worker
from tests.unread import UnreadAnswers

VICTIMS = "task_Victim1"
RequestFor = Callable[..., GenerateVideoInput]


def ignoring_case(request: httpx.Request) -> httpx.Response:
    """A gateway whose database finds a task whatever the case of its id, and writes the id as it has it."""
    asked = request.url.path.rsplit("/", 1)[-1]
    if asked.casefold() != VICTIMS.casefold():
        return httpx.Response(404, json={"error": {"code": "task_not_exist", "message": "no such task"}})
    envelope = {"id": 7, "task_id": VICTIMS, "status": "IN_PROGRESS", "progress": "61%", "data": {"id": "video_up1"}}
    return httpx.Response(200, json={"code": "success", "message": "", "data": envelope})


@pytest.fixture
async def careless(hire: Hire, store: Store) -> Worker:
    worker = hire()
    gateway = GatewayClient(
        base_url="https://gateway.example",
        api_keys=[SecretStr("the-key-that-pays")],
        transport=UnreadAnswers(ignoring_case),
    )
    hire.opened.append(gateway)
    await worker.ledger.establish()
    worker.established = True
    worker.submission = SubmissionActivities(
        gateway=gateway, store=store, ledger=worker.ledger, account_client=worker.account_client, policy=POLICY
    )
    return worker


async def adopted(worker: Worker, key: str, request: GenerateVideoInput) -> SubmissionReceipt:
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, workflow_id=f"video-{key}", scheduled_time=datetime.now(UTC))
    receipt: SubmissionReceipt = await environment.run(
        worker.submission.submit_generation, SubmitInput(key=key, request=request)
    )
    return receipt


async def test_another_spelling_of_a_task_is_that_task(careless: Worker, request_for: RequestFor) -> None:
    theirs = await adopted(careless, "victim", request_for(task_id=VICTIMS))
    assert theirs.task_id == VICTIMS
    for spelling in ("TASK_Victim1", "task_victim1", VICTIMS):
        with pytest.raises(ApplicationError) as refused:
            await adopted(careless, f"thief-{spelling}", request_for(task_id=spelling))
        assert refused.value.type == "InvalidRequest"
        assert await careless.ledger.accepted(f"thief-{spelling}") is None
    assert (await adopted(careless, "victim", request_for(task_id=VICTIMS))).task_id == VICTIMS


async def test_the_id_that_the_gateway_answers_is_owned(careless: Worker, request_for: RequestFor) -> None:
    receipt = await adopted(careless, "first", request_for(task_id="TASK_Victim1"))
    assert receipt.task_id == VICTIMS
    assert list(await careless.ledger.owners_of([VICTIMS])) == [VICTIMS]


async def test_of_many_who_adopt_a_task_at_once_one_wins(careless: Worker, request_for: RequestFor) -> None:
    spellings = [VICTIMS, "TASK_Victim1", "task_victim1", VICTIMS.upper(), VICTIMS]
    ends = await asyncio.gather(
        *(adopted(careless, f"key-{n}", request_for(task_id=name)) for n, name in enumerate(spellings)),
        return_exceptions=True,
    )
    assert [end.task_id for end in ends if isinstance(end, SubmissionReceipt)] == [VICTIMS]
    refused = [end for end in ends if isinstance(end, ApplicationError)]
    assert [error.type for error in refused] == ["InvalidRequest"] * 4


async def test_a_decision_to_adopt_owns_what_the_gateway_answers(careless: Worker, request_for: RequestFor) -> None:
    digest = request_digest(request_for())

    async def decide(key: str) -> Resolution:
        input = ResolveInput(key=key, task_id="TASK_Victim1", digest=digest, model="m")
        resolved: Resolution = await careless.run(careless.submission.resolve_submission, input)
        return resolved

    receipt = (await decide("victim")).receipt
    assert receipt
    assert receipt.task_id == VICTIMS
    with pytest.raises(ApplicationError) as refused:
        await decide("thief")
    assert refused.value.type == "InvalidRequest"
    assert await careless.ledger.accepted("thief") is None


@pytest.mark.parametrize("extension", [False, True])
async def test_a_task_is_searched_for_where_it_must_be(
    careless: Worker, request_for: RequestFor, *, extension: bool
) -> None:
    """That of an extension which was paid for again is at the gateway that retries them."""

    def gateway(name: str) -> Any:
        async def query(_task_id: str) -> Any:
            return SimpleNamespace(own_task_id=f"task_at_{name}")

        return SimpleNamespace(query=query)

    careless.submission._gateway, careless.submission._extension = gateway("first"), gateway("extension")
    input = ResolveInput(key="order-1", task_id="task_1", digest="d", model="m", extension=extension)
    receipt = (await careless.run(careless.submission.resolve_submission, input)).receipt
    assert receipt.task_id == ("task_at_extension" if extension else "task_at_first")


async def test_an_adopted_task_that_the_gateway_has_lost_stays_adopted(
    careless: Worker, request_for: RequestFor
) -> None:
    request = request_for(task_id="task_gone")
    await careless.ledger.adopt("late", Submission(digest=request_digest(request), writer="x", model="m"), "task_gone")
    assert (await adopted(careless, "late", request)).task_id == "task_gone"
