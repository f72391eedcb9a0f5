"""The processes of a run: each can be killed, stopped and started again."""

import asyncio
import random
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
START_SECONDS = 40.0
LOOK_SECONDS = 0.05


class Process:
    """A process that can be started again and again; all its lives write one log."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self._command = list(command)
        self._env = dict(env) if env is not None else None
        self._popen: subprocess.Popen[bytes] | None = None
        self.log = log

    def start(self) -> None:
        """Start it, unless it runs."""
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                self._command, cwd=ROOT, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def pid(self) -> int:
        """Its id, or 0 before the first start."""
        return self._popen.pid if self._popen else 0

    @property
    def running(self) -> bool:
        """Whether it has not ended (a stopped one has not)."""
        return self._popen is not None and self._popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.send_signal(number)

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        assert self._popen is not None
        while (code := self._popen.poll()) is None:  # noqa: ASYNC110 (a process tells nobody)
            await asyncio.sleep(LOOK_SECONDS)
        return code

    def destroy(self) -> None:
        """SIGKILL, whatever state it is in."""
        self.signal(signal.SIGKILL)
        if self._popen is not None:
            self._popen.wait(timeout=10)


async def listens(address: str, process: Process) -> None:
    """Wait until something listens at `host:port`.

    Raises:
        AssertionError: The process ends before, or takes too long.
    """
    host, _, port = address.partition(":")
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.running, process.log.read_text()[-2000:]
        try:
            await asyncio.to_thread(lambda: socket.create_connection((host, int(port)), timeout=1).close())
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens at {address}"
            await asyncio.sleep(LOOK_SECONDS)
        else:
            return


def free_port(*hosts: str) -> int:
    """A port that is free at all of these, below those that outgoing connections are given."""
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311 - a port is no secret
        try:
            for host in hosts:
                with socket.socket() as probe:
                    probe.bind((host, port))
        except OSError:
            continue
        return port
