"""The command `recover`: paid tasks that Temporal has forgotten are fetched, from what the store knows. Never pays."""

import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cli.commands.generations import load_settings, open_store, require_gateway, session_errors
from cli.output import CommandProblem, Exit, print_json
from cli.session import open_session
from longtake.client import KeyInUse, VideoClient
from longtake.request.rules import InvalidRequest
from longtake.storage import Store, StoreProblem
from longtake.submission.ledger import PaidTask, SubmissionLedger
from longtake.submission.recovery import request_for, undelivered_tasks
from longtake.temporal.connection import is_configured
from longtake.temporal.names import InvalidKey, key_of

DAYS = 7
"""How far back is looked: links live about a day, and a gateway may give fresh ones for longer."""
_ANY = timedelta(0)
"""Nothing is submitted through this ledger."""


async def forgotten_tasks(
    store: Store, client: VideoClient, *, days: int, on_progress: Callable[[int], None] = lambda _: None
) -> AsyncIterator[PaidTask]:
    """The paid tasks of the last days that are not delivered and whose generation Temporal does not know.

    Raises:
        LedgerUnavailable, StoreProblem: The store did not answer.
        TemporalUnavailable: Temporal is away.
    """
    ledger = SubmissionLedger(store, longest_exchange=_ANY)
    since = datetime.now(UTC) - timedelta(days=days)
    async for task in undelivered_tasks(store, ledger, since=since, key_of=key_of, on_progress=on_progress):
        if task.key is None or not await client.knows(task.key):
            yield task


async def run(data_dir: Path | None, *, yes: bool, days: int, as_json: bool) -> Exit:
    """List them, or start them again.

    Returns:
        1 where one could not be started, else 0.
    """
    settings = load_settings(data_dir)
    if yes and not is_configured():
        require_gateway(settings)
    store = open_store(settings)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    # A worker only where something is to be started: an embedded one stays behind until everything is fetched.
    session_of = open_session(settings, worker=yes, stay_behind=yes, store=store)
    async with session_of as session, session_errors({}):
        try:
            async for task in forgotten_tasks(store, session.client, days=days, on_progress=_tell):
                if task.key is not None and task.key in seen:
                    continue  # its first task and the retry of its extension: one start is for both
                seen.add(task.key or "")
                rows.append(await _recover(store, session.client, task, yes=yes))
                if not as_json:
                    sys.stdout.write(_line(rows[-1]))
        except StoreProblem as error:
            raise CommandProblem(Exit.UNREACHABLE, "StoreUnavailable", str(error)) from None
    if as_json:
        print_json({"dry_run": not yes, "days": days, "tasks": rows})
    elif not yes and rows:
        sys.stdout.write("nothing was started: --yes starts them, and pays nothing\n")
    elif not rows:
        sys.stdout.write(f"no paid task of the last {days} days is undelivered and unknown to Temporal\n")
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
    ledger = SubmissionLedger(store, longest_exchange=_ANY)
    request, row["request_kept"] = await request_for(store, ledger, task, key_of=key_of)
    if task.key is None or request is None:
        row["problem"] = (
            "the ledger does not name its key, so it cannot be started; ask the gateway for the task by its id"
        )
        return row
    if not yes:
        return row
    try:
        # Known to the ledger as paid, so no worker sends anything for it; somebody may have started it meanwhile.
        await client.start(task.key, request)
        row["started"] = True
    except (InvalidKey, InvalidRequest, KeyInUse) as error:
        row["problem"] = str(error)
    return row


def _line(row: dict[str, Any]) -> str:
    how = "with its request" if row["request_kept"] else "by its task id"
    said = row["problem"] or (f"started {how}" if row["started"] else f"would be started {how}")
    return f"{row['key'] or '(no key)'}: task {row['task_id']}, {row['model']}, sent {row['sent_at']}: {said}\n"


def _tell(seen: int) -> None:
    sys.stderr.write(f"{seen:,} paid tasks seen in the ledger\n")
