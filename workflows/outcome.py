"""How a generation ends: with a result, a typed failure, or cancelled."""

from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from longtake.models import FailureDetails, GenerateVideoResult, Paid, Stage, StoredVideo, TaskState
from workflows.failures import BENIGN, StepFailed
from workflows.reporting import report
from workflows.state import GenerationState


def completed(state: GenerationState, outcome: str, video: StoredVideo) -> GenerateVideoResult:
    """End with a video.

    Args:
        state: Whose.
        outcome: `full` or `fallback`.
        video: The result.
    """
    state.outcome, state.video = outcome, video
    if outcome == "full":
        state.last_problem = None
    if state.uncollected is None:
        state.doubt = None
    state.enter(Stage.DONE)
    report(state)
    record, extension = state.record, state.extension_task
    assert record is not None  # noqa: S101 - a verdict is a record
    failed = record.state is TaskState.EXTEND_FAILED
    extended = extension.record if outcome == "full" and extension else None
    return GenerateVideoResult.model_validate(
        {
            "outcome": outcome,
            "video": video,
            "first_video": state.first_video,
            "model": state.request.model,
            "task_id": state.task.id,
            "remix_id": record.remix_id,
            "remix_id_extend": extended.remix_id_extend if extended else state.remix_id_extend,
            "extension_task_id": extension.id if extension else None,
            "uncollected": state.uncollected,
            "quota": record.quota,
            "refunded": record.refunded,
            "refund_evidence": record.refund_evidence,
            "polls": state.polls,
            "warnings": state.warnings,
            "extend_error_code": record.error_code if failed else None,
            "extend_error_message": record.error_message if failed else None,
        }
    )


def failed(state: GenerationState, failure: StepFailed) -> ApplicationError:
    """End without what was asked for.

    Returns:
        The typed error that holds everything known.
    """
    state.outcome, state.last_problem = failure.kind, failure.message
    state.set_paid(failure.details.paid)
    if state.paid is not Paid.UNKNOWN:
        state.doubt = None
    state.failure = _known(state, failure.details)
    state.enter(Stage.FAILED)
    report(state)
    benign = failure.kind in BENIGN
    return ApplicationError(
        failure.message,
        state.failure,
        type=failure.kind,
        non_retryable=True,
        category=ApplicationErrorCategory.BENIGN if benign else ApplicationErrorCategory.UNSPECIFIED,
    )


def cancelled(state: GenerationState) -> None:
    """Stop waiting. What is known about money stays known: the step that was cancelled has asked the ledger."""
    state.set_paid(state.paid or Paid.UNKNOWN)
    state.enter(Stage.CANCELLED)
    report(state)


def _known(state: GenerationState, details: FailureDetails) -> FailureDetails:
    """What the step knows, and everything that the state knows."""
    known: dict[str, object] = {
        "key": state.key,
        "model": state.input.model if state.input else None,
        "polls": state.polls,
        "paid": state.paid or Paid.UNKNOWN,
    }
    if state.first_task:
        record = state.record
        known |= {
            "task_id": state.first_task.id,
            "remix_id": record and record.remix_id,
            "remix_id_extend": state.remix_id_extend,
            "extension_task_id": state.extension_task and state.extension_task.id,
            "quota": record and record.quota,
            "refunded": record and record.refunded,
            "refund_evidence": record and record.refund_evidence,
            "gateway_code": record and record.error_code,
            "gateway_message": record and record.error_message,
            "request_id": state.first_task.receipt.request_id,
            "first_video": state.first_video,
            "last_record": record,
        }
    return details.model_copy(update=known)
