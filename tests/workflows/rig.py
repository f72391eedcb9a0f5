"""The time-skipping server, workers as `worker.py` builds them, and scripted fakes of the activities by name.

One server and one pair of workers serve every test: a script is found by the workflow's id. Times are the server's,
which skips them, so nothing here may read this machine's clock.
"""

import asyncio
import itertools
import logging
import sysconfig
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

from pydantic import BaseModel
from temporalio import activity
from temporalio.api.enums.v1 import EventType, IndexedValueType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import Client, Plugin, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.common import WorkerDeploymentVersion
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker, WorkerDeploymentConfig

from longtake.models import (
    AwaitKeyInput,
    ClosedSubmission,
    CloseInput,
    DeliverInput,
    DeliveryReceipt,
    FailureDetails,
    GenerateVideoResult,
    GenerationPolicy,
    GenerationStatus,
    KeyTrial,
    PollInput,
    PrepareInput,
    ReconcileInput,
    Reconciliation,
    RecordInput,
    Resolution,
    ResolveInput,
    StoredVideo,
    SubmissionReceipt,
    SubmitInput,
    TaskRecord,
    TaskState,
)
from longtake.temporal.connection import DATA_CONVERTER
from longtake.temporal.names import SUBMISSION_TASK_QUEUE, TASK_QUEUE, WORKFLOW_TYPE, workflow_id
from longtake.temporal.search_attributes import SEARCH_ATTRIBUTE_KEYS
from worker import workflow_setup

IDENTITY: Final = "tests"
"""Instead of `<pid>@<host>`: it is written into every event, and histories are committed."""
PATIENCE_SECONDS: Final = 40
"""Real time that something which needs no waiting may take on a busy machine."""

TASK_ID: Final = "task_5f2c"
REQUEST: Final[dict[str, Any]] = {
    "model": "veo_3_1-fast-remix",
    "prompt": "a paper boat on a quiet lake",
    "prompt_extend": "the boat reaches the shore",
}
FIRST_CLIP: Final = StoredVideo(
    uri="file:///store/videos/k/first.mp4",
    sha256="1" * 64,
    bytes=8_000,
    duration_seconds=8,
    width=1280,
    height=720,
    has_audio=True,
)
FULL_VIDEO: Final = FIRST_CLIP.model_copy(
    update={"uri": "file:///store/videos/k/full.mp4", "sha256": "f" * 64, "bytes": 15_000, "duration_seconds": 15.0}
)


# --- What the fakes can be told to answer ----------------------------------------------------------------------------

Answer = Any
"""A value to return, an exception to raise, or an async function of the order that does either."""


def refusal(
    kind: str,
    message: str,
    *,
    retried: bool = False,
    after: timedelta | None = None,
    category: ApplicationErrorCategory = ApplicationErrorCategory.UNSPECIFIED,
    **details: Any,
) -> ApplicationError:
    """What an activity raises, in the shape that `activities.failures` gives it."""
    return ApplicationError(
        message,
        FailureDetails(**details),
        type=kind,
        non_retryable=not retried,
        next_retry_delay=after,
        category=category,
    )


def record(state: TaskState, gateway_status: str, **fields: Any) -> TaskRecord:
    return TaskRecord.model_validate({"task_id": TASK_ID, "state": state, "gateway_status": gateway_status, **fields})


def running(progress: int | None = None, **fields: Any) -> TaskRecord:
    return record(TaskState.RUNNING, "IN_PROGRESS", progress=progress, **fields)


def completed(**fields: Any) -> TaskRecord:
    known = {"remix_id": "video_first", "remix_id_extend": "video_second", "quota": 425_000, "progress": 100}
    return record(TaskState.COMPLETED, "SUCCESS", has_video_link=True, **{**known, **fields})


def extend_failed(**fields: Any) -> TaskRecord:
    known = {"remix_id": "video_first", "remix_id_extend": "video_second", "error_code": "extend_failed"}
    message = "线路繁忙,请重试 (E-2003)"
    return record(TaskState.EXTEND_FAILED, "FAILURE", **{**known, "error_message": message, **fields})


