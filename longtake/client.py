"""The typed client for generations: start, watch, decide, cancel. Backends and the command line use it.

See `longtake` for an example.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Self, TypeVar

from pydantic import ValidationError
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import (
    ApplicationError,
    CancelledError,
    FailureError,
    TerminatedError,
    WorkflowAlreadyStartedError,
)
from temporalio.service import RPCError, RPCStatusCode

from longtake.display import after_cancelling, code, line, prose
from longtake.models import (
    Decision,
    FailureDetails,
    GenerateVideoInput,
    GenerateVideoResult,
    GenerationStatus,
    OnExtendFailed,
    OnKeyRefused,
    Paid,
)
from longtake.request.rules import MODELS, InvalidRequest, check_request, differing_fields, prompt_paths
from longtake.storage import Store
from longtake.submission.ledger import SubmissionLedger
from longtake.temporal.connection import TemporalProblem
from longtake.temporal.ledger_registration import check
from longtake.temporal.names import TASK_QUEUE, WORKFLOW_TYPE, InvalidKey, key_of, workflow_id
from longtake.temporal.search_attributes import (
    GATEWAY_TASK_ID,
    VIDEO_ATTENTION,
    VIDEO_MODEL,
    VIDEO_OUTCOME,
    VIDEO_PAID,
    VIDEO_STAGE,
)

_RESTARTABLE = frozenset(
    {
        "NotSubmitted",
        "SubmissionOutcomeUnknown",
        "Abandoned",
        "DeliveryFailed",
        "TaskLost",
        "GenerationTimedOut",
        "Cancelled",
        "Terminated",
        "TimedOut",
    }
)
"""After these failures the same key may be started again, to submit at last or to collect what was paid.
The submission ledger keeps a new run from paying twice."""

_ON_EXTEND_FAILED = {
    OnExtendFailed.FALLBACK: "the 8 s clip is the result",
    OnExtendFailed.RETRY: "pay for it again, if the workers are configured for it",
    OnExtendFailed.ASK: "wait for a decision",
    OnExtendFailed.FAIL: "the generation fails; the 8 s clip is kept",
}
_ON_KEY_REFUSED = {
    OnKeyRefused.FAIL: "the generation fails; nothing is paid",
    OnKeyRefused.WAIT: "wait until the gateway accepts it",
}
_QUERY_TIMEOUT = timedelta(seconds=6)
_UPDATE_TIMEOUT = timedelta(seconds=15)
PATIENCE = timedelta(seconds=60)
"""How long a call retries while Temporal is unavailable. A frontend restart takes seconds."""
_RETRY_SECONDS = 1.0
_UNAVAILABLE = frozenset(
    {RPCStatusCode.UNAVAILABLE, RPCStatusCode.UNKNOWN, RPCStatusCode.INTERNAL, RPCStatusCode.ABORTED}
)
"""Statuses of a frontend that restarts, and of a broken connection. A timeout is not among them: it means that no
worker answers."""
_NO_ANSWER = frozenset({RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED})
_T = TypeVar("_T")


class GenerationNotFound(Exception):
    """Temporal has no generation with this key, or none that still runs."""


class KeyInUse(Exception):
    """The key already names another request; the message lists the fields that differ."""


class NoWorker(Exception):
    """Temporal answers, but no worker does."""


class TemporalUnavailable(TemporalProblem):
    """Temporal was unavailable for longer than the call's patience. Nothing is lost; repeat the same call later."""


class DecisionRejected(Exception):
    """The workflow rejected the update; the message says why."""


class GenerationFailure(Exception):
    """The generation ended without a video.

    Attributes:
        kind: The failure type, such as `GenerationFailed`, or `Cancelled`, `Terminated`, `TimedOut`.
        message: What happened.
        details: The ids and facts known, and advice.
    """

    def __init__(self, kind: str, message: str, details: FailureDetails) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.details = details


@dataclass(frozen=True)
class Execution:
    """One generation in Temporal's list."""

    key: str
    """From the workflow id. Someone else may have chosen that id, so it need not be a valid key."""
    run_id: str
    state: str
    """Temporal's status: `RUNNING`, `COMPLETED`, `FAILED`, …"""
    started_at: datetime
    closed_at: datetime | None
    stage: str | None
    attention: str | None
    outcome: str | None
    paid: str | None
    model: str | None
    task_id: str | None
    workflow_id: str = ""


