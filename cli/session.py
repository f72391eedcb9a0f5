"""A connection to Temporal for one command: the configured one, or the embedded server with a worker beside it."""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from temporalio.client import Client

from cli.embedded import START_SECONDS, EmbeddedProblem, EmbeddedServer, embedded_server, keep_server_for
from cli.output import CommandProblem, Exit
from longtake.client import VideoClient
from longtake.settings import Settings
from longtake.storage import Store
from longtake.submission.errors import LedgerError, WrongLedger
from longtake.submission.ledger import SubmissionLedger
from longtake.temporal.connection import TemporalProblem, connect, is_configured, target
from longtake.temporal.ledger_registration import check
from longtake.temporal.names import workflow_id
from longtake.temporal.search_attributes import register_search_attributes

_ROOT = Path(__file__).parent.parent
_MISCONFIGURED = 2
"""The worker's exit code where trying again is pointless."""
_STARTS = 3
"""How often a worker may be killed while it starts."""


@dataclass(frozen=True)
class Session:
    """What a command works with."""

    client: VideoClient
    temporal: Client
    address: str
    ui_url: str | None
    namespace: str = "default"

    def link(self, key: str, run_id: str = "") -> str | None:
        """The generation's page in Temporal's UI, where we know the UI's address."""
        if self.ui_url is None:
            return None
        return f"{self.ui_url}/namespaces/{self.namespace}/workflows/{workflow_id(key)}/{run_id}".rstrip("/")


@asynccontextmanager
async def open_session(
    settings: Settings, *, worker: bool, stay_behind: bool = False, store: Store | None = None
) -> AsyncIterator[Session]:
    """Connect.

    Args:
        settings: Where the data folder is, and what an embedded worker needs.
        worker: Whether the command needs a worker; only the embedded server gets one.
        stay_behind: Let the embedded worker go on in the background until nothing is left to do.
        store: Where generations are to be started: its ledger must be the namespace's.

    Raises:
        CommandProblem: Temporal cannot be reached, the embedded server or worker does not start, or the data folder's
            server belongs to another ledger than the store's.
    """
    try:
        if is_configured():
            where = target()
            temporal = await connect()
            yield Session(VideoClient(temporal, store=store), temporal, where.address, None, where.namespace)
            return
        async with AsyncExitStack() as stack:
            server = stack.enter_context(
                embedded_server(
                    settings.data_dir,
                    binary=settings.temporal_binary,
                    sha256=settings.temporal_binary_checksum,
                    codec=settings.codec_url,
                )
            )
            temporal = await connect_when_healthy(server.address)
            # A server on an older file does not add the attributes that it is started with.
            await register_search_attributes(temporal)
            if store is not None:  # the worker would end with the same words, in its log
                await check(temporal, SubmissionLedger(store, longest_exchange=settings.submit_timeout))
            client = VideoClient(temporal, store=store)
            if worker:
                await stack.enter_async_context(EmbeddedWorker(settings, server, stay_behind=stay_behind))
            yield Session(client, temporal, server.address, server.ui_url)
    except (TemporalProblem, EmbeddedProblem) as error:
        raise CommandProblem(Exit.UNREACHABLE, "TemporalUnreachable", str(error)) from None
    except LedgerError as error:
        kind = "WrongLedger" if isinstance(error, WrongLedger) else "LedgerUnavailable"
        raise CommandProblem(Exit.USAGE, kind, str(error)) from None


