import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from longtake.delivery.task_records import load_record
from longtake.gateway.wire import GatewayRecord
from longtake.models import (
    DeliverInput,
    DeliveryKind,
    DeliveryReceipt,
    GenerateVideoInput,
    Paid,
    PollInput,
    RecordInput,
    SubmitInput,
    TaskState,
)
from simulator import Simulator
from tests.activities.conftest import API_KEY, Hire, Worker
from tests.activities.failing import failure_of

KEY = "order-1"
Request = Callable[..., GenerateVideoInput]
InputFor = Callable[..., Awaitable[DeliverInput]]
FULL, FIRST = DeliveryKind.FULL, DeliveryKind.FIRST


@pytest.fixture
def input_for(worker: Worker, request_for: Request) -> InputFor:
    async def make(tag: str = "ok", kind: DeliveryKind = FULL, *, polled: bool = True) -> DeliverInput:
        receipt = await worker.run(worker.submission.submit_generation, SubmitInput(key=KEY, request=request_for(tag)))
        if polled:
            await worker.run(worker.polling.query_generation, PollInput(key=KEY, task_id=receipt.task_id))
        return DeliverInput(key=KEY, task_id=receipt.task_id, kind=kind, width=1280, height=720)

    return make


@pytest.fixture(autouse=True)
def _no_key_is_sent_elsewhere(sim: Simulator) -> Iterator[None]:
    yield
    assert sim.ledger.violations() == []


async def deliver(worker: Worker, input: DeliverInput) -> DeliveryReceipt:
    receipt = await worker.run(worker.delivery.deliver_video, input)
    assert isinstance(receipt, DeliveryReceipt)
    return receipt


async def test_what_another_generation_paid_for_is_not_delivered(
    worker: Worker, input_for: InputFor, request_for: Request, tmp_path: Path
) -> None:
    """Whoever may run workflows of his own asks our workers for whatever he likes."""
    input = await input_for()
    own = SubmitInput(key="thief", request=request_for("ok,label=thief"))
    paid = await worker.run(worker.submission.submit_generation, own)
    stolen = await worker.run(
        worker.polling.query_generation, PollInput(key="thief", task_id=input.task_id)
    )  # its links are kept under the thief's key, where no caller may read
    assert stolen.has_video_link
    receipt = {"task_id": input.task_id, "slot": paid.slot, "nonce": paid.nonce, "submitted_at": paid.submitted_at}
    said = RecordInput.model_validate({"key": "thief", "receipt": receipt})
    for forged in (
        input.model_copy(update={"key": "thief"}),
        input.model_copy(update={"key": "thief", "task_id": input.task_id.upper()}),
        input.model_copy(update={"key": "thief", "kind": FIRST}),
        input.model_copy(update={"key": "thief", "extension_number": 1}),
        input.model_copy(update={"extension_number": 1}),
    ):
        assert (await failure_of(worker.run(worker.submission.record_submission, said))).type == "InvalidRequest"
        failure = await failure_of(worker.run(worker.delivery.deliver_video, forged))
        assert (failure.type, failure.retried) == ("TaskOwned", False)
    assert not (tmp_path / "store" / "videos").exists()
    assert (await deliver(worker, input)).video.bytes > 0


async def stored(worker: Worker, receipt: DeliveryReceipt) -> bytes:
    content = await worker.store.get(worker.store.path_of(receipt.video.uri))
    assert content is not None
    return content


def asked_since(sim: Simulator, count: int) -> list[str]:
    return [entry.get("kind", "") for entry in sim.ledger.entries[count:]]


