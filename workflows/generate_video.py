"""One generation, from the request to the stored video: read `run` aloud.

Everything that takes part in the outcome is durable here; everything that touches the world is an activity. The state
machine is drawn in `docs/design.md`; each step has a module of its own beside this one.
"""

from typing import Any

from pydantic import ValidationError
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from longtake.catalog import InvalidRequest, check_request, is_task_id, warnings_for
    from longtake.models import (
        CarriedGeneration,
        Decision,
        DecisionAction,
        DeliveryKind,
        FailureDetails,
        GenerateVideoInput,
        GenerateVideoResult,
        GenerationStatus,
        OnExtendFailed,
        Paid,
        StoredVideo,
        TaskRecord,
        TaskState,
    )
    from longtake.temporal import key_of
    from workflows import submitting
    from workflows.delivering import deliver, deliver_first_as_well
    from workflows.generation import Ending, Generation
    from workflows.watching import Watch


_NOTHING = RawValue(Payload())


@workflow.defn(name="GenerateVideo")
class GenerateVideoWorkflow:
    """A paid generation that is never paid twice, never lost, and can always be asked how it stands."""

    def __init__(self) -> None:
        self._generation = Generation(key_of(workflow.info().workflow_id))

    @workflow.run
    async def run(self, given: RawValue = _NOTHING) -> GenerateVideoResult:
        """Submit, look until there is a verdict, branch, deliver.

        Args:
            given: A `GenerateVideoInput` as plain JSON; or a `CarriedGeneration`, when the workflow continues as new.
                Raw, because what cannot be decoded would hang the workflow; so it is decoded and judged here, and
                refused with every problem named.
        """
        generation = self._generation
        try:
            request, carried = _decode(given)
            generation.asked = _accept(request)
            if carried:
                generation.restore(carried)
            else:
                generation.warnings += warnings_for(generation.request)
                await submitting.prepare(generation)
                await submitting.submit(generation)
            verdict = await self._verdict()
            match verdict.state:
                case TaskState.COMPLETED:
                    return await self._conclude_full()
                case TaskState.EXTEND_FAILED:
                    return await self._conclude_extend_failed(verdict)
                case _:
                    raise _refusal(generation, verdict)
        except Ending as ending:
            generation.fail(ending)
        except BaseException as error:
            if is_cancelled_exception(error):
                generation.cancelled()
            raise

    @workflow.query(description="Where this generation stands, and what can be done about it.")
    def status(self) -> GenerationStatus:
        """Where this generation stands; works on finished ones too."""
        return self._generation.status()

    @workflow.update(description="Look at the task now, for example because the key has been mended.")
    def resume(self) -> GenerationStatus:
        """Look now instead of at the planned time."""
        self._generation.look_now = True
        return self._generation.status()

    @workflow.update(description='Decide what a person must decide, for example {"action": "accept"}.')
    def decide(self, decision: Decision) -> GenerationStatus:
        """Take a decision that was asked for."""
        self._generation.decide(decision)
        return self._generation.status()

    @decide.validator
    def _check_decision(self, decision: Decision) -> None:
        offered = self._generation.offered
        if not offered:
            raise ApplicationError("no decision is awaited now", type="NotAwaited")
        if self._generation.is_decided:
            raise ApplicationError("somebody has just decided", type="NotAwaited")
        if decision.action not in offered:
            choices = ", ".join(offered)
            raise ApplicationError(f"{decision.action} is not offered now; choose one of: {choices}", type="NotOffered")
        asked = self._generation.asked_slot
        if decision.slot is not None and decision.slot != asked:
            rule = f"this decision is about submission {decision.slot}, and {asked or 'none'} is asked about now"
            raise ApplicationError(f"{rule}: look at the status, then decide again", type="NotOffered")
        if (decision.action is DecisionAction.ADOPT) != (decision.task_id is not None):
            raise ApplicationError("adopt needs a task_id, and nothing else takes one", type="NotOffered")
        if decision.task_id is not None and not is_task_id(decision.task_id):
            rule = "a task id has 1 to 200 characters and no spaces"
            raise ApplicationError(f"this cannot be a task of the gateway: {rule}", type="NotOffered")

    async def _verdict(self) -> TaskRecord:
        generation = self._generation
        if generation.record and generation.extension:  # continued as new while a retried extension is watched
            return generation.record
        return await Watch(generation, generation.task).verdict()

    async def _conclude_full(self) -> GenerateVideoResult:
        generation = self._generation
        video = await deliver(generation, DeliveryKind.FULL)
        if generation.request.keep_first:
            await deliver_first_as_well(generation)
        return generation.result("full", video)

    async def _conclude_extend_failed(self, verdict: TaskRecord) -> GenerateVideoResult:
        """Salvage first: the 8 s clip's link is dying. Then what the caller wants."""
        generation = self._generation
        clip = generation.first_video = generation.first_video or await deliver(generation, DeliveryKind.FIRST)
        reason = generation.last_problem = verdict.error_message or "the extension failed"
        match await self._wish_after_failed_extension():
            case OnExtendFailed.FAIL:
                advice = "The 8 s clip is stored: see first_video. Another try at 15 s needs a new key, and is paid."
                raise Ending("ExtensionFailed", reason, generation.known(advice=advice))
            case OnExtendFailed.RETRY:
                if video := await self._retry_extension():
                    return generation.result("full", video)
        return generation.result("fallback", clip)

    async def _wish_after_failed_extension(self) -> OnExtendFailed:
        generation = self._generation
        if generation.extension:  # continued as new while it is being retried
            return OnExtendFailed.RETRY
        if generation.request.on_extend_failed is not OnExtendFailed.ASK:
            return generation.request.on_extend_failed
        retry = (DecisionAction.RETRY,) if generation.policy.extension_retries else ()
        window = generation.policy.decision_window or None
        generation.offer((DecisionAction.ACCEPT, *retry), by=workflow.now() + window if window else None)
        decision = await generation.decision(within=window)
        if decision is None:
            generation.warnings.append("nobody decided in time: the 8 s clip is the result")
            return OnExtendFailed.FALLBACK
        return OnExtendFailed.RETRY if decision.action is DecisionAction.RETRY else OnExtendFailed.FALLBACK

    async def _retry_extension(self) -> StoredVideo | None:
        """Pay for the extension again, as often as the operator allows; the 8 s clip is safe meanwhile.

        Only a verdict that the retry failed leads to the next one. Whatever else ends it, an unknown outcome above
        all, may have been paid and made, and is never paid for again.

        Raises:
            Ending: `DeliveryFailed`: the 15 s video was made and paid, and is still to be collected.
        """
        generation = self._generation
        remix_id = generation.record and generation.record.remix_id
        if not generation.policy.extension_retries or not remix_id:
            why = "no gateway that does it is configured" if remix_id else "its remix_id is not known"
            generation.warnings.append(f"the extension was not retried: {why}")
            return None
        for number in range(max(1, generation.extension_number), generation.policy.extension_retries + 1):
            try:
                if generation.extension is None:
                    generation.extension_number = number
                    generation.extension = await submitting.submit_extension(generation, remix_id, number)
                task_id = generation.extension.task_id
                record = await Watch(generation, generation.extension, extension=True).verdict()
            except Ending as ending:
                task = f" (task {generation.extension.task_id})" if generation.extension else ""
                generation.warnings.append(f"retry {number} of the extension{task}: {ending.kind}: {ending.message}")
                return None
            if record.state is TaskState.COMPLETED:
                return await deliver(generation, DeliveryKind.FULL, task_id=task_id)
            problem = record.error_message or "it failed again"
            generation.warnings.append(f"retry {number} of the extension (task {task_id}) failed: {problem}")
            generation.extension = None
        return None


