"""The one place that turns a domain error into an `ApplicationError`: its type, whether it is retried, and when.

The table in `docs/failures.md` is generated from `RULES`, and a test goes through it row by row. Messages are short and
raised `from None`: a failure above about 4 kB, such as a chained traceback, is stored without its type.
"""

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities import measuring
from longtake.delivery.download import DownloadFailed, DownloadsBlocked
from longtake.gateway.errors import (
    GatewayBusy,
    GatewayError,
    GatewayUnreachable,
    InvalidResponse,
    KeyRefused,
    QuotaExhausted,
    RequestRefused,
    TaskNotFound,
    TaskNotVisible,
    WrongGateway,
)
from longtake.models import FailureDetails, KeyProblem, Paid, Problem
from longtake.request.images import ImageProblem
from longtake.request.rules import InvalidRequest
from longtake.storage import StoreProblem
from longtake.submission.ledger import (
    KeyReused,
    LedgerError,
    LedgerUnavailable,
    OutcomeUnknown,
    SendSuspended,
    SlotTaken,
    SubmissionClosed,
    SubmissionInDoubt,
    TaskOwned,
)

MAX_MESSAGE_CHARACTERS = 800
_CODE = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class Step(StrEnum):
    """What was being done when it failed."""

    PREPARE = "prepare"
    SUBMIT = "submit"
    AWAIT_KEY = "await key"
    SETTLE = "settle"
    POLL = "look"
    DELIVER = "deliver"


@dataclass(frozen=True)
class Rule:
    """What one kind of error means in one step."""

    error: type[BaseException]
    steps: tuple[Step, ...]
    type: str
    retried: bool
    paid: Paid
    who_acts: str
    advice: str
    benign: bool = False
    """An expected end that should not alarm anybody."""


_BEFORE = (Step.PREPARE, Step.SUBMIT)

