from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from simulator import Simulator, SimulatorSettings, serve
from tests.simulator.requests_to_simulator import KEY, Submit, parts


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture
async def sim(tmp_path: Path, clips: Path) -> AsyncIterator[Simulator]:
    settings = SimulatorSettings(tmp_path, KEY, cache_dir=clips, seconds=1e-6, speed=50)
    async with serve(settings) as simulator:
        yield simulator


@pytest.fixture
async def http(sim: Simulator) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=sim.url, headers=headers, timeout=1) as http:
        yield http


@pytest.fixture
def submit(http: httpx.AsyncClient) -> Submit:
    async def send(tag: str = "ok", **fields: str) -> httpx.Response:
        return await http.post("/v1/videos", files=parts(f"a storm [sim:{tag}]", **fields))

    return send


@pytest.fixture
def finished(http: httpx.AsyncClient, submit: Submit) -> Callable[..., Awaitable[Any]]:
    """Submit and query once; with the fixture's clock every generation has ended by then."""

    async def play(tag: str = "ok", **fields: str) -> Any:
        task_id = (await submit(tag, **fields)).json()["task_id"]
        return (await http.get(f"/v1/videos/{task_id}")).json()

    return play