@dataclass(frozen=True)
class PendingStep:
    """An activity that is scheduled or running."""

    name: str
    attempt: int
    problem: str | None
    """Why the previous attempt failed."""
    next_attempt_at: datetime | None


@dataclass(frozen=True)
class Snapshot:
    """The current state of a generation."""

    execution: Execution
    status: GenerationStatus | None
    """None if no worker answered."""
    steps: tuple[PendingStep, ...] = field(default=())

    @property
    def running(self) -> bool:
        """Whether the generation has not ended yet."""
        return self.execution.state == "RUNNING"


class VideoClient:
    """Starts and controls generations by their idempotency key."""

    def __init__(self, temporal: Client, *, store: Store | None = None, patience: timedelta = PATIENCE) -> None:
        """Use a connection.

        Args:
            temporal: From `longtake.connect`, or any client with the same data converter.
            store: The store that this client shares with the workers. Before its first start the client checks that
                the namespace belongs to that store's ledger. Without a store only the workers check it.
            patience: How long each call retries while Temporal is unavailable, before it raises `TemporalUnavailable`.
        """
        self._temporal = temporal
        self._ledger = SubmissionLedger(store, longest_exchange=timedelta(0)) if store is not None else None
        self._ledger_is_checked = False
        self._patience = patience.total_seconds()

    def with_patience(self, patience: timedelta) -> Self:
        """A copy with another patience, for callers that report an unavailable Temporal themselves."""
        other = copy(self)
        other._patience = patience.total_seconds()  # noqa: SLF001 - a copy of this object
        return other

    async def start(self, key: str, request: GenerateVideoInput) -> tuple[str, bool]:
        """Start a generation, or attach to the one with this key.

        Args:
            key: The idempotency key: your own name for this generation, such as an order number. Starting the same key
                again never pays again, as long as the workers keep the same submission ledger.
            request: What to make. If something was submitted for this key, it may name a model retired since.

        Returns:
            The run id, and whether this call started it.

        Raises:
            InvalidRequest: The request breaks rules, and nothing was submitted for this key; nothing was started.
            InvalidKey: The key has unsafe characters, or too many.
            KeyInUse: The key names another request.
            WrongLedger: The namespace belongs to another store's ledger.
            LedgerUnavailable: The store cannot be read.
            TemporalUnavailable: The generation may have been started; repeat the same call.
        """
        request, refused = _judged(request)
        name = workflow_id(key)
        ledger = self._ledger
        if ledger is not None and not self._ledger_is_checked:
            await self._retrying(lambda: check(self._temporal, ledger))
            self._ledger_is_checked = True
        # Without the store, a worker asks the ledger before anything is sent.
        if refused and not (await self.knows(key) if ledger is None else not await ledger.is_untouched(key)):
            raise refused
        try:
            return await self._start(name, request, WorkflowIDReusePolicy.REJECT_DUPLICATE), True
        except WorkflowAlreadyStartedError:
            run_id = await self._attach(key, request)
        if run_id is not None:
            return run_id, False
        before = await self._request_of(key)
        if before is not None and not differing_fields(request, before):
            request = before  # the ledger tells prompts from their paths, so send the same form again
        try:
            return await self._start(name, request, WorkflowIDReusePolicy.ALLOW_DUPLICATE), True
        except WorkflowAlreadyStartedError:  # another caller started it meanwhile
            execution, _ = await self._describe(key)
            return execution.run_id, False

    async def status(self, key: str) -> GenerationStatus:
        """Query the workflow. This needs a running worker, for ended generations too.

        Raises:
            GenerationNotFound: There is none with this key.
            NoWorker: No worker answered within a few seconds.
            TemporalUnavailable: See the class.
        """
        handle = self._handle(key)
        try:
            status: GenerationStatus = await self._retrying(
                lambda: handle.query("status", result_type=GenerationStatus, rpc_timeout=_QUERY_TIMEOUT)
            )
            return status
        except RPCError as error:
            if error.status in _NO_ANSWER or error.status is RPCStatusCode.FAILED_PRECONDITION:
                raise NoWorker("no worker answers: check that a worker is running and healthy") from None
            raise _not_found(key, error) from None

    async def snapshot(self, key: str) -> Snapshot:
        """The generation's state from the server and, if a worker answers, from the workflow.

        Raises:
            GenerationNotFound: There is none with this key.
        """
        execution, steps = await self._describe(key)
        try:
            status: GenerationStatus | None = await self.status(key)
        except (NoWorker, RPCError, WorkflowQueryFailedError):
            status = None
        return Snapshot(execution, status, steps)

    async def latest_run(self, key: str) -> Execution | None:
        """The newest run of a key, running or ended, whoever started it; None where Temporal does not know it.

        Raises:
            TemporalUnavailable: See the class.
        """
        ids = [key]  # other clients may use the key itself as the workflow id
        with suppress(InvalidKey):
            ids.insert(0, workflow_id(key))
        for name in ids:
            try:
                return _execution(await self._retrying(self._temporal.get_workflow_handle(name).describe))
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:
                    raise
        return None

    async def knows(self, key: str) -> bool:
        """Whether Temporal has a workflow for this key.

        Raises:
            TemporalUnavailable: See the class.
        """
        return await self.latest_run(key) is not None

    async def result(self, key: str) -> GenerateVideoResult:
        """Wait until the generation ends, and return its result.

        Raises:
            GenerationFailure: It ended without a video.
            GenerationNotFound: There is none with this key.
        """
        handle = self._temporal.get_workflow_handle(workflow_id(key), result_type=GenerateVideoResult)
        try:
            result: GenerateVideoResult = await self._retrying(handle.result)
            return result
        except WorkflowFailureError as error:
            failure = _failure(error)
        except RPCError as error:
            raise _not_found(key, error) from None
        if failure.kind == "Cancelled":
            # A cancellation carries no details; the search attributes say what is known about money.
            execution, _ = await self._describe(key)
            paid = Paid(execution.paid) if execution.paid in set(Paid) else Paid.UNKNOWN
            known = {"key": key, "model": execution.model, "paid": paid, "task_id": execution.task_id}
            failure = GenerationFailure(failure.kind, _cancelled(paid), failure.details.model_copy(update=known))
        raise failure

    async def cancel(self, key: str) -> None:
        """Cancel a generation. The gateway may still finish and charge a submitted task; its ids are kept.

        Raises:
            GenerationNotFound: No generation with this key is running.
        """
        try:
            await self._retrying(self._handle(key).cancel)
        except RPCError as error:
            raise _not_found(key, error) from None

    async def decide(self, key: str, decision: Decision) -> GenerationStatus:
        """Send the decision that a generation waits for.

        Raises:
            DecisionRejected: The generation does not wait for this decision; the message says for which.
            GenerationNotFound: No generation with this key is running.
        """
        return await self._update(key, "decide", decision)

    async def poll_now(self, key: str) -> GenerationStatus:
        """Poll the task now. If the generation waits for an API key, submit now: after fixing or topping up the key.

        Raises:
            GenerationNotFound: No generation with this key is running.
        """
        return await self._update(key, "poll_now")

    async def generations(self, query: str = "", *, limit: int = 50) -> AsyncIterator[Execution]:
        """List generations, newest first.

        Args:
            query: An additional list filter, such as `VideoStage = "failed"`.
            limit: The maximum number.
        """
        full = f'WorkflowType = "{WORKFLOW_TYPE}"' + (f" AND ({query})" if query else "")
        pages = self._temporal.list_workflows(full, limit=limit)
        while True:
            try:
                # A failed page is requested again; earlier executions are not repeated.
                execution = await self._retrying(pages.__anext__)
            except StopAsyncIteration:
                return
            yield _execution(execution)

    async def _start(self, name: str, request: GenerateVideoInput, reuse: WorkflowIDReusePolicy) -> str:
        handle = await self._retrying(
            lambda: self._temporal.start_workflow(
                WORKFLOW_TYPE,
                request,
                id=name,
                task_queue=TASK_QUEUE,
                id_reuse_policy=reuse,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                search_attributes=TypedSearchAttributes([SearchAttributePair(VIDEO_MODEL, request.model)]),
                static_summary=_summary(request),
                static_details=_details(key_of(name), request),
            )
        )
        return handle.result_run_id or ""

    async def _attach(self, key: str, request: GenerateVideoInput) -> str | None:
        """The id of the run to attach to; None if the key may start a new run.

        Raises:
            KeyInUse: The key already names another request.
        """
        execution, _ = await self._describe(key)
        may_restart = execution.state != "RUNNING" and await self._may_restart(key)
        if may_restart and execution.paid == Paid.NO:
            return None  # nothing was submitted, so the key may take another request
        theirs = await self._request_of(key)
        if theirs is not None and (differing := differing_fields(request, theirs)):
            raise KeyInUse(
                f"the key {key!r} already names another request (it differs in {', '.join(differing)}): "
                "use a new key for this one"
            )
        return None if may_restart else execution.run_id

    async def _may_restart(self, key: str) -> bool:
        """Whether an ended generation was never paid, or left something paid to collect."""
        try:
            result = await self.result(key)
        except GenerationFailure as failure:
            return failure.kind in _RESTARTABLE or failure.details.paid is Paid.NO
        return result.uncollected is not None

    async def _request_of(self, key: str) -> GenerateVideoInput | None:
        """The input that this key's generation was started with; None if it cannot be read."""
        events = self._handle(key).fetch_history_events(page_size=1)
        await self._retrying(events.fetch_next_page)
        for event in (events.current_page or ())[:1]:
            payloads = event.workflow_execution_started_event_attributes.input.payloads
            if not payloads:
                return None
            decoded = await self._temporal.data_converter.decode(payloads[:1])
            try:
                first = decoded[0]
                if isinstance(first, dict) and "carried" in first:  # continued as new: already accepted
                    return GenerateVideoInput.model_validate(first["input"])
                return check_request(first, offered=False)
            except (InvalidRequest, KeyError, ValidationError):
                return None
        return None

    async def _describe(self, key: str) -> tuple[Execution, tuple[PendingStep, ...]]:
        try:
            description = await self._retrying(self._handle(key).describe)
        except RPCError as error:
            raise _not_found(key, error) from None
        return _execution(description), tuple(await self._steps(description))

    async def _steps(self, description: WorkflowExecutionDescription) -> list[PendingStep]:
        steps = []
        for pending in description.raw_description.pending_activities:
            problem = None
            if pending.HasField("last_failure"):
                failure = await self._temporal.data_converter.decode_failure(pending.last_failure)
                problem = str(failure.message if isinstance(failure, FailureError) else failure)
            waiting = pending.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
            steps.append(
                PendingStep(
                    name=pending.activity_type.name,
                    attempt=pending.attempt,
                    problem=problem,
                    next_attempt_at=pending.next_attempt_schedule_time.ToDatetime(UTC)
                    if waiting and pending.HasField("next_attempt_schedule_time")
                    else None,
                )
            )
        return steps

    async def _update(self, key: str, name: str, *arguments: object) -> GenerationStatus:
        # One id for all attempts: if a response was lost, the next attempt gets it, and nothing is decided twice.
        update_id = str(uuid.uuid4())
        try:
            status: GenerationStatus = await self._retrying(
                lambda: self._handle(key).execute_update(
                    name, args=arguments, id=update_id, result_type=GenerationStatus, rpc_timeout=_UPDATE_TIMEOUT
                )
            )
            return status
        except WorkflowUpdateRPCTimeoutOrCancelledError:
            await self._describe(key)  # raises if Temporal itself is unavailable
            # The server may still deliver it to the next worker; "rejected" would make people decide twice.
            raise NoWorker(
                f"no worker answers. A worker that starts later may still take this {name}: check the status then, "
                "before you send it again"
            ) from None
        except WorkflowUpdateFailedError as error:
            raise DecisionRejected(str(error.cause)) from None
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                execution, _ = await self._describe(key)  # raises if there is none at all
                raise DecisionRejected(f"{key} has already ended: {execution.state.lower()}") from None
            raise

    async def _retrying(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Await a call that is safe to repeat, and repeat it while Temporal is unavailable.

        Raises:
            TemporalUnavailable: The patience is over.
        """
        unavailable_since: float | None = None
        while True:
            try:
                return await call()
            except RPCError as error:
                if error.status not in _UNAVAILABLE:
                    raise
                unavailable_since = unavailable_since or time.monotonic()
                if time.monotonic() - unavailable_since >= self._patience:
                    reason = error.message.splitlines()[0][:100] if error.message else "no reason was given"
                    raise TemporalUnavailable(
                        f"Temporal did not answer for {self._patience:.0f} s ({reason}): check that its frontend is "
                        "running and reachable. Nothing is lost; repeat the command later"
                    ) from None
            await asyncio.sleep(min(_RETRY_SECONDS, self._patience))

    def _handle(self, key: str) -> WorkflowHandle[object, object]:
        return self._temporal.get_workflow_handle(workflow_id(key))


def _judged(request: GenerateVideoInput) -> tuple[GenerateVideoInput, InvalidRequest | None]:
    """The request, and why it cannot be submitted today, if what it asks for is not offered any more.

    Raises:
        InvalidRequest: It never could be.
    """
    try:
        return check_request(request), None
    except InvalidRequest as error:
        return check_request(request, offered=False), error


def _summary(request: GenerateVideoInput) -> str:
    """One line: the title of the workflow's page in Temporal's UI."""
    if request.task_id:
        return f"adopt task {line(request.task_id[:80])}"
    model = MODELS.get(request.model)  # None: retired since it was paid for
    number, frames = len(request.images), model is not None and model.frames
    images = f"{number} image{'s'[: number != 1]}, {'first and last frame' if frames else 'as reference'}"
    return f"15 s of video by {request.model} from {images if number else 'text'}"


def _details(key: str, request: GenerateVideoInput) -> str:
    """The request in Markdown, for the workflow's page.

    Without the prompts, because Temporal's UI renders Markdown with a request that carries the text in its URL.
    """
    facts = {
        "key": code(key),
        "model": code(request.model),
        "size": prose(request.size) if request.size else "the gateway's default",
        "prompts": "in the store, not in Temporal" if prompt_paths(request) else "in the workflow's input",
        "images": ", ".join(_image(image.uri) for image in request.images) or "none",
        "if the extension fails": _ON_EXTEND_FAILED[request.on_extend_failed],
        "if the API key is refused": _ON_KEY_REFUSED[request.on_key_refused],
        "adopts task": request.task_id and code(request.task_id[:80]),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)


def _image(uri: str) -> str:
    if uri.startswith("data:"):
        return "a data URI"
    return code(uri.split("?", maxsplit=1)[0][:200])


def _execution(execution: WorkflowExecution) -> Execution:
    attributes = execution.typed_search_attributes
    return Execution(
        key=key_of(execution.id),
        run_id=execution.run_id,
        state=(execution.status or WorkflowExecutionStatus.RUNNING).name,
        started_at=execution.start_time,
        closed_at=execution.close_time,
        stage=attributes.get(VIDEO_STAGE),
        attention=attributes.get(VIDEO_ATTENTION),
        outcome=attributes.get(VIDEO_OUTCOME),
        paid=attributes.get(VIDEO_PAID),
        model=attributes.get(VIDEO_MODEL),
        task_id=attributes.get(GATEWAY_TASK_ID),
        workflow_id=execution.id,
    )


def _failure(error: WorkflowFailureError) -> GenerationFailure:
    cause = error.cause
    if isinstance(cause, ApplicationError):
        try:
            details = FailureDetails.model_validate(cause.details[0] if cause.details else {})
        except ValidationError:
            details = FailureDetails()
        return GenerationFailure(cause.type or "Defect", cause.message, details)
    advice = "Start the same key again to continue; with the same ledger nothing is paid twice."
    if isinstance(cause, CancelledError):
        return GenerationFailure("Cancelled", _cancelled(Paid.UNKNOWN), FailureDetails(advice=advice))
    kind = "Terminated" if isinstance(cause, TerminatedError) else "TimedOut"
    return GenerationFailure(kind, str(cause), FailureDetails(advice=advice))


def _cancelled(paid: Paid) -> str:
    return f"it was cancelled: {after_cancelling(paid)}"


def _not_found(key: str, error: RPCError) -> Exception:
    if error.status is RPCStatusCode.NOT_FOUND:
        return GenerationNotFound(f"there is no generation with the key {key!r}")
    return error
