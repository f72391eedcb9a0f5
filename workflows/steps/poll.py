"""Polling a task, on the poll schedule, until the gateway gives a verdict on the video."""

from datetime import timedelta

from temporalio import workflow

from activities.polling import PollingActivities
from longtake.gateway.poll_schedule import Progress, next_poll
from longtake.models import Attention, DeliveryReceipt, FailureDetails, PollInput, Stage, TaskRecord, TaskState
from longtake.request.rules import duration_factor_of, prompt_paths
from workflows import options
from workflows.failures import Cause, StepFailed, attempt
from workflows.reporting import report
from workflows.state import VERDICTS, GenerationState, LastPoll, PaidTask

POLLS_PER_RUN = 300
"""About 3,300 events: below the 4,100 at which the server suggests to continue as new."""

_EXTENSION_DURATION_FACTOR = 0.6
"""A retried extension makes 7 of the 15 seconds."""
_POLLS_TO_CONFIRM = 3
"""That a task is lost. The time between two of them may be a worker's absence, which says nothing about the task."""
_EXTENDING_FROM = 50
"""Percent; the contract: 50 to 99 is the extension."""
_START_AGAIN = "Starting again with the same key, on the same ledger, polls again and pays nothing."


async def poll_for_refund(state: GenerationState) -> None:
    """Poll once more for what a failed task cost, where the gateway had not refunded it at the time of its verdict.

    It costs seconds, and whatever comes of it the generation ends as it would have.
    """
    record = state.record
    if record is None or record.refunded is not False:
        return
    state.polls += 1
    answer = await attempt(
        workflow.execute_activity_method(
            PollingActivities.query_generation,
            _input(state, state.task).model_copy(update={"clip_is_stored": True}),
            summary=f"poll {state.polls}: was it refunded?",
            **options.REFUND,
        )
    )
    if isinstance(answer, Cause):
        state.last_poll = LastPoll(number=state.polls, result=answer.type)
    else:
        state.last_poll = LastPoll(number=state.polls, result=answer.state)
        learn_cost(state, answer)
    report(state)


def learn_cost(state: GenerationState, answer: TaskRecord | DeliveryReceipt) -> None:
    """Keep what the gateway says of a task's cost after its verdict; what it no longer says stays known.

    What was refunded stays so: where the usage log showed it, the task's own record may not.
    """
    before = state.record
    if before is None or answer.quota is None or (not answer.refunded and before.refunded):
        return
    if answer.refunded is None and before.quota is not None:
        return
    cost = {name: getattr(answer, name) for name in ("quota", "refunded", "refund_evidence")}
    state.task.record = before.model_copy(update=cost)


async def poll_until_verdict(state: GenerationState, task: PaidTask) -> TaskRecord:
    """Poll the task of the request, or of a retried extension, until there is a verdict.

    Raises:
        StepFailed: `TaskLost` or `GenerationTimedOut`; nothing is ever submitted again for it.
    """
    state.polling = True
    try:
        return await _Poller(state, task).run()
    finally:
        state.polling = state.poll_requested = False


