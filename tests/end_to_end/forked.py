"""`python program.py …` as a fork of a Python that has its imports done: a real process, a second of CPU cheaper."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from typing import IO, Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["cli.app", "cli.doctor.run", "cli.commands.generate", "cli.commands.inspect", "cli.commands.act", "worker"]
)


class Forked:
    """The few parts of `subprocess.Popen` that the tests need, for the interpreter that runs them."""

    def __init__(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: IO[bytes],
        stdout: IO[bytes],
        stderr: IO[bytes],
    ) -> None:
        with_files = _Program([*args[1:]], dict(env), [stdin, stdout, stderr])
        self._process = _FORKS.Process(target=with_files)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


class _Program:
    """What the fork does: take over arguments, environment and files, and be the program."""

    def __init__(self, arguments: list[str], env: dict[str, str], files: list[IO[bytes]]) -> None:
        self._arguments = arguments
        self._env = env
        self._files: list[Any] = files

    def __getstate__(self) -> dict[str, Any]:
        # Only now, while the process is being started, can a descriptor be handed over.
        return {**self.__dict__, "_files": [DupFd(file.fileno()) for file in self._files]}

    def __call__(self) -> None:
        for number, file in enumerate(self._files):
            os.dup2(file.detach(), number)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 - until its end
        os.environ.clear()
        os.environ.update(self._env)
        sys.argv = self._arguments
        runpy.run_path(self._arguments[0], run_name="__main__")
