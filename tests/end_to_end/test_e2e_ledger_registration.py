"""A namespace belongs to one ledger: a worker or client with another store begins nothing there."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.processes import (
    API_KEY,
    MARK,
    DevServer,
    SimulatorProcess,
    Starter,
    WorkerProcess,
    environment,
    flags,
)

NAMESPACES = ("deploy", "empty", "swapped", "anew", "sealed", "race", "setup", "gone")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    server = DevServer(tmp_path_factory.mktemp("temporal") / "server")
    server.flags = [flag for name in NAMESPACES for flag in ("--namespace", name)]
    server.start()
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


class Place:
    """One namespace, and workers and commands with whichever store a test gives them."""

    def __init__(self, folder: Path, namespace: str, server: DevServer, simulator: SimulatorProcess) -> None:
        self.folder = folder
        self.namespace = namespace
        self.server = server
        self._env = environment(
            TEMPORAL_ADDRESS=server.address,
            TEMPORAL_NAMESPACE=namespace,
            LONGTAKE_GATEWAY_URL=simulator.url,
            LONGTAKE_GATEWAY_API_KEY=API_KEY,
            LONGTAKE_DATA_DIR=str(folder / "not-used"),
        )
        self._workers: list[WorkerProcess] = []
        self._starters: list[Starter] = []

    def store(self, name: str) -> Path:
        return self.folder / name

    def worker(self, store: str, *arguments: str, **settings: str) -> WorkerProcess:
        env = {**self._env, "LONGTAKE_STORE_URL": self.store(store).as_uri(), **settings}
        self._workers.append(WorkerProcess(self.folder / f"worker-{len(self._workers)}", env, *arguments))
        return self._workers[-1]

    def starter(self, store: str, **settings: str) -> Starter:
        self._starters.append(Starter({**self._env, "LONGTAKE_STORE_URL": self.store(store).as_uri(), **settings}))
        return self._starters[-1]

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()
        for starter in self._starters:
            starter.close()


@pytest.fixture
def place(
    request: pytest.FixtureRequest, tmp_path: Path, server: DevServer, simulator: SimulatorProcess
) -> Iterator[Place]:
    place = Place(tmp_path, request.param, server, simulator)
    yield place
    place.close()


def ledgers(store: Path) -> list[Path]:
    return [*store.glob("submit/identity")] if store.exists() else []


@pytest.mark.parametrize("place", ["deploy"], indirect=True)
async def test_a_bad_deploy_beside_good_workers_takes_nothing(place: Place, simulator: SimulatorProcess) -> None:
    good = place.worker("good")
    await good.restart()
    prompts = [f"deploy {number} {MARK} [sim:ok,label=deploy]" for number in range(3)]
    starter = place.starter("good")
    bad = place.worker("bad")
    bad.start()
    made = await asyncio.gather(
        *(
            starter(*flags(prompt), "--key", f"deploy-{number}", "--no-wait", "--json")
            for number, prompt in enumerate(prompts)
        )
    )
    assert [finished.code for finished in made] == [0, 0, 0]
    assert await bad.ended() == 2
    assert str(place.store("good")) in bad.log(), "it says which store the namespace belongs to"
    results = [await starter("result", f"deploy-{number}", "--json") for number in range(3)]
    assert [finished.code for finished in results] == [0, 0, 0]
    assert [simulator.paid(prompt) for prompt in prompts] == [1, 1, 1]
    assert not ledgers(place.store("bad")), "no ledger was begun"


@pytest.mark.parametrize("place", ["empty"], indirect=True)
async def test_a_store_that_was_emptied_is_refused(place: Place, simulator: SimulatorProcess) -> None:
    worker, prompt = place.worker("store"), f"emptied {MARK} [sim:ok,label=emptied]"
    await worker.restart()
    starter = place.starter("store")
    assert (await starter(*flags(prompt), "--key", "emptied", "--json")).code == 0
    worker.stop()
    shutil.rmtree(place.store("store"))
    worker.start()
    assert await worker.ended() == 2
    assert not ledgers(place.store("store"))
    # The same key is safe with the same ledger only, so this client does not start it either.
    again = await starter(*flags(prompt), "--key", "emptied-2", "--no-wait", "--json")
    assert (again.code, again.json()["error"]["type"]) == (2, "WrongLedger")
    assert simulator.paid(prompt) == 1
