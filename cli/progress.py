"""What a person sees while a generation runs: on standard error, live on a terminal, one line a change elsewhere."""

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from longtake.client import Snapshot, TemporalUnavailable, VideoClient
from longtake.display import line as shown
from longtake.models import GenerationStatus

_INTERVAL_SECONDS = 0.7
_SHORT = 60
"""Characters of a trouble that was told in full before."""
_PATIENCE_SECONDS = 120.0
_REPEAT_SECONDS = 60.0
"""Without a terminal: say that it still runs, in case somebody follows a log."""


def describe(snapshot: Snapshot, *, advice: bool = True) -> str:
    """One line: stage, progress, polls, what is wrong, what comes next, and what to do."""
    return shown(" · ".join(part for part in (_where(snapshot), _failing(snapshot, advice=advice)) if part))


def _where(snapshot: Snapshot) -> str:
    status = snapshot.status
    if not snapshot.running:
        return (status.stage if status else snapshot.execution.state.lower()).replace("_", " ")
    if status is None:
        return (snapshot.execution.stage or "starting").replace("_", " ")
    stage = status.stage.replace("_", " ") + (f" {status.progress} %" if status.progress is not None else "")
    return " · ".join([stage, *_polls(status)])


def _polls(status: GenerationStatus) -> Iterator[str]:
    if status.polls:
        yield f"{status.polls} look{'s' if status.polls > 1 else ''}"
    if status.next_poll_at:
        yield f"next in {max(0, (status.next_poll_at - datetime.now(UTC)).total_seconds()):.0f} s"


def _failing(snapshot: Snapshot, *, advice: bool) -> str:
    """What keeps it from going on, and what can be done; empty where nothing does.

    Where the generation itself says what is wrong, the step under way adds nothing: it is mostly the same words.
    """
    status = snapshot.status
    if not snapshot.running:
        return ""
    if status and status.attention:
        said = f"{status.attention.replace('_', ' ')}: {status.last_problem or status.message}"
        return f"{said} · {status.advice}" if status.advice and advice else said
    troubles = [f"{step.name}, attempt {step.attempt}: {step.problem}" for step in snapshot.steps if step.problem]
    return " · ".join([*troubles, *(() if status else ("no worker answers just now",))])


async def follow(client: VideoClient, key: str, *, console: Console, quiet: bool = False) -> Snapshot:
    """Show a generation until it ends.

    Raises:
        GenerationNotFound: There is none of this key.
    """
    if quiet:
        return await _until_ended(client, key, lambda _, __: None)
    if console.is_terminal:
        with live(console) as progress:
            task = progress.add_task(key, line="starting")
            return await _until_ended(client, key, lambda *parts: _update(progress, task, parts))
    return await _until_ended(client, key, Lines(console, key))


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


def _update(progress: Progress, task: TaskID, parts: tuple[str, ...]) -> None:
    progress.update(task, line=" · ".join(part for part in parts if part))


async def _until_ended(client: VideoClient, key: str, show: Callable[[str, str], None]) -> Snapshot:
    """Look until it has ended; a Temporal that is restarted meanwhile is waited for.

    Raises:
        TemporalUnavailable: It does not come back within `_PATIENCE_SECONDS`.
    """
    client = client.with_patience(timedelta(0))  # what it waits for is shown here
    last_answer = time.monotonic()
    while True:
        try:
            snapshot = await client.snapshot(key)
        except TemporalUnavailable:
            if time.monotonic() - last_answer > _PATIENCE_SECONDS:
                raise
            show("waiting", "Temporal does not answer")
        else:
            last_answer = time.monotonic()
            show(shown(_where(snapshot)), shown(_failing(snapshot, advice=True)))
            if not snapshot.running:
                return snapshot
        await asyncio.sleep(_INTERVAL_SECONDS)


class Lines:
    """One line for each change; a trouble is told once, then briefly each minute, and then that it is over."""

    def __init__(self, console: Console, key: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._key = key
        self._clock = clock
        self._stage = ""
        self._failing = ""
        self._said_at = 0.0

    def __call__(self, stage: str, trouble: str = "") -> None:
        """Show where a generation stands.

        Args:
            stage: With what changes at each poll, such as when the next one is.
            trouble: What keeps it from going on, and what can be done; empty where nothing does.
        """
        news = stage.split(" · next in", maxsplit=1)[0]
        kind = _kind(trouble)
        if trouble and kind != _kind(self._failing):
            self._say(f"{stage} · {trouble}")
        elif self._failing and not trouble:
            self._say(f"{stage} · the trouble is over")
        elif not trouble and news != self._stage:
            self._say(stage)
        elif self._clock() - self._said_at >= _REPEAT_SECONDS:
            self._say(f"{news} · {_short(trouble)}" if trouble else stage)
        self._stage, self._failing = news, trouble

    def _say(self, line: str) -> None:
        self._said_at = self._clock()
        # One line each, whatever the width: this is what logs and grep get.
        line = f"{datetime.now(UTC):%H:%M:%S} {self._key}: {line}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _kind(trouble: str) -> str:
    """What a trouble is, without what differs at each attempt: the next one of the same kind is no news."""
    return trouble.split(":", maxsplit=1)[0].split(", attempt", maxsplit=1)[0]


def _short(trouble: str) -> str:
    return f"still: {trouble[:_SHORT]}…" if len(trouble) > _SHORT else f"still: {trouble}"
