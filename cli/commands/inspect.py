"""The commands that read: `status`, `watch`, `result` and `list`."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.commands.recover import paid_without_video, show_progress
from cli.output import Exit, print_json, say, write
from cli.progress import describe, follow
from cli.results import ResultOptions, report
from cli.session import load_settings, open_generation, open_session, open_store
from longtake.client import Execution, Snapshot
from longtake.display import line
from longtake.models import GenerationStatus
from longtake.submission.ledger import PaidTask
from workflows.status_text import in_words


async def watch(key: str, data_dir: Path | None, options: ResultOptions, *, quiet: bool = False) -> Exit:
    """Run `watch`, or `result`, which is the quiet form of it."""
    options.check()
    async with open_generation(key, data_dir) as generation:
        status = generation.snapshot.status
        if quiet and status and status.advice:
            say(f"{key}: {status.advice}")
        await follow(generation.client, key, quiet=quiet or options.as_json)
        result = await generation.client.result(key)
    return await report(result, open_store(generation.settings), generation.ids, options)


async def show_status(key: str, data_dir: Path | None, *, as_json: bool) -> Exit:
    """Run `status`."""
    async with open_generation(key, data_dir) as generation:
        snapshot = generation.snapshot
    if as_json:
        print_json({**generation.ids, **snapshot_document(snapshot)})
        return Exit.DELIVERED
    write(f"{key}: {describe(snapshot, advice=False)}")
    for name, value in _facts(snapshot.status, running=snapshot.running).items() if snapshot.status else ():
        if value:
            write(f"  {name}: {value}")
    return Exit.DELIVERED


def _facts(status: GenerationStatus, *, running: bool) -> dict[str, object]:
    return {
        "what": status.message if running else "",
        "outcome": status.outcome,
        "to do": status.advice,
        "decide by": in_words(status.decide_by),
        "submission": status.slot,
        "paid": status.paid,
        "waiting since": in_words(status.waiting_since),
        "charged": status.charged,
        "submitted": in_words(status.submitted_at),
        "task": status.task_id,
        "request id": status.request_id,
        "remix_id": status.remix_id,
        "remix_id_extend": status.remix_id_extend,
        "extension task": status.extension_task_id,
        "link expires": None if status.video else in_words(status.link_expires_at),
        "last problem": status.last_problem,
        "evidence": "; ".join(status.evidence),
        "candidates": ", ".join(status.candidates),
        "video": status.video and status.video.uri,
        "8 s clip": status.first_video and status.first_video != status.video and status.first_video.uri,
    }


def snapshot_document(snapshot: Snapshot) -> dict[str, Any]:
    """A generation as JSON: state, status, and the steps under way."""
    return {
        "state": snapshot.execution.state.lower(),
        "status": snapshot.status.model_dump(mode="json") if snapshot.status else None,
        "steps": [{"name": step.name, "attempt": step.attempt, "problem": step.problem} for step in snapshot.steps],
    }


async def show_paid_without_video(days: int, data_dir: Path | None, *, as_json: bool) -> Exit:
    """Run `list --paid-without-video`."""
    settings = load_settings(data_dir)
    store = open_store(settings)
    async with open_session(settings, worker=False) as session:
        found = [row async for row in paid_without_video(store, session.client, days=days, on_progress=show_progress)]
    found.sort(key=lambda row: row[0].sent_at, reverse=True)
    if as_json:
        print_json([_undelivered_document(task, execution) for task, execution in found])
        return Exit.DELIVERED
    rows = [
        (
            task.key,
            _state_of(execution),
            _stage_of(execution),
            execution.outcome if execution else None,
            task.model,
            task.task_id,
            _moment(task.sent_at),
        )
        for task, execution in found
    ]
    nothing = f"every task that was paid in the last {days} days is delivered or about to be"
    _print_table(("key", "state", "stage", "outcome", "model", "task", "sent"), rows, nothing)
    if found:
        say("what no generation runs for is brought home without another payment by: starter.py recover --ended")
    return Exit.DELIVERED


def _undelivered_document(task: PaidTask, execution: Execution | None) -> dict[str, Any]:
    return {
        "key": task.key,
        "retry": task.retry,
        "task_id": task.task_id,
        "model": task.model,
        "sent_at": task.sent_at.isoformat(),
        "state": _state_of(execution),
        "stage": execution and execution.stage,
        "attention": execution and execution.attention,
        "outcome": execution and execution.outcome,
        "run_id": execution and execution.run_id,
    }


async def show_list(query: str, limit: int, data_dir: Path | None, *, as_json: bool) -> Exit:
    """Run `list`."""
    async with open_session(load_settings(data_dir), worker=False) as session:
        rows = [execution async for execution in session.client.generations(query, limit=limit)]
    if as_json:
        print_json(
            [
                {
                    "key": row.key,
                    "workflow_id": row.workflow_id,
                    "run_id": row.run_id,
                    "state": _state_of(row),
                    "stage": row.stage,
                    "attention": row.attention,
                    "outcome": row.outcome,
                    "paid": row.paid,
                    "model": row.model,
                    "task_id": row.task_id,
                    "started_at": row.started_at.isoformat(),
                    "closed_at": row.closed_at and row.closed_at.isoformat(),
                }
                for row in rows
            ]
        )
        return Exit.DELIVERED
    cells = [
        (
            row.key,
            _state_of(row),
            _stage_of(row),
            row.outcome,
            row.paid,
            row.model,
            row.task_id,
            _moment(row.started_at),
        )
        for row in rows
    ]
    nothing = "no generation matches" if query else "no generations yet"
    _print_table(("key", "state", "stage", "outcome", "paid", "model", "task", "started"), cells, nothing)
    return Exit.DELIVERED


def _state_of(execution: Execution | None) -> str:
    return execution.state.lower() if execution else "unknown to Temporal"


def _stage_of(execution: Execution | None) -> str:
    if execution is None:
        return ""
    return (execution.stage or "") + (f" ({execution.attention})" if execution.attention else "")


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%m-%d %H:%M:%S}"


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str | None]], nothing: str) -> None:
    """Print the rows, or this sentence where there are none."""
    table = Table(*columns)
    for cells in rows:
        table.add_row(*(escape(line(cell or "")) for cell in cells))
    Console(width=None if sys.stdout.isatty() else 200).print(table if rows else nothing)