RULES: tuple[Rule, ...] = (
    Rule(
        InvalidRequest, _BEFORE, "InvalidRequest", retried=False, paid=Paid.NO, who_acts="caller", benign=True,
        advice="Mend the request and start it again with the same key.",
    ),
    Rule(
        ImageProblem, _BEFORE, "InvalidRequest", retried=False, paid=Paid.NO, who_acts="caller", benign=True,
        advice="Mend the image and start again with the same key.",
    ),
    Rule(
        KeyReused, (Step.SUBMIT,), "InvalidRequest", retried=False, paid=Paid.NO,
        who_acts="caller", benign=True,
        advice="Start this request with a new key.",
    ),
    Rule(
        QuotaExhausted, _BEFORE, "SubmissionRefused", retried=False, paid=Paid.NO,
        who_acts="operator",
        advice="Out of quota: top up the gateway's account, or give the API key a larger share of it; then start again "
        "with the same key.",
    ),
    Rule(
        KeyRefused, _BEFORE, "SubmissionRefused", retried=False, paid=Paid.NO,
        who_acts="operator",
        advice="Give the worker a working LONGTAKE_GATEWAY_API_KEY, then start again with the same key.",
    ),
    Rule(
        QuotaExhausted, (Step.AWAIT_KEY,), "KeyRefused", retried=True, paid=Paid.NO,
        who_acts="operator", benign=True,
        advice="Out of quota: top up the gateway's account, or give the API key a larger share of it; it goes on by "
        "itself.",
    ),
    Rule(
        KeyRefused, (Step.AWAIT_KEY,), "KeyRefused", retried=True, paid=Paid.NO,
        who_acts="operator", benign=True,
        advice="Give the worker a working LONGTAKE_GATEWAY_API_KEY; it goes on by itself.",
    ),
    Rule(
        GatewayError, (Step.AWAIT_KEY,), "PollFailing", retried=True, paid=Paid.NO,
        who_acts="nobody",
        advice="The gateway cannot be asked just now whether it takes the key; it is asked again.",
    ),
    Rule(
        RequestRefused, (Step.SUBMIT,), "SubmissionRefused", retried=False, paid=Paid.NO,
        who_acts="caller", benign=True,
        advice="Mend what the gateway names, then start again with the same key.",
    ),
    Rule(
        InvalidResponse, (Step.PREPARE,), "NotAGateway", retried=False, paid=Paid.NO,
        who_acts="operator",
        advice="Mend LONGTAKE_GATEWAY_URL: what answers there is not the gateway. Then start again with the same key.",
    ),
    Rule(
        GatewayUnreachable, _BEFORE, "GatewayUnreachable", retried=True, paid=Paid.NO,
        who_acts="nobody, or operator",
        advice="Nothing was sent. Check LONGTAKE_GATEWAY_URL and the network; it is tried again.",
    ),
    Rule(
        DownloadsBlocked, (Step.PREPARE,), "DownloadsBlocked", retried=True, paid=Paid.NO,
        who_acts="operator",
        advice="Nothing was paid: what cannot be downloaded is not ordered. Set HTTPS_PROXY, NO_PROXY or SSL_CERT_FILE "
        "for the worker as the message says, and restart it; it is tried again.",
    ),
    Rule(
        GatewayBusy, _BEFORE, "GatewayBusy", retried=True, paid=Paid.NO,
        who_acts="nobody",
        advice="The gateway made nothing and asks for patience; it is tried again.",
    ),
    Rule(
        # What an earlier attempt did cannot be read either, so nobody may say that nothing was paid.
        LedgerUnavailable, _BEFORE, "LedgerUnavailable", retried=True, paid=Paid.UNKNOWN,
        who_acts="operator",
        advice="Nothing is sent while the ledger is away. Mend the store at LONGTAKE_STORE_URL; it is tried again.",
    ),
    Rule(
        SendSuspended, (Step.SUBMIT,), "SendSuspended", retried=True, paid=Paid.NO,
        who_acts="nobody",
        advice="Nothing was sent; it is tried again.",
    ),
    Rule(
        SubmissionClosed, (Step.SUBMIT,), "SubmissionClosed", retried=False, paid=Paid.NO,
        who_acts="nobody",
        advice="Nothing was sent: its generation had ended by then. Start it again with the same key.",
    ),
    Rule(
        SlotTaken, (Step.SUBMIT,), "SlotTaken", retried=True, paid=Paid.UNKNOWN,
        who_acts="nobody",
        advice="Another attempt is sending; its outcome is awaited.",
    ),
    Rule(
        SubmissionInDoubt, (Step.SUBMIT,), "SubmissionInDoubt", retried=True, paid=Paid.UNKNOWN,
        who_acts="nobody",
        advice="An earlier attempt may still be sending; its outcome is awaited.",
    ),
    Rule(
        OutcomeUnknown, (Step.SUBMIT,), "SubmissionOutcomeUnknown", retried=False, paid=Paid.UNKNOWN,
        who_acts="operator",
        advice="Look in the gateway's console for a task of this model at that time. It is never sent again by itself.",
    ),
    Rule(
        TaskNotFound, (Step.SETTLE,), "InvalidRequest", retried=False, paid=Paid.UNKNOWN,
        who_acts="operator", benign=True,
        advice="Decide again, with the id of a task in the gateway's console.",
    ),
    Rule(
        TaskOwned, (Step.SETTLE,), "InvalidRequest", retried=False, paid=Paid.NO,
        who_acts="operator", benign=True,
        advice="Choose a task that belongs to no other generation.",
    ),
    Rule(
        KeyReused, (Step.SETTLE,), "InvalidRequest", retried=False, paid=Paid.NO,
        who_acts="caller", benign=True,
        advice="Start this request with a new key.",
    ),
    Rule(
        SubmissionInDoubt, (Step.SETTLE,), "SubmissionInDoubt", retried=True, paid=Paid.UNKNOWN,
        who_acts="nobody",
        advice="The submission may still be under way; it is asked again when that must be over.",
    ),
    Rule(
        SlotTaken, (Step.SETTLE,), "SlotTaken", retried=False, paid=Paid.UNKNOWN,
        who_acts="operator",
        advice="The ledger says something else about this submission: compare its records with the gateway's console.",
    ),
    Rule(
        LedgerError, (Step.SETTLE,), "LedgerUnavailable", retried=True, paid=Paid.UNKNOWN,
        who_acts="nobody, or operator",
        advice="Nothing is sent here; it is tried again. Is the store at LONGTAKE_STORE_URL well?",
    ),
    Rule(
        QuotaExhausted, (Step.POLL,), "KeyRefused", retried=False, paid=Paid.YES,
        who_acts="operator",
        advice="Out of quota: top up the gateway's account, or give the worker another key of it; it goes on by "
        "itself.",
    ),
    Rule(
        KeyRefused, (Step.POLL,), "KeyRefused", retried=False, paid=Paid.YES,
        who_acts="operator",
        advice="Give the worker a working LONGTAKE_GATEWAY_API_KEY of the same account; it goes on by itself.",
    ),
    Rule(
        TaskNotFound, (Step.POLL,), "TaskNotFound", retried=False, paid=Paid.YES,
        who_acts="nobody",
        advice="The gateway does not know the task yet, or has lost it; the next look follows.",
    ),
    Rule(
        InvalidResponse, (Step.POLL,), "InvalidResponse", retried=False, paid=Paid.YES,
        who_acts="nobody, or operator",
        advice="The answer is outside the document; the next look follows. Is LONGTAKE_GATEWAY_URL right?",
    ),
    Rule(
        WrongGateway, (Step.POLL, Step.DELIVER), "WrongGateway", retried=True, paid=Paid.YES,
        who_acts="operator",
        advice="Give the workers the gateway that the message names, until its tasks have ended; it goes on by itself.",
    ),
    Rule(
        TaskNotVisible, (Step.POLL, Step.DELIVER), "TaskNotVisible", retried=True, paid=Paid.YES,
        who_acts="operator",
        advice="Add a key of the account that paid to LONGTAKE_GATEWAY_API_KEY; it goes on by itself.",
    ),
    Rule(
        GatewayError, (Step.POLL,), "PollFailing", retried=True, paid=Paid.YES,
        who_acts="nobody",
        advice="The gateway cannot be asked just now; it is tried again, and then at the next look.",
    ),
    Rule(
        TaskOwned, (Step.DELIVER,), "TaskOwned", retried=False, paid=Paid.UNKNOWN,
        who_acts="operator",
        advice="The ledger says that another generation paid for this task: find out who started this one.",
    ),
    Rule(
        LedgerUnavailable, (Step.DELIVER,), "StoreRefused", retried=True, paid=Paid.YES,
        who_acts="operator",
        advice="Mend the store at LONGTAKE_STORE_URL; nothing is lost, and it is tried again.",
    ),
    Rule(
        DownloadFailed, (Step.DELIVER,), "DeliveryFailed", retried=True, paid=Paid.YES,
        who_acts="nobody, or operator",
        advice="No source gives a whole video yet; it is tried again.",
    ),
    Rule(
        StoreProblem, (Step.PREPARE, Step.SUBMIT), "StoreRefused", retried=True, paid=Paid.NO,
        who_acts="operator",
        advice="Nothing was paid. Mend the store at LONGTAKE_STORE_URL; it is tried again.",
    ),
    Rule(
        StoreProblem, (Step.POLL, Step.DELIVER), "StoreRefused", retried=True, paid=Paid.YES,
        who_acts="operator",
        advice="Mend the store at LONGTAKE_STORE_URL; nothing is lost, and it is tried again.",
    ),
    # A defect of ours. Around a paid POST it must never lead to a second one; elsewhere a retry costs nothing.
    Rule(
        Exception, (Step.SUBMIT,), "SubmissionOutcomeUnknown", retried=False, paid=Paid.UNKNOWN,
        who_acts="operator",
        advice="A defect in longtake: report it. Look in the gateway's console before anything is sent again.",
    ),
    Rule(
        Exception, (Step.PREPARE, Step.AWAIT_KEY, Step.SETTLE, Step.POLL, Step.DELIVER), "Defect", retried=True,
        paid=Paid.UNKNOWN,
        who_acts="developer",
        advice="A defect in longtake: report it; it is tried again.",
    ),
)  # fmt: skip


