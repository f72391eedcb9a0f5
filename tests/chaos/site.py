"""The real parts of a run: Temporal's dev server, two workers, the simulator, faulty networks and a store.

worker ──► proxy 127.0.0.1:p ──► gateway 127.0.0.2:g
       └─► proxy 127.0.0.1:c ──► CDN     127.0.0.2:c     (links carry the CDN's port and the name the client used)
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

from cli.embedded import temporal_binary
from longtake.temporal.names import SEARCH_ATTRIBUTES
from simulator.faultproxy import Fault, FaultProxy
from tests.chaos.plan import Plan
from tests.chaos.stores import Store
from tests.end_to_end.processes import ROOT, free_port

API_KEYS = ("sk-chaos-one-0123456789", "sk-chaos-two-0123456789")
CONSOLE_TOKEN = "simulator-access-token"
CONSOLE_USER = "2"
SPEED = 30
"""A generation of 120 simulated seconds takes 4 s."""
SIMULATOR_HOST = "127.0.0.2"
NEW_BUILD, OLD_BUILD = "chaos-2", "chaos-1"
"""What the workers call themselves to Temporal. It is the same code: what is tried is the move of running generations
from one build's queues to the other's and back, not whether another version's code reads this one's payloads."""

GATEWAY_WEATHER = [
    Fault("refuse", probability=0.04),
    Fault("reset", probability=0.02),
    Fault("cut_request", after_bytes=200, probability=0.02),
    Fault("cut_answer", after_bytes=100, probability=0.02),
    Fault("reset", after_bytes=150, probability=0.01),
    Fault("latency", seconds=0.3, probability=0.05),
]
CDN_WEATHER = [
    Fault("refuse", probability=0.04),
    Fault("cut_answer", after_bytes=40_000, probability=0.04),
    Fault("reset", after_bytes=90_000, probability=0.04),
    Fault("latency", seconds=0.02, probability=0.03),
]
BLACK_HOLE = Fault("black_hole", probability=0.01)
"""In long runs only: it costs 20 to 30 s each."""

_MEMORY = Path("/dev/shm")  # noqa: S108 (the folder below it has a name of its own)
"""The dev server waits for the disk at every event, one after the other, and is what a run waits for. Its file outlives
a SIGKILL of the server in memory as well as on disk; it is moved to the run's folder at the end."""
_START_SECONDS = 40.0
_LOOK_SECONDS = 0.05


class Process:
    """A process that can be started again and again; all its lives write one log."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self._command = list(command)
        self._env = dict(env) if env is not None else None
        self._popen: subprocess.Popen[bytes] | None = None
        self.log = log

    def set(self, **variables: str) -> None:
        """Change the environment of its next life."""
        self._env = {**(self._env or {}), **variables}

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
            await asyncio.sleep(_LOOK_SECONDS)
        return code

    def destroy(self) -> None:
        """SIGKILL, whatever state it is in."""
        self.signal(signal.SIGKILL)
        if self._popen is not None:
            self._popen.wait(timeout=10)


class Worker:
    """One `worker.py`, always started again."""

    def __init__(self, number: int, folder: Path, env: Mapping[str, str], *, clock_shift: float = 0.0) -> None:
        self._ready_file = folder / f"worker-{number}.ready"
        program = ["-m", "tests.chaos.shifted_worker", str(clock_shift)] if clock_shift else ["worker.py"]
        command = [
            sys.executable,
            *program,
            "--stop-with-parent",
            str(os.getpid()),
            "--ready-file",
            str(self._ready_file),
        ]
        self.process = Process(command, folder / f"worker-{number}.log", env)
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.dead: set[int] = set()
        """Process ids of earlier lives that ended without draining."""
        self.ended_by_itself: Counter[int] = Counter()
        self._expected = False

    @property
    def ready(self) -> bool:
        """Whether it polls."""
        return self.process.running and self._ready_file.exists() and bool(self._ready_file.stat().st_size)

    async def keep_running(self) -> None:
        """Start it, and again whenever it has ended, for ever."""
        while True:
            await self.may_start.wait()
            self._ready_file.unlink(missing_ok=True)
            self.process.start()
            code = await self.process.ended()
            if code:
                self.dead.add(self.process.pid)
            if not self._expected:
                self.ended_by_itself[code] += 1
                await asyncio.sleep(0.5)
            self._expected = False

    def kill(self) -> None:
        """SIGKILL."""
        self._expected = True
        self.process.signal(signal.SIGKILL)

    def rename_build(self, build: str) -> None:
        """Its next lives are workers of this build."""
        self.process.set(LONGTAKE_BUILD_ID=build)

    def drain(self) -> None:
        """SIGTERM."""
        self._expected = True
        self.process.signal(signal.SIGTERM)

    async def stop_for(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        self.process.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.process.signal(signal.SIGCONT)


class GatewayAdmin:
    """The simulator's own truth, behind the proxies: what a careful person would see in the gateway's console."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, trust_env=False, timeout=30)

    async def tasks(self) -> list[dict[str, Any]]:
        """Every paid job."""
        rows: list[dict[str, Any]] = (await self._http.get("/_simulator/tasks")).json()
        return rows

    async def ledger(self) -> list[dict[str, Any]]:
        """Every request."""
        rows: list[dict[str, Any]] = (await self._http.get("/_simulator/ledger")).json()
        return rows

    async def set_keys(self, *valid: str) -> None:
        """Change which keys are valid."""
        (await self._http.post("/_simulator/keys", json={"valid": valid})).raise_for_status()

    async def outage(self, seconds: float, mode: str) -> None:
        """Put the gateway out of order."""
        answer = await self._http.post("/_simulator/outage", json={"seconds": seconds, "mode": mode})
        answer.raise_for_status()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()


