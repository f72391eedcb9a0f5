"""Looking at a task, paced, until the gateway has said what became of the video."""

from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

from activities.polling import PollingActivities
from longtake.gateway.poll_schedule import Progress, next_poll
from longtake.models import (
    Attention,
    DeliveryReceipt,
    PollInput,
    Stage,
    SubmissionReceipt,
    TaskRecord,
    TaskState,
)
from longtake.request.rules import duration_factor_of, prompt_paths
from workflows import measuring, options
from workflows.failures import Cause, cause_of
from workflows.state import Generation, StepFailed

POLLS_PER_RUN = 300
"""About 3,300 events: below the 4,100 at which the server suggests to continue as new."""

VERDICTS = frozenset({TaskState.COMPLETED, TaskState.EXTEND_FAILED, TaskState.GENERATE_FAILED})
_EXTENSION_DURATION_FACTOR = 0.6
"""A retried extension makes 7 of the 15 seconds."""
_EXTENDING_FROM = 50
"""Percent; the contract: 50 to 99 is the extension."""


async def poll_for_refund(generation: Generation) -> None:
    """Ask once more what a failed task cost, where the gateway had not given it back by the time it told of it.

    It costs seconds, and whatever comes of it the generation ends as it would have.
    """
    record = generation.record
    if record is None or record.refunded is not False:
        return
    generation.polls += 1
    try:
        told = await workflow.execute_activity_method(
            PollingActivities.query_generation,
            _input(generation, generation.task).model_copy(update={"clip_is_stored": True}),
            summary=f"look {generation.polls}: was it refunded?",
            **options.REFUND,
        )
    except ActivityError as error:
        if is_cancelled_exception(error):
            raise
        measuring.polled(cause_of(error).type)
        return
    measuring.polled(told.state)
    learn_cost(generation, told)


def learn_cost(generation: Generation, told: TaskRecord | DeliveryReceipt) -> None:
    """Keep what the gateway tells of a task's cost after its verdict; what it no longer tells stays known.

    What was given back stays so: where the usage log said it, the task's own record may not.
    """
    before = generation.record
    if before is None or told.quota is None or (not told.refunded and before.refunded):
        return
    if told.refunded is None and before.quota is not None:
        return
    cost = {name: getattr(told, name) for name in ("quota", "refunded", "refund_evidence")}
    generation.record = before.model_copy(update=cost)
    measuring.charged(generation.record, before, generation.task, generation.request, extension=False)