def rule_for(error: BaseException, step: Step) -> Rule:
    """The first row that fits."""
    return next(rule for rule in RULES if step in rule.steps and isinstance(error, rule.error))


_QUOTES = (GatewayError, OutcomeUnknown)
"""An unknown outcome repeats what ended the exchange."""
_OURS: tuple[type[BaseException], ...] = (
    ApplicationError,
    *(rule.error for rule in RULES if rule.error is not Exception),
)


def may_quote(error: BaseException) -> bool:
    """Whether somebody else's words may be in an error's text; those of an `application_error` are as it made them."""
    return isinstance(error, _QUOTES) or not isinstance(error, _OURS)


def code_or_none(code: str | None) -> str | None:
    """A code as it is; nothing where prose stands in its place."""
    return code if code and _CODE.fullmatch(code) else None


def application_error(
    error: Exception, step: Step, *, gone_for_good: bool = False, instead: str | None = None
) -> ApplicationError:
    """Translate a domain error; raise the result `from None`.

    Args:
        error: What the domain raised.
        step: What was being done.
        gone_for_good: For a delivery: every source has said for long enough that there is nothing any more.
        instead: What is shown instead of words that are not ours, where those are hidden (`activities.hiding`).
    """
    rule = rule_for(error, step)
    measuring.failed(error, rule.type)
    details = details_of(error, step)
    if instead is None:
        text = str(error) if rule.error is not Exception else f"{type(error).__name__}: {error}"
    else:
        code = code_or_none(details.gateway_code)
        details = details.model_copy(update={"gateway_message": None, "gateway_code": code})
        known = (f"HTTP {details.http_status}" if details.http_status else None, code, instead)
        text = f"{_kind(error)}: {', '.join(part for part in known if part)}"
    return ApplicationError(
        text[:MAX_MESSAGE_CHARACTERS],
        details,
        type=rule.type,
        non_retryable=not rule.retried or gone_for_good or _hopeless_before_paying(error, step),
        next_retry_delay=_delay(error),
        category=ApplicationErrorCategory.BENIGN if rule.benign else ApplicationErrorCategory.UNSPECIFIED,
    )


