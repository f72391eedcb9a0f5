"""The commands that steer a generation: `cancel`, `poll` and `decide`."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cli.commands.inspect import snapshot_document
from cli.output import CommandProblem, Exit, print_json, write
from cli.progress import follow
from cli.session import ids_of, open_generation
from longtake.display import after_cancelling
from longtake.models import Decision, DecisionAction, GenerationStatus

_CANCEL_SECONDS = 20.0
"""How long `cancel` waits for the end; a worker may be away."""


async def cancel(key: str, data_dir: Path | None, *, as_json: bool) -> Exit:
    """Run `cancel`."""
    async with open_generation(key, data_dir) as generation:
        before = generation.snapshot
        if before.running:
            await generation.client.cancel(key)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(follow(generation.client, key, quiet=True), _CANCEL_SECONDS)
        after = await generation.client.snapshot(key)
    if as_json:
        print_json({**generation.ids, **snapshot_document(after)})
    elif not before.running:
        write(f"{key} had already ended: {after.execution.state.lower()}")
    elif after.running:
        write(f"{key}: cancellation requested; it ends as soon as a worker picks it up")
    else:
        task = f" (the gateway's task {after.execution.task_id})" if after.execution.task_id else ""
        write(f"{key} is cancelled: {after_cancelling(after.execution.paid)}{task}")
    return Exit.DELIVERED


async def poll(key: str, data_dir: Path | None, *, as_json: bool) -> Exit:
    """Run `poll`."""
    async with open_generation(key, data_dir) as generation:
        status = await generation.client.poll_now(key)
    _report(status, "polling the gateway now", generation.ids, as_json=as_json)
    return Exit.DELIVERED


async def decide(
    key: str, decision: tuple[str, str | None], data_dir: Path | None, *, slot: int | None = None, as_json: bool
) -> Exit:
    """Run `decide`, about the submission that the user has seen.

    Args:
        key: Of the generation.
        decision: The action, and the task id where the action needs one.
        data_dir: `--data-dir`.
        slot: The submission that the decision is about; where it is None, the one that the generation asks about now.
        as_json: Print one JSON document.
    """
    action, task_id = decision
    try:
        chosen = Decision(action=DecisionAction(action), task_id=task_id)
    except (ValueError, ValidationError):
        message = f"{action!r} is not a decision: choose one of {', '.join(DecisionAction)}"
        raise CommandProblem(Exit.USAGE, "InvalidRequest", message, ids=ids_of(key)) from None
    async with open_generation(key, data_dir) as generation:
        seen = generation.snapshot.status.slot if generation.snapshot.status else None
        status = await generation.client.decide(key, chosen.model_copy(update={"slot": slot or seen}))
    _report(status, f"decided: {chosen.action}", generation.ids, as_json=as_json)
    return Exit.DELIVERED


def _report(status: GenerationStatus, message: str, ids: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json({**ids, "status": status.model_dump(mode="json")})
    else:
        write(f"{ids['key']}: {message}")
