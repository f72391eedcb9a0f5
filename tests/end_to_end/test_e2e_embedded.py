"""The command line with nothing else running: it brings its own Temporal and worker."""

import asyncio
import os
import signal
from pathlib import Path

from tests.end_to_end.processes import (
    MARK,
    Finished,
    SimulatorProcess,
    Starter,
    eventually,
    flags,
    processes_of,
    secrets_in,
)

END_SECONDS = 20
"""How long servers and workers may live on after the last command: a worker drains, the server's lock is free."""


def in_folder(alone: Starter, folder: Path) -> tuple[Starter, Path]:
    return alone.but(LONGTAKE_DATA_DIR=str(folder)), folder


async def nothing_is_left(data: Path, *, seconds: float = END_SECONDS) -> None:
    await eventually(lambda: not processes_of(data), f"everything of {data.name} ends", seconds=seconds)


def logs_of(data: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in (data / "embedded").glob("*.log"))


def is_full(run: Finished) -> bool:
    assert run.code == 0, run
    return run.json()["outcome"] == "full"


async def test_two_commands_share_what_they_start(alone: Starter, simulator: SimulatorProcess, tmp_path: Path) -> None:
    starter, data = in_folder(alone, tmp_path / "shared folder")
    prompts = [f"shared {MARK} [sim:ok,label=shared{number}]" for number in (1, 2)]
    commands = [
        starter.start("generate", *flags(prompt), "--key", f"shared-{number}", "--json")
        for number, prompt in enumerate(prompts)
    ]
    for prompt in prompts:
        await eventually(lambda prompt=prompt: simulator.posts(prompt), "the POST arrives")
    servers = [command for command in processes_of(data).values() if "start-dev" in command]
    assert len(servers) == 1, servers
    runs = await asyncio.gather(*(command.finished() for command in commands))
    assert all(map(is_full, runs))
    assert [simulator.paid(prompt) for prompt in prompts] == [1, 1]
    await nothing_is_left(data)

    # Looking needs neither the gateway nor its key.
    looking = starter.but(LONGTAKE_GATEWAY_URL=None, LONGTAKE_GATEWAY_API_KEY=None)
    rows, status = await asyncio.gather(looking("list", "--json"), looking("status", "shared-0", "--json"))
    assert sorted(row["key"] for row in rows.json()) == ["shared-0", "shared-1"]
    assert (status.code, status.json()["state"]) == (0, "completed")
    await nothing_is_left(data)
    assert "submitted task=" in logs_of(data)
    assert secrets_in(logs_of(data) + "".join(run.err for run in runs)) == []


async def test_killed_at_any_moment_and_started_again(
    alone: Starter, simulator: SimulatorProcess, tmp_path: Path
) -> None:
    """The command alone is killed, or everything at once, as by a power cut; the same key goes on."""

    async def killed(name: str, *, everything: bool, before_post: bool, wait: float) -> None:
        starter, data = in_folder(alone, tmp_path / name)
        prompt = f"{name} {MARK} [sim:ok,label={name}]"
        arguments = ("generate", *flags(prompt), "--key", name, "--json")
        command = starter.start(*arguments)
        if not before_post:
            await eventually(lambda: simulator.posts(prompt), "the POST arrives")
            await eventually(lambda: [*(data / "store").rglob("outcome")], "its outcome is written down")
        await asyncio.sleep(wait)
        command.process.kill()
        for pid in processes_of(data) if everything else ():
            os.kill(pid, signal.SIGKILL)
        assert is_full(await starter(*arguments))
        assert simulator.paid(prompt) == 1
        assert len([*(data / "store").rglob("*.mp4")]) == 1
        await nothing_is_left(data)

    await asyncio.gather(
        killed("at-the-start", everything=False, before_post=True, wait=1.5),
        killed("while-it-is-made", everything=False, before_post=False, wait=1),
        killed("power-cut", everything=True, before_post=False, wait=0.5),
    )


async def test_interrupted_left_alone_or_without_its_worker(
    alone: Starter, simulator: SimulatorProcess, tmp_path: Path
) -> None:
    async def interrupted() -> None:
        starter, data = in_folder(alone, tmp_path / "interrupted")
        prompt = f"interrupted {MARK} [sim:ok,label=embedded-interrupted]"
        command = starter.start("generate", *flags(prompt), "--key", "stopped")
        await eventually(lambda: simulator.posts(prompt), "the POST arrives")
        command.process.send_signal(signal.SIGINT)
        run = await command.finished()
        assert (run.code, run.out, "Traceback" in run.err) == (130, "", False), run
        assert "starter.py watch stopped" in run.err
        await nothing_is_left(data)
        assert is_full(await starter("watch", "stopped", "--json"))
        assert simulator.paid(prompt) == 1
        await nothing_is_left(data)

    async def not_waited_for() -> None:
        starter, data = in_folder(alone, tmp_path / "background")
        prompt = f"background {MARK} [sim:ok,label=background]"
        run = await starter("generate", *flags(prompt), "--key", "behind", "--no-wait")
        assert (run.code, run.out) == (0, "behind\n"), run
        # It goes on by itself, and ends by itself once nothing is left to do.
        await eventually(lambda: [*(data / "store").rglob("*.mp4")], "the video is stored")
        await nothing_is_left(data, seconds=30)
        assert is_full(await starter("result", "behind", "--json"))
        assert simulator.paid(prompt) == 1

    async def worker_killed() -> None:
        starter, data = in_folder(alone, tmp_path / "worker-killed")
        prompt = f"worker {MARK} [sim:ok,label=worker-killed]"
        command = starter.start("generate", *flags(prompt), "--key", "replaced", "--json")
        await eventually(lambda: [*(data / "store").rglob("outcome")], "the submission is written down")
        workers = [pid for pid, line in processes_of(data).items() if "worker.py" in line]
        assert len(workers) == 1
        os.kill(workers[0], signal.SIGKILL)
        run = await command.finished()
        assert is_full(run)
        assert "starting another" in run.err
        assert simulator.paid(prompt) == 1
        await nothing_is_left(data)

    await asyncio.gather(interrupted(), not_waited_for(), worker_killed())