class Watch:
    """The watch over one paid task: the first one, or that of a retried extension."""

    def __init__(self, generation: Generation, task: SubmissionReceipt, *, extension: bool = False) -> None:
        self._generation = generation
        self._task = task
        self._extension = extension
        self._retry_after: timedelta | None = None

    async def verdict(self) -> TaskRecord:
        """Look until there is a verdict.

        Raises:
            StepFailed: `TaskLost` or `GenerationTimedOut`; nothing is ever submitted again for it.
        """
        generation = self._generation
        generation.polling_since = generation.polling_since or workflow.now()
        generation.watched = True
        try:
            return await self._watch(generation.attention if generation.polls_of_task else None)
        finally:
            generation.watched = generation.poll_requested = False

    async def _watch(self, carried: Attention | None) -> TaskRecord:
        if carried is Attention.NEEDS_API_KEY:
            self._retry_after = self._generation.policy.schedule.expected
        self._show(carried)
        while True:
            await self._wait_for_next_poll()
            record = await self._poll()
            if record and record.state in VERDICTS:
                measuring.judged(record, self._generation.request.model, extension=self._extension)
                return record
            self._check_limits(record)
            await self._continue_as_new_if_long()

    async def _wait_for_next_poll(self) -> None:
        generation = self._generation
        wait = next_poll(
            generation.policy.schedule,
            Progress(
                elapsed=self._elapsed,
                polls_of_task=generation.polls_of_task,
                stage=generation.stage,
                overdue=self._elapsed > generation.policy.overdue_after,
                retry_after=self._retry_after,
            ),
            duration_factor=duration_factor_of(generation.request.model)
            * (_EXTENSION_DURATION_FACTOR if self._extension else 1),
            jitter=workflow.random().random(),
        )
        soonest = workflow.now() + generation.policy.schedule.min_interval
        generation.next_poll_at = workflow.now() + wait
        generation.tell()
        summary = f"until look {generation.polls + 1}: {generation.stage}"
        try:
            await workflow.wait_condition(lambda: generation.poll_requested, timeout=wait, timeout_summary=summary)
            # Asked for: at once, but whoever asks a thousand times does not have the gateway asked a thousand times.
            if (left := soonest - workflow.now()) > timedelta(0):
                generation.next_poll_at = soonest
                generation.tell()
                await workflow.sleep(left, summary=summary)
        except TimeoutError:
            pass
        finally:
            generation.poll_requested = False
            generation.next_poll_at = None

    async def _poll(self) -> TaskRecord | None:
        """Ask once; trouble is shown and looked at again, it never ends a generation."""
        generation = self._generation
        generation.polls += 1
        generation.polls_of_task += 1
        try:
            record = await workflow.execute_activity_method(
                PollingActivities.query_generation,
                _input(generation, self._task, extension=self._extension),
                summary=f"look {generation.polls}",
                **options.POLL,
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            cause = cause_of(error)
            measuring.polled(cause.type)
            self._note_trouble(cause)
            return None
        measuring.polled(record.state)
        self._take(record)
        return record

    def _take(self, record: TaskRecord) -> None:
        """Keep what a look told; a task that the gateway gave up keeps the ids known before."""
        generation = self._generation
        if record.state is TaskState.LOST:
            generation.lost_since = generation.lost_since or workflow.now()
            reason = record.error_message or f"the gateway says {record.gateway_status}, without a verdict"
            generation.last_problem = reason
        else:
            generation.lost_since = generation.last_problem = None
        generation.missing_since = generation.key_problem = self._retry_after = None
        before = generation.extension_record if self._extension else generation.record
        measuring.charged(record, before, self._task, generation.request, extension=self._extension)
        if self._extension:
            generation.extension_record = _with_ids_of(before, record)
        else:
            generation.record = _with_ids_of(before, record)
        self._show()

    def _note_trouble(self, cause: Cause) -> None:
        generation = self._generation
        generation.last_problem, generation.key_problem = cause.message, cause.details.key_problem
        missing = cause.type == "TaskNotFound"
        generation.missing_since = (generation.missing_since or workflow.now()) if missing else None
        key_refused = cause.type == "KeyRefused"
        # Asking often with a dead key helps nobody: wait for a generation's time, or for `poll_now`.
        self._retry_after = generation.policy.schedule.expected if key_refused else None
        self._show(Attention.NEEDS_API_KEY if key_refused else Attention.POLL_FAILING)

    def _show(self, trouble: Attention | None = None) -> None:
        """Show which segment is being made, and what is wrong with it, if anything."""
        generation = self._generation
        record = generation.record
        extending = self._extension or (
            record is not None and (record.remix_id_extend is not None or (record.progress or 0) >= _EXTENDING_FROM)
        )
        attention = trouble or (Attention.TASK_LOST if generation.lost_since else None)
        if attention is None and self._elapsed > generation.policy.overdue_after:
            attention = Attention.OVERDUE
        generation.enter(Stage.EXTENDING if extending else Stage.FIRST_SEGMENT, attention)

    def _check_limits(self, record: TaskRecord | None) -> None:
        """End what cannot come any more.

        Raises:
            StepFailed: See `verdict`.
        """
        generation, policy, now = self._generation, self._generation.policy, workflow.now()
        again = "Starting again with the same key, on the same ledger, looks again and pays nothing."
        if record and generation.lost_since and now - generation.lost_since >= policy.lost_grace:
            raise StepFailed(
                "TaskLost",
                f"the gateway gave the task up without a verdict on the video: {generation.last_problem}",
                generation.known(
                    advice=f"Ask the gateway's support for the upstream ids; the video may exist there. {again}"
                ),
            )
        if generation.missing_since and now - generation.missing_since >= policy.overdue_after:
            raise StepFailed(
                "TaskLost",
                f"the gateway does not know the task {self._task.task_id}: {generation.last_problem}",
                generation.known(
                    advice=f"Ask the gateway's support for this task id: it was paid, its row is missing. {again}"
                ),
            )
        if not self._is_overdue(record):
            return
        if generation.lost_since:
            raise StepFailed(
                "TaskLost",
                f"no verdict within {policy.give_up_after}, and the gateway has given the task up: "
                f"{generation.last_problem}",
                generation.known(advice=f"Ask the gateway's support for the upstream ids. {again}"),
            )
        raise StepFailed(
            "GenerationTimedOut",
            f"no verdict within {policy.give_up_after}",
            generation.known(advice=f"The gateway itself gives up after 24 hours. {again}"),
        )

    def _is_overdue(self, record: TaskRecord | None) -> bool:
        """Whether the task's time is over.

        A look that told nothing, because of a dead key for example, ends it only when there was another day for it; and
        a key that is started again, however old its task is, has a whole day for an answer.
        """
        policy = self._generation.policy
        if record:
            return self._elapsed >= policy.give_up_after
        since = self._generation.polling_since or workflow.now()
        return self._elapsed >= policy.give_up_after * 2 and workflow.now() - since >= policy.give_up_after

    async def _continue_as_new_if_long(self) -> None:
        if self._generation.polls_of_task % POLLS_PER_RUN and not workflow.info().is_continue_as_new_suggested():
            return
        await workflow.wait_condition(workflow.all_handlers_finished)
        workflow.continue_as_new(self._generation.carried())

    @property
    def _elapsed(self) -> timedelta:
        return workflow.now() - self._task.submitted_at


def _input(generation: Generation, task: SubmissionReceipt, *, extension: bool = False) -> PollInput:
    return PollInput(
        key=generation.key,
        task_id=task.task_id,
        extension=extension,
        stage=generation.stage,
        hide_words=bool(prompt_paths(generation.request)),
        gateway=task.gateway,
        account=task.account,
    )


def _with_ids_of(before: TaskRecord | None, record: TaskRecord) -> TaskRecord:
    if before is None:
        return record
    return record.model_copy(
        update={
            "remix_id": record.remix_id or before.remix_id,
            "remix_id_extend": record.remix_id_extend or before.remix_id_extend,
            "upstream_task_id": record.upstream_task_id or before.upstream_task_id,
            "quota": record.quota if record.quota is not None else before.quota,
        }
    )
