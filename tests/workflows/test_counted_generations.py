"""What generations count of themselves, read from a worker's real endpoint."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio
from temporalio.worker import Replayer

from longtake.models import GenerationPolicy, Reconciliation, Resolution, TaskRecord
from longtake.temporal.connection import DATA_CONVERTER, sdk_runtime
from tests.end_to_end.processes import free_port
from tests.exposition import Exposition
from tests.workflows import rig as rig_module
from tests.workflows.rig import (
    FIRST_CLIP,
    FULL_VIDEO,
    REQUEST,
    TASK_ID,
    Rig,
    Script,
    accepted,
    completed,
    delivered,
    extend_failed,
    generate_failed,
    refusal,
    running,
    running_rig,
)
from worker import workflow_setup
from workflows.steps import poll as watching

pytestmark = pytest.mark.asyncio(loop_scope="session")

ADDRESS = f"127.0.0.1:{free_port()}"
MODEL = REQUEST["model"]
FULL = (delivered(FULL_VIDEO),)
FIRST = (delivered(FIRST_CLIP),)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def measured() -> AsyncIterator[Rig]:
    """Everything as for other workflow tests, with a runtime that serves metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig_module, "_runtime", lambda: sdk_runtime(ADDRESS))
        async with running_rig() as rig:
            yield rig


@pytest_asyncio.fixture(loop_scope="session")
async def rig(measured: Rig) -> AsyncIterator[Rig]:
    yield measured
    await measured.clean_up()


async def seen() -> Exposition:
    return await asyncio.to_thread(Exposition.of, ADDRESS)


async def test_a_generation_counts_its_end_its_polls_its_verdict_and_what_it_cost(rig: Rig) -> None:
    before = await seen()
    polls = [running(10, quota=425_000), refusal("PollFailing", "502"), running(61), completed()]
    await (await rig.generate(Script(polls=polls, deliver=FULL))).result()
    after = await seen()

    assert after.added(before, "longtake_generations_total", "outcome", "model") == {("full", MODEL): 1}
    assert after.added(before, "longtake_polls_total", "result") == {
        ("running",): 2,
        ("PollFailing",): 1,
        ("completed",): 1,
    }
    assert after.added(before, "longtake_verdicts_total", "verdict", "task", "model") == {
        ("completed", "generation", MODEL): 1
    }
    assert after.added(before, "longtake_paid_submissions_total", "task", "model") == {("generation", MODEL): 1}
    assert after.added(before, "longtake_quota_total", "task", "model") == {("generation", MODEL): 425_000}
    assert after.added(before, "longtake_submissions_in_doubt_total", "task") == {}
    (ended,) = after.find("longtake_generations_total", outcome="full")
    assert ended.labels.keys() == {"outcome", "model", "namespace", "task_queue", "workflow_type"}


async def test_every_stage_is_timed(rig: Rig) -> None:
    before = await seen()
    generation = await rig.generate(Script(polls=[running(10), running(61), completed()], deliver=FULL))
    await generation.result()
    after = await seen()

    name = "longtake_stage_duration_seconds"
    stages = ("preparing", "submitting", "first_segment", "extending", "delivering")
    assert after.added(before, f"{name}_count", "stage") == {(stage,): 1 for stage in stages}
    # The polls, between which time is skipped, are what takes long.
    called = generation.script.times("query_generation")
    seconds = after.added(before, f"{name}_sum", "stage")
    assert seconds["extending",] == pytest.approx((called[2] - called[1]).total_seconds(), abs=2)
    assert seconds["first_segment",] > seconds["extending",] > 2