def _decode(given: RawValue) -> tuple[Any, CarriedGeneration | None]:
    """The request, whatever it is, and what the run before carried over, if there was one."""
    try:
        decoded = workflow.payload_converter().from_payload(given.payload)
    except Exception:  # noqa: BLE001 - converters raise what they like, and any escape would hang the workflow
        return None, None
    if workflow.info().continued_run_id is None:
        return decoded, None
    try:
        carried = CarriedGeneration.model_validate(decoded)
    except ValidationError:
        # Not ours: somebody's retry policy or cron schedule has started the same request once more.
        return decoded, None
    return carried.request, carried


def _accept(request: Any) -> GenerateVideoInput:
    """Judge a request.

    Raises:
        Ending: `InvalidRequest`, with every problem.
    """
    try:
        return check_request(request)
    except InvalidRequest as error:
        advice = "Mend the request and start it again with the same key."
        details = FailureDetails(paid=Paid.NO, problems=error.problems, advice=advice)
        raise Ending("InvalidRequest", str(error), details) from None


def _refusal(generation: Generation, verdict: TaskRecord) -> Ending:
    advice = "Change what the message names; a new request needs a new key."
    message = verdict.error_message or "the first segment failed"
    return Ending("GenerationFailed", message, generation.known(advice=advice))
