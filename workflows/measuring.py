"""What a generation counts of itself; the SDK's meter for workflows records nothing on replay."""

from datetime import datetime

from temporalio import workflow

from longtake.models import GenerateVideoInput, Stage, SubmissionReceipt, TaskRecord
from longtake.observability.metrics import (
    GENERATIONS,
    IN_DOUBT,
    PAID_SUBMISSIONS,
    POLLS,
    QUOTA,
    REFUNDED_QUOTA,
    STAGE_DURATION,
    VERDICTS,
    count,
    observe,
)


class StageClock:
    """How long a generation stays in each stage."""

    def __init__(self, stage: Stage | None = None, since: datetime | None = None) -> None:
        self.stage = stage
        self.since = since

    def enter(self, stage: Stage, outcome: str | None, model: str | None) -> None:
        """Another stage begins, or the same one goes on; the last one is an end."""
        if stage is self.stage:
            return
        now = workflow.now()
        if self.stage and self.since:
            observe(workflow.metric_meter(), STAGE_DURATION, now - self.since, stage=self.stage, model=model)
        self.stage, self.since = stage, now
        if stage in {Stage.DONE, Stage.FAILED, Stage.CANCELLED}:
            ended(outcome or "Cancelled", model)


def ended(outcome: str | None, model: str | None) -> None:
    """A generation has ended."""
    count(workflow.metric_meter(), GENERATIONS, outcome=outcome, model=model)


def polled(result: str) -> None:
    """A look told this, or failed so."""
    count(workflow.metric_meter(), POLLS, result=result)


def judged(record: TaskRecord, model: str, *, extension: bool) -> None:
    """The gateway has said what became of a task."""
    count(workflow.metric_meter(), VERDICTS, verdict=record.state, task=_task(extension), model=model)


def doubted(model: str, *, extension: bool) -> None:
    """Nobody knows whether a submission was paid."""
    count(workflow.metric_meter(), IN_DOUBT, task=_task(extension), model=model)


def paid(receipt: SubmissionReceipt, request: GenerateVideoInput, *, extension: bool) -> None:
    """A submission is known to be paid."""
    if _paid_by_this_run(receipt, request, extension=extension):
        count(workflow.metric_meter(), PAID_SUBMISSIONS, task=_task(extension), model=request.model)


def charged(
    record: TaskRecord,
    before: TaskRecord | None,
    receipt: SubmissionReceipt,
    request: GenerateVideoInput,
    *,
    extension: bool,
) -> None:
    """A look may be the first to tell what a submission cost, or that it was given back.

    A refund of what was never told is not counted either, so that the difference of both is what was spent.
    """
    if not _paid_by_this_run(receipt, request, extension=extension):
        return
    known = before.quota if before is not None and before.task_id == record.task_id else None
    meter, labels = workflow.metric_meter(), {"task": _task(extension), "model": request.model}
    if record.quota and known is None:
        count(meter, QUOTA, record.quota, **labels)
    elif known and record.refunded:
        count(meter, REFUNDED_QUOTA, known, **labels)


def _paid_by_this_run(receipt: SubmissionReceipt, request: GenerateVideoInput, *, extension: bool) -> bool:
    """Whether it is this run's money: not an adopted task, and not one that an earlier run of the key has counted."""
    if request.task_id and not extension:
        return False
    return not receipt.attached or receipt.submitted_at >= workflow.info().workflow_start_time


def _task(extension: bool) -> str:  # noqa: FBT001 - the word that it chooses is the label
    return "extension" if extension else "generation"
