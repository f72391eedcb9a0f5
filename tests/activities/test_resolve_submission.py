"""A submission whose outcome is unknown: the account's records, decisions, adoption; and the retried extension."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from activities import submission
from longtake.models import (
    ClosedSubmission,
    CloseInput,
    ExtensionInput,
    GenerateVideoInput,
    Paid,
    PollInput,
    ReconcileInput,
    Reconciliation,
    RecordInput,
    Resolution,
    ResolveInput,
    SubmissionReceipt,
    SubmitInput,
    TaskState,
)
from longtake.request.rules import extension_digest, request_digest
from longtake.storage import Store
from longtake.submission import ledger as ledger_module
from longtake.submission.reconciliation import Resubmit
from longtake.submission.records import folder_of, record_path
from simulator import Simulator
from simulator.scenarios import choose
from tests.activities.conftest import Hire, Worker
from tests.activities.failing import failure_of

KEY, MODEL = "order-1", "veo_3_1-fast-remix"
Request = Callable[..., GenerateVideoInput]
InDoubt = Callable[..., Awaitable[None]]


async def submit(worker: Worker, request: GenerateVideoInput, key: str = KEY) -> SubmissionReceipt:
    receipt = await worker.run(worker.submission.submit_generation, SubmitInput(key=key, request=request))
    assert isinstance(receipt, SubmissionReceipt)
    return receipt


async def reconcile(worker: Worker, key: str = KEY) -> Reconciliation:
    found = await worker.run(worker.submission.reconcile_submission, ReconcileInput(key=key, model=MODEL))
    assert isinstance(found, Reconciliation)
    return found


async def resolve(worker: Worker, task_id: str | None, slot: int = 1) -> Resolution:
    resolved = await worker.run(worker.submission.resolve_submission, ResolveInput(key=KEY, task_id=task_id, slot=slot))
    assert isinstance(resolved, Resolution)
    return resolved


@pytest.fixture
def in_doubt(worker: Worker, request_for: Request, tmp_path: Path) -> InDoubt:
    """A submission whose answer was lost; its window is over at once unless asked otherwise."""

    async def make(key: str = KEY, tag: str = "submit_reset,times=1", *, over: bool = True) -> None:
        failure = await failure_of(submit(worker, request_for(f"{tag},label={key}"), key))
        assert failure.type == "SubmissionOutcomeUnknown"
        if over:
            end_of_window(tmp_path)

    return make


async def test_the_only_orphan_is_adopted_and_never_submitted_again(
    worker: Worker, sim: Simulator, in_doubt: InDoubt, request_for: Request
) -> None:
    await submit(worker, request_for("ok,label=another"), "another")
    await in_doubt()
    (orphan,) = [entry["task_id"] for entry in sim.ledger.submissions(paid=True) if entry["fault"]]
    found = await reconcile(worker)
    assert found.receipt
    assert found.receipt.task_id == orphan
    attached = await submit(worker, request_for(f"submit_reset,times=1,label={KEY}"))
    assert (attached.task_id, attached.attached) == (orphan, True)
    assert len(sim.ledger.submissions()) == 2


async def test_with_several_orphans_a_person_is_asked(worker: Worker, sim: Simulator, in_doubt: InDoubt) -> None:
    await in_doubt()
    await in_doubt("another")
    orphans = {entry["task_id"] for entry in sim.ledger.submissions(paid=True)}
    found = await reconcile(worker)
    assert found.receipt is None
    assert not found.clear
    assert set(found.candidates) == orphans
    assert any("in doubt too" in line for line in found.evidence)


async def test_one_orphan_that_may_be_anothers_is_not_adopted(worker: Worker, in_doubt: InDoubt) -> None:
    await in_doubt()
    await in_doubt("another", "submit_reset,unpaid,times=1")
    found = await reconcile(worker)
    assert found.receipt is None
    assert len(found.candidates) == 1


async def test_where_nothing_was_made_there_is_no_candidate(worker: Worker, in_doubt: InDoubt) -> None:
    await in_doubt(tag="submit_reset,unpaid,times=1")
    found = await reconcile(worker)
    assert (found.receipt, found.clear, found.candidates) == (None, False, ())
    assert any("0 charges" in line for line in found.evidence)


async def test_a_record_that_cannot_be_read_proves_nothing(worker: Worker, sim: Simulator, in_doubt: InDoubt) -> None:
    sim.world.account_open = False
    await in_doubt()
    found = await reconcile(worker)
    assert (found.receipt, found.clear, found.candidates) == (None, False, ())
    assert found.evidence


async def test_records_are_not_read_while_it_may_be_under_way(
    worker: Worker, sim: Simulator, in_doubt: InDoubt, tmp_path: Path
) -> None:
    await in_doubt(over=False)
    (response,) = (tmp_path / "store/submit").glob("*/1/response")
    response.unlink()  # its owner was killed while it waited for an answer
    failure = await failure_of(reconcile(worker))
    assert (failure.retried, failure.details.paid) == (True, Paid.UNKNOWN)
    assert failure.delay
    assert failure.delay > timedelta(seconds=1)
    assert not [entry for entry in sim.ledger.entries if entry.get("kind") == "account"]


async def test_reconciling_what_is_not_in_doubt_returns_what_is_known(worker: Worker, request_for: Request) -> None:
    assert (await reconcile(worker)).clear
    submitted = await submit(worker, request_for())
    found = await reconcile(worker)
    assert not found.clear, "it was paid: whoever asks must not be told that nothing was made"
    assert found.receipt
    assert found.receipt.task_id == submitted.task_id


async def test_a_decision_to_adopt_is_written_down(worker: Worker, sim: Simulator, in_doubt: InDoubt) -> None:
    await in_doubt()
    (made,) = [entry["task_id"] for entry in sim.ledger.submissions(paid=True)]
    resolved = await resolve(worker, made)
    assert resolved.receipt
    assert (resolved.receipt.task_id, resolved.receipt.slot) == (made, 1)
    assert (await reconcile(worker)).receipt == resolved.receipt
    other = sim.world.new_task(choose("", None, ""), MODEL, "1280x720", "made elsewhere", 1)
    assert await resolve(worker, other.task_id) == resolved, "the first decision stands"
    assert len(sim.ledger.submissions()) == 1


async def test_a_decision_with_a_wrong_task_id_changes_nothing(
    worker: Worker, sim: Simulator, in_doubt: InDoubt
) -> None:
    await in_doubt()
    (made,) = [entry["task_id"] for entry in sim.ledger.submissions(paid=True)]
    failure = await failure_of(resolve(worker, "task_mistyped"))
    assert failure.type == "InvalidRequest"
    assert (failure.details.http_status, failure.details.gateway_code) == (400, "task_not_exist")
    assert "task_mistyped: the gateway has no such task" in failure.message
    resolved = await resolve(worker, made)
    assert resolved.receipt
    assert resolved.receipt.task_id == made


async def test_a_gateway_that_hangs_does_not_hold_up_a_decision(
    worker: Worker, sim: Simulator, in_doubt: InDoubt
) -> None:
    await in_doubt(tag="submit_reset,query_hang,times=1,polls=always")
    (made,) = [entry["task_id"] for entry in sim.ledger.submissions(paid=True)]
    resolved = await resolve(worker, made)
    assert resolved.receipt
    assert resolved.receipt.task_id == made


async def test_a_decision_to_submit_again_pays_exactly_once_more(
    worker: Worker, sim: Simulator, in_doubt: InDoubt, request_for: Request
) -> None:
    await in_doubt(tag="submit_reset,unpaid,times=1")
    assert (await resolve(worker, None)).receipt is None
    request = request_for(f"submit_reset,unpaid,times=1,label={KEY}")
    receipt = await submit(worker, request)
    assert (receipt.slot, receipt.attached) == (2, False)
    assert (await submit(worker, request)).attached
    assert sim.ledger.paid()["total"] == 1


async def test_a_task_that_belongs_to_another_is_refused(
    worker: Worker, sim: Simulator, in_doubt: InDoubt, request_for: Request
) -> None:
    owned = await submit(worker, request_for("ok,label=another"), "another")
    await in_doubt()
    failure = await failure_of(resolve(worker, owned.task_id))
    assert (failure.type, failure.retried, failure.details.paid) == ("InvalidRequest", False, Paid.NO)


async def test_a_task_of_something_else_is_taken_over_and_nothing_is_paid(
    worker: Worker, sim: Simulator, request_for: Request
) -> None:
    elsewhere = sim.world.new_task(choose("", None, ""), MODEL, "1280x720", "made elsewhere", 1)
    receipt = await submit(worker, request_for(task_id=elsewhere.task_id))
    assert (receipt.task_id, receipt.attached) == (elsewhere.task_id, True)
    assert (await submit(worker, request_for(task_id=elsewhere.task_id))).task_id == elsewhere.task_id
    assert sim.ledger.submissions() == []
    failure = await failure_of(submit(worker, request_for(task_id="another")))
    assert (failure.type, failure.retried) == ("InvalidRequest", False)


async def test_an_answer_that_came_after_temporal_had_given_up_is_found(
    worker: Worker, sim: Simulator, request_for: Request
) -> None:
    """The workflow knows of no slot then, only that the activity's time was over."""
    sending = asyncio.create_task(submit(worker, request_for("submit_delay,delay=0.3")))
    await posted(sim)
    early = await failure_of(reconcile(worker))
    assert (early.retried, early.details.paid) == (True, Paid.UNKNOWN)
    receipt = await sending
    found = await reconcile(worker)
    assert (found.clear, found.receipt) == (False, receipt.model_copy(update={"attached": True}))


