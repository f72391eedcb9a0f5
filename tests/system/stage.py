"""Generations of every kind that an operator meets, made by a real worker on a real server with its real UI."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from longtake.client import Snapshot, VideoClient
from longtake.models import GenerateVideoInput, Stage
from longtake.request.prompts import store_prompts
from longtake.storage import Store
from longtake.temporal.connection import connect
from tests.end_to_end.processes import API_KEY, DevServer, SimulatorProcess, WorkerProcess, environment

# key: model, what the simulated gateway does, what is to be done where the extension fails
GENERATIONS = {
    "order-1001-full": ("veo_3_1-fast-remix", "ok", "fallback"),
    "order-1002-fallback": ("veo_3_1-hd-remix", "extend_failed", "fallback"),
    "order-1003-failed": ("veo_3_1-fast-remix", "generate_failed", "fallback"),
    "order-1004-refused": ("veo_3_1-remix", "refuse_422", "fallback"),
    "order-1005-in-doubt": ("veo_3_1-fast-remix", "fail_to_fetch_task", "fallback"),
    "order-1006-ask": ("veo_3_1-fast-remix", "extend_failed", "ask"),
    "order-1007-needs-key": ("veo_3_1-fast-hd-remix", "query_401,polls=1000", "fallback"),
    "order-1008-running": ("veo_3_1-fast-remix", "never_finishes", "fallback"),
    "order-1009-hidden": ("veo_3_1-fast-remix", "ok", "fallback"),
}
HIDDEN = "order-1009-hidden"
"""Its prompts lie in the store."""
PROMPT = "A lighthouse in a storm, seen from the sea"
_SETTLED: dict[str, Callable[[Snapshot], bool]] = {
    "order-1005-in-doubt": lambda seen: seen.execution.stage == Stage.AWAITING_DECISION,
    "order-1006-ask": lambda seen: seen.execution.stage == Stage.AWAITING_DECISION,
    "order-1007-needs-key": lambda seen: seen.execution.attention is not None,
    "order-1008-running": lambda seen: seen.status is not None and seen.status.polls > 1,
}
"""When those that do not end are where they are to be seen."""


@dataclass(frozen=True)
class Play:
    """What is running."""

    ui_url: str
    client: VideoClient
    runs: dict[str, str]
    """The run of each key."""

    def page(self, key: str, tab: str) -> str:
        """The address of a tab of the generation's page."""
        return f"{self.ui_url}/namespaces/default/workflows/video-{key}/{self.runs[key]}/{tab}"

    async def reaches(self, key: str, wanted: Callable[[Snapshot], bool]) -> Snapshot:
        """Wait until a generation is as wanted."""
        deadline = time.monotonic() + 90
        while not wanted(seen := await self.client.snapshot(key)):
            assert time.monotonic() < deadline, f"{key} is not where it should be: {seen}"
            await asyncio.sleep(0.2)
        return seen


@asynccontextmanager
async def performance(folder: Path) -> AsyncIterator[Play]:
    """Start everything, and every generation; go on when each is where it is to be seen."""
    simulator = SimulatorProcess(folder / "simulator", folder / "clips")
    server = DevServer(folder / "temporal", ui=True)
    server.start()
    worker = None
    try:
        simulator.wait_until_ready()
        await asyncio.to_thread(server.wait_until_ready)
        env = environment(
            TEMPORAL_ADDRESS=server.address,
            LONGTAKE_GATEWAY_URL=simulator.url,
            LONGTAKE_GATEWAY_API_KEY=API_KEY,
            LONGTAKE_STORE_URL=(folder / "store").as_uri(),
            # The looks of those that only wait would fill their pages.
            LONGTAKE_MIN_POLL_INTERVAL_SECONDS="4",
        )
        worker = WorkerProcess(folder / "worker", env)
        worker.start()
        play = Play(server.ui_url, VideoClient(await connect(server.address)), {})
        store = Store.open((folder / "store").as_uri())
        for key in GENERATIONS:
            play.runs[key], _ = await play.client.start(key, await _request(key, store))
        for key in GENERATIONS:
            await play.reaches(key, _SETTLED.get(key, lambda seen: not seen.running))
        yield play
    finally:
        if worker:
            worker.stop()
        server.stop()
        simulator.stop()


async def _request(key: str, store: Store) -> GenerateVideoInput:
    model, scenario, wish = GENERATIONS[key]
    request = GenerateVideoInput.model_validate(
        {
            "model": model,
            "prompt": f"{PROMPT} [sim:{scenario}]",
            "prompt_extend": "The storm clears, and the first light comes over the harbour",
            "size": "1920x1080" if "-hd-" in model else "1280x720",
            "on_extend_failed": wish,
        }
    )
    return await store_prompts(store, request) if key == HIDDEN else request
