"""A gateway whose flat record has its own content route instead of each link, and no quota (field notes, seen live)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest

from longtake.delivery.task_records import load_record, save_record
from longtake.gateway.errors import GatewayError, ResponseLost, TaskNotFound
from longtake.gateway.wire import GatewayRecord
from longtake.models import (
    DeliverInput,
    DeliveryKind,
    DeliveryReceipt,
    GenerateVideoInput,
    PollInput,
    SubmitInput,
    TaskRecord,
    TaskState,
)
from longtake.storage import Store
from simulator import Simulator
from simulator.personalities import DOCUMENT, NEWAPI
from tests.activities.conftest import Hire, Worker
from tests.activities.failing import failure_of

KEY = "order-1"
PRICE = 425_000
FULL, FIRST = DeliveryKind.FULL, DeliveryKind.FIRST
Submit = Callable[[str], Awaitable[str]]


@pytest.fixture
def like() -> str:
    return NEWAPI


@pytest.fixture
def visitors() -> list[str]:
    return []


@pytest.fixture
async def server_address(visitors: list[str]) -> AsyncIterator[str]:
    """Somebody else's server, at the address that the gateway's operator left in its settings."""

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visitors.append((await reader.read(10_000)).decode())
        writer.close()

    async with await asyncio.start_server(visit, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.fixture(autouse=True)
def _nobody_else_is_asked(sim: Simulator, visitors: list[str]) -> Iterator[None]:
    yield
    assert visitors == []
    assert sim.ledger.violations() == []


@pytest.fixture
def submit(worker: Worker, request_for: Callable[..., GenerateVideoInput]) -> Submit:
    async def make(tag: str) -> str:
        receipt = await worker.run(worker.submission.submit_generation, SubmitInput(key=KEY, request=request_for(tag)))
        return str(receipt.task_id)

    return make


async def look(worker: Worker, task_id: str) -> TaskRecord:
    record = await worker.run(worker.polling.query_generation, PollInput(key=KEY, task_id=task_id))
    assert isinstance(record, TaskRecord)
    return record


async def deliver(worker: Worker, task_id: str, kind: DeliveryKind) -> DeliveryReceipt:
    receipt = await worker.run(worker.delivery.deliver_video, DeliverInput(key=KEY, task_id=task_id, kind=kind))
    assert isinstance(receipt, DeliveryReceipt)
    return receipt


@contextmanager
def other_route_fails(worker: Worker, monkeypatch: pytest.MonkeyPatch, error: GatewayError) -> Iterator[None]:
    """The simulator's faults of queries spare that route."""
    query = worker.gateway.query

    async def failing(task_id: str, *, second_path: bool = False) -> GatewayRecord:
        if second_path:
            raise error
        return await query(task_id)

    with monkeypatch.context() as patch:
        patch.setattr(worker.gateway, "query", failing)
        yield


@pytest.mark.parametrize(
    ("tag", "state", "quota", "refunded", "link", "first_link"),
    [
        ("ok", TaskState.COMPLETED, PRICE, None, True, True),
        ("extend_failed", TaskState.EXTEND_FAILED, 0, True, True, False),
        ("generate_failed", TaskState.GENERATE_FAILED, 0, True, False, False),
        ("never_finishes", TaskState.RUNNING, None, None, False, False),
    ],
)
async def test_a_verdict_comes_with_the_cost_and_the_middlewares_own_links(  # noqa: PLR0917 - a row of the table
    worker: Worker,
    sim: Simulator,
    submit: Submit,
    tag: str,
    state: TaskState,
    quota: int | None,
    refunded: bool | None,
    link: bool,
    first_link: bool,
) -> None:
    task_id = await submit(tag)
    record = await look(worker, task_id)
    assert (record.state, record.quota, record.refunded) == (state, quota, refunded)
    assert (record.has_video_link, record.has_first_video_link) == (link, first_link)
    (task,) = sim.tasks
    assert record.upstream_task_id == task.middleware_id
    kept = await load_record(worker.store, KEY, task_id)
    links = {kept.video_url, kept.first_video_url} - {None} if kept else set()
    assert {urlsplit(str(one)).netloc for one in links} == ({urlsplit(sim.cdn_url).netloc} if link else set())


@pytest.mark.parametrize("like", [DOCUMENT, NEWAPI])
@pytest.mark.parametrize("polled", [True, False])
@pytest.mark.parametrize(
    ("tag", "kind", "seconds"), [("ok", FULL, 15), ("ok", FIRST, 8), ("extend_failed", FIRST, 8)], ids=str
)
async def test_each_clip_comes_from_its_own_address(  # noqa: PLR0917 - a row of the table
    worker: Worker, submit: Submit, tag: str, kind: DeliveryKind, seconds: float, polled: bool
) -> None:
    task_id = await submit(tag)
    if polled:
        await look(worker, task_id)
    receipt = await deliver(worker, task_id, kind)
    assert receipt.source == ("the link" if polled else "a fresh link")
    assert receipt.video.duration_seconds == pytest.approx(seconds, abs=0.1)