async def test_what_another_request_of_this_key_brought_is_not_taken_for_ours(
    worker: Worker, request_for: Request
) -> None:
    await submit(worker, request_for())
    input = ReconcileInput(key=KEY, model=MODEL, digest=request_digest(request_for(prompt_extend="another end")))
    found = await worker.run(worker.submission.reconcile_submission, input)
    assert (found.clear, found.receipt) == (True, None)


# --- A writer who comes back --------------------------------------------------------------------------------------

Stopped = Callable[[GenerateVideoInput], Awaitable[tuple[Worker, asyncio.Task[SubmissionReceipt]]]]


@pytest.fixture
def stopped_after_sending(hire: Hire, sim: Simulator, tmp_path: Path) -> Stopped:
    """A writer whose window is over while the gateway has not answered: another worker, and its submission."""

    async def make(request: GenerateVideoInput) -> tuple[Worker, asyncio.Task[SubmissionReceipt]]:
        sending = asyncio.create_task(submit(hire(), request))
        await posted(sim)
        end_of_window(tmp_path)
        return hire(), sending

    return make


async def posted(sim: Simulator) -> None:
    while not sim.ledger.submissions():  # noqa: ASYNC110 - the simulator's ledger tells nobody
        await asyncio.sleep(0.005)


def end_of_window(tmp_path: Path) -> None:
    for path in (tmp_path / "store/submit").glob("*/*/intent"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"window_seconds": 0}))


