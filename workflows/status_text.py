"""How a generation tells its story in Temporal's UI: pure text from a status."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from longtake.display import after_cancelling, code, command, prose
from longtake.models import Attention, DecisionAction, GenerationStatus, KeyProblem, Paid, Stage

_STAGES = {
    Stage.PREPARING: "checking the request, the gateway and the store; nothing is paid yet",
    Stage.SUBMITTING: "submitting to the gateway",
    Stage.AWAITING_DECISION: "waiting for a decision",
    Stage.FIRST_SEGMENT: "the first segment (8 s) is being made",
    Stage.EXTENDING: "the extension (7 s) is being made",
    Stage.DELIVERING: "downloading, verifying and storing",
    Stage.DONE: "done",
    Stage.FAILED: "failed",
}
"""What is going on in each stage but `CANCELLED`, where that depends on what was paid."""

_ATTENTION = {
    Attention.NEEDS_API_KEY: (
        "the gateway refuses the key",
        (
            "Give the worker a working LONGTAKE_GATEWAY_API_KEY of the same account; it goes on by itself, "
            "at once by {poll}."
        ),
    ),
    Attention.NEEDS_DECISION: ("a person must decide", ""),
    Attention.OVERDUE: (
        "overdue, still owned",
        "Nothing to do: it is looked at more slowly until the gateway's own limit. Never start it again elsewhere.",
    ),
    Attention.TASK_LOST: (
        "the gateway has given the task up without a verdict on the video",
        "Nothing to do yet: it is still watched. The upstream ids below name the job to the gateway's support.",
    ),
    Attention.POLL_FAILING: (
        "the last look told nothing",
        "Nothing to do yet: the next look follows by itself, or at once by {poll}.",
    ),
    Attention.DELIVERY_FAILING: (
        "the video is made and paid, and cannot be brought home yet",
        "Mend what the last problem names, before the link dies; it is tried again by itself.",
    ),
    Attention.LEDGER_UNAVAILABLE: (
        "the submission ledger cannot be used, so it is not known whether anything was sent",
        "Fix the store that the last problem names. The ledger is asked again by itself; nothing is sent meanwhile.",
    ),
}

_OUT_OF_QUOTA = (
    "out of quota: the gateway's account, or the API key's share of it, is used up",
    ("Top up the account, or give the API key a larger share of it; it goes on by itself, at once by {poll}."),
)
_AWAITING_KEY = {
    KeyProblem.REFUSED: "Give the worker a working LONGTAKE_GATEWAY_API_KEY",
    KeyProblem.OUT_OF_QUOTA: "Top up the gateway's account, or give the API key a larger share of it",
}
_UNTIL_THEN = (
    "; it is submitted then by itself, at once by {poll}. The gateway has made nothing and is asked "
    "every few minutes, by one for all that wait; {cancel} ends the waiting."
)

_DECISIONS = {
    DecisionAction.ACCEPT: ("accept", '{"action": "accept"}', "be content with the 8 s clip"),
    DecisionAction.RETRY: ("retry", '{"action": "retry"}', "pay for the extension again"),
    DecisionAction.ADOPT: ("adopt TASK_ID", '{"action": "adopt", "task_id": "…"}', "it was paid, and this is its task"),
    DecisionAction.RESUBMIT: (
        "resubmit",
        '{"action": "resubmit"}',
        "surely nothing was paid: send it again, which pays",
    ),
    DecisionAction.ABANDON: ("abandon", '{"action": "abandon"}', "give it up"),
}
"""The words of the command line, the input of the update `decide`, and what it means."""

_QUESTIONS = {
    DecisionAction.ACCEPT: "the extension failed and the 8 s clip is stored; a person must decide whether it is enough",
    DecisionAction.ADOPT: "it was sent and no answer came; a person must find out whether it was paid",
}
"""What is asked, by the first thing that is offered."""
_FIRST = {
    DecisionAction.ACCEPT: "look at the 8 s clip, then decide",
    DecisionAction.ADOPT: "look in the gateway's console for a task of this model and that time, then decide",
}
_OTHERWISE = {
    DecisionAction.ACCEPT: "the 8 s clip is the result",
    DecisionAction.ADOPT: "it ends as `Abandoned`, and nothing is sent",
}
"""What happens where nobody decides in time."""

_PAID = {Paid.NO: "no", Paid.YES: "yes", Paid.UNKNOWN: "**nobody knows**: a submission was sent and not answered"}


_CHARGED = {
    Paid.NO: "no, as far as the account's records show",
    Paid.YES: "yes: the account's records show the charge",
    Paid.UNKNOWN: "the account's records do not say",
}
"""What the account's records show of a submission in doubt; the evidence below says why."""


def message_for(
    stage: Stage,
    attention: Attention | None,
    offered: Sequence[DecisionAction] = (),
    key_problem: KeyProblem | None = None,
    *,
    paid: Paid | None = None,
) -> str:
    """One sentence: what is going on."""
    if attention is Attention.NEEDS_DECISION and offered:
        return _QUESTIONS[offered[0]]
    if stage is Stage.CANCELLED:
        return f"cancelled: {after_cancelling(paid)}"
    return _STAGES[stage] + (f"; {_why(attention, key_problem)[0]}" if attention else "")


