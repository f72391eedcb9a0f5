"""The failure taxonomy, row by row: what each error means in each step, written out here and not computed."""

import importlib
import pkgutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest

import longtake
from activities.failures import RULES, Step, application_error, rule_for
from longtake.delivery.download import DownloadFailed, DownloadsBlocked
from longtake.gateway.client import SendHookDidNotFire
from longtake.gateway.errors import (
    GatewayBusy,
    GatewayError,
    GatewayUnreachable,
    InvalidResponse,
    KeyRefused,
    MediaRefused,
    QuotaExhausted,
    RequestRefused,
    ResponseLost,
    TaskNotFound,
    TaskNotVisible,
    WrongGateway,
)
from longtake.models import DeliveryKind, Paid, Problem
from longtake.request.images import ImageProblem
from longtake.request.rules import InvalidRequest
from longtake.storage import StoreProblem
from longtake.submission.errors import (
    KeyReused,
    LedgerError,
    LedgerUnavailable,
    OutcomeUnknown,
    SendSuspended,
    SlotTaken,
    SubmissionClosed,
    SubmissionInDoubt,
    TaskOwned,
    WrongLedger,
    WrongSide,
)
from tests.activities.failing import read

PREPARE, SUBMIT, RESOLVE, POLL, DELIVER = Step.PREPARE, Step.SUBMIT, Step.RESOLVE, Step.POLL, Step.DELIVER
AWAIT_KEY = Step.AWAIT_KEY
NO, YES, UNKNOWN = Paid.NO, Paid.YES, Paid.UNKNOWN
SENT_AT = datetime(2026, 7, 1, 12, tzinfo=UTC)
PATIENCE = timedelta(seconds=9)
TOLD = {"status": 429, "code": "a_code", "gateway_message": "in its words", "request_id": "req-1"}

INVALID = InvalidRequest((Problem(field="size", rule="must be one of …"), Problem(field="prompt", rule="is empty")))
IMAGE = ImageProblem("is damaged: export it again", field="images[1].uri")
STORE = StoreProblem("no space left on the disk", retryable=True)
HOPELESS = StoreProblem("the store ignores If-None-Match", retryable=False)
IN_DOUBT = SubmissionInDoubt("an earlier attempt may still be sending", timedelta(seconds=5))
UNSURE = OutcomeUnknown("ResponseLost: reset", slot=2, sent_at=SENT_AT, cause=ResponseLost("reset", status=502))
GONE = DownloadFailed(DeliveryKind.FULL, [("the link", "answered 403")], gone=True)
LATER = DownloadFailed(DeliveryKind.FULL, [("the link", "answered 502")], gone=False)
EMPTY = QuotaExhausted("out of quota", status=403, code="insufficient_user_quota")
DEFECT = ZeroDivisionError("division by zero")


class Row(NamedTuple):
    error: Exception
    step: Step
    type: str
    retried: bool
    paid: Paid
    delay: timedelta | None = None
    benign: bool = False


