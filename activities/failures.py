"""The one place that turns a domain error into an `ApplicationError`: its type, whether and when it is retried.

The table in `docs/failures.md` is generated from `RULES`, and a test goes through it row by row. Messages are short and
raised `from None`: a failure above about 4 kB, such as a chained traceback, is stored without its type.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
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
)

MAX_MESSAGE_CHARACTERS = 800
_CODE = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class Step(StrEnum):
    """The step that failed."""

    PREPARE = "prepare"
    SUBMIT = "submit"
    AWAIT_KEY = "await key"
    RESOLVE = "resolve"
    POLL = "poll"
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
    """An expected end, which should raise no alarm."""


_BEFORE = (Step.PREPARE, Step.SUBMIT)

RULES: tuple[Rule, ...] = (
    Rule(
        InvalidRequest, _BEFORE, "InvalidRequest", retried=False, paid=Paid.NO, who_acts="caller", benign=True,
        advice="Correct the request and start it again with the same key.",
    ),
    Rule(
        ImageProblem, _BEFORE, "InvalidRequest", retried=False, paid=Paid.NO, who_acts="caller", benign=True,
        advice="Correct the image and start again with the same key.",
    ),
    Rule(
        KeyReused, (Step.SUBMIT,), "InvalidRequest", retried=False, paid=Paid.NO,
        who_acts="caller", benign=True,
        advice="Start this request with a new key.",
    ),
    Rule(
        QuotaExhausted, _BEFORE, "SubmissionRefused", retried=False, paid=Paid.NO,
        who_acts="operator",
        advice="Out of quota: top up the gateway's account, or give the API key a larger share of it; then start "
        "again with the same key.",
    ),
    Rule(
        KeyRefused, _BEFORE, "SubmissionRefused", retried=False, paid=Paid.NO,
        who_acts="operator",
        advice="Give the worker a working LONGTAKE_GATEWAY_API_KEY, then start again with the same key.",
    ),
    Rule(
        QuotaExhausted, (Step.AWAIT_KEY,), "KeyRefused", retried=True, paid=Paid.NO,
        who_acts="operator", benign=True,
        advice="Out of quota: top up the gateway's account, or give the API key a larger share of it; the "
        "generation then continues.",
    ),
    Rule(
        KeyRefused, (Step.AWAIT_KEY,), "KeyRefused", retried=True, paid=Paid.NO,
        who_acts="operator", benign=True,
        advice="Give the worker a working LONGTAKE_GATEWAY_API_KEY; the generation then continues.",
    ),
    Rule(
        GatewayError, (Step.AWAIT_KEY,), "PollFailing", retried=True, paid=Paid.NO,
        who_acts="nobody",
        advice="The worker cannot check the key with the gateway just now; it checks again.",
    ),
    Rule(
        RequestRefused, (Step.SUBMIT,), "SubmissionRefused", retried=False, paid=Paid.NO,
        who_acts="caller", benign=True,
        advice="Correct what the gateway names, then start again with the same key.",
    ),
    Rule(
        InvalidResponse, (Step.PREPARE,), "NotAGateway", retried=False, paid=Paid.NO,
        who_acts="operator",
        advice="Correct LONGTAKE_GATEWAY_URL: the server there is not the gateway. Then start again with the same key.",
    ),
    Rule(
        GatewayUnreachable, _BEFORE, "GatewayUnreachable", retried=True, paid=Paid.NO,
        who_acts="nobody, or operator",
        advice="Nothing was sent. Check LONGTAKE_GATEWAY_URL and the network; the worker tries again.",
    ),
    Rule(
        DownloadsBlocked, (Step.PREPARE,), "DownloadsBlocked", retried=True, paid=Paid.NO,
        who_acts="operator",
        advice="Nothing was paid, because the worker could not download a video. Set HTTPS_PROXY, NO_PROXY or "
        "SSL_CERT_FILE for the worker as the message says, and restart it; it tries again.",
    ),
    Rule(
        GatewayBusy, _BEFORE, "GatewayBusy", retried=True, paid=Paid.NO,
        who_acts="nobody",
        advice="The gateway made nothing; the worker tries again later.",
    ),
    Rule(
        # What an earlier attempt did cannot be read either, so it is not known that nothing was paid.
        LedgerUnavailable, _BEFORE, "LedgerUnavailable", retried=True, paid=Paid.UNKNOWN,
        who_acts="operator",
        advice="Nothing is sent without the ledger. Repair the store at LONGTAKE_STORE_URL; the worker tries again.",
    ),
    Rule(
        SendSuspended, (Step.SUBMIT,), "SendSuspended", retried=True, paid=Paid.NO,
        who_acts="nobody",
        advice="Nothing was sent; the worker tries again.",
    ),
    Rule(
        SubmissionClosed, (Step.SUBMIT,), "SubmissionClosed", retried=False, paid=Paid.NO,
        who_acts="nobody",
        advice="Nothing was sent, because the generation had ended. Start it again with the same key.",
    ),
    Rule(
        SlotTaken, (Step.SUBMIT,), "SlotTaken", retried=True, paid=Paid.UNKNOWN,
        who_acts="nobody",
        advice="Another attempt is sending; the worker waits for its outcome.",
    ),
    Rule(
        SubmissionInDoubt, (Step.SUBMIT,), "SubmissionInDoubt", retried=True, paid=Paid.UNKNOWN,
        who_acts="nobody",
        advice="An earlier attempt may still be sending; the worker waits for its outcome.",
    ),
    Rule(
        OutcomeUnknown, (Step.SUBMIT,), "SubmissionOutcomeUnknown", retried=False, paid=Paid.UNKNOWN,
        who_acts="operator",
        advice="Find a task of this model at that time in the gateway's console, then decide. The worker never "
        "resubmits by itself.",
    ),
    Rule(
        TaskNotFound, (Step.RESOLVE,), "InvalidRequest", retried=False, paid=Paid.UNKNOWN,
        who_acts="operator", benign=True,
        advice="Decide again, with the id of a task that the gateway's console shows.",
    ),
    Rule(
        TaskOwned, (Step.RESOLVE,), "InvalidRequest", retried=False, paid=Paid.NO,
        who_acts="operator", benign=True,
        advice="Choose a task that belongs to no other generation.",
    ),
    Rule(
        KeyReused, (Step.RESOLVE,), "InvalidRequest", retried=False, paid=Paid.NO,
        who_acts="caller", benign=True,
        advice="Start this request with a new key.",
    ),
    Rule(
        SubmissionInDoubt, (Step.RESOLVE,), "SubmissionInDoubt", retried=True, paid=Paid.UNKNOWN,
        who_acts="nobody",
        advice="The submission may still be under way; the worker checks again when its exchange must be over.",
    ),
    Rule(
        SlotTaken, (Step.RESOLVE,), "SlotTaken", retried=False, paid=Paid.UNKNOWN,
        who_acts="operator",
        advice="The ledger has another outcome for this submission: compare its records with the gateway's console.",
    ),
    Rule(
        LedgerError, (Step.RESOLVE,), "LedgerUnavailable", retried=True, paid=Paid.UNKNOWN,
        who_acts="nobody, or operator",
        advice="Nothing is sent here; the worker tries again. Check the store at LONGTAKE_STORE_URL.",
    ),
    Rule(
        QuotaExhausted, (Step.POLL,), "KeyRefused", retried=False, paid=Paid.YES,
        who_acts="operator",
        advice="Out of quota: top up the gateway's account, or give the worker another of its keys; polling then "
        "continues.",
    ),
    Rule(
        KeyRefused, (Step.POLL,), "KeyRefused", retried=False, paid=Paid.YES,
        who_acts="operator",
        advice="Give the worker a working LONGTAKE_GATEWAY_API_KEY of the same account; polling then continues.",
    ),
    Rule(
        TaskNotFound, (Step.POLL,), "TaskNotFound", retried=False, paid=Paid.YES,
        who_acts="nobody",
        advice="The gateway does not know the task yet, or has lost it; the worker polls again.",
    ),
    Rule(
        InvalidResponse, (Step.POLL,), "InvalidResponse", retried=False, paid=Paid.YES,
        who_acts="nobody, or operator",
        advice="The response is outside the gateway's documentation; the worker polls again. Check "
        "LONGTAKE_GATEWAY_URL.",
    ),
    Rule(
        WrongGateway, (Step.POLL, Step.DELIVER), "WrongGateway", retried=True, paid=Paid.YES,
        who_acts="operator",
        advice="Give the workers the gateway that the message names, until its tasks have ended; they then continue.",
    ),
    Rule(
        TaskNotVisible, (Step.POLL, Step.DELIVER), "TaskNotVisible", retried=True, paid=Paid.YES,
        who_acts="operator",
        advice="Add a key of the account that paid to LONGTAKE_GATEWAY_API_KEY; the worker then continues.",
    ),
    Rule(
        GatewayError, (Step.POLL,), "PollFailing", retried=True, paid=Paid.YES,
        who_acts="nobody",
        advice="The worker cannot query the gateway just now; it tries again, and then at the next poll.",
    ),
    Rule(
        TaskOwned, (Step.DELIVER,), "TaskOwned", retried=False, paid=Paid.UNKNOWN,
        who_acts="operator",
        advice="The ledger says that another generation paid for this task: find out who started this one.",
    ),
    Rule(
        LedgerUnavailable, (Step.DELIVER,), "StoreRefused", retried=True, paid=Paid.YES,
        who_acts="operator",
        advice="Repair the store at LONGTAKE_STORE_URL; nothing is lost, and the worker tries again.",
    ),
    Rule(
        DownloadFailed, (Step.DELIVER,), "DeliveryFailed", retried=True, paid=Paid.YES,
        who_acts="nobody, or operator",
        advice="No source serves a complete video yet; the worker tries again.",
    ),
    Rule(
        StoreProblem, (Step.PREPARE, Step.SUBMIT), "StoreRefused", retried=True, paid=Paid.NO,
        who_acts="operator",
        advice="Nothing was paid. Repair the store at LONGTAKE_STORE_URL; the worker tries again.",
    ),
    Rule(
        StoreProblem, (Step.POLL, Step.DELIVER), "StoreRefused", retried=True, paid=Paid.YES,
        who_acts="operator",
        advice="Repair the store at LONGTAKE_STORE_URL; nothing is lost, and the worker tries again.",
    ),
    # A defect of ours. Around a paid POST it must never lead to a second one; elsewhere a retry costs nothing.
    Rule(
        Exception, (Step.SUBMIT,), "SubmissionOutcomeUnknown", retried=False, paid=Paid.UNKNOWN,
        who_acts="operator",
        advice="A defect in longtake: report it. Check the gateway's console before anything is sent again.",
    ),
    Rule(
        Exception, (Step.PREPARE, Step.AWAIT_KEY, Step.RESOLVE, Step.POLL, Step.DELIVER), "Defect", retried=True,
        paid=Paid.UNKNOWN,
        who_acts="developer",
        advice="A defect in longtake: report it; the worker tries again.",
    ),
)  # fmt: skip


@asynccontextmanager
async def translated_errors(
    step: Step,
    *,
    keep_words: Callable[[str], Awaitable[str]] | None = None,
    gone_for_good: Callable[[Exception], bool] = lambda _: False,
) -> AsyncIterator[None]:
    """Raise every domain error of the block as an `ApplicationError`, by the first row of `RULES` that fits.

    Args:
        step: What the block does.
        keep_words: Where prompts are hidden: stores the gateway's words, and returns what to show instead.
        gone_for_good: For a delivery: whether every source has said "gone" for long enough.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the table has a row for every kind
        instead = await keep_words(str(error)) if keep_words and may_quote(error) else None
        raise application_error(error, step, gone_for_good=gone_for_good(error), instead=instead) from None


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
    """Whether an error's text may hold words of the gateway; an `ApplicationError` holds those that we gave it."""
    return isinstance(error, _QUOTES) or not isinstance(error, _OURS)


