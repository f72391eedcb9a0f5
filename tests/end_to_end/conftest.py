import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.end_to_end.processes import (
    API_KEY,
    DevServer,
    SimulatorProcess,
    Starter,
    WorkerProcess,
    environment,
)


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    folder = tmp_path_factory.mktemp("gateway")
    simulator = SimulatorProcess(folder / "simulator", folder / "clips")
    try:
        simulator.wait_until_ready()
        yield simulator
    finally:
        simulator.stop()


@pytest.fixture(scope="session")
def temporal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    with DevServer(tmp_path_factory.mktemp("temporal") / "server") as server:
        yield server


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def distributed(simulator: SimulatorProcess, temporal: DevServer, store: Path) -> dict[str, str]:
    """The environment of clients and workers that share one Temporal, one gateway and one store."""
    return environment(
        TEMPORAL_ADDRESS=temporal.address,
        LONGTAKE_GATEWAY_URL=simulator.url,
        LONGTAKE_GATEWAY_API_KEY=API_KEY,
        LONGTAKE_STORE_URL=store.as_uri(),
        LONGTAKE_DATA_DIR=str(store / "not-used"),
    )


@pytest.fixture(scope="session")
def worker(distributed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(tmp_path_factory.mktemp("worker"), distributed)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


@pytest.fixture(scope="module")
def client(distributed: dict[str, str]) -> Iterator[Starter]:
    """The command line where nothing needs a worker."""
    starter = Starter(distributed)
    yield starter
    starter.close()


@pytest.fixture
def starter(client: Starter, worker: WorkerProcess) -> Starter:
    """The command line with a worker elsewhere."""
    return client


@pytest.fixture(scope="module")
def alone(simulator: SimulatorProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """The command line with nothing else running: no Temporal is configured."""
    starter = Starter(
        environment(
            LONGTAKE_GATEWAY_URL=simulator.url,
            LONGTAKE_GATEWAY_API_KEY=API_KEY,
            LONGTAKE_DATA_DIR=str(tmp_path_factory.mktemp("data")),
        )
    )
    yield starter
    starter.close()


@pytest.fixture(scope="session")
def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "navy").save(file, "PNG")
    return file.getvalue()
