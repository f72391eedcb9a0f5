"""From a good request to a paid task id, at most once."""

import asyncio
from collections.abc import Awaitable

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.submission import SubmissionActivities
from longtake.models import ExtensionInput, Paid, RecordInput, Stage, SubmissionReceipt, SubmitInput
from longtake.temporal.names import SUBMISSION_TASK_QUEUE
from workflows import options
from workflows.failures import Cause, attempt, cause_of
from workflows.reporting import report
from workflows.state import GenerationState
from workflows.steps.await_api_key import await_api_key
from workflows.steps.resolve import (
    learn_what_was_paid,
    learning_what_was_paid,
    not_sent,
    outcome_unknown,
    resolve,
    submission_of,
)


async def submit(state: GenerationState, extension: ExtensionInput | None = None) -> None:
    """Submit until there is a task id: of the request itself, or of a retried extension, with the same rules.

    Raises:
        StepFailed: Refused, not sent in time, unknown for good, or abandoned.
    """
    input = submission_of(state, extension)
    receipt = None
    async with learning_what_was_paid(state, input):
        while receipt is None:
            state.enter(Stage.SUBMITTING)
            report(state)
            sent = await attempt(_send(state, input))
            if not isinstance(sent, Cause):
                receipt = sent
                continue
            trial = None if extension else await await_api_key(state, sent)
            if trial is None:
                receipt = await resolve(state, input, sent)
            else:
                input = input.model_copy(update={"trial": trial})
        await _keep(state, input, receipt)


async def _send(state: GenerationState, input: SubmitInput) -> SubmissionReceipt:
    """One submission. A cancellation waits for an exchange that has begun, so that its id is known."""
    if input.request.task_id:
        summary = f"adopt task {input.request.task_id[:80]}: nothing is paid"
    elif input.extension:
        summary = f"retry {input.extension.number} of the extension: paid, at most once"
    else:
        summary = f"submit {input.request.model}: paid, at most once"
    submission = workflow.start_activity_method(
        SubmissionActivities.submit_extension if input.extension else SubmissionActivities.submit_generation,
        input,
        task_queue=SUBMISSION_TASK_QUEUE,
        summary=summary,
        **options.submission(state.policy),
    )
    try:
        return await asyncio.shield(submission)
    except asyncio.CancelledError:
        # What came in the same activation goes first: cancelled with its result already there, the SDK drops the result
        # (`RAISE_ON_CANCELLING_COMPLETED_ACTIVITY`), and with it an id that was paid for. The SDK checks a condition
        # when everything else has had its turn.
        await workflow.wait_condition(lambda: True)
        if not submission.done():
            submission.cancel()
        await _end_while_cancelling(state, input, submission)
        raise


async def _end_while_cancelling(
    state: GenerationState, input: SubmitInput, submission: Awaitable[SubmissionReceipt]
) -> None:
    """Keep what the exchange brought. Where it failed, the failure says more than "cancelled".

    Raises:
        StepFailed: It failed, unless it was paid after all, was a retried extension, or just never answered.
        ActivityError: It was cancelled before the exchange began.
    """
    sent = await attempt(submission)
    if not isinstance(sent, Cause):
        await _keep(state, input, sent)
        return
    await learn_what_was_paid(state, input)
    if state.paid is not Paid.YES and not sent.timed_out:
        raise not_sent(sent) if state.paid is Paid.NO else outcome_unknown(sent)


async def _keep(state: GenerationState, input: SubmitInput, receipt: SubmissionReceipt) -> None:
    """Show a paid submission at once, and write it to the ledger as soon as that takes it."""
    state.own(receipt, extension=input.extension is not None)
    state.waiting_since = None
    report(state)
    if not receipt.recorded:
        await _to_its_end(_record(state, input, receipt))


async def _record(state: GenerationState, input: SubmitInput, receipt: SubmissionReceipt) -> None:
    try:
        await workflow.execute_activity_method(
            SubmissionActivities.record_submission,
            RecordInput(key=input.ledger_key, receipt=receipt, ledger_id=input.ledger_id),
            summary="write the submission's outcome to the ledger",
            **options.RECORD,
        )
    except ActivityError as error:  # cancelled or not: the task id is known, and the generation continues with it
        state.warn(f"the ledger has no outcome for this submission: {cause_of(error).message}")


async def _to_its_end(step: Awaitable[None]) -> None:
    """A cancellation waits for this step, and continues afterwards."""
    running = asyncio.ensure_future(step)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await running
        raise
