"""The typed client against a Temporal that is played here: keys, restarts, outages, failures.

With real servers: tests/workflows/test_starting_again.py and tests/end_to_end.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio import exceptions
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import SearchAttributePair, TypedSearchAttributes, WorkflowIDReusePolicy
from temporalio.exceptions import (
    ApplicationError,
    CancelledError,
    TerminatedError,
    WorkflowAlreadyStartedError,
)
from temporalio.service import RPCError, RPCStatusCode

from longtake import (
    Decision,
    DecisionAction,
    DecisionRejected,
    FailureDetails,
    GenerateVideoInput,
    GenerateVideoResult,
    GenerationFailure,
    GenerationNotFound,
    GenerationStatus,
    InvalidKey,
    InvalidRequest,
    KeyInUse,
    NoWorker,
    Paid,
    Stage,
    StoredVideo,
    TemporalUnavailable,
    UncollectedExtension,
    VideoClient,
)
from longtake.temporal.connection import DATA_CONVERTER
from longtake.temporal.names import TASK_QUEUE, WORKFLOW_TYPE
from longtake.temporal.search_attributes import GATEWAY_TASK_ID, VIDEO_MODEL, VIDEO_PAID, VIDEO_STAGE

REQUEST = GenerateVideoInput(model="veo_3_1-fast-remix", prompt="a pier", prompt_extend="the tide")
OTHER = REQUEST.model_copy(update={"prompt": "a mole"})
STATUS = GenerationStatus(key="order-17", stage=Stage.FIRST_SEGMENT)
VIDEO = StoredVideo(
    uri="file:///a.mp4", sha256="0" * 64, bytes=1, duration_seconds=15, width=2, height=2, has_audio=True
)
RESULT = GenerateVideoResult(outcome="full", video=VIDEO, model=REQUEST.model, task_id="task_1", polls=3)
UNCOLLECTED = RESULT.model_copy(update={"uncollected": UncollectedExtension(number=1, reason="DeliveryFailed")})
RUNNING, FAILED, COMPLETED = (
    WorkflowExecutionStatus.RUNNING,
    WorkflowExecutionStatus.FAILED,
    WorkflowExecutionStatus.COMPLETED,
)


def rpc_error(status: RPCStatusCode) -> RPCError:
    return RPCError("not now\nand more", status, b"")


def failed(kind: str, paid: Paid = Paid.UNKNOWN) -> WorkflowFailureError:
    return WorkflowFailureError(cause=ApplicationError("no video", FailureDetails(paid=paid), type=kind))


@dataclass
class Temporal:
    """One namespace with at most one workflow; each error in `outages` fails one call."""

    request: GenerateVideoInput | None = None
    status: WorkflowExecutionStatus = RUNNING
    paid: Paid | None = None
    answers: dict[str, Any] = field(default_factory=dict)
    outages: list[RPCError] = field(default_factory=list)
    started: list[dict[str, Any]] = field(default_factory=list)
    updates: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    data_converter = DATA_CONVERTER
    namespace = "default"

    def client(self, **options: Any) -> VideoClient:
        return VideoClient(cast("Client", self), **options)

    def _answer(self, name: str) -> Any:
        if self.outages:
            raise self.outages.pop(0)
        if self.request is None and name != "start":
            raise rpc_error(RPCStatusCode.NOT_FOUND)
        answer = self.answers.get(name)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def start_workflow(self, workflow: str, request: GenerateVideoInput, **options: Any) -> Any:
        self._answer("start")
        free = self.request is None or (
            self.status is not RUNNING and options["id_reuse_policy"] is WorkflowIDReusePolicy.ALLOW_DUPLICATE
        )
        if not free:
            raise WorkflowAlreadyStartedError(options["id"], workflow)
        self.request, self.status = request, RUNNING
        self.started.append({"workflow": workflow, "request": request, **options})
        return SimpleNamespace(result_run_id=f"run-{len(self.started)}")

    def get_workflow_handle(self, name: str, **_: Any) -> Any:
        self.names.add(name)
        return self

    async def describe(self) -> Any:
        self._answer("describe")
        return self._execution()

    def _execution(self) -> Any:
        values: list[SearchAttributePair[Any]] = [
            SearchAttributePair(VIDEO_MODEL, REQUEST.model),
            SearchAttributePair(VIDEO_STAGE, "first_segment"),
            SearchAttributePair(GATEWAY_TASK_ID, "task_1"),
        ]
        values += [SearchAttributePair(VIDEO_PAID, self.paid.value)] if self.paid else []
        return SimpleNamespace(
            id="video-order-17",
            run_id="run-0",
            status=self.status,
            start_time=datetime(2026, 1, 1, tzinfo=UTC),
            close_time=None,
            typed_search_attributes=TypedSearchAttributes(values),
            raw_description=SimpleNamespace(pending_activities=()),
        )

    async def query(self, _name: str, **_: Any) -> Any:
        return self._answer("query")

    async def result(self) -> Any:
        return self._answer("result")

    async def cancel(self) -> None:
        self._answer("cancel")

    async def execute_update(self, _name: str, *, id: str, **_: Any) -> Any:  # noqa: A002 - the SDK's name
        self.updates.append(id)
        return self._answer("update")

    def fetch_history_events(self, **_: Any) -> Any:
        return _FirstEvent(self)

    async def list_workflows(self, query: str, **_: Any) -> AsyncIterator[Any]:
        self.answers["listed"] = query
        yield self._execution()


class _FirstEvent:
    def __init__(self, temporal: Temporal) -> None:
        self._temporal = temporal
        self.current_page: list[Any] = []

    async def fetch_next_page(self) -> None:
        payloads = await DATA_CONVERTER.encode([self._temporal.request])
        started = SimpleNamespace(input=SimpleNamespace(payloads=payloads))
        self.current_page = [SimpleNamespace(workflow_execution_started_event_attributes=started)]


# --- Starting ---------------------------------------------------------------------------------------------------------


async def test_a_new_key_starts_one_workflow() -> None:
    temporal = Temporal()
    assert await temporal.client().start("order-17", REQUEST) == ("run-1", True)
    (start,) = temporal.started
    assert (start["workflow"], start["id"], start["task_queue"]) == (WORKFLOW_TYPE, "video-order-17", TASK_QUEUE)
    assert start["request"] == REQUEST
    shown = f"{start['static_summary']}{start['static_details']}"
    assert REQUEST.prompt not in shown
    assert REQUEST.prompt_extend not in shown


async def test_a_bad_request_or_key_starts_nothing() -> None:
    temporal = Temporal()
    with pytest.raises(InvalidRequest):
        await temporal.client().start("order-17", REQUEST.model_copy(update={"prompt": ""}))
    with pytest.raises(InvalidKey):
        await temporal.client().start("order 17", REQUEST)
    assert temporal.started == []


@pytest.mark.parametrize("request_", [REQUEST, OTHER])
async def test_a_running_key_attaches_to_the_same_request_only(request_: GenerateVideoInput) -> None:
    temporal = Temporal(request=REQUEST)
    if request_ is OTHER:
        with pytest.raises(KeyInUse):
            await temporal.client().start("order-17", request_)
    else:
        assert await temporal.client().start("order-17", request_) == ("run-0", False)
    assert temporal.started == []


@pytest.mark.parametrize(
    ("status", "end", "starts"),
    [
        (COMPLETED, RESULT, False),
        (COMPLETED, UNCOLLECTED, True),
        (FAILED, failed("GenerationFailed", Paid.YES), False),
        (FAILED, failed("GenerationFailed", Paid.NO), True),
        (FAILED, failed("SubmissionOutcomeUnknown"), True),
        (FAILED, failed("DeliveryFailed", Paid.YES), True),
        (FAILED, failed("ExtensionFailed", Paid.YES), False),
        (FAILED, WorkflowFailureError(cause=TerminatedError("gone")), True),
    ],
)
async def test_an_ended_key_starts_again_only_where_something_is_left(
    status: WorkflowExecutionStatus, end: object, *, starts: bool
) -> None:
    temporal = Temporal(request=REQUEST, status=status, answers={"result": end})
    assert await temporal.client().start("order-17", REQUEST) == (("run-1", True) if starts else ("run-0", False))
    assert len(temporal.started) == starts


@pytest.mark.parametrize("paid", [Paid.NO, Paid.YES, Paid.UNKNOWN, None])
async def test_an_ended_key_takes_another_request_only_if_nothing_was_paid(paid: Paid | None) -> None:
    temporal = Temporal(request=REQUEST, status=FAILED, paid=paid, answers={"result": failed("NotSubmitted")})
    if paid is Paid.NO:
        assert await temporal.client().start("order-17", OTHER) == ("run-1", True)
    else:
        with pytest.raises(KeyInUse):
            await temporal.client().start("order-17", OTHER)
        assert temporal.started == []


# --- Outages ----------------------------------------------------------------------------------------------------------


async def test_a_call_outlasts_an_outage_within_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtake.client._RETRY_SECONDS", 0.001)
    temporal = Temporal(outages=[rpc_error(RPCStatusCode.UNAVAILABLE)])
    assert await temporal.client().start("order-17", REQUEST) == ("run-1", True)


async def test_a_longer_outage_ends_the_call() -> None:
    temporal = Temporal(request=REQUEST, outages=[rpc_error(RPCStatusCode.UNAVAILABLE)] * 3)
    client = temporal.client().with_patience(timedelta(0))
    for call in (client.status("order-17"), client.cancel("order-17"), client.knows("order-17")):
        with pytest.raises(TemporalUnavailable):
            await call


async def test_each_attempt_of_an_update_has_the_same_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtake.client._RETRY_SECONDS", 0.001)
    outages = [rpc_error(RPCStatusCode.UNAVAILABLE)] * 2
    temporal = Temporal(request=REQUEST, answers={"update": STATUS}, outages=outages)
    decision = Decision(action=DecisionAction.ABANDON)
    assert await temporal.client().decide("order-17", decision) == STATUS
    assert len(temporal.updates) == 3
    assert len(set(temporal.updates)) == 1


# --- Asking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (RPCStatusCode.DEADLINE_EXCEEDED, NoWorker),
        (RPCStatusCode.FAILED_PRECONDITION, NoWorker),
        (RPCStatusCode.NOT_FOUND, GenerationNotFound),
        (RPCStatusCode.PERMISSION_DENIED, RPCError),
    ],
)
async def test_a_status_that_cannot_be_had_says_why(status: RPCStatusCode, error: type[Exception]) -> None:
    temporal = Temporal(request=REQUEST, answers={"query": rpc_error(status)})
    with pytest.raises(error):
        await temporal.client().status("order-17")


async def test_a_snapshot_without_a_worker_has_what_the_server_knows() -> None:
    temporal = Temporal(request=REQUEST, answers={"query": rpc_error(RPCStatusCode.DEADLINE_EXCEEDED)})
    snapshot = await temporal.client().snapshot("order-17")
    assert (snapshot.status, snapshot.running, snapshot.execution.task_id) == (None, True, "task_1")
    temporal.answers["query"] = STATUS
    assert (await temporal.client().snapshot("order-17")).status == STATUS


async def test_an_unknown_key_is_not_found() -> None:
    client = Temporal().client()
    assert await client.knows("order-17") is False
    calls = (client.status("order-17"), client.snapshot("order-17"), client.result("order-17"))
    for call in (*calls, client.cancel("order-17"), client.poll_now("order-17")):
        with pytest.raises(GenerationNotFound):
            await call


async def test_a_workflow_that_somebody_named_by_the_key_itself_is_known() -> None:
    temporal = Temporal(request=REQUEST)
    assert await temporal.client().knows("an id / of others")
    assert temporal.names == {"an id / of others"}


async def test_a_list_takes_a_further_filter() -> None:
    temporal = Temporal(request=REQUEST)
    (found,) = [one async for one in temporal.client().generations('VideoStage = "failed"')]
    assert (found.key, found.state, found.stage, found.paid) == ("order-17", "RUNNING", "first_segment", None)
    assert temporal.answers["listed"] == f'WorkflowType = "{WORKFLOW_TYPE}" AND (VideoStage = "failed")'


# --- Updates and ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (WorkflowUpdateRPCTimeoutOrCancelledError(), NoWorker),
        (WorkflowUpdateFailedError(ApplicationError("no decision is awaited")), DecisionRejected),
        (rpc_error(RPCStatusCode.NOT_FOUND), DecisionRejected),
        (rpc_error(RPCStatusCode.PERMISSION_DENIED), RPCError),
    ],
)
async def test_an_update_that_was_not_taken_says_why(answer: Exception, error: type[Exception]) -> None:
    temporal = Temporal(request=REQUEST, status=COMPLETED, answers={"update": answer})
    with pytest.raises(error):
        await temporal.client().poll_now("order-17")


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (ApplicationError("no", {"paid": "yes", "task_id": "task_1"}, type="GenerationFailed"), "GenerationFailed"),
        (ApplicationError("no", {"paid": ["not", "ours"]}, type="Theirs"), "Theirs"),
        (ApplicationError("no"), "Defect"),
        (TerminatedError("gone"), "Terminated"),
        (exceptions.TimeoutError("late", type=None, last_heartbeat_details=()), "TimedOut"),
    ],
)
async def test_every_end_without_a_video_is_one_error(cause: BaseException, kind: str) -> None:
    temporal = Temporal(request=REQUEST, status=FAILED, answers={"result": WorkflowFailureError(cause=cause)})
    with pytest.raises(GenerationFailure) as failure:
        await temporal.client().result("order-17")
    assert failure.value.kind == kind
    assert failure.value.details.paid is (Paid.YES if kind == "GenerationFailed" else Paid.UNKNOWN)


async def test_a_cancellation_carries_what_the_list_knows_of_money() -> None:
    end = WorkflowFailureError(cause=CancelledError("cancelled"))
    temporal = Temporal(request=REQUEST, status=FAILED, paid=Paid.YES, answers={"result": end})
    with pytest.raises(GenerationFailure) as failure:
        await temporal.client().result("order-17")
    details = failure.value.details
    assert (failure.value.kind, details.paid, details.task_id) == ("Cancelled", Paid.YES, "task_1")


async def test_a_finished_generation_returns_its_result() -> None:
    temporal = Temporal(request=REQUEST, status=COMPLETED, answers={"result": RESULT})
    assert await temporal.client().result("order-17") == RESULT
