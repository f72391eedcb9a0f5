"""Callers who may start workflows and are no operators: nothing of theirs hangs or is believed, on the real server."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowUpdateFailedError
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment

from cli.embedded import temporal_binary
from longtake.models import (
    FailureDetails,
    GenerateVideoInput,
    GenerationPolicy,
    Paid,
    PollSchedule,
    SubmissionReceipt,
)
from longtake.temporal.connection import DATA_CONVERTER
from longtake.temporal.names import TASK_QUEUE, WORKFLOW_TYPE
from longtake.temporal.search_attributes import SEARCH_ATTRIBUTE_KEYS
from tests.workflows.rig import FULL_VIDEO, REQUEST, Generation, Rig, Script, completed, delivered, rig_on, running
from workflows.state import GenerationState, PaidTask

pytestmark = pytest.mark.asyncio(loop_scope="session")

_TASK_FAILED = EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED
_FAILED = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED
_PATIENCE_SECONDS = 30
_MAX_FAILURE_BYTES = 100_000
"""Temporal takes two million; what travels with a failure is to be a small part of it."""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server() -> AsyncIterator[Rig]:
    environment = await WorkflowEnvironment.start_local(
        data_converter=DATA_CONVERTER,
        search_attributes=list(SEARCH_ATTRIBUTE_KEYS),
        dev_server_existing_path=str(temporal_binary()),
        dev_server_log_level="error",
    )
    async with environment, rig_on(environment) as rig:
        yield rig


async def started(rig: Rig, name: str, *arguments: Any, script: Script | None = None, **options: Any) -> Generation:
    script = script or Script()
    rig.register(name, script)
    handle = await rig.client.start_workflow(WORKFLOW_TYPE, args=arguments, id=name, task_queue=TASK_QUEUE, **options)
    first = rig.client.get_workflow_handle(name, run_id=handle.first_execution_run_id) if options else handle
    return Generation(rig, first, script)


async def refused(generation: Generation) -> FailureDetails:
    """It has ended at once as a bad request, without a failed workflow task, and nothing was called for it."""
    await generation.has_event(_FAILED)
    events = await generation.events()
    failure = events[-1].workflow_execution_failed_event_attributes.failure
    error = await generation.rig.client.data_converter.decode_failure(failure)
    assert isinstance(error, ApplicationError)
    assert error.type == "InvalidRequest"
    assert _TASK_FAILED not in [event.event_type for event in events]
    assert events[-1].ByteSize() < _MAX_FAILURE_BYTES
    assert generation.script.calls == []
    details = FailureDetails.model_validate(error.details[0])
    assert (details.paid, len(details.problems) <= 20) == (Paid.NO, True)
    return details


@pytest.mark.parametrize(
    "request_of_theirs",
    [
        {**REQUEST, **{f"field {number} {'x' * 300}": number for number in range(5_200)}},
        {**REQUEST, "x" * 1_900_000: 1},
        {**REQUEST, "images": [{"uri": ""}] * 60_000},
        {**REQUEST, "images": [{"uri": "https://example.com/a.png", **{f"f{n}": 1 for n in range(100_000)}}]},
        {**REQUEST, "images": [{"uri": "DATA:image/png;base64," + "A" * 1_100_000}]},
        {**REQUEST, "model": "m" * 1_900_000},
        {str(number): 1 for number in range(150_000)},
    ],
    ids=[
        "5,200 fields",
        "a long name",
        "60,000 images",
        "fields of an image",
        "DATA:",
        "a long model",
        "150,000 fields",
    ],
)
async def test_a_bad_request_never_hangs(server: Rig, request: pytest.FixtureRequest, request_of_theirs: Any) -> None:
    generation = await started(server, f"video-big-{abs(hash(request.node.name)) % 10**9}", request_of_theirs)
    details = await refused(generation)
    assert details.problems
    assert all(len(problem.field) <= 100 and len(problem.rule) <= 500 for problem in details.problems)


async def test_a_bad_decision_never_hangs(server: Rig) -> None:
    script = Script(polls=[completed()], deliver=[delivered(FULL_VIDEO)])
    generation = await started(server, "video-decided", REQUEST, script=script)
    await generation.reaches(lambda status: status.next_poll_at)
    for decision in ({f"field {n} {'x' * 300}": 1 for n in range(5_200)}, {"action": "x" * 1_900_000}):
        with pytest.raises(WorkflowUpdateFailedError) as caught:
            await asyncio.wait_for(generation.handle.execute_update("decide", decision), _PATIENCE_SECONDS)
        assert len(str(caught.value.cause)) < _MAX_FAILURE_BYTES
    assert _TASK_FAILED not in [event.event_type for event in await generation.events()]
    await generation.handle.terminate("the test is over")


@pytest.mark.parametrize(
    "name",
    [
        "video-order-1#extend-1",
        "order-without-prefix",
        "video-",
        "video-$(touch /tmp/owned)",
        "video-`id`",
        "video-a\nvideo-b",
        "video-\x1b[2Jdone: full 15.0 s",
        "video-\u202egpj.exe",
        "video-" + "k" * 201,
    ],
)
async def test_a_key_that_only_our_client_would_refuse_is_refused(server: Rig, name: str) -> None:
    details = await refused(await started(server, name, REQUEST))
    assert [problem.field for problem in details.problems] == ["workflow_id"]


def forged() -> dict[str, Any]:
    """The state of a generation that has paid for somebody else's task, as a run hands it to the next one."""
    receipt = SubmissionReceipt(task_id="task_Victim1", submitted_at=datetime.now(UTC), slot=1)
    state = GenerationState(
        key="k", input=GenerateVideoInput.model_validate(REQUEST), first_task=PaidTask(receipt=receipt)
    )
    return state.model_dump(mode="json")


