"""Which paid tasks the store knows of, which of them still have a video to fetch, and what fetches it unpaid."""

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from longtake.delivery.task_records import load_request, save_record, save_request, video_directory
from longtake.gateway.client import SubmittedTask
from longtake.gateway.wire import GatewayRecord
from longtake.models import DeliveryKind, GenerateVideoInput, OnExtendFailed, TaskState, extension_key
from longtake.request.rules import check_request, extension_digest, request_digest
from longtake.storage import Store
from longtake.submission import ledger as ledger_module
from longtake.submission.errors import KeyReused, OutcomeUnknown, TaskOwned
from longtake.submission.ledger import MARGIN, CreateIntent, PaidTask, Submission, SubmissionLedger
from longtake.submission.records import PREFIX, Outcome, folder_of, owner_path
from longtake.submission.recovery import request_for, undelivered_tasks
from longtake.temporal.names import key_of, workflow_id

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
MODEL = "veo_3_1-fast-remix"


def ledger_in(store: Store) -> SubmissionLedger:
    return SubmissionLedger(store, longest_exchange=timedelta(seconds=1))


def request_of(key: str, **more: object) -> GenerateVideoInput:
    return GenerateVideoInput.model_validate({"model": MODEL, "prompt": key, "prompt_extend": "and on", **more})


async def pay(
    store: Store, key: str, request: GenerateVideoInput | None = None, *, retry: int = 0, writer: str | None = None
) -> str:
    """What the activity does for this key; returns the task's id."""
    request = request or request_of(key)
    task_id = f"task_{key}_{retry}"

    async def send(create_intent: CreateIntent) -> SubmittedTask:
        await create_intent()
        return SubmittedTask(task_id)

    await ledger_in(store).submit(
        extension_key(key, retry) if retry else key,
        Submission(
            digest=extension_digest("remix-1", request.prompt_extend) if retry else request_digest(request),
            writer=f"{workflow_id(key) if writer is None else writer}/0a1b2c3d/attempt 1",
            model=request.model,
        ),
        send,
    )
    return task_id


async def paid(store: Store, since: datetime = LONG_AGO) -> list[PaidTask]:
    return [task async for task in ledger_in(store).paid_tasks(since=since, key_of=key_of)]


async def undelivered(store: Store) -> set[str]:
    found = undelivered_tasks(store, ledger_in(store), since=LONG_AGO, key_of=key_of)
    return {task.task_id async for task in found}


async def deliver(store: Store, key: str, task_id: str, kind: DeliveryKind) -> None:
    """Leave what a delivery leaves; that the real one leaves it there, `test_e2e_recover` shows."""
    name = f"{kind.value}-{hashlib.sha256(task_id.encode()).hexdigest()[:8]}.mp4.json"
    await store.put(f"{video_directory(key)}/{name}", b"{}")


async def test_every_paid_task_is_found_with_its_key_and_nothing_is_written(store: Store) -> None:
    keys = [f"order-{number}" for number in range(20)]  # more than one batch of reads
    for key in keys:
        await pay(store, key)
    await pay(store, "order-3", retry=2)
    before = {path: written async for path, written in store.entries(PREFIX)}
    found = await paid(store)
    assert {(task.key, task.retry) for task in found} == {*((key, None) for key in keys), ("order-3", 2)}
    assert len(found) == 21
    (one,) = [task for task in found if task.key == "order-7"]
    assert (one.task_id, one.model, one.digest) == ("task_order-7_0", MODEL, request_digest(request_of("order-7")))
    assert {path: written async for path, written in store.entries(PREFIX)} == before


async def test_an_empty_ledger_has_none(store: Store) -> None:
    await ledger_in(store).establish()
    assert await paid(store) == []


async def test_older_ones_are_left_out(disk: Store) -> None:
    await pay(disk, "order-1")
    assert await paid(disk, datetime.now(UTC) + timedelta(seconds=1)) == []
    assert len(await paid(disk, datetime.now(UTC) - timedelta(minutes=1))) == 1


async def test_a_key_that_the_records_do_not_prove_is_not_made_up(disk: Store) -> None:
    await pay(disk, "order-1", writer="video-somebody-elses")
    (task,) = await paid(disk)
    assert (task.key, task.task_id) == (None, "task_order-1_0")
    assert await undelivered(disk) == {"task_order-1_0"}, "it is told of all the same"
    assert await request_for(disk, ledger_in(disk), task, key_of=key_of) == (None, False)


