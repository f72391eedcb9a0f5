"""What a person sees while a generation runs: on standard error, live on a terminal, one line a change elsewhere."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from temporalio.service import RPCError

from longtake.client import Snapshot, VideoClient
from longtake.display import line as shown
from longtake.models import GenerationStatus
from longtake.temporal import TemporalProblem

_INTERVAL_SECONDS = 0.7
_ATTEMPT = re.compile(r", attempt \d+")
"""Alone no news."""
_PATIENCE_SECONDS = 120.0
_REPEAT_SECONDS = 60.0
"""Without a terminal: say that it still runs, in case somebody follows a log."""


def describe(snapshot: Snapshot, *, advice: bool = True) -> str:
    """One line: stage, progress, looks, what is wrong, what comes next, and what to do."""
    return shown(_described(snapshot, advice=advice))


def _described(snapshot: Snapshot, *, advice: bool) -> str:
    status = snapshot.status
    if not snapshot.running:
        return (status.stage if status else snapshot.execution.state.lower()).replace("_", " ")
    if status is None:
        stage = (snapshot.execution.stage or "starting").replace("_", " ")
        return " · ".join([stage, *_problems(snapshot, advice=advice), "no worker answers just now"])
    stage = status.stage.replace("_", " ") + (f" {status.progress} %" if status.progress is not None else "")
    return " · ".join([stage, *_looks(status), *_problems(snapshot, advice=advice)])


def _looks(status: GenerationStatus) -> Iterator[str]:
    if status.polls:
        yield f"{status.polls} look{'s' if status.polls > 1 else ''}"
    if status.next_look_at:
        yield f"next in {max(0, (status.next_look_at - datetime.now(UTC)).total_seconds()):.0f} s"


def _problems(snapshot: Snapshot, *, advice: bool) -> Iterator[str]:
    """What keeps it from going on, and what can be done."""
    for step in snapshot.steps:
        if step.problem:
            yield f"{step.name}, attempt {step.attempt}: {step.problem}"
    status = snapshot.status
    if status and status.attention:
        yield f"{status.attention.replace('_', ' ')}: {status.last_problem or status.message}"
        if status.advice and advice:
            yield status.advice


async def follow(client: VideoClient, key: str, *, console: Console, quiet: bool = False) -> Snapshot:
    """Show a generation until it ends.

    Raises:
        GenerationNotFound: There is none of this key.
    """
    if quiet:
        return await _until_ended(client, key, lambda _: None)
    if console.is_terminal:
        with live(console) as progress:
            task = progress.add_task(key, line="starting")
            return await _until_ended(client, key, lambda line: _update(progress, task, line))
    return await _until_ended(client, key, _Lines(console, key))


def live(console: Console) -> Progress:
    """Live rows on a terminal; nothing elsewhere."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[line]}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _update(progress: Progress, task: TaskID, line: str) -> None:
    progress.update(task, line=line)


async def _until_ended(client: VideoClient, key: str, show: Callable[[str], None]) -> Snapshot:
    """Look until it has ended; a Temporal that is restarted meanwhile is waited for.

    Raises:
        TemporalProblem: It does not come back within `_PATIENCE_SECONDS`.
    """
    last_answer = time.monotonic()
    while True:
        try:
            snapshot = await client.snapshot(key)
        except RPCError as error:
            if time.monotonic() - last_answer > _PATIENCE_SECONDS:
                raise TemporalProblem(f"Temporal does not answer any more ({error.message[:100]})") from None
            show("Temporal does not answer; waiting for it")
        else:
            last_answer = time.monotonic()
            show(describe(snapshot))
            if not snapshot.running:
                return snapshot
        await asyncio.sleep(_INTERVAL_SECONDS)


class _Lines:
    """One line for each change."""

    def __init__(self, console: Console, key: str) -> None:
        self._console = console
        self._key = key
        self._last = ""
        self._said_at = 0.0

    def __call__(self, line: str) -> None:
        what = _ATTEMPT.sub("", line.split(" · next in", maxsplit=1)[0])
        if what == self._last and time.monotonic() - self._said_at < _REPEAT_SECONDS:
            return
        self._last, self._said_at = what, time.monotonic()
        # One line each, whatever the width: this is what logs and grep get.
        line = f"{datetime.now(UTC):%H:%M:%S} {self._key}: {line}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