def advice_for(
    attention: Attention | None,
    key: str,
    offered: Sequence[DecisionAction] = (),
    slot: int | None = None,
    key_problem: KeyProblem | None = None,
) -> str:
    """What a person can do now, with the command; empty where there is nothing to do."""
    if attention is Attention.NEEDS_DECISION:
        return "Decide: " + "; ".join(f"{_command(key, action, slot)} ({_DECISIONS[action][2]})" for action in offered)
    return _filled(_why(attention, key_problem)[1], key) if attention else ""


def advice_awaiting_key(key_problem: KeyProblem, key: str) -> str:
    """The same for a submission that waits for the API key."""
    return _filled(_AWAITING_KEY[key_problem] + _UNTIL_THEN, key)


def _filled(advice: str, key: str) -> str:
    commands = {word: code(command("starter.py", word, key)) for word in ("poll", "cancel")}
    return advice.format(**commands)


def _why(attention: Attention, key_problem: KeyProblem | None) -> tuple[str, str]:
    """What is wrong, and what to do."""
    out_of_quota = attention is Attention.NEEDS_API_KEY and key_problem is KeyProblem.OUT_OF_QUOTA
    return _OUT_OF_QUOTA if out_of_quota else _ATTENTION[attention]


def _command(key: str, action: DecisionAction, slot: int | None) -> str:
    """What to type; it names the submission that it is about, so that it never decides about a later one.

    Whoever chose the key does not choose what a shell makes of it.
    """
    named = ("--slot", str(slot)) if slot else ()
    return code(command("starter.py", "decide", key, *_DECISIONS[action][0].split(), *named))


def _input(action: DecisionAction, slot: int | None) -> str:
    """The same for the update `decide`."""
    given = _DECISIONS[action][1]
    return f'{given[:-1]}, "slot": {slot}}}' if slot else given


def markdown(status: GenerationStatus) -> str:
    """The current details of a workflow's page: what is going on, what a person is to do, then the facts."""
    lines = [f"{_title(status)}: {_going_on(status)}", "", *_what_to_do(status), "", "**What is known:**", ""]
    lines += [f"- {name}: {value}" for name, value in _facts(status).items() if value]
    lines += [f"- evidence: {prose(said)}" for said in status.evidence]
    lines += [f"- it may be the task {code(candidate)}" for candidate in status.candidates]
    lines += [f"- warning: {prose(warning)}" for warning in status.warnings]
    return "\n".join(lines)


def _title(status: GenerationStatus) -> str:
    title = f"**{status.stage.replace('_', ' ')}**"
    being_made = status.stage in {Stage.FIRST_SEGMENT, Stage.EXTENDING} and status.progress is not None
    return f"{title} {status.progress} %" if being_made else title


def _going_on(status: GenerationStatus) -> str:
    if status.stage is Stage.FAILED:
        return f"{prose(status.outcome)}: {prose(status.last_problem)}"
    if status.stage is Stage.DONE:
        return (
            "the 15 s video is stored"
            if status.outcome == "full"
            else f"only the 8 s clip: {prose(status.last_problem)}"
        )
    return status.message


def _what_to_do(status: GenerationStatus) -> Iterator[str]:
    offered = [DecisionAction(decision) for decision in status.decisions]
    if not offered:
        over = status.stage in {Stage.DONE, Stage.FAILED, Stage.CANCELLED}
        yield f"**What to do:** {status.advice or ('nothing.' if over else 'nothing; it goes on by itself.')}"
        return
    by = f" Without a decision by {in_words(status.decide_by)} {_OTHERWISE[offered[0]]}." if status.decide_by else ""
    yield f"**What to do:** {_FIRST[offered[0]]}.{by}"
    yield ""
    yield "In a terminal, one of:"
    yield ""
    yield from (f"- {_command(status.key, one, status.slot)}: {_DECISIONS[one][2]}" for one in offered)
    yield ""
    yield "Or here, by More Actions, Send an Update, `decide`, with one of these as its input:"
    yield ""
    yield from (f"- `{_input(one, status.slot)}`: {_DECISIONS[one][2]}" for one in offered)


def _facts(status: GenerationStatus) -> dict[str, object]:
    return {
        "key": code(status.key),
        "model": status.model and code(status.model),
        "outcome": status.outcome and prose(status.outcome),
        "paid": status.paid and _PAID[status.paid],
        "cost": _cost(status),
        "waits since": in_words(status.waiting_since),
        "charged": status.charged and _CHARGED[status.charged],
        "submitted": in_words(status.submitted_at),
        "looks so far": status.polls or None,
        "next look": status.next_poll_at and f"{status.next_poll_at:%H:%M:%S} UTC",
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
    """How long the gateway's link lives, as long as what it leads to is not stored."""
    if not status.has_link or status.video or (status.first_video and status.stage is not Stage.DELIVERING):
        return None
    if status.link_expires_at:
        return f"to what the gateway made; it dies at {in_words(status.link_expires_at)}"
    return "to what the gateway made; it does not say how long it lives (others': about 24 h)"


def in_words(moment: datetime | None) -> str:
    """A moment of a status; empty where there is none."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if moment else ""
