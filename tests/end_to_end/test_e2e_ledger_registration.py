"""A namespace belongs to one ledger: a worker or client with another store begins nothing there."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from longtake.client import VideoClient
from longtake.storage import Store
from longtake.submission.ledger import SubmissionLedger
from longtake.temporal.connection import connect
from tests.end_to_end.processes import (
    API_KEY,
    MARK,
    DevServer,
    SimulatorProcess,
    Starter,
    WorkerProcess,
    environment,
    eventually,
    flags,
    request,
)

NAMESPACES = [f"ledger-{number}" for number in range(6)]
_unused = iter(NAMESPACES)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    with DevServer(tmp_path_factory.mktemp("temporal") / "server", namespaces=NAMESPACES) as server:
        yield server


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
    tmp_path: Path,
    server: DevServer,
    simulator: SimulatorProcess,
) -> Iterator[Place]:
    place = Place(tmp_path, next(_unused), server, simulator)
    yield place
    place.close()


def ledgers(store: Path) -> list[Path]:
    return [*store.glob("submit/identity")] if store.exists() else []


async def test_a_bad_deploy_beside_good_workers_takes_nothing(place: Place, simulator: SimulatorProcess) -> None:
    good = place.worker("good")
    await good.restart()
    prompts = [f"deploy {number} {MARK} [sim:ok,label=deploy]" for number in range(3)]
    starter = place.starter("good")
    bad = place.worker("bad")
    bad.start()
    made = await asyncio.gather(
        *(
            starter("generate", *flags(prompt), "--key", f"deploy-{number}", "--no-wait", "--json")
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


@pytest.mark.system
async def test_a_store_that_was_emptied_is_refused(place: Place, simulator: SimulatorProcess) -> None:
    worker, prompt = place.worker("store"), f"emptied {MARK} [sim:ok,label=emptied]"
    await worker.restart()
    starter = place.starter("store")
    assert (await starter("generate", *flags(prompt), "--key", "emptied", "--json")).code == 0
    worker.stop()
    shutil.rmtree(place.store("store"))
    worker.start()
    assert await worker.ended() == 2
    assert not ledgers(place.store("store"))
    # The same key is safe with the same ledger only, so this client does not start it either.
    again = await starter("generate", *flags(prompt), "--key", "emptied-2", "--no-wait", "--json")
    assert (again.code, again.json()["error"]["type"]) == (2, "WrongLedger")
    assert simulator.paid(prompt) == 1


@pytest.mark.system
async def test_a_store_that_is_swapped_under_a_running_worker(place: Place, simulator: SimulatorProcess) -> None:
    """The namespace's ledger is compared before each generation too, not only when the worker starts."""
    worker, starter = place.worker("store"), place.starter("store")
    prompt = f"swapped {MARK} [sim:ok,label=swapped]"
    await worker.restart()
    place.store("store").rename(place.store("away"))
    other = SubmissionLedger(Store.open(str(place.store("store"))), longest_exchange=timedelta(seconds=1))
    await other.establish()
    refused = await starter("generate", *flags(prompt), "--key", "swapped", "--no-wait", "--json")
    assert (refused.code, refused.json()["error"]["type"]) == (2, "WrongLedger")
    # A client that does not check, as other SDKs start it: the worker checks.
    client = VideoClient(await connect(place.server.address, namespace=place.namespace))
    await client.start("swapped", request(prompt))
    await eventually(lambda: "LedgerUnavailable" in worker.log(), "the worker sees it")
    assert simulator.posts(prompt) == []
    shutil.rmtree(place.store("store"))
    place.store("away").rename(place.store("store"))
    worker.stop()  # a folder that came back has another inode: the worker wants to be started again
    await worker.restart()
    assert (await client.result("swapped")).outcome == "full"
    assert simulator.paid(prompt) == 1


