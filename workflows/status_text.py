"""The texts of a generation's status and of its page in Temporal's UI: pure functions of a status."""

from collections.abc import Iterator
from datetime import UTC, datetime

from longtake.display import after_cancelling, code, command, prose
from longtake.models import Attention, DecisionAction, GenerationStatus, KeyProblem, Paid, Stage

COLLECT = (
    "A retried extension was paid for, or may have been, and is not delivered. Start again with the same key to "
    "collect it; that pays nothing."
)
_START_AGAIN = "Starting again with the same key continues where this run stopped, and pays nothing twice."

_STAGES = {
    Stage.PREPARING: "checking the request, the gateway and the store; nothing is paid yet",
    Stage.SUBMITTING: "submitting to the gateway",
    Stage.AWAITING_DECISION: "waiting for a decision",
    Stage.FIRST_SEGMENT: "the gateway is making the first segment (8 s)",
    Stage.EXTENDING: "the gateway is making the extension (7 s)",
    Stage.DELIVERING: "downloading, verifying and storing",
    Stage.DONE: "done",
    Stage.FAILED: "failed",
}
"""What is going on in each stage but `CANCELLED`, where that depends on what was paid."""

_ATTENTION = {
    Attention.NEEDS_API_KEY: (
        "the gateway refuses the API key",
        (
            "Give the worker a working LONGTAKE_GATEWAY_API_KEY of the same account. Polling then continues by itself, "
            "or at once with {poll}."
        ),
    ),
    Attention.NEEDS_DECISION: ("a person must decide", ""),
    Attention.OVERDUE: (
        "overdue; still polling",
        "Do nothing: polling continues, more slowly, until the gateway's own limit. Never submit it again elsewhere.",
    ),
    Attention.TASK_LOST: (
        "the gateway has given the task up without a verdict on the video",
        "Do nothing yet: polling continues. The upstream ids below name the job to the gateway's support.",
    ),
    Attention.POLL_FAILING: (
        "the last poll failed",
        "Do nothing yet: the next poll follows by itself, or at once with {poll}.",
    ),
    Attention.DELIVERY_FAILING: (
        "the video is made and paid, and cannot be downloaded or stored yet",
        "Fix what the last problem names before the link expires. The worker retries by itself.",
    ),
    Attention.LEDGER_UNAVAILABLE: (
        "the worker cannot use the submission ledger, so nobody knows whether anything was sent",
        "Fix the store that the last problem names. The worker retries by itself and sends nothing meanwhile.",
    ),
}
"""What is wrong, and what to do."""
_OUT_OF_QUOTA = (
    "out of quota: the gateway's account, or the API key's share of it, is used up",
    (
        "Top up the account, or give the API key a larger share of it. Polling then continues by itself, or at once "
        "with {poll}."
    ),
)
_AWAITING_KEY = {
    KeyProblem.REFUSED: "Give the worker a working LONGTAKE_GATEWAY_API_KEY",
    KeyProblem.OUT_OF_QUOTA: "Top up the gateway's account, or give the API key a larger share of it",
}
_UNTIL_THEN = (
    ". The worker then submits by itself, or at once with {poll}. The gateway has made nothing; one of all waiting "
    "generations asks it again every few minutes. {cancel} ends the waiting."
)

_DECISIONS = {
    DecisionAction.ACCEPT: ("accept", '{"action": "accept"}', "take the 8 s clip as the result"),
    DecisionAction.RETRY: ("retry", '{"action": "retry"}', "pay for the extension again"),
    DecisionAction.ADOPT: ("adopt TASK_ID", '{"action": "adopt", "task_id": "…"}', "it was paid, and this is its task"),
    DecisionAction.RESUBMIT: (
        "resubmit",
        '{"action": "resubmit"}',
        "nothing was paid for certain: submit it again, which pays",
    ),
    DecisionAction.ABANDON: ("abandon", '{"action": "abandon"}', "give it up"),
}
"""The arguments of `starter.py decide`, the input of the update `decide`, and what it means."""

_QUESTIONS = {
    DecisionAction.ACCEPT: (
        "the extension failed and the 8 s clip is stored; a person must decide whether it is enough",
        "watch the 8 s clip, then decide",
        "the 8 s clip is the result",
    ),
    DecisionAction.ADOPT: (
        "the request was sent and no response came; a person must find out whether it was paid",
        "look in the gateway's console for a task of this model and that time, then decide",
        "the generation ends as `Abandoned`, and the worker sends nothing",
    ),
}
"""By the first action offered: what is asked, how to find the answer, and what happens without a decision."""

_PAID = {
    Paid.NO: "no",
    Paid.YES: "yes",
    Paid.UNKNOWN: "**unknown**: the request was sent and no response came",
}
_CHARGED = {
    Paid.NO: "no, as far as the account's records show",
    Paid.YES: "yes: the account's records show the charge",
    Paid.UNKNOWN: "the account's records do not say",
}


def explained(status: GenerationStatus, own_advice: str = "") -> GenerationStatus:
    """The status with its sentence and its advice.

    Args:
        status: Without them.
        own_advice: What a person can do, where the generation itself knows better than this module.
    """
    return status.model_copy(update={"message": _message(status), "advice": own_advice or _advice(status)})


def _message(status: GenerationStatus) -> str:
    if status.attention is Attention.NEEDS_DECISION and status.decisions:
        return _QUESTIONS[DecisionAction(status.decisions[0])][0]
    if status.stage is Stage.CANCELLED:
        return f"cancelled: {after_cancelling(status.paid)}"
    return _STAGES[status.stage] + (f"; {_attention(status)[0]}" if status.attention else "")


