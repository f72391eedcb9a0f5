"""The real processes that these tests are about: the simulator, Temporal's dev server, workers, the command line."""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self, TypeVar

import pytest

from cli.embedded import temporal_binary
from longtake.client import DecisionRejected, GenerationNotFound, NoWorker, VideoClient
from longtake.models import Decision, DecisionAction, GenerateVideoInput, GenerateVideoResult
from longtake.temporal.connection import connect
from longtake.temporal.names import SEARCH_ATTRIBUTES
from tests.end_to_end.forked import Forked

ROOT = Path(__file__).parents[2]
API_KEY = "sk-e2e-0123456789-secret"
MODEL = "veo_3_1-fast-remix"
SPEED = 30
"""A generation of 120 simulated seconds takes 4 s."""
MARK = "pangolin"
"""Stands in every prompt of these tests, so that a prompt in a log can be recognised."""
_SIGNED_LINK = re.compile(r"Signature=|Expires=|Key-Pair-Id=")
_STATE = tempfile.mkdtemp(prefix="longtake-state-")
"""Which ledgers were used is remembered there, not in the developer's home."""
_T = TypeVar("_T")


def environment(**settings: str) -> dict[str, str]:
    """What every process starts from: nothing of the caller's own settings, short times."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TEMPORAL_", "LONGTAKE_", "OTEL_"))}
    return {
        **inherited,
        "TEMPORAL_CONFIG_FILE": os.devnull,
        "XDG_STATE_HOME": _STATE,
        "COLUMNS": "200",
        "LONGTAKE_EXPECTED_SECONDS": "4",
        "LONGTAKE_MIN_POLL_INTERVAL_SECONDS": "1",
        "LONGTAKE_SUBMIT_TIMEOUT_SECONDS": "20",
        "LONGTAKE_SUBMIT_WINDOW_MINUTES": "1",
        "LONGTAKE_ALLOW_PRIVATE_ADDRESSES": "true",
        **settings,
    }


def secrets_in(text: str) -> list[str]:
    """Every line that shows a prompt, the key or a signed link."""
    return [
        line[:300] for line in text.splitlines() if MARK in line.lower() or API_KEY in line or _SIGNED_LINK.search(line)
    ]


async def eventually(
    find: Callable[[], _T | None], what: str, *, seconds: float = 60, unless: Sequence["Command"] = ()
) -> _T:
    """Wait until `find` gives something true; a command that ends before is a failure.

    Raises:
        AssertionError: It does not in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := find():
            return found
        ended = [command.end() for command in unless if command.process.poll() is not None]
        assert not ended, f"ended before {what}: {ended}"
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def request_json(prompt: str, **more: object) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "prompt_extend": f"and then the {MARK} leaves", **more}


def request(prompt: str, **more: object) -> GenerateVideoInput:
    return GenerateVideoInput.model_validate(request_json(prompt, **more))


def flags(prompt: str) -> list[str]:
    """The flags of `generate` that every request needs."""
    return ["--model", MODEL, "--prompt", prompt, "--prompt-extend", f"and then the {MARK} leaves"]


def free_port(*hosts: str) -> int:
    """A port that is free at all of these (127.0.0.1 where none is named).

    Below those that outgoing connections are given, which would take it before its server does.
    """
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311 - a port is no secret
        with contextlib.suppress(OSError):
            for host in hosts or ("127.0.0.1",):
                with socket.socket() as probe:
                    probe.bind((host, port))
            return port


