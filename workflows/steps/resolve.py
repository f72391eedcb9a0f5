"""What happens where nobody knows whether a submission was paid: the ledger, the witnesses, then a person."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

from activities.submission import SubmissionActivities
from longtake.models import (
    Attention,
    ClosedSubmission,
    CloseInput,
    Decision,
    DecisionAction,
    FailureDetails,
    Paid,
    ReconcileInput,
    Reconciliation,
    ResolveInput,
    Stage,
    SubmissionReceipt,
    SubmitInput,
)
from longtake.request.rules import extension_digest, prompt_paths, request_digest
from workflows import measuring, options
from workflows.failures import Cause, cause_of
from workflows.options import LEDGER_MARGIN
from workflows.state import Generation, StepFailed

CHECK_YOURSELF = "Look in the gateway's console for it before this is made under another key: it may have been paid."
_START_AGAIN = "Nothing was sent. Start it again with the same key once the cause is fixed."

CHECK_ACCOUNT_AGAIN = (
    timedelta(seconds=15),
    timedelta(seconds=45),
    timedelta(minutes=2),
    timedelta(minutes=7),
    timedelta(minutes=50),
    timedelta(hours=5),
    timedelta(hours=6),
)
"""How long a decision is waited for before the witnesses are heard once more, the last one again and again: most
tasks appear within minutes, and one may appear late."""
CONFIRM_NOT_CHARGED = timedelta(minutes=5)
"""Between the first check that shows no charge and the one that is acted on: a charge that is written late is seen."""
_SOONEST = timedelta(seconds=5)
"""Whatever a finding says, the witnesses are not heard more often."""
_AT_ONCE = timedelta(minutes=1)
"""For the ledger to say what was sent, where somebody waits for it who cancels."""

_NOT_SENT = frozenset(
    {
        "GatewayBusy",
        "GatewayUnreachable",
        "InvalidRequest",
        "SendSuspended",
        "StoreRefused",
        "SubmissionClosed",
        "SubmissionRefused",
    }
)
"""Failures of an attempt that had walked the ledger, and either sent nothing or was refused. A list of what is proof:
a time-out, a defect, a missing activity or an undecodable failure proves nothing, whatever it calls itself."""
REFUSALS = frozenset({"InvalidRequest", "SubmissionRefused"})
"""Those that a generation ends with under their own name; the others are `NotSubmitted`."""


async def resolve(generation: Generation, input: SubmitInput, cause: Cause) -> SubmissionReceipt | None:
    """Find out whether a submission that failed was paid.

    It is sent again only if a person says so, or where an operator has allowed it and the account's records show twice
    that it was not charged.

    Returns:
        The task, or None where nothing was made and it may be submitted again.

    Raises:
        StepFailed: `SubmissionRefused`, `InvalidRequest` or `NotSubmitted` where nothing was sent and nothing can be any
            more, `SubmissionOutcomeUnknown` where nobody is to be asked, `Abandoned` where nobody wants it.
    """
    doubt = cause.details
    if doubt.slot is None or cause.timed_out:
        closed = await _close(generation, input, cause)
        if closed.receipt:
            return _found(generation, input, closed.receipt)
        if closed.in_doubt is None:
            raise not_sent(cause)
        doubt = _merged(doubt, closed.in_doubt)
    measuring.doubted(input.request.model, extension=input.extension is not None)
    return await _ask(generation, input, cause.message, doubt)


async def learn_what_was_paid(generation: Generation, input: SubmitInput) -> None:
    """For a generation that ends without knowing: the ledger is asked once, and nothing is sent afterwards.

    It takes a minute at the most, so that a cancellation never hangs; what is not told by then is unknown.
    """
    if generation.paid is Paid.YES:
        return
    try:
        closed = await _ask_ledger(generation, input, _AT_ONCE)
    except ActivityError:
        generation.paid = Paid.UNKNOWN
        return
    if closed.receipt:
        generation.own(closed.receipt)
    else:
        generation.paid = Paid.UNKNOWN if closed.in_doubt else Paid.NO


def not_sent(cause: Cause) -> StepFailed:
    """What ends without a person being asked: refused, or surely not sent."""
    kind = cause.type if cause.type in REFUSALS else "NotSubmitted"
    if cause.timed_out:
        advice = "Is a worker running, and well?"
        message = f"not sent in time: {cause.message}"
    else:
        advice = cause.details.advice if cause.type in _NOT_SENT else _START_AGAIN
        message = cause.message
    return StepFailed(kind, message, cause.details.model_copy(update={"paid": Paid.NO, "advice": advice}))


def outcome_unknown(cause: Cause) -> StepFailed:
    """What ends in doubt, and nobody is to be asked."""
    advice = cause.details.advice or CHECK_YOURSELF
    details = cause.details.model_copy(update={"paid": Paid.UNKNOWN, "advice": advice})
    return StepFailed("SubmissionOutcomeUnknown", cause.message, details)


async def _close(generation: Generation, input: SubmitInput, cause: Cause) -> ClosedSubmission:
    """Ask the ledger what was sent, and see to it that nothing scheduled so far can be sent any more.

    While it cannot be asked, nobody is asked to decide: nobody knows that there was a submission at all.

    Raises:
        StepFailed: `SubmissionOutcomeUnknown`: the ledger told nothing within the decision window.
    """
    proven = cause.type in _NOT_SENT and not cause.timed_out
    policy = generation.policy
    try:
        return await _ask_ledger(generation, input, policy.submit_timeout + LEDGER_MARGIN)
    except ActivityError as error:
        if is_cancelled_exception(error):
            raise
        problem = cause_of(error)
        if proven and problem.type != "SubmissionInDoubt":
            return ClosedSubmission()
    _mark_unknown(generation, input)
    generation.last_problem = problem.message
    if policy.decision_window:
        generation.enter(Stage.SUBMITTING, Attention.LEDGER_UNAVAILABLE)
        try:
            patience = None if policy.wait_after_decision_timeout else policy.decision_window
            return await _ask_ledger(generation, input, patience)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
    raise outcome_unknown(cause)


async def _ask_ledger(generation: Generation, input: SubmitInput, patience: timedelta | None) -> ClosedSubmission:
    return await workflow.execute_activity_method(
        SubmissionActivities.close_submission,
        CloseInput(key=input.ledger_key, ledger_id=input.ledger_id, digest=_digest(input), stage=generation.stage),
        summary="ask the ledger what was sent; nothing scheduled before can be sent any more",
        **options.closing(patience),
    )


async def _ask(
    generation: Generation, input: SubmitInput, message: str, doubt: FailureDetails
) -> SubmissionReceipt | None:
    """Hear the witnesses, and a person where they do not know either."""
    policy = generation.policy
    generation.last_problem = message
    details = doubt.model_copy(update={"paid": Paid.UNKNOWN, "advice": doubt.advice or CHECK_YOURSELF})
    since = workflow.now()
    by = since + policy.decision_window
    pauses = _pauses()
    not_charged_since: datetime | None = None
    while True:
        confirms = not_charged_since is not None and workflow.now() - not_charged_since >= CONFIRM_NOT_CHARGED
        finding = await _check_account(generation, input, doubt, confirms_not_charged=confirms)
        _tell_of_resubmissions(generation, finding.resubmissions)
        if not generation.is_decided and (finding.receipt or finding.clear):
            return _found(generation, input, finding.receipt)
        not_charged_since = (not_charged_since or workflow.now()) if finding.resubmittable else None
        _mark_unknown(generation, input)
        generation.charged = finding.charged
        generation.candidates, generation.evidence = finding.candidates, (*_sent(doubt), *finding.evidence)
        if not policy.decision_window:
            raise StepFailed("SubmissionOutcomeUnknown", message, details)
        left = by - workflow.now()
        if left <= timedelta(0) and not policy.wait_after_decision_timeout and not generation.is_decided:
            break
        generation.offer(
            (DecisionAction.ADOPT, DecisionAction.RESUBMIT, DecisionAction.ABANDON),
            by=None if policy.wait_after_decision_timeout else by,
            slot=doubt.slot,
        )
        pause = _shortened(next(pauses), finding, since)
        decision = await generation.decision(within=pause if policy.wait_after_decision_timeout else min(pause, left))
        if decision is None:
            continue
        if decision.action is DecisionAction.ABANDON:
            break
        try:
            return _found(generation, input, await _write_down(input, decision, doubt.slot))
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            generation.last_problem = cause_of(error).message
            # Somebody is there: whoever is refused is asked again, with the whole window to answer in.
            by = workflow.now() + policy.decision_window
    details = details.model_copy(update={"advice": CHECK_YOURSELF})
    raise StepFailed("Abandoned", f"abandoned while its outcome was unknown: {message}", details)


def _tell_of_resubmissions(generation: Generation, count: int) -> None:
    times = "once" if count == 1 else f"{count} times"
    warning = f"submitted again by itself {times}: the account's records showed that it was not charged"
    if count and warning not in generation.warnings:
        generation.warnings.append(warning)


def _pauses() -> Iterator[timedelta]:
    yield from CHECK_ACCOUNT_AGAIN
    while True:
        yield CHECK_ACCOUNT_AGAIN[-1]


def _shortened(pause: timedelta, finding: Reconciliation, since: datetime) -> timedelta:
    """Sooner where that is worthwhile, and yet more and more rarely: a history holds only so many steps."""
    retry_after = CONFIRM_NOT_CHARGED if finding.resubmittable else finding.retry_after
    return min(pause, max(retry_after, _SOONEST, (workflow.now() - since) / 8)) if retry_after else pause


def _sent(doubt: FailureDetails) -> tuple[str, ...]:
    """When it left, for whoever looks for it."""
    sent_at, request_id = doubt.sent_at, doubt.request_id
    named = f", the gateway's request id is {request_id}" if request_id else ""
    return (f"it was sent at {sent_at:%Y-%m-%d %H:%M:%S} UTC{named}",) if sent_at else ()


def _merged(said: FailureDetails, known: FailureDetails) -> FailureDetails:
    """What the last attempt said, and what the ledger knows of the submission that is in doubt."""
    return said.model_copy(update=known.model_dump(exclude_defaults=True, include={"slot", "sent_at", "request_id"}))


def _mark_unknown(generation: Generation, input: SubmitInput) -> None:
    # A retried extension leaves no doubt about what was paid before it.
    if input.extension is None:
        generation.paid = Paid.UNKNOWN


def _found(generation: Generation, input: SubmitInput, receipt: SubmissionReceipt | None) -> SubmissionReceipt | None:
    generation.paid = Paid.YES if receipt or input.extension else None
    generation.offered = ()
    generation.asked_slot = None
    generation.candidates = generation.evidence = ()
    generation.charged = None
    return receipt


async def _check_account(
    generation: Generation, input: SubmitInput, doubt: FailureDetails, *, confirms_not_charged: bool
) -> Reconciliation:
    try:
        return await workflow.execute_activity_method(
            SubmissionActivities.reconcile_submission,
            ReconcileInput(
                key=input.ledger_key,
                model=input.request.model,
                slot=doubt.slot,
                extension=input.extension is not None,
                ledger_id=input.ledger_id,
                digest=_digest(input),
                stage=generation.stage,
                hide_words=bool(prompt_paths(input.request)),
                confirms_not_charged=confirms_not_charged,
            ),
            summary="look for the submission's task in the ledger and among the account's",
            **options.reconciliation(generation.policy),
        )
    except ActivityError as error:
        if is_cancelled_exception(error):
            raise
        evidence = (f"the witnesses could not be heard: {cause_of(error).message}",)
        return Reconciliation(evidence=evidence, charged=Paid.UNKNOWN)


async def _write_down(input: SubmitInput, decision: Decision, slot: int | None) -> SubmissionReceipt | None:
    task_id = decision.task_id
    settlement = await workflow.execute_activity_method(
        SubmissionActivities.resolve_submission,
        ResolveInput(
            key=input.ledger_key,
            task_id=task_id,
            digest=_digest(input),
            model=input.request.model,
            ledger_id=input.ledger_id,
            extension=input.extension is not None,
            slot=slot,
        ),
        summary=f"write down the decision: {f'adopt {task_id[:80]}' if task_id else 'nothing was made'}",
        **options.SETTLE,
    )
    return settlement.receipt


def _digest(input: SubmitInput) -> str:
    request, extension = input.request, input.extension
    return extension_digest(extension.remix_id, request.prompt_extend) if extension else request_digest(request)
