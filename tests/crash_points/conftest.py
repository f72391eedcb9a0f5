"""A simulator, and the process that all attempts are forked from."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from simulator import Simulator, SimulatorSettings, serve
from tests.crash_points.attempt import API_KEY
from tests.crash_points.processes import PROCESSES


@pytest.fixture(scope="module", autouse=True)
def _fork_server() -> Iterator[None]:
    # pytest too: each child imports what the main module imported.
    PROCESSES.set_forkserver_preload(["pytest", "tests.crash_points.attempt"])
    yield
    from multiprocessing import active_children, forkserver  # noqa: PLC0415 - only to end what this module started

    # It waits until its last child has ended, and a worker of other tests may be one of them.
    if not active_children():
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.fixture
async def sim(tmp_path: Path) -> AsyncIterator[Simulator]:
    async with serve(SimulatorSettings(tmp_path / "simulator", API_KEY, seconds=1e-6)) as simulator:
        yield simulator
