"""Every instant at which a process waits, or goes on after it has waited: found by watching all of its tasks.

Whatever a program does to the world it does between two of these. At a chosen one the process is killed, stopped, or
loses its connections.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any, Literal

Blow = Literal["none", "kill", "stop", "cut"]


class Instants:
    """Counts them, and strikes at one."""

    def __init__(self, blow: Blow = "none", at: int = 0) -> None:
        self._blow = blow
        self._at = at
        self._begun = False
        self.seen: list[str] = []
        """Where in the code each was."""

    def begin(self) -> None:
        """What came until now does not count."""
        self._begun = True

    def __call__(self, where: str) -> None:
        """One more has come."""
        if not self._begun:
            return
        self.seen.append(where)
        if len(self.seen) == self._at:
            _BLOWS[self._blow]()

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a program, and watch it and every task that it begins."""
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            loop.set_task_factory(self._task)
            runner.run(coroutine)

    def _task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> "asyncio.Task[Any]":
        return asyncio.Task(_watched(coroutine, self), loop=loop, **more)


async def _watched(coroutine: Coroutine[Any, Any, Any], reach: Callable[[str], None]) -> Any:
    return await _Watched(coroutine, reach)


class _Watched:
    def __init__(self, coroutine: Coroutine[Any, Any, Any], reach: Callable[[str], None]) -> None:
        self._coroutine = coroutine
        self._reach = reach

    def __await__(self) -> Generator[Any, None, Any]:
        error: BaseException | None = None
        while True:
            try:
                waits_for = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
            except StopIteration as ended:
                return ended.value
            where, error = _where(self._coroutine), None
            self._reach(f"before {where}")
            try:
                yield waits_for
            except BaseException as thrown:  # noqa: BLE001 - a cancellation too is handed on
                error = thrown
            self._reach(f"after {where}")


def _where(coroutine: Any) -> str:
    """The innermost of our own functions that waits, and what it waits in."""
    ours, name = "", ""
    while coroutine is not None:
        code = getattr(coroutine, "cr_code", None) or getattr(coroutine, "gi_code", None)
        if code is not None:
            name = code.co_qualname
            if "/longtake/" in code.co_filename or "/activities/" in code.co_filename:
                ours = f"{Path(code.co_filename).stem}.{name}"
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return f"{ours} ({name})"


def _cut() -> None:
    """Every connection of this process breaks, and none can be made any more."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the numbers, of which one is this listing's own
        with contextlib.suppress(OSError, ValueError):
            copy = socket.socket(fileno=os.dup(int(name)))
            with copy:
                if copy.family in {socket.AF_INET, socket.AF_INET6}:
                    copy.shutdown(socket.SHUT_RDWR)

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError

    for method in ("connect", "connect_ex"):
        setattr(socket.socket, method, refuse)


_BLOWS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "cut": _cut,
}
