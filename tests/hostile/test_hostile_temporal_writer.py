"""Somebody who may write to Temporal's namespace, with a worker of his own there: what he gains from our workers.

His worker can hand any state to `GenerateVideo` as the run before would, and his workflows can run any of our steps
with any input. What the steps do is decided by the ledger in the store, which is not his.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio import workflow
from temporalio.client import WorkflowFailureError
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from longtake.models import (
    CarriedGeneration,
    DeliverInput,
    DeliveryKind,
    FailureDetails,
    GenerateVideoInput,
    GenerateVideoResult,
    GenerationPolicy,
    PollSchedule,
    SubmissionReceipt,
    TaskRecord,
    TaskState,
)
from longtake.temporal.connection import SUBMISSION_TASK_QUEUE, TASK_QUEUE, WORKFLOW_TYPE, workflow_id
from tests.workflows.real_site import EXCHANGE, PATIENCE_SECONDS, Site, running_site

THEIR_QUEUE = "theirs"
VICTIM, THIEF = "victim", "thief"
_ACTIVITY_TIME = timedelta(seconds=20)
POLICY = GenerationPolicy(
    submit_timeout=EXCHANGE,
    schedule=PollSchedule(expected=timedelta(seconds=2), min_interval=timedelta(seconds=1)),
)


@workflow.defn(name=WORKFLOW_TYPE)
class HandsOver:
    """Continues as new into our workers, with a state of its own making."""

    @workflow.run
    async def run(self, forged: RawValue) -> None:
        workflow.continue_as_new(forged, task_queue=TASK_QUEUE)


@workflow.defn
class RunsOurSteps:
    """Runs our activities; returns what became of each."""

    @workflow.run
    async def run(self, steps: list[dict[str, Any]]) -> list[str]:
        ended = []
        for step in steps:
            try:
                await workflow.execute_activity(
                    step["activity"],
                    step["order"],
                    task_queue=step["queue"],
                    start_to_close_timeout=_ACTIVITY_TIME,
                    retry_policy=RetryPolicy(maximum_attempts=1),
                )
            except ActivityError as error:
                cause = error.cause
                ended.append((isinstance(cause, ApplicationError) and cause.type) or type(cause).__name__)
            else:
                ended.append("")
        return ended


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest_asyncio.fixture
async def site(tmp_path: Path, clips: Path) -> AsyncIterator[Site]:
    async with running_site(tmp_path, policy=POLICY, clips=clips) as site:
        theirs = Worker(
            site.client,
            task_queue=THEIR_QUEUE,
            workflows=[HandsOver, RunsOurSteps],
            workflow_runner=UnsandboxedWorkflowRunner(),
        )
        async with theirs:
            yield site


async def victims(site: Site) -> tuple[GenerateVideoInput, GenerateVideoResult]:
    """A generation that somebody else paid for, and has."""
    await site.start(VICTIM)
    handle = site.client.get_workflow_handle(workflow_id(VICTIM), result_type=GenerateVideoResult)
    async with asyncio.timeout(PATIENCE_SECONDS):
        result: GenerateVideoResult = await handle.result()
    (sent,) = site.sim.ledger.submissions()
    fields = {"model": sent["model"], "prompt": sent["prompt"], "prompt_extend": sent["prompt_extend"]}
    return GenerateVideoInput.model_validate(fields), result


def forged(request: GenerateVideoInput, task_id: str, **more: Any) -> CarriedGeneration:
    receipt = SubmissionReceipt(task_id=task_id, submitted_at=datetime.now(UTC), slot=1)
    return CarriedGeneration(request=request, policy=POLICY, receipt=receipt, **more)


def forgeries(request: GenerateVideoInput, task_id: str) -> Iterator[CarriedGeneration]:
    completed = TaskRecord(task_id=task_id, state=TaskState.COMPLETED, has_video_link=True, has_first_video_link=True)
    yield forged(request, task_id)
    yield forged(request, task_id, record=completed)
    receipt = SubmissionReceipt(task_id=task_id, submitted_at=datetime.now(UTC), slot=1)
    failed = completed.model_copy(update={"state": TaskState.EXTEND_FAILED, "remix_id": "video_1"})
    yield forged(request, task_id, record=failed, extension=receipt, extension_number=1)


@pytest.mark.parametrize("number", range(3), ids=["a receipt", "a verdict", "a retried extension"])
async def test_a_forged_state_does_not_bring_anothers_video(site: Site, tmp_path: Path, number: int) -> None:
    request, theirs = await victims(site)
    state = [*forgeries(request, theirs.task_id)][number]
    handle = await site.client.start_workflow(
        WORKFLOW_TYPE, state, id=workflow_id(THIEF), task_queue=THEIR_QUEUE, result_type=GenerateVideoResult
    )
    with pytest.raises(WorkflowFailureError) as caught:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await handle.result()
    error = caught.value.cause
    assert isinstance(error, ApplicationError)
    assert error.type == "DeliveryFailed"
    assert FailureDetails.model_validate(error.details[0]).first_video is None
    assert [path.name for path in (tmp_path / "store" / "videos").iterdir()] == [VICTIM]
    assert site.posts() == 1


async def test_no_step_that_he_runs_pays_a_second_time_for_a_key(site: Site, tmp_path: Path) -> None:
    request, theirs = await victims(site)
    another = request.model_copy(update={"prompt": "something else"})
    key = {"key": VICTIM}
    submit = {"activity": "submit_generation", "queue": SUBMISSION_TASK_QUEUE}
    steps: list[dict[str, Any]] = [
        {"activity": "resolve_submission", "order": {**key, "slot": 1, "task_id": None, "digest": ""}},
        {"activity": "resolve_submission", "order": {**key, "slot": None, "task_id": None, "digest": ""}},
        {"activity": "close_submission", "order": {**key, "digest": ""}},
        {
            "activity": "reconcile_submission",
            "order": {**key, "slot": 1, "model": request.model, "confirms_not_charged": True},
        },
        {**submit, "order": {**key, "request": request.model_dump(mode="json")}},
        {**submit, "order": {**key, "request": another.model_dump(mode="json")}},
        {
            "activity": "deliver_video",
            "order": DeliverInput(key=THIEF, task_id=theirs.task_id, kind=DeliveryKind.FULL).model_dump(mode="json"),
        },
    ]
    steps = [{"queue": TASK_QUEUE, **step} for step in steps]
    async with asyncio.timeout(PATIENCE_SECONDS):
        ended = await site.client.execute_workflow(
            "RunsOurSteps", steps, id="forging", task_queue=THEIR_QUEUE, result_type=list[str]
        )
    assert ended[4:] == ["", "InvalidRequest", "TaskOwned"], "its own request finds the task; another is refused"
    assert site.posts() == 1
    accepted = await site.ledger.accepted(VICTIM)
    assert accepted is not None
    assert accepted.task_id == theirs.task_id
    assert [path.name for path in (tmp_path / "store" / "videos").iterdir()] == [VICTIM]
