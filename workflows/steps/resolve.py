"""A submission whose outcome is unknown: the ledger is asked, then the account's records, then a person.

It is submitted again only if a person says so, or where an operator has allowed it and the account's records show twice
that it was not charged.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
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
    ExtensionInput,
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
from workflows import options
from workflows.failures import Cause, StepFailed, attempt
from workflows.reporting import report
from workflows.state import Doubt, GenerationState
from workflows.steps.decide import ask, await_decision

CHECK_YOURSELF = (
    "Look for it in the gateway's console before you submit the same request under another key: it may have been paid."
)
_START_AGAIN = "Nothing was sent. Fix the cause, then start again with the same key."

CHECK_ACCOUNT_AGAIN = (
    timedelta(seconds=15),
    timedelta(seconds=45),
    timedelta(minutes=2),
    timedelta(minutes=7),
    timedelta(minutes=50),
    timedelta(hours=5),
    timedelta(hours=6),
)
"""Between two checks of the account's records while a decision is awaited, the last one again and again: most tasks
appear within minutes, and one may appear late."""
CONFIRM_NOT_CHARGED = timedelta(minutes=5)
"""Between the first check that shows no charge and the one that is acted on: a charge that is logged late is seen."""
_MIN_CHECK_INTERVAL = timedelta(seconds=5)
"""Whatever a check recommends, the account's records are not read more often."""
_LEDGER_WHILE_ENDING = timedelta(minutes=1)
"""For the ledger to say what was sent, while somebody who cancels is waiting."""

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
a timeout, a defect, a missing activity or an undecodable failure proves nothing, whatever it calls itself."""
REFUSALS = frozenset({"InvalidRequest", "SubmissionRefused"})
"""Those that a generation ends with under their own name; the others are `NotSubmitted`."""


def submission_of(state: GenerationState, extension: ExtensionInput | None = None) -> SubmitInput:
    """What to submit: the request itself, or the retry of its extension."""
    return SubmitInput(key=state.key, request=state.request, extension=extension, ledger_id=state.policy.ledger_id)


async def resolve(state: GenerationState, input: SubmitInput, cause: Cause) -> SubmissionReceipt | None:
    """Find out whether a submission that failed was paid.

    Returns:
        The task, or None where nothing was made and it may be submitted again.

    Raises:
        StepFailed: `SubmissionRefused`, `InvalidRequest` or `NotSubmitted` where nothing was sent and nothing can be
            any more, `SubmissionOutcomeUnknown` where nobody is to be asked, `Abandoned` where nobody wants it.
    """
    details = cause.details
    if details.slot is None or cause.timed_out:
        closed = await _close(state, input, cause)
        if closed.receipt:
            return _resolved(state, input, closed.receipt)
        if closed.in_doubt is None:
            raise not_sent(cause)
        # What the last attempt said, and what the ledger knows of the submission that is in doubt.
        known = closed.in_doubt.model_dump(exclude_defaults=True, include={"slot", "sent_at", "request_id"})
        details = details.model_copy(update=known)
    state.doubt = Doubt(extension=input.extension is not None)
    report(state)
    return await _reconcile(state, input, cause.message, details)


@asynccontextmanager
async def learning_what_was_paid(state: GenerationState, input: SubmitInput) -> AsyncIterator[None]:
    """Whoever cancels meanwhile is told whether it was paid."""
    try:
        yield
    except BaseException as error:
        if is_cancelled_exception(error):
            await learn_what_was_paid(state, input)
        raise


async def learn_what_was_paid(state: GenerationState, input: SubmitInput) -> None:
    """Ask the ledger once, for a generation that ends without knowing; nothing is sent afterwards.

    It takes a minute at the most, so that a cancellation never hangs; without an answer by then it is unknown.
    """
    if state.paid is Paid.YES:
        return
    try:
        closed = await _ask_ledger(state, input, _LEDGER_WHILE_ENDING)
    except ActivityError:  # cancelled or not: nothing else can be done any more
        state.set_paid(Paid.UNKNOWN)
        return
    if closed.receipt:
        state.own(closed.receipt)
    else:
        state.set_paid(Paid.UNKNOWN if closed.in_doubt else Paid.NO)


def not_sent(cause: Cause) -> StepFailed:
    """Refused, or not sent for certain."""
    kind = cause.type if cause.type in REFUSALS else "NotSubmitted"
    if cause.timed_out:
        advice = "Check that a worker is running and healthy."
        message = f"not sent in time: {cause.message}"
    else:
        advice = cause.details.advice if cause.type in _NOT_SENT else _START_AGAIN
        message = cause.message
    return StepFailed(kind, message, cause.details.model_copy(update={"paid": Paid.NO, "advice": advice}))


def outcome_unknown(cause: Cause) -> StepFailed:
    """In doubt, and nobody is to be asked."""
    return StepFailed("SubmissionOutcomeUnknown", cause.message, _unknown(cause.details))


def _unknown(details: FailureDetails) -> FailureDetails:
    return details.model_copy(update={"paid": Paid.UNKNOWN, "advice": details.advice or CHECK_YOURSELF})


async def _close(state: GenerationState, input: SubmitInput, cause: Cause) -> ClosedSubmission:
    """Ask the ledger what was sent, and prevent everything scheduled so far from being sent.

    While the ledger is unavailable nobody is asked to decide: nobody knows that there was a submission at all.

    Raises:
        StepFailed: `SubmissionOutcomeUnknown`: the ledger stayed unavailable for the whole decision window.
    """
    policy = state.policy
    closed = await attempt(_ask_ledger(state, input, policy.submit_timeout + options.LEDGER_MARGIN))
    if not isinstance(closed, Cause):
        return closed
    proven = cause.type in _NOT_SENT and not cause.timed_out
    if proven and closed.type != "SubmissionInDoubt":
        return ClosedSubmission()
    _mark_unknown(state, input)
    state.last_problem = closed.message
    if policy.decision_window:
        state.enter(Stage.SUBMITTING, Attention.LEDGER_UNAVAILABLE)
        report(state)
        patience = None if policy.wait_after_decision_timeout else policy.decision_window
        closed = await attempt(_ask_ledger(state, input, patience))
        if not isinstance(closed, Cause):
            return closed
    raise outcome_unknown(cause)


async def _ask_ledger(state: GenerationState, input: SubmitInput, patience: timedelta | None) -> ClosedSubmission:
    return await workflow.execute_activity_method(
        SubmissionActivities.close_submission,
        CloseInput(key=input.ledger_key, ledger_id=input.ledger_id, digest=_digest(input), stage=state.stage),
        summary="ask the ledger what was sent; nothing scheduled before can be sent any more",
        **options.closing(patience),
    )


async def _reconcile(
    state: GenerationState, input: SubmitInput, message: str, doubt: FailureDetails
) -> SubmissionReceipt | None:
    """Check the account's records again and again, and ask a person where they do not tell."""
    policy = state.policy
    state.last_problem = message
    since = workflow.now()
    by = since + policy.decision_window
    pauses = _pauses()
    not_charged_since: datetime | None = None
    while True:
        confirms = not_charged_since is not None and workflow.now() - not_charged_since >= CONFIRM_NOT_CHARGED
        finding = await _check_account(state, input, doubt, confirms_not_charged=confirms)
        _warn_of_resubmissions(state, finding.resubmissions)
        if state.decision is None and (finding.receipt or finding.clear):
            return _resolved(state, input, finding.receipt)
        not_charged_since = (not_charged_since or workflow.now()) if finding.resubmittable else None
        _mark_unknown(state, input)
        state.doubt = Doubt(
            extension=input.extension is not None,
            charged=finding.charged,
            candidates=finding.candidates,
            evidence=(*_sent(doubt), *finding.evidence),
        )
        if not policy.decision_window:
            raise StepFailed("SubmissionOutcomeUnknown", message, _unknown(doubt))
        left = by - workflow.now()
        if left <= timedelta(0) and not policy.wait_after_decision_timeout and state.decision is None:
            break
        ask(
            state,
            (DecisionAction.ADOPT, DecisionAction.RESUBMIT, DecisionAction.ABANDON),
            by=None if policy.wait_after_decision_timeout else by,
            slot=doubt.slot,
        )
        pause = _shortened(next(pauses), finding, since)
        within = pause if policy.wait_after_decision_timeout else min(pause, left)
        decision = await await_decision(state, within=within)
        if decision is None:
            continue
        if decision.action is DecisionAction.ABANDON:
            break
        written = await attempt(_write_down(input, decision, doubt.slot))
        if not isinstance(written, Cause):
            return _resolved(state, input, written)
        state.last_problem = written.message
        # Somebody is there: whoever is refused is asked again, with the whole window to answer in.
        by = workflow.now() + policy.decision_window
    details = doubt.model_copy(update={"paid": Paid.UNKNOWN, "advice": CHECK_YOURSELF})
    raise StepFailed("Abandoned", f"abandoned while its outcome was unknown: {message}", details)