def generate_failed(**fields: Any) -> TaskRecord:
    known = {"remix_id": "video_first", "error_code": "generate_failed", "error_message": "违反谷歌AI安全协议 (E-1005)"}
    return record(TaskState.GENERATE_FAILED, "FAILURE", **{**known, **fields})


def lost(**fields: Any) -> TaskRecord:
    """A FAILURE that is no verdict; the gateway has thrown the ids away."""
    return record(TaskState.LOST, "FAILURE", **fields)


def delivered(video: StoredVideo, *warnings: str) -> DeliveryReceipt:
    return DeliveryReceipt(video=video, warnings=warnings, source="the link")


def accepted(**fields: Any) -> Callable[[SubmitInput], Awaitable[SubmissionReceipt]]:
    """A submission that the gateway took, at the server's time."""

    async def answer(_: SubmitInput) -> SubmissionReceipt:
        known: dict[str, Any] = {"submitted_at": server_now(), "slot": 1, "nonce": "n1", "request_id": "req-1"}
        return SubmissionReceipt.model_validate({"task_id": TASK_ID, **known, **fields})

    return answer


def server_now() -> datetime:
    """The time as the server sees it, inside an activity."""
    return activity.info().started_time


class Held:
    """An answer that is under way until the test lets it go on."""

    def __init__(self, answer: Answer = None) -> None:
        self.begun = asyncio.Event()
        self._go_on = asyncio.Event()
        self._answer = answer

    async def __call__(self, input: BaseModel) -> Any:
        self.begun.set()
        await self._go_on.wait()
        return await _give(self._answer, input)

    def let_go(self) -> None:
        self._go_on.set()


def again(answer: Answer) -> Iterator[Answer]:
    """The same answer for ever."""
    return itertools.repeat(answer)


def changing(after: timedelta, before: Answer, then: Answer) -> Iterator[Answer]:
    """One answer until so much time has passed since the first call, then another, for ever."""
    first: list[datetime] = []

    async def answer(input: BaseModel) -> Any:
        first.append(server_now())
        return await _give(then if server_now() - first[0] >= after else before, input)

    return again(answer)


async def _give(answer: Answer, input: BaseModel) -> Any:
    if isinstance(answer, BaseException):
        raise answer.with_traceback(None)  # raised again and again, it would grow a longer traceback each time
    return await answer(input) if callable(answer) else answer


@dataclass
class Script:
    """What each activity answers, call by call (a retry is a call). A call too many fails the test."""

    polls: Iterable[Answer] = ()
    deliver: Iterable[Answer] = ()
    prepare: Iterable[Answer] = (GenerationPolicy(),)
    submit: Iterable[Answer] = field(default_factory=lambda: (accepted(),))
    record: Iterable[Answer] = ()
    await_key: Iterable[Answer] = ()
    close: Iterable[Answer] = ()
    reconcile: Iterable[Answer] = ()
    resolve: Iterable[Answer] = ()
    extend: Iterable[Answer] = ()
    calls: list[tuple[str, BaseModel]] = field(default_factory=list)
    """What was called, in order, with what."""
    called_at: list[datetime] = field(default_factory=list)
    """When, by the server's clock."""
    overruns: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._answers = {
            "prepare_generation": iter(self.prepare),
            "submit_generation": iter(self.submit),
            "record_submission": iter(self.record),
            "query_generation": iter(self.polls),
            "deliver_video": iter(self.deliver),
            "await_api_key": iter(self.await_key),
            "close_submission": iter(self.close),
            "reconcile_submission": iter(self.reconcile),
            "resolve_submission": iter(self.resolve),
            "submit_extension": iter(self.extend),
        }

    async def perform(self, name: str, input: BaseModel) -> Any:
        self.calls.append((name, input))
        self.called_at.append(server_now())
        try:
            answer = next(self._answers[name])
        except StopIteration:
            self.overruns.append(name)
            raise refusal("ScriptOverrun", f"{name} was called once too often") from None
        return await _give(answer, input)

    def count(self, name: str) -> int:
        return sum(called == name for called, _ in self.calls)

    def inputs(self, name: str) -> list[Any]:
        return [input for called, input in self.calls if called == name]

    def times(self, name: str) -> list[datetime]:
        return [at for (called, _), at in zip(self.calls, self.called_at, strict=True) if called == name]