async def test_a_stage_is_timed_across_continue_as_new(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLLS_PER_RUN", 2)
    before = await seen()
    generation = await rig.generate(Script(polls=[*[running(10)] * 5, completed()], deliver=FULL))
    await generation.result()
    after = await seen()

    name = "longtake_stage_duration_seconds"
    counts = after.added(before, f"{name}_count", "stage")
    assert counts["first_segment",] == counts["preparing",] == 1
    called = generation.script.times("query_generation")
    assert after.added(before, f"{name}_sum", "stage")["first_segment",] > (called[-1] - called[0]).total_seconds()
    assert after.added(before, "longtake_quota_total", "task") == {("generation",): 425_000}
    assert after.added(before, "longtake_paid_submissions_total", "task") == {("generation",): 1}


async def test_failures_are_counted_by_their_type(rig: Rig) -> None:
    before = await seen()
    await (await rig.generate(Script(polls=[generate_failed()]))).failure()
    await (await rig.generate(Script(polls=[extend_failed()], deliver=FIRST))).result()
    await (await rig.generate(Script(polls=[extend_failed()], deliver=FIRST), on_extend_failed="fail")).failure()
    unpaid = Script(prepare=[refusal("SubmissionRefused", "no such key", paid="no")], submit=[])
    await (await rig.generate(unpaid)).failure()
    not_offered = Script(prepare=[refusal("InvalidRequest", "no such model", paid="no")], submit=[])
    await (await rig.start(not_offered, {**REQUEST, "model": "sk-a-key-in-the-wrong-place"})).failure()
    await (await rig.start(Script(prepare=[], submit=[]), REQUEST, "and more")).failure()
    after = await seen()

    assert after.added(before, "longtake_generations_total", "outcome", "model") == {
        ("GenerationFailed", MODEL): 1,
        ("fallback", MODEL): 1,
        ("ExtensionFailed", MODEL): 1,
        ("SubmissionRefused", MODEL): 1,
        ("InvalidRequest", "other"): 2,
    }
    assert after.added(before, "longtake_verdicts_total", "verdict") == {
        ("generate_failed",): 1,
        ("extend_failed",): 2,
    }
    # The document's failures do not say what they cost.
    assert after.added(before, "longtake_quota_total", "task") == {}
    assert after.added(before, "longtake_paid_submissions_total", "task") == {("generation",): 3}
    assert "sk-a-key" not in after.text


@pytest.mark.parametrize(
    ("polls", "charged", "given_back"),
    [
        ([running(10, quota=425_000), extend_failed(quota=0, refunded=True)], 425_000, 425_000),
        ([extend_failed(quota=425_000, refunded=False), extend_failed(quota=0, refunded=True)], 425_000, 425_000),
        ([extend_failed(quota=425_000, refunded=False)] * 2, 425_000, None),
        # What it cost was never told.
        ([extend_failed(quota=0, refunded=True)], None, None),
    ],
)
async def test_a_refund_is_counted_where_the_charge_was(
    rig: Rig, polls: list[TaskRecord], charged: int | None, given_back: int | None
) -> None:
    before = await seen()
    await (await rig.generate(Script(polls=polls, deliver=FIRST))).result()
    after = await seen()
    for name, amount in (("longtake_quota_total", charged), ("longtake_refunded_quota_total", given_back)):
        assert after.added(before, name, "task") == ({("generation",): amount} if amount else {}), name


async def test_a_cancelled_generation_is_counted(rig: Rig) -> None:
    before = await seen()
    generation = await rig.generate(Script(polls=[]))
    await generation.reaches(lambda status: status.stage == "first_segment")
    await generation.handle.cancel()
    await generation.cancellation()
    after = await seen()
    assert after.added(before, "longtake_generations_total", "outcome") == {("Cancelled",): 1}


async def test_a_doubt_is_counted_and_what_comes_of_it(rig: Rig) -> None:
    unknown = refusal("SubmissionOutcomeUnknown", "no answer", slot=1)
    policy = GenerationPolicy(decision_window=timedelta(hours=2))
    before = await seen()
    generation = await rig.generate(
        Script(
            prepare=[policy],
            submit=[unknown],
            reconcile=[Reconciliation(candidates=("task_x",))],
            resolve=[resolved],
            polls=[completed()],
            deliver=FULL,
        )
    )
    await generation.reaches(lambda status: status.decisions)
    waiting = await seen()
    assert waiting.added(before, "longtake_submissions_in_doubt_total", "task", "model") == {("generation", MODEL): 1}
    assert waiting.added(before, "longtake_paid_submissions_total", "task") == {}

    await generation.handle.execute_update("decide", {"action": "adopt", "task_id": TASK_ID})
    await generation.result()
    after = await seen()
    assert after.added(before, "longtake_paid_submissions_total", "task") == {("generation",): 1}
    assert after.added(before, "longtake_quota_total", "task") == {("generation",): 425_000}


async def resolved(_: object) -> Resolution:
    receipt = await accepted(attached=True)(_)  # type: ignore[arg-type] # it does not read its input
    return Resolution(receipt=receipt)


@pytest.mark.parametrize(
    ("fields", "receipt"),
    [
        # What an earlier run of the key paid was counted there.
        ({}, {"attached": True, "submitted_at": "2020-01-01T00:00:00Z"}),
        # Somebody else's money.
        ({"task_id": TASK_ID}, {"attached": True}),
    ],
    ids=["paid by an earlier run", "adopted"],
)
async def test_what_this_run_did_not_pay_is_not_counted_again(
    rig: Rig, fields: dict[str, str], receipt: dict[str, object]
) -> None:
    policy = GenerationPolicy(give_up_after=timedelta(days=100_000))
    before = await seen()
    script = Script(prepare=[policy], submit=[accepted(**receipt)], polls=[completed()], deliver=FULL)
    await (await rig.generate(script, **fields)).result()
    after = await seen()
    assert after.added(before, "longtake_generations_total", "outcome") == {("full",): 1}
    assert after.added(before, "longtake_paid_submissions_total", "task") == {}
    assert after.added(before, "longtake_quota_total", "task") == {}


@pytest.mark.parametrize("polls_per_run", [1, 300])
async def test_an_extension_that_is_paid_for_again_is_counted_separately(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, polls_per_run: int
) -> None:
    monkeypatch.setattr(watching, "POLLS_PER_RUN", polls_per_run)
    policy = GenerationPolicy(extension_retries=1)
    before = await seen()
    generation = await rig.generate(
        Script(
            prepare=[policy],
            polls=[
                running(10, quota=425_000),
                extend_failed(),
                running(60, task_id="task_second", quota=200_000),
                completed(task_id="task_second", quota=200_000),
            ],
            extend=[accepted(task_id="task_second")],
            deliver=[*FIRST, *FULL],
        ),
        on_extend_failed="retry",
    )
    assert (await generation.result()).outcome == "full"
    after = await seen()
    assert after.added(before, "longtake_paid_submissions_total", "task") == {("generation",): 1, ("extension",): 1}
    assert after.added(before, "longtake_quota_total", "task") == {("generation",): 425_000, ("extension",): 200_000}
    assert after.added(before, "longtake_verdicts_total", "verdict", "task") == {
        ("extend_failed", "generation"): 1,
        ("completed", "extension"): 1,
    }


async def test_a_replay_counts_and_logs_nothing(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    generation = await rig.generate(Script(polls=[running(61), completed()], deliver=FULL))
    await generation.result()
    before = await seen()
    assert "stage done" in caplog.text
    caplog.clear()
    replayer = Replayer(
        build_id="tests", data_converter=DATA_CONVERTER, runtime=sdk_runtime(ADDRESS), **workflow_setup()
    )
    await replayer.replay_workflow(await generation.handle.fetch_history())
    after = await seen()
    assert after.ours() == before.ours() != []
    assert "stage" not in caplog.text
