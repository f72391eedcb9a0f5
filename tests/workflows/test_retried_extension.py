"""The extension failed: fallback, fail, ask or retry."""

from datetime import timedelta
from itertools import chain
from typing import Any

import pytest
from temporalio.client import WorkflowExecutionStatus
from temporalio.exceptions import ApplicationErrorCategory

from longtake.models import (
    Attention,
    DeliveryKind,
    Paid,
    Reconciliation,
    Stage,
)
from tests.workflows.cases import EXTENDED, FIRST, PATIENT, RETRYING, UNKNOWN, asking, first_run_status, retrying
from tests.workflows.rig import (
    FIRST_CLIP,
    FULL_VIDEO,
    REQUEST,
    TASK_ID,
    Rig,
    Script,
    accepted,
    again,
    completed,
    delivered,
    extend_failed,
    generate_failed,
    lost,
    refusal,
    running,
)
from workflows.steps import poll as watching

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_fallback_is_the_8_s_clip_with_the_reason(rig: Rig) -> None:
    generation = await rig.generate(Script(polls=[running(30), extend_failed()], deliver=FIRST))

    result = await generation.result()

    assert result.outcome == "fallback"
    assert result.video == result.first_video == FIRST_CLIP
    assert (result.extend_error_code, result.extend_error_message) == ("extend_failed", "线路繁忙,请重试 (E-2003)")
    assert (result.remix_id, result.remix_id_extend) == ("video_first", "video_second")
    assert [input.kind for input in generation.script.inputs("deliver_video")] == [DeliveryKind.FIRST]
    attributes = await generation.attributes()
    assert (attributes["VideoOutcome"], attributes["VideoStage"]) == ("fallback", "done")


CHARGED = extend_failed(quota=425_000, refunded=False)
REFUNDED = extend_failed(quota=0, refunded=True)


@pytest.mark.parametrize(
    ("polls", "receipt", "cost"),
    [
        ([REFUNDED], {}, (0, True)),
        ([CHARGED, REFUNDED], {}, (0, True)),
        ([CHARGED, CHARGED], {}, (425_000, False)),
        ([CHARGED, *[refusal("PollFailing", "502", retried=True)] * 2], {}, (425_000, False)),
        ([CHARGED, refusal("TaskNotFound", "its row was lost")], {}, (425_000, False)),
        ([CHARGED], {"quota": 0, "refunded": True}, (0, True)),
        ([running(10, quota=425_000), extend_failed()], {}, (425_000, None)),
        ([extend_failed()], {"quota": 0, "refunded": True}, (0, True)),
        # An answer of another state knows nothing of refunds.
        ([REFUNDED], {"quota": 425_000}, (0, True)),
        # What the usage log showed is not taken back by the task's own record.
        ([REFUNDED], {"quota": 425_000, "refunded": False}, (0, True)),
        ([extend_failed()], {}, (None, None)),
    ],
)
@pytest.mark.parametrize("wish", ["fallback", "fail"])
async def test_what_a_failed_extension_cost_in_the_end(
    rig: Rig, polls: list[Any], receipt: dict[str, Any], cost: tuple[int | None, bool | None], wish: str
) -> None:
    clip = delivered(FIRST_CLIP).model_copy(update=receipt)
    generation = await rig.generate(Script(polls=polls, deliver=[clip]), on_extend_failed=wish)
    end = await generation.result() if wish == "fallback" else (await generation.failure())[1]
    assert (end.quota, end.refunded) == cost
    assert end.first_video == FIRST_CLIP
    assert generation.script.count("query_generation") == len(polls)


async def test_fail_ends_with_the_clip_stored_and_named(rig: Rig) -> None:
    script = Script(polls=[extend_failed(quota=425_000)], deliver=FIRST)
    generation = await rig.generate(script, on_extend_failed="fail", key="order-18")

    error, details = await generation.failure()

    assert (error.type, error.message) == ("ExtensionFailed", "线路繁忙,请重试 (E-2003)")
    assert error.category is ApplicationErrorCategory.BENIGN
    assert details.first_video == FIRST_CLIP
    assert (details.key, details.model, details.paid) == ("order-18", REQUEST["model"], Paid.YES)
    assert (details.task_id, details.remix_id, details.remix_id_extend) == (TASK_ID, "video_first", "video_second")
    assert (details.gateway_code, details.quota, details.request_id) == ("extend_failed", 425_000, "req-1")
    assert FIRST_CLIP.uri in details.advice
    status = await generation.status()
    assert (status.stage, status.first_video, status.video) == (Stage.FAILED, FIRST_CLIP, None)
    assert (await generation.attributes())["VideoOutcome"] == "ExtensionFailed"


