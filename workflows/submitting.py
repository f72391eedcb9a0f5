"""From a good request to a paid task id, at most once; and what happens where nobody knows whether it was paid."""

import asyncio

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

from activities.submission import SubmissionActivities
from longtake.catalog import prompt_paths
from longtake.models import (
    ExtensionOrder,
    Paid,
    PrepareOrder,
    RecordOrder,
    Stage,
    SubmissionReceipt,
    SubmitOrder,
)
from longtake.temporal import SUBMISSION_TASK_QUEUE
from workflows import measuring, options
from workflows.failures import cause_of
from workflows.generation import Ending, Generation
from workflows.settling import LOOK_YOURSELF, settle

_IN_DOUBT = frozenset(
    {"SubmissionOutcomeUnknown", "SubmissionInDoubt", "SlotTaken", "LedgerUnavailable", "PayloadUnreadable"}
)
"""The last: a worker without the encryption key cannot read what an attempt before it has told."""
PROMPTS_SHOWN = (
    "LONGTAKE_HIDE_PROMPTS is on, but the prompts stand in the workflow's input: put them into the store and give "
    "their paths, as starter.py does"
)
_UNPAID = frozenset({"InvalidRequest", "SubmissionRefused"})


async def prepare(generation: Generation) -> None:
    """Find out everything that can be known to fail, before anything is paid."""
    generation.enter(Stage.PREPARING)
    try:
        generation.policy = await workflow.execute_activity_method(
            SubmissionActivities.prepare_generation,
            PrepareOrder(key=generation.key, request=generation.request),
            summary="check images, store and gateway; nothing is paid yet",
            **options.PREPARE,
        )
    except ActivityError as error:
        if is_cancelled_exception(error):
            raise
        cause = cause_of(error)
        kind = cause.type if cause.type in _UNPAID else "NotSubmitted"
        # An earlier run of the same key may have been paid, where the ledger could not be asked.
        paid = Paid.UNKNOWN if cause.type == "LedgerUnavailable" else Paid.NO
        raise Ending(kind, cause.message, cause.details.model_copy(update={"paid": paid})) from None
    if generation.policy.hide_prompts and not prompt_paths(generation.request) and not generation.request.task_id:
        generation.warnings.append(PROMPTS_SHOWN)


async def submit(generation: Generation) -> SubmissionReceipt:
    """The paid step; or the taking over of a task that something else submitted."""
    ledger_id = generation.policy.ledger_id
    return await _pay(generation, SubmitOrder(key=generation.key, request=generation.request, ledger_id=ledger_id))


async def submit_extension(generation: Generation, remix_id: str, number: int) -> SubmissionReceipt:
    """Pay for the extension again, with all the rules of the first payment."""
    extension = ExtensionOrder(remix_id=remix_id, number=number)
    order = SubmitOrder(
        key=generation.key,
        request=generation.request,
        extension=extension,
        ledger_id=generation.policy.ledger_id,
    )
    return await _pay(generation, order)


async def _pay(generation: Generation, order: SubmitOrder) -> SubmissionReceipt:
    """Submit until there is a task id, or an end.

    Raises:
        Ending: Refused, surely not sent in time, unknown for good, or abandoned.
    """
    settled: SubmissionReceipt | None = None
    while settled is None:
        generation.enter(Stage.SUBMITTING)
        try:
            receipt = await _send(generation, order)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            if not _is_in_doubt(error):
                raise _ending(error) from None
            settled = await settle(generation, order, cause_of(error))
        else:
            await _keep(generation, order, receipt)
            return receipt
    await _keep(generation, order, settled)
    return settled


async def _send(generation: Generation, order: SubmitOrder) -> SubmissionReceipt:
    """One submission. A cancellation waits for an exchange that has begun, so that its id is known."""
    if order.request.task_id:
        summary = f"take over task {order.request.task_id[:80]}: nothing is paid"
    elif order.extension:
        summary = f"retry {order.extension.number} of the extension: paid, at most once"
    else:
        summary = f"submit {order.request.model}: paid, at most once"
    submission = workflow.start_activity_method(
        SubmissionActivities.submit_extension if order.extension else SubmissionActivities.submit_generation,
        order,
        task_queue=SUBMISSION_TASK_QUEUE,
        summary=summary,
        **options.submission(generation.policy),
    )
    try:
        return await asyncio.shield(submission)
    except asyncio.CancelledError:
        # What came in the same activation goes first: cancelled with its result already there, the SDK drops the result
        # (`RAISE_ON_CANCELLING_COMPLETED_ACTIVITY`), and with it an id that was paid for. A condition is looked at when
        # everything else has had its turn.
        await workflow.wait_condition(lambda: True)
        if not submission.done():
            submission.cancel()
        try:
            await _keep(generation, order, await submission)
        except ActivityError as error:
            if not is_cancelled_exception(error):
                raise _ending(error) from None
        raise


async def _keep(generation: Generation, order: SubmitOrder, receipt: SubmissionReceipt) -> None:
    """A paid submission is ours from here on: shown at once, and in the ledger as soon as that takes it."""
    measuring.paid(receipt, order.request, extension=order.extension is not None)
    generation.own(receipt, extension=order.extension is not None)
    if receipt.recorded:
        return
    try:
        await workflow.execute_activity_method(
            SubmissionActivities.record_submission,
            RecordOrder(key=order.ledger_key, receipt=receipt, ledger_id=order.ledger_id),
            summary="write the submission's outcome to the ledger",
            **options.RECORD,
        )
    except ActivityError as error:
        if is_cancelled_exception(error):
            raise
        generation.warnings.append(f"the ledger has no outcome for this submission: {cause_of(error).message}")


def _is_in_doubt(error: ActivityError) -> bool:
    """Whether a submission may have been paid: said so, or its activity never answered."""
    if is_cancelled_exception(error):
        return False
    cause = cause_of(error)
    return cause.type in _IN_DOUBT or cause.timed_out


def _ending(error: ActivityError) -> Ending:
    """What ends without a person being asked: refused, surely not sent in time, or cancelled while in doubt."""
    cause = cause_of(error)
    if _is_in_doubt(error):
        advice = cause.details.advice or LOOK_YOURSELF
        details = cause.details.model_copy(update={"paid": Paid.UNKNOWN, "advice": advice})
        return Ending("SubmissionOutcomeUnknown", cause.message, details)
    kind = cause.type if cause.type in _UNPAID else "NotSubmitted"
    return Ending(kind, cause.message, cause.details.model_copy(update={"paid": Paid.NO}))
