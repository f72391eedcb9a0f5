import asyncio
import base64
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest

from longtake.models import (
    GenerateVideoInput,
    Paid,
    RecordInput,
    SubmissionReceipt,
    SubmitInput,
)
from longtake.storage import Store, StoreProblem
from longtake.submission.ledger import HeartbeatState
from simulator import Simulator
from tests.activities.conftest import API_KEY, Hire, Worker
from tests.activities.failing import failure_of
from tests.unread import UnreadAnswers

KEY = "order-1"
Request = Callable[..., GenerateVideoInput]


@pytest.fixture
def submit(request_for: Request) -> Callable[..., Awaitable[SubmissionReceipt]]:
    async def run(worker: Worker, tag: str = "ok", **fields: Any) -> SubmissionReceipt:
        input = SubmitInput(key=KEY, request=request_for(tag, **fields))
        receipt = await worker.run(worker.submission.submit_generation, input)
        assert isinstance(receipt, SubmissionReceipt)
        return receipt

    return run


Submit = Callable[..., Awaitable[SubmissionReceipt]]


async def test_a_good_submission_is_paid_once_and_attached_to_after(
    worker: Worker, sim: Simulator, submit: Submit
) -> None:
    receipt = await submit(worker)
    (entry,) = sim.ledger.submissions()
    assert (receipt.task_id, receipt.request_id) == (entry["task_id"], entry["request_id"])
    assert (receipt.slot, receipt.attached, receipt.recorded) == (1, False, True)
    again = await submit(worker)
    assert again == receipt.model_copy(update={"attached": True})
    assert sim.ledger.paid()["total"] == 1


async def test_the_heartbeat_holds_the_evidence_before_the_store_does(worker: Worker, submit: Submit) -> None:
    receipt = await submit(worker)
    evidence = [HeartbeatState.model_validate(details[0]) for details in worker.heartbeats if details]
    assert evidence[-1] == HeartbeatState(
        nonce=receipt.nonce, outcome="accepted", task_id=receipt.task_id, request_id=receipt.request_id
    )


async def test_evidence_of_the_attempt_before_survives_every_heartbeat_and_resolves_the_slot(
    hire: Hire, sim: Simulator, submit: Submit, store: Store
) -> None:
    """Killed between the answer and the record: the next attempt finds the id in its heartbeat details."""

    class _KilledError(BaseException):
        """As near to a kill as a test in one process gets: nothing of ours handles it."""

    class Dies(Store):
        async def create(self, path: str, content: bytes) -> bool:
            if path.endswith("/outcome"):
                raise _KilledError
            return await super().create(path, content)

    dying = hire(store=Dies.open(store.url))
    with pytest.raises(_KilledError):
        await submit(dying)
    details = dying.heartbeats[-1]
    assert details

    heir = hire()
    heir.environment.info = replace(heir.environment.info, heartbeat_details=list(details), attempt=2)
    receipt = await submit(heir)
    assert (receipt.task_id, receipt.attached) == (sim.ledger.submissions()[0]["task_id"], True)
    assert all(beat == details for beat in heir.heartbeats), "a heartbeat without details erases them"
    assert sim.ledger.paid()["total"] == 1


@pytest.mark.parametrize("details", [["text"], [{"bytes": 5}], [None], [[]]], ids=repr)
async def test_odd_heartbeat_details_are_no_evidence(worker: Worker, submit: Submit, details: list[Any]) -> None:
    worker.environment.info = replace(worker.environment.info, heartbeat_details=details)
    assert not (await submit(worker)).attached


# Of each row of the field notes' table "was a paid job made?", at least one.
FAULTS = [
    # tag, type, retried, paid, HTTP status, the delay asked for
    ("refuse_400", "SubmissionRefused", False, Paid.NO, 400, None),
    ("refuse_400_new_api", "SubmissionRefused", False, Paid.NO, 400, None),
    ("refuse_401", "SubmissionRefused", False, Paid.NO, 401, None),
    ("refuse_402", "SubmissionRefused", False, Paid.NO, 402, None),
    ("refuse_403", "SubmissionRefused", False, Paid.NO, 403, None),
    ("insufficient_quota", "SubmissionRefused", False, Paid.NO, 403, None),
    ("refuse_413", "SubmissionRefused", False, Paid.NO, 413, None),
    ("refuse_415", "SubmissionRefused", False, Paid.NO, 415, None),
    ("refuse_422", "SubmissionRefused", False, Paid.NO, 422, None),
    ("redirect_307", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, 307, None),
    ("rate_limited", "GatewayBusy", True, Paid.NO, 429, None),
    ("rate_limited,retry_after=7", "GatewayBusy", True, Paid.NO, 429, timedelta(seconds=7)),
    ("no_channel", "GatewayBusy", True, Paid.NO, 503, None),
    ("build_request_failed", "GatewayBusy", True, Paid.NO, 500, None),
    ("submit_521", "GatewayUnreachable", True, Paid.NO, 521, None),
    ("submit_522", "GatewayUnreachable", True, Paid.NO, 522, None),
    ("submit_523", "GatewayUnreachable", True, Paid.NO, 523, None),
    ("submit_525", "GatewayUnreachable", True, Paid.NO, 525, None),
    ("submit_526", "GatewayUnreachable", True, Paid.NO, 526, None),
    ("get_channel_failed", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, 500, None),
    ("do_request_failed", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, 500, None),
    ("new_api_panic", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, 500, None),
    ("fail_to_fetch_task", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, 500, None),
    ("submit_502", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, 502, None),
    ("submit_503", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, 503, None),
    ("submit_504", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, 504, None),
    ("submit_520", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, 520, None),
    ("submit_524", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, 524, None),
    ("submit_reset", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, None, None),
    ("submit_close", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, None, None),
    ("submit_half", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, 200, None),
    ("submit_hang", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, None, None),
    ("submit_no_id", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, 200, None),
    ("submit_html", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, 200, None),
    ("submit_not_json", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, 200, None),
    ("submit_empty", "SubmissionOutcomeUnknown", False, Paid.UNKNOWN, 200, None),
]


