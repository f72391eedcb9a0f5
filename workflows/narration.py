"""How a generation tells its story in Temporal's UI: pure text from a status."""

from collections.abc import Sequence

from longtake.models import Attention, DecisionAction, GenerationStatus, Stage

_STAGES = {
    Stage.PREPARING: "checking the request, the gateway and the store; nothing is paid yet",
    Stage.SUBMITTING: "submitting to the gateway",
    Stage.AWAITING_DECISION: "waiting for a decision",
    Stage.FIRST_SEGMENT: "the first segment (8 s) is being made",
    Stage.EXTENDING: "the extension (7 s) is being made",
    Stage.DELIVERING: "downloading, verifying and storing",
    Stage.DONE: "done",
    Stage.FAILED: "failed",
    Stage.CANCELLED: "cancelled: nobody waits any more; what was submitted may still be made, and cost",
}

_ATTENTION = {
    Attention.NEEDS_KEY: (
        "the gateway refuses the key",
        (
            "Give the worker a working LONGTAKE_GATEWAY_API_KEY of the same account; it goes on by itself, "
            "at once by `starter.py resume {key}`."
        ),
    ),
    Attention.NEEDS_DECISION: ("a person must decide", ""),
    Attention.STALLED: (
        "overdue, still owned",
        "Nothing to do: it is looked at more slowly until the gateway's own limit. Never start it again elsewhere.",
    ),
    Attention.GATEWAY_LOST: (
        "the gateway has given the task up without a verdict on the video",
        "Nothing to do yet: it is still watched. The upstream ids below name the job to the gateway's support.",
    ),
    Attention.GATEWAY_TROUBLE: ("the last look told nothing", ""),
}


_DECISIONS = {
    DecisionAction.ACCEPT: ("accept", '{"action": "accept"}', "be content with the 8 s clip"),
    DecisionAction.RETRY: ("retry", '{"action": "retry"}', "pay for the extension again"),
    DecisionAction.ADOPT: ("adopt TASK_ID", '{"action": "adopt", "task_id": "…"}', "it was paid, and this is its task"),
    DecisionAction.SUBMIT_AGAIN: ("submit_again", '{"action": "submit_again"}', "nothing was paid: send it again"),
    DecisionAction.ABANDON: ("abandon", '{"action": "abandon"}', "give it up"),
}
"""The words of the command line, the input of the update `decide`, and what it means."""


def message_for(stage: Stage, attention: Attention | None) -> str:
    """One sentence: what is going on."""
    return _STAGES[stage] + (f"; {_ATTENTION[attention][0]}" if attention else "")


def advice_for(attention: Attention | None, key: str, offered: Sequence[DecisionAction] = ()) -> str:
    """What a person can do now, with the command; empty where there is nothing to do."""
    if attention is Attention.NEEDS_DECISION:
        return "Decide: " + "; ".join(
            f"`starter.py decide {key} {_DECISIONS[action][0]}` ({_DECISIONS[action][2]})" for action in offered
        )
    return _ATTENTION[attention][1].format(key=key) if attention else ""


def updates_for(offered: Sequence[DecisionAction]) -> list[str]:
    """The same as inputs of the update `decide`, for Temporal's UI and any SDK."""
    return [f"`decide` with `{_DECISIONS[action][1]}`: {_DECISIONS[action][2]}" for action in offered]


def markdown(status: GenerationStatus) -> str:
    """The current details of a workflow's page."""
    title = f"**{status.stage.replace('_', ' ')}**" + (f" {status.progress} %" if status.progress is not None else "")
    rows = {
        "model": status.model,
        "outcome": status.outcome,
        "looks so far": status.polls or None,
        "next look": status.next_look_at and f"{status.next_look_at:%H:%M:%S} UTC",
        "task": status.task_id and f"`{status.task_id}`",
        "first segment": status.remix_id and f"`{status.remix_id}`",
        "extension": status.remix_id_extend and f"`{status.remix_id_extend}`",
        "last problem": status.last_problem,
        "video": status.video and f"`{status.video.uri}`",
        "8 s clip": status.first_video and f"`{status.first_video.uri}`",
    }
    lines = [f"{title}: {status.message}", ""]
    if status.advice:
        lines += [f"**What to do:** {status.advice}", ""]
    if offered := [DecisionAction(decision) for decision in status.decisions]:
        lines += ["Or send an update from this page:", *(f"- {line}" for line in updates_for(offered)), ""]
    lines += [f"- {name}: {value}" for name, value in rows.items() if value]
    lines += [f"- evidence: {said}" for said in status.evidence]
    lines += [f"- it may be the task `{candidate}`" for candidate in status.candidates]
    lines += [f"- warning: {warning}" for warning in status.warnings]
    return "\n".join(lines)