@pytest.mark.system
async def test_two_workers_with_two_stores_start_at_the_same_moment(place: Place) -> None:
    workers = [place.worker(name) for name in ("one", "two")]
    for worker in workers:
        worker.start()

    def decided() -> bool:
        return sum(worker.log().count("worker ready") for worker in workers) == 1 and any(
            "belongs to the ledger" in worker.log() for worker in workers
        )

    await eventually(decided, "one of them polls and the other has said why it does not")
    (loser,) = [worker for worker in workers if "worker ready" not in worker.log()]
    assert await loser.ended() == 2


@pytest.mark.system
async def test_setup_registers_and_a_new_ledger_is_begun_on_purpose(place: Place, simulator: SimulatorProcess) -> None:
    run = await place.starter("old")("setup")
    assert run.code == 0, run.err
    (identity,) = ledgers(place.store("old"))
    assert json.loads(identity.read_text())["identity"] in run.out
    assert (await place.starter("old")("setup")).code == 0
    assert (await place.starter("new")("setup")).code == 2, "compose calls it at every start: it begins nothing"
    assert not ledgers(place.store("new"))
    unasked = await place.starter("new")("setup", "--new-ledger")
    assert (unasked.code, ledgers(place.store("new"))) == (2, [])
    assert (await place.starter("new")("setup", "--new-ledger", "--yes")).code == 0
    assert ledgers(place.store("new"))
    worker = place.worker("old")
    worker.start()
    assert await worker.ended() == 2
    worker = place.worker("new")
    await worker.restart()
    prompt = f"anew {MARK} [sim:ok,label=anew]"
    made = await place.starter("new")("generate", *flags(prompt), "--key", "anew", "--json")
    assert (made.code, simulator.paid(prompt)) == (0, 1)


@pytest.mark.system
async def test_encrypted_registration(place: Place) -> None:
    key = {"LONGTAKE_ENCRYPTION_KEYS": "k1:" + "A" * 43 + "="}
    await place.worker("store", **key).restart()
    for settings in ({}, {"LONGTAKE_ENCRYPTION_KEYS": "k2:" + "B" * 43 + "="}):
        worker = place.worker("store", **settings)
        worker.start()
        assert await worker.ended() == 2
        assert "LONGTAKE_ENCRYPTION_KEYS" in worker.log()
        run = await place.starter("store", **settings)("setup")
        assert (run.code, "PayloadUnreadable" in run.err) == (2, True)
    worker = place.worker("other", **key)
    worker.start()
    assert await worker.ended() == 2
    assert "belongs to the ledger" in worker.log()


async def test_embedded_a_data_folder_has_one_ledger(
    alone: Starter, tmp_path: Path, simulator: SimulatorProcess
) -> None:
    prompt = f"embedded {MARK} [sim:ok,label=embedded-ledger]"
    starter = alone.but(LONGTAKE_DATA_DIR=str(tmp_path / "data"))
    for _ in range(2):
        made = await starter("generate", *flags(prompt), "--key", "home", "--json", seconds=90)
        assert made.code == 0, made.out
    shown = await starter("generate", *flags(prompt), "--key", "home", seconds=90)
    assert str(tmp_path / "data") in shown.err
    # Another data folder of the same user: the key is known elsewhere, and that is said before it is paid here.
    other = await alone.but(LONGTAKE_DATA_DIR=str(tmp_path / "other"))(
        "generate", *flags(prompt), "--key", "home", "--json", seconds=90
    )
    assert (tmp_path / "data").as_uri() in other.err
    assert simulator.paid(prompt) == 2
    shutil.rmtree(tmp_path / "data" / "store")
    refused = await starter("generate", *flags(prompt), "--key", "home-2", "--json", seconds=90)
    assert (refused.code, refused.json()["error"]["type"]) == (2, "WrongLedger")
    # A command that only reads brings a worker too, and that one refuses.
    polled = await starter("status", "home", "--json", seconds=90)
    assert (polled.code, polled.json()["error"]["type"]) == (2, "WorkerFailed")
    assert not ledgers(tmp_path / "data" / "store")
    assert (await starter("setup", "--new-ledger", "--yes", seconds=90)).code == 0
    again = await starter("generate", *flags(f"{prompt} again"), "--key", "home-2", "--json", seconds=90)
    assert again.code == 0, again.out