@pytest.mark.parametrize("row", FAULTS, ids=[row[0] for row in FAULTS])
async def test_every_class_of_fault(
    hire: Hire, sim: Simulator, submit: Submit, row: tuple[str, str, bool, Paid, int | None, timedelta | None]
) -> None:
    tag, kind, retried, paid, status, delay = row
    worker = hire(submit_seconds=0.3 if tag == "submit_hang" else 20)
    failure = await failure_of(submit(worker, tag))
    assert (failure.type, failure.retried, failure.details.paid) == (kind, retried, paid)
    assert (failure.details.http_status, failure.delay) == (status, delay)
    assert (failure.details.slot, failure.details.sent_at is not None) == (
        (1, True) if paid is Paid.UNKNOWN else (None, False)
    )
    shown = failure.message + failure.details.model_dump_json()
    assert len(failure.message) <= 800
    assert API_KEY not in shown
    assert "a storm" not in shown
    if paid is Paid.NO:
        assert sim.ledger.paid()["total"] == 0, "told not paid, and was"
    worker.environment.info = replace(worker.environment.info, heartbeat_details=list(worker.heartbeats[-1]))
    if paid is Paid.UNKNOWN:
        assert (await failure_of(submit(worker, tag))).type == "SubmissionOutcomeUnknown"
        assert len(sim.ledger.submissions()) == 1