TABLE = [
    # What the caller must mend: told at once, and nobody is alarmed.
    Row(INVALID, PREPARE, "InvalidRequest", False, NO, None, True),
    Row(INVALID, SUBMIT, "InvalidRequest", False, NO, None, True),
    Row(IMAGE, PREPARE, "InvalidRequest", False, NO, None, True),
    Row(IMAGE, SUBMIT, "InvalidRequest", False, NO, None, True),
    Row(KeyReused("used"), SUBMIT, "InvalidRequest", False, NO, None, True),
    Row(KeyReused("used"), RESOLVE, "InvalidRequest", False, NO, None, True),
    Row(RequestRefused("no", status=422), SUBMIT, "SubmissionRefused", False, NO, None, True),
    Row(MediaRefused("no files", status=400), SUBMIT, "SubmissionRefused", False, NO, None, True),
    # What an operator must mend before anything is paid.
    Row(KeyRefused("401", status=401), PREPARE, "SubmissionRefused", False, NO),
    Row(KeyRefused("401", status=401), SUBMIT, "SubmissionRefused", False, NO),
    Row(EMPTY, PREPARE, "SubmissionRefused", False, NO),
    Row(EMPTY, SUBMIT, "SubmissionRefused", False, NO),
    # Waited for, without an end.
    Row(EMPTY, AWAIT_KEY, "KeyRefused", True, NO, None, True),
    Row(KeyRefused("401", status=401), AWAIT_KEY, "KeyRefused", True, NO, None, True),
    Row(GatewayUnreachable("refused"), AWAIT_KEY, "PollFailing", True, NO),
    Row(InvalidResponse("an HTML page", status=200), AWAIT_KEY, "PollFailing", True, NO),
    Row(GatewayBusy("wait", retry_after=PATIENCE), AWAIT_KEY, "PollFailing", True, NO, PATIENCE),
    Row(DEFECT, AWAIT_KEY, "Defect", True, UNKNOWN),
    Row(InvalidResponse("an HTML page", status=200), PREPARE, "NotAGateway", False, NO),
    Row(HOPELESS, PREPARE, "StoreRefused", False, NO),
    Row(HOPELESS, SUBMIT, "StoreRefused", False, NO),
    # What passes by itself, and nothing was sent.
    Row(STORE, PREPARE, "StoreRefused", True, NO),
    Row(STORE, SUBMIT, "StoreRefused", True, NO),
    Row(GatewayUnreachable("refused"), PREPARE, "GatewayUnreachable", True, NO),
    Row(GatewayUnreachable("refused"), SUBMIT, "GatewayUnreachable", True, NO),
    Row(DownloadsBlocked("no proxy"), PREPARE, "DownloadsBlocked", True, NO),
    Row(GatewayBusy("wait"), PREPARE, "GatewayBusy", True, NO),
    Row(GatewayBusy("wait"), SUBMIT, "GatewayBusy", True, NO),
    Row(GatewayBusy("wait", status=429, retry_after=PATIENCE), SUBMIT, "GatewayBusy", True, NO, PATIENCE),
    Row(SendSuspended("asleep"), SUBMIT, "SendSuspended", True, NO),
    Row(SubmissionClosed("closed"), SUBMIT, "SubmissionClosed", False, NO),
    # Nothing is sent, but what an earlier attempt did cannot be read either.
    Row(LedgerUnavailable("away"), PREPARE, "LedgerUnavailable", True, UNKNOWN),
    Row(LedgerUnavailable("away"), SUBMIT, "LedgerUnavailable", True, UNKNOWN),
    # Somebody else may be sending: his outcome is awaited.
    Row(SlotTaken("theirs"), SUBMIT, "SlotTaken", True, UNKNOWN),
    Row(IN_DOUBT, SUBMIT, "SubmissionInDoubt", True, UNKNOWN, timedelta(seconds=5)),
    # Nobody knows whether it was paid: never again by itself, whatever the exception is called.
    Row(UNSURE, SUBMIT, "SubmissionOutcomeUnknown", False, UNKNOWN),
    Row(ResponseLost("reset"), SUBMIT, "SubmissionOutcomeUnknown", False, UNKNOWN),
    Row(InvalidResponse("no id"), SUBMIT, "SubmissionOutcomeUnknown", False, UNKNOWN),
    Row(TaskNotFound("?"), SUBMIT, "SubmissionOutcomeUnknown", False, UNKNOWN),
    Row(SendHookDidNotFire("?"), SUBMIT, "SubmissionOutcomeUnknown", False, UNKNOWN),
    Row(LedgerError("a new kind"), SUBMIT, "SubmissionOutcomeUnknown", False, UNKNOWN),
    Row(DEFECT, SUBMIT, "SubmissionOutcomeUnknown", False, UNKNOWN),
    Row(WrongLedger("another", side=WrongSide.GENERATION), SUBMIT, "LedgerUnavailable", True, UNKNOWN),
    # Writing down what became of it; nothing is sent here.
    Row(TaskNotFound("mistyped"), RESOLVE, "InvalidRequest", False, UNKNOWN, None, True),
    Row(TaskOwned("theirs"), RESOLVE, "InvalidRequest", False, NO, None, True),
    Row(LedgerUnavailable("away"), RESOLVE, "LedgerUnavailable", True, UNKNOWN),
    Row(SlotTaken("theirs"), RESOLVE, "SlotTaken", False, UNKNOWN),
    Row(WrongLedger("another", side=WrongSide.WORKER), RESOLVE, "LedgerUnavailable", True, UNKNOWN),
    # A good worker beside it may take the next attempt.
    Row(WrongLedger("another", side=WrongSide.WORKER), PREPARE, "LedgerUnavailable", True, UNKNOWN),
    Row(IN_DOUBT, RESOLVE, "SubmissionInDoubt", True, UNKNOWN, timedelta(seconds=5)),
    Row(UNSURE, RESOLVE, "LedgerUnavailable", True, UNKNOWN),
    Row(DEFECT, RESOLVE, "Defect", True, UNKNOWN),
    # Asking costs nothing; what passes is tried again, and the rest is the next look's business.
    Row(KeyRefused("401", status=401), POLL, "KeyRefused", False, YES),
    Row(EMPTY, POLL, "KeyRefused", False, YES),
    Row(TaskNotFound("not there", status=400), POLL, "TaskNotFound", False, YES),
    Row(InvalidResponse("an HTML page"), POLL, "InvalidResponse", False, YES),
    Row(GatewayUnreachable("refused"), POLL, "PollFailing", True, YES),
    Row(GatewayBusy("wait", retry_after=PATIENCE), POLL, "PollFailing", True, YES, PATIENCE),
    Row(ResponseLost("502"), POLL, "PollFailing", True, YES),
    Row(RequestRefused("400"), POLL, "PollFailing", True, YES),
    Row(WrongGateway("elsewhere"), POLL, "WrongGateway", True, YES),
    Row(TaskNotVisible("another key"), POLL, "TaskNotVisible", True, YES),
    Row(STORE, POLL, "StoreRefused", True, YES),
    Row(HOPELESS, POLL, "StoreRefused", True, YES),
    Row(DEFECT, POLL, "Defect", True, UNKNOWN),
    # Bringing it home: paid, so nothing is given up but what another generation paid for.
    Row(LATER, DELIVER, "DeliveryFailed", True, YES),
    Row(GONE, DELIVER, "DeliveryFailed", True, YES),
    Row(WrongGateway("elsewhere"), DELIVER, "WrongGateway", True, YES),
    Row(TaskNotVisible("another key"), DELIVER, "TaskNotVisible", True, YES),
    Row(STORE, DELIVER, "StoreRefused", True, YES),
    Row(HOPELESS, DELIVER, "StoreRefused", True, YES),
    Row(LedgerUnavailable("away"), DELIVER, "StoreRefused", True, YES),
    Row(TaskOwned("another's"), DELIVER, "TaskOwned", False, UNKNOWN),
    Row(DEFECT, DELIVER, "Defect", True, UNKNOWN),
    # Before paying a defect is tried again.
    Row(DEFECT, PREPARE, "Defect", True, UNKNOWN),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.step}-{type(row.error).__name__}-{row.type}")