@pytest.mark.parametrize("like", [DOCUMENT, NEWAPI])
async def test_the_links_of_a_stored_clip_are_not_kept_again(worker: Worker, submit: Submit) -> None:
    task_id = await submit("extend_failed")

    async def has_link() -> bool:
        kept = await load_record(worker.store, KEY, task_id)
        assert kept
        return bool(kept.video_url)

    await look(worker, task_id)
    assert await has_link()
    await deliver(worker, task_id, FIRST)
    assert not await has_link()
    last = PollInput(key=KEY, task_id=task_id, clip_is_stored=True)
    assert (await worker.run(worker.polling.query_generation, last)).has_video_link
    assert not await has_link()


@pytest.mark.parametrize("like", [DOCUMENT, NEWAPI])
@pytest.mark.parametrize(
    ("tag", "source"),
    [("ok,content_502", "the link"), ("links_expired", "the gateway's content route")],
)
async def test_what_one_source_does_not_give_another_one_does(
    worker: Worker, submit: Submit, tag: str, source: str
) -> None:
    task_id = await submit(tag)
    await look(worker, task_id)
    receipt = await deliver(worker, task_id, FULL)
    assert (receipt.source, round(receipt.video.duration_seconds)) == (source, 15)


async def test_links_to_private_addresses_do_not_end_a_delivery(hire: Hire, submit: Submit) -> None:
    """The simulator's own links are private too; what is left is the gateway, at the address that we know it by."""
    worker = hire(allow_private_addresses=False)
    task_id = await submit("ok")
    await look(worker, task_id)
    assert (await deliver(worker, task_id, FULL)).source == "the gateway's content route"


async def test_a_delivery_returns_what_the_verdict_could_not(
    worker: Worker, sim: Simulator, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim.world.account_open = False  # the usage log would tell the refund
    task_id = await submit("extend_failed")
    with other_route_fails(worker, monkeypatch, ResponseLost("502", status=502)):
        record = await look(worker, task_id)
        assert (record.state, record.quota, record.has_video_link) == (TaskState.EXTEND_FAILED, None, False)
        failure = await failure_of(deliver(worker, task_id, FIRST))
        assert (failure.type, failure.retried) == ("DeliveryFailed", True)
        asked = [(entry["path"], entry["key_ok"]) for entry in sim.ledger.entries if entry["kind"] == "content"]
        assert asked == [(f"/v1/videos/{task_id}/content", True)], "another build may serve it"
    receipt = await deliver(worker, task_id, FIRST)
    assert (receipt.quota, receipt.refunded, round(receipt.video.duration_seconds)) == (0, True, 8)


@pytest.mark.parametrize("like", [DOCUMENT, NEWAPI])
async def test_a_clip_whose_sources_are_all_gone_is_given_up(worker: Worker, submit: Submit) -> None:
    task_id = await submit("extend_failed,links_expired")
    await look(worker, task_id)
    hours_ago = datetime.now(UTC) - timedelta(hours=2)
    worker.environment.info = replace(worker.environment.info, scheduled_time=hours_ago, attempt=9)
    failure = await failure_of(deliver(worker, task_id, FIRST))
    assert (failure.type, failure.retried) == ("DeliveryFailed", False)


@pytest.mark.parametrize("like", [DOCUMENT])
@pytest.mark.parametrize(
    ("error", "retried"), [(TaskNotFound("no such route", status=404), False), (ResponseLost("502", status=502), True)]
)
async def test_a_clip_is_given_up_only_after_both_routes_have_answered(
    worker: Worker, submit: Submit, monkeypatch: pytest.MonkeyPatch, error: GatewayError, retried: bool
) -> None:
    task_id = await submit("extend_failed,links_expired")
    await look(worker, task_id)
    hours_ago = datetime.now(UTC) - timedelta(hours=2)
    worker.environment.info = replace(worker.environment.info, scheduled_time=hours_ago, attempt=9)
    with other_route_fails(worker, monkeypatch, error):
        failure = await failure_of(deliver(worker, task_id, FIRST))
    assert (failure.type, failure.retried) == ("DeliveryFailed", retried)


async def test_a_kept_link_outlives_an_answer_without_it(store: Store) -> None:
    link, first = "https://cdn.example/15.mp4", "https://cdn.example/8.mp4"
    ours = GatewayRecord(task_id="task_1", state=TaskState.COMPLETED, video_url=link)
    await save_record(store, KEY, ours)
    await save_record(store, KEY, replace(ours, video_url=None, first_video_url=first))
    kept = await load_record(store, KEY, "task_1")
    assert kept
    assert (kept.video_url, kept.first_video_url) == (link, first)
    failed = GatewayRecord(task_id="task_1", state=TaskState.EXTEND_FAILED)
    await save_record(store, KEY, failed)
    kept = await load_record(store, KEY, "task_1")
    assert kept
    assert kept.video_url is None, "what it led to was another clip"