async def test_a_writer_who_comes_back_is_found_by_the_next_reconciliation(
    sim: Simulator, request_for: Request, stopped_after_sending: Stopped
) -> None:
    """Stopped after sending, given up, and continued: nobody had decided yet."""
    sim.world.account_open = False
    request = request_for("submit_delay,delay=0.5")
    other, sending = await stopped_after_sending(request)
    found = await reconcile(other)
    assert (found.clear, found.receipt) == (False, None)
    receipt = await sending
    asked = ReconcileInput(key=KEY, model=MODEL, slot=1)
    again = await other.run(other.submission.reconcile_submission, asked)
    assert again.receipt
    assert again.receipt.task_id == receipt.task_id
    assert len(sim.ledger.submissions()) == 1


async def test_a_paid_task_that_comes_after_a_wrong_decision_is_not_paid_for_again(
    sim: Simulator, request_for: Request, stopped_after_sending: Stopped, tmp_path: Path
) -> None:
    """A person said "nothing was made"; before it is sent again the writer comes back with a task."""
    sim.world.account_open = False
    request = request_for("submit_delay,delay=0.5")
    other, sending = await stopped_after_sending(request)
    assert (await resolve(other, None)).receipt is None
    late = await sending
    assert [*(tmp_path / "store/submit").glob("*/1/late")]
    again = await submit(other, request)
    assert (again.task_id, again.attached) == (late.task_id, True)
    assert (await reconcile(other)).receipt == again
    assert not await other.ledger.is_untouched(KEY)
    assert len(sim.ledger.submissions()) == 1
    # Nobody else may take it for an orphan.
    failure = await failure_of(submit(other, request_for(task_id=late.task_id), "another"))
    assert (failure.type, failure.details.paid) == ("InvalidRequest", Paid.NO)


