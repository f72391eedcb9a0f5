"""From a good request to a paid task id, at most once; and what happens where nobody knows whether it was paid."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

from activities.submission import SubmissionActivities
from longtake.models import (
    ExtensionInput,
    Paid,
    PrepareInput,
    RecordInput,
    Stage,
    SubmissionReceipt,
    SubmitInput,
)
from longtake.request.rules import prompt_paths
from longtake.temporal.names import SUBMISSION_TASK_QUEUE
from workflows import measuring, options
from workflows.failures import Cause, cause_of
from workflows.state import Generation, StepFailed
from workflows.steps.await_api_key import await_key, waits_for_key
from workflows.steps.resolve import REFUSALS, learn_what_was_paid, not_sent, outcome_unknown, resolve

PROMPTS_SHOWN = (
    "LONGTAKE_HIDE_PROMPTS is on, but the prompts stand in the workflow's input: put them into the store and give "
    "their paths, as starter.py does"
)


async def prepare(generation: Generation) -> None:
    """Find out everything that can be known to fail, before anything is paid."""
    generation.enter(Stage.PREPARING)
    input = _first_input(generation)
    async with _learning_what_was_paid(generation, input):
        trial: bool | None = False
        while True:
            try:
                generation.policy = await workflow.execute_activity_method(
                    SubmissionActivities.prepare_generation,
                    PrepareInput(key=generation.key, request=generation.request, trial=trial),
                    summary="check images, store and gateway; nothing is paid yet",
                    **options.PREPARE,
                )
                break
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                cause = cause_of(error)
            trial = await await_key(generation, cause) if waits_for_key(generation, cause) else None
            if trial is None:
                raise await _unprepared(generation, input, cause)
            generation.enter(Stage.PREPARING)
    if generation.policy.hide_prompts and not prompt_paths(generation.request) and not generation.request.task_id:
        generation.warnings.append(PROMPTS_SHOWN)


async def _unprepared(generation: Generation, input: SubmitInput, cause: Cause) -> StepFailed:
    """This run sends nothing; an earlier one of the same key may have been paid."""
    generation.paid = cause.details.paid
    # A time-out or a defect says nothing about that. A ledger that was just away does: it cannot be asked.
    if cause.details.paid is Paid.UNKNOWN and cause.type != "LedgerUnavailable":
        await learn_what_was_paid(generation, input)
    task_id = generation.receipt.task_id if generation.receipt else None
    kind = cause.type if cause.type in REFUSALS else "NotSubmitted"
    known = {"paid": generation.paid, "task_id": task_id}
    return StepFailed(kind, cause.message, cause.details.model_copy(update=known))


async def submit(generation: Generation) -> SubmissionReceipt:
    """The paid step; or the taking over of a task that something else submitted."""
    return await _pay(generation, _first_input(generation))


async def submit_extension(generation: Generation, remix_id: str, number: int) -> SubmissionReceipt:
    """Pay for the extension again, with all the rules of the first payment."""
    extension = ExtensionInput(remix_id=remix_id, number=number)
    return await _pay(generation, _first_input(generation).model_copy(update={"extension": extension}))


def _first_input(generation: Generation) -> SubmitInput:
    return SubmitInput(key=generation.key, request=generation.request, ledger_id=generation.policy.ledger_id)


async def _pay(generation: Generation, input: SubmitInput) -> SubmissionReceipt:
    """Submit until there is a task id, or an end.

    Raises:
        StepFailed: Refused, surely not sent in time, unknown for good, or abandoned.
    """
    receipt = None
    trial: bool | None
    async with _learning_what_was_paid(generation, input):
        while receipt is None:
            generation.enter(Stage.SUBMITTING)
            try:
                receipt = await _send(generation, input)
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                cause = cause_of(error)
                if (
                    input.extension is None
                    and waits_for_key(generation, cause)
                    and (trial := await await_key(generation, cause)) is not None
                ):
                    input = input.model_copy(update={"trial": trial})
                    continue
                receipt = await resolve(generation, input, cause)
        await _keep(generation, input, receipt)
    return receipt


@asynccontextmanager
async def _learning_what_was_paid(generation: Generation, input: SubmitInput) -> AsyncIterator[None]:
    """Whoever cancels is told whether it was paid."""
    try:
        yield
    except BaseException as error:
        if is_cancelled_exception(error):
            await learn_what_was_paid(generation, input)
        raise


async def _send(generation: Generation, input: SubmitInput) -> SubmissionReceipt:
    """One submission. A cancellation waits for an exchange that has begun, so that its id is known."""
    if input.request.task_id:
        summary = f"take over task {input.request.task_id[:80]}: nothing is paid"
    elif input.extension:
        summary = f"retry {input.extension.number} of the extension: paid, at most once"
    else:
        summary = f"submit {input.request.model}: paid, at most once"
    submission = workflow.start_activity_method(
        SubmissionActivities.submit_extension if input.extension else SubmissionActivities.submit_generation,
        input,
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
            await _keep(generation, input, await submission)
        except ActivityError as error:
            if not is_cancelled_exception(error):
                await _end_as_it_failed(generation, input, cause_of(error))
        raise


async def _end_as_it_failed(generation: Generation, input: SubmitInput, cause: Cause) -> None:
    """A submission that failed while the generation was being cancelled: the failure says more than "cancelled".

    Raises:
        StepFailed: Unless it was paid after all, was a retried extension, or just never answered.
    """
    await learn_what_was_paid(generation, input)
    if generation.paid is Paid.YES or cause.type == "TimedOut":
        return
    raise not_sent(cause) if generation.paid is Paid.NO else outcome_unknown(cause)


async def _keep(generation: Generation, input: SubmitInput, receipt: SubmissionReceipt) -> None:
    """A paid submission is ours from here on: shown at once, and in the ledger as soon as that takes it."""
    measuring.paid(receipt, input.request, extension=input.extension is not None)
    generation.own(receipt, extension=input.extension is not None)
    generation.waiting_since = None
    if not receipt.recorded:
        await _to_its_end(_record(generation, input, receipt))


async def _record(generation: Generation, input: SubmitInput, receipt: SubmissionReceipt) -> None:
    try:
        await workflow.execute_activity_method(
            SubmissionActivities.record_submission,
            RecordInput(key=input.ledger_key, receipt=receipt, ledger_id=input.ledger_id),
            summary="write the submission's outcome to the ledger",
            **options.RECORD,
        )
    except ActivityError as error:
        generation.warnings.append(f"the ledger has no outcome for this submission: {cause_of(error).message}")


async def _to_its_end(step: Awaitable[None]) -> None:
    """A cancellation waits for this step, and goes on afterwards."""
    running = asyncio.ensure_future(step)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await running
        raise
