"""One generation, from the request to the stored video: read `run` aloud.

Everything that takes part in the outcome is durable here; everything that touches the world is an activity. The state
machine is drawn in `docs/design.md`.
"""

import asyncio
from datetime import datetime, timedelta
from typing import Any, NoReturn

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, ApplicationErrorCategory, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.delivery import DeliveryActivities
    from activities.polling import PollingActivities
    from activities.submission import SubmissionActivities
    from longtake.catalog import MODELS, InvalidRequest, check_request, expected_size, warnings_for
    from longtake.models import (
        Attention,
        CarriedGeneration,
        Decision,
        DecisionAction,
        DeliverOrder,
        DeliveryKind,
        DeliveryReceipt,
        FailureDetails,
        GenerateVideoInput,
        GenerateVideoResult,
        GenerationPolicy,
        GenerationStatus,
        LookOrder,
        OnExtendFailed,
        Paid,
        PrepareOrder,
        RecordOrder,
        Stage,
        StoredVideo,
        SubmissionReceipt,
        SubmitOrder,
        TaskRecord,
        TaskState,
    )
    from longtake.pacing import Progress, next_look
    from longtake.temporal import (
        GATEWAY_TASK_ID,
        SUBMISSION_TASK_QUEUE,
        VIDEO_ATTENTION,
        VIDEO_MODEL,
        VIDEO_OUTCOME,
        VIDEO_STAGE,
        key_of,
    )
    from workflows import narration, options
    from workflows.failures import Cause, cause_of

LOOKS_PER_RUN = 300
"""About 3,300 events: below the 4,100 at which the server suggests to continue as new."""

_UNPAID_TYPES = frozenset({"InvalidRequest", "SubmissionRefused"})
_BENIGN_TYPES = frozenset({"InvalidRequest", "SubmissionRefused", "GenerationFailed", "ExtensionFailed", "Abandoned"})