async def test_a_paid_task_that_comes_after_the_second_one_does_not_replace_it(
    request_for: Request, stopped_after_sending: Stopped
) -> None:
    request = request_for("submit_delay,delay=0.5,times=1")
    other, sending = await stopped_after_sending(request)
    await resolve(other, None)
    second = await submit(other, request)
    assert (await sending).task_id != second.task_id
    assert (await submit(other, request)).task_id == second.task_id
    found = await reconcile(other)
    assert found.receipt
    assert found.receipt.task_id == second.task_id


# --- What each record of the account proves -----------------------------------------------------------------------


async def test_an_orphan_that_another_key_paid_for_is_not_ours(
    worker: Worker, sim: Simulator, in_doubt: InDoubt
) -> None:
    """The list shows the tasks of all keys of the account, the log what this one was charged: nothing."""
    await in_doubt(tag="submit_reset,other_key,times=1")
    found = await reconcile(worker)
    assert (found.receipt, found.clear) == (None, False)
    assert list(found.candidates) == [entry["task_id"] for entry in sim.ledger.submissions(paid=True)]


async def test_a_log_that_cannot_be_read_vetoes_nothing(
    hire: Hire, worker: Worker, sim: Simulator, in_doubt: InDoubt, request_for: Request
) -> None:
    await submit(worker, request_for("ok,label=another"), "another")
    await in_doubt()
    found = await reconcile(hire(key="refused-by-now"))
    assert found.receipt
    (orphan,) = [entry["task_id"] for entry in sim.ledger.submissions(paid=True) if entry["fault"]]
    assert found.receipt.task_id == orphan


@pytest.mark.parametrize("trouble", ["429", "500"])
async def test_a_log_that_answers_later_is_waited_for(
    worker: Worker, sim: Simulator, in_doubt: InDoubt, request_for: Request, trouble: str
) -> None:
    """What it told before, that another request was charged for the orphan, would be forgotten."""
    await submit(worker, request_for("ok,label=another"), "another")
    await in_doubt(tag="submit_reset,other_key,times=1")
    assert (await reconcile(worker)).receipt is None
    sim.world.account_faults["log"] = trouble
    found = await reconcile(worker)
    assert found.receipt is None
    assert found.retry_after
    assert list(found.candidates) == [entry["task_id"] for entry in sim.ledger.submissions(paid=True) if entry["fault"]]


# --- The ledger of another store ----------------------------------------------------------------------------------


@pytest.fixture(params=["another store", "emptied", "without its identity"])
async def lost_ledger(
    request: pytest.FixtureRequest, hire: Hire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Worker, str]:
    """A worker whose store is not the one that a generation began with, and the ledger that this one began with."""
    monkeypatch.setattr(ledger_module, "_IDENTITY_TRIES", 1)  # no waiting for a folder that is away for a moment
    worker = hire()
    began_with = await worker.ledger.establish()
    worker.established = True
    if request.param == "another store":
        worker = hire(store=Store.open(str(tmp_path / "another")))
    elif request.param == "emptied":
        shutil.rmtree(tmp_path / "store/submit")
    else:
        (tmp_path / "store/submit/identity").unlink()
    return worker, began_with


