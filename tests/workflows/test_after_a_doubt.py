"""What is said and when it is asked again, where nobody knows what became of a submission: without a server."""

from datetime import UTC, datetime, timedelta
from itertools import islice
from types import SimpleNamespace
from typing import Any, cast

import pytest

from longtake.models import (
    DecisionAction,
    ExtensionInput,
    FailureDetails,
    GenerateVideoInput,
    Paid,
    Reconciliation,
    SubmissionReceipt,
    SubmitInput,
)
from tests.workflows.rig import REQUEST
from workflows.failures import Cause, StepFailed
from workflows.state import Doubt, GenerationState, Question
from workflows.steps import resolve as resolving
from workflows.steps import submit as submitting
from workflows.steps.resolve import CHECK_ACCOUNT_AGAIN, CHECK_YOURSELF, CONFIRM_NOT_CHARGED

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
KNOWN = FailureDetails(key="order-1", model="m", http_status=429, gateway_code="busy", request_id="r1", slot=3)


def cause(kind: str, *, advice: str = "", timed_out: bool = False, paid: Paid = Paid.UNKNOWN) -> Cause:
    details = KNOWN.model_copy(update={"advice": advice, "paid": paid})
    return Cause(kind, "what happened", details, timed_out=timed_out)


@pytest.mark.parametrize(
    ("kind", "ends_as"),
    [
        ("InvalidRequest", "InvalidRequest"),
        ("SubmissionRefused", "SubmissionRefused"),
        ("GatewayBusy", "NotSubmitted"),
        ("GatewayUnreachable", "NotSubmitted"),
        ("SendSuspended", "NotSubmitted"),
        ("StoreRefused", "NotSubmitted"),
        ("SubmissionClosed", "NotSubmitted"),
    ],
)
def test_what_proves_that_nothing_was_sent_keeps_its_advice(kind: str, ends_as: str) -> None:
    failed = resolving.not_sent(cause(kind, advice="do this"))
    assert (failed.kind, failed.message) == (ends_as, "what happened")
    assert failed.details == KNOWN.model_copy(update={"paid": Paid.NO, "advice": "do this"})


def test_what_only_the_ledger_proves_gets_an_advice_of_its_own() -> None:
    failed = resolving.not_sent(cause("Defect", advice="of somebody who knew less"))
    assert (failed.kind, failed.message) == ("NotSubmitted", "what happened")
    assert failed.details == KNOWN.model_copy(update={"paid": Paid.NO, "advice": resolving._START_AGAIN})


def test_what_took_too_long_says_so_and_asks_for_the_worker() -> None:
    failed = resolving.not_sent(cause("SubmissionRefused", advice="do this", timed_out=True))
    assert failed.kind == "SubmissionRefused"
    assert failed.message.endswith("what happened")
    assert failed.message != "what happened"
    assert failed.details.paid is Paid.NO
    assert failed.details.advice not in {"", "do this", resolving._START_AGAIN}


@pytest.mark.parametrize(("advice", "shown"), [("do this", "do this"), ("", CHECK_YOURSELF)])
def test_what_ends_in_doubt_carries_all_that_is_known(advice: str, shown: str) -> None:
    failed = resolving.outcome_unknown(cause("GatewayBusy", advice=advice, paid=Paid.NO))
    assert (failed.kind, failed.message) == ("SubmissionOutcomeUnknown", "what happened")
    assert failed.details == KNOWN.model_copy(update={"paid": Paid.UNKNOWN, "advice": shown})


@pytest.mark.parametrize(
    ("doubt", "told"),
    [
        (FailureDetails(request_id="r1"), ()),
        (FailureDetails(sent_at=NOW), ("2026-07-01 12:00:00 UTC",)),
        (FailureDetails(sent_at=NOW, request_id="r1"), ("2026-07-01 12:00:00 UTC", "r1")),
    ],
)
def test_the_failure_names_when_it_was_sent(doubt: FailureDetails, told: tuple[str, ...]) -> None:
    lines = resolving._sent(doubt)
    assert len(lines) == (1 if doubt.sent_at else 0)
    assert all(fact in lines[0] for fact in told)


def test_the_account_is_checked_at_growing_intervals_and_the_last_one_again_and_again() -> None:
    pauses = list(islice(resolving._pauses(), len(CHECK_ACCOUNT_AGAIN) + 3))
    assert pauses == [*CHECK_ACCOUNT_AGAIN, *[CHECK_ACCOUNT_AGAIN[-1]] * 3]


