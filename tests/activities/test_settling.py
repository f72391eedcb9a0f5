"""A submission whose outcome is unknown: witnesses, decisions, adoption; and the retried extension."""

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from longtake.models import (
    ExtensionOrder,
    GenerateVideoInput,
    LookOrder,
    Paid,
    ReconcileOrder,
    Reconciliation,
    Settlement,
    SettleOrder,
    SubmissionReceipt,
    SubmitOrder,
    TaskState,
)
from simulator import Simulator
from simulator.scenarios import choose
from tests.activities.conftest import Worker
from tests.activities.failing import failure_of

KEY, MODEL = "order-1", "veo_3_1-fast-remix"
Request = Callable[..., GenerateVideoInput]
InDoubt = Callable[..., Awaitable[None]]


async def submit(worker: Worker, request: GenerateVideoInput, key: str = KEY) -> SubmissionReceipt:
    receipt = await worker.run(worker.submission.submit_generation, SubmitOrder(key=key, request=request))
    assert isinstance(receipt, SubmissionReceipt)
    return receipt


async def reconcile(worker: Worker, key: str = KEY) -> Reconciliation:
    found = await worker.run(worker.submission.reconcile_submission, ReconcileOrder(key=key, model=MODEL))
    assert isinstance(found, Reconciliation)
    return found


async def settle(worker: Worker, task_id: str | None) -> Settlement:
    settled = await worker.run(worker.submission.settle_submission, SettleOrder(key=KEY, task_id=task_id))
    assert isinstance(settled, Settlement)
    return settled


@pytest.fixture
def in_doubt(worker: Worker, request_for: Request, tmp_path: Path) -> InDoubt:
    """A submission whose answer was lost; its window is over at once unless asked otherwise."""

    async def make(key: str = KEY, tag: str = "submit_reset,times=1", *, over: bool = True) -> None:
        failure = await failure_of(submit(worker, request_for(f"{tag},label={key}"), key))
        assert failure.type == "SubmissionOutcomeUnknown"
        for path in (tmp_path / "store/submit").glob("*/*/intent") if over else ():
            path.write_text(json.dumps(json.loads(path.read_text()) | {"window_seconds": 0}))

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


async def test_a_witness_who_is_not_heard_proves_nothing(worker: Worker, sim: Simulator, in_doubt: InDoubt) -> None:
    sim.world.witnesses_open = False
    await in_doubt()
    found = await reconcile(worker)
    assert (found.receipt, found.clear, found.candidates) == (None, False, ())
    assert found.evidence


async def test_witnesses_are_not_heard_while_it_may_be_under_way(
    worker: Worker, sim: Simulator, in_doubt: InDoubt
) -> None:
    await in_doubt(over=False)
    failure = await failure_of(reconcile(worker))
    assert (failure.retried, failure.details.paid) == (True, Paid.UNKNOWN)
    assert failure.delay
    assert failure.delay > timedelta(seconds=1)
    assert not [entry for entry in sim.ledger.entries if entry.get("kind") == "witness"]


async def test_where_nothing_is_in_doubt_it_says_so(worker: Worker, request_for: Request) -> None:
    assert (await reconcile(worker)).clear
    await submit(worker, request_for())
    assert (await reconcile(worker)).clear


async def test_a_decision_to_adopt_is_written_down(worker: Worker, sim: Simulator, in_doubt: InDoubt) -> None:
    await in_doubt()
    settled = await settle(worker, "task_by_decision")
    assert settled.receipt
    assert settled.receipt.task_id == "task_by_decision"
    assert (await reconcile(worker)).clear
    assert len(sim.ledger.submissions()) == 1


async def test_a_decision_to_submit_again_pays_exactly_once_more(
    worker: Worker, sim: Simulator, in_doubt: InDoubt, request_for: Request
) -> None:
    await in_doubt(tag="submit_reset,unpaid,times=1")
    assert (await settle(worker, None)).receipt is None
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
    failure = await failure_of(settle(worker, owned.task_id))
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


# --- The retried extension --------------------------------------------------------------------------------------------


async def test_an_extension_is_paid_for_again_once_beside_the_first_payment(
    worker: Worker, sim: Simulator, request_for: Request
) -> None:
    request = request_for("extend_failed,remix")
    first = await submit(worker, request)
    record = await worker.run(worker.polling.query_generation, LookOrder(key=KEY, task_id=first.task_id))
    assert record.state is TaskState.EXTEND_FAILED
    orders = [
        SubmitOrder(key=KEY, request=request, extension=ExtensionOrder(remix_id=record.remix_id, number=number))
        for number in (1, 1, 2)
    ]
    receipts = [await worker.run(worker.submission.submit_extension, order) for order in orders]
    assert receipts[0].task_id == receipts[1].task_id != receipts[2].task_id
    assert [receipt.attached for receipt in receipts] == [False, True, False]
    assert [entry["kind"] for entry in sim.ledger.submissions(paid=True)] == ["submit", "remix", "remix"]
    look = LookOrder(key=KEY, task_id=receipts[0].task_id, extension=True)
    assert (await worker.run(worker.polling.query_generation, look)).state is TaskState.COMPLETED


async def test_a_gateway_that_cannot_retry_says_so_and_nothing_is_paid(
    worker: Worker, sim: Simulator, request_for: Request
) -> None:
    order = SubmitOrder(key=KEY, request=request_for(), extension=ExtensionOrder(remix_id="unknown", number=1))
    failure = await failure_of(worker.run(worker.submission.submit_extension, order))
    assert (failure.type, failure.retried, failure.details.paid) == ("SubmissionRefused", False, Paid.NO)
    assert sim.ledger.paid()["total"] == 0