def _kind(error: BaseException) -> str:
    cause = error.cause if isinstance(error, OutcomeUnknown) else None
    return type(error).__name__ + (f" ({type(cause).__name__})" if cause else "")


def _hopeless_before_paying(error: BaseException, step: Step) -> bool:
    """A store that needs an operator: before paying the caller is told at once, afterwards it is tried on and on."""
    if isinstance(error, LedgerUnavailable):
        return step is Step.PREPARE and error.needs_operator
    return step in _BEFORE and isinstance(error, StoreProblem) and (error.needs_operator or not error.retryable)


def _delay(error: BaseException) -> timedelta | None:
    if isinstance(error, GatewayError):
        return error.retry_after
    return error.wait if isinstance(error, SubmissionInDoubt) else None


def details_of(error: BaseException, step: Step) -> FailureDetails:
    """Everything that an error says, as the workflow gets it."""
    rule = rule_for(error, step)
    details = FailureDetails(paid=rule.paid, advice=rule.advice)
    if isinstance(error, InvalidRequest):
        return details.model_copy(update={"problems": error.problems})
    if isinstance(error, ImageProblem):
        return details.model_copy(update={"problems": (Problem(field=error.field or "images", rule=error.rule),)})
    source = error
    if isinstance(error, OutcomeUnknown):
        source = error.cause or error
        details = details.model_copy(
            update={
                "slot": error.slot,
                "sent_at": error.sent_at,
                "http_status": error.status,
                "request_id": error.request_id,
            }
        )
    if isinstance(source, GatewayError):
        return details.model_copy(
            update={
                "key_problem": key_problem(source),
                "http_status": source.status,
                "gateway_code": source.code,
                "gateway_message": source.gateway_message,
                "request_id": source.request_id,
            }
        )
    return details


def key_problem(error: GatewayError) -> KeyProblem | None:
    """Why the gateway does not take the API key, if that is what it says."""
    if not isinstance(error, KeyRefused):
        return None
    return KeyProblem.OUT_OF_QUOTA if isinstance(error, QuotaExhausted) else KeyProblem.REFUSED
