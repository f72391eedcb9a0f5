"""The command `recover`: starts paid tasks again that nobody delivers, from what the store knows. Never pays."""

import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cli.output import Exit, print_json, write
from cli.session import load_settings, open_session, open_store
from longtake.client import Execution, KeyInUse, VideoClient
from longtake.request.rules import InvalidRequest
from longtake.storage import Store
from longtake.submission.ledger import PaidTask, SubmissionLedger
from longtake.submission.recovery import request_for, undelivered_tasks
from longtake.temporal.connection import is_configured
from longtake.temporal.names import InvalidKey, key_of

DAYS = 7
"""How many days to look back: links expire after about one, and some gateways renew them for longer."""
_NO_EXCHANGE = timedelta(0)
"""Nothing is submitted through this ledger."""


async def lost_tasks(
    store: Store, client: VideoClient, *, days: int, on_progress: Callable[[int], None] = lambda _: None
) -> AsyncIterator[PaidTask]:
    """The paid tasks of the last days that are not delivered and whose generation Temporal does not know.

    Raises:
        LedgerUnavailable, StoreProblem: The store did not answer.
        TemporalUnavailable: Temporal did not answer.
    """
    async for task, execution in paid_without_video(store, client, days=days, on_progress=on_progress):
        if execution is None:
            yield task


async def paid_without_video(
    store: Store, client: VideoClient, *, days: int, on_progress: Callable[[int], None] = lambda _: None
) -> AsyncIterator[tuple[PaidTask, Execution | None]]:
    """The paid tasks of the last days whose video is not in the store, each with the newest run of its key.

    The ledger says what was paid, whatever Temporal shows: a run that was cancelled or terminated right after its
    submission is among them. Left out: what a running generation without a problem is about to deliver.

    Raises:
        LedgerUnavailable, StoreProblem: The store did not answer.
        TemporalUnavailable: Temporal did not answer.
    """
    ledger = SubmissionLedger(store, longest_exchange=_NO_EXCHANGE)
    since = datetime.now(UTC) - timedelta(days=days)
    async for task in undelivered_tasks(store, ledger, since=since, key_of=key_of, on_progress=on_progress):
        execution = await client.latest_run(task.key) if task.key is not None else None
        if execution is None or execution.state != "RUNNING" or execution.attention:
            yield task, execution


async def run(data_dir: Path | None, *, yes: bool, ended: bool, days: int, as_json: bool) -> Exit:
    """Run `recover`; `ended` takes those too whose newest run has ended without the video.

    Returns:
        1 if one could not be started, else 0.
    """
    settings = load_settings(data_dir)
    if yes and not is_configured():
        settings.require_gateway()
    store = open_store(settings)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    # An embedded worker only where generations are started; it stays behind until all of them have ended.
    async with open_session(settings, worker=yes, stay_behind=yes, store=store) as session:
        async for task, execution in paid_without_video(store, session.client, days=days, on_progress=show_progress):
            if execution is not None and (not ended or execution.state == "RUNNING"):
                continue
            if task.key is not None and task.key in seen:
                continue  # one start covers the first task and the retry of its extension
            seen.add(task.key or "")
            rows.append(await _recover(store, session.client, task, yes=yes))
            if not as_json:
                write(_summary(rows[-1]))
    if as_json:
        print_json({"dry_run": not yes, "days": days, "tasks": rows})
    elif not rows:
        write(f"nothing to recover: Temporal {'runs' if ended else 'knows'} every undelivered paid task of {days} days")
    elif not yes:
        write("nothing was started: add --yes to start them; that pays nothing")
    failed = yes and any(not row["started"] for row in rows)
    return Exit.FAILED if failed else Exit.DELIVERED


async def _recover(store: Store, client: VideoClient, task: PaidTask, *, yes: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "key": task.key,
        "task_id": task.task_id,
        "model": task.model,
        "sent_at": task.sent_at.isoformat(),
        "request_kept": False,
        "started": False,
        "problem": None,
    }
    ledger = SubmissionLedger(store, longest_exchange=_NO_EXCHANGE)
    request, row["request_kept"] = await request_for(store, ledger, task, key_of=key_of)
    if task.key is None or request is None:
        row["problem"] = "cannot be started: the ledger does not name its key. Query the gateway for the task by its id"
    elif yes:
        try:
            # The ledger knows that it is paid, so no worker submits it again, whoever starts it.
            await client.start(task.key, request)
            row["started"] = True
        except (InvalidKey, InvalidRequest, KeyInUse) as error:
            row["problem"] = str(error)
    return row


def _summary(row: dict[str, Any]) -> str:
    how = "with its request" if row["request_kept"] else "by its task id"
    state = row["problem"] or (f"started {how}" if row["started"] else f"would be started {how}")
    return f"{row['key'] or '(no key)'}: task {row['task_id']}, {row['model']}, sent {row['sent_at']}: {state}"


def show_progress(checked: int) -> None:
    """Say how far a walk through the ledger has come."""
    sys.stderr.write(f"{checked:,} paid tasks in the ledger checked\n")