def _advice(status: GenerationStatus) -> str:
    if status.stage is Stage.CANCELLED:
        return "" if status.paid is Paid.NO else _START_AGAIN
    if status.attention is Attention.NEEDS_DECISION and status.decisions:
        return "Decide: " + "; ".join(f"{_command(status, one)} ({_DECISIONS[one][2]})" for one in _offered(status))
    advice = _attention(status)[1]
    if status.waiting_since and status.key_problem:
        advice = _AWAITING_KEY[status.key_problem] + _UNTIL_THEN
    return advice.format(**{name: code(command("starter.py", name, status.key)) for name in ("poll", "cancel")})


def _attention(status: GenerationStatus) -> tuple[str, str]:
    if status.attention is Attention.NEEDS_API_KEY and status.key_problem is KeyProblem.OUT_OF_QUOTA:
        return _OUT_OF_QUOTA
    return _ATTENTION[status.attention] if status.attention else ("", "")


def _offered(status: GenerationStatus) -> list[DecisionAction]:
    return [DecisionAction(decision) for decision in status.decisions]


def _command(status: GenerationStatus, action: DecisionAction) -> str:
    """What to type; it names the submission that it is about, so that it never decides about a later one.

    Whoever chose the key does not choose what a shell makes of it.
    """
    slot = ("--slot", str(status.slot)) if status.slot else ()
    return code(command("starter.py", "decide", status.key, *_DECISIONS[action][0].split(), *slot))


def _update(status: GenerationStatus, action: DecisionAction) -> str:
    """The same for the update `decide`."""
    given = _DECISIONS[action][1]
    return f'{given[:-1]}, "slot": {status.slot}}}' if status.slot else given


def markdown(status: GenerationStatus) -> str:
    """The current details of a workflow's page: what is going on, what a person is to do, then the facts."""
    lines = [f"{_title(status)}: {_going_on(status)}", "", *_what_to_do(status), "", "**What is known:**", ""]
    lines += [f"- {name}: {value}" for name, value in _facts(status).items() if value]
    lines += [f"- evidence: {prose(one)}" for one in status.evidence]
    lines += [f"- possibly the task {code(candidate)}" for candidate in status.candidates]
    lines += [f"- warning: {prose(warning)}" for warning in status.warnings]
    return "\n".join(lines)


def _title(status: GenerationStatus) -> str:
    title = f"**{status.stage.replace('_', ' ')}**"
    in_progress = status.stage in {Stage.FIRST_SEGMENT, Stage.EXTENDING} and status.progress is not None
    return f"{title} {status.progress} %" if in_progress else title


def _going_on(status: GenerationStatus) -> str:
    if status.stage is Stage.FAILED:
        return f"{prose(status.outcome)}: {prose(status.last_problem)}"
    if status.stage is Stage.DONE:
        full = status.outcome == "full"
        return "the 15 s video is stored" if full else f"only the 8 s clip: {prose(status.last_problem)}"
    return status.message


def _what_to_do(status: GenerationStatus) -> Iterator[str]:
    offered = _offered(status)
    if not offered:
        over = status.stage in {Stage.DONE, Stage.FAILED, Stage.CANCELLED}
        yield f"**What to do:** {status.advice or ('nothing.' if over else 'nothing; it continues by itself.')}"
        return
    _, first, otherwise = _QUESTIONS[offered[0]]
    by = f" Without a decision by {in_words(status.decide_by)} {otherwise}." if status.decide_by else ""
    yield f"**What to do:** {first}.{by}"
    yield ""
    yield "In a terminal, run one of:"
    yield ""
    yield from (f"- {_command(status, one)}: {_DECISIONS[one][2]}" for one in offered)
    yield ""
    yield "Or here: choose More Actions, Send an Update, `decide`, with one of these as its input:"
    yield ""
    yield from (f"- `{_update(status, one)}`: {_DECISIONS[one][2]}" for one in offered)


def _facts(status: GenerationStatus) -> dict[str, object]:
    return {
        "key": code(status.key),
        "model": status.model and code(status.model),
        "outcome": status.outcome and prose(status.outcome),
        "paid": status.paid and _PAID[status.paid],
        "cost": _cost(status),
        "waiting since": in_words(status.waiting_since),
        "charged": status.charged and _CHARGED[status.charged],
        "submitted": in_words(status.submitted_at),
        "polls": status.polls or None,
        "next poll": status.next_poll_at and f"{status.next_poll_at:%H:%M:%S} UTC",
        "task": status.task_id and code(status.task_id),
        "request id": status.request_id and code(status.request_id),
        "first segment": status.remix_id and code(status.remix_id),
        "extension": status.remix_id_extend and code(status.remix_id_extend),
        "task of the extension": status.extension_task_id and code(status.extension_task_id),
        "link": _link(status),
        "last problem": _problem(status),
        "video": status.video and code(status.video.uri),
        "8 s clip": status.first_video and status.first_video != status.video and code(status.first_video.uri),
    }


def _problem(status: GenerationStatus) -> str | None:
    over = status.stage in {Stage.DONE, Stage.FAILED}
    return prose(status.last_problem) if status.last_problem and not over else None


def _cost(status: GenerationStatus) -> str | None:
    if status.refunded:
        return f"nothing: it was refunded ({prose(status.refund_evidence)})"
    return None if status.quota is None else f"{status.quota}, in the gateway's own unit"


def _link(status: GenerationStatus) -> str | None:
    """When the gateway's link expires, as long as what it leads to is not stored."""
    if not status.has_link or status.video or (status.first_video and status.stage is not Stage.DELIVERING):
        return None
    expiry = (
        f"expires at {in_words(status.link_expires_at)}" if status.link_expires_at else "expiry unknown; typically 24 h"
    )
    return f"the gateway has given one; {expiry}"


def in_words(moment: datetime | None) -> str:
    """A moment of a status; empty where there is none."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if moment else ""