async def test_with_another_ledger_nothing_is_sent_and_nothing_is_written(
    lost_ledger: tuple[Worker, str], sim: Simulator, request_for: Request
) -> None:
    worker, began_with = lost_ledger
    request = request_for()
    extension = ExtensionInput(remix_id="video_1", number=1)
    receipt = SubmissionReceipt(task_id="task_1", submitted_at=datetime.now(UTC), slot=1, nonce="n1")
    activities = worker.submission
    for activity, input in (
        (activities.submit_generation, SubmitInput(key=KEY, request=request, ledger_id=began_with)),
        (
            activities.submit_generation,
            SubmitInput(key=KEY, request=request_for(task_id="task_1"), ledger_id=began_with),
        ),
        (
            activities.submit_extension,
            SubmitInput(key=KEY, request=request, extension=extension, ledger_id=began_with),
        ),
        (activities.record_submission, RecordInput(key=KEY, receipt=receipt, ledger_id=began_with)),
        (activities.reconcile_submission, ReconcileInput(key=KEY, model=MODEL, ledger_id=began_with)),
        (activities.resolve_submission, ResolveInput(key=KEY, task_id="task_1", digest="d", ledger_id=began_with)),
        (activities.resolve_submission, ResolveInput(key=KEY, ledger_id=began_with)),
    ):
        failure = await failure_of(worker.run(activity, input))
        assert (activity.__name__, failure.type, failure.retried) == (activity.__name__, "LedgerUnavailable", True)
        assert failure.details.paid is Paid.UNKNOWN
    assert sim.ledger.submissions() == []
    assert [path async for path, _ in worker.store.entries("submit") if not path.endswith("identity")] == []


# --- The retried extension --------------------------------------------------------------------------------------------


async def test_an_extension_is_paid_for_again_once_beside_the_first_payment(
    worker: Worker, sim: Simulator, request_for: Request
) -> None:
    request = request_for("extend_failed,remix")
    first = await submit(worker, request)
    record = await worker.run(worker.polling.query_generation, PollInput(key=KEY, task_id=first.task_id))
    assert record.state is TaskState.EXTEND_FAILED
    orders = [
        SubmitInput(key=KEY, request=request, extension=ExtensionInput(remix_id=record.remix_id, number=number))
        for number in (1, 1, 2)
    ]
    receipts = [await worker.run(worker.submission.submit_extension, input) for input in orders]
    assert receipts[0].task_id == receipts[1].task_id != receipts[2].task_id
    assert [receipt.attached for receipt in receipts] == [False, True, False]
    assert [entry["kind"] for entry in sim.ledger.submissions(paid=True)] == ["submit", "remix", "remix"]
    look = PollInput(key=KEY, task_id=receipts[0].task_id, extension=True)
    assert (await worker.run(worker.polling.query_generation, look)).state is TaskState.COMPLETED


async def test_an_extension_in_doubt_has_no_record_and_is_not_paid_for_again(
    worker: Worker, sim: Simulator, request_for: Request
) -> None:
    first = await submit(worker, request_for("extend_failed,remix"))
    look = PollInput(key=KEY, task_id=first.task_id)
    record = await worker.run(worker.polling.query_generation, look)
    request = request_for("extend_failed,remix", prompt_extend="it ends [sim:submit_reset,times=1]")
    extension = ExtensionInput(remix_id=record.remix_id, number=1)
    input = SubmitInput(key=KEY, request=request, extension=extension)
    failure = await failure_of(worker.run(worker.submission.submit_extension, input))
    assert (failure.type, failure.details.paid) == ("SubmissionOutcomeUnknown", Paid.UNKNOWN)

    sim.ledger.entries[:] = sim.ledger.submissions()  # the look at the first task has read the usage log
    asked = ReconcileInput(key=input.ledger_key, model=MODEL, slot=failure.details.slot, extension=True)
    found = await worker.run(worker.submission.reconcile_submission, asked)
    assert (found.clear, found.receipt, found.candidates) == (False, None, ())
    assert found.evidence
    again = await failure_of(worker.run(worker.submission.submit_extension, input))
    assert again.type == "SubmissionOutcomeUnknown"
    assert [entry["kind"] for entry in sim.ledger.submissions()] == ["submit", "remix"]
    assert not [entry for entry in sim.ledger.entries if entry.get("kind") == "account"]


async def test_a_gateway_that_cannot_retry_says_so_and_nothing_is_paid(
    worker: Worker, sim: Simulator, request_for: Request
) -> None:
    request = request_for("extend_failed")
    first = await submit(worker, request)
    record = await worker.run(worker.polling.query_generation, PollInput(key=KEY, task_id=first.task_id))
    input = SubmitInput(key=KEY, request=request, extension=ExtensionInput(remix_id=record.remix_id, number=1))
    failure = await failure_of(worker.run(worker.submission.submit_extension, input))
    assert (failure.type, failure.retried, failure.details.paid) == ("SubmissionRefused", False, Paid.NO)
    assert [entry["kind"] for entry in sim.ledger.submissions(paid=True)] == ["submit"]