async def test_a_worker_whose_client_gave_no_sign_before_sending_sends_nothing_more(
    hire: Hire, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another HTTP library than the one released with: at-most-once cannot be kept, and is not tried."""
    answers: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        answers.append(request)
        return httpx.Response(200, json={"id": "task_1", "task_id": "task_1", "status": "queued"})

    worker = hire()
    monkeypatch.setattr(worker.gateway._submitting, "_transport", UnreadAnswers(answer))
    failure = await failure_of(submit(worker))
    assert (failure.type, failure.retried, failure.details.paid) == ("SubmissionOutcomeUnknown", False, Paid.UNKNOWN)
    for _ in range(2):
        again = await failure_of(submit(worker))
        assert (again.type, again.details.paid) == ("GatewayUnreachable", Paid.NO)
    assert len(answers) == 1


async def test_a_busy_gateway_gets_the_next_attempt_in_the_next_slot(
    worker: Worker, sim: Simulator, submit: Submit
) -> None:
    assert (await failure_of(submit(worker, "rate_limited,times=1"))).retried
    receipt = await submit(worker, "rate_limited,times=1")
    assert (receipt.slot, receipt.attached) == (2, False)
    assert sim.ledger.paid()["total"] == 1


async def test_what_cannot_connect_leaves_no_record(hire: Hire, sim: Simulator, submit: Submit) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        worker = hire(url=f"http://127.0.0.1:{unused.getsockname()[1]}")
        failure = await failure_of(submit(worker))
    assert (failure.type, failure.retried, failure.details.paid) == ("GatewayUnreachable", True, Paid.NO)
    assert (await submit(hire())).slot == 1


async def test_another_request_under_the_same_key_is_the_callers_mistake(worker: Worker, submit: Submit) -> None:
    await submit(worker)
    failure = await failure_of(submit(worker, prompt_extend="another end"))
    assert (failure.type, failure.retried, failure.benign) == ("InvalidRequest", False, True)
    assert "new key" in failure.details.advice


async def test_a_ledger_that_is_away_is_waited_for_and_nothing_is_sent(
    hire: Hire, sim: Simulator, submit: Submit, store: Store
) -> None:
    class Away(Store):
        async def get(self, path: str) -> bytes | None:
            raise StoreProblem("the store does not answer", retryable=True)

    failure = await failure_of(submit(hire(store=Away.open(store.url))))
    assert (failure.type, failure.retried) == ("LedgerUnavailable", True)
    assert sim.ledger.submissions() == []


async def test_an_outcome_the_store_did_not_take_is_returned_and_written_by_the_next_activity(
    hire: Hire, sim: Simulator, submit: Submit, store: Store
) -> None:
    class Full(Store):
        async def create(self, path: str, content: bytes) -> bool:
            if path.endswith("/outcome"):
                raise StoreProblem("no space left", retryable=True)
            return await super().create(path, content)

    full = hire(store=Full.open(store.url))
    receipt = await submit(full)
    assert (receipt.recorded, receipt.attached) == (False, False)
    input = RecordInput(key=KEY, receipt=receipt)
    failure = await failure_of(full.run(full.submission.record_submission, input))
    assert (failure.type, failure.retried) == ("LedgerUnavailable", True)

    healthy = hire()
    await healthy.run(healthy.submission.record_submission, input)
    assert (await submit(healthy)).attached
    assert sim.ledger.paid()["total"] == 1


async def test_what_was_accepted_is_found_even_if_its_images_are_gone(
    worker: Worker, sim: Simulator, submit: Submit, store: Store
) -> None:
    """Killed while the answer came, and the images were tidied away meanwhile: the paid task must still be found."""
    pixel = (
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
        "rkJggg=="
    )
    await store.put("mine/first.png", base64.b64decode(pixel.partition(",")[2]))
    images = [{"uri": "mine/first.png"}]
    receipt = await submit(worker, images=images)
    await store.delete("mine/first.png")
    found = await submit(worker, images=images)
    assert (found.task_id, found.attached) == (receipt.task_id, True)


# --- Cancellation -----------------------------------------------------------------------------------------------------


async def until(ready: Callable[[], object]) -> None:
    while not ready():  # noqa: ASYNC110 - the simulator's ledger tells nobody
        await asyncio.sleep(0.005)


async def _cancelled_when(worker: Worker, submitting: Awaitable[object], ready: Callable[[], object]) -> Any:
    task = asyncio.ensure_future(submitting)
    await until(ready)
    worker.environment.cancel()
    return await task


async def test_cancelled_before_it_is_armed_nothing_is_sent(hire: Hire, sim: Simulator, submit: Submit) -> None:
    silent = socket.create_server(("127.0.0.1", 0), backlog=0)  # accepts nothing
    filler = [socket.socket() for _ in range(4)]
    for one in filler:  # fill its queue, so that ours hangs while connecting
        one.setblocking(False)
        one.connect_ex(silent.getsockname())
    worker = hire(url=f"http://127.0.0.1:{silent.getsockname()[1]}")
    reading = asyncio.Event()
    real_get = worker.store.get

    async def seen(path: str) -> bytes | None:
        content = await real_get(path)
        reading.set()
        return content

    worker.store.get = seen  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await _cancelled_when(worker, submit(worker), reading.is_set)
    for one in (silent, *filler):
        one.close()
    del worker.store.get
    receipt = await submit(hire())
    assert (receipt.slot, receipt.attached) == (1, False)
    assert sim.ledger.paid()["total"] == 1


async def test_cancelled_while_the_answer_is_awaited_it_returns_the_id(
    worker: Worker, sim: Simulator, submit: Submit
) -> None:
    submitting = submit(worker, "submit_delay,delay=0.3")
    receipt = await _cancelled_when(worker, submitting, sim.ledger.submissions)
    assert receipt.task_id == sim.ledger.submissions()[0]["task_id"]
    assert receipt.recorded


async def test_cancelled_twice_while_the_answer_is_awaited_it_returns_the_id(
    worker: Worker, sim: Simulator, submit: Submit
) -> None:
    """A cancelled generation on a worker that is then shut down: the worker cancels once more."""
    task = asyncio.ensure_future(submit(worker, "submit_delay,delay=0.4"))
    await until(sim.ledger.submissions)
    for _ in range(2):
        for running in worker.environment._activities:
            running.cancel()
        await asyncio.sleep(0.05)
    assert (await task).task_id == sim.ledger.submissions()[0]["task_id"]


async def test_a_second_attempt_while_the_first_still_waits_is_in_doubt(
    hire: Hire, sim: Simulator, submit: Submit
) -> None:
    slow, second = hire(), hire()
    first = asyncio.ensure_future(submit(slow, "submit_delay,delay=0.4"))
    await until(sim.ledger.submissions)
    failure = await failure_of(submit(second, "submit_delay,delay=0.4"))
    assert (failure.type, failure.retried, failure.details.paid) == ("SubmissionInDoubt", True, Paid.UNKNOWN)
    assert failure.delay
    assert failure.delay <= timedelta(seconds=5)
    receipt = await first
    assert (await submit(second, "submit_delay,delay=0.4")).task_id == receipt.task_id
    assert sim.ledger.paid()["total"] == 1