def listens(address: str) -> bool:
    """Whether something listens at `host:port`."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


async def accept(client: VideoClient, key: str) -> None:
    """Decide `accept`; a worker that has just taken over from another may need longer than one update waits."""
    while True:
        try:
            await client.decide(key, Decision(action=DecisionAction.ACCEPT))
        except NoWorker:
            continue
        except (DecisionRejected, GenerationNotFound):  # one that nobody had answered was taken after all
            pass
        return


LIKE = os.environ.get("SIMULATOR_LIKE", "document")
"""The gateway that tests run against which name none: any of them can be tried against another one."""


class SimulatorProcess:
    """`python -m simulator`."""

    def __init__(self, folder: Path, clips: Path, like: str = LIKE) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        ready = folder / "ready.json"
        command = [sys.executable, "-m", "simulator", "--data-dir", str(folder), "--cache-dir", str(clips)]
        command += ["--api-key", API_KEY, "--speed", str(SPEED), "--ready-file", str(ready), "--like", like]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        self._ready = ready
        self._known: list[dict[str, Any]] = []
        self._read_to = 0
        self.url = ""

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 30
        while not self._ready.exists():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, "the simulator does not start"
            time.sleep(0.05)
        self.url = json.loads(self._ready.read_text())["url"]

    def posts(self, prompt: str) -> list[dict[str, Any]]:
        """The submissions with this prompt."""
        return [entry for entry in self._entries() if entry.get("prompt") == prompt]

    def paid(self, prompt: str) -> int:
        """How many submissions with this prompt are charged: one that was cancelled was given back."""
        given_back = {entry["task_id"] for entry in self._entries() if entry.get("kind") == "cancelled"}
        return sum(bool(entry["paid"]) and entry.get("task_id") not in given_back for entry in self.posts(prompt))

    def posts_by_prompt(self) -> Counter[str]:
        """How many submissions each prompt had."""
        return Counter(entry.get("prompt", "") for entry in self._entries() if entry.get("kind") == "submit")

    def submissions(self) -> int:
        """How many POSTs were seen at all."""
        return sum("paid" in entry for entry in self._entries())

    def requests(self, label: str) -> list[dict[str, Any]]:
        """Every request about tasks whose scenario has this label, the submission first."""
        made = {
            entry.get("task_id"): entry for entry in self._entries() if f"label={label}" in entry.get("scenario", "")
        }
        return [entry for entry in self._entries() if entry.get("task_id") in made]

    def violations(self) -> list[dict[str, Any]]:
        return [entry for entry in self._entries() if entry.get("violation")]

    def _entries(self) -> list[dict[str, Any]]:
        """All that was asked; asked for many times a second, so only what is new is read."""
        with (self._folder / "ledger.jsonl").open("rb") as ledger:
            ledger.seek(self._read_to)
            new = ledger.read()
        whole = new[: new.rfind(b"\n") + 1]  # a line that is being written at this moment is not whole yet
        self._read_to += len(whole)
        self._known += [json.loads(line) for line in whole.splitlines()]
        return self._known

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)


class DevServer:
    """`temporal server start-dev` on a SQLite file; can be killed and started again.

    `with DevServer(folder) as server:` has it answer, and stops it in the end.
    """

    def __init__(
        self, folder: Path, *, ui: bool = False, attributes: bool = True, namespaces: Sequence[str] = ()
    ) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._attributes = SEARCH_ATTRIBUTES if attributes else ()
        self._port = free_port()
        self._ui_port = free_port() if ui else None
        self.ui_url = f"http://127.0.0.1:{self._ui_port}" if ui else ""
        self._process: subprocess.Popen[bytes] | None = None
        self.flags = [flag for name in namespaces for flag in ("--namespace", name)]
        """More of them for `start-dev`."""
        self.address = f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        command = [temporal_binary(), "server", "start-dev", "--ip", "127.0.0.1", "--log-level", "error"]
        command += ["--ui-port", str(self._ui_port), "--ui-disable-news-fetch"] if self._ui_port else ["--headless"]
        command += ["--port", str(self._port), "--db-filename", str(self._folder / "temporal.sqlite")]
        for name in self._attributes:
            command += ["--search-attribute", f"{name}=Keyword"]
        command += self.flags
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def wait_until_ready(self) -> None:
        """Listening is not enough: it refuses for some moments more."""
        deadline = time.monotonic() + 30
        health = [temporal_binary(), "operator", "cluster", "health", "--address", self.address]
        while subprocess.run(health, capture_output=True, check=False).returncode:
            assert self._process is not None
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, "the dev server does not start"
            time.sleep(0.1)

    def log(self) -> str:
        return (self._folder / "server.log").read_text(errors="replace")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(timeout=20)


class WorkerProcess:
    """`python worker.py`, killed and started again as often as a test likes; all of them write one log."""

    def __init__(self, folder: Path, env: Mapping[str, str], *flags: str, root: Path = ROOT) -> None:
        """Not started yet; `root` is the tree whose `worker.py` is run."""
        self._flags = flags
        folder.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._log = folder / "worker.log"
        self._ready = folder / "ready"
        self._env = dict(env)
        self._process: Forked | subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `ready` tells when it polls."""
        self._ready.unlink(missing_ok=True)
        # Another tree has other code, and another PYTHONPATH other packages: there is nothing that could be shared.
        start = Forked if self._root == ROOT and "PYTHONPATH" not in self._env else subprocess.Popen
        command = [sys.executable, str(self._root / "worker.py"), "--ready-file", str(self._ready), *self._flags]
        with self._log.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            self._process = start(command, env=self._env, stdin=nothing, stdout=log, stderr=log)

    def ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()[-2000:]
        return self._ready.exists() and bool(self._ready.stat().st_size)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def ended(self, *, seconds: float = 30) -> int:
        """Its exit code, once it has ended."""
        process = self._process
        assert process is not None
        await eventually(lambda: process.poll() is not None, "the worker ends", seconds=seconds)
        return process.wait()

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ended()

    async def restart(self) -> None:
        self.start()
        await eventually(self.ready, "the worker polls")

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Standard output, which must be exactly one JSON document."""
        return json.loads(self.out)

    def last_line(self) -> str:
        return self.out.strip().splitlines()[-1]


class Command:
    """A command under way; its output goes to files, so that nobody has to read it meanwhile."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str], stdin: str, *, forked: bool) -> None:
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - `close` does it
        with tempfile.TemporaryFile() as given:
            given.write(stdin.encode())
            given.seek(0)
            start = Forked if forked else subprocess.Popen
            self.process: Forked | subprocess.Popen[bytes] = start(
                [sys.executable, str(ROOT / "starter.py"), *arguments],
                env=dict(env),
                stdin=given,
                stdout=self._out,
                stderr=self._err,
            )

    async def finished(self, *, seconds: float = 60) -> Finished:
        """Its end; one that takes longer is killed, and that is a failure."""
        try:
            await eventually(lambda: self.process.poll() is not None, "the command ends", seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.end()}") from None
        return self.end()

    def end(self) -> Finished:
        """Kill it, if it still runs, and give what it said."""
        if self.process.poll() is None:
            self.process.kill()
        code = self.process.wait()
        return Finished(code, *map(self._read, (self._out, self._err)))

    def is_connected(self) -> bool:
        """Whether it speaks with Temporal: the SDK's threads run from then on."""
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir())) > 1

    @staticmethod
    def _read(file: IO[bytes]) -> str:
        return os.pread(file.fileno(), 2**24, 0).decode()

    def close(self) -> None:
        self.end()
        self._out.close()
        self._err.close()


