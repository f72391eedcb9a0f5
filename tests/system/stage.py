"""Generations of every kind that an operator meets, made by a real worker on a real server with its real UI."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from longtake.client import Snapshot, VideoClient
from longtake.models import GenerateVideoInput, Stage
from longtake.temporal import connect
from tests.end_to_end.processes import API_KEY, DevServer, SimulatorProcess, WorkerProcess, environment

# key: model, what the simulated gateway does, what is to be done where the extension fails
GENERATIONS = {
    "order-1001-full": ("veo_3_1-fast-remix", "ok", "fallback"),
    "order-1002-fallback": ("veo_3_1-hd-remix", "extend_failed", "fallback"),
    "order-1003-failed": ("veo_3_1-fast-remix", "generate_failed", "fallback"),
    "order-1004-refused": ("veo_3_1-remix", "refuse_422", "fallback"),
    "order-1005-in-doubt": ("veo_3_1-fast-remix", "fail_to_fetch_task", "fallback"),
    "order-1006-ask": ("veo_3_1-fast-remix", "extend_failed", "ask"),
    "order-1007-needs-key": ("veo_3_1-fast-hd-remix", "query_401,looks=1000", "fallback"),
    "order-1008-running": ("veo_3_1-fast-remix", "never_finishes", "fallback"),
}
_SETTLED: dict[str, Callable[[Snapshot], bool]] = {
    "order-1005-in-doubt": lambda seen: seen.execution.stage == Stage.AWAITING_DECISION,
    "order-1006-ask": lambda seen: seen.execution.stage == Stage.AWAITING_DECISION,
    "order-1007-needs-key": lambda seen: seen.execution.attention is not None,
    "order-1008-running": lambda seen: seen.status is not None and seen.status.polls > 1,
}
"""When the others than those that end are where they are to be seen."""


@dataclass(frozen=True)
class Play:
    """What is running."""

    address: str
    ui_url: str
    worker: WorkerProcess

    def page(self, key: str) -> str:
        """The generation's page in Temporal's UI."""
        return f"{self.ui_url}/namespaces/default/workflows/video-{key}"

    def snapshot(self, key: str) -> Snapshot:
        async def look() -> Snapshot:
            return await VideoClient(await connect(self.address)).snapshot(key)

        return asyncio.run(look())


@contextmanager
def performance(folder: Path) -> Iterator[Play]:
    """Start everything, and every generation; go on when each is where it is to be seen."""
    simulator = SimulatorProcess(folder / "simulator", folder / "clips")
    server = DevServer(folder / "temporal", ui=True)
    server.start()
    worker = None
    try:
        simulator.wait_until_ready()
        server.wait_until_ready()
        worker = WorkerProcess(
            folder / "worker",
            environment(
                TEMPORAL_ADDRESS=server.address,
                LONGTAKE_GATEWAY_URL=simulator.url,
                LONGTAKE_GATEWAY_API_KEY=API_KEY,
                LONGTAKE_STORE_URL=(folder / "store").as_uri(),
            ),
        )
        worker.start()
        play = Play(server.address, server.ui_url, worker)
        asyncio.run(_make(play))
        yield play
    finally:
        if worker:
            worker.stop()
        server.stop()
        simulator.stop()


async def _make(play: Play) -> None:
    client = VideoClient(await connect(play.address))
    for key, (model, scenario, wish) in GENERATIONS.items():
        request = {
            "model": model,
            "prompt": f"A lighthouse in a storm, seen from the sea [sim:{scenario}]",
            "prompt_extend": "The storm clears, and the first light comes over the harbour",
            "size": "1280x720" if "-hd-" not in model else "1920x1080",
            "on_extend_failed": wish,
        }
        await client.start(key, GenerateVideoInput.model_validate(request))
    deadline = time.monotonic() + 90
    for key in GENERATIONS:
        settled = _SETTLED.get(key, lambda seen: not seen.running)
        while not settled(seen := await client.snapshot(key)):
            assert time.monotonic() < deadline, f"{key} is not where it should be: {seen}\n{play.worker.log()[-2000:]}"
            await asyncio.sleep(0.2)
