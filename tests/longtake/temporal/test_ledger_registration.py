"""Which ledger a namespace belongs to, on Temporal's dev server: registered once, and believed ever after."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import SearchAttributePair, TypedSearchAttributes

from longtake.models import LedgerRegistration
from longtake.storage import Store
from longtake.submission.errors import WrongLedger, WrongSide
from longtake.submission.ledger import SubmissionLedger
from longtake.submission.records import IDENTITY
from longtake.temporal.codec import encrypting
from longtake.temporal.connection import DATA_CONVERTER, connect
from longtake.temporal.key_ring import KeyRing, PayloadUnreadable, parse_keys
from longtake.temporal.ledger_registration import begin_anew, check, claim, registration
from longtake.temporal.names import LEDGER_WORKFLOW_ID, TASK_QUEUE, WORKFLOW_TYPE
from longtake.temporal.search_attributes import VIDEO_STAGE
from tests.end_to_end.processes import DevServer

NAMESPACES = [f"ledger-{number}" for number in range(12)]
_unused = iter(NAMESPACES)
K1, K2 = "k1:" + "A" * 43 + "=", "k2:" + "B" * 43 + "="


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    with DevServer(tmp_path_factory.mktemp("temporal") / "server", namespaces=NAMESPACES) as server:
        yield server


@pytest.fixture
def namespace() -> str:
    return next(_unused)


@pytest.fixture
async def client(server: DevServer, namespace: str) -> Client:
    return await connect(server.address, namespace=namespace)


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    return tmp_path


def ledger_in(folder: Path) -> SubmissionLedger:
    return SubmissionLedger(Store.open(str(folder)), longest_exchange=timedelta(seconds=1))


async def taken_up(client: Client, key: str) -> None:
    """A generation that a worker has taken up, as the list of workflows shows it."""
    await client.start_workflow(
        WORKFLOW_TYPE,
        id=f"video-{key}",
        task_queue=f"{TASK_QUEUE}-nobody",
        search_attributes=TypedSearchAttributes([SearchAttributePair(VIDEO_STAGE, "first_segment")]),
    )
    while not (await client.count_workflows(f'WorkflowId = "video-{key}" AND VideoStage IS NOT NULL')).count:  # noqa: ASYNC110 - a server is asked
        await asyncio.sleep(0.1)


async def test_first_worker_registers_and_others_must_fit(client: Client, stores: Path) -> None:
    assert await registration(client) is None
    assert await check(client, ledger_in(stores / "a")) is None
    identity = await claim(client, ledger_in(stores / "a"))
    registered = await registration(client)
    assert registered is not None
    assert (registered.ledger, registered.store) == (identity, (stores / "a").as_uri())
    assert await claim(client, ledger_in(stores / "a")) == identity, "the same again"
    await taken_up(client, "one")
    assert await claim(client, ledger_in(stores / "a")) == identity
    for name in ("empty", "other"):
        if name == "other":
            await ledger_in(stores / "other").establish()
        for ask in (claim, check):
            with pytest.raises(WrongLedger) as refusal:
                await ask(client, ledger_in(stores / name))
            assert refusal.value.side is WrongSide.WORKER
            assert registered.store in str(refusal.value)
    assert not (stores / "empty" / IDENTITY).exists(), "nothing is begun"


async def test_two_workers_on_an_empty_namespace_with_two_stores(client: Client, stores: Path) -> None:
    both = await asyncio.gather(
        *(claim(client, ledger_in(stores / name)) for name in ("a", "b")), return_exceptions=True
    )
    won = [one for one in both if isinstance(one, str)]
    assert len(won) == 1, both
    assert sum(isinstance(one, WrongLedger) for one in both) == 1
    registered = await registration(client)
    assert registered is not None
    assert registered.ledger == won[0]


async def test_generations_without_a_registration(client: Client, stores: Path) -> None:
    """Nobody knows which ledger they began with, so neither a new one nor an old one is taken without an operator."""
    await taken_up(client, "two")
    identity = await ledger_in(stores / "a").establish()
    for name in ("a", "empty"):
        with pytest.raises(WrongLedger) as refusal:
            await claim(client, ledger_in(stores / name))
        assert refusal.value.side is WrongSide.UNKNOWN
    assert not (stores / "empty" / IDENTITY).exists()
    await begin_anew(client, ledger_in(stores / "a"))
    assert await claim(client, ledger_in(stores / "a")) == identity


async def test_a_generation_that_waits_for_its_first_worker_is_no_obstacle(client: Client, stores: Path) -> None:
    await client.start_workflow(WORKFLOW_TYPE, id="video-early", task_queue=f"{TASK_QUEUE}-nobody")
    while not (await client.count_workflows('WorkflowId = "video-early"')).count:  # noqa: ASYNC110 - a server is asked
        await asyncio.sleep(0.1)
    assert await claim(client, ledger_in(stores / "a"))


async def test_a_new_ledger_on_purpose(client: Client, stores: Path) -> None:
    old = ledger_in(stores / "old")
    identity = await claim(client, old)
    before, now = await begin_anew(client, ledger_in(stores / "new"))
    assert before is not None
    assert (before.ledger, now.ledger != identity) == (identity, True)
    assert await claim(client, ledger_in(stores / "new")) == now.ledger
    with pytest.raises(WrongLedger):
        await claim(client, ledger_in(stores / "old"))


async def test_a_registration_that_was_terminated_still_holds_and_is_renewed(client: Client, stores: Path) -> None:
    identity = await claim(client, ledger_in(stores / "a"))
    await client.get_workflow_handle(LEDGER_WORKFLOW_ID).terminate()
    with pytest.raises(WrongLedger):
        await claim(client, ledger_in(stores / "b"))
    assert await claim(client, ledger_in(stores / "a")) == identity
    renewed = await client.get_workflow_handle(LEDGER_WORKFLOW_ID).describe()
    assert renewed.status is WorkflowExecutionStatus.RUNNING
    assert await claim(client, ledger_in(stores / "a")) == identity


async def test_encrypted_and_sealed_anew_when_the_key_changes(server: DevServer, namespace: str, stores: Path) -> None:
    async def with_keys(*keys: str) -> Client:
        converter = encrypting(DATA_CONVERTER, KeyRing(parse_keys(",".join(keys)) if keys else ()))
        return await connect(server.address, namespace=namespace, data_converter=converter)

    identity = await claim(await with_keys(K1), ledger_in(stores / "a"))
    described = await (await with_keys(K1)).get_workflow_handle(LEDGER_WORKFLOW_ID).describe()
    assert identity not in str(described.raw_description), "neither the ledger nor the store can be read"
    assert stores.as_uri() not in str(described.raw_description)
    for keys in ((), (K2,)):
        with pytest.raises(PayloadUnreadable):
            await claim(await with_keys(*keys), ledger_in(stores / "a"))
    with pytest.raises(WrongLedger):
        await claim(await with_keys(K2, K1), ledger_in(stores / "b"))
    assert (await registration(await with_keys(K1))) is not None
    # Rotated: the new key encrypts, the old one still opens; afterwards the old one is left out.
    assert await claim(await with_keys(K2, K1), ledger_in(stores / "a")) == identity
    assert await claim(await with_keys(K2), ledger_in(stores / "a")) == identity
    # All keys are lost: an operator says which ledger it is.
    assert await begin_anew(await with_keys(K1), ledger_in(stores / "a")) == (
        None,
        LedgerRegistration(ledger=identity, store=(stores / "a").as_uri()),
    )
    assert await claim(await with_keys(K1), ledger_in(stores / "a")) == identity


async def test_side_that_is_wrong(client: Client, stores: Path) -> None:
    ledger = ledger_in(stores / "a")
    identity = await claim(client, ledger)
    await ledger.check_identity(identity)
    with pytest.raises(WrongLedger) as generation:
        await ledger.check_identity("another")
    assert generation.value.side is WrongSide.GENERATION
    (stores / "a" / IDENTITY).write_text('{"identity": "mounted-meanwhile"}')
    for ask in (ledger.identity(), ledger.check_identity(identity), ledger.check_identity("mounted-meanwhile")):
        with pytest.raises(WrongLedger) as worker:
            await ask
        assert worker.value.side is WrongSide.WORKER