def code_or_none(code: str | None) -> str | None:
    """A code as it is; None where prose stands in its place."""
    return code if code and _CODE.fullmatch(code) else None


def application_error(
    error: Exception, step: Step, *, gone_for_good: bool = False, instead: str | None = None
) -> ApplicationError:
    """Translate a domain error; raise the result `from None` (`translated_errors` does).

    Args:
        error: What the domain raised.
        step: What was being done.
        gone_for_good: For a delivery: every source has said "gone" for long enough.
        instead: What to show instead of the gateway's words, where those are hidden (`activities.hiding`).
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
    """A store that needs an operator: before paying the step fails at once, afterwards it is retried without end."""
    if isinstance(error, LedgerUnavailable):
        return step is Step.PREPARE and error.needs_operator
    return step in _BEFORE and isinstance(error, StoreProblem) and (error.needs_operator or not error.retryable)


def _delay(error: BaseException) -> timedelta | None:
    if isinstance(error, GatewayError):
        return error.retry_after
    return error.wait if isinstance(error, SubmissionInDoubt) else None


def details_of(error: BaseException, step: Step) -> FailureDetails:
    """The facts of an error, as the workflow gets them."""
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
    """Why the gateway does not accept the API key; None where that is not the error."""
    if not isinstance(error, KeyRefused):
        return None
    return KeyProblem.OUT_OF_QUOTA if isinstance(error, QuotaExhausted) else KeyProblem.REFUSED