class Fakes:
    """The activities by their names; what they answer is in the script of the generation that calls."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}

    async def _perform(self, input: BaseModel) -> Any:
        info = activity.info()
        return await self.scripts[info.workflow_id or ""].perform(info.activity_type, input)

    @activity.defn(name="prepare_generation")
    async def prepare(self, input: PrepareInput) -> GenerationPolicy:
        return GenerationPolicy.model_validate(await self._perform(input))

    @activity.defn(name="submit_generation")
    async def submit(self, input: SubmitInput) -> SubmissionReceipt:
        return SubmissionReceipt.model_validate(await self._perform(input))

    @activity.defn(name="record_submission")
    async def record(self, input: RecordInput) -> None:
        await self._perform(input)

    @activity.defn(name="await_api_key")
    async def await_key(self, input: AwaitKeyInput) -> KeyTrial:
        return KeyTrial.model_validate(await self._perform(input))

    @activity.defn(name="close_submission")
    async def close(self, input: CloseInput) -> ClosedSubmission:
        return ClosedSubmission.model_validate(await self._perform(input))

    @activity.defn(name="reconcile_submission")
    async def reconcile(self, input: ReconcileInput) -> Reconciliation:
        return Reconciliation.model_validate(await self._perform(input))

    @activity.defn(name="resolve_submission")
    async def resolve(self, input: ResolveInput) -> Resolution:
        return Resolution.model_validate(await self._perform(input))

    @activity.defn(name="submit_extension")
    async def extend(self, input: SubmitInput) -> SubmissionReceipt:
        return SubmissionReceipt.model_validate(await self._perform(input))

    @activity.defn(name="query_generation")
    async def query(self, input: PollInput) -> TaskRecord:
        return TaskRecord.model_validate(await self._perform(input))

    @activity.defn(name="deliver_video")
    async def deliver(self, input: DeliverInput) -> DeliveryReceipt:
        return DeliveryReceipt.model_validate(await self._perform(input))


# --- One generation under test ---------------------------------------------------------------------------------------


class Generation:
    """A started workflow, with what tests want to know about it."""

    def __init__(self, rig: "Rig", handle: WorkflowHandle[Any, Any], script: Script) -> None:
        self.rig = rig
        self.handle = handle
        self.script = script

    async def result(self) -> GenerateVideoResult:
        return GenerateVideoResult.model_validate(await asyncio.wait_for(self.handle.result(), PATIENCE_SECONDS))

    async def failure(self) -> tuple[ApplicationError, FailureDetails]:
        """The typed error that it ends with, and everything known in it."""
        error = await self._error()
        assert isinstance(error, ApplicationError), repr(error)
        assert error.non_retryable
        assert len(error.details) == 1
        return error, FailureDetails.model_validate(error.details[0])

    async def cancellation(self) -> None:
        """Wait for the end, which must be Temporal's own `Cancelled`."""
        await self._error()
        assert (await self.handle.describe()).status is WorkflowExecutionStatus.CANCELED

    async def _error(self) -> BaseException | None:
        try:
            result = await asyncio.wait_for(self.handle.result(), PATIENCE_SECONDS)
        except WorkflowFailureError as error:
            return error.cause
        raise AssertionError(f"it should have failed, and returned {result!r}")

    async def status(self) -> GenerationStatus:
        status: GenerationStatus = await self.handle.query("status", result_type=GenerationStatus)
        return status

    async def skip_to(self, held: Held) -> None:
        """Let time pass until that activity is under way; from then on it stands still."""
        failed = asyncio.create_task(self.handle.result())
        begun = asyncio.create_task(held.begun.wait())
        try:
            await asyncio.wait({failed, begun}, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            assert begun.done(), "it ended, or stood still, before that activity"
        finally:
            for task in (failed, begun):
                task.cancel()
            await asyncio.gather(failed, begun, return_exceptions=True)

    async def reaches(self, wanted: Callable[[GenerationStatus], object]) -> GenerationStatus:
        """Wait, without skipping time, until the status is as wanted."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    if wanted(status := await self.status()):
                        return status
                except RPCError as error:  # the test server loses a query of a run that just continues as new
                    if error.status is not RPCStatusCode.DEADLINE_EXCEEDED:
                        raise
                await asyncio.sleep(0.01)

    async def page(self) -> str:
        """The current details, as Temporal's UI asks for them."""
        metadata: WorkflowMetadata = await self.handle.query("__temporal_workflow_metadata")
        return metadata.current_details

    async def attributes(self) -> dict[str, str]:
        """Our search attributes, those that are set."""
        found = (await self.handle.describe()).typed_search_attributes
        values = {key.name: found.get(key) for key in SEARCH_ATTRIBUTE_KEYS}
        return {name: value for name, value in values.items() if value is not None}

    async def events(self) -> list[HistoryEvent]:
        return [event async for event in self.handle.fetch_history_events()]

    async def has_event(self, kind: "EventType.ValueType", *, times: int = 1) -> None:
        """Wait until the history has such an event, or several."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while sum(event.event_type == kind for event in await self.events()) < times:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.01)


STEPS: Final = (EventType.EVENT_TYPE_TIMER_STARTED, EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED)


def without_summary(events: Iterable[HistoryEvent]) -> list[str]:
    """The timers and activities of which Temporal's UI could say no more than their type."""
    return [
        f"{event.event_id} {event.activity_task_scheduled_event_attributes.activity_type.name or 'timer'}"
        for event in events
        if event.event_type in STEPS and event.user_metadata.summary.data.strip(b'"') == b""
    ]


class Rig:
    """Server, workers and fakes."""

    def __init__(self, environment: WorkflowEnvironment, fakes: Fakes, general: Callable[[], Worker]) -> None:
        self.environment = environment
        self._fakes = fakes
        self._general = general
        self._workers = AsyncExitStack()
        self._started: list[Generation] = []
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Self:
        await self._workers.enter_async_context(self._general())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._workers.aclose()

    @asynccontextmanager
    async def no_workflow_worker(self) -> AsyncIterator[None]:
        """What happens meanwhile reaches the workflow all at once, in the next worker's first activation."""
        await self._workers.aclose()
        yield
        await self._workers.enter_async_context(self._general())

    @property
    def client(self) -> Client:
        return self.environment.client

    def register(self, workflow_name: str, script: Script) -> None:
        """Say what the activities of a workflow answer that the test starts itself."""
        self._fakes.scripts[workflow_name] = script

    async def start(
        self, script: Script, *arguments: Any, key: str | None = None, client: Client | None = None
    ) -> Generation:
        """Start the workflow as any SDK would: by its name, with plain JSON.

        A client of the caller's own skips no time while it waits: `pass_time`.
        """
        name = workflow_id(key or f"test-{next(self._numbers)}")
        self.register(name, script)
        caller = client or self.client
        handle = await caller.start_workflow(WORKFLOW_TYPE, args=arguments, id=name, task_queue=TASK_QUEUE)
        generation = Generation(self, handle, script)
        self._started.append(generation)
        return generation

    async def generate(self, script: Script, *, key: str | None = None, **fields: Any) -> Generation:
        return await self.start(script, {**REQUEST, **fields}, key=key)

    async def pass_time(self, duration: timedelta) -> None:
        await self.environment.sleep(duration)

    async def clean_up(self) -> None:
        """Terminate what still runs: one stuck workflow freezes time for all others. Then judge scripts and steps."""
        started, self._started = self._started, []
        for generation in started:
            if (await generation.handle.describe()).status is not WorkflowExecutionStatus.RUNNING:
                continue
            try:
                await generation.handle.terminate("the test is over")
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:  # it ended by itself in between
                    raise
        assert not [name for generation in started for name in generation.script.overruns]
        histories = await asyncio.gather(*(self.history(generation) for generation in started))
        bare = without_summary(itertools.chain(*histories))
        assert not bare, f"without a summary: {bare}"

    async def history(self, generation: Generation) -> list[HistoryEvent]:
        """Every event, also of the runs that it continued as new."""
        events: list[HistoryEvent] = []
        run = generation.handle.first_execution_run_id
        while run:
            handle = self.client.get_workflow_handle(generation.handle.id, run_id=run)
            events += [event async for event in handle.fetch_history_events()]
            run = events[-1].workflow_execution_continued_as_new_event_attributes.new_execution_run_id
        return events


class SharedRig:
    """A rig for many tests, replaced once its server's time no longer skips.

    A workflow that ends while one of its activities is under way (ended by the test, or by its own code) leaves the
    server waiting for that activity for good: from then on its time passes only as fast as ours, and every later test
    would wait in vain.
    """

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._rig: Rig | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def healthy(self) -> Rig:
        """The rig that is there, or a new one where its server's time stands still."""
        if self._rig is not None and not await self._skips_time(self._rig):
            self._rig = None
            await self._stack.aclose()
        if self._rig is None:
            self._rig = await self._stack.enter_async_context(running_rig())
        return self._rig

    @staticmethod
    async def _skips_time(rig: Rig) -> bool:
        """Whether an hour passes within seconds."""
        try:
            async with asyncio.timeout(5):
                await rig.pass_time(timedelta(hours=1))
        except (TimeoutError, RPCError):
            return False
        return True


@contextmanager
def _expected_failures_unlogged() -> Iterator[None]:
    """Activities fail here by the hundred, on purpose: their tracebacks cost more time than the tests."""
    logger = logging.getLogger("temporalio.activity")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@cache
def _runtime() -> Runtime:
    """Without the SDK core's warnings: that this server is no real one, and of the failures that are tested here."""
    quiet = LoggingConfig(TelemetryFilter(core_level="ERROR", other_level="ERROR"))
    return Runtime(telemetry=TelemetryConfig(logging=quiet))


@asynccontextmanager
async def running_rig(*plugins: Plugin, cached: int = 1000) -> AsyncIterator[Rig]:
    """Everything that a workflow test needs; `worker.py` is followed wherever it says how.

    Args:
        plugins: Of the client, as `connect()` has them.
        cached: How many workflows a worker keeps; on this server those never come back from one that is sent away.
    """
    server = Path(sysconfig.get_path("scripts")) / "temporal-test-server"
    environment = await WorkflowEnvironment.start_time_skipping(
        data_converter=DATA_CONVERTER,
        identity=IDENTITY,
        runtime=_runtime(),
        plugins=plugins,
        test_server_existing_path=str(server),
    )
    async with environment:
        # This server cannot list them, so the product's own `register_search_attributes` does not work on it.
        kinds = {key.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD for key in SEARCH_ATTRIBUTE_KEYS}
        await environment.client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(namespace=environment.client.namespace, search_attributes=kinds)
        )
        async with rig_on(environment, cached=cached) as rig:
            yield rig


@asynccontextmanager
async def rig_on(environment: WorkflowEnvironment, *, cached: int = 1000) -> AsyncIterator[Rig]:
    """Workers and fakes on a server that is there."""
    version = WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(deployment_name="longtake", build_id="tests"), use_worker_versioning=False
    )
    fakes = Fakes()

    def general() -> Worker:
        return Worker(
            environment.client,
            task_queue=TASK_QUEUE,
            activities=[
                fakes.prepare,
                fakes.record,
                fakes.close,
                fakes.reconcile,
                fakes.resolve,
                fakes.query,
                fakes.deliver,
            ],
            deployment_config=version,
            max_cached_workflows=cached,
            **workflow_setup(),
        )

    submitting = Worker(
        environment.client,
        task_queue=SUBMISSION_TASK_QUEUE,
        activities=[fakes.submit, fakes.extend, fakes.await_key],
        deployment_config=version,
    )
    with _expected_failures_unlogged():
        async with submitting, Rig(environment, fakes, general) as rig:
            yield rig