async def connect_when_healthy(address: str) -> Client:
    """Connect to a server that has just been started: it listens some moments before it is healthy.

    Raises:
        TemporalProblem: It is not well within `START_SECONDS`.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return await connect(address)
        except TemporalProblem:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


class EmbeddedWorker:
    """`worker.py` as a process beside this one, started again where it is killed."""

    def __init__(self, settings: Settings, server: EmbeddedServer, *, stay_behind: bool = False) -> None:
        self._settings = settings
        self._server = server
        self._stay_behind = stay_behind
        self._folder = settings.data_dir / "embedded"
        self._process: subprocess.Popen[bytes] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._share: IO[str] | None = None

    async def __aenter__(self) -> Self:
        self._share = self._claim()
        try:
            await self._start()
        except BaseException:
            self._share.close()
            raise
        self._watching = asyncio.create_task(self._start_again_when_killed())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watching:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        if self._process and self._process.poll() is None and not self._stay_behind:
            # It drains by itself and keeps the server until then; nobody has to wait for that.
            self._process.terminate()
        if self._share:
            self._share.close()

    def _claim(self) -> IO[str]:
        """A share in the workers of this data folder: they take each other's work, so they must be set up alike.

        Raises:
            CommandProblem: Another command works here with another gateway, key or store.
        """
        base_url, keys = self._settings.require_gateway()
        secret = [base_url, self._settings.store_location, *(key.get_secret_value() for key in keys)]
        secret += [f"{key.id}:{key.secret.hex()}" for key in self._settings.encryption_keys]
        ours = hashlib.sha256(json.dumps(secret).encode()).hexdigest()
        share = (self._folder / "workers").open("a+")
        try:
            fcntl.flock(share, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(share, fcntl.LOCK_SH)
            share.seek(0)
            if share.read() != ours:
                share.close()
                message = (
                    f"another command works in the data folder {self._settings.data_dir} with another gateway, key or "
                    "store: wait until it has ended, or use another --data-dir"
                )
                raise CommandProblem(Exit.USAGE, "InvalidSettings", message) from None
        else:
            share.truncate(0)
            share.write(ours)
            share.flush()
            fcntl.flock(share, fcntl.LOCK_SH)
        return share

    @property
    def pid(self) -> int | None:
        """The worker's process id."""
        return self._process.pid if self._process else None

    async def _start(self) -> None:
        """Start it and wait until it polls; another one, where it is killed before.

        Raises:
            CommandProblem: It says that it cannot work as configured, or is killed again and again.
        """
        for again in range(_STARTS):
            if again:
                sys.stderr.write("the worker was killed while it started; starting another\n")
            if await self._start_once():
                return
        raise CommandProblem(Exit.FAILED, "WorkerFailed", f"the worker was killed {_STARTS} times while it started")

    async def _start_once(self) -> bool:
        handle, name = tempfile.mkstemp(dir=self._folder, prefix="ready-")
        os.close(handle)
        ready = Path(name)
        command = [sys.executable, str(_ROOT / "worker.py"), "--ready-file", name]
        command += ["--exit-when-idle"] if self._stay_behind else ["--stop-with-parent"]
        log_path = self._folder / "worker.log"
        try:
            with log_path.open("ab") as log, keep_server_for(self._settings.data_dir) as lock:
                self._process = subprocess.Popen(  # noqa: S603, ASYNC220 - our own program; it returns at once
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment(),
                    start_new_session=True,
                    pass_fds=[lock.fileno(), *([self._share.fileno()] if self._share else [])],
                )
            while not ready.stat().st_size:
                if (code := self._process.poll()) is not None:
                    if code < 0:  # by a signal
                        return False
                    raise CommandProblem(Exit.USAGE, "WorkerFailed", _last_line(log_path))
                await asyncio.sleep(0.05)
        finally:
            ready.unlink()
        return True

    async def _start_again_when_killed(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            if self._process and (code := self._process.poll()) is not None:
                if code == _MISCONFIGURED:
                    sys.stderr.write(f"{_last_line(self._folder / 'worker.log')}\n")
                    return
                sys.stderr.write(f"the worker ended unexpectedly ({code}); starting another\n")
                await self._start()

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
        # One worker of one build: nobody would ever tell this server which version is the current one.
        inherited.pop("LONGTAKE_BUILD_ID", None)
        return inherited | {
            "TEMPORAL_ADDRESS": self._server.address,
            "TEMPORAL_NAMESPACE": "default",
            "TEMPORAL_CONFIG_FILE": os.devnull,
            "LONGTAKE_DATA_DIR": str(self._settings.data_dir),
            "LONGTAKE_STORE_URL": self._settings.store_location,
            # Every command has a worker of its own, and one address serves one of them.
            "LONGTAKE_METRICS_ADDRESS": "",
        }


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "it said nothing"
    with contextlib.suppress(ValueError, TypeError, KeyError):  # what is no event of ours is shown as it is
        last = json.loads(last)["event"]
    return f"the worker did not start: {last[-600:]} (its log is {log})"
