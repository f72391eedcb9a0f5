"""From a good request to a paid task id, at most once; and what happens where nobody knows whether it was paid."""

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

from activities.submission import SubmissionActivities
from longtake.catalog import request_digest
from longtake.models import (
    DecisionAction,
    ExtensionOrder,
    Paid,
    PrepareOrder,
    ReconcileOrder,
    Reconciliation,
    RecordOrder,
    SettleOrder,
    Stage,
    SubmissionReceipt,
    SubmitOrder,
)
from longtake.temporal import SUBMISSION_TASK_QUEUE
from workflows import options
from workflows.failures import Cause, cause_of
from workflows.generation import Ending, Generation

_IN_DOUBT = frozenset({"SubmissionOutcomeUnknown", "SubmissionInDoubt", "SlotTaken", "LedgerUnavailable"})
_UNPAID = frozenset({"InvalidRequest", "SubmissionRefused"})

HEAR_WITNESSES_AGAIN = (timedelta(minutes=1), timedelta(minutes=10), timedelta(hours=1), timedelta(hours=6))
"""How long a decision is waited for before the witnesses are heard once more: a task may appear late."""


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


async def submit(generation: Generation) -> SubmissionReceipt:
    """The paid step; or the taking over of a task that something else submitted."""
    return await _pay(generation, SubmitOrder(key=generation.key, request=generation.request))


async def submit_extension(generation: Generation, remix_id: str, number: int) -> SubmissionReceipt:
    """Pay for the extension again, with all the rules of the first payment."""
    extension = ExtensionOrder(remix_id=remix_id, number=number)
    return await _pay(generation, SubmitOrder(key=generation.key, request=generation.request, extension=extension))


async def _pay(generation: Generation, order: SubmitOrder) -> SubmissionReceipt:
    """Submit until there is a task id, or an end.

    Raises:
        Ending: Refused, surely not sent in time, unknown for good, or abandoned.
    """
    settled: SubmissionReceipt | None = None
    nobody_came = False
    while settled is None:
        generation.enter(Stage.SUBMITTING)
        try:
            receipt = await _send(generation, order)
        except ActivityError as error:
            if not _is_in_doubt(error):
                raise _ending(error) from None
            cause = cause_of(error)
            settled = await _settle(generation, order, cause)
            if settled is None and cause.timed_out and nobody_came:
                details = cause.details.model_copy(update={"paid": Paid.NO, "advice": "Is a worker running?"})
                raise Ending("NotSubmitted", f"no worker took the submission: {cause.message}", details) from None
            nobody_came = cause.timed_out
        else:
            await _keep(generation, order, receipt)
            return receipt
    await _keep(generation, order, settled)
    return settled


async def _send(generation: Generation, order: SubmitOrder) -> SubmissionReceipt:
    """One submission. A cancellation waits for an exchange that has begun, so that its id is known."""
    what = f"extension, retry {order.extension.number}" if order.extension else order.request.model
    if order.request.task_id:
        what = f"nothing, adopt {order.request.task_id}"
    submission = workflow.start_activity_method(
        SubmissionActivities.submit_extension if order.extension else SubmissionActivities.submit_generation,
        order,
        task_queue=SUBMISSION_TASK_QUEUE,
        summary=f"adopt task {order.request.task_id}"
        if order.request.task_id
        else f"submit {what}: paid, at most once",
        **options.submission(generation.policy),
    )
    try:
        return await asyncio.shield(submission)
    except asyncio.CancelledError:
        submission.cancel()
        try:
            await _keep(generation, order, await submission)
        except ActivityError as error:
            if not is_cancelled_exception(error):
                raise _ending(error) from None
        raise


async def _keep(generation: Generation, order: SubmitOrder, receipt: SubmissionReceipt) -> None:
    """A paid submission is ours from here on: shown at once, and in the ledger as soon as that takes it."""
    if order.extension is None:
        generation.own(receipt)
    if receipt.recorded:
        return
    try:
        await workflow.execute_activity_method(
            SubmissionActivities.record_submission,
            RecordOrder(key=order.ledger_key, receipt=receipt),
            summary="write the submission's outcome to the ledger",
            **options.RECORD,
        )
    except ActivityError as error:
        if is_cancelled_exception(error):
            raise
        generation.warnings.append(f"the ledger has no outcome for this submission: {cause_of(error).message}")