def test_a_row(row: Row) -> None:
    failure = read(application_error(row.error, row.step))
    assert (failure.type, failure.retried, failure.details.paid) == (row.type, row.retried, row.paid)
    assert (failure.delay, failure.benign) == (row.delay, row.benign)
    assert failure.message
    assert failure.details.advice.endswith(".") or failure.details.advice.endswith("?")


def test_every_rule_is_in_the_table() -> None:
    used = {(RULES.index(rule_for(row.error, row.step)), row.step) for row in TABLE}
    assert used == {(number, step) for number, rule in enumerate(RULES) for step in rule.steps}


def _all_kinds(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for one in kind.__subclasses__():
        yield from _all_kinds(one)


def _raised_by_longtake() -> set[type[Exception]]:
    """Every error class of the domain, those of modules that nothing has imported yet included."""
    for module in pkgutil.walk_packages(longtake.__path__, "longtake."):
        importlib.import_module(module.name)
    return {kind for root in (GatewayError, LedgerError) for kind in _all_kinds(root)}


# Where each error can come up, by what the activities call.
APPEARS = {
    GatewayError: set(),  # never raised itself
    GatewayUnreachable: {PREPARE, SUBMIT, AWAIT_KEY, POLL},
    GatewayBusy: {PREPARE, SUBMIT, POLL},
    RequestRefused: {SUBMIT, POLL},
    MediaRefused: {SUBMIT},
    KeyRefused: {PREPARE, SUBMIT, AWAIT_KEY, POLL},
    QuotaExhausted: {PREPARE, SUBMIT, AWAIT_KEY, POLL},
    TaskNotFound: {POLL, RESOLVE},
    WrongGateway: {POLL, DELIVER},
    TaskNotVisible: {POLL, DELIVER},
    ResponseLost: {POLL},
    InvalidResponse: {PREPARE, AWAIT_KEY, POLL},
    LedgerError: set(),  # never raised itself
    LedgerUnavailable: {SUBMIT, RESOLVE, DELIVER},
    WrongLedger: {PREPARE, SUBMIT, RESOLVE},
    KeyReused: {SUBMIT, RESOLVE},
    TaskOwned: {RESOLVE, DELIVER},
    SendSuspended: {SUBMIT},
    SubmissionClosed: {SUBMIT},
    SlotTaken: {SUBMIT, RESOLVE},
    SubmissionInDoubt: {SUBMIT, RESOLVE},
    OutcomeUnknown: {SUBMIT, RESOLVE},
    StoreProblem: {PREPARE, SUBMIT, POLL, DELIVER},
    ImageProblem: {PREPARE, SUBMIT},
    InvalidRequest: {PREPARE, SUBMIT},
    DownloadFailed: {DELIVER},
}


def test_no_error_of_the_domain_is_forgotten() -> None:
    assert _raised_by_longtake() <= set(APPEARS), "say in APPEARS where it can come up, and give it a rule"


@pytest.mark.parametrize(
    ("kind", "step"),
    [(kind, step) for kind, steps in APPEARS.items() for step in sorted(steps)],
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_every_error_has_a_rule_of_its_own_where_it_can_come_up(kind: type[Exception], step: Step) -> None:
    fitting = next(rule for rule in RULES if step in rule.steps and issubclass(kind, rule.error))
    assert fitting.error is not Exception, f"{kind.__name__} would be called a defect"
    assert any(isinstance(row.error, kind) and row.step is step for row in TABLE), "and a row in the table above"


def test_whatever_is_not_foreseen_around_the_post_is_never_sent_again() -> None:
    class NeverHeardOf(Exception):
        pass

    failure = read(application_error(NeverHeardOf("?"), SUBMIT))
    assert (failure.type, failure.retried, failure.details.paid) == ("SubmissionOutcomeUnknown", False, UNKNOWN)
    assert "NeverHeardOf" in failure.message


def test_a_failure_stays_small_enough_to_keep_its_type() -> None:
    for row in TABLE:
        long: Any = type("Long", (type(row.error),), {"__str__": lambda _: "x" * 100_000})
        error = long.__new__(long)
        error.__dict__.update(row.error.__dict__)
        failure = application_error(error, row.step)
        assert len(failure.message) <= 800


def test_gone_for_good_ends_a_delivery() -> None:
    assert not read(application_error(GONE, DELIVER, gone_for_good=True)).retried


def test_the_gateways_answer_is_in_the_details() -> None:
    for step, error in ((SUBMIT, GatewayBusy("wait", **TOLD)), (POLL, KeyRefused("no", **TOLD))):  # type: ignore[arg-type]
        details = read(application_error(error, step)).details
        told = (details.http_status, details.gateway_code, details.gateway_message, details.request_id)
        assert told == (429, "a_code", "in its words", "req-1")


def test_an_unknown_submission_names_when_it_was_sent_and_the_gateways_answer() -> None:
    cause = ResponseLost("the gateway failed", **TOLD)  # type: ignore[arg-type]
    failure = read(application_error(OutcomeUnknown("?", slot=3, sent_at=SENT_AT, cause=cause), SUBMIT))
    details = failure.details
    assert (details.slot, details.sent_at, details.http_status, details.request_id) == (3, SENT_AT, 429, "req-1")


@pytest.mark.parametrize(
    ("error", "fields"), [(INVALID, ["size", "prompt"]), (IMAGE, ["images[1].uri"])], ids=["request", "image"]
)
def test_an_invalid_request_carries_its_problems(error: Exception, fields: list[str]) -> None:
    details = read(application_error(error, PREPARE)).details
    assert [problem.field for problem in details.problems] == fields
    assert all(problem.rule for problem in details.problems)


def test_what_is_paid_before_submitting_is_nothing() -> None:
    for rule in RULES:
        if PREPARE in rule.steps and rule.error not in (Exception, LedgerUnavailable):
            assert rule.paid is NO


def test_only_a_refusal_or_a_proof_means_that_nothing_was_paid() -> None:
    """The workflow hands `paid: no` to callers, who then may take a new key."""
    said = {rule.error for rule in RULES if SUBMIT in rule.steps and rule.paid is NO}
    assert said == {
        InvalidRequest, ImageProblem, KeyReused, KeyRefused, QuotaExhausted, RequestRefused,
        GatewayUnreachable, GatewayBusy, SendSuspended, StoreProblem, SubmissionClosed,
    }  # fmt: skip