@pytest.mark.parametrize("given", [REQUEST, forged(), {"carried": 1}, {"carried": 2}], ids=["plain", *"123"])
@pytest.mark.parametrize("options", [{"cron_schedule": "@every 1s"}, {"retry_policy": RetryPolicy()}], ids=str)
async def test_no_run_of_a_cron_schedule_or_a_retry_is_believed(
    server: Rig, request: pytest.FixtureRequest, given: Any, options: dict[str, Any]
) -> None:
    generation = await started(server, f"video-forged-{abs(hash(request.node.name)) % 10**9}", given, **options)
    details = await refused(generation)
    assert {problem.field for problem in details.problems} & {"cron_schedule", "retry_policy"}
    if "cron_schedule" in options:  # the next run is made all the same, and comes to no more
        await next_run_is_refused(generation, server)
        await server.client.get_workflow_handle(generation.handle.id).terminate("the test is over")
    assert generation.script.calls == []


async def next_run_is_refused(generation: Generation, rig: Rig) -> None:
    run_id = (await generation.events())[-1].workflow_execution_failed_event_attributes.new_execution_run_id
    assert run_id
    handle = rig.client.get_workflow_handle(generation.handle.id, run_id=run_id)
    await refused(Generation(rig, handle, generation.script))


async def test_a_flood_of_asked_for_polls_keeps_the_floor(server: Rig) -> None:
    min_interval = timedelta(seconds=2)
    policy = GenerationPolicy(schedule=PollSchedule(expected=timedelta(hours=1), min_interval=min_interval))
    script = Script(prepare=[policy], polls=[running(10)] * 100)
    generation = await started(server, "video-flooded", REQUEST, script=script)
    await generation.reaches(lambda status: status.next_poll_at)
    until = asyncio.get_running_loop().time() + 3 * min_interval.total_seconds()
    asked = 0
    while asyncio.get_running_loop().time() < until:
        await asyncio.gather(*(generation.handle.execute_update("poll_now") for _ in range(10)))
        asked += 10
        await asyncio.sleep(0.05)  # at most 1,200 in all: the server takes 2,000 updates of a run, and not one more
    times = script.times("query_generation")
    await generation.handle.terminate("the test is over")
    assert asked >= 30
    assert times, "whoever asks is heard"
    assert all(later - earlier >= min_interval for earlier, later in pairwise(times))