class _Poller:
    """The polls of one task in one run of the workflow."""

    def __init__(self, state: GenerationState, task: PaidTask) -> None:
        self._state = state
        self._task = task
        self._extension = task is state.extension_task
        self._retry_after: timedelta | None = None

    async def run(self) -> TaskRecord:
        state, task = self._state, self._task
        task.polling_since = task.polling_since or workflow.now()
        carried = state.attention if task.polls else None  # continued as new
        if carried is Attention.NEEDS_API_KEY:
            self._retry_after = state.policy.schedule.expected
        self._show(carried)
        while True:
            await self._wait_for_next_poll()
            record = await self._poll()
            if record and record.state in VERDICTS:
                return record
            self._check_limits(record)
            await self._continue_as_new_if_long()

    async def _wait_for_next_poll(self) -> None:
        state = self._state
        wait = next_poll(
            state.policy.schedule,
            Progress(
                elapsed=self._elapsed,
                polls_of_task=self._task.polls,
                stage=state.stage,
                overdue=self._elapsed > state.policy.overdue_after,
                retry_after=self._retry_after,
            ),
            duration_factor=duration_factor_of(state.request.model)
            * (_EXTENSION_DURATION_FACTOR if self._extension else 1),
            jitter=workflow.random().random(),
        )
        earliest = workflow.now() + state.policy.schedule.min_interval
        state.next_poll_at = workflow.now() + wait
        report(state)
        summary = f"until poll {state.polls + 1}: {state.stage}"
        try:
            await workflow.wait_condition(lambda: state.poll_requested, timeout=wait, timeout_summary=summary)
            # Somebody asked: at once, but a thousand updates do not make a thousand requests to the gateway.
            if (left := earliest - workflow.now()) > timedelta(0):
                state.next_poll_at = earliest
                report(state)
                await workflow.sleep(left, summary=summary)
        except TimeoutError:
            pass
        finally:
            state.poll_requested = False
            state.next_poll_at = None

    async def _poll(self) -> TaskRecord | None:
        """Poll once. A failure is shown and followed by another poll; it never ends a generation."""
        state, task = self._state, self._task
        state.polls += 1
        task.polls += 1
        answer = await attempt(
            workflow.execute_activity_method(
                PollingActivities.query_generation,
                _input(state, task, extension=self._extension),
                summary=f"poll {state.polls}",
                **options.POLL,
            )
        )
        if isinstance(answer, Cause):
            state.last_poll = LastPoll(number=state.polls, result=answer.type)
            self._note_failure(answer)
            return None
        state.last_poll = LastPoll(number=state.polls, result=answer.state)
        self._take(answer)
        return answer

    def _take(self, record: TaskRecord) -> None:
        """Keep the answer; a task that the gateway gave up keeps the ids known before."""
        state, task = self._state, self._task
        if record.state is TaskState.LOST:
            task.lost_since = task.lost_since or workflow.now()
            task.polls_without_task += 1
            reason = record.error_message or f"the gateway says {record.gateway_status}, without a verdict"
            state.last_problem = reason
        else:
            task.lost_since = state.last_problem = None
            task.polls_without_task = 0
        task.missing_since = state.key_problem = self._retry_after = None
        task.record = _with_ids_of(task.record, record)
        self._show()

    def _note_failure(self, cause: Cause) -> None:
        state, task = self._state, self._task
        state.last_problem, state.key_problem = cause.message, cause.details.key_problem
        missing = cause.type == "TaskNotFound"
        task.missing_since = (task.missing_since or workflow.now()) if missing else None
        if missing:
            task.polls_without_task += 1
        elif not task.lost_since:
            task.polls_without_task = 0
        key_refused = cause.type == "KeyRefused"
        # Polling often with a refused key helps nobody: wait for a generation's time, or for `poll_now`.
        self._retry_after = state.policy.schedule.expected if key_refused else None
        self._show(Attention.NEEDS_API_KEY if key_refused else Attention.POLL_FAILING)

    def _show(self, trouble: Attention | None = None) -> None:
        """Show which segment is being made, and what is wrong with it, if anything."""
        record = self._task.record
        extending = self._extension or (
            record is not None and (record.remix_id_extend is not None or (record.progress or 0) >= _EXTENDING_FROM)
        )
        attention = trouble or (Attention.TASK_LOST if self._task.lost_since else None)
        if attention is None and self._elapsed > self._state.policy.overdue_after:
            attention = Attention.OVERDUE
        self._state.enter(Stage.EXTENDING if extending else Stage.FIRST_SEGMENT, attention)
        report(self._state)

    def _check_limits(self, record: TaskRecord | None) -> None:
        """End what cannot come any more.

        Raises:
            StepFailed: See `poll_until_verdict`.
        """
        task, policy, now = self._task, self._state.policy, workflow.now()
        problem, over = self._state.last_problem, self._is_overdue(record)
        support = "Ask the gateway's support for the upstream ids"
        confirmed = task.polls_without_task >= _POLLS_TO_CONFIRM
        if confirmed and record and task.lost_since and now - task.lost_since >= policy.lost_grace:
            raise _lost(
                f"the gateway gave the task up without a verdict on the video: {problem}",
                f"{support}; the video may exist there.",
            )
        if confirmed and task.missing_since and now - task.missing_since >= policy.overdue_after:
            raise _lost(
                f"the gateway does not know the task {task.id}: {problem}",
                "Ask the gateway's support for this task id: it was paid, its row is missing.",
            )
        no_verdict = f"no verdict within {policy.give_up_after}"
        if over and task.lost_since:
            raise _lost(f"{no_verdict}, and the gateway has given the task up: {problem}", f"{support}.")
        if over:
            advice = f"The gateway itself gives up after 24 hours. {_START_AGAIN}"
            raise StepFailed("GenerationTimedOut", no_verdict, FailureDetails(advice=advice))

    def _is_overdue(self, record: TaskRecord | None) -> bool:
        """Whether the task's time is over.

        A failed poll, because of a refused key for example, ends it only when there was another day for it; and a key
        that is started again, however old its task is, has a whole day for an answer.
        """
        limit = self._state.policy.give_up_after
        if record:
            return self._elapsed >= limit
        since = self._task.polling_since or workflow.now()
        return self._elapsed >= limit * 2 and workflow.now() - since >= limit

    async def _continue_as_new_if_long(self) -> None:
        if self._task.polls % POLLS_PER_RUN and not workflow.info().is_continue_as_new_suggested():
            return
        await workflow.wait_condition(workflow.all_handlers_finished)
        # A copy: the SDK encodes it when this run's `finally` blocks have changed the state.
        workflow.continue_as_new(self._state.snapshot())

    @property
    def _elapsed(self) -> timedelta:
        return workflow.now() - self._task.receipt.submitted_at


def _lost(message: str, advice: str) -> StepFailed:
    return StepFailed("TaskLost", message, FailureDetails(advice=f"{advice} {_START_AGAIN}"))


def _input(state: GenerationState, task: PaidTask, *, extension: bool = False) -> PollInput:
    return PollInput(
        key=state.key,
        task_id=task.id,
        extension=extension,
        stage=state.stage,
        hide_words=bool(prompt_paths(state.request)),
        gateway=task.receipt.gateway,
        account=task.receipt.account,
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