async def test_retry_is_not_configured_and_says_so(rig: Rig) -> None:
    generation = await rig.generate(Script(polls=[extend_failed()], deliver=FIRST), on_extend_failed="retry")
    result = await generation.result()
    assert result.outcome == "fallback"
    assert result.warnings == ("the extension was not retried: no gateway that does it is configured",)
    assert generation.script.count("submit_generation") == 1


async def test_ask_saves_the_clip_first_and_waits_for_a_decision(rig: Rig) -> None:
    generation = await asking(rig)
    assert generation.script.count("deliver_video") == 1
    await rig.pass_time(timedelta(days=30))
    status = await generation.status()
    assert (status.stage, status.attention) == (Stage.AWAITING_DECISION, Attention.NEEDS_DECISION)
    assert status.first_video == FIRST_CLIP
    assert (status.decisions, "accept" in status.advice) == (("accept",), True)
    assert (await generation.attributes())["VideoAttention"] == "needs_decision"

    await generation.handle.execute_update("decide", {"action": "accept"})

    result = await generation.result()
    assert (result.outcome, result.video) == ("fallback", FIRST_CLIP)
    assert await generation.attributes() == {
        "VideoModel": REQUEST["model"],
        "VideoStage": "done",
        "VideoOutcome": "fallback",
        "VideoPaid": "yes",
        "GatewayTaskId": TASK_ID,
    }


async def test_nobody_decides_about_the_extension_in_time(rig: Rig) -> None:
    script = Script(prepare=[PATIENT], polls=[extend_failed()], deliver=FIRST)
    generation = await rig.generate(script, on_extend_failed="ask")
    result = await generation.result()
    assert (result.outcome, result.warnings) == ("fallback", ("nobody decided in time: the 8 s clip is the result",))


def extended(number: int) -> Any:
    return accepted(task_id=f"task_extend_{number}")


async def test_who_accepts_the_clip_pays_for_no_retry_that_was_offered(rig: Rig) -> None:
    policy = RETRYING.model_copy(update={"decision_window": timedelta(hours=5)})
    script = Script(prepare=[policy], polls=[extend_failed()], extend=[], deliver=FIRST)
    generation = await rig.generate(script, on_extend_failed="ask")
    await rig.pass_time(timedelta(minutes=4))
    status = await generation.reaches(lambda status: status.stage is Stage.AWAITING_DECISION)
    assert set(status.decisions) == {"accept", "retry"}
    assert status.decide_by
    left = status.decide_by - await rig.environment.get_current_time()
    assert timedelta(hours=4) < left <= timedelta(hours=5)
    await generation.handle.execute_update("decide", {"action": "accept"})
    result = await generation.result()
    assert (result.outcome, result.warnings, script.count("submit_extension")) == ("fallback", (), 0)


async def test_retried_extension_upgrades_the_result(rig: Rig) -> None:
    script = retrying(running(40), completed(**EXTENDED))
    generation = await rig.generate(script, on_extend_failed="retry", key="order-40")

    result = await generation.result()

    assert (result.outcome, result.video, result.first_video) == ("full", FULL_VIDEO, FIRST_CLIP)
    assert (result.task_id, result.extension_task_id, result.warnings) == (TASK_ID, "task_extend_1", ())
    assert result.remix_id_extend == "video_second", "an upstream id, never a task of the gateway"
    (input,) = generation.script.inputs("submit_extension")
    assert (input.ledger_key, input.extension.remix_id) == ("order-40#extend-1", "video_first")
    first, *later = generation.script.inputs("query_generation")
    assert [(poll.task_id, poll.extension) for poll in (first, *later)] == [
        (TASK_ID, False),
        ("task_extend_1", True),
        ("task_extend_1", True),
    ]
    clip, video = generation.script.inputs("deliver_video")
    assert (clip.kind, clip.extension, video.kind, video.extension, video.task_id) == (
        DeliveryKind.FIRST,
        False,
        DeliveryKind.FULL,
        True,
        "task_extend_1",
    )


async def test_clip_is_safe_before_the_extension_is_paid_again(rig: Rig) -> None:
    generation = await rig.generate(retrying(completed()), on_extend_failed="retry")
    await generation.result()
    names = [name for name, _ in generation.script.calls]
    assert names.index("deliver_video") < names.index("submit_extension")


