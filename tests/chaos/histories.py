"""Every run of every generation, read back from Temporal: how it ended, and what its history shows."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType, PendingActivityState, WorkflowTaskFailedCause
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowExecution

from longtake.temporal.names import key_of

_HARMLESS_CAUSES = frozenset(
    {"UNHANDLED_COMMAND", "RESET_STICKY_TASK_QUEUE", "UNHANDLED_UPDATE", "FORCE_CLOSE_COMMAND", "RESET_WORKFLOW"}
)
"""The server's own: something arrived meanwhile and it asks once more, the run was terminated during the task, or an
operator reset it to here."""
_AT_ONCE = 8

Json = dict[str, Any]


@dataclass
class Doubt:
    """A submission whose outcome was unknown.

    Attributes:
        ledger_key: The payment's name in the ledger.
        settled: How; empty where it still is in doubt.
    """

    ledger_key: str
    resolved: str = ""


@dataclass
class RunOfKey:
    """One workflow run."""

    key: str
    run_id: str
    started_at: datetime
    closed_at: datetime | None = None
    end: str = ""
    """`full`, `fallback`, a failure type, `Cancelled`, `Terminated`; empty while it runs."""
    result: Json = field(default_factory=dict)
    """Of a success; of a failure its details."""
    message: str = ""
    activities: Counter[str] = field(default_factory=Counter)
    task_failures: list[str] = field(default_factory=list)
    harmless_task_failures: Counter[str] = field(default_factory=Counter)
    doubts: list[Doubt] = field(default_factory=list)
    found_by_owner: int = 0
    text: str = ""
    """Everything in the history that a person could read: payloads decoded."""
    held_by: str = ""
    """The worker that has its only pending activity, while it runs."""
    next_try: str = ""
    """Its only pending activity, while that waits for its next attempt; the reason is told with it."""
    attention: str = ""
    paid_shown: str = ""
    """What the list says about money."""
    last_event: str = ""
    """What it waits for, if it runs."""
    history: str = ""
    """As JSON, to be kept where something is wrong with it."""
    resets: int = 0
    """How often its history was cut, here or in the runs that it was copied from."""

    @property
    def paid(self) -> str:
        """What a failure says about money."""
        return str(self.result.get("paid", ""))

    @property
    def videos(self) -> list[Json]:
        """Every stored clip that it names."""
        return [video for name in ("video", "first_video") if (video := self.result.get(name))]


async def read_all(client: Client) -> list[RunOfKey]:
    """All runs that the server knows."""
    executions = [one async for one in client.list_workflows('WorkflowType = "GenerateVideo"')]
    slots = asyncio.Semaphore(_AT_ONCE)

    async def read(execution: WorkflowExecution) -> RunOfKey:
        async with slots:
            return await _read(client, execution)

    return sorted(await asyncio.gather(*map(read, executions)), key=lambda run: (run.key, run.started_at))


async def _read(client: Client, execution: WorkflowExecution) -> RunOfKey:
    handle = client.get_workflow_handle(execution.id, run_id=execution.run_id)
    history = await handle.fetch_history()
    run = RunOfKey(key_of(execution.id), execution.run_id, execution.start_time, execution.close_time)
    scheduled: dict[int, tuple[str, Json]] = {}
    texts: list[str] = []
    shown = {pair.key.name: str(pair.value) for pair in execution.typed_search_attributes}
    run.paid_shown = shown.get("VideoPaid", "")
    for event in history.events:
        texts += _texts(event)
        _note(run, event, scheduled)
    run.text = "\n".join(texts)
    run.last_event, run.history = _last(history.events[-1]), history.to_json()
    if not run.end:
        description = await handle.describe()
        pending = description.raw_description.pending_activities
        if len(pending) == 1 and pending[0].state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED:
            run.held_by = pending[0].last_worker_identity
        elif len(pending) == 1 and pending[0].HasField("last_failure"):
            run.next_try = pending[0].activity_type.name
        run.attention = shown.get("VideoAttention", "")
    return run


def _note(run: RunOfKey, event: HistoryEvent, scheduled: dict[int, tuple[str, Json]]) -> None:
    match event.event_type:
        case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            order = event.activity_task_scheduled_event_attributes
            asked = _json(list(order.input.payloads))
            name = order.activity_type.name
            scheduled[event.event_id] = (name, asked)
            run.activities[name] += 1
            if name == "reconcile_submission" and not _open_doubt(run, asked["key"]):
                run.doubts.append(Doubt(asked["key"]))
        case EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
            done = event.activity_task_completed_event_attributes
            name, asked = scheduled[done.scheduled_event_id]
            _note_resolution(run, name, asked, _json(list(done.result.payloads)))
        case EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
            failed = event.workflow_task_failed_event_attributes
            cause = WorkflowTaskFailedCause.Name(failed.cause).removeprefix("WORKFLOW_TASK_FAILED_CAUSE_")
            if cause in _HARMLESS_CAUSES:
                run.harmless_task_failures[cause] += 1
                run.resets += cause == "RESET_WORKFLOW"
            else:
                run.task_failures.append(f"{cause}: {failed.failure.message}"[:300])
        case _:
            _note_end(run, event)


def _note_resolution(run: RunOfKey, name: str, asked: Json, result: Json) -> None:
    if name in {"submit_generation", "submit_extension"} and result.get("attached"):
        run.found_by_owner += 1
    doubt = _open_doubt(run, asked.get("key", "")) if name in {"reconcile_submission", "resolve_submission"} else None
    if doubt is None:
        return
    if name == "resolve_submission":
        doubt.resolved = "adopted by a person" if result.get("receipt") else "submitted again by a person"
    elif result.get("receipt"):
        doubt.resolved = "adopted by the witness"
    elif result.get("clear"):
        doubt.resolved = "found by its owner"


def _open_doubt(run: RunOfKey, ledger_key: str) -> Doubt | None:
    return next((doubt for doubt in run.doubts if doubt.ledger_key == ledger_key and not doubt.resolved), None)


def _last(event: HistoryEvent) -> str:
    name = EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")
    timer = event.timer_started_event_attributes.start_to_fire_timeout.ToTimedelta()
    lasts = f" for {timer.total_seconds():.0f} s" if event.HasField("timer_started_event_attributes") else ""
    return f"{name}{lasts} at {event.event_time.ToDatetime(UTC):%H:%M:%S}"


def _note_end(run: RunOfKey, event: HistoryEvent) -> None:
    match event.event_type:
        case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
            run.result = _json(list(event.workflow_execution_completed_event_attributes.result.payloads))
            run.end = str(run.result["outcome"])
        case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED:
            failure = event.workflow_execution_failed_event_attributes.failure
            information = failure.application_failure_info
            run.end, run.message = information.type or "no type", failure.message
            run.result = _json(list(information.details.payloads))
        case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED:
            run.end = "Cancelled"
        case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED:
            run.end = "Terminated"
        case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT:
            run.end = "TimedOut"
        case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW:
            run.end = "ContinuedAsNew"
        case _:
            return
    run.closed_at = event.event_time.ToDatetime(UTC)
    for doubt in run.doubts:
        doubt.resolved = doubt.resolved or {"Abandoned": "abandoned by a person"}.get(run.end, f"ended as {run.end}")


def _json(payloads: list[Payload]) -> Json:
    found = json.loads(payloads[0].data) if payloads and payloads[0].data else {}
    return found if isinstance(found, dict) else {}


def _texts(message: Message) -> Iterator[str]:
    """Every string and every payload in it."""
    if isinstance(message, Payload):
        yield message.data.decode(errors="replace")
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
            for key in value:
                yield str(key)
                yield from _texts(value[key]) if isinstance(value[key], Message) else (str(value[key]),)
            continue
        many = value if _repeated(value) else (value,)
        for one in many:
            if isinstance(one, Message):
                yield from _texts(one)
            elif isinstance(one, (str, bytes)):
                yield one if isinstance(one, str) else one.decode(errors="replace")


def _repeated(value: object) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, (str, bytes, Message))