@pytest.mark.parametrize(
    ("tag", "kind", "seconds"), [("ok", FULL, 15), ("ok", FIRST, 8), ("extend_failed", FIRST, 8)], ids=str
)
async def test_a_clip_is_delivered_whole(  # noqa: PLR0917 - a row of the table
    worker: Worker, sim: Simulator, input_for: InputFor, tag: str, kind: DeliveryKind, seconds: float
) -> None:
    input = await input_for(tag, kind)
    before = len(sim.ledger.entries)
    receipt = await deliver(worker, input)
    video = receipt.video
    assert video.duration_seconds == pytest.approx(seconds, abs=0.1)
    assert (video.width, video.height, video.has_audio, receipt.warnings) == (1280, 720, True, ())
    content = await stored(worker, receipt)
    assert (video.bytes, video.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert (receipt.source, receipt.already_stored) == ("the link", False)
    assert len(asked_since(sim, before)) == 1, "the kept link is enough"
    assert worker.heartbeats[-1] == ({"bytes": video.bytes, "of": video.bytes},)


async def test_what_is_stored_already_costs_no_request(worker: Worker, sim: Simulator, input_for: InputFor) -> None:
    input = await input_for()
    first = await deliver(worker, input)
    before = len(sim.ledger.entries)
    again = await deliver(worker, input)
    assert again == first.model_copy(update={"already_stored": True})
    assert len(sim.ledger.entries) == before


async def test_without_a_kept_link_a_fresh_query_brings_one(
    worker: Worker, sim: Simulator, input_for: InputFor
) -> None:
    input = await input_for(polled=False)
    receipt = await deliver(worker, input)
    assert receipt.source == "a fresh link"
    kept = await load_record(worker.store, KEY, input.task_id)
    assert kept is not None
    assert (kept.state, links(kept)) == (TaskState.COMPLETED, [])


def links(record: GatewayRecord) -> list[str]:
    return [link for link in (record.video_url, record.first_video_url, record.result_url) if link]


@pytest.mark.parametrize(
    ("tag", "kind", "keep_first", "left"),
    [
        ("ok", FULL, False, ()),
        ("ok", FULL, True, ("first_video_url",)),
        ("ok", FIRST, False, ("video_url", "result_url")),
        ("extend_failed", FIRST, False, ()),
    ],
)
async def test_links_are_gone_from_the_store_once_their_clip_is_there(  # noqa: PLR0917 - a row of the table
    worker: Worker, input_for: InputFor, tag: str, kind: DeliveryKind, keep_first: bool, left: tuple[str, ...]
) -> None:
    input = (await input_for(tag, kind)).model_copy(update={"keep_first_link": keep_first})
    before = await load_record(worker.store, KEY, input.task_id)
    assert before is not None
    assert before.video_url
    for _ in range(2):  # a clip that was stored by an attempt that died right after it, too
        await deliver(worker, input)
        after = await load_record(worker.store, KEY, input.task_id)
        assert after is not None
        assert [name for name in ("video_url", "first_video_url", "result_url") if getattr(after, name)] == [
            name for name in left if getattr(before, name)
        ]
        assert (after.state, after.remix_id, after.quota) == (before.state, before.remix_id, before.quota)


async def test_a_record_that_cannot_be_read_is_deleted_after_the_delivery(
    worker: Worker, input_for: InputFor, tmp_path: Path
) -> None:
    input = await input_for()
    await deliver(worker, input)
    (record,) = (tmp_path / "store/records").rglob("*.json")
    record.write_text('{"video_url": "https://cdn.example/?Signature=')
    await deliver(worker, input)
    assert "Signature" not in "".join(path.read_text() for path in (tmp_path / "store/records").rglob("*.json"))


async def test_an_expired_link_is_replaced_by_a_fresh_one(worker: Worker, sim: Simulator, input_for: InputFor) -> None:
    input = await input_for("link_403")
    receipt = await deliver(worker, input)
    assert receipt.source == "a fresh link"
    assert receipt.video.duration_seconds == pytest.approx(15, abs=0.1)


async def test_a_kept_record_that_cannot_be_read_costs_no_delivery(
    worker: Worker, input_for: InputFor, tmp_path: Path
) -> None:
    input = await input_for()
    (record,) = (tmp_path / "store/records").rglob("*.json")
    record.write_text("{half a rec")
    assert (await deliver(worker, input)).source == "a fresh link"


@pytest.mark.parametrize("tag", ["content_only", "links_expired"])
async def test_the_content_route_is_asked_with_the_key(
    worker: Worker, sim: Simulator, input_for: InputFor, tag: str
) -> None:
    receipt = await deliver(worker, await input_for(tag))
    assert receipt.source == "the gateway's content route"
    assert [entry["key_ok"] for entry in sim.ledger.entries if entry["path"].endswith("/content")] == [True]


async def test_a_redirect_from_the_content_route_does_not_take_the_key_along(
    worker: Worker, input_for: InputFor
) -> None:
    receipt = await deliver(worker, await input_for("content_only,content_redirect"))
    assert receipt.source == "the gateway's content route"


async def test_the_result_link_is_the_last_resort(worker: Worker, input_for: InputFor) -> None:
    assert (await deliver(worker, await input_for("result_url_only"))).source == "the result link"


@pytest.mark.parametrize(
    "fault", ["html_file", "truncated", "truncated_chunked", "truncated_framed", "download_502", "no_content_route"]
)
async def test_what_is_not_a_whole_video_is_never_delivered(
    worker: Worker, sim: Simulator, input_for: InputFor, tmp_path: Path, fault: str
) -> None:
    tag = "content_only,no_content_route" if fault == "no_content_route" else fault
    input = await input_for(tag)
    failure = await failure_of(deliver(worker, input))
    assert (failure.type, failure.retried, failure.details.paid) == ("DeliveryFailed", True, Paid.YES)
    assert not list((tmp_path / "store").rglob("*.mp4"))
    shown = failure.message + failure.details.model_dump_json()
    assert API_KEY not in shown
    assert "http" not in failure.message, "links are secrets"
    assert "?" not in failure.message


async def test_a_fault_that_passes_is_delivered_by_the_next_attempt(worker: Worker, input_for: InputFor) -> None:
    input = await input_for("html_file,downloads=4")  # the link, a fresh one of each route, and the content route
    assert (await failure_of(deliver(worker, input))).type == "DeliveryFailed"
    assert (await deliver(worker, input)).video.duration_seconds == pytest.approx(15, abs=0.1)


@pytest.mark.parametrize(("hours", "attempt", "retried"), [(0, 9, True), (2, 1, True), (2, 9, False)])
async def test_what_every_source_has_called_gone_for_long_is_believed(
    worker: Worker, input_for: InputFor, hours: float, attempt: int, retried: bool
) -> None:
    input = await input_for("extend_failed,links_expired", FIRST)
    scheduled = datetime.now(UTC) - timedelta(hours=hours)
    worker.environment.info = replace(worker.environment.info, scheduled_time=scheduled, attempt=attempt)
    failure = await failure_of(deliver(worker, input))
    assert (failure.type, failure.retried, failure.details.paid) == ("DeliveryFailed", retried, Paid.YES)


async def test_a_clip_is_not_given_up_while_the_gateway_cannot_be_asked_for_it(
    worker: Worker, input_for: InputFor
) -> None:
    """The kept links are dead for long, but a fresh one may work: only the gateway itself can say that it is gone."""
    input = await input_for("extend_failed,links_expired,query_503,after=1,polls=always", FIRST)
    scheduled = datetime.now(UTC) - timedelta(hours=20)
    worker.environment.info = replace(worker.environment.info, scheduled_time=scheduled, attempt=99)
    failure = await failure_of(deliver(worker, input))
    assert (failure.type, failure.retried, failure.details.paid) == ("DeliveryFailed", True, Paid.YES)


async def test_a_store_that_is_gone_is_tried_again_and_loses_nothing(
    worker: Worker, input_for: InputFor, tmp_path: Path
) -> None:
    input = await input_for()
    (tmp_path / "store").rename(tmp_path / "unmounted")
    failure = await failure_of(deliver(worker, input))
    assert (failure.type, failure.retried, failure.details.paid) == ("StoreRefused", True, Paid.YES)
    (tmp_path / "unmounted").rename(tmp_path / "store")
    assert (await deliver(worker, input)).video


@pytest.mark.parametrize("tag", ["short", "silent"])
async def test_a_whole_clip_that_is_not_as_expected_is_delivered_with_a_warning(
    worker: Worker, input_for: InputFor, tag: str
) -> None:
    receipt = await deliver(worker, await input_for(tag))
    assert len(receipt.warnings) == 1
    assert ("15 s were expected" if tag == "short" else "no sound") in receipt.warnings[0]


async def test_a_cancelled_delivery_stops_and_leaves_nothing_half(
    worker: Worker, input_for: InputFor, tmp_path: Path
) -> None:
    task = asyncio.ensure_future(deliver(worker, await input_for("slow,drip=30")))
    while not any(details for details in worker.heartbeats if details and "bytes" in details[0]):  # noqa: ASYNC110 - heartbeats wake nobody
        await asyncio.sleep(0.01)
    worker.environment.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not list((tmp_path / "store").rglob("*.mp4"))


async def test_a_private_address_is_refused_unless_it_is_allowed(hire: Hire, input_for: InputFor) -> None:
    input = await input_for("no_content_route")
    worker = hire(allow_private_addresses=False)
    failure = await failure_of(deliver(worker, input))
    assert "LONGTAKE_ALLOW_PRIVATE_ADDRESSES" in failure.message


# --- Another gateway, another account ---------------------------------------------------------------------------------


async def test_a_kept_link_needs_no_gateway(worker: Worker, input_for: InputFor) -> None:
    input = (await input_for()).model_copy(update={"gateway": "https://elsewhere.example"})
    assert (await deliver(worker, input)).video.bytes


async def test_without_a_link_the_wrong_gateway_is_not_asked(
    worker: Worker, sim: Simulator, input_for: InputFor
) -> None:
    input = (await input_for(polled=False)).model_copy(update={"gateway": "https://elsewhere.example"})
    asked = len(sim.ledger.entries)
    failure = await failure_of(worker.run(worker.delivery.deliver_video, input))
    assert (failure.type, failure.retried, failure.details.paid) == ("WrongGateway", True, Paid.YES)
    assert asked_since(sim, asked) == []


async def test_a_task_that_this_account_does_not_show_is_not_gone(worker: Worker, input_for: InputFor) -> None:
    input = (await input_for("task_not_exist", polled=False)).model_copy(update={"account": "f" * 16})
    failure = await failure_of(worker.run(worker.delivery.deliver_video, input))
    assert (failure.type, failure.retried) == ("TaskNotVisible", True)