@pytest.mark.parametrize("polled", [True, False], ids=["its record is kept", "it is not"])
async def test_what_another_generation_made_is_not_extended(
    worker: Worker, hire: Hire, sim: Simulator, request_for: Request, polled: bool
) -> None:
    """The retry would show its first 8 s. Whoever may write to Temporal can ask our workers for it, by any input."""
    request, tasks = request_for("extend_failed,remix"), {}
    for key in (KEY, "thief"):
        tasks[key] = (await submit(worker, request, key)).task_id
        for asked in tasks.values() if polled else ():
            await worker.run(worker.polling.query_generation, PollInput(key=key, task_id=asked))
    extension = ExtensionInput(remix_id=(await worker.gateway.query(tasks[KEY])).remix_id or "", number=1)
    for key in ("thief", "nobody"):
        input = SubmitInput(key=key, request=request, extension=extension)
        failure = await failure_of(worker.run(worker.submission.submit_extension, input))
        assert (failure.type, failure.retried, failure.details.paid) == ("InvalidRequest", False, Paid.NO)
    assert [entry["kind"] for entry in sim.ledger.submissions()] == ["submit", "submit"]
    own = SubmitInput(key=KEY, request=request, extension=extension)
    if not polled:
        away = hire(url="http://127.0.0.1:9")
        failure = await failure_of(away.run(away.submission.submit_extension, own))
        assert (failure.type, failure.retried, failure.details.paid) == ("GatewayUnreachable", True, Paid.NO)
    else:  # the kept record says it, and nobody needs to be asked
        worker.submission._gateway = hire(url="http://127.0.0.1:9").gateway
    assert (await worker.run(worker.submission.submit_extension, own)).task_id


# --- Which submission a decision is about, and what closing lets nobody send ------------------------------------------


async def close(worker: Worker, key: str = KEY, *, at: datetime) -> ClosedSubmission:
    """As an activity that Temporal scheduled at that time."""
    worker.environment.info = replace(worker.environment.info, scheduled_time=at)
    closed = await worker.run(worker.submission.close_submission, CloseInput(key=key))
    assert isinstance(closed, ClosedSubmission)
    return closed


async def test_a_decision_resolves_the_submission_that_was_asked_about_and_no_other(
    worker: Worker, sim: Simulator, in_doubt: InDoubt, request_for: Request
) -> None:
    """Replayed by a reset, or by an attempt that was frozen: the second submission is another question."""
    unpaid = "submit_reset,unpaid,times=9"
    await in_doubt(tag=unpaid)
    assert (await resolve(worker, None)).receipt is None
    await in_doubt(tag=unpaid)
    assert (await resolve(worker, None)).receipt is None
    failure = await failure_of(submit(worker, request_for(f"{unpaid},label={KEY}")))
    assert (failure.type, failure.details.slot) == ("SubmissionOutcomeUnknown", 2)
    assert len(sim.ledger.submissions()) == 2


async def test_a_decision_to_adopt_leaves_another_submission_in_doubt_alone(
    worker: Worker, sim: Simulator, in_doubt: InDoubt, request_for: Request
) -> None:
    unpaid = "submit_reset,unpaid,times=9"
    await in_doubt(tag=unpaid)
    await resolve(worker, None)
    await in_doubt(tag=unpaid)
    elsewhere = sim.world.new_task(choose("", None, ""), MODEL, "1280x720", "made elsewhere", 1)
    assert (await resolve(worker, elsewhere.task_id)).receipt is None
    failure = await failure_of(submit(worker, request_for(f"{unpaid},label={KEY}")))
    assert (failure.type, failure.details.slot) == ("SubmissionOutcomeUnknown", 2)


async def test_a_task_for_a_submission_that_was_called_not_sent_is_taken_over_and_nothing_is_paid(
    worker: Worker, sim: Simulator, in_doubt: InDoubt, request_for: Request
) -> None:
    request = request_for(f"submit_reset,times=1,label={KEY}")
    await in_doubt()
    await resolve(worker, None)
    (made,) = [entry["task_id"] for entry in sim.ledger.submissions(paid=True)]
    input = ResolveInput(key=KEY, task_id=made, slot=1, digest=request_digest(request), model=MODEL)
    resolved = await worker.run(worker.submission.resolve_submission, input)
    assert resolved.receipt
    assert resolved.receipt.task_id == made
    assert (await submit(worker, request)).task_id == made
    assert len(sim.ledger.submissions()) == 1