@workflow.defn(name="GenerateVideo")
class GenerateVideoWorkflow:
    """A paid generation that is never paid twice, never lost, and can always be asked how it stands."""

    @workflow.init
    def __init__(self, _request: Any = None, carried: CarriedGeneration | None = None) -> None:
        self._key = key_of(workflow.info().workflow_id)
        self._request: GenerateVideoInput | None = None
        self._policy = carried.policy if carried else GenerationPolicy()
        self._receipt = carried.receipt if carried else None
        self._record = carried.record if carried else None
        self._polls = carried.polls if carried else 0
        self._warnings = list(carried.warnings) if carried else []
        self._stage = Stage.PREPARING
        self._attention = carried.attention if carried else None
        self._last_problem = carried.last_problem if carried else None
        self._lost_since = carried.lost_since if carried else None
        self._missing_since = carried.missing_since if carried else None
        self._retry_after: timedelta | None = None
        self._next_look_at: datetime | None = None
        self._look_now = False
        self._offered: tuple[DecisionAction, ...] = ()
        self._decision: Decision | None = None
        self._outcome: str | None = None
        self._video: StoredVideo | None = None
        self._first_video: StoredVideo | None = None

    @workflow.run
    async def run(self, request: Any = None, carried: CarriedGeneration | None = None) -> GenerateVideoResult:
        """Submit, look until there is a verdict, branch, deliver.

        Args:
            request: A `GenerateVideoInput` as plain JSON. Untyped, because a request that cannot be decoded would
                hang the workflow; so it is judged here, and refused with every problem named.
            carried: Set only by the workflow itself when it continues as new.
        """
        try:
            self._request = self._accept(request)
            if carried is None:
                await self._prepare()
                await self._submit()
            verdict = await self._await_verdict()
            match verdict.state:
                case TaskState.COMPLETED:
                    return await self._conclude_full()
                case TaskState.EXTEND_FAILED:
                    return await self._conclude_extend_failed(verdict)
                case _:
                    self._fail_generation(verdict)
        except BaseException as error:
            if is_cancelled_exception(error):
                self._enter(Stage.CANCELLED)
            raise

    @workflow.query(description="Where this generation stands, and what can be done about it.")
    def status(self) -> GenerationStatus:
        """Where this generation stands; works on finished ones too."""
        record = self._record
        return GenerationStatus(
            key=self._key,
            stage=self._stage,
            attention=self._attention,
            message=narration.message_for(self._stage, self._attention),
            advice=narration.advice_for(self._attention),
            outcome=self._outcome,
            model=self._request.model if self._request else None,
            progress=record.progress if record else None,
            polls=self._polls,
            task_id=self._receipt.task_id if self._receipt else None,
            remix_id=record.remix_id if record else None,
            remix_id_extend=record.remix_id_extend if record else None,
            submitted_at=self._receipt.submitted_at if self._receipt else None,
            next_look_at=self._next_look_at,
            last_problem=self._last_problem,
            video=self._video,
            first_video=self._first_video,
            warnings=tuple(self._warnings),
        )

    @workflow.update(description="Look at the task now, for example because the key has been mended.")
    def resume(self) -> GenerationStatus:
        """Look now instead of at the planned time."""
        self._look_now = True
        return self.status()

    @workflow.update(description='Decide what a person must decide: {"action": "accept"}.')
    def decide(self, decision: Decision) -> GenerationStatus:
        """Take a decision that was asked for."""
        self._decision = decision
        return self.status()

    @decide.validator
    def _check_decision(self, decision: Decision) -> None:
        if not self._offered:
            raise ApplicationError("no decision is awaited now", type="NotAwaited")
        if decision.action not in self._offered:
            offered = ", ".join(self._offered)
            raise ApplicationError(f"{decision.action} is not offered now; choose one of: {offered}", type="NotOffered")

    def _accept(self, request: Any) -> GenerateVideoInput:
        try:
            accepted = check_request(request)
        except InvalidRequest as error:
            self._fail(
                "InvalidRequest",
                str(error),
                FailureDetails(
                    paid=Paid.NO,
                    problems=error.problems,
                    advice="Mend the request and start it again with the same key.",
                ),
            )
        self._request = accepted
        self._warnings = self._warnings or list(warnings_for(accepted))
        return accepted

    async def _prepare(self) -> None:
        """Everything that can be known to fail is found out here, before anything is paid."""
        self._enter(Stage.PREPARING)
        try:
            self._policy = await workflow.execute_activity_method(
                SubmissionActivities.prepare_generation,
                PrepareOrder(request=self._asked),
                summary="check images, gateway and store; nothing is paid yet",
                **options.PREPARE,
            )
        except ActivityError as error:
            self._fail_unsubmitted(error)

    async def _submit(self) -> None:
        """The paid step. A cancellation waits for an exchange that has begun, so that its id is known."""
        self._enter(Stage.SUBMITTING)
        submission = workflow.start_activity_method(
            SubmissionActivities.submit_generation,
            SubmitOrder(key=self._key, request=self._asked),
            task_queue=SUBMISSION_TASK_QUEUE,
            summary=f"submit to {self._asked.model}: paid, at most once",
            **options.submission(self._policy),
        )
        try:
            self._receipt = await asyncio.shield(submission)
        except asyncio.CancelledError:
            submission.cancel()
            try:
                self._receipt = await submission
            except ActivityError as error:
                self._fail_unsubmitted(error)
            raise
        except ActivityError as error:
            self._fail_unsubmitted(error)
        workflow.upsert_search_attributes([GATEWAY_TASK_ID.value_set(self._receipt.task_id)])
        if not self._receipt.recorded:
            await self._record_submission(self._receipt)

    async def _record_submission(self, receipt: SubmissionReceipt) -> None:
        try:
            await workflow.execute_activity_method(
                SubmissionActivities.record_submission,
                RecordOrder(key=self._key, receipt=receipt),
                summary="write the submission's outcome to the ledger",
                **options.RECORD,
            )
        except ActivityError as error:
            self._warnings.append(f"the ledger has no outcome for this submission: {cause_of(error).message}")

    async def _await_verdict(self) -> TaskRecord:
        """Look, paced, until the gateway has said what became of the video."""
        self._enter_making()
        while True:
            await self._wait_for_next_look()
            record = await self._look()
            if record and record.state in (TaskState.COMPLETED, TaskState.EXTEND_FAILED, TaskState.GENERATE_FAILED):
                return record
            self._check_limits()
            await self._continue_as_new_if_long()

    async def _wait_for_next_look(self) -> None:
        wait = next_look(
            self._policy.pacing,
            Progress(
                elapsed=self._elapsed,
                looks=self._polls,
                stage=self._stage,
                stalled=self._elapsed > self._policy.stalled_after,
                retry_after=self._retry_after,
            ),
            pace=MODELS[self._asked.model].pace,
            jitter=workflow.random().random(),
        )
        self._next_look_at = workflow.now() + wait
        self._tell()
        try:
            await workflow.wait_condition(
                lambda: self._look_now, timeout=wait, timeout_summary=f"until look {self._polls + 1}: {self._stage}"
            )
        except TimeoutError:
            pass
        finally:
            self._look_now = False
            self._next_look_at = None

    async def _look(self) -> TaskRecord | None:
        """Ask once; trouble is shown and looked at again, it never ends a generation."""
        self._polls += 1
        try:
            record = await workflow.execute_activity_method(
                PollingActivities.query_generation,
                LookOrder(key=self._key, task_id=self._submitted.task_id),
                summary=f"look {self._polls}",
                **options.LOOK,
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            self._note_trouble(cause_of(error))
            return None
        self._take(record)
        return record

    def _take(self, record: TaskRecord) -> None:
        """Keep what a look told; a task that the gateway gave up keeps the ids known before."""
        before = self._record
        if record.state is TaskState.LOST:
            self._lost_since = self._lost_since or workflow.now()
            self._last_problem = record.error_message or f"the gateway says {record.gateway_status}, without a verdict"
        else:
            self._lost_since = self._last_problem = None
        self._missing_since = self._retry_after = None
        self._record = record.model_copy(
            update={
                "remix_id": record.remix_id or (before and before.remix_id),
                "remix_id_extend": record.remix_id_extend or (before and before.remix_id_extend),
                "upstream_task_id": record.upstream_task_id or (before and before.upstream_task_id),
                "quota": record.quota if record.quota is not None else before and before.quota,
            }
        )
        self._enter_making()

    def _note_trouble(self, cause: Cause) -> None:
        self._last_problem = cause.message
        if cause.type == "TaskNotFound":
            self._missing_since = self._missing_since or workflow.now()
        else:
            self._missing_since = None
        if cause.type == "KeyRefused":
            # Asking with a dead key helps nobody: wait for a generation's time, or for `resume`.
            self._retry_after = self._policy.pacing.expected
        self._enter_making(Attention.NEEDS_KEY if cause.type == "KeyRefused" else Attention.GATEWAY_TROUBLE)

    def _enter_making(self, trouble: Attention | None = None) -> None:
        """Show which segment is being made, and what is wrong with it, if anything."""
        extending = self._record is not None and self._record.remix_id_extend is not None
        extending = extending or (self._record is not None and (self._record.progress or 0) >= 50)  # noqa: PLR2004 - contract
        attention = trouble or (Attention.GATEWAY_LOST if self._lost_since else None)
        if attention is None and self._elapsed > self._policy.stalled_after:
            attention = Attention.STALLED
        self._enter(Stage.EXTENDING if extending else Stage.FIRST_SEGMENT, attention)

    def _check_limits(self) -> None:
        """End what cannot come any more; nothing is ever submitted again for it."""
        now = workflow.now()
        if self._lost_since and now - self._lost_since >= self._policy.lost_watch:
            self._fail(
                "GatewayLost",
                f"the gateway gave the task up without a verdict on the video: {self._last_problem}",
                self._known(
                    advice="Ask the gateway's support for the upstream ids; the video may exist there. "
                    "Starting again with the same key looks again and pays nothing."
                ),
            )
        if self._missing_since and now - self._missing_since >= self._policy.stalled_after:
            self._fail(
                "GatewayLost",
                f"the gateway does not know the task {self._submitted.task_id}: {self._last_problem}",
                self._known(advice="Ask the gateway's support for this task id. It was paid, and its row is missing."),
            )
        if self._elapsed >= self._policy.give_up_after:
            self._fail(
                "GenerationStalled",
                f"no verdict within {self._policy.give_up_after}",
                self._known(advice="Starting again with the same key looks again and pays nothing."),
            )

    async def _continue_as_new_if_long(self) -> None:
        if self._polls % LOOKS_PER_RUN and not workflow.info().is_continue_as_new_suggested():
            return
        await workflow.wait_condition(workflow.all_handlers_finished)
        workflow.continue_as_new(
            args=[
                self._asked,
                CarriedGeneration(
                    policy=self._policy,
                    receipt=self._submitted,
                    record=self._record,
                    polls=self._polls,
                    warnings=tuple(self._warnings),
                    attention=self._attention,
                    last_problem=self._last_problem,
                    lost_since=self._lost_since,
                    missing_since=self._missing_since,
                ),
            ]
        )

    async def _conclude_full(self) -> GenerateVideoResult:
        receipt = await self._deliver(DeliveryKind.FULL)
        self._video = receipt.video
        return self._result("full", receipt.video)

    async def _conclude_extend_failed(self, verdict: TaskRecord) -> GenerateVideoResult:
        """Salvage first: the 8 s clip's link is dying. Then what the caller wants."""
        receipt = await self._deliver(DeliveryKind.FIRST)
        self._first_video = receipt.video
        reason = verdict.error_message or "the extension failed"
        match self._asked.on_extend_failed:
            case OnExtendFailed.FAIL:
                self._fail(
                    "ExtensionFailed",
                    reason,
                    self._known(advice="The 8 s clip is stored; see first_video in the details."),
                )
            case OnExtendFailed.RETRY:
                self._warnings.append("retrying an extension is not configured: the 8 s clip is the result")
            case OnExtendFailed.ASK:
                await self._ask_about_extension()
        self._video = receipt.video
        return self._result("fallback", receipt.video)

    async def _ask_about_extension(self) -> None:
        """Wait, durably and visibly, for the update `decide`."""
        self._offered = (DecisionAction.ACCEPT,)
        self._enter(Stage.AWAITING_DECISION, Attention.NEEDS_DECISION)
        await workflow.wait_condition(lambda: self._decision is not None)
        self._offered = ()

    async def _deliver(self, kind: DeliveryKind) -> DeliveryReceipt:
        self._enter(Stage.DELIVERING)
        size = expected_size(self._asked)
        try:
            receipt = await workflow.execute_activity_method(
                DeliveryActivities.deliver_video,
                DeliverOrder(
                    key=self._key,
                    task_id=self._submitted.task_id,
                    kind=kind,
                    width=size.width if size else None,
                    height=size.height if size else None,
                ),
                summary=f"bring home the {'15 s video' if kind is DeliveryKind.FULL else '8 s clip'}",
                **options.delivery(self._policy),
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            cause = cause_of(error)
            self._fail(
                "DeliveryFailed",
                cause.message,
                self._known(
                    cause.details,
                    advice="The video was made and paid. Mend what the message names, then start again with the same "
                    "key: it is delivered without paying again, as long as the gateway has it.",
                ),
            )
        self._warnings += receipt.warnings
        return receipt

    def _result(self, outcome: str, video: StoredVideo) -> GenerateVideoResult:
        self._outcome = outcome
        self._enter(Stage.DONE)
        record = self._known_record
        failed = record.state is TaskState.EXTEND_FAILED
        return GenerateVideoResult.model_validate(
            {
                "outcome": outcome,
                "video": video,
                "first_video": self._first_video,
                "model": self._asked.model,
                "task_id": self._submitted.task_id,
                "remix_id": record.remix_id,
                "remix_id_extend": record.remix_id_extend,
                "quota": record.quota,
                "polls": self._polls,
                "warnings": tuple(self._warnings),
                "extend_error_code": record.error_code if failed else None,
                "extend_error_message": record.error_message if failed else None,
            }
        )

    def _fail_generation(self, verdict: TaskRecord) -> NoReturn:
        self._fail(
            "GenerationFailed",
            verdict.error_message or "the first segment failed",
            self._known(advice="Change what the message names; a new request needs a new key."),
        )

    def _fail_unsubmitted(self, error: ActivityError) -> NoReturn:
        """End what has no task id: refused, unknown, or surely not sent within the time allowed."""
        if is_cancelled_exception(error):
            raise error
        cause = cause_of(error)
        if cause.type in _UNPAID_TYPES:
            self._fail(cause.type, cause.message, cause.details)
        in_doubt = cause.type in ("SubmissionOutcomeUnknown", "SubmissionInDoubt", "SlotTaken")
        if error.activity_type == "submit_generation" and (in_doubt or cause.timed_out):
            self._fail(
                "SubmissionOutcomeUnknown", cause.message, cause.details.model_copy(update={"paid": Paid.UNKNOWN})
            )
        self._fail("NotSubmitted", cause.message, cause.details.model_copy(update={"paid": Paid.NO}))

    def _fail(self, kind: str, message: str, details: FailureDetails) -> NoReturn:
        """End with a typed error that holds everything known."""
        self._outcome = kind
        self._last_problem = message
        self._enter(Stage.FAILED)
        raise ApplicationError(
            message,
            details.model_copy(
                update={"key": self._key, "model": self._request.model if self._request else None, "polls": self._polls}
            ),
            type=kind,
            non_retryable=True,
            category=ApplicationErrorCategory.BENIGN if kind in _BENIGN_TYPES else ApplicationErrorCategory.UNSPECIFIED,
        )

    def _known(self, details: FailureDetails | None = None, *, advice: str) -> FailureDetails:
        """Everything known about a paid generation that ends without what was asked for."""
        record = self._record
        return (details or FailureDetails()).model_copy(
            update={
                "paid": Paid.YES,
                "advice": advice,
                "task_id": self._submitted.task_id,
                "remix_id": record and record.remix_id,
                "remix_id_extend": record and record.remix_id_extend,
                "quota": record and record.quota,
                "gateway_code": record and record.error_code,
                "gateway_message": record and record.error_message,
                "request_id": self._submitted.request_id,
                "first_video": self._first_video,
                "last_record": record,
            }
        )

    def _enter(self, stage: Stage, attention: Attention | None = None) -> None:
        """Change where the generation stands, for the list, the page and the query alike."""
        changed = (stage, attention) != (self._stage, self._attention) or stage is Stage.PREPARING
        self._stage, self._attention = stage, attention
        self._tell()
        if not changed:
            return
        updates: list[Any] = [VIDEO_STAGE.value_set(stage)]
        updates.append(VIDEO_ATTENTION.value_set(attention) if attention else VIDEO_ATTENTION.value_unset())
        if stage is Stage.PREPARING and self._request:
            updates.append(VIDEO_MODEL.value_set(self._request.model))
        if self._outcome:
            updates.append(VIDEO_OUTCOME.value_set(self._outcome))
        if stage is Stage.CANCELLED and self._receipt:
            updates.append(GATEWAY_TASK_ID.value_set(self._receipt.task_id))
        workflow.upsert_search_attributes(updates)

    def _tell(self) -> None:
        workflow.set_current_details(narration.markdown(self.status()))

    @property
    def _asked(self) -> GenerateVideoInput:
        assert self._request is not None  # noqa: S101 - set first of all
        return self._request

    @property
    def _submitted(self) -> SubmissionReceipt:
        assert self._receipt is not None  # noqa: S101 - nothing is looked at before it is submitted
        return self._receipt

    @property
    def _known_record(self) -> TaskRecord:
        assert self._record is not None  # noqa: S101 - a verdict is a record
        return self._record

    @property
    def _elapsed(self) -> timedelta:
        return workflow.now() - self._submitted.submitted_at