async def test_extension_is_retried_as_often_as_allowed_and_then_the_clip_is_the_result(rig: Rig) -> None:
    script = retrying(
        generate_failed(error_message="busy"),
        extend_failed(error_message="still busy"),
        extend=[extended(1), extended(2)],
        deliver=FIRST,
    )
    generation = await rig.generate(script, on_extend_failed="retry", key="order-41")
    result = await generation.result()
    assert (result.outcome, result.video) == ("fallback", FIRST_CLIP)
    assert result.warnings == (
        "retry 1 of the extension (task task_extend_1) failed: busy",
        "retry 2 of the extension (task task_extend_2) failed: still busy",
    )
    assert (result.extend_error_code, result.extend_error_message) == ("extend_failed", "线路繁忙,请重试 (E-2003)")
    assert [input.ledger_key for input in generation.script.inputs("submit_extension")] == [
        "order-41#extend-1",
        "order-41#extend-2",
    ]


async def test_decision_to_retry_pays_for_the_extension_again(rig: Rig) -> None:
    generation = await rig.generate(retrying(completed()), on_extend_failed="ask")
    await rig.pass_time(timedelta(seconds=70))
    status = await generation.reaches(lambda status: status.stage is Stage.AWAITING_DECISION)
    assert status.decisions == ("accept", "retry")
    await generation.handle.execute_update("decide", {"action": "retry"})
    assert (await generation.result()).outcome == "full"


async def test_extension_without_a_remix_id_cannot_be_retried(rig: Rig) -> None:
    script = retrying(polls=[extend_failed(remix_id=None)], extend=[], deliver=FIRST)
    generation = await rig.generate(script, on_extend_failed="retry")
    assert (await generation.result()).warnings == ("the extension was not retried: its remix_id is not known",)


async def test_remix_id_of_an_earlier_poll_is_enough_for_a_retry(rig: Rig) -> None:
    polls = [running(20, remix_id="video_first"), extend_failed(remix_id=None), completed()]
    generation = await rig.generate(retrying(polls=polls), on_extend_failed="retry")
    assert (await generation.result()).outcome == "full"
    assert generation.script.inputs("submit_extension")[0].extension.remix_id == "video_first"


async def test_extension_of_unknown_outcome_is_never_paid_again_by_itself(rig: Rig) -> None:
    script = retrying(completed(), extend=[UNKNOWN, extended(2)], reconcile=[Reconciliation()])
    generation = await rig.generate(script, on_extend_failed="retry")
    result = await generation.result()
    assert generation.script.count("submit_extension") == 1, "nobody knows whether the first retry was paid"
    assert (result.outcome, result.video) == ("fallback", FIRST_CLIP)
    assert "no answer" in result.warnings[0]


async def test_download_that_fails_never_pays_for_another_extension(rig: Rig) -> None:
    gone = refusal("DeliveryFailed", "every source says it is gone")
    script = retrying(completed(**EXTENDED), extend=[extended(1), extended(2)], deliver=[*FIRST, gone])
    generation = await rig.generate(script, on_extend_failed="retry")
    error, details = await generation.failure()
    assert (error.type, error.message) == ("DeliveryFailed", "every source says it is gone")
    assert generation.script.count("submit_extension") == 1, "the 15 s video was made and paid"
    assert (details.paid, details.first_video) == (Paid.YES, FIRST_CLIP)


async def test_extension_that_gets_lost_is_not_paid_twice(rig: Rig) -> None:
    policy = RETRYING.model_copy(update={"lost_grace": timedelta(minutes=2)})
    script = retrying(
        prepare=[policy],
        polls=chain([extend_failed()], again(lost(error_message="upstream returned error"))),
        extend=[extended(1), extended(2)],
        deliver=FIRST,
    )
    generation = await rig.generate(script, on_extend_failed="retry")
    result = await generation.result()
    assert generation.script.count("submit_extension") == 1, "the first retry was paid, and may still be made"
    assert result.outcome == "fallback"


async def test_retried_extension_is_watched_across_continue_as_new(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLLS_PER_RUN", 2)
    script = retrying(running(20), running(30), running(40), completed(**EXTENDED))
    generation = await rig.generate(script, on_extend_failed="retry")
    result = await generation.result()
    assert (result.outcome, result.polls, result.first_video) == ("full", 5, FIRST_CLIP)
    assert (result.extension_task_id, result.remix_id_extend) == ("task_extend_1", "video_second")
    names = [name for name, _ in script.calls]
    assert (names.count("submit_generation"), names.count("submit_extension"), names.count("deliver_video")) == (
        1,
        1,
        2,
    )
    assert await first_run_status(rig, generation) is WorkflowExecutionStatus.CONTINUED_AS_NEW