async def test_what_was_scheduled_before_it_was_closed_is_not_sent_and_what_comes_later_is(
    worker: Worker, sim: Simulator, request_for: Request
) -> None:
    now = datetime.now(UTC)
    assert await close(worker, at=now) == ClosedSubmission()
    for earlier in (now, now - timedelta(hours=1)):
        worker.environment.info = replace(worker.environment.info, scheduled_time=earlier)
        failure = await failure_of(submit(worker, request_for()))
        assert (failure.type, failure.retried, failure.details.paid) == ("SubmissionClosed", False, Paid.NO)
    assert sim.ledger.submissions() == []
    worker.environment.info = replace(worker.environment.info, scheduled_time=now + timedelta(seconds=1))
    assert (await submit(worker, request_for())).slot == 2


async def test_closing_returns_what_was_paid_and_what_is_in_doubt(
    worker: Worker, in_doubt: InDoubt, request_for: Request
) -> None:
    receipt = await submit(worker, request_for(), "paid")
    closed = await close(worker, "paid", at=datetime.now(UTC))
    assert closed == ClosedSubmission(receipt=receipt.model_copy(update={"attached": True}))
    await in_doubt()
    closed = await close(worker, at=datetime.now(UTC))
    assert closed.receipt is None
    assert closed.in_doubt is not None
    assert (closed.in_doubt.slot, closed.in_doubt.paid) == (1, Paid.UNKNOWN)
    assert closed.in_doubt.sent_at is not None


async def test_a_receipt_names_the_gateway_and_the_account_also_when_the_ledger_hands_it_on(
    worker: Worker, request_for: Request
) -> None:
    for receipt in (await submit(worker, request_for()), await submit(worker, request_for())):
        assert (receipt.gateway, receipt.account) == (worker.gateway.origin, worker.gateway.account)


# --- Every field ------------------------------------------------------------------------------------------------------

SENT = datetime(2026, 7, 1, 12, tzinfo=UTC)
RECEIPT = SubmissionReceipt(
    task_id="task_1",
    submitted_at=SENT,
    slot=3,
    attached=True,
    recorded=False,
    request_id="req-1",
    nonce="n1",
    gateway="https://g.example",
    account="a1",
)
WHO = "video-order-1/1b671a64/attempt 7"
TOLD = Reconciliation(
    receipt=RECEIPT,
    clear=True,
    candidates=("task_a",),
    evidence=("one", "two"),
    slot=3,
    retry_after=timedelta(seconds=7),
    elsewhere="https://elsewhere.example",
    charged=Paid.YES,
    resubmittable=True,
    resubmissions=2,
)


@pytest.fixture
def named(worker: Worker) -> Worker:
    """A worker whose activity has a run and an attempt of its own."""
    worker.environment.info = replace(
        worker.environment.info, workflow_run_id="1b671a64-40d5-491e-99b0-da01ff1f3341", attempt=7
    )
    return worker


@pytest.mark.parametrize("extension", [False, True])
@pytest.mark.parametrize(
    ("allowed", "confirms", "resubmit"),
    [(False, True, Resubmit.NEVER), (True, False, Resubmit.IF_CONFIRMED), (True, True, Resubmit.NOW)],
)
async def test_the_records_are_asked_with_all_that_is_known_and_all_findings_are_returned(
    named: Worker,
    monkeypatch: pytest.MonkeyPatch,
    *,
    extension: bool,
    allowed: bool,
    confirms: bool,
    resubmit: Resubmit,
) -> None:
    asked: list[Any] = []

    async def reconcile(*arguments: Any, **named: Any) -> Reconciliation:
        asked.append((arguments, named))
        return TOLD

    monkeypatch.setattr(submission, "reconcile", reconcile)
    named.submission._resubmit_not_charged = allowed
    input = ReconcileInput(key=KEY, model=MODEL, slot=3, extension=extension, digest="d", confirms_not_charged=confirms)
    assert await named.run(named.submission.reconcile_submission, input) == TOLD
    (((ledger, account_client, question), facts),) = asked
    assert (ledger, account_client) == (named.ledger, None if extension else named.account_client)
    assert question == input
    assert facts == {"writer": WHO, "resubmit": resubmit}


