"""Asking a person: the question, the update `decide` that answers it, and the wait for it."""

import contextlib
from collections.abc import Iterable
from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from longtake.models import Attention, Decision, DecisionAction, Stage
from longtake.request.rules import TASK_ID_RULE, is_task_id
from workflows.reporting import report
from workflows.state import GenerationState, Question


def ask(
    state: GenerationState, actions: Iterable[DecisionAction], *, by: datetime | None, slot: int | None = None
) -> None:
    """Let the update `decide` choose one of these actions, from now on until the decision is taken up.

    Args:
        state: Of the generation that asks.
        actions: The choices.
        by: When the workflow stops waiting; None: never.
        slot: Which submission it is about, if it is about one.
    """
    state.enter(Stage.AWAITING_DECISION, Attention.NEEDS_DECISION)
    state.question = Question(actions=tuple(actions), by=by, slot=slot)
    report(state)


async def await_decision(state: GenerationState, *, within: timedelta | None) -> Decision | None:
    """Wait, durably and visibly, for the answer; None where nobody decided in time."""
    with contextlib.suppress(TimeoutError):
        await workflow.wait_condition(
            lambda: state.decision is not None, timeout=within, timeout_summary="until somebody decides"
        )
    decision, state.decision = state.decision, None
    if decision:
        state.question = None
    return decision


def check_decision(state: GenerationState, decision: Decision) -> None:
    """Judge a decision before the update is accepted.

    Raises:
        ApplicationError: `NotAwaited` or `NotOffered`; the update leaves no trace in the history.
    """
    question = state.question
    if question is None:
        raise ApplicationError("no decision is awaited now", type="NotAwaited")
    if state.decision is not None:
        raise ApplicationError("somebody has just decided", type="NotAwaited")
    if decision.action not in question.actions:
        choices = ", ".join(question.actions)
        raise ApplicationError(f"{decision.action} is not offered now; choose one of: {choices}", type="NotOffered")
    if decision.slot is not None and decision.slot != question.slot:
        rule = f"this decision is about submission {decision.slot}, and {question.slot or 'none'} is asked about now"
        raise ApplicationError(f"{rule}: read the status, then decide again", type="NotOffered")
    if (decision.action is DecisionAction.ADOPT) != (decision.task_id is not None):
        raise ApplicationError("adopt needs a task_id, and no other action takes one", type="NotOffered")
    if decision.task_id is not None and not is_task_id(decision.task_id):
        raise ApplicationError(f"this cannot be a task of the gateway: {TASK_ID_RULE}", type="NotOffered")
