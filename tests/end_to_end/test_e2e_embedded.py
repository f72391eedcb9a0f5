"""The command line with nothing else running: it brings its own Temporal and worker."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.embedded import temporal_binary
from tests.end_to_end.processes import (
    MARK,
    ROOT,
    Finished,
    SimulatorProcess,
    Starter,
    chosen,
    eventually,
    flags,
    processes_of,
    run_stories,
    secrets_in,
)

END_SECONDS = 20
"""How long servers and workers may live on after the last command: a worker drains, then the server's lock is free."""


class Embedded:
    """Each method is a story of its own, in a data folder of its own."""

    def __init__(self, folder: Path, alone: Starter, simulator: SimulatorProcess) -> None:
        self._folder = folder
        self._alone = alone
        self._simulator = simulator

    def _place(self, name: str) -> tuple[Starter, Path, str]:
        """A command line, its data folder and a prompt."""
        data = self._folder / name
        return self._alone.but(LONGTAKE_DATA_DIR=str(data)), data, f"{name} {MARK} [sim:ok,label={name}]"

    async def two_commands_share_what_they_start(self) -> None:
        starter, data, prompt = self._place("a shared folder")
        # Long enough that neither has ended before the other one has begun, however busy the machine is.
        prompts = [prompt.replace("sim:ok", f"sim:ok,seconds={600 + number}") for number in range(2)]
        commands = [
            starter.start("generate", *flags(prompt), "--key", f"shared-{number}", "--json")
            for number, prompt in enumerate(prompts)
        ]
        await eventually(lambda: all(map(self._simulator.posts, prompts)), "both POSTs arrive", unless=commands)
        servers = [command for command in processes_of(data).values() if "start-dev" in command]
        assert len(servers) == 1, servers
        runs = await asyncio.gather(*(command.finished() for command in commands))
        assert all(map(is_full, runs))
        assert [*map(self._simulator.paid, prompts)] == [1, 1]
        await nothing_is_left(data)

        # Looking needs neither the gateway nor its key.
        looking = starter.but(LONGTAKE_GATEWAY_URL=None, LONGTAKE_GATEWAY_API_KEY=None)
        rows, status = await asyncio.gather(looking("list", "--json"), looking("status", "shared-0", "--json"))
        assert sorted(row["key"] for row in rows.json()) == ["shared-0", "shared-1"]
        assert (status.code, status.json()["state"]) == (0, "completed")
        await nothing_is_left(data)
        logs = "".join(path.read_text(errors="replace") for path in (data / "embedded").glob("*.log"))
        assert '"event": "submitted"' in logs
        assert secrets_in(logs + "".join(run.err for run in runs)) == []

    async def killed_at_the_start(self) -> None:
        await self._killed("killed-at-the-start", everything=False, submitted=False, after_seconds=1.5)

    async def killed_while_it_is_made(self) -> None:
        await self._killed("killed-while-it-is-made", everything=False, submitted=True, after_seconds=1)

    async def everything_killed_at_once(self) -> None:
        """As by a power cut."""
        await self._killed("power-cut", everything=True, submitted=True, after_seconds=0.5)

    async def _killed(self, name: str, *, everything: bool, submitted: bool, after_seconds: float) -> None:
        """The same command again goes on where it was, and never pays twice."""
        starter, data, prompt = self._place(name)
        arguments = ("generate", *flags(prompt), "--key", name, "--json")
        command = starter.start(*arguments)
        if submitted:
            await eventually(lambda: [*(data / "store").rglob("outcome")], "it is written down", unless=[command])
        await asyncio.sleep(after_seconds)
        command.process.kill()
        if everything:
            kill_all(data)
        assert is_full(await starter(*arguments, seconds=100))
        assert self._simulator.paid(prompt) == 1
        assert len([*(data / "store").rglob("*.mp4")]) == 1
        await nothing_is_left(data)

    async def interrupted(self) -> None:
        starter, data, prompt = self._place("interrupted")
        command = starter.start("generate", *flags(prompt), "--key", "stopped")
        await eventually(lambda: self._simulator.posts(prompt), "the POST arrives", unless=[command])
        command.process.send_signal(signal.SIGINT)
        run = await command.finished()
        assert (run.code, run.out, "Traceback" in run.err) == (130, "", False), run
        assert "starter.py watch stopped" in run.err
        await nothing_is_left(data)
        assert is_full(await starter("watch", "stopped", "--json", seconds=100))
        assert self._simulator.paid(prompt) == 1
        await nothing_is_left(data)

    async def terminated(self) -> None:
        """SIGTERM to `up` and to `demo`, as a supervisor sends it."""
        starter, data, _ = self._place("terminated")
        up = starter.start("up")
        await eventually(lambda: "Ctrl-C" in up._read(up._err), "it runs", unless=[up])
        folder = self._folder / "demo"
        folder.mkdir()
        demo = await asyncio.create_subprocess_exec(
            sys.executable,
            str(ROOT / "starter.py"),
            "demo",
            cwd=folder,
            env=starter.env,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await eventually(
            lambda: any("worker" in command for command in processes_of(folder).values()), "its worker runs"
        )
        up.process.send_signal(signal.SIGTERM)
        demo.send_signal(signal.SIGTERM)
        run = await up.finished()
        assert (run.code, await demo.wait()) == (0, 130), run
        assert "draining" in run.err
        await nothing_is_left(data)
        await nothing_is_left(folder)

    async def not_waited_for(self) -> None:
        starter, data, prompt = self._place("background")
        run = await starter("generate", *flags(prompt), "--key", "behind", "--no-wait")
        assert (run.code, run.out) == (0, "behind\n"), run
        # It goes on by itself, and ends by itself once nothing is left to do.
        await eventually(lambda: [*(data / "store").rglob("*.mp4")], "the video is stored")
        await nothing_is_left(data)
        assert is_full(await starter("result", "behind", "--json"))
        assert self._simulator.paid(prompt) == 1

    async def its_worker_killed(self) -> None:
        starter, data, prompt = self._place("worker-killed")
        command = starter.start("generate", *flags(prompt), "--key", "replaced", "--json")
        await eventually(lambda: [*(data / "store").rglob("outcome")], "it is written down", unless=[command])
        workers = [pid for pid, line in processes_of(data).items() if "worker.py" in line]
        assert len(workers) == 1
        os.kill(workers[0], signal.SIGKILL)
        run = await command.finished(seconds=100)
        assert is_full(run)
        assert "starting another" in run.err
        assert self._simulator.paid(prompt) == 1
        await nothing_is_left(data)

    async def its_temporal_killed(self) -> None:
        """The supervisor starts it again on its file, and the command waits for it."""
        starter, data, prompt = self._place("temporal-killed")
        command = starter.start("generate", *flags(prompt), "--key", "lasting", "--json")
        await eventually(lambda: [*(data / "store").rglob("outcome")], "it is written down", unless=[command])
        servers = [pid for pid, line in processes_of(data).items() if "start-dev" in line]
        assert len(servers) == 1
        os.kill(servers[0], signal.SIGKILL)
        assert is_full(await command.finished(seconds=100))
        assert self._simulator.paid(prompt) == 1
        await nothing_is_left(data)

    async def two_set_ups_in_one_folder(self) -> None:
        """Workers of one server take each other's work: with two gateways or stores nothing would be where it is."""
        starter, data, _ = self._place("two-set-ups")
        prompt = f"two set-ups {MARK} [sim:never_finishes,label=two-set-ups]"
        first = starter.start("generate", *flags(prompt), "--key", "first")
        await eventually(lambda: self._simulator.posts(prompt), "the POST arrives", unless=[first])
        gateway = self._simulator.url.replace("127.0.0.1", "localhost")
        others = [
            starter.but(LONGTAKE_STORE_URL=(data / "another").as_uri()),
            starter.but(LONGTAKE_GATEWAY_URL=gateway),
        ]
        second = f"second {MARK} [sim:ok,label=two-set-ups]"
        runs = await asyncio.gather(
            *(other("generate", *flags(second), "--key", "second", "--json") for other in others)
        )
        for run, kind in zip(runs, ("WrongLedger", "InvalidSettings"), strict=True):
            error = run.json()["error"]
            assert (run.code, error["type"]) == (2, kind), run
            assert str(data) in error["message"]
        assert self._simulator.posts(second) == []
        # The first one's own commands go on working.
        assert (await starter("cancel", "first")).code == 0
        first.process.send_signal(signal.SIGINT)
        await first.finished()
        await nothing_is_left(data)

    async def its_server_slow_to_answer(self) -> None:
        """Temporal listens on its port for some moments before it takes a call; that is waited for."""
        starter, data, _ = self._place("slow")
        self._folder.joinpath("slow-temporal").write_text(
            SLOW_TEMPORAL.format(python=sys.executable, real=temporal_binary())
        )
        self._folder.joinpath("slow-temporal").chmod(0o755)
        slow = starter.but(LONGTAKE_TEMPORAL_BINARY=str(self._folder / "slow-temporal"))
        run = await slow("list", "--json")
        assert (run.code, run.out) == (0, "[]\n"), run
        await nothing_is_left(data)


SLOW_TEMPORAL = """#!{python}
import os, socket, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
with socket.create_server(("127.0.0.1", port)) as early:
    early.settimeout(0.1)
    until = time.monotonic() + 3
    while time.monotonic() < until:
        try:
            early.accept()[0].close()
        except TimeoutError:
            pass
os.execv("{real}", ["{real}", *sys.argv[1:]])
"""


def is_full(run: Finished) -> bool:
    assert run.code == 0, run
    return bool(run.json()["outcome"] == "full")


def kill_all(data: Path) -> None:
    for pid in processes_of(data):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def nothing_is_left(data: Path) -> None:
    """No server, supervisor or worker of this folder lives on."""
    await eventually(lambda: not processes_of(data), f"everything of {data.name} ends", seconds=END_SECONDS)


STORIES = (
    "two_commands_share_what_they_start",
    "everything_killed_at_once",
    "its_temporal_killed",
    "two_set_ups_in_one_folder",
)
MORE_STORIES = (
    "killed_at_the_start",
    "killed_while_it_is_made",
    "interrupted",
    "terminated",
    "not_waited_for",
    "its_worker_killed",
    "its_server_slow_to_answer",
)
"""Each starts a server and a worker of its own; `make test-system` runs these too."""


@pytest.fixture(scope="module")
def ends(
    request: pytest.FixtureRequest,
    alone: Starter,
    simulator: SimulatorProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, BaseException | None]]:
    folder = tmp_path_factory.mktemp("embedded")
    embedded = Embedded(folder, alone.executed(), simulator)
    yield run_stories({name: getattr(embedded, name) for name in chosen(request, STORIES + MORE_STORIES)})
    kill_all(folder)  # what a story that failed left behind


# The stories run in the first one's time; an activity whose worker was killed is given up after 90 s at the latest.
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "story", [*STORIES, *(pytest.param(story, marks=pytest.mark.system) for story in MORE_STORIES)]
)
def test_embedded(story: str, ends: dict[str, BaseException | None]) -> None:
    if error := ends[story]:
        raise error
