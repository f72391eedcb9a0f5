from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from longtake.delivery.task_records import load_record
from longtake.models import GenerateVideoInput, Paid, PollInput, SubmitInput, TaskRecord, TaskState
from simulator import Simulator
from simulator.personalities import DOCUMENT, NEWAPI
from tests.activities.conftest import Hire, Worker
from tests.activities.failing import Failure, failure_of

KEY = "order-1"
Request = Callable[..., GenerateVideoInput]
InputFor = Callable[[str], Awaitable[PollInput]]


@pytest.fixture
def input_for(worker: Worker, request_for: Request) -> InputFor:
    async def make(tag: str) -> PollInput:
        receipt = await worker.run(worker.submission.submit_generation, SubmitInput(key=KEY, request=request_for(tag)))
        return PollInput(key=KEY, task_id=receipt.task_id)

    return make


async def look(worker: Worker, input: PollInput) -> TaskRecord:
    record = await worker.run(worker.polling.query_generation, input)
    assert isinstance(record, TaskRecord)
    return record


OUTCOMES = [
    # tag, state, links to the video and to the first segment, the gateway's code
    ("ok", TaskState.COMPLETED, True, True, None),
    ("no_first_url", TaskState.COMPLETED, True, False, None),
    ("content_only", TaskState.COMPLETED, False, True, None),
    ("extend_failed", TaskState.EXTEND_FAILED, True, False, "extend_failed"),
    ("generate_failed", TaskState.GENERATE_FAILED, False, False, "generate_failed"),
    ("never_finishes", TaskState.RUNNING, False, False, None),
    ("task_lost", TaskState.LOST, False, False, None),
    ("task_lost_timeout", TaskState.LOST, False, False, None),
    ("task_lost_empty", TaskState.LOST, False, False, None),
    ("cancelled", TaskState.LOST, False, False, None),
]


@pytest.mark.parametrize(("tag", "state", "video", "first", "code"), OUTCOMES, ids=[row[0] for row in OUTCOMES])
async def test_every_outcome(  # noqa: PLR0917 - a row of the table
    worker: Worker,
    input_for: InputFor,
    tag: str,
    state: TaskState,
    video: bool,
    first: bool,
    code: str | None,
) -> None:
    input = await input_for(tag)
    record = await look(worker, input)
    assert (record.task_id, record.state) == (input.task_id, state)
    assert (record.has_video_link, record.has_first_video_link) == (video, first)
    if code:
        assert record.error_code == code
        assert record.error_message
    if state in {TaskState.COMPLETED, TaskState.EXTEND_FAILED, TaskState.GENERATE_FAILED}:
        assert record.remix_id
    kept = await load_record(worker.store, KEY, input.task_id)
    # A failure is kept as well: nobody then looks for its video.
    assert (kept is not None) is (video or first or state is TaskState.GENERATE_FAILED)


@pytest.mark.parametrize("tag", ["ok", "extend_failed"])
async def test_links_lie_in_the_store_and_nowhere_else(
    worker: Worker,
    input_for: InputFor,
    caplog: pytest.LogCaptureFixture,
    tag: str,
) -> None:
    caplog.set_level("DEBUG", logger="longtake")
    caplog.set_level("DEBUG", logger="temporalio")
    input = await input_for(tag)
    record = await look(worker, input)
    kept = await load_record(worker.store, KEY, input.task_id)
    assert kept
    assert kept.video_url
    assert "?" in kept.video_url, "the simulator signs its links"
    signature = kept.video_url.partition("?")[2]
    shown = record.model_dump_json() + repr(record) + str(record) + repr(kept) + caplog.text
    for secret in (signature, kept.video_url, kept.video_url.partition("?")[0], "http://"):
        assert secret not in shown


async def test_a_lost_task_that_the_second_path_knows_better(
    worker: Worker, sim: Simulator, input_for: InputFor
) -> None:
    input = await input_for("task_lost,recovers")
    record = await look(worker, input)
    assert (record.state, record.has_video_link) == (TaskState.COMPLETED, True)
    paths = [entry["path"] for entry in sim.ledger.entries if entry["kind"] == "query"]
    assert paths == [f"/v1/videos/{input.task_id}", f"/v1/video/generations/{input.task_id}"]


@pytest.mark.parametrize(("tag", "queries"), [("never_finishes", 1), ("generate_failed", 2), ("ok", 2)])
async def test_the_other_route_is_asked_once_the_task_has_ended(
    worker: Worker, sim: Simulator, input_for: InputFor, tag: str, queries: int
) -> None:
    await look(worker, await input_for(tag))
    assert len([entry for entry in sim.ledger.entries if entry["kind"] == "query"]) == queries


TROUBLE = [
    # tag, type, retried, HTTP status
    ("query_401", "KeyRefused", False, 401),
    ("query_403", "KeyRefused", False, 403),
    ("task_not_exist", "TaskNotFound", False, 400),
    ("task_not_exist,status=404", "TaskNotFound", False, 404),
    ("query_html", "InvalidResponse", False, 200),
    ("query_not_json", "InvalidResponse", False, 200),
    ("query_empty", "InvalidResponse", False, 200),
    ("query_huge", "InvalidResponse", False, 200),
    ("ok,shape=S5", "InvalidResponse", False, 200),
    ("ok,shape=S6", "InvalidResponse", False, 200),
    ("query_429", "PollFailing", True, 429),
    ("query_500", "PollFailing", True, 500),
    ("query_502", "PollFailing", True, 502),
    ("query_503", "PollFailing", True, 503),
    ("query_504", "PollFailing", True, 504),
    ("query_problem", "PollFailing", True, 524),
    ("query_reset", "PollFailing", True, None),
    ("query_close", "PollFailing", True, None),
    ("query_half", "PollFailing", True, 200),
]


