"""What happens where nobody knows whether a submission was paid: the ledger, the witnesses, then a person."""

from collections.abc import Iterator
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

from activities.submission import SubmissionActivities
from longtake.catalog import extension_digest, request_digest
from longtake.models import (
    DecisionAction,
    GenerationPolicy,
    Paid,
    ReconcileOrder,
    Reconciliation,
    SettleOrder,
    SubmissionReceipt,
    SubmitOrder,
)
from workflows import measuring, options
from workflows.failures import Cause, cause_of
from workflows.generation import Ending, Generation

LOOK_YOURSELF = "Look in the gateway's console for it before this is made under another key: it may have been paid."

HEAR_WITNESSES_AGAIN = (timedelta(minutes=1), timedelta(minutes=10), timedelta(hours=1), timedelta(hours=6))
"""How long a decision is waited for before the witnesses are heard once more: a task may appear late."""


async def settle(generation: Generation, order: SubmitOrder, cause: Cause) -> SubmissionReceipt | None:
    """Find out whether it was paid, and never send it again unasked.

    Returns:
        The task, or None where nothing was made and it may be submitted again.

    Raises:
        Ending: `NotSubmitted` where nothing was sent in time, `SubmissionOutcomeUnknown` where nobody is to be asked,
            `Abandoned` where nobody wants it.
    """
    measuring.doubted(order.request.model, extension=order.extension is not None)
    generation.last_problem = cause.message
    details = cause.details.model_copy(update={"paid": Paid.UNKNOWN, "advice": cause.details.advice or LOOK_YOURSELF})
    by = None if generation.policy.wait_on_undecided else workflow.now() + generation.policy.decision_window
    for wait in _waits(generation.policy):
        finding = await _hear_witnesses(generation, order, cause)
        if not generation.is_decided and _is_settled(finding, cause):
            return _found(generation, order, finding.receipt)
        generation.paid = Paid.UNKNOWN
        generation.candidates, generation.evidence = finding.candidates, (*_sent(cause), *finding.evidence)
        if not generation.policy.decision_window:
            raise Ending("SubmissionOutcomeUnknown", cause.message, details)
        generation.offer((DecisionAction.ADOPT, DecisionAction.SUBMIT_AGAIN, DecisionAction.ABANDON), by=by)
        decision = await generation.decision(within=wait)
        if decision is None:
            continue
        if decision.action is DecisionAction.ABANDON:
            break
        try:
            return _found(generation, order, await _write_down(order, decision.task_id))
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            generation.last_problem = cause_of(error).message
    details = details.model_copy(update={"advice": LOOK_YOURSELF})
    raise Ending("Abandoned", f"abandoned while its outcome was unknown: {cause.message}", details)


def _sent(cause: Cause) -> tuple[str, ...]:
    """When it left, for whoever looks for it."""
    sent_at, request_id = cause.details.sent_at, cause.details.request_id
    named = f", the gateway's request id is {request_id}" if request_id else ""
    return (f"it was sent at {sent_at:%Y-%m-%d %H:%M:%S} UTC{named}",) if sent_at else ()


def _waits(policy: GenerationPolicy) -> Iterator[timedelta]:
    """How long to wait for a decision, each time before the witnesses are heard once more; at least once."""
    window = policy.decision_window
    deadline = workflow.now() + window
    again = iter(HEAR_WITNESSES_AGAIN)
    yield min(next(again), window)
    while (remaining := deadline - workflow.now()) > timedelta(0) or policy.wait_on_undecided:
        yield min(next(again, window), max(remaining, timedelta(0)) or window)


def _is_settled(finding: Reconciliation, cause: Cause) -> bool:
    """Whether it is known what became of it.

    Raises:
        Ending: `NotSubmitted`, where its time is over and the ledger shows that nothing was sent.
    """
    if finding.clear and cause.timed_out:
        details = cause.details.model_copy(update={"paid": Paid.NO, "advice": "Is a worker running, and well?"})
        raise Ending("NotSubmitted", f"not sent in time: {cause.message}", details)
    # Where not even the slot is known it was a defect of ours: an empty ledger proves nothing then.
    return finding.receipt is not None or (finding.clear and cause.details.slot is not None)


def _found(generation: Generation, order: SubmitOrder, receipt: SubmissionReceipt | None) -> SubmissionReceipt | None:
    generation.paid = Paid.YES if receipt or order.extension else None
    generation.offered = ()
    generation.candidates = generation.evidence = ()
    return receipt


async def _hear_witnesses(generation: Generation, order: SubmitOrder, cause: Cause) -> Reconciliation:
    try:
        return await workflow.execute_activity_method(
            SubmissionActivities.reconcile_submission,
            ReconcileOrder(
                key=order.ledger_key,
                model=order.request.model,
                slot=cause.details.slot,
                extension=order.extension is not None,
                ledger_id=order.ledger_id,
                digest=_digest(order),
                stage=generation.stage,
            ),
            summary="look for the submission's task in the ledger and among the account's",
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
            digest=_digest(order),
            model=order.request.model,
            ledger_id=order.ledger_id,
            extension=order.extension is not None,
        ),
        summary=f"write down the decision: {f'adopt {task_id[:80]}' if task_id else 'nothing was made'}",
        **options.RECORD,
    )
    return settlement.receipt


def _digest(order: SubmitOrder) -> str:
    request, extension = order.request, order.extension
    return extension_digest(extension.remix_id, request.prompt_extend) if extension else request_digest(request)