def _warn_of_resubmissions(state: GenerationState, count: int) -> None:
    times = "once" if count == 1 else f"{count} times"
    warning = f"submitted again by itself {times}: the account's records showed that it was not charged"
    if count and warning not in state.warnings:
        state.warn(warning)


def _pauses() -> Iterator[timedelta]:
    yield from CHECK_ACCOUNT_AGAIN
    while True:
        yield CHECK_ACCOUNT_AGAIN[-1]


def _shortened(pause: timedelta, finding: Reconciliation, since: datetime) -> timedelta:
    """Sooner where that is worthwhile, and yet more and more rarely: a history holds only so many steps."""
    retry_after = CONFIRM_NOT_CHARGED if finding.resubmittable else finding.retry_after
    if not retry_after:
        return pause
    return min(pause, max(retry_after, _MIN_CHECK_INTERVAL, (workflow.now() - since) / 8))


def _sent(doubt: FailureDetails) -> tuple[str, ...]:
    """When it was sent, for whoever looks for it."""
    sent_at, request_id = doubt.sent_at, doubt.request_id
    named = f", the gateway's request id is {request_id}" if request_id else ""
    return (f"it was sent at {sent_at:%Y-%m-%d %H:%M:%S} UTC{named}",) if sent_at else ()


def _mark_unknown(state: GenerationState, input: SubmitInput) -> None:
    # A retried extension leaves no doubt about what was paid before it.
    if input.extension is None:
        state.set_paid(Paid.UNKNOWN)


