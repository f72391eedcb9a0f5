"""Progress of a generation on standard error: live rows on a terminal, elsewhere one line for each change."""

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
"""Characters shown of a problem that was shown in full before."""
_TEMPORAL_AWAY_SECONDS = 120.0
"""How long to wait for a Temporal that does not answer."""
_REPEAT_SECONDS = 60.0
"""Without a terminal: how often to repeat the state, for whoever follows a log."""
_NEXT_POLL = " · next poll in"


def describe(snapshot: Snapshot, *, advice: bool = True) -> str:
    """One line: stage, progress, polls, next poll, problem and advice."""
    return shown(" · ".join(part for part in (_state(snapshot), _problem(snapshot, advice=advice)) if part))


def without_next_poll(state: str) -> str:
    """A state without what changes every second: two lines that differ only there are no news."""
    return state.split(_NEXT_POLL, maxsplit=1)[0]


def _state(snapshot: Snapshot) -> str:
    status = snapshot.status
    if not snapshot.running:
        return (status.stage if status else snapshot.execution.state.lower()).replace("_", " ")
    if status is None:
        return (snapshot.execution.stage or "starting").replace("_", " ")
    stage = status.stage.replace("_", " ") + (f" {status.progress} %" if status.progress is not None else "")
    return " · ".join([stage, *_polls(status)])


def _polls(status: GenerationStatus) -> Iterator[str]:
    if status.polls:
        yield f"{status.polls} poll{'s' if status.polls > 1 else ''}"
    if status.next_poll_at:
        yield f"next poll in {max(0, (status.next_poll_at - datetime.now(UTC)).total_seconds()):.0f} s"


def _problem(snapshot: Snapshot, *, advice: bool) -> str:
    """What blocks the generation, and what you can do; empty if nothing blocks it.

    If the status names the problem, the pending activity is left out: its error is mostly the same.
    """
    status = snapshot.status
    if not snapshot.running:
        return ""
    if status and status.attention:
        problem = f"{status.attention.replace('_', ' ')}: {status.last_problem or status.message}"
        return f"{problem} · {status.advice}" if status.advice and advice else problem
    problems = [f"{step.name}, attempt {step.attempt}: {step.problem}" for step in snapshot.steps if step.problem]
    return " · ".join([*problems, *(() if status else ("no worker is answering",))])


async def follow(client: VideoClient, key: str, *, quiet: bool = False) -> Snapshot:
    """Show a generation's progress until it ends; `quiet` only waits.

    Raises:
        GenerationNotFound: No generation has this key.
        TemporalUnavailable: Temporal does not answer for `_TEMPORAL_AWAY_SECONDS`.
    """
    if quiet:
        return await _until_ended(client, key, lambda _, __: None)
    console = Console(stderr=True)
    if console.is_terminal:
        with live(console) as progress:
            task = progress.add_task(key, line="starting")
            return await _until_ended(client, key, lambda *parts: _update(progress, task, parts))
    return await _until_ended(client, key, Lines(console, key))


def live(console: Console) -> Progress:
    """Live rows on a terminal; elsewhere nothing."""
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
    """Read the snapshot until the generation has ended; waits while Temporal restarts."""
    client = client.with_patience(timedelta(0))  # it would wait without showing why
    last_answer = time.monotonic()
    while True:
        try:
            snapshot = await client.snapshot(key)
        except TemporalUnavailable:
            if time.monotonic() - last_answer > _TEMPORAL_AWAY_SECONDS:
                raise
            show("waiting", "Temporal does not answer")
        else:
            last_answer = time.monotonic()
            show(shown(_state(snapshot)), shown(_problem(snapshot, advice=True)))
            if not snapshot.running:
                return snapshot
        await asyncio.sleep(_INTERVAL_SECONDS)


class Lines:
    """One line for each change. A problem is shown in full once, then briefly every minute, then that it is solved."""

    def __init__(self, console: Console, key: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._key = key
        self._clock = clock
        self._state = ""
        self._problem = ""
        self._shown_at = 0.0

    def __call__(self, state: str, problem: str = "") -> None:
        """Show the state of a generation, if it is news.

        Args:
            state: Stage, progress and polls, with the time until the next poll.
            problem: What blocks the generation, and what you can do; empty if nothing blocks it.
        """
        news = without_next_poll(state)
        kind = _kind(problem)
        if problem and kind != _kind(self._problem):
            self._show(f"{state} · {problem}")
        elif self._problem and not problem:
            self._show(f"{state} · the problem is solved")
        elif not problem and news != self._state:
            self._show(state)
        elif self._clock() - self._shown_at >= _REPEAT_SECONDS:
            self._show(f"{news} · {_short(problem)}" if problem else state)
        self._state, self._problem = news, problem

    def _show(self, line: str) -> None:
        self._shown_at = self._clock()
        # Never wrapped: logs and grep need one line for each event.
        line = f"{datetime.now(UTC):%H:%M:%S} {self._key}: {line}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _kind(problem: str) -> str:
    """A problem without what differs at each attempt: another attempt with the same kind is no news."""
    return problem.split(":", maxsplit=1)[0].split(", attempt", maxsplit=1)[0]


def _short(problem: str) -> str:
    return f"still: {problem[:_SHORT]}…" if len(problem) > _SHORT else f"still: {problem}"
