"""After the extension failed: is the 8 s clip the result, or is the extension paid for again?"""

from temporalio import workflow

from longtake.models import (
    DecisionAction,
    DeliveryKind,
    ExtensionInput,
    OnExtendFailed,
    Paid,
    StoredVideo,
    TaskState,
    UncollectedExtension,
)
from workflows.failures import StepFailed
from workflows.state import GenerationState
from workflows.steps.decide import ask, await_decision
from workflows.steps.deliver import deliver
from workflows.steps.poll import poll_until_verdict
from workflows.steps.submit import submit


async def collect_extension(state: GenerationState) -> StoredVideo | None:
    """Poll and deliver the retry of an extension that an earlier run of this key has paid for, or perhaps has."""
    sent = state.policy.extensions_sent
    if not sent or state.extension_number > sent:
        return None
    if problem := _no_retry_because(state):
        state.uncollected = UncollectedExtension(number=sent, reason=problem)
        state.warn(f"retry {sent} of the extension is not collected: {problem}")
        return None
    return await _retry(state, range(sent, sent + 1))


async def choose_after_failed_extension(state: GenerationState) -> OnExtendFailed:
    """What to do: as the request says, unless a retry is under way; `ask` asks a person."""
    sent = state.policy.extensions_sent
    if state.uncollected:
        return OnExtendFailed.FALLBACK
    if state.extension_number > sent:  # continued as new while it is being retried
        return OnExtendFailed.RETRY
    choice = state.request.on_extend_failed
    if choice is OnExtendFailed.RETRY and sent:
        state.warn("the extension is not paid for once more: starting a key again pays nothing")
        return OnExtendFailed.FALLBACK
    if choice is not OnExtendFailed.ASK:
        return choice
    retry = (DecisionAction.RETRY,) if state.policy.extension_retries > sent else ()
    window = state.policy.decision_window or None
    ask(state, (DecisionAction.ACCEPT, *retry), by=workflow.now() + window if window else None)
    decision = await await_decision(state, within=window)
    if decision is None:
        state.warn("nobody decided in time: the 8 s clip is the result")
        return OnExtendFailed.FALLBACK
    return OnExtendFailed.RETRY if decision.action is DecisionAction.RETRY else OnExtendFailed.FALLBACK


async def retry_extension(state: GenerationState) -> StoredVideo | None:
    """Pay for the extension again, as often as the operator allows; the 8 s clip is safe meanwhile."""
    if problem := _no_retry_because(state):
        state.warn(f"the extension was not retried: {problem}")
        return None
    first = max(state.policy.extensions_sent + 1, state.extension_number)
    return await _retry(state, range(first, state.policy.extension_retries + 1))


def _no_retry_because(state: GenerationState) -> str | None:
    if state.record is None or state.record.remix_id is None:
        return "its remix_id is not known"
    return None if state.policy.extension_retries else "no gateway that does it is configured"


async def _retry(state: GenerationState, numbers: range) -> StoredVideo | None:
    """Submit these retries, one after the other, until one brings a video.

    Only a verdict that a retry failed leads to the next one. Whatever else ends it, an unknown outcome above all,
    may have been paid and made: it is never paid for again, and the result says that it can still be collected.

    Raises:
        StepFailed: `DeliveryFailed`: the 15 s video was made and paid, and is still to be collected.
    """
    remix_id = state.record.remix_id if state.record else None
    assert remix_id is not None  # noqa: S101 - `_no_retry_because`
    for number in numbers:
        try:
            if state.extension_number != number:  # else continued as new while it is polled
                state.extension_number, state.extension_task = number, None
                await submit(state, ExtensionInput(remix_id=remix_id, number=number))
            task = state.extension_task
            assert task is not None  # noqa: S101 - submitted
            verdict = await poll_until_verdict(state, task)
        except StepFailed as failure:
            task_id = state.extension_task and state.extension_task.id
            named, reason = f" (task {task_id})" if task_id else "", f"{failure.kind}: {failure.message}"
            state.warn(f"retry {number} of the extension{named}: {reason}")
            if task_id or failure.details.paid is not Paid.NO:
                state.uncollected = UncollectedExtension(number=number, task_id=task_id, reason=reason)
            return None
        if verdict.state is TaskState.COMPLETED:
            return await deliver(state, DeliveryKind.FULL, extension=True)
        problem = verdict.error_message or "it failed again"
        state.warn(f"retry {number} of the extension (task {task.id}) failed: {problem}")
    return None