class Site:
    """Everything, running."""

    def __init__(self, folder: Path, plan: Plan, store: Store) -> None:
        self.folder = folder
        self._plan = plan
        self.temporal_address = f"127.0.0.1:{free_port()}"
        self.store = store
        fast = _MEMORY if os.access(_MEMORY, os.W_OK) else folder
        self._server_folder = Path(tempfile.mkdtemp(prefix="longtake-chaos-", dir=fast))
        command = _server_command(self.temporal_address, self._server_folder)
        self.server = Process(command, folder / "server.log")
        self.gateway_proxy: FaultProxy
        self.cdn_proxy: FaultProxy
        self.admin: GatewayAdmin
        self.workers: list[Worker] = []
        self._ready_file = folder / "simulator.ready"
        self.simulator = Process(_simulator_command(folder, self._ready_file), folder / "simulator.log")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start everything but the workers; stop everything, whatever happens."""
        proxies: list[FaultProxy] = []
        try:
            await self.store.start()
            self.simulator.start()
            self.server.start()
            where = await self._simulator_ready()
            cdn_port = _port(where["cdn_url"])
            self.gateway_proxy = FaultProxy(SIMULATOR_HOST, _port(where["url"]), seed=self._plan.seed)
            self.cdn_proxy = FaultProxy(SIMULATOR_HOST, cdn_port, port=cdn_port, seed=self._plan.seed + 1)
            for proxy in (self.gateway_proxy, self.cdn_proxy):
                await proxy.__aenter__()
                proxies.append(proxy)
            self.admin = GatewayAdmin(where["cdn_url"])
            await self.admin.set_keys(*API_KEYS)
            await self.server_ready()
            self.workers = [
                Worker(number, self.folder, self._worker_environment(number), clock_shift=shift)
                for number, shift in enumerate(self._plan.clock_shifts)
            ]
            yield
        finally:
            for process in (*(worker.process for worker in self.workers), self.server, self.simulator):
                process.destroy()
            shutil.move(self._server_folder, self.folder / "temporal")
            self.store.bring_back()
            await self.store.stop()
            for proxy in proxies:
                await proxy.__aexit__(None, None, None)
            if proxies:
                await self.admin.aclose()

    def storm(self, *, long: bool) -> None:
        """Faults on the network from now on."""
        hole = [BLACK_HOLE] if long else []
        self.gateway_proxy.faults = [*hole, *GATEWAY_WEATHER]
        self.cdn_proxy.faults = [*hole, *CDN_WEATHER]
        self.store.storm()

    def calm(self) -> None:
        """No faults on new connections."""
        self.gateway_proxy.faults = []
        self.cdn_proxy.faults = []
        self.store.calm()

    async def server_ready(self) -> None:
        """Wait until Temporal listens."""
        await _listens(self.temporal_address, self.server)

    async def _simulator_ready(self) -> dict[str, str]:
        deadline = time.monotonic() + _START_SECONDS
        while not self._ready_file.exists():
            assert self.simulator.running, self.simulator.log.read_text()
            assert time.monotonic() < deadline, "the simulator does not start"
            await asyncio.sleep(_LOOK_SECONDS)
        where: dict[str, str] = json.loads(self._ready_file.read_text())
        return where

    def _worker_environment(self, number: int) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TEMPORAL_", "LONGTAKE_")) and "proxy" not in name.lower()
        }
        # Past the end of a short run: only a long one waits for these limits to pass.
        give_up, delivery_window = timedelta(seconds=80), timedelta(seconds=200)
        account_client = {"LONGTAKE_CONSOLE_TOKEN": CONSOLE_TOKEN, "LONGTAKE_CONSOLE_USER": CONSOLE_USER}
        return {
            **inherited,
            "TEMPORAL_CONFIG_FILE": os.devnull,
            "TEMPORAL_ADDRESS": self.temporal_address,
            "LONGTAKE_GATEWAY_URL": self.gateway_proxy.url,
            "LONGTAKE_GATEWAY_API_KEY": ",".join(API_KEYS),
            "LONGTAKE_EXTEND_URL": self.gateway_proxy.url,
            "LONGTAKE_STORE_URL": self.store.url,
            "LONGTAKE_DATA_DIR": str(self.folder / "not-used"),
            "LONGTAKE_EXPECTED_SECONDS": "4",
            "LONGTAKE_MIN_POLL_INTERVAL_SECONDS": "1",
            "LONGTAKE_SUBMIT_TIMEOUT_SECONDS": "3",
            "LONGTAKE_SUBMIT_WINDOW_MINUTES": "10",
            "LONGTAKE_SUBMIT_CONCURRENCY": "8",
            "LONGTAKE_LOST_GRACE_MINUTES": "0.2",
            "LONGTAKE_OVERDUE_AFTER_MINUTES": "0.5",
            "LONGTAKE_GIVE_UP_AFTER_HOURS": str(give_up / timedelta(hours=1)),
            # Longer than a store that is away and two workers that die in turn: each costs a heartbeat time-out.
            "LONGTAKE_DELIVERY_WINDOW_HOURS": str(delivery_window / timedelta(hours=1)),
            "LONGTAKE_ALLOW_PRIVATE_ADDRESSES": "true",
            "LONGTAKE_LOG_FORMAT": "json",
            "LONGTAKE_BUILD_ID": NEW_BUILD,
            **self.store.environment,
            # One half of the workers can read the gateway's console.
            **(account_client if number == 0 else {}),
        }


def _server_command(address: str, folder: Path) -> list[str]:
    host, _, port = address.partition(":")
    command = [temporal_binary(), "server", "start-dev", "--headless", "--log-level", "warn", "--ip", host]
    command += ["--port", port, "--db-filename", str(folder / "temporal.sqlite")]
    for name in SEARCH_ATTRIBUTES:
        command += ["--search-attribute", f"{name}=Keyword"]
    return command


def _simulator_command(folder: Path, ready_file: Path) -> list[str]:
    command = [sys.executable, "-m", "simulator", "--host", SIMULATOR_HOST, "--data-dir", str(folder / "simulator")]
    command += ["--cdn-port", str(free_port(SIMULATOR_HOST, "127.0.0.1"))]
    command += ["--cache-dir", str(folder.parent / "clips"), "--api-key", API_KEYS[0], "--speed", str(SPEED)]
    return [*command, "--remix", "--ready-file", str(ready_file)]


async def _listens(address: str, process: Process) -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + _START_SECONDS
    while True:
        assert process.running, process.log.read_text()[-2000:]
        try:
            await asyncio.to_thread(lambda: socket.create_connection((host, int(port)), timeout=1).close())
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens at {address}"
            await asyncio.sleep(_LOOK_SECONDS)
        else:
            return


def _port(url: str) -> int:
    port = httpx.URL(url).port
    assert port is not None
    return port
