"""The command `demo`: four generations at once, with real parts, and a worker that is killed in the middle.

Real: the Temporal server, the worker, HTTP, the MP4s, the SIGKILL. Simulated: the gateway, ten times as fast.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from cli.commands.request import build_request
from cli.embedded import wait_until_stopped
from cli.embedded_worker import EmbeddedWorker
from cli.output import CommandProblem, Exit
from cli.progress import describe, live, without_next_poll
from cli.results import copy_video
from cli.session import Session, connect_when_healthy, load_settings, server_of
from longtake.client import GenerationFailure, VideoClient
from longtake.delivery.mp4 import read_media
from longtake.models import FailureDetails, GenerateVideoResult
from longtake.settings import Settings
from longtake.storage import Store

SPEED = 10
"""The simulated gateway makes a video in about 12 s."""
_FOLDER = Path(".longtake")
_KEY = "demo-key"  # only the simulator accepts it
_ROOT = Path(__file__).parent.parent


@dataclass
class Scene:
    """One generation of the demo, and its expected outcome."""

    key: str
    title: str
    fields: dict[str, str]
    expected: str
    images: tuple[str, ...] = ()
    killed: bool = False
    line: str = "starting"
    run_id: str = ""
    result: GenerateVideoResult | None = None
    failure: GenerationFailure | None = None
    file: Path | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """The actual outcome, or the failure type."""
        return self.result.outcome if self.result else self.failure.kind if self.failure else "?"

    @property
    def details(self) -> GenerateVideoResult | FailureDetails:
        """The ids and the number of polls, of the result or of the failure."""
        return self.result or (self.failure.details if self.failure else FailureDetails())


async def run(videos: Path, *, keep: bool, like: str) -> Exit:
    """Run `demo`.

    Returns:
        0 if every scene has its expected outcome and exactly one paid submission; otherwise 1.
    """
    began = time.monotonic()
    console = Console(stderr=True)
    folder = _FOLDER.absolute() / "demo"
    _fresh(folder)
    videos.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        gateway_url = await stack.enter_async_context(_simulator(folder, like))
        settings = _settings(folder, gateway_url)
        server = stack.enter_context(server_of(settings))
        worker = await stack.enter_async_context(EmbeddedWorker(settings, server))
        temporal = await connect_when_healthy(server.address)
        session = Session(VideoClient(temporal), temporal, server.address, server.ui_url)
        _say(console, f"Temporal {server.address}, UI {server.ui_url}, simulated gateway {gateway_url} (like {like})")
        _say(console, f"data folder {settings.data_dir}, ledger in {settings.store_location}")
        scenes = _scenes(folder)
        store = Store.open(settings.store_location)
        for scene in scenes:
            request, _ = await build_request(scene.fields, scene.images, store, dry_run=False)
            scene.run_id, _ = await session.client.start(scene.key, request)
        with live(console) as progress:
            rows = {scene.key: progress.add_task(scene.title, line=scene.line) for scene in scenes}

            def show(scene: Scene) -> None:
                progress.update(rows[scene.key], line=scene.line)
                if not console.is_terminal:
                    _say(console, f"{scene.key}: {scene.line}")

            await asyncio.gather(
                *(_play(session, scene, show) for scene in scenes),
                _kill_in_the_middle(session, scenes, worker, console),
            )
        for scene in scenes:
            if scene.result:
                scene.file = await copy_video(store, scene.result.video, videos / f"{scene.key}.mp4", scene.key)
        paid = await _paid(gateway_url)
        good = _report(scenes, session, paid)
        _say(
            console,
            f"{time.monotonic() - began:.0f} s, {sum(paid.values())} paid submissions for {len(scenes)} keys",
        )
        if keep:
            _say(console, f"open {server.ui_url}; press Ctrl-C to stop")
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        else:
            _say(console, "the servers stop now, so the links stop working; to keep the servers: make demo KEEP=1")
    return Exit.DELIVERED if good else Exit.FAILED


def _scenes(folder: Path) -> list[Scene]:
    fast = {"model": "veo_3_1-fast-remix"}
    return [
        Scene(
            "demo-1-text",
            "1 text to video",
            {**fast, "prompt": "A lighthouse in a storm", "prompt_extend": "The storm clears", "size": "1280x720"},
            "full",
        ),
        Scene(
            "demo-2-frames",
            "2 first and last frame",
            {
                "model": "veo_3_1-fast-fl-remix",
                "prompt": "[sim:extend_failed] From dawn",
                "prompt_extend": "to dusk",
                "size": "720x1280",
            },
            "fallback",
            images=_frames(folder),
        ),
        Scene(
            "demo-3-refused",
            "3 refused for safety",
            {**fast, "prompt": "[sim:generate_failed] Something unsafe", "prompt_extend": "And more of it"},
            "GenerationFailed",
        ),
        Scene(
            "demo-4-killed",
            "4 worker killed in the middle",
            {**fast, "prompt": "A paper boat on a river", "prompt_extend": "It reaches the sea"},
            "full",
            killed=True,
        ),
    ]


async def _play(session: Session, scene: Scene, show: Any) -> None:
    """Follow one generation to its end."""
    while True:
        snapshot = await session.client.snapshot(scene.key)
        line = describe(snapshot)
        if without_next_poll(line) != without_next_poll(scene.line):
            scene.line = line
            show(scene)
        if not snapshot.running:
            break
        await asyncio.sleep(0.5)
    try:
        scene.result = await session.client.result(scene.key)
        scene.line = f"{scene.result.outcome}: {scene.result.video.duration_seconds:.1f} s"
    except GenerationFailure as failure:
        scene.failure = failure
        scene.line = f"{failure.kind}: {failure.message}"
    show(scene)


async def _kill_in_the_middle(
    session: Session, scenes: Sequence[Scene], worker: EmbeddedWorker, console: Console
) -> None:
    """SIGKILL the worker after the fourth generation has been paid for and polled."""
    victim = next(scene for scene in scenes if scene.killed)
    while True:
        snapshot = await session.client.snapshot(victim.key)
        if not snapshot.running:
            victim.problems.append("it ended before its worker was killed")
            return
        if snapshot.status and snapshot.status.polls and worker.pid:
            break
        await asyncio.sleep(0.2)
    _say(console, f"SIGKILL to the worker, process {worker.pid}, in the middle of {victim.key}")
    os.kill(worker.pid, signal.SIGKILL)


def _report(scenes: Sequence[Scene], session: Session, paid: dict[str, int]) -> bool:
    """Print the table, the ids, the links and the failure; returns whether every scene is as expected."""
    out = Console(width=None if sys.stdout.isatty() else 150)
    table = Table("scene", "outcome", "file", "length", "picture", "bytes", "polls", "paid submissions")
    for scene in scenes:
        times = paid.get(scene.fields["prompt"], 0)
        if scene.outcome != scene.expected:
            scene.problems.append(f"the outcome is {scene.outcome}, not {scene.expected}")
        if times != 1:
            scene.problems.append(f"{times} paid submissions instead of one")
        table.add_row(scene.title, scene.outcome, *_read_from(scene.file), str(scene.details.polls), str(times))
    out.print(table)
    for scene in scenes:
        _say(out, f"{scene.key}: task {scene.details.task_id}, remix_id {scene.details.remix_id}")
        if scene.failure:
            code = scene.failure.details.gateway_code
            _say(out, f"  {scene.failure.kind} ({code}): {scene.failure.message}")
        _say(out, f"  {session.link(scene.key, scene.run_id)}")
        for problem in scene.problems:
            _say(out, f"  UNEXPECTED: {problem}")
    return not any(scene.problems for scene in scenes)


def _read_from(file: Path | None) -> tuple[str, str, str, str]:
    """Name, length, picture and size, read from the file."""
    if file is None:
        return "-", "", "", ""
    media = read_media(file)
    picture = f"{media.width}x{media.height}" + ("" if media.has_audio else ", silent")
    return str(file), f"{media.duration_seconds:.1f} s", picture, f"{file.stat().st_size:,}"


@asynccontextmanager
async def _simulator(folder: Path, like: str) -> AsyncIterator[str]:
    """The simulated gateway as a separate process.

    Raises:
        CommandProblem: It does not start.
    """
    ready = folder / "simulator.json"
    log_path = folder / "simulator.log"
    command = [sys.executable, "-m", "simulator", "--port", "0", "--ready-file", str(ready), "--speed", str(SPEED)]
    command += ["--like", like]
    command += ["--api-key", _KEY, "--data-dir", str(folder / "simulator"), "--cache-dir", str(folder.parent / "clips")]
    with log_path.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603, ASYNC220 - our own program; it returns at once
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=_ROOT, start_new_session=True
        )
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise CommandProblem(Exit.FAILED, "SimulatorFailed", f"the simulator did not start (log: {log_path})")
            await asyncio.sleep(0.05)
        yield str(json.loads(ready.read_text())["url"])
    finally:
        process.terminate()
        process.wait()


def _settings(folder: Path, gateway_url: str) -> Settings:
    """The settings of the demo; those of the environment are ignored."""
    for name in [name for name in os.environ if name.startswith(("LONGTAKE_", "TEMPORAL_"))]:
        if name != "LONGTAKE_TEMPORAL_BINARY":
            del os.environ[name]
    os.environ.update(
        LONGTAKE_GATEWAY_URL=gateway_url,
        LONGTAKE_GATEWAY_API_KEY=_KEY,
        LONGTAKE_DATA_DIR=str(folder),
        LONGTAKE_EXPECTED_SECONDS=str(150 / SPEED),
        LONGTAKE_MIN_POLL_INTERVAL_SECONDS="1",
        LONGTAKE_ALLOW_PRIVATE_ADDRESSES="true",
    )
    return load_settings(None)


def _fresh(folder: Path) -> None:
    """Start with an empty folder: keys of an earlier demo would attach to its generations."""
    if not wait_until_stopped(folder):
        raise CommandProblem(
            Exit.UNREACHABLE,
            "TemporalUnreachable",
            f"the servers of an earlier demo still use {folder}: stop them first",
        )
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _frames(folder: Path) -> tuple[str, str]:
    """Two local image files: the first and the last frame."""
    paths = []
    for name, colour in (("first", "darkorange"), ("last", "midnightblue")):
        image = Image.new("RGB", (720, 1280), colour)
        ImageDraw.Draw(image).text((300, 600), f"{name} frame", fill="white")
        path = folder / f"{name}.png"
        image.save(path)
        paths.append(str(path))
    return paths[0], paths[1]


async def _paid(gateway_url: str) -> dict[str, int]:
    """Paid submissions by prompt, from the simulator's own ledger."""
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{gateway_url}/_simulator/paid")
    by_prompt: dict[str, int] = answer.json()["by_prompt"]
    return by_prompt


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
