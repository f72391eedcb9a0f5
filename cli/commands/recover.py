"""The command `recover`: starts paid tasks again that Temporal has lost, from what the store knows. Never pays."""

import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cli.output import Exit, print_json, write
from cli.session import load_settings, open_session, open_store
from longtake.client import KeyInUse, VideoClient
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
    ledger = SubmissionLedger(store, longest_exchange=_NO_EXCHANGE)
    since = datetime.now(UTC) - timedelta(days=days)
    async for task in undelivered_tasks(store, ledger, since=since, key_of=key_of, on_progress=on_progress):
        if task.key is None or not await client.knows(task.key):
            yield task


async def run(data_dir: Path | None, *, yes: bool, days: int, as_json: bool) -> Exit:
    """Run `recover`.

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
        async for task in lost_tasks(store, session.client, days=days, on_progress=_show_progress):
            if task.key is not None and task.key in seen:
                continue  # one start covers the first task and the retry of its extension
            seen.add(task.key or "")
            rows.append(await _recover(store, session.client, task, yes=yes))
            if not as_json:
                write(_summary(rows[-1]))
    if as_json:
        print_json({"dry_run": not yes, "days": days, "tasks": rows})
    elif not rows:
        write(f"nothing to recover: Temporal knows every undelivered paid task of the last {days} days")
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


def _show_progress(checked: int) -> None:
    sys.stderr.write(f"{checked:,} paid tasks in the ledger checked\n")
