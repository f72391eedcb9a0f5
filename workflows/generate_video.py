"""One generation, from the request to the stored video: read `run` aloud.

Everything that takes part in the outcome is durable here; everything that touches the world is an activity. The state
machine is drawn in `docs/design.md`; each step has a module of its own beside this one.
"""

from collections.abc import Iterator
from typing import Any

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
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
        Problem,
        StoredVideo,
        TaskRecord,
        TaskState,
        UncollectedExtension,
    )
    from longtake.request.rules import TASK_ID_RULE, InvalidRequest, check_request, is_task_id, warnings_for
    from longtake.temporal.connection import InvalidKey, key_of, workflow_id
    from workflows.state import Generation, StepFailed
    from workflows.steps.deliver import deliver, deliver_first_as_well
    from workflows.steps.poll import Watch, poll_for_refund
    from workflows.steps.submit import prepare, submit, submit_extension


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
            if carried:
                generation.restore(carried)
            else:
                generation.asked = _accept(request)
                generation.warnings += warnings_for(generation.request)
                await prepare(generation)
                await submit(generation)
            verdict = await self._verdict()
            match verdict.state:
                case TaskState.COMPLETED:
                    return await self._conclude_full()
                case TaskState.EXTEND_FAILED:
                    return await self._conclude_extend_failed(verdict)
                case _:
                    await poll_for_refund(generation)
                    raise _refusal(generation, verdict)
        except StepFailed as failed:
            generation.fail(failed)
        except BaseException as error:
            if is_cancelled_exception(error):
                generation.cancelled()
            raise

    @workflow.query(description="Where this generation stands, and what can be done about it.")
    def status(self) -> GenerationStatus:
        """Where this generation stands; works on finished ones too."""
        return self._generation.status()

    @workflow.update(description="Ask the gateway now, for example because the key has been mended or topped up.")
    def poll_now(self) -> GenerationStatus:
        """Look, or submit what waits for the key, now instead of at the planned time."""
        self._generation.poll_requested = True
        return self._generation.status()

    @poll_now.validator
    def _check_poll_now(self) -> None:
        if not self._generation.watched and not self._generation.awaits_key:
            stage = self._generation.stage
            raise ApplicationError(
                f"no task is looked at now, and none waits for the key: the stage is {stage}", type="NotWatched"
            )

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
            raise ApplicationError(f"this cannot be a task of the gateway: {TASK_ID_RULE}", type="NotOffered")

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
        """Salvage first: the 8 s clip's link is dying. Then what is paid for already, then what the caller wants."""
        generation = self._generation
        clip = generation.first_video = generation.first_video or await deliver(generation, DeliveryKind.FIRST)
        reason = verdict.error_message or "the extension failed"
        if (
            generation.extension is None
        ):  # else continued as new while it is being retried: that has problems of its own
            generation.last_problem = reason
        if video := await self._collect_extension():
            return await self._end_after_failed_extension("full", video)
        match await self._choose_after_failed_extension():
            case OnExtendFailed.FAIL:
                await poll_for_refund(generation)
                advice = "The 8 s clip is stored: see first_video. Another try at 15 s needs a new key, and is paid."
                raise StepFailed("ExtensionFailed", reason, generation.known(advice=advice))
            case OnExtendFailed.RETRY:
                if video := await self._retry_extension():
                    return await self._end_after_failed_extension("full", video)
        generation.last_problem = generation.last_problem or reason
        return await self._end_after_failed_extension("fallback", clip)

    async def _end_after_failed_extension(self, outcome: str, video: StoredVideo) -> GenerateVideoResult:
        await poll_for_refund(self._generation)
        return self._generation.result(outcome, video)

    async def _choose_after_failed_extension(self) -> OnExtendFailed:
        generation = self._generation
        sent = generation.policy.extensions_sent
        if generation.uncollected:
            return OnExtendFailed.FALLBACK
        if generation.extension_number > sent:  # continued as new while it is being retried
            return OnExtendFailed.RETRY
        wish = generation.request.on_extend_failed
        if wish is OnExtendFailed.RETRY and sent:
            generation.warnings.append("the extension is not paid for once more: starting a key again pays nothing")
            return OnExtendFailed.FALLBACK
        if wish is not OnExtendFailed.ASK:
            return wish
        retry = (DecisionAction.RETRY,) if generation.policy.extension_retries > sent else ()
        window = generation.policy.decision_window or None
        generation.offer((DecisionAction.ACCEPT, *retry), by=workflow.now() + window if window else None)
        decision = await generation.decision(within=window)
        if decision is None:
            generation.warnings.append("nobody decided in time: the 8 s clip is the result")
            return OnExtendFailed.FALLBACK
        return OnExtendFailed.RETRY if decision.action is DecisionAction.RETRY else OnExtendFailed.FALLBACK

    async def _collect_extension(self) -> StoredVideo | None:
        """Watch and deliver the retry of an extension that an earlier run of this key has paid for, or perhaps has."""
        generation = self._generation
        sent = generation.policy.extensions_sent
        if not sent or generation.extension_number > sent:
            return None
        if problem := self._no_retry_because():
            generation.uncollected = UncollectedExtension(number=sent, reason=problem)
            generation.warnings.append(f"retry {sent} of the extension is not collected: {problem}")
            return None
        return await self._extend_again(range(sent, sent + 1))

    async def _retry_extension(self) -> StoredVideo | None:
        """Pay for the extension again, as often as the operator allows; the 8 s clip is safe meanwhile."""
        generation = self._generation
        if problem := self._no_retry_because():
            generation.warnings.append(f"the extension was not retried: {problem}")
            return None
        first = max(generation.policy.extensions_sent + 1, generation.extension_number)
        return await self._extend_again(range(first, generation.policy.extension_retries + 1))

    def _no_retry_because(self) -> str | None:
        record = self._generation.record
        if record is None or record.remix_id is None:
            return "its remix_id is not known"
        return None if self._generation.policy.extension_retries else "no gateway that does it is configured"

    async def _extend_again(self, numbers: range) -> StoredVideo | None:
        """Submit these retries, one after the other, until one brings a video.

        Only a verdict that a retry failed leads to the next one. Whatever else ends it, an unknown outcome above all,
        may have been paid and made: it is never paid for again, and the result says that it can still be collected.

        Raises:
            StepFailed: `DeliveryFailed`: the 15 s video was made and paid, and is still to be collected.
        """
        generation = self._generation
        remix_id = generation.record.remix_id if generation.record else None
        assert remix_id is not None  # noqa: S101 - `_no_retry_because`
        for number in numbers:
            try:
                if generation.extension_number != number:  # else continued as new while it is watched
                    generation.extension_number = number
                    generation.extension = generation.extension_record = None
                    await submit_extension(generation, remix_id, number)
                extension = generation.retried
                record = await Watch(generation, extension, extension=True).verdict()
            except StepFailed as failed:
                task_id = generation.extension and generation.extension.task_id
                task, reason = f" (task {task_id})" if task_id else "", f"{failed.kind}: {failed.message}"
                generation.warnings.append(f"retry {number} of the extension{task}: {reason}")
                if task_id or failed.details.paid is not Paid.NO:
                    generation.uncollected = UncollectedExtension(number=number, task_id=task_id, reason=reason)
                return None
            if record.state is TaskState.COMPLETED:
                return await deliver(generation, DeliveryKind.FULL, task_id=extension.task_id)
            problem = record.error_message or "it failed again"
            generation.warnings.append(f"retry {number} of the extension (task {extension.task_id}) failed: {problem}")
        return None


def _decode(given: RawValue) -> tuple[Any, CarriedGeneration | None]:
    """The request, whatever it is, or what the run before carried over.

    Raises:
        ValidationError: The run before was a newer worker's. It fails the workflow task, not the workflow, and is
            tried again until a worker can read it: something was paid for.
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
    return None, CarriedGeneration.model_validate(decoded)


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
    advice = "Mend the request and start it again with the same key."
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
        rule = "must be absent: the workflow tries again by itself; after a failure start the same key again"
        yield Problem(field="retry_policy", rule=rule)


def _refusal(generation: Generation, verdict: TaskRecord) -> StepFailed:
    advice = "Change what the message names; a new request needs a new key."
    message = verdict.error_message or "the first segment failed"
    return StepFailed("GenerationFailed", message, generation.known(advice=advice))
