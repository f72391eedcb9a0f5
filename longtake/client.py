"""The typed client: what a backend, the command line and an operator do with a generation.

client = VideoClient(await longtake.temporal.connection.connect(), store=Store.open("s3://bucket/prefix"))
await client.start("order-17", GenerateVideoInput(model="veo_3_1-fast-remix", prompt="…", prompt_extend="…"))
result = await client.result("order-17")
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
from longtake.temporal.connection import (
    GATEWAY_TASK_ID,
    TASK_QUEUE,
    VIDEO_ATTENTION,
    VIDEO_MODEL,
    VIDEO_OUTCOME,
    VIDEO_PAID,
    VIDEO_STAGE,
    WORKFLOW_TYPE,
    InvalidKey,
    TemporalProblem,
    key_of,
    workflow_id,
)
from longtake.temporal.ledger_registration import check

_STARTS_ANEW = frozenset(
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
"""Failures after which the same key may be started again: nothing was paid, or what was paid can still be collected.
The submission ledger keeps a new run from paying for what an earlier one paid."""

_REQUEST_OPTIONS = {
    OnExtendFailed.FALLBACK: "the 8 s clip is the result",
    OnExtendFailed.RETRY: "pay for it again, where that is configured",
    OnExtendFailed.ASK: "a person decides",
    OnExtendFailed.FAIL: "it counts as failed",
}
_KEY_OPTIONS = {
    OnKeyRefused.FAIL: "it ends, and nothing is paid",
    OnKeyRefused.WAIT: "it waits until the gateway takes it again",
}
_QUERY_TIMEOUT = timedelta(seconds=6)
_UPDATE_TIMEOUT = timedelta(seconds=15)
PATIENCE = timedelta(seconds=60)
"""How long a call waits for a Temporal that is away: a frontend that is deployed anew is back within seconds."""
_TRY_AGAIN_SECONDS = 1.0
_AWAY = frozenset({RPCStatusCode.UNAVAILABLE, RPCStatusCode.UNKNOWN, RPCStatusCode.INTERNAL, RPCStatusCode.ABORTED})
"""What a frontend says, or a connection to it that broke, while it is restarted. A time-out is none of them: it is how
a missing worker shows."""
_NO_ANSWER = frozenset({RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED})
_T = TypeVar("_T")


class GenerationNotFound(Exception):
    """Temporal knows no generation of this key."""


class KeyInUse(Exception):
    """The key names another request; the message says what differs."""


class NoWorker(Exception):
    """Temporal is there, but nobody works on generations."""


class TemporalUnavailable(TemporalProblem):
    """Temporal was there and is away for longer than a call waits; nothing is lost, and the same call goes on later."""


class DecisionRejected(Exception):
    """The workflow does not take this update now; the message says why."""


class GenerationFailure(Exception):
    """A generation ended without a video.

    Attributes:
        kind: The failure type, such as `GenerationFailed`, or `Cancelled`, `Terminated`, `TimedOut`.
        details: Everything known.
    """

    def __init__(self, kind: str, message: str, details: FailureDetails) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.details = details


@dataclass(frozen=True)
class Execution:
    """One generation as Temporal's list shows it."""

    key: str
    """What the workflow's id says, whoever chose it: it may be no key that a command takes."""
    run_id: str
    state: str
    """Temporal's: `RUNNING`, `COMPLETED`, `FAILED`, …"""
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
    """A step that is under way just now."""

    name: str
    attempt: int
    problem: str | None
    """Why the attempt before failed."""
    next_attempt_at: datetime | None


@dataclass(frozen=True)
class Snapshot:
    """Where a generation stands, as far as it can be told just now."""

    execution: Execution
    status: GenerationStatus | None
    """None where no worker answered: the server knows the rest."""
    steps: tuple[PendingStep, ...] = field(default=())

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.execution.state == "RUNNING"