async def _settle(generation: Generation, order: SubmitOrder, cause: Cause) -> SubmissionReceipt | None:
    """Find out whether it was paid: hear the witnesses, then ask a person, and never send again unasked.

    Returns:
        The task, or None where nothing was made and it may be submitted again.

    Raises:
        Ending: `SubmissionOutcomeUnknown` where nobody is to be asked, `Abandoned` where nobody wants it.
    """
    generation.last_problem = cause.message
    window = generation.policy.decision_window
    deadline = workflow.now() + window
    waits = iter(HEAR_WITNESSES_AGAIN)
    actions = (DecisionAction.ADOPT, DecisionAction.SUBMIT_AGAIN, DecisionAction.ABANDON)
    while True:
        finding = await _hear_witnesses(generation, order)
        if finding.receipt or finding.clear:
            generation.candidates = generation.evidence = ()
            return finding.receipt
        generation.candidates, generation.evidence = finding.candidates, finding.evidence
        if not window:
            details = cause.details.model_copy(update={"paid": Paid.UNKNOWN})
            raise Ending("SubmissionOutcomeUnknown", cause.message, details)
        remaining = deadline - workflow.now()
        if remaining <= timedelta(0):
            if not generation.policy.wait_on_undecided:
                break
            deadline, remaining = workflow.now() + window, window
        decision = await generation.ask(actions, within=min(next(waits, remaining), remaining))
        if decision is None:
            continue
        if decision.action is DecisionAction.ABANDON:
            break
        adopted = decision.task_id if decision.action is DecisionAction.ADOPT else None
        try:
            return await _write_down(order, adopted)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            generation.last_problem = cause_of(error).message
    advice = "Nobody knows whether it was paid: look in the gateway's console before this is made under another key."
    details = cause.details.model_copy(update={"paid": Paid.UNKNOWN, "advice": advice})
    raise Ending("Abandoned", f"abandoned while its outcome was unknown: {cause.message}", details)


async def _hear_witnesses(generation: Generation, order: SubmitOrder) -> Reconciliation:
    try:
        return await workflow.execute_activity_method(
            SubmissionActivities.reconcile_submission,
            ReconcileOrder(key=order.ledger_key, model=order.request.model, extension=order.extension is not None),
            summary="look for the submission's task among the account's",
            **options.reconciliation(generation.policy),
        )
    except ActivityError as error:
        if is_cancelled_exception(error):
            raise
        return Reconciliation(evidence=(f"the witnesses could not be heard: {cause_of(error).message}",))


async def _write_down(order: SubmitOrder, task_id: str | None) -> SubmissionReceipt | None:
    settlement = await workflow.execute_activity_method(
        SubmissionActivities.settle_submission,
        SettleOrder(
            key=order.ledger_key,
            task_id=task_id,
            digest=None if order.extension else request_digest(order.request),
            model=order.request.model,
        ),
        summary=f"write down the decision: {f'adopt {task_id}' if task_id else 'nothing was made'}",
        **options.RECORD,
    )
    return settlement.receipt


def _is_in_doubt(error: ActivityError) -> bool:
    """Whether a submission may have been paid: said so, or its activity never answered."""
    if is_cancelled_exception(error):
        return False
    cause = cause_of(error)
    return cause.type in _IN_DOUBT or cause.timed_out


def _ending(error: ActivityError) -> Ending | ActivityError:
    """What ends where nothing was paid: refused, or surely not sent within the time allowed."""
    if is_cancelled_exception(error):
        return error
    cause = cause_of(error)
    kind = cause.type if cause.type in _UNPAID else "NotSubmitted"
    if cause.type in _IN_DOUBT:
        return Ending("SubmissionOutcomeUnknown", cause.message, cause.details)
    return Ending(kind, cause.message, cause.details.model_copy(update={"paid": Paid.NO}))
