"""One generation, from the request to the stored video: read `run` aloud.

Everything that decides the outcome is durable here; everything that touches the world is an activity. The state machine
is drawn in `docs/design.md`; each step has a module of its own in `workflows/steps`.
"""

from collections.abc import Iterator
from typing import Any

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from longtake.models import (
        Decision,
        DeliveryKind,
        FailureDetails,
        GenerateVideoInput,
        GenerateVideoResult,
        GenerationStatus,
        OnExtendFailed,
        Paid,
        Problem,
        StoredVideo,
        TaskRecord,
        TaskState,
    )
    from longtake.request.rules import InvalidRequest, check_request, warnings_for
    from longtake.temporal.names import InvalidKey, key_of, workflow_id
    from workflows import outcome
    from workflows.failures import StepFailed
    from workflows.reporting import status_of
    from workflows.state import GenerationState
    from workflows.steps.decide import check_decision
    from workflows.steps.deliver import deliver, deliver_first_as_well
    from workflows.steps.extension import choose_after_failed_extension, collect_extension, retry_extension
    from workflows.steps.poll import poll_for_refund, poll_until_verdict
    from workflows.steps.prepare import prepare
    from workflows.steps.submit import submit

_NO_INPUT = RawValue(Payload())


@workflow.defn(name="GenerateVideo")
class GenerateVideoWorkflow:
    """A paid generation that is never paid twice, never lost, and can always be asked where it stands."""

    def __init__(self) -> None:
        self._state = GenerationState(key=key_of(workflow.info().workflow_id))

    @workflow.run
    async def run(self, given: RawValue = _NO_INPUT) -> GenerateVideoResult:
        """Submit, poll until there is a verdict, branch, deliver.

        Args:
            given: A `GenerateVideoInput` as plain JSON; or a `GenerationState`, when the workflow continues as new.
                Raw, because the workflow would hang on what the SDK cannot decode; so it is decoded and judged here,
                and refused with every problem named.
        """
        request, carried = _decode(given)
        state = self._state = carried or self._state
        try:
            if not carried:
                state.input = _accept(request)
                state.warn(*warnings_for(state.input))
                await prepare(state)
                await submit(state)
            verdict = await self._verdict()
            match verdict.state:
                case TaskState.COMPLETED:
                    return await self._conclude_full()
                case TaskState.EXTEND_FAILED:
                    return await self._conclude_extend_failed(verdict)
                case _:
                    await poll_for_refund(state)
                    raise _generation_failed(verdict)
        except StepFailed as failure:
            raise outcome.failed(state, failure) from None
        except BaseException as error:
            if is_cancelled_exception(error):
                outcome.cancelled(state)
            raise

    @workflow.query(description="Where this generation stands, and what can be done about it.")
    def status(self) -> GenerationStatus:
        """Where this generation stands; works on finished ones too."""
        return status_of(self._state)

    @workflow.update(description="Poll now, for example because the API key has been replaced or topped up.")
    def poll_now(self) -> GenerationStatus:
        """Poll, or submit what waits for the API key, now instead of at the planned time."""
        self._state.poll_requested = True
        return status_of(self._state)

    @poll_now.validator
    def _check_poll_now(self) -> None:
        state = self._state
        if not state.polling and not state.awaiting_key:
            reason = f"no task is polled now, and none waits for the API key: the stage is {state.stage}"
            raise ApplicationError(reason, type="NotPolling")

    @workflow.update(description='Decide what a person must decide, for example {"action": "accept"}.')
    def decide(self, decision: Decision) -> GenerationStatus:
        """Take a decision that was asked for."""
        self._state.decision = decision
        return status_of(self._state)

    @decide.validator
    def _check_decision(self, decision: Decision) -> None:
        check_decision(self._state, decision)

    async def _verdict(self) -> TaskRecord:
        state = self._state
        if state.record and state.extension_task:  # continued as new while a retried extension is polled
            return state.record
        return await poll_until_verdict(state, state.task)

    async def _conclude_full(self) -> GenerateVideoResult:
        state = self._state
        video = await deliver(state, DeliveryKind.FULL)
        if state.request.keep_first:
            await deliver_first_as_well(state)
        return outcome.completed(state, "full", video)

    async def _conclude_extend_failed(self, verdict: TaskRecord) -> GenerateVideoResult:
        """Salvage first: the 8 s clip's link expires. Then what is paid for already, then what the caller wants."""
        state = self._state
        clip = state.first_video = state.first_video or await deliver(state, DeliveryKind.FIRST)
        reason = verdict.error_message or "the extension failed"
        if state.extension_task is None:  # else continued as new while it is retried, with problems of its own
            state.last_problem = reason
        video = await collect_extension(state)
        if not video:
            match await choose_after_failed_extension(state):
                case OnExtendFailed.FAIL:
                    await poll_for_refund(state)
                    raise _extension_failed(reason, clip)
                case OnExtendFailed.RETRY:
                    video = await retry_extension(state)
        await poll_for_refund(state)
        if video:
            return outcome.completed(state, "full", video)
        state.last_problem = state.last_problem or reason
        return outcome.completed(state, "fallback", clip)