async def test_where_nothing_was_found_nothing_is_returned_and_hidden_words_are_in_the_store(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [Reconciliation(), Reconciliation(evidence=("one", "two"))]

    async def reconcile(*_: Any, **__: Any) -> Reconciliation:
        return findings.pop(0)

    monkeypatch.setattr(submission, "reconcile", reconcile)
    input = ReconcileInput(key=KEY, model=MODEL, hide_words=True)
    assert await worker.run(worker.submission.reconcile_submission, input) == Reconciliation()
    (line,) = (await worker.run(worker.submission.reconcile_submission, input)).evidence
    (path,) = [path async for path, _ in worker.store.entries("words")]
    assert path in line
    assert await worker.store.get(path) == b"one\ntwo"


async def test_what_the_store_did_not_take_is_recorded_whole(named: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []

    async def record_accepted(key: str, accepted: SubmissionReceipt, *, only: bool) -> None:
        assert only
        taken.append((key, accepted))

    monkeypatch.setattr(named.ledger, "record_accepted", record_accepted)
    await named.run(named.submission.record_submission, RecordInput(key=KEY, receipt=RECEIPT))
    assert taken == [(KEY, RECEIPT)]


async def test_who_submits_closes_resolves_and_takes_over_is_named(
    named: Worker, in_doubt: InDoubt, request_for: Request, sim: Simulator
) -> None:
    async def intent(key: str, slot: int = 1) -> dict[str, Any]:
        content = await named.store.get(record_path(folder_of(key), slot, "intent"))
        record: dict[str, Any] = json.loads(content or b"{}")
        return {name: record[name] for name in ("writer", "digest", "model", "gateway", "account")}

    here = {"gateway": named.gateway.origin, "account": named.gateway.account}
    request = request_for("ok,label=paid")
    await submit(named, request, "paid")
    assert await intent("paid") == {"writer": WHO, "digest": request_digest(request), "model": MODEL, **here}

    await named.run(named.submission.close_submission, CloseInput(key="closed", digest="d"))
    nowhere = {"gateway": "", "account": ""}
    assert await intent("closed") == {"writer": WHO, "digest": "d", "model": "", **nowhere}

    elsewhere = [sim.world.new_task(choose("", None, ""), MODEL, "1280x720", "x", n).task_id for n in (1, 2)]
    request = request_for(task_id=elsewhere[0])
    await submit(named, request, "adopted")
    assert await intent("adopted") == {"writer": WHO, "digest": request_digest(request), "model": MODEL, **nowhere}

    await in_doubt()
    await resolve(named, None)
    outcome = json.loads(await named.store.get(record_path(folder_of(KEY), 1, "outcome")) or b"{}")
    assert outcome["reason"] == f"decided ({WHO})"
    input = ResolveInput(key=KEY, task_id=elsewhere[1], slot=1, digest="d2", model=MODEL)
    await named.run(named.submission.resolve_submission, input)
    assert await intent(KEY, 2) == {"writer": WHO, "digest": "d2", "model": MODEL, **nowhere}


async def test_an_extension_is_written_down_with_its_own_gateway_and_digest(
    named: Worker, request_for: Request
) -> None:
    request = request_for("extend_failed,remix")
    first = await submit(named, request)
    record = await named.run(named.polling.query_generation, PollInput(key=KEY, task_id=first.task_id))
    assert record.remix_id
    input = SubmitInput(key=KEY, request=request, extension=ExtensionInput(remix_id=record.remix_id, number=1))
    receipt = await named.run(named.submission.submit_extension, input)
    intent = json.loads(await named.store.get(record_path(folder_of(input.ledger_key), 1, "intent")) or b"{}")
    assert intent["digest"] == extension_digest(record.remix_id, request.prompt_extend)
    extension = named.extension
    assert (intent["model"], intent["gateway"], intent["account"]) == (MODEL, extension.origin, extension.account)
    assert (receipt.gateway, receipt.account) == (extension.origin, extension.account)