@pytest.mark.parametrize(("tag", "kind", "retried", "status"), TROUBLE, ids=[row[0] for row in TROUBLE])
async def test_failures_are_distinguished_and_the_next_poll_succeeds(  # noqa: PLR0917 - a row of the table
    worker: Worker, input_for: InputFor, tag: str, kind: str, retried: bool, status: int | None
) -> None:
    input = await input_for(f"{tag},polls=1")
    failure: Failure = await failure_of(look(worker, input))
    assert (failure.type, failure.retried, failure.details.http_status) == (kind, retried, status)
    assert (failure.details.paid, failure.benign) == (Paid.YES, False)
    assert failure.details.advice
    assert (await look(worker, input)).state is TaskState.COMPLETED


async def test_a_gateway_that_asks_for_patience_gets_it(worker: Worker, input_for: InputFor) -> None:
    failure = await failure_of(look(worker, await input_for("query_429,retry_after=9,polls=1")))
    assert failure.delay
    assert failure.delay.total_seconds() == 9


async def test_a_store_that_is_away_costs_no_poll(worker: Worker, input_for: InputFor, tmp_path: Path) -> None:
    input = await input_for("ok")
    (tmp_path / "store").rename(tmp_path / "unmounted")
    assert (await look(worker, input)).state is TaskState.COMPLETED


async def test_a_dead_key_is_named_and_never_shown(hire: Hire, input_for: InputFor) -> None:
    input = await input_for("ok")
    worker = hire(key="a-dead-key")
    worker.environment.info = replace(worker.environment.info, attempt=3)
    failure = await failure_of(look(worker, input))
    assert failure.type == "KeyRefused"
    assert "LONGTAKE_GATEWAY_API_KEY" in failure.details.advice
    assert "a-dead-key" not in failure.message + failure.details.model_dump_json()


# --- Another gateway, another account ---------------------------------------------------------------------------------


async def test_a_task_of_another_gateway_is_not_asked_for_here(
    worker: Worker, sim: Simulator, input_for: InputFor
) -> None:
    input = (await input_for("ok")).model_copy(update={"gateway": "https://elsewhere.example"})
    asked = len(sim.ledger.entries)
    failure = await failure_of(worker.run(worker.polling.query_generation, input))
    assert (failure.type, failure.retried, failure.details.paid) == ("WrongGateway", True, Paid.YES)
    assert "https://elsewhere.example" in failure.message
    assert worker.gateway.origin in failure.message
    assert len(sim.ledger.entries) == asked
    here = input.model_copy(update={"gateway": worker.gateway.origin})
    assert (await look(worker, here)).state is TaskState.COMPLETED


@pytest.mark.parametrize(
    ("account", "kind"), [("", "TaskNotFound"), ("ours", "TaskNotFound"), ("f" * 16, "TaskNotVisible")]
)
async def test_no_such_task_proves_nothing_where_another_key_paid(
    worker: Worker, input_for: InputFor, account: str, kind: str
) -> None:
    input = await input_for("task_not_exist")
    paid_by = worker.gateway.account if account == "ours" else account
    failure = await failure_of(
        worker.run(worker.polling.query_generation, input.model_copy(update={"account": paid_by}))
    )
    assert failure.type == kind
    assert failure.details.paid is Paid.YES


def log_calls(sim: Simulator) -> int:
    return sum(row.get("path") == "/api/log/token" for row in sim.ledger.entries)


@pytest.mark.parametrize(("like", "calls"), [(DOCUMENT, 1), (NEWAPI, 0)])
@pytest.mark.parametrize("tag", ["extend_failed", "generate_failed"])
async def test_a_refund_is_read_from_the_task_or_else_from_the_usage_log(  # noqa: PLR0917 - fixtures
    worker: Worker, sim: Simulator, input_for: InputFor, like: str, calls: int, tag: str
) -> None:
    input = await input_for(tag)
    record = await look(worker, input)
    assert (record.state, record.quota, record.refunded) == (TaskState(tag), 0, True)
    assert record.refund_evidence
    assert log_calls(sim) == calls
    kept = await load_record(worker.store, KEY, input.task_id)
    assert kept is not None
    assert (kept.quota, kept.refunded) == (0, True)


@pytest.mark.parametrize("trouble", ["500", "429", "closed", "another key", "an extension"])
async def test_a_usage_log_without_the_charge_leaves_the_refund_unknown(
    worker: Worker, sim: Simulator, input_for: InputFor, trouble: str
) -> None:
    input = await input_for("generate_failed")
    if trouble.isdigit():
        sim.world.account_faults["log"] = trouble
    elif trouble == "closed":
        sim.world.account_open = False
    elif trouble == "another key":
        input = input.model_copy(update={"account": "of-another-key"})
    else:
        input = input.model_copy(update={"extension": True})
    record = await look(worker, input)
    assert (record.state, record.quota, record.refunded) == (TaskState.GENERATE_FAILED, None, None)
    assert record.refund_evidence is None


async def test_refunds_leave_half_of_the_usage_logs_calls_for_what_is_in_doubt(
    worker: Worker, sim: Simulator, input_for: InputFor
) -> None:
    input = await input_for("generate_failed")
    told = [(await look(worker, input)).refunded for _ in range(12)]
    assert told == [True] * 10 + [None] * 2
    now = datetime.now(UTC)
    said = await worker.account_client.ask(model="veo_3_1-fast-remix", since=now - timedelta(minutes=5), until=now)
    assert (said.charges, said.refunds) == (1, 1)
