"""Everything that is shown of a generation, derived from its state before and after a step changed it.

Search attributes, current details, log lines and metrics all come from here: a step changes the state, then calls
`report`.
"""

import logging

from temporalio import workflow
from temporalio.common import SearchAttributeKey

from longtake.models import DecisionAction, GenerationStatus, Paid, Stage, SubmissionReceipt
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
from longtake.temporal.search_attributes import (
    GATEWAY_TASK_ID,
    VIDEO_ATTENTION,
    VIDEO_MODEL,
    VIDEO_OUTCOME,
    VIDEO_PAID,
    VIDEO_STAGE,
)
from workflows import status_text
from workflows.failures import BENIGN
from workflows.state import VERDICTS as VERDICT_STATES
from workflows.state import GenerationState, PaidTask

_OVER = frozenset({Stage.DONE, Stage.FAILED, Stage.CANCELLED})


def report(state: GenerationState) -> None:
    """Show what has changed since the last report.

    The SDK's logger and its meter for workflows do nothing while it replays, so only what is new is logged and counted.
    """
    before, after = state.show()
    _upsert(before, after)
    _log(before, after)
    _count(before, after)
    workflow.set_current_details(status_text.markdown(status_of(after)))


def status_of(state: GenerationState) -> GenerationStatus:
    """The answer to the query `status`."""
    task, extension, question = state.first_task, state.extension_task, state.question
    doubt = state.doubt
    record = (extension and extension.record) or state.record
    status = GenerationStatus(
        key=state.key,
        stage=state.stage,
        attention=state.attention,
        outcome=state.outcome,
        paid=state.paid,
        charged=doubt.charged if doubt else None,
        quota=state.record.quota if state.record else None,
        refunded=state.record.refunded if state.record else None,
        refund_evidence=state.record.refund_evidence if state.record else None,
        model=state.input.model if state.input else None,
        progress=record.progress if record else None,
        polls=state.polls,
        task_id=task.id if task else None,
        request_id=task.receipt.request_id if task else None,
        remix_id=state.record.remix_id if state.record else None,
        remix_id_extend=state.remix_id_extend,
        extension_task_id=extension.id if extension else None,
        submitted_at=task.receipt.submitted_at if task else None,
        next_poll_at=state.next_poll_at,
        has_link=record is not None and record.has_video_link,
        link_expires_at=record.link_expires_at if record else None,
        decisions=question.actions if question else (),
        decide_by=question.by if question else None,
        slot=question.slot if question else None,
        evidence=doubt.evidence if doubt else (),
        candidates=doubt.candidates if doubt else (),
        last_problem=state.last_problem,
        key_problem=state.key_problem,
        waiting_since=state.waiting_since if state.awaiting_key else None,
        video=state.video,
        first_video=state.first_video,
        warnings=state.warnings,
    )
    own = state.failure.advice if state.failure else status_text.COLLECT if state.uncollected else ""
    return status_text.explained(status, own)


def _upsert(before: GenerationState | None, after: GenerationState) -> None:
    shown = _attributes(before) if before else {}
    changed = [
        key.value_set(value) if value else key.value_unset()
        for key, value in _attributes(after).items()
        if value != shown.get(key)
    ]
    if changed:
        workflow.upsert_search_attributes(changed)


def _attributes(state: GenerationState) -> dict[SearchAttributeKey[str], str | None]:
    # While it is open, a doubt about a retried extension is found like any other, though the first task was paid.
    in_doubt = state.question is not None and DecisionAction.ADOPT in state.question.actions
    return {
        VIDEO_MODEL: state.input.model if state.input else None,
        VIDEO_STAGE: state.stage,
        VIDEO_ATTENTION: state.attention,
        VIDEO_PAID: Paid.UNKNOWN if in_doubt else state.paid,
        VIDEO_OUTCOME: state.outcome,
        GATEWAY_TASK_ID: state.first_task.id if state.first_task else None,
    }


def _log(before: GenerationState | None, after: GenerationState) -> None:
    """Log each stage that a generation enters, each need of attention, and how it failed."""
    if before and (before.stage, before.attention) == (after.stage, after.attention):
        return
    task = after.extension_task or after.first_task
    known = {
        "task_id": task and task.id,
        "request_id": task and task.receipt.request_id,
        "remix_id": after.record and after.record.remix_id,
        "extension_task_id": after.extension_task and after.extension_task.id,
        "stage": after.stage,
        "attention": after.attention,
        "outcome": after.outcome,
        "polls": after.polls or None,
    }
    workflow.logger.info("stage %s", after.stage, extra=known)
    if after.failure:
        failure = after.failure
        error = {
            "error_type": after.outcome,
            "error": after.last_problem,
            "paid": failure.paid,
            "advice": failure.advice,
        }
        named = {"request_id": failure.request_id, "http_status": failure.http_status}
        named["gateway_code"] = failure.gateway_code
        extra = {**known, **error, **{name: value for name, value in named.items() if value}}
        level = logging.INFO if after.outcome in BENIGN else logging.WARNING
        workflow.logger.log(level, "generation failed", extra=extra)


def _count(before: GenerationState | None, after: GenerationState) -> None:
    before = before or GenerationState(key=after.key)
    meter, model = workflow.metric_meter(), after.input.model if after.input else None
    if after.stage is not before.stage:
        if before.stage_since:
            duration = workflow.now() - before.stage_since
            observe(meter, STAGE_DURATION, duration, stage=before.stage, model=model)
        if after.stage in _OVER:
            count(meter, GENERATIONS, outcome=after.outcome or "Cancelled", model=model)
    if after.last_poll and after.last_poll != before.last_poll:
        count(meter, POLLS, result=after.last_poll.result)
    if after.doubt and not before.doubt:
        count(meter, IN_DOUBT, task="extension" if after.doubt.extension else "generation", model=model)
    if after.first_task:
        _count_task(before.first_task, after.first_task, after, "generation")
    if after.extension_task:
        _count_task(before.extension_task, after.extension_task, after, "extension")


def _count_task(before: PaidTask | None, after: PaidTask, state: GenerationState, task: str) -> None:
    meter, labels = workflow.metric_meter(), {"task": task, "model": state.request.model}
    if before and before.id != after.id:
        before = None
    known, record = before and before.record, after.record
    if record and record.state in VERDICT_STATES and not (known and known.state in VERDICT_STATES):
        count(meter, VERDICTS, verdict=record.state, **labels)
    if state.request.task_id and task == "generation":
        return  # adopted: somebody else's money
    if not _paid_by_this_run(after.receipt):
        return
    if not before:
        count(meter, PAID_SUBMISSIONS, **labels)
    charged = known.quota if known else None
    if record and record.quota and charged is None:
        count(meter, QUOTA, record.quota, **labels)
    elif record and record.refunded and charged and not (known and known.refunded):
        # A refund of what was never reported is not counted either, so that the difference of both is what was spent.
        count(meter, REFUNDED_QUOTA, charged, **labels)


def _paid_by_this_run(receipt: SubmissionReceipt) -> bool:
    """Whether no earlier run of the key has counted it."""
    return not receipt.attached or receipt.submitted_at >= workflow.info().workflow_start_time