@pytest.mark.parametrize(
    ("pause", "finding", "since", "shortened"),
    [
        (HOUR, Reconciliation(), MINUTE, HOUR),
        (HOUR, Reconciliation(retry_after=SECOND), MINUTE, MINUTE / 8),
        (HOUR, Reconciliation(retry_after=SECOND), SECOND, timedelta(seconds=5)),
        (HOUR, Reconciliation(retry_after=2 * MINUTE), MINUTE, 2 * MINUTE),
        (HOUR, Reconciliation(retry_after=SECOND), 80 * MINUTE, 10 * MINUTE),
        (MINUTE, Reconciliation(retry_after=2 * MINUTE), MINUTE, MINUTE),
        (HOUR, Reconciliation(resubmittable=True), MINUTE, CONFIRM_NOT_CHARGED),
        (HOUR, Reconciliation(resubmittable=True, retry_after=SECOND), MINUTE, CONFIRM_NOT_CHARGED),
        (MINUTE, Reconciliation(resubmittable=True), MINUTE, MINUTE),
    ],
)
def test_a_finding_brings_the_next_check_forward_and_ever_more_rarely(
    pause: timedelta,
    finding: Reconciliation,
    since: timedelta,
    shortened: timedelta,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolving, "workflow", SimpleNamespace(now=lambda: NOW))
    assert resolving._shortened(pause, finding, NOW - since) == shortened


def generation(**fields: Any) -> GenerationState:
    return GenerationState(key="order-1", **fields)


def test_each_submission_that_was_made_again_by_itself_is_warned_of_once() -> None:
    one = generation()
    warned = []
    for count in (0, 1, 1, 2, 2):
        resolving._warn_of_resubmissions(one, count)
        warned.append(len(one.warnings))
    assert warned == [0, 1, 1, 2, 2]


SUBMISSION = SubmitInput(key="order-1", request=GenerateVideoInput.model_validate(REQUEST))
RETRY = SUBMISSION.model_copy(update={"extension": ExtensionInput(remix_id="video_first", number=1)})
RECEIPT = SubmissionReceipt(task_id="task_a", submitted_at=NOW, slot=1)


@pytest.mark.parametrize(
    ("input", "found", "paid"),
    [
        (SUBMISSION, None, None),
        (SUBMISSION, RECEIPT, Paid.YES),
        (RETRY, None, Paid.YES),
        (RETRY, RECEIPT, Paid.YES),
    ],
)
def test_once_it_is_known_nobody_is_asked_any_more(
    input: SubmitInput, found: SubmissionReceipt | None, paid: Paid | None
) -> None:
    doubt = Doubt(extension=False, charged=Paid.UNKNOWN, candidates=("task_a",), evidence=("charged",))
    one = generation(paid=Paid.UNKNOWN, doubt=doubt, question=Question(actions=(DecisionAction.ADOPT,), slot=1))
    assert resolving._resolved(one, input, found) is found
    assert one == generation(paid=paid)


@pytest.mark.parametrize(("input", "paid"), [(SUBMISSION, Paid.UNKNOWN), (RETRY, None)])
def test_a_retried_extension_leaves_no_doubt_about_what_was_paid_before(input: SubmitInput, paid: Paid | None) -> None:
    one = generation()
    resolving._mark_unknown(one, input)
    assert one.paid is paid


@pytest.mark.parametrize("paid", [Paid.NO, Paid.UNKNOWN])
@pytest.mark.parametrize("timed_out", [True, False])
async def test_when_cancelled_a_failure_says_more_than_that_and_an_answer_that_never_came_does_not(
    monkeypatch: pytest.MonkeyPatch, timed_out: bool, paid: Paid
) -> None:
    async def failed(_: object) -> Cause:
        return cause("SubmissionRefused", timed_out=timed_out)

    async def learn(state: Any, _: object) -> None:
        state.paid = paid

    monkeypatch.setattr(submitting, "attempt", failed)
    monkeypatch.setattr(submitting, "learn_what_was_paid", learn)
    end = submitting._end_while_cancelling(
        cast("Any", SimpleNamespace(paid=None)), cast("Any", None), cast("Any", None)
    )
    if timed_out:
        await end
    else:
        with pytest.raises(StepFailed):
            await end