async def test_a_workflow_id_that_somebody_else_chose(disk: Store) -> None:
    await pay(disk, "their-own-id", writer="their-own-id")
    assert [task.key for task in await paid(disk)] == ["their-own-id"]


async def test_what_is_in_doubt_is_not_a_paid_task(disk: Store) -> None:
    async def send(create_intent: CreateIntent) -> SubmittedTask:
        await create_intent()
        raise ConnectionResetError

    with pytest.raises(OutcomeUnknown):
        await ledger_in(disk).submit("order-1", Submission(digest="d", writer="video-order-1/x/attempt 1"), send)
    assert await paid(disk) == []


@pytest.mark.parametrize(
    ("state", "stored", "to_fetch"),
    [
        (None, (), True),
        (TaskState.COMPLETED, (), True),
        (TaskState.EXTEND_FAILED, (), True),
        (TaskState.GENERATE_FAILED, (), False),
        (TaskState.COMPLETED, (DeliveryKind.FULL,), False),
        (TaskState.COMPLETED, (DeliveryKind.FIRST,), True),  # stored while the full video could not be had
        (TaskState.EXTEND_FAILED, (DeliveryKind.FIRST,), False),
        (None, (DeliveryKind.FIRST,), False),
    ],
)
async def test_which_tasks_have_a_video_to_fetch(
    disk: Store, state: TaskState | None, stored: tuple[DeliveryKind, ...], to_fetch: bool
) -> None:
    task_id = await pay(disk, "order-1")
    if state:
        await save_record(disk, "order-1", GatewayRecord(task_id=task_id, state=state))
    for kind in stored:
        await deliver(disk, "order-1", task_id, kind)
    assert await undelivered(disk) == ({task_id} if to_fetch else set())


async def test_a_retried_extension_that_failed_has_none(disk: Store) -> None:
    first, second = await pay(disk, "order-1"), await pay(disk, "order-1", retry=1)
    await save_record(disk, "order-1", GatewayRecord(task_id=first, state=TaskState.EXTEND_FAILED))
    await deliver(disk, "order-1", first, DeliveryKind.FIRST)
    assert await undelivered(disk) == {second}
    await save_record(disk, "order-1", GatewayRecord(task_id=second, state=TaskState.EXTEND_FAILED))
    assert await undelivered(disk) == set()


async def test_a_broken_record_hides_nothing(disk: Store) -> None:
    task_id = await pay(disk, "order-1")
    await save_record(disk, "order-1", GatewayRecord(task_id=task_id, state=TaskState.COMPLETED))
    (path,) = [path async for path, _ in disk.entries("records")]
    await disk.put(path, b"not json")
    assert await undelivered(disk) == {task_id}


# --- The request ------------------------------------------------------------------------------------------------------


async def only_task(store: Store, *, retry: int | None = None) -> PaidTask:
    (task,) = [task for task in await paid(store) if task.retry == retry]
    return task


async def test_the_request_that_was_paid_for_is_the_one_that_is_used(store: Store) -> None:
    wanted = request_of("order-1", keep_first=True)
    await save_request(store, "order-1", request_of("refused, so never paid for"))
    await save_request(store, "order-1", wanted)
    await pay(store, "order-1", wanted)
    await pay(store, "order-1", wanted, retry=1)
    for retry in (None, 1):
        task = await only_task(store, retry=retry)
        assert await request_for(store, ledger_in(store), task, key_of=key_of) == (wanted, True)


async def test_what_would_pay_for_an_extension_asks_instead(disk: Store) -> None:
    wanted = request_of("order-1", on_extend_failed="retry")
    await save_request(disk, "order-1", wanted)
    await pay(disk, "order-1", wanted)
    given, kept = await request_for(disk, ledger_in(disk), await only_task(disk), key_of=key_of)
    assert given is not None
    assert (kept, given.on_extend_failed) == (True, OnExtendFailed.ASK)
    assert request_digest(given) == request_digest(wanted), "to the ledger it is the same"