class Starter:
    """`python starter.py …` with one environment.

    Args:
        env: All of it.
        forked: Whether a Python that has the imports done becomes the command, which saves a second of CPU each time.
    """

    def __init__(self, env: Mapping[str, str], commands: list[Command] | None = None, *, forked: bool = True) -> None:
        self.env = dict(env)
        self._forked = forked
        self._commands = [] if commands is None else commands

    def but(self, **changes: str | None) -> "Starter":
        """The same with other settings; None takes one away."""
        merged = {**self.env, **changes}
        given = {name: value for name, value in merged.items() if value is not None}
        return Starter(given, self._commands, forked=self._forked)

    def executed(self) -> "Starter":
        """The same as a Python of its own each time, as users have it."""
        return Starter(self.env, self._commands, forked=False)

    def start(self, *arguments: str, stdin: str = "") -> Command:
        command = Command(arguments, self.env, stdin, forked=self._forked)
        self._commands.append(command)
        return command

    async def __call__(self, *arguments: str, stdin: str = "", seconds: float = 60) -> Finished:
        return await self.start(*arguments, stdin=stdin).finished(seconds=seconds)

    def close(self) -> None:
        """End what a failed test left running."""
        for command in self._commands:
            command.close()


Story = Callable[[], Coroutine[Any, Any, None]]
"""A test that mostly waits: those of a module run side by side, and each is reported for itself."""


def run_stories(stories: Mapping[str, Story], *, at_once: int = 4) -> dict[str, BaseException | None]:
    """Run stories side by side, and give what each raised."""

    async def tell() -> list[BaseException | None]:
        places = asyncio.Semaphore(at_once)

        async def one(story: Story) -> None:
            async with places:
                await story()

        return await asyncio.gather(*map(one, stories.values()), return_exceptions=True)

    return dict(zip(stories, asyncio.run(tell()), strict=True))


def chosen(request: pytest.FixtureRequest, stories: Sequence[str]) -> list[str]:
    """The stories of a module that this run asks for: a mark or `-k` may leave others out."""
    tests = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    asked = {item.callspec.params.get("story") for item in tests}
    return [story for story in stories if story in asked]


class Site:
    """One Temporal, one worker and one store that a test may break."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.store = folder / "store"
        self.server = DevServer(folder / "temporal")
        here = {"TEMPORAL_ADDRESS": self.server.address, "LONGTAKE_STORE_URL": self.store.as_uri()}
        self.env = {**env, **here}
        self.worker = WorkerProcess(folder, self.env)
        self._folder = folder
        self._others: list[WorkerProcess] = []

    def another_worker(self, settings: Mapping[str, str], code: Path = ROOT) -> WorkerProcess:
        """A worker with other settings or other code; it ends with the site."""
        folder = self._folder / f"worker-{len(self._others)}"
        self._others.append(WorkerProcess(folder, {**self.env, **settings}, root=code))
        return self._others[-1]

    async def start(self) -> VideoClient:
        await self.start_server()
        await self.worker.restart()
        return await self.client()

    async def start_server(self) -> None:
        self.server.start()
        await asyncio.to_thread(self.server.wait_until_ready)

    async def client(self) -> VideoClient:
        return VideoClient(await connect(self.server.address))

    def stop(self) -> None:
        for worker in (self.worker, *self._others):
            worker.stop()
        self.server.stop()


async def decided_result(
    client: VideoClient, simulator: SimulatorProcess, key: str, prompt: str
) -> GenerateVideoResult:
    """Wait for the end; where a person is asked, answer with what the gateway really has."""
    while (snapshot := await client.snapshot(key)).running:
        if snapshot.status and DecisionAction.ADOPT in snapshot.status.decisions:
            posts = simulator.posts(prompt)
            answer = Decision(action=DecisionAction.RESUBMIT)
            if posts:
                answer = Decision(action=DecisionAction.ADOPT, task_id=posts[0]["task_id"])
            await client.decide(key, answer)
        await asyncio.sleep(1)
    return await client.result(key)


def processes_of(data_dir: Path) -> dict[int, str]:
    """Everything that runs for a data folder, by process id: servers, supervisors and workers all name it."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(data_dir) in command and "starter.py" not in command:
            found[int(folder.name)] = command
    return found