def _resolved(
    state: GenerationState, input: SubmitInput, receipt: SubmissionReceipt | None
) -> SubmissionReceipt | None:
    state.set_paid(Paid.YES if receipt or input.extension else None)
    state.question = state.doubt = None
    return receipt


async def _check_account(
    state: GenerationState, input: SubmitInput, doubt: FailureDetails, *, confirms_not_charged: bool
) -> Reconciliation:
    found = await attempt(
        workflow.execute_activity_method(
            SubmissionActivities.reconcile_submission,
            ReconcileInput(
                key=input.ledger_key,
                model=input.request.model,
                slot=doubt.slot,
                extension=input.extension is not None,
                ledger_id=input.ledger_id,
                digest=_digest(input),
                stage=state.stage,
                hide_words=bool(prompt_paths(input.request)),
                confirms_not_charged=confirms_not_charged,
            ),
            summary="look for the submission's task in the ledger and among the account's",
            **options.reconciliation(state.policy),
        )
    )
    if isinstance(found, Cause):
        return Reconciliation(
            evidence=(f"the account's records could not be checked: {found.message}",), charged=Paid.UNKNOWN
        )
    return found


async def _write_down(input: SubmitInput, decision: Decision, slot: int | None) -> SubmissionReceipt | None:
    task_id = decision.task_id
    resolution = await workflow.execute_activity_method(
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
        **options.RESOLVE,
    )
    return resolution.receipt


def _digest(input: SubmitInput) -> str:
    request, extension = input.request, input.extension
    return extension_digest(extension.remix_id, request.prompt_extend) if extension else request_digest(request)