@pytest.mark.parametrize("content", [None, b"not json", request_of("another").model_dump_json().encode()])
@pytest.mark.parametrize("model", [MODEL, "veo_3_1-hd-fl-remix", "retired"])
async def test_without_it_the_key_takes_over_its_own_task(disk: Store, content: bytes | None, model: str) -> None:
    wanted = request_of("order-1", model=model)
    task_id = await pay(disk, "order-1", wanted)
    if content:
        await save_request(disk, "order-1", wanted)
        (path,) = [path async for path, _ in disk.entries("records")]
        await disk.put(path, content)
    assert await load_request(disk, "order-1", request_digest(wanted)) is None
    given, kept = await request_for(disk, ledger_in(disk), await only_task(disk), key_of=key_of)
    assert given is not None
    assert (kept, given.task_id, given.on_extend_failed) == (False, task_id, OnExtendFailed.FALLBACK)
    assert check_request(given, offered=False).model == model


async def test_a_key_may_take_over_its_own_task_and_no_other(disk: Store) -> None:
    ledger = ledger_in(disk)
    task_id = await pay(disk, "order-1")
    await pay(disk, "order-2")
    before = {path async for path, _ in disk.entries(PREFIX)}
    mine = Submission("of another form of it", "us", MODEL)
    taken = await ledger.adopt("order-1", mine, task_id)
    assert (taken.task_id, taken.slot, taken.attached) == (task_id, 1, True)
    for key, refusal in (("order-2", KeyReused), ("order-3", TaskOwned)):
        with pytest.raises(refusal):
            await ledger.adopt(key, mine, task_id)
    assert {path async for path, _ in disk.entries(PREFIX)} == before


class DatedStore(Store):
    """Another store, in which claims were written when the test says."""

    def __init__(self, inner: Store, written: dict[str, datetime]) -> None:
        super().__init__(inner._backend, inner.url, inner._root)
        self._written = {owner_path(task_id): at for task_id, at in written.items()}

    async def entries(self, prefix: str) -> AsyncIterator[tuple[str, datetime]]:
        async for path, at in super().entries(prefix):
            yield path, self._written.get(path, at)


async def test_what_is_as_old_as_asked_is_found_and_nothing_older(disk: Store) -> None:
    task_id = await pay(disk, "order-1")
    (task,) = await paid(disk)
    moment = timedelta(microseconds=1)
    assert [found.task_id for found in await paid(disk, task.sent_at)] == [task_id]
    assert await paid(disk, task.sent_at + moment) == []
    oldest = task.sent_at - MARGIN
    for written, found in ((oldest, [task]), (oldest - moment, [])):
        assert await paid(DatedStore(disk, {task_id: written}), task.sent_at) == found


async def test_a_long_walk_logs_its_progress(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_REPORT_EVERY", 10)
    paid_for = {await pay(disk, f"order-{number}") for number in range(35)}
    told: list[int] = []
    walk = ledger_in(disk).paid_tasks(since=LONG_AGO, key_of=key_of, on_progress=told.append)
    tasks = [task.task_id async for task in walk]
    assert (set(tasks), len(tasks), told) == (paid_for, 35, [10, 20, 30, 35])


async def test_what_came_after_a_decision_was_paid_for_too(disk: Store) -> None:
    task_id = await pay(disk, "order-1")
    folder = folder_of("order-1")
    outcome = Outcome.model_validate_json(await disk.get(f"{folder}/1/outcome") or b"")
    decided = outcome.model_copy(update={"outcome": "not_sent", "task_id": None, "decided": True})
    await disk.put(f"{folder}/1/outcome", decided.model_dump_json().encode())
    await disk.put(f"{folder}/1/late", outcome.model_dump_json().encode())
    assert [task.task_id for task in await paid(disk)] == [task_id]
    first = await ledger_in(disk).first_paid("order-1", key_of=key_of)
    assert first
    assert first.task_id == task_id


@pytest.mark.parametrize(("retry", "named"), [(1, 1), (100, 100), (101, None)])
async def test_so_many_retries_of_an_extension_are_named(disk: Store, retry: int, named: int | None) -> None:
    await pay(disk, "order-1", retry=retry)
    (task,) = await paid(disk)
    assert (task.key, task.retry) == ("order-1" if named else None, named)
