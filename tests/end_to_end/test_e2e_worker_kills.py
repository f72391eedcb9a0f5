"""Workers and servers that die at any moment: nothing is paid twice, nothing is lost."""

import asyncio
import hashlib
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from longtake.client import GenerationFailure, VideoClient
from longtake.models import GenerateVideoInput, Paid
from longtake.temporal import connect
from tests.end_to_end.processes import (
    MARK,
    DevServer,
    SimulatorProcess,
    WorkerProcess,
    eventually,
    request_json,
)


class Site:
    """One Temporal, one worker and one store that a test may break."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.store = folder / "store"
        self.server = DevServer(folder / "temporal")
        here = {"TEMPORAL_ADDRESS": self.server.address, "LONGTAKE_STORE_URL": self.store.as_uri()}
        self.worker = WorkerProcess(folder, env | here)

    async def start(self) -> None:
        self.server.start()
        await asyncio.to_thread(self.server.wait_until_ready)
        await self.worker.restart()

    async def client(self) -> VideoClient:
        return VideoClient(await connect(self.server.address))

    def stop(self) -> None:
        self.worker.stop()
        self.server.stop()


@pytest.fixture
def site(distributed: dict[str, str], tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, distributed)
    yield site
    site.stop()


@pytest.fixture
def other_site(distributed: dict[str, str], tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "other", distributed)
    yield site
    site.stop()


def request(prompt: str) -> GenerateVideoInput:
    return GenerateVideoInput.model_validate(request_json(prompt))


async def assert_full(client: VideoClient, simulator: SimulatorProcess, prompt: str, key: str, store: Path) -> None:
    """It ended `full`, was paid once, and exactly one whole file lies in the store for it."""
    result = await client.result(key)
    content = Path(unquote(urlsplit(result.video.uri)).path).read_bytes()
    files = [path for path in store.rglob("*.mp4") if path.read_bytes() == content]
    assert (result.outcome, simulator.paid(prompt)) == ("full", 1)
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (result.video.sha256, result.video.bytes)
    assert files


async def test_a_worker_killed_again_and_again(site: Site, simulator: SimulatorProcess) -> None:
    """Every generation ends `full`, paid once, wherever it was when its worker died."""
    await site.start()
    client, chance = await site.client(), random.Random(20_26)
    prompts: list[str] = []
    for kill in range(9):
        if kill < 7:
            prompts.append(f"killed {MARK} [sim:ok,label=kill{kill}]")
            await client.start(f"kill-{kill}", request(prompts[-1]))
        await asyncio.sleep(chance.uniform(0.05, 2.0))
        await site.worker.kill()
        await site.worker.restart()
    results = await asyncio.gather(*(client.result(f"kill-{number}") for number in range(7)))
    for prompt, result in zip(prompts, results, strict=True):
        content = Path(unquote(urlsplit(result.video.uri).path)).read_bytes()
        assert (result.outcome, simulator.paid(prompt)) == ("full", 1)
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (result.video.sha256, result.video.bytes)
    stored = [path for path in site.store.rglob("*") if path.suffix == ".mp4"]
    assert len(stored) == len(results), "one file for each generation, and no half ones"


async def test_a_worker_killed_during_the_post_never_sends_again(
    site: Site, other_site: Site, simulator: SimulatorProcess
) -> None:
    lost, drained = (f"{name} {MARK} [sim:submit_delay,delay=75,label={name}]" for name in ("lost", "drained"))
    await asyncio.gather(site.start(), other_site.start())
    client, other = await site.client(), await other_site.client()
    await asyncio.gather(client.start("lost", request(lost)), other.start("drained", request(drained)))

    async def killed() -> None:
        await eventually(lambda: simulator.posts(lost) or None, "the POST arrives")
        await site.worker.kill()
        await site.worker.restart()
        with pytest.raises(GenerationFailure) as failure:
            await client.result("lost")
        assert (failure.value.kind, failure.value.details.paid) == ("SubmissionOutcomeUnknown", Paid.UNKNOWN)
        assert failure.value.details.sent_at is not None
        # Not for a second start either.
        await client.start("lost", request(lost))
        with pytest.raises(GenerationFailure):
            await client.result("lost")
        assert len(simulator.posts(lost)) == 1

    async def drains() -> None:
        """SIGTERM: the POST under way is finished, and its id recorded."""
        await eventually(lambda: simulator.posts(drained) or None, "the POST arrives")
        other_site.worker.signal(signal.SIGTERM)
        assert await other_site.worker.ended() == 0
        task_id = simulator.posts(drained)[0]["task_id"]
        outcomes = [path.read_text() for path in other_site.store.rglob("outcome")]
        assert [task_id in outcome and "accepted" in outcome for outcome in outcomes] == [True]

        # The server dies as well, and comes back on its file.
        other_site.server.stop(signal.SIGKILL)
        other_site.server.start()
        await asyncio.to_thread(other_site.server.wait_until_ready)
        await other_site.worker.restart()
        again = await other_site.client()
        await eventually_looked(again)
        # And once more under a worker that is looking.
        other_site.server.stop(signal.SIGKILL)
        other_site.server.start()
        await asyncio.to_thread(other_site.server.wait_until_ready)
        result = await (await other_site.client()).result("drained")
        assert (result.outcome, result.task_id, len(simulator.posts(drained))) == ("full", task_id, 1)

    async def eventually_looked(client: VideoClient) -> None:
        while (await client.snapshot("drained")).execution.task_id is None:
            await asyncio.sleep(0.2)

    await asyncio.gather(killed(), drains())