def _decode(given: RawValue) -> tuple[Any, GenerationState | None]:
    """The request, whatever it is, or the state that the run before passed on.

    Raises:
        ValidationError: The run before was a newer worker's. It fails the workflow task, not the workflow; Temporal
            retries until a worker can read it, because something was paid for.
    """
    try:
        decoded = workflow.payload_converter().from_payload(given.payload)
    except Exception:  # noqa: BLE001 - converters raise what they like, and any escape would hang the workflow
        return None, None
    # A retry policy or a cron schedule starts whatever it was given once more: whoever gives it the marker is not us.
    info = workflow.info()
    continued = info.continued_run_id is not None and not info.cron_schedule and info.retry_policy is None
    if not continued or not isinstance(decoded, dict) or "carried" not in decoded:
        return decoded, None
    state = GenerationState.model_validate(decoded)
    # Whose it is goes by the workflow's id alone: by another's key the ledger would hand out another's video.
    state.key = key_of(info.workflow_id)
    state.show()  # by the run before: Temporal keeps its search attributes
    return None, state


def _accept(request: Any) -> GenerateVideoInput:
    """Judge a request, and the way it was started: any SDK may start this workflow, by any id.

    Raises:
        StepFailed: `InvalidRequest`, with every problem.
    """
    started = tuple(_start_problems())
    try:
        # A model may have been retired since this key was paid: what is offered is judged once the ledger is read.
        accepted = check_request(request, offered=False)
        if not started:
            return accepted
        error = InvalidRequest(started)
    except InvalidRequest:
        error = InvalidRequest((*started, *_all_problems(request)))
    advice = "Fix the request and start it again with the same key."
    if started:
        advice = "Start it again as the problems say."
    raise StepFailed("InvalidRequest", str(error), FailureDetails(paid=Paid.NO, problems=error.problems, advice=advice))


def _all_problems(request: Any) -> tuple[Problem, ...]:
    try:
        check_request(request)
    except InvalidRequest as error:
        return error.problems
    return ()


def _start_problems() -> Iterator[Problem]:
    """What is wrong with how this workflow was started."""
    info = workflow.info()
    try:
        known = workflow_id(key_of(info.workflow_id)) == info.workflow_id
        rule = "must be video-<key>"
    except InvalidKey as error:
        known, rule = False, f"must be video-<key>; {error}"
    if not known:
        # The ledger goes by the key, and so do commands that people copy from a page.
        yield Problem(field="workflow_id", rule=rule)
    if info.cron_schedule:
        rule = "must be absent: one key is one video, and is paid once; give each one a key (terminate this schedule)"
        yield Problem(field="cron_schedule", rule=rule)
    if info.retry_policy is not None:
        rule = "must be absent: the workflow retries by itself; after a failure start the same key again"
        yield Problem(field="retry_policy", rule=rule)


def _generation_failed(verdict: TaskRecord) -> StepFailed:
    advice = "Change what the message names; a new request needs a new key."
    message = verdict.error_message or "the first segment failed"
    return StepFailed("GenerationFailed", message, FailureDetails(advice=advice))


def _extension_failed(reason: str, clip: StoredVideo) -> StepFailed:
    advice = f"The 8 s clip is stored at {clip.uri}. Another try at 15 s needs a new key, and is paid."
    return StepFailed("ExtensionFailed", reason, FailureDetails(advice=advice))