class VideoClient:
    """Generations by their business key."""

    def __init__(self, temporal: Client, *, store: Store | None = None, patience: timedelta = PATIENCE) -> None:
        """Use a connection.

        Args:
            temporal: Connected, with the product's data converter.
            patience: How long each call waits for a Temporal that is away before it raises `TemporalUnavailable`.
            store: The store that this client shares with the workers: before the first start its ledger is compared
                with the one that the namespace belongs to. Without it, nothing is compared here; workers do it.
        """
        self._temporal = temporal
        self._ledger = SubmissionLedger(store, longest_exchange=timedelta(0)) if store is not None else None
        self._ledger_is_checked = False
        self._patience = patience.total_seconds()

    def with_patience(self, patience: timedelta) -> Self:
        """The same client with another patience, for a caller that shows for itself that Temporal is away."""
        other = copy(self)
        other._patience = patience.total_seconds()  # noqa: SLF001 - one of us
        return other

    async def start(self, key: str, request: GenerateVideoInput) -> tuple[str, bool]:
        """Start a generation, or attach to the one that this key names.

        Args:
            key: The caller's own name for this generation, such as an order number. Starting the same key again never
                pays again, as long as the workers keep the same submission ledger.
            request: What to make. Where something was submitted for this key, it may name what has been retired since.

        Returns:
            The run id, and whether this call started it.

        Raises:
            InvalidRequest: The request breaks rules, and nothing was submitted for this key; nothing was started.
            InvalidKey: The key cannot be used.
            KeyInUse: The key names another request.
            WrongLedger, LedgerUnavailable: The store is not the one that the namespace belongs to, or cannot be read.
            TemporalUnavailable: Temporal is away. It may have been started: the same call tells.
        """
        request, refused = _judged(request)
        name = workflow_id(key)
        ledger = self._ledger
        if ledger is not None and not self._ledger_is_checked:
            await self._riding_out(lambda: check(self._temporal, ledger))
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
            request = before  # prompts or their paths, as before: to the ledger another form is another request
        try:
            return await self._start(name, request, WorkflowIDReusePolicy.ALLOW_DUPLICATE), True
        except WorkflowAlreadyStartedError:  # somebody else was quicker
            execution, _ = await self._describe(key)
            return execution.run_id, False

    async def status(self, key: str) -> GenerationStatus:
        """The workflow's own answer; needs a worker, for ended generations too.

        Raises:
            GenerationNotFound: There is none of this key.
            NoWorker: No worker answered within a few seconds.
            TemporalUnavailable: Temporal is away.
        """
        handle = self._handle(key)
        try:
            status: GenerationStatus = await self._riding_out(
                lambda: handle.query("status", result_type=GenerationStatus, rpc_timeout=_QUERY_TIMEOUT)
            )
            return status
        except RPCError as error:
            if error.status in _NO_ANSWER or error.status is RPCStatusCode.FAILED_PRECONDITION:
                raise NoWorker("no worker answers: check that one is running and healthy") from None
            raise _not_found(key, error) from None

    async def snapshot(self, key: str) -> Snapshot:
        """Where it stands, from the server and, where a worker answers, from the workflow.

        Raises:
            GenerationNotFound: There is none of this key.
        """
        execution, steps = await self._describe(key)
        try:
            status: GenerationStatus | None = await self.status(key)
        except (NoWorker, RPCError, WorkflowQueryFailedError):
            status = None
        return Snapshot(execution, status, steps)

    async def knows(self, key: str) -> bool:
        """Whether Temporal has a generation of this key, running or ended, whoever chose its workflow id.

        Raises:
            TemporalUnavailable: Temporal is away.
        """
        ids = {key}  # who starts workflows without this client may take the key itself
        with suppress(InvalidKey):
            ids.add(workflow_id(key))
        for name in ids:
            try:
                await self._riding_out(self._temporal.get_workflow_handle(name).describe)
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:
                    raise
            else:
                return True
        return False

    async def result(self, key: str) -> GenerateVideoResult:
        """Wait for the end.

        Raises:
            GenerationFailure: It ended without a video.
            GenerationNotFound: There is none of this key.
        """
        handle = self._temporal.get_workflow_handle(workflow_id(key), result_type=GenerateVideoResult)
        try:
            result: GenerateVideoResult = await self._riding_out(handle.result)
            return result
        except WorkflowFailureError as error:
            failure = _failure(error)
        except RPCError as error:
            raise _not_found(key, error) from None
        if failure.kind == "Cancelled":
            # Temporal carries no details of a cancellation: what is known of the money stands in the list.
            execution, _ = await self._describe(key)
            paid = Paid(execution.paid) if execution.paid in set(Paid) else Paid.UNKNOWN
            known = {"key": key, "model": execution.model, "paid": paid, "task_id": execution.task_id}
            failure = GenerationFailure(failure.kind, _cancelled(paid), failure.details.model_copy(update=known))
        raise failure

    async def cancel(self, key: str) -> None:
        """Stop waiting for it. What was submitted may still be made, and cost; its ids are kept.

        Raises:
            GenerationNotFound: There is none of this key that still runs.
        """
        try:
            await self._riding_out(self._handle(key).cancel)
        except RPCError as error:
            raise _not_found(key, error) from None

    async def decide(self, key: str, decision: Decision) -> GenerationStatus:
        """Send a decision that a generation waits for.

        Raises:
            DecisionRejected: None is awaited, or not this one; the message says which are.
            GenerationNotFound: There is none of this key that still runs.
        """
        return await self._update(key, "decide", decision)

    async def poll_now(self, key: str) -> GenerationStatus:
        """Ask the gateway now: look, or submit what waits for the API key, because that has been mended or topped up.

        Raises:
            GenerationNotFound: There is none of this key that still runs.
        """
        return await self._update(key, "poll_now")

    async def generations(self, query: str = "", *, limit: int = 50) -> AsyncIterator[Execution]:
        """The newest generations, newest first.

        Args:
            query: A further list filter, such as `VideoStage = "failed"`.
            limit: How many at the most.
        """
        full = f'WorkflowType = "{WORKFLOW_TYPE}"' + (f" AND ({query})" if query else "")
        pages = self._temporal.list_workflows(full, limit=limit)
        while True:
            try:
                # A page that was not answered is asked for again; what was given already does not come twice.
                execution = await self._riding_out(pages.__anext__)
            except StopAsyncIteration:
                return
            yield _execution(execution)

    async def _start(self, name: str, request: GenerateVideoInput, reuse: WorkflowIDReusePolicy) -> str:
        handle = await self._riding_out(
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
        """The run to attach to; None where the key may be started anew.

        Raises:
            KeyInUse: The key names another request.
        """
        execution, _ = await self._describe(key)
        may_start = execution.state != "RUNNING" and await self._may_start_anew(key)
        if may_start and execution.paid == Paid.NO:
            return None  # the key is as free as a new one: the ledger knows of no submission
        theirs = await self._request_of(key)
        if theirs is not None and (differing := differing_fields(request, theirs)):
            raise KeyInUse(
                f"the key {key!r} already names another request (it differs in {', '.join(differing)}): "
                "use a new key for this one"
            )
        return None if may_start else execution.run_id

    async def _may_start_anew(self, key: str) -> bool:
        """Whether an ended generation leaves something to do: never paid, or paid and still to be collected.

        The submission ledger keeps the new run from paying for what an earlier one paid, and from another request.
        """
        try:
            result = await self.result(key)
        except GenerationFailure as failure:
            return failure.kind in _STARTS_ANEW or failure.details.paid is Paid.NO
        return result.uncollected is not None

    async def _request_of(self, key: str) -> GenerateVideoInput | None:
        """What the generation of this key was started with; None where that cannot be read."""
        events = self._handle(key).fetch_history_events(page_size=1)
        await self._riding_out(events.fetch_next_page)
        for event in (events.current_page or ())[:1]:
            payloads = event.workflow_execution_started_event_attributes.input.payloads
            if not payloads:
                return None
            decoded = await self._temporal.data_converter.decode(payloads[:1])
            try:
                first = decoded[0]
                if isinstance(first, dict) and "carried" in first:  # continued as new: accepted, and not judged again
                    return GenerateVideoInput.model_validate(first["request"])
                return check_request(first, offered=False)
            except (InvalidRequest, KeyError, ValidationError):
                return None
        return None

    async def _describe(self, key: str) -> tuple[Execution, tuple[PendingStep, ...]]:
        try:
            description = await self._riding_out(self._handle(key).describe)
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
        # The same id for each try: where an answer was lost, the next one gets it, and nothing is decided twice.
        update_id = str(uuid.uuid4())
        try:
            status: GenerationStatus = await self._riding_out(
                lambda: self._handle(key).execute_update(
                    name, args=arguments, id=update_id, result_type=GenerationStatus, rpc_timeout=_UPDATE_TIMEOUT
                )
            )
            return status
        except WorkflowUpdateRPCTimeoutOrCancelledError:
            await self._describe(key)  # where Temporal itself is away, this says so
            # The server may hand it to the next worker all the same: "not taken" would make people decide twice.
            raise NoWorker(
                f"no worker answers: {name} may still be taken once one starts; look at its status then, before you "
                "send it again"
            ) from None
        except WorkflowUpdateFailedError as error:
            raise DecisionRejected(str(error.cause)) from None
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                execution, _ = await self._describe(key)  # where there is none at all, this says so
                raise DecisionRejected(f"{key} has already ended: {execution.state.lower()}") from None
            raise

    async def _riding_out(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Await a call that may be made again, for as long as Temporal is away and patience lasts.

        Raises:
            TemporalUnavailable: It does not come back in time.
        """
        away_since: float | None = None
        while True:
            try:
                return await call()
            except RPCError as error:
                if error.status not in _AWAY:
                    raise
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since >= self._patience:
                    said = error.message.splitlines()[0][:100] if error.message else "no reason was given"
                    raise TemporalUnavailable(
                        f"Temporal did not answer for {self._patience:.0f} s ({said}): check that its frontend is "
                        "running and reachable; nothing is lost, and the same call goes on later"
                    ) from None
            await asyncio.sleep(min(_TRY_AGAIN_SECONDS, self._patience))

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
    """What is made, in one line: the title of the workflow's page."""
    if request.task_id:
        return f"take over task {line(request.task_id[:80])}"
    model = MODELS.get(request.model)  # None: retired since it was paid for
    number, frames = len(request.images), model is not None and model.frames
    images = f"{number} image{'s'[: number != 1]}, {'first and last frame' if frames else 'as reference'}"
    return f"15 s of video by {request.model} from {images if number else 'text'}"


def _details(key: str, request: GenerateVideoInput) -> str:
    """What was asked for, in Markdown; it never changes.

    Without the prompts: Temporal's UI has this rendered by a request that carries it in its URL, and URLs are logged.
    """
    facts = {
        "key": code(key),
        "model": code(request.model),
        "size": prose(request.size) if request.size else "the gateway's default",
        "prompts": "in the store, not in Temporal" if prompt_paths(request) else "in the workflow's input",
        "images": ", ".join(_image(image.uri) for image in request.images) or "none",
        "if the extension fails": _REQUEST_OPTIONS[request.on_extend_failed],
        "if the API key is refused": _KEY_OPTIONS[request.on_key_refused],
        "takes over": request.task_id and code(request.task_id[:80]),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)


def _image(uri: str) -> str:
    if uri.startswith("data:"):
        return "one inside the request"
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
    advice = "Starting again with the same key, and the same ledger, goes on where it was and pays nothing twice."
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
