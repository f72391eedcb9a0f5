"""The embedded worker: `worker.py` as a child process of the command, replaced whenever it is killed."""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Self

from cli.embedded import EmbeddedServer, keep_server_for
from cli.output import CommandProblem, Exit
from longtake.settings import Settings

_ROOT = Path(__file__).parent.parent
_MISCONFIGURED = 2
"""The worker's exit code where another start is pointless."""
_MAX_STARTS = 3
"""How often a worker may be killed while it starts."""


class EmbeddedWorker:
    """The worker, polling, for the time of the block.

    Args:
        settings: The gateway, the store and the data folder.
        server: The embedded server of the same data folder.
        stay_behind: Leave the worker running after the block, until every generation has ended.

    Raises:
        CommandProblem: The worker cannot run as configured, is killed again and again while it starts, or another
            command uses the data folder with another gateway, key or store.
    """

    def __init__(self, settings: Settings, server: EmbeddedServer, *, stay_behind: bool = False) -> None:
        self._settings = settings
        self._server = server
        self._stay_behind = stay_behind
        self._folder = settings.data_dir / "embedded"
        self._log = self._folder / "worker.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.AsyncExitStack()
        self._lock: IO[str] | None = None

    async def __aenter__(self) -> Self:
        async with self._stack as stack:
            self._lock = stack.enter_context(self._lock_configuration())
            await self._start()
            restarting = asyncio.create_task(self._restart_when_killed())
            stack.push_async_callback(self._stop, restarting)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _stop(self, restarting: asyncio.Task[None]) -> None:
        restarting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await restarting
        if self._process and self._process.poll() is None and not self._stay_behind:
            # It drains by itself and keeps the server until then; the command need not wait.
            self._process.terminate()

    def _lock_configuration(self) -> IO[str]:
        """Share the data folder with the other workers there: they take each other's work, so all must be set up alike.

        Raises:
            CommandProblem: Another command uses the folder with another gateway, key or store.
        """
        base_url, keys = self._settings.require_gateway()
        secret = [base_url, self._settings.store_location, *(key.get_secret_value() for key in keys)]
        secret += [f"{key.id}:{key.secret.hex()}" for key in self._settings.encryption_keys]
        digest = hashlib.sha256(json.dumps(secret).encode()).hexdigest()
        lock = (self._folder / "workers").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(lock, fcntl.LOCK_SH)
            lock.seek(0)
            if lock.read() != digest:
                lock.close()
                message = (
                    f"another command is using the data folder {self._settings.data_dir} with another gateway, key or "
                    "store: wait until it has ended, or use another --data-dir"
                )
                raise CommandProblem(Exit.USAGE, "InvalidSettings", message) from None
        else:
            lock.truncate(0)
            lock.write(digest)
            lock.flush()
            fcntl.flock(lock, fcntl.LOCK_SH)
        return lock

    @property
    def pid(self) -> int | None:
        """The worker's process id."""
        return self._process.pid if self._process else None

    async def _start(self) -> None:
        """Start it and wait until it polls; start another one if it is killed before."""
        for attempt in range(_MAX_STARTS):
            if attempt:
                sys.stderr.write("the worker was killed while it started; starting another\n")
            if await self._start_once():
                return
        message = f"the worker was killed {_MAX_STARTS} times while it started"
        raise CommandProblem(Exit.FAILED, "WorkerFailed", message)

    async def _start_once(self) -> bool:
        """Whether it polls; False where a signal killed it."""
        handle, name = tempfile.mkstemp(dir=self._folder, prefix="ready-")
        os.close(handle)
        ready = Path(name)
        command = [sys.executable, str(_ROOT / "worker.py"), "--ready-file", name]
        command += ["--exit-when-idle"] if self._stay_behind else ["--stop-with-parent", str(os.getpid())]
        try:
            with self._log.open("ab") as log, keep_server_for(self._settings.data_dir) as server_lock:
                locks = [lock.fileno() for lock in (server_lock, self._lock) if lock]
                self._process = subprocess.Popen(  # noqa: S603, ASYNC220 - our own program; it returns at once
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment(),
                    start_new_session=True,
                    pass_fds=locks,
                )
            while not ready.stat().st_size:
                if (code := self._process.poll()) is not None:
                    if code < 0:  # killed by a signal
                        return False
                    raise CommandProblem(Exit.USAGE, "WorkerFailed", self._last_line())
                await asyncio.sleep(0.05)
        finally:
            ready.unlink()
        return True

    async def _restart_when_killed(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            if self._process and (code := self._process.poll()) is not None:
                if code == _MISCONFIGURED:
                    sys.stderr.write(f"{self._last_line()}\n")
                    return
                sys.stderr.write(f"the worker ended unexpectedly ({code}); starting another\n")
                await self._start()

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
        # Nobody sets a current build on this server, so a versioned worker would get no work.
        inherited.pop("LONGTAKE_BUILD_ID", None)
        return inherited | {
            "TEMPORAL_ADDRESS": self._server.address,
            "TEMPORAL_NAMESPACE": "default",
            "TEMPORAL_CONFIG_FILE": os.devnull,
            "LONGTAKE_DATA_DIR": str(self._settings.data_dir),
            "LONGTAKE_STORE_URL": self._settings.store_location,
            # Every command has its own worker, and they cannot share one address.
            "LONGTAKE_METRICS_ADDRESS": "",
        }

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "its log is empty"
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that is no log event is shown as it is
            last = json.loads(last)["event"]
        return f"the worker did not start: {last[-600:]} (log: {self._log})"
