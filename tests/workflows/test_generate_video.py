"""Every way a generation can go, on the time-skipping server."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain, pairwise
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowExecutionDescription, WorkflowExecutionStatus, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from longtake.display import prose
from longtake.models import (
    Attention,
    ClosedSubmission,
    DeliveryKind,
    FailureDetails,
    GenerateVideoInput,
    GenerationPolicy,
    Paid,
    PollSchedule,
    ReconcileInput,
    Reconciliation,
    Resolution,
    Stage,
    SubmissionReceipt,
    TaskState,
)
from longtake.request.rules import prompt_path
from tests.workflows.rig import (
    FIRST_CLIP,
    FULL_VIDEO,
    REQUEST,
    TASK_ID,
    Generation,
    Held,
    Rig,
    Script,
    accepted,
    again,
    changing,
    completed,
    delivered,
    extend_failed,
    generate_failed,
    lost,
    refusal,
    running,
    server_now,
)
from workflows.steps import poll as watching
from workflows.steps.resolve import CONFIRM_NOT_CHARGED

pytestmark = pytest.mark.asyncio(loop_scope="session")

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
FULL = (delivered(FULL_VIDEO),)
NOTHING_SENT = ClosedSubmission()
FIRST = (delivered(FIRST_CLIP),)


async def closed_as_paid(input: Any) -> ClosedSubmission:
    """An attempt that nobody heard of was paid."""
    return ClosedSubmission(receipt=await accepted(attached=True)(input))


def summaries(generation_events: Any) -> list[str]:
    return [
        event.user_metadata.summary.data.decode() for event in generation_events if event.user_metadata.summary.data
    ]


# --- A video ---------------------------------------------------------------------------------------------------------


async def test_full_video_is_delivered_and_everything_about_it_is_told(rig: Rig) -> None:
    polls_of_task = [running(10), running(61, remix_id="video_first", remix_id_extend="video_second"), completed()]
    generation = await rig.generate(Script(polls_of_task=polls_of_task, deliver=FULL), key="order-17")

    result = await generation.result()

    assert result.outcome == "full"
    assert result.video == FULL_VIDEO
    assert result.first_video is None
    assert (result.model, result.task_id) == (REQUEST["model"], TASK_ID)
    assert (result.remix_id, result.remix_id_extend, result.quota) == ("video_first", "video_second", 425_000)
    assert (result.polls, result.warnings) == (3, ())
    assert (result.extend_error_code, result.extend_error_message) == (None, None)
    assert [name for name, _ in generation.script.calls] == [
        "prepare_generation",
        "submit_generation",
        "query_generation",
        "query_generation",
        "query_generation",
        "deliver_video",
    ]
    (submitted,) = generation.script.orders("submit_generation")
    assert (submitted.key, submitted.request) == ("order-17", GenerateVideoInput(**REQUEST))
    (input,) = generation.script.orders("deliver_video")
    assert (input.key, input.task_id, input.kind) == ("order-17", TASK_ID, DeliveryKind.FULL)
    assert (input.width, input.height) == (None, None)
    assert await generation.attributes() == {
        "VideoModel": REQUEST["model"],
        "VideoStage": "done",
        "VideoOutcome": "full",
        "VideoPaid": "yes",
        "GatewayTaskId": TASK_ID,
    }


async def test_where_the_task_lives_goes_with_every_look_and_delivery(rig: Rig) -> None:
    home = {"gateway": "https://gateway.example", "account": "0123456789abcdef"}
    retried = {"gateway": "https://extend.example", "account": "fedcba9876543210"}
    generation = await rig.generate(
        Script(
            prepare=(GenerationPolicy(extension_retries=1),),
            submit=(accepted(**home),),
            polls_of_task=[extend_failed(), completed(task_id="task_extend")],
            deliver=(delivered(FIRST_CLIP), delivered(FULL_VIDEO)),
            extend=(accepted(task_id="task_extend", **retried),),
        ),
        on_extend_failed="retry",
    )
    assert (await generation.result()).outcome == "full"
    for name in ("query_generation", "deliver_video"):
        first, second = generation.script.orders(name)
        assert [(one.gateway, one.account) for one in (first, second)] == [
            tuple(home.values()),
            tuple(retried.values()),
        ]


@pytest.mark.parametrize("kind", ["WrongGateway", "TaskNotVisible"])
async def test_a_worker_that_cannot_see_the_task_never_makes_it_lost(rig: Rig, kind: str) -> None:
    """`TaskNotFound` for that long would end it: its row is missing."""
    elsewhere = refusal(kind, "the task lives at https://elsewhere.example", retried=True, paid=Paid.YES)
    generation = await rig.generate(Script(polls_of_task=changing(6 * HOUR, elsewhere, completed()), deliver=FULL))
    assert (await generation.result()).outcome == "full"


async def test_closed_generation_still_answers_and_its_page_tells_the_story(rig: Rig) -> None:
    generation = await rig.generate(Script(polls_of_task=[completed()], deliver=FULL))
    await generation.result()

    status = await generation.status()
    assert (status.stage, status.outcome, status.video, status.polls) == (Stage.DONE, "full", FULL_VIDEO, 1)
    assert (status.task_id, status.remix_id, status.next_poll_at) == (TASK_ID, "video_first", None)
    page = await generation.page()
    assert page.startswith("**done**: the 15 s video is stored")
    for told in (TASK_ID, "video_first", "video_second", FULL_VIDEO.uri, "outcome: full"):
        assert told in page


async def test_page_of_a_running_generation_names_stage_task_and_next_look(rig: Rig) -> None:
    generation = await rig.generate(
        Script(polls_of_task=[running(61, remix_id="video_first"), completed()], deliver=FULL)
    )
    await rig.pass_time(timedelta(seconds=70))

    status = await generation.reaches(lambda status: status.polls == 1 and status.next_poll_at)
    assert (status.stage, status.progress) == (Stage.EXTENDING, 61)
    page = await generation.page()
    assert page.startswith("**extending** 61 %: the extension (7 s) is being made")
    assert f"- next look: {status.next_poll_at:%H:%M:%S} UTC" in page
    assert f"- task: `{TASK_ID}`" in page
    assert "- first segment: `video_first`" in page
    await generation.result()


async def test_page_says_that_there_is_nothing_to_do(rig: Rig) -> None:
    generation = await rig.generate(Script(polls_of_task=[completed()], deliver=FULL))
    await generation.result()
    assert "**What to do:** nothing." in await generation.page()


@pytest.mark.parametrize("hidden", [True, False])
async def test_prompts_that_were_to_be_hidden_and_are_not_are_warned_of(rig: Rig, hidden: bool) -> None:
    prompts = {name: prompt_path(REQUEST[name]) for name in ("prompt", "prompt_extend")} if hidden else {}
    script = Script(prepare=[GenerationPolicy(hide_prompts=True)], polls_of_task=[completed()], deliver=FULL)
    generation = await rig.generate(script, **prompts)
    assert [("LONGTAKE_HIDE_PROMPTS" in warning) for warning in (await generation.result()).warnings] == [True] * (
        not hidden
    )
    (look,) = script.orders("query_generation")
    assert look.hide_words is hidden


async def test_history_tells_the_story_by_summaries_and_has_no_failed_task(rig: Rig) -> None:
    generation = await rig.generate(Script(polls_of_task=[running(10), completed()], deliver=FULL))
    await generation.result()

    events = await generation.events()
    told = summaries(events)
    assert '"submit veo_3_1-fast-remix: paid, at most once"' in told
    assert '"until look 1: first_segment"' in told
    assert '"look 2"' in told
    assert '"bring home the 15 s video"' in told
    kinds = [event.event_type for event in events]
    assert EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED in kinds
    assert EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED not in kinds


@pytest.mark.parametrize(
    ("fields", "picture", "warned"),
    [
        ({"size": "720x1280"}, (720, 1280), False),
        ({"size": "1920x1080", "model": "veo_3_1-hd-remix"}, (1920, 1080), False),
        ({"size": "1920x1080"}, (None, None), True),
    ],
)
async def test_the_picture_asked_for_is_checked_unless_the_model_cannot_make_it(
    rig: Rig, fields: dict[str, str], picture: tuple[int | None, int | None], warned: bool
) -> None:
    generation = await rig.generate(Script(polls_of_task=[completed()], deliver=FULL), **fields)

    result = await generation.result()

    (input,) = generation.script.orders("deliver_video")
    assert (input.width, input.height) == picture
    assert [("not an -hd model" in warning) for warning in result.warnings] == [True] * warned


async def test_warnings_of_the_delivery_are_in_the_result(rig: Rig) -> None:
    late = [delivered(FULL_VIDEO, "the video has 1280x720, 1920x1080 was asked for")]
    generation = await rig.generate(Script(polls_of_task=[completed()], deliver=late))
    assert (await generation.result()).warnings == ("the video has 1280x720, 1920x1080 was asked for",)


async def test_delivery_is_tried_until_it_works(rig: Rig) -> None:
    trouble = [refusal("DeliveryFailed", "no source gives a whole video", retried=True)] * 5
    generation = await rig.generate(Script(polls_of_task=[completed()], deliver=[*trouble, *FULL]))
    assert (await generation.result()).outcome == "full"
    assert generation.script.count("deliver_video") == 6


async def test_delivery_that_takes_long_is_shown_and_goes_on(rig: Rig) -> None:
    dies = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    no = refusal("StoreRefused", "the disk is full", retried=True, paid=Paid.YES)
    shown = Held(delivered(FULL_VIDEO))
    deliver = chain(changing_until(timedelta(minutes=11), no), [shown])
    generation = await rig.generate(Script(polls_of_task=[completed(link_expires_at=dies)], deliver=deliver))
    await generation.skip_to(shown)

    status = await generation.status()
    assert (status.stage, status.attention) == (Stage.DELIVERING, Attention.DELIVERY_FAILING)
    assert status.last_problem
    assert (await generation.attributes())["VideoAttention"] == "delivery_failing"
    page = await generation.page()
    for told in (prose(status.last_problem), "it dies at 2030-01-02 03:04:05 UTC"):
        assert told in page

    shown.let_go()
    assert (await generation.result()).outcome == "full"
    assert "VideoAttention" not in await generation.attributes()
    assert "dies at" not in await generation.page(), "what is stored needs no link"
    assert (await generation.status()).last_problem is None
    assert await delivery_activities(generation) == 1, "one activity for the whole window"


async def test_one_attempt_of_a_delivery_may_take_the_whole_window(rig: Rig) -> None:
    """What is slow and well is not begun again at its first byte."""
    policy = GenerationPolicy(delivery_window=timedelta(hours=5))
    generation = await rig.generate(Script(prepare=[policy], polls_of_task=[completed()], deliver=FULL))
    await generation.result()
    ((attempt, all_attempts),) = [
        (step.start_to_close_timeout.ToTimedelta(), step.schedule_to_close_timeout.ToTimedelta())
        for event in await generation.events()
        if (step := event.activity_task_scheduled_event_attributes).activity_type.name == "deliver_video"
    ]
    assert attempt == all_attempts == timedelta(hours=5)


async def delivery_activities(generation: Generation) -> int:
    return sum(
        event.activity_task_scheduled_event_attributes.activity_type.name == "deliver_video"
        for event in await generation.events()
    )


# --- The full video has trouble, and the first clip is there ---------------------------------------------------------

BOTH: dict[str, Any] = {"has_first_video_link": True}


def by_kind(full: Any, first: Any) -> Iterator[Any]:
    """Answers for the two clips, whichever is asked for: each the same for ever, or an iterator of its own."""
    answers = {
        kind: iter(answer) if isinstance(answer, Iterator) else again(answer)
        for kind, answer in ((DeliveryKind.FULL, full), (DeliveryKind.FIRST, first))
    }

    async def answer(input: Any) -> Any:
        given = next(answers[input.kind])
        if isinstance(given, BaseException):
            raise given.with_traceback(None)
        return await given(input) if callable(given) else given

    return again(answer)


NO_FULL = refusal("DeliveryFailed", "the full video could not be downloaded", retried=True, paid=Paid.YES)


async def test_the_first_clip_is_stored_where_the_full_video_can_never_be_had(rig: Rig) -> None:
    script = Script(polls_of_task=[completed(**BOTH)], deliver=by_kind(NO_FULL, delivered(FIRST_CLIP)))
    generation = await rig.generate(script, key="order-19")

    error, details = await generation.failure()

    assert error.type == "DeliveryFailed"
    assert details.first_video == FIRST_CLIP
    status = await generation.status()
    assert status.first_video == FIRST_CLIP
    began = generation.script.times("deliver_video")
    kinds = [input.kind for input in generation.script.orders("deliver_video")]
    assert kinds.count(DeliveryKind.FIRST) == 1
    assert began[kinds.index(DeliveryKind.FIRST)] - began[0] < timedelta(minutes=11), "while its link lives"
    assert began[-1] - began[0] > timedelta(hours=23), "the full one is tried to the end of its window"


async def test_the_first_clip_is_shown_while_the_full_video_is_still_tried(rig: Rig) -> None:
    held = Held(delivered(FULL_VIDEO))
    full = chain(changing_until(timedelta(minutes=40), NO_FULL), [held])
    script = Script(polls_of_task=[completed(**BOTH)], deliver=by_kind(full, delivered(FIRST_CLIP)))
    generation = await rig.generate(script)
    await generation.skip_to(held)
    status = await generation.status()
    assert (status.first_video, status.attention) == (FIRST_CLIP, Attention.DELIVERY_FAILING)
    assert FIRST_CLIP.uri in await generation.page()

    held.let_go()
    result = await generation.result()

    assert (result.outcome, result.video, result.first_video) == ("full", FULL_VIDEO, FIRST_CLIP)
    assert len(result.warnings) == 1


@pytest.mark.parametrize("keep_first", [False, True])
async def test_a_first_clip_that_was_saved_meanwhile_is_not_stored_again(rig: Rig, *, keep_first: bool) -> None:
    full = chain(changing_until(timedelta(minutes=40), NO_FULL), again(delivered(FULL_VIDEO)))
    script = Script(polls_of_task=[completed(**BOTH)], deliver=by_kind(full, delivered(FIRST_CLIP)))
    generation = await rig.generate(script, keep_first=keep_first)
    assert (await generation.result()).first_video == FIRST_CLIP
    kinds = [input.kind for input in generation.script.orders("deliver_video")]
    assert kinds.count(DeliveryKind.FIRST) == 1


async def test_a_full_video_that_is_gone_for_good_leaves_the_first_clip(rig: Rig) -> None:
    gone = refusal("DeliveryFailed", "gone", paid=Paid.YES)
    trouble = refusal("DeliveryFailed", "502", retried=True, paid=Paid.YES)
    first = chain([trouble] * 5, again(delivered(FIRST_CLIP)))
    generation = await rig.generate(Script(polls_of_task=[completed(**BOTH)], deliver=by_kind(gone, first)))
    error, details = await generation.failure()
    assert (error.type, error.message, details.first_video) == ("DeliveryFailed", "gone", FIRST_CLIP)


async def test_neither_clip_can_be_had(rig: Rig) -> None:
    gone = refusal("DeliveryFailed", "gone", paid=Paid.YES)
    script = Script(polls_of_task=[completed(**BOTH)], deliver=by_kind(NO_FULL, gone))
    generation = await rig.generate(script)
    error, details = await generation.failure()
    assert (error.type, details.first_video) == ("DeliveryFailed", None)
    assert [input.kind for input in generation.script.orders("deliver_video")].count(DeliveryKind.FIRST) == 1


async def test_a_full_video_that_comes_ends_the_search_for_the_first_clip(own_rig: Rig) -> None:
    full = chain(changing_until(timedelta(minutes=40), NO_FULL), again(delivered(FULL_VIDEO)))
    never = refusal("DeliveryFailed", "502", retried=True, paid=Paid.YES)
    generation = await own_rig.generate(Script(polls_of_task=[completed(**BOTH)], deliver=by_kind(full, never)))
    result = await generation.result()
    assert (result.outcome, result.first_video, result.warnings) == ("full", None, ())


def changing_until(after: timedelta, answer: Any) -> Iterator[Any]:
    """The same answer until so much time has passed since the first call; then none more."""
    first: list[datetime] = []
    while not first or first[-1] - first[0] < after:
        yield _noting(first, answer)


def _noting(times: list[datetime], answer: Any) -> Any:
    async def note(_: Any) -> Any:
        times.append(server_now())
        raise answer.with_traceback(None)

    return note


# --- The extension failed --------------------------------------------------------------------------------------------


async def test_fallback_is_the_8_s_clip_with_the_reason(rig: Rig) -> None:
    generation = await rig.generate(Script(polls_of_task=[running(30), extend_failed()], deliver=FIRST))

    result = await generation.result()

    assert result.outcome == "fallback"
    assert result.video == result.first_video == FIRST_CLIP
    assert (result.extend_error_code, result.extend_error_message) == ("extend_failed", "线路繁忙,请重试 (E-2003)")
    assert (result.remix_id, result.remix_id_extend) == ("video_first", "video_second")
    assert [input.kind for input in generation.script.orders("deliver_video")] == [DeliveryKind.FIRST]
    attributes = await generation.attributes()
    assert (attributes["VideoOutcome"], attributes["VideoStage"]) == ("fallback", "done")


CHARGED = extend_failed(quota=425_000, refunded=False)
REFUNDED = extend_failed(quota=0, refunded=True)


@pytest.mark.parametrize(
    ("looks", "receipt", "cost"),
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
        # What the usage log told is not taken back by the task's own record.
        ([REFUNDED], {"quota": 425_000, "refunded": False}, (0, True)),
        ([extend_failed()], {}, (None, None)),
    ],
)
@pytest.mark.parametrize("wish", ["fallback", "fail"])
async def test_what_a_failed_extension_cost_in_the_end(
    rig: Rig, polls_of_task: list[Any], receipt: dict[str, Any], cost: tuple[int | None, bool | None], wish: str
) -> None:
    clip = delivered(FIRST_CLIP).model_copy(update=receipt)
    generation = await rig.generate(Script(polls_of_task=polls_of_task, deliver=[clip]), on_extend_failed=wish)
    end = await generation.result() if wish == "fallback" else (await generation.failure())[1]
    assert (end.quota, end.refunded) == cost
    assert end.first_video == FIRST_CLIP
    assert generation.script.count("query_generation") == len(polls_of_task)


async def test_fail_ends_with_the_clip_stored_and_named(rig: Rig) -> None:
    script = Script(polls_of_task=[extend_failed(quota=425_000)], deliver=FIRST)
    generation = await rig.generate(script, on_extend_failed="fail", key="order-18")

    error, details = await generation.failure()

    assert (error.type, error.message) == ("ExtensionFailed", "线路繁忙,请重试 (E-2003)")
    assert error.category is ApplicationErrorCategory.BENIGN
    assert details.first_video == FIRST_CLIP
    assert (details.key, details.model, details.paid) == ("order-18", REQUEST["model"], Paid.YES)
    assert (details.task_id, details.remix_id, details.remix_id_extend) == (TASK_ID, "video_first", "video_second")
    assert (details.gateway_code, details.quota, details.request_id) == ("extend_failed", 425_000, "req-1")
    assert "first_video" in details.advice
    status = await generation.status()
    assert (status.stage, status.first_video, status.video) == (Stage.FAILED, FIRST_CLIP, None)
    assert (await generation.attributes())["VideoOutcome"] == "ExtensionFailed"


async def test_retry_is_not_configured_and_says_so(rig: Rig) -> None:
    generation = await rig.generate(Script(polls_of_task=[extend_failed()], deliver=FIRST), on_extend_failed="retry")
    result = await generation.result()
    assert result.outcome == "fallback"
    assert result.warnings == ("the extension was not retried: no gateway that does it is configured",)
    assert generation.script.count("submit_generation") == 1


async def asking(rig: Rig) -> Generation:
    """A generation that awaits a decision."""
    generation = await rig.generate(Script(polls_of_task=[extend_failed()], deliver=FIRST), on_extend_failed="ask")
    await rig.pass_time(timedelta(seconds=70))
    await generation.reaches(lambda status: status.stage is Stage.AWAITING_DECISION)
    return generation


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


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        ({"action": "retry"}, "retry is not offered now; choose one of: accept"),
        ({"action": "adopt", "task_id": "t"}, "adopt is not offered now; choose one of: accept"),
        ({"action": "burn"}, None),
        ({"action": "accept", "by": "me"}, None),
        (None, None),
        ([], None),
    ],
)
async def test_wrong_decision_is_rejected_and_leaves_no_trace(rig: Rig, decision: Any, said: str | None) -> None:
    generation = await asking(rig)

    with pytest.raises(WorkflowUpdateFailedError) as rejection:
        await generation.handle.execute_update("decide", decision)

    if said:
        assert isinstance(rejection.value.cause, ApplicationError)
        assert (rejection.value.cause.type, rejection.value.cause.message) == ("NotOffered", said)
    assert (await generation.status()).stage is Stage.AWAITING_DECISION
    await generation.handle.execute_update("decide", {"action": "accept"})
    assert (await generation.result()).outcome == "fallback"
    kinds = [event.event_type for event in await generation.events()]
    assert kinds.count(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED) == 1


async def test_decision_that_nobody_asked_for_is_rejected(rig: Rig) -> None:
    generation = await rig.generate(Script(polls_of_task=[completed()], deliver=FULL))
    await generation.reaches(lambda status: status.next_poll_at)

    with pytest.raises(WorkflowUpdateFailedError) as rejection:
        await generation.handle.execute_update("decide", {"action": "accept"})

    assert isinstance(rejection.value.cause, ApplicationError)
    assert (rejection.value.cause.type, rejection.value.cause.message) == ("NotAwaited", "no decision is awaited now")
    assert (await generation.result()).outcome == "full"


async def test_nobody_decides_about_the_extension_in_time(rig: Rig) -> None:
    script = Script(prepare=[PATIENT], polls_of_task=[extend_failed()], deliver=FIRST)
    generation = await rig.generate(script, on_extend_failed="ask")
    result = await generation.result()
    assert (result.outcome, result.warnings) == ("fallback", ("nobody decided in time: the 8 s clip is the result",))


# --- The extension is paid for again ---------------------------------------------------------------------------------

RETRYING = GenerationPolicy(extension_retries=2)
EXTENDED = delivered(FULL_VIDEO)


def again_extended(number: int = 1) -> Any:
    return accepted(task_id=f"task_extend_{number}")


async def test_retried_extension_upgrades_the_result(rig: Rig) -> None:
    polls_of_task = [extend_failed(), running(40), completed(task_id="task_extend_1")]
    script = Script(
        prepare=[RETRYING], polls_of_task=polls_of_task, extend=[again_extended()], deliver=[*FIRST, EXTENDED]
    )
    generation = await rig.generate(script, on_extend_failed="retry", key="order-40")

    result = await generation.result()

    assert (result.outcome, result.video, result.first_video) == ("full", FULL_VIDEO, FIRST_CLIP)
    assert (result.task_id, result.extension_task_id, result.warnings) == (TASK_ID, "task_extend_1", ())
    assert result.remix_id_extend == "video_second", "an upstream id, never a task of the gateway"
    (input,) = generation.script.orders("submit_extension")
    assert (input.ledger_key, input.extension.remix_id) == ("order-40#extend-1", "video_first")
    first, *later = generation.script.orders("query_generation")
    assert [(look.task_id, look.extension) for look in (first, *later)] == [
        (TASK_ID, False),
        ("task_extend_1", True),
        ("task_extend_1", True),
    ]
    clip, video = generation.script.orders("deliver_video")
    assert (clip.kind, clip.extension, video.kind, video.extension, video.task_id) == (
        DeliveryKind.FIRST,
        False,
        DeliveryKind.FULL,
        True,
        "task_extend_1",
    )


async def test_clip_is_safe_before_the_extension_is_paid_again(rig: Rig) -> None:
    script = Script(
        prepare=[RETRYING],
        polls_of_task=[extend_failed(), completed()],
        extend=[again_extended()],
        deliver=[*FIRST, EXTENDED],
    )
    generation = await rig.generate(script, on_extend_failed="retry")
    await generation.result()
    names = [name for name, _ in generation.script.calls]
    assert names.index("deliver_video") < names.index("submit_extension")


async def test_extension_is_retried_as_often_as_allowed_and_then_the_clip_is_the_result(rig: Rig) -> None:
    script = Script(
        prepare=[RETRYING],
        polls_of_task=[
            extend_failed(),
            generate_failed(error_message="busy"),
            extend_failed(error_message="still busy"),
        ],
        extend=[again_extended(1), again_extended(2)],
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
    assert [input.ledger_key for input in generation.script.orders("submit_extension")] == [
        "order-41#extend-1",
        "order-41#extend-2",
    ]


async def test_decision_to_retry_pays_for_the_extension_again(rig: Rig) -> None:
    script = Script(
        prepare=[RETRYING],
        polls_of_task=[extend_failed(), completed()],
        extend=[again_extended()],
        deliver=[*FIRST, EXTENDED],
    )
    generation = await rig.generate(script, on_extend_failed="ask")
    await rig.pass_time(timedelta(seconds=70))
    status = await generation.reaches(lambda status: status.stage is Stage.AWAITING_DECISION)
    assert status.decisions == ("accept", "retry")
    await generation.handle.execute_update("decide", {"action": "retry"})
    assert (await generation.result()).outcome == "full"


async def test_extension_without_a_remix_id_cannot_be_retried(rig: Rig) -> None:
    script = Script(prepare=[RETRYING], polls_of_task=[extend_failed(remix_id=None)], deliver=FIRST)
    generation = await rig.generate(script, on_extend_failed="retry")
    assert (await generation.result()).warnings == ("the extension was not retried: its remix_id is not known",)


async def test_remix_id_that_was_told_earlier_is_enough_for_a_retry(rig: Rig) -> None:
    polls_of_task = [running(20, remix_id="video_first"), extend_failed(remix_id=None), completed()]
    script = Script(
        prepare=[RETRYING], polls_of_task=polls_of_task, extend=[again_extended()], deliver=[*FIRST, EXTENDED]
    )
    generation = await rig.generate(script, on_extend_failed="retry")
    assert (await generation.result()).outcome == "full"
    assert generation.script.orders("submit_extension")[0].extension.remix_id == "video_first"


async def test_extension_of_unknown_outcome_is_never_paid_again_by_itself(rig: Rig) -> None:
    unknown = refusal("SubmissionOutcomeUnknown", "no answer", paid=Paid.UNKNOWN, slot=1)
    script = Script(
        prepare=[RETRYING],
        polls_of_task=[extend_failed(), completed()],
        extend=[unknown, again_extended(2)],
        reconcile=[Reconciliation()],
        deliver=[*FIRST, EXTENDED],
    )
    generation = await rig.generate(script, on_extend_failed="retry")
    result = await generation.result()
    assert generation.script.count("submit_extension") == 1, "nobody knows whether the first retry was paid"
    assert (result.outcome, result.video) == ("fallback", FIRST_CLIP)
    assert "no answer" in result.warnings[0]


async def test_download_that_fails_never_pays_for_another_extension(rig: Rig) -> None:
    gone = refusal("DeliveryFailed", "every source says it is gone")
    script = Script(
        prepare=[RETRYING],
        polls_of_task=[extend_failed(), completed(task_id="task_extend_1")],
        extend=[again_extended(1), again_extended(2)],
        deliver=[*FIRST, gone],
    )
    generation = await rig.generate(script, on_extend_failed="retry")
    error, details = await generation.failure()
    assert (error.type, error.message) == ("DeliveryFailed", "every source says it is gone")
    assert generation.script.count("submit_extension") == 1, "the 15 s video was made and paid"
    assert (details.paid, details.first_video) == (Paid.YES, FIRST_CLIP)


async def test_extension_that_is_not_heard_of_again_is_not_paid_twice(rig: Rig) -> None:
    script = Script(
        prepare=[RETRYING],
        polls_of_task=chain([extend_failed()], again(lost(error_message="upstream returned error"))),
        extend=[again_extended(1), again_extended(2)],
        deliver=FIRST,
    )
    generation = await rig.generate(script, on_extend_failed="retry")
    result = await generation.result()
    assert generation.script.count("submit_extension") == 1, "the first retry was paid, and may still be made"
    assert result.outcome == "fallback"


async def test_retried_extension_is_watched_across_continue_as_new(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLLS_PER_RUN", 2)
    polls_of_task = [extend_failed(), running(20), running(30), running(40), completed(task_id="task_extend_1")]
    script = Script(
        prepare=[RETRYING], polls_of_task=polls_of_task, extend=[again_extended()], deliver=[*FIRST, EXTENDED]
    )
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


# --- The first 8 s beside the full video -----------------------------------------------------------------------------


async def test_first_clip_is_kept_where_it_is_asked_for(rig: Rig) -> None:
    generation = await rig.generate(Script(polls_of_task=[completed()], deliver=[*FULL, *FIRST]), keep_first=True)
    result = await generation.result()
    assert (result.video, result.first_video) == (FULL_VIDEO, FIRST_CLIP)
    assert [input.kind for input in generation.script.orders("deliver_video")] == [
        DeliveryKind.FULL,
        DeliveryKind.FIRST,
    ]


async def test_first_clip_that_cannot_be_kept_is_a_warning(rig: Rig) -> None:
    gone = refusal("DeliveryFailed", "it is gone")
    generation = await rig.generate(Script(polls_of_task=[completed()], deliver=[*FULL, gone]), keep_first=True)
    result = await generation.result()
    assert (result.outcome, result.video, result.first_video) == ("full", FULL_VIDEO, None)
    assert result.warnings == ("the first 8 s could not be stored beside the full video: it is gone",)


# --- The first segment failed ----------------------------------------------------------------------------------------


async def test_generate_failed_names_code_message_and_remix_id(rig: Rig) -> None:
    generation = await rig.generate(Script(polls_of_task=[running(20), generate_failed()]), key="order-19")

    error, details = await generation.failure()

    assert (error.type, error.message) == ("GenerationFailed", "违反谷歌AI安全协议 (E-1005)")
    assert error.category is ApplicationErrorCategory.BENIGN
    assert (details.gateway_code, details.gateway_message) == ("generate_failed", "违反谷歌AI安全协议 (E-1005)")
    assert (details.key, details.task_id, details.remix_id, details.paid) == (
        "order-19",
        TASK_ID,
        "video_first",
        Paid.YES,
    )
    assert details.remix_id_extend is None
    assert details.last_record is not None
    assert details.last_record.state is TaskState.GENERATE_FAILED
    assert details.polls == 2
    assert generation.script.count("deliver_video") == 0
    assert await generation.attributes() == {
        "VideoModel": REQUEST["model"],
        "VideoStage": "failed",
        "VideoOutcome": "GenerationFailed",
        "VideoPaid": "yes",
        "GatewayTaskId": TASK_ID,
    }
    status = await generation.status()
    assert (status.stage, status.last_problem) == (Stage.FAILED, "违反谷歌AI安全协议 (E-1005)")


async def test_verdict_without_a_message_still_has_one(rig: Rig) -> None:
    generation = await rig.generate(Script(polls_of_task=[generate_failed(error_message=None)]))
    error, _ = await generation.failure()
    assert error.message == "the first segment failed"


# --- Nothing was made ------------------------------------------------------------------------------------------------


async def test_refused_submission_ends_at_once_with_what_the_gateway_said(rig: Rig) -> None:
    no = refusal(
        "SubmissionRefused", "[req-9] bad size", paid=Paid.NO, http_status=422, gateway_code="bad_size", advice="mend"
    )
    generation = await rig.generate(Script(submit=[no], close=[NOTHING_SENT]), key="order-20")

    error, details = await generation.failure()

    assert (error.type, error.message) == ("SubmissionRefused", "[req-9] bad size")
    assert error.category is ApplicationErrorCategory.BENIGN
    assert (details.paid, details.http_status, details.gateway_code, details.advice) == (
        Paid.NO,
        422,
        "bad_size",
        "mend",
    )
    assert (details.key, details.task_id, details.polls) == ("order-20", None, 0)
    assert generation.script.count("submit_generation") == 1
    assert generation.script.count("query_generation") == 0
    assert await generation.attributes() == {
        "VideoModel": REQUEST["model"],
        "VideoStage": "failed",
        "VideoOutcome": "SubmissionRefused",
        "VideoPaid": "no",
    }


async def test_refusal_found_out_while_preparing_submits_nothing(rig: Rig) -> None:
    no = refusal("SubmissionRefused", "the key is refused", paid=Paid.NO, http_status=401)
    generation = await rig.generate(Script(prepare=[no]))
    error, details = await generation.failure()
    assert (error.type, details.paid, details.http_status) == ("SubmissionRefused", Paid.NO, 401)
    assert [name for name, _ in generation.script.calls] == ["prepare_generation"]


@pytest.mark.parametrize("kind", ["StoreRefused", "NotAGateway"])
async def test_worker_that_cannot_prepare_means_not_submitted(rig: Rig, kind: str) -> None:
    no = refusal(kind, "the store refuses", paid=Paid.NO, advice="Mend the store.")
    generation = await rig.generate(Script(prepare=[no]))
    error, details = await generation.failure()
    assert (error.type, error.message) == ("NotSubmitted", "the store refuses")
    assert (details.paid, details.advice) == (Paid.NO, "Mend the store.")
    assert [name for name, _ in generation.script.calls] == ["prepare_generation"]


@pytest.mark.parametrize(
    ("answer", "paid", "task_id"),
    [
        (ClosedSubmission(), Paid.NO, None),
        (ClosedSubmission(in_doubt=FailureDetails(slot=1)), Paid.UNKNOWN, None),
        (refusal("LedgerUnavailable", "away"), Paid.UNKNOWN, None),
        (closed_as_paid, Paid.YES, TASK_ID),
    ],
    ids=["untouched", "in doubt", "no answer", "paid"],
)
@pytest.mark.parametrize(
    "failure",
    [
        refusal("Defect", "KeyError", paid=Paid.UNKNOWN),
        ApplicationError("Activity function close is not registered", type="NotFoundError", non_retryable=True),
    ],
    ids=lambda error: error.type,
)
async def test_defect_while_preparing_says_what_the_ledger_says(
    rig: Rig, failure: ApplicationError, answer: Any, paid: Paid, task_id: str | None
) -> None:
    """An earlier run of the same key may have been paid."""
    generation = await rig.generate(Script(prepare=[failure], close=[answer]))
    error, details = await generation.failure()
    assert (error.type, details.paid, details.task_id) == ("NotSubmitted", paid, task_id)
    assert (await generation.status()).paid == paid
    assert (await generation.attributes())["VideoPaid"] == paid
    assert generation.script.count("submit_generation") == 0


async def test_ledger_that_is_away_while_preparing_leaves_it_unknown(rig: Rig) -> None:
    away = refusal("LedgerUnavailable", "the store is away", paid=Paid.UNKNOWN)
    generation = await rig.generate(Script(prepare=[away]))
    error, details = await generation.failure()
    assert (error.type, details.paid) == ("NotSubmitted", Paid.UNKNOWN)
    assert generation.script.count("close_submission") == 0


@pytest.mark.parametrize("step", ["prepare", "submit"])
async def test_gateway_that_takes_nothing_within_the_window_means_not_submitted(rig: Rig, step: str) -> None:
    busy = again(refusal("GatewayBusy", "no channel", retried=True, paid=Paid.NO, http_status=503))
    generation = await rig.generate(
        Script(prepare=busy) if step == "prepare" else Script(submit=busy, close=[NOTHING_SENT])
    )

    error, details = await generation.failure()

    assert (error.type, error.message) == ("NotSubmitted", "no channel")
    assert (details.paid, details.http_status) == (Paid.NO, 503)
    tries = generation.script.times(f"{step}_generation")
    assert len(tries) > 30
    assert tries[-1] - tries[0] > HOUR - timedelta(minutes=3)
    assert generation.script.count("query_generation") == 0


async def test_submission_waits_as_long_as_the_gateway_asks(rig: Rig) -> None:
    patience = refusal("GatewayBusy", "slowly", retried=True, after=timedelta(minutes=7))
    generation = await rig.generate(Script(submit=[patience, accepted()], polls_of_task=[completed()], deliver=FULL))
    assert (await generation.result()).outcome == "full"
    first, second = generation.script.times("submit_generation")
    assert second - first >= timedelta(minutes=7)


async def test_gateway_that_is_down_for_an_hour_costs_an_hour_and_nothing_else(rig: Rig) -> None:
    unreachable = refusal("GatewayUnreachable", "nothing was sent", retried=True, paid=Paid.NO)
    trouble = refusal("PollFailing", "connection refused", retried=True, paid=Paid.YES)
    script = Script(
        submit=changing(50 * MINUTE, unreachable, accepted()),
        polls_of_task=chain([running(30)], changing(HOUR, trouble, completed())),
        deliver=FULL,
    )
    generation = await rig.generate(script)
    result = await generation.result()
    assert (result.outcome, result.task_id) == ("full", TASK_ID)
    sent, polls_of_task = script.times("submit_generation"), script.times("query_generation")
    assert sent[-1] - sent[0] >= 50 * MINUTE
    assert polls_of_task[-1] - polls_of_task[0] >= HOUR
    assert script.count("reconcile_submission") == 0, "nothing was ever in doubt"


# --- Nobody knows whether something was made -------------------------------------------------------------------------

UNKNOWN = refusal("SubmissionOutcomeUnknown", "no answer", paid=Paid.UNKNOWN, slot=1, http_status=502)
PATIENT = GenerationPolicy(decision_window=timedelta(days=7))
TASK_ID_RULE = "a task id has 1 to 255 characters: letters, digits and . _ : -"
NO_RECORDS = Reconciliation(candidates=("task_a", "task_b"), evidence=("the key was charged 1 times",))


async def receipt(_: Any) -> SubmissionReceipt:
    return await accepted(task_id="task_found")(_)


async def found(input: Any) -> Reconciliation:
    return Reconciliation(receipt=await receipt(input))


async def adopted(input: Any) -> Resolution:
    return Resolution(receipt=await accepted(task_id=input.task_id)(input))


@pytest.mark.parametrize(
    "unknown",
    [
        UNKNOWN,
        # An activity may not know what the workflow knows: only the ledger can say "no".
        refusal("SubmissionInDoubt", "no answer", paid=Paid.NO, http_status=502),
        refusal("SlotTaken", "no answer", paid=Paid.NO, http_status=502),
        # Nor a worker that has not the key to what an attempt before it has told.
        refusal("PayloadUnreadable", "no answer", paid=Paid.NO, http_status=502),
        # What proves nothing, whatever it calls itself: an earlier attempt may have died in the middle of the POST.
        refusal("Defect", "no answer", paid=Paid.NO, http_status=502),
        refusal("NotFoundError", "no answer", paid=Paid.NO, http_status=502),
        refusal("ofTheFuture", "no answer", paid=Paid.NO, http_status=502),
    ],
    ids=lambda error: error.type,
)
async def test_unknown_outcome_ends_and_is_never_sent_again(rig: Rig, unknown: ApplicationError) -> None:
    asked = [] if unknown is UNKNOWN else [ClosedSubmission(in_doubt=FailureDetails(slot=1))]
    generation = await rig.generate(Script(submit=[unknown], close=asked, reconcile=[NO_RECORDS]))

    error, details = await generation.failure()

    assert (error.type, error.message) == ("SubmissionOutcomeUnknown", "no answer")
    assert error.category is ApplicationErrorCategory.UNSPECIFIED
    assert (details.paid, details.slot, details.http_status) == (Paid.UNKNOWN, 1, 502)
    assert [name for name, _ in generation.script.calls] == [
        "prepare_generation",
        "submit_generation",
        *["close_submission"] * len(asked),
        "reconcile_submission",
    ]
    assert generation.script.orders("reconcile_submission")[0].slot == 1
    assert (await generation.attributes())["VideoOutcome"] == "SubmissionOutcomeUnknown"
    scheduled = [e for e in await generation.events() if e.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED]
    assert len(scheduled) == 3 + len(asked)


async def test_doubt_that_no_time_settles_is_an_unknown_outcome(rig: Rig) -> None:
    doubt = refusal("SubmissionInDoubt", "still sending?", retried=True, after=2 * MINUTE, paid=Paid.UNKNOWN)
    closed = ClosedSubmission(in_doubt=FailureDetails(slot=1))
    generation = await rig.generate(Script(submit=again(doubt), close=[closed], reconcile=[NO_RECORDS]))
    error, details = await generation.failure()
    assert (error.type, error.message, details.paid) == ("SubmissionOutcomeUnknown", "still sending?", Paid.UNKNOWN)
    tries = generation.script.times("submit_generation")
    assert tries[-1] - tries[0] > HOUR - 3 * MINUTE


async def test_task_that_the_witnesses_find_is_adopted(rig: Rig) -> None:
    generation = await rig.generate(
        Script(submit=[UNKNOWN], reconcile=[found], polls_of_task=[completed()], deliver=FULL), key="order-30"
    )
    assert (await generation.result()).task_id == "task_found"
    (input,) = generation.script.orders("reconcile_submission")
    assert (input.key, input.model) == ("order-30", REQUEST["model"])
    assert generation.script.count("submit_generation") == 1
    assert generation.script.orders("query_generation")[0].task_id == "task_found"
    assert (await generation.attributes())["GatewayTaskId"] == "task_found"


async def test_ledger_without_doubt_lets_it_be_submitted_once_more(rig: Rig) -> None:
    clear = Reconciliation(clear=True)
    script = Script(submit=[UNKNOWN, accepted()], reconcile=[clear], polls_of_task=[completed()], deliver=FULL)
    generation = await rig.generate(script)
    assert (await generation.result()).outcome == "full"
    assert generation.script.count("submit_generation") == 2


async def test_submission_that_always_breaks_before_anything_is_sent_ends(rig: Rig) -> None:
    """A defect before the first byte is reported as unknown, and the ledger says that nothing is in doubt."""
    broken = refusal("SubmissionOutcomeUnknown", "KeyError: 'x'", paid=Paid.UNKNOWN)
    generation = await rig.generate(Script(submit=[broken], close=[NOTHING_SENT]))
    error, details = await generation.failure()
    assert (error.type, error.message, details.paid) == ("NotSubmitted", "KeyError: 'x'", Paid.NO)


@pytest.mark.parametrize(
    "failure",
    [
        refusal("LedgerUnavailable", "the store is away", retried=True, paid=Paid.UNKNOWN),
        refusal("SubmissionInDoubt", "still sending?", retried=True, paid=Paid.UNKNOWN),
        ApplicationError("Activity function submit_generation is not registered", type="NotFoundError"),
    ],
    ids=["the store is away", "in doubt", "an older worker"],
)
async def test_nothing_sent_within_its_time_is_not_submitted(rig: Rig, failure: Any) -> None:
    """Whatever its last attempt said: the ledger has nothing, and lets nothing be sent any more."""
    generation = await rig.generate(Script(submit=again(failure), close=[NOTHING_SENT]))
    error, details = await generation.failure()
    assert (error.type, details.paid) == ("NotSubmitted", Paid.NO)
    assert (await generation.attributes())["VideoPaid"] == "no"
    assert generation.script.count("reconcile_submission") == 0


async def test_paid_attempt_whose_answer_got_lost_is_found_in_the_ledger(rig: Rig) -> None:
    script = Script(
        submit=[refusal("Defect", "?")], close=[closed_as_paid], polls_of_task=[completed()], deliver=FULL, reconcile=[]
    )
    generation = await rig.generate(script)
    assert (await generation.result()).task_id == TASK_ID
    assert (await generation.attributes())["VideoPaid"] == "yes"


async def test_refusal_stands_where_the_ledger_is_away(rig: Rig) -> None:
    """The attempt that was refused had walked the ledger."""
    no = refusal("SubmissionRefused", "bad size", paid=Paid.NO)
    away = again(refusal("LedgerUnavailable", "the store is away", retried=True))
    generation = await rig.generate(Script(submit=[no], close=away))
    error, details = await generation.failure()
    assert (error.type, details.paid) == ("SubmissionRefused", Paid.NO)


async def test_refusal_does_not_stand_where_another_attempt_is_sending(rig: Rig) -> None:
    no = refusal("SubmissionRefused", "bad size", paid=Paid.NO)
    sending = again(refusal("SubmissionInDoubt", "it may be sending", retried=True))
    generation = await rig.generate(Script(submit=[no], close=sending))
    error, details = await generation.failure()
    assert (error.type, details.paid) == ("SubmissionOutcomeUnknown", Paid.UNKNOWN)


async def test_while_the_ledger_is_away_nobody_is_asked_about_a_submission_that_nobody_knows_of(rig: Rig) -> None:
    away = refusal("LedgerUnavailable", "the store is away", retried=True, paid=Paid.UNKNOWN)
    script = Script(
        prepare=[PATIENT], submit=[refusal("Defect", "?")], close=changing(3 * HOUR, away, NOTHING_SENT), reconcile=[]
    )
    generation = await rig.generate(script)
    await rig.pass_time(HOUR)
    status = await generation.reaches(lambda status: status.attention is Attention.LEDGER_UNAVAILABLE)
    assert (status.stage, status.paid, status.decisions) == (Stage.SUBMITTING, Paid.UNKNOWN, ())
    assert status.last_problem == "the store is away"
    with pytest.raises(WorkflowUpdateFailedError):
        await generation.handle.execute_update("decide", {"action": "resubmit"})
    error, details = await generation.failure()
    assert (error.type, details.paid) == ("NotSubmitted", Paid.NO)
    assert len(await generation.events()) < 60, "an outage must not fill the history"


async def test_ledger_that_stays_away_for_the_whole_window_leaves_it_unknown(rig: Rig) -> None:
    away = again(refusal("LedgerUnavailable", "the store is away", retried=True, paid=Paid.UNKNOWN))
    policy = GenerationPolicy(decision_window=HOUR)
    generation = await rig.generate(Script(prepare=[policy], submit=[refusal("Defect", "?")], close=away))
    error, details = await generation.failure()
    assert (error.type, details.paid) == ("SubmissionOutcomeUnknown", Paid.UNKNOWN)


async def test_decision_names_the_submission_that_it_settles(rig: Rig) -> None:
    """After another one the ledger is asked about that one: an old decision says nothing about it."""
    second = refusal("SubmissionOutcomeUnknown", "no answer", paid=Paid.UNKNOWN, slot=2)
    script = {"submit": [UNKNOWN, second, accepted()], "settle": [Resolution()] * 2}
    generation = await in_doubt(rig, **script, polls_of_task=[completed()], deliver=FULL)
    assert (await generation.status()).slot == 1
    await generation.handle.execute_update("decide", {"action": "resubmit", "slot": 1})
    await generation.reaches(lambda status: status.slot == 2)
    with pytest.raises(WorkflowUpdateFailedError) as rejection:
        await generation.handle.execute_update("decide", {"action": "resubmit", "slot": 1})
    assert isinstance(rejection.value.cause, ApplicationError)
    assert rejection.value.cause.type == "NotOffered"
    await generation.handle.execute_update("decide", {"action": "resubmit"})
    assert (await generation.result()).outcome == "full"
    assert [input.slot for input in generation.script.orders("resolve_submission")] == [1, 2]
    assert [input.slot for input in generation.script.orders("reconcile_submission")] == [1, 2]
    assert (await generation.status()).slot is None


async def test_decision_refused_in_the_last_wait_is_asked_for_again(rig: Rig) -> None:
    """Whoever has just answered is there: it does not end as if nobody were."""
    no = refusal("InvalidRequest", "task_a is another's")
    away = refusal("LedgerUnavailable", "the store is away", retried=True, after=timedelta(seconds=20))
    script = Script(
        prepare=[GenerationPolicy(decision_window=MINUTE)],
        submit=[UNKNOWN],
        reconcile=again(NO_RECORDS),
        resolve=[away, no, adopted],
        polls_of_task=[completed()],
        deliver=FULL,
    )
    generation = await rig.generate(script)
    await rig.pass_time(timedelta(seconds=50))
    await generation.reaches(lambda status: status.decisions)
    await generation.handle.execute_update("decide", {"action": "adopt", "task_id": "task_a"})
    await rig.pass_time(timedelta(seconds=21))
    status = await generation.reaches(lambda status: status.last_problem == "task_a is another's" and status.decisions)
    assert status.decide_by is not None
    await generation.handle.execute_update("decide", {"action": "adopt", "task_id": "task_b"})
    assert (await generation.result()).task_id == "task_b"


async def test_witnesses_are_heard_at_once_and_more_often_at_first(rig: Rig) -> None:
    generation = await in_doubt(rig)
    await rig.pass_time(timedelta(minutes=11))
    heard = generation.script.times("reconcile_submission")
    assert [round((at - heard[0]).total_seconds()) for at in heard] == pytest.approx([0, 15, 60, 180, 600], abs=5)


async def test_finding_says_when_hearing_again_is_worthwhile(rig: Rig) -> None:
    soon = NO_RECORDS.model_copy(update={"retry_after": timedelta(seconds=20)})
    generation = await in_doubt(rig, reconcile=again(soon))
    await rig.pass_time(timedelta(days=6))
    heard = generation.script.times("reconcile_submission")
    assert any(after - before < timedelta(seconds=25) for before, after in pairwise(heard[4:]))
    assert len(heard) < 150, "it is heard more and more rarely all the same"


NOT_CHARGED = Reconciliation(charged=Paid.NO, resubmittable=True, evidence=("not charged",))


async def test_what_was_not_charged_is_submitted_again_once_a_later_check_confirms_it(rig: Rig) -> None:
    orders: list[tuple[datetime, bool]] = []

    async def reconcile(input: ReconcileInput) -> Reconciliation:
        orders.append((server_now(), input.confirms_not_charged))
        return Reconciliation(clear=True, resubmissions=1) if input.confirms_not_charged else NOT_CHARGED

    script = Script(
        prepare=[PATIENT],
        submit=[UNKNOWN, accepted()],
        reconcile=again(reconcile),
        polls_of_task=[completed()],
        deliver=FULL,
    )
    generation = await rig.generate(script)
    result = await generation.result()
    confirmed = [at for at, confirms in orders if confirms]
    assert len(confirmed) == 1
    assert confirmed[0] - orders[0][0] >= CONFIRM_NOT_CHARGED
    assert generation.script.count("submit_generation") == 2
    assert generation.script.count("resolve_submission") == 0
    assert any("by itself once" in warning for warning in result.warnings)
    status = await generation.status()
    assert (status.paid, status.charged, status.warnings) == (Paid.YES, None, result.warnings)


async def test_a_check_that_says_otherwise_in_between_begins_the_confirmation_anew(rig: Rig) -> None:
    orders: list[tuple[datetime, bool]] = []
    unclear = Reconciliation(charged=Paid.UNKNOWN)

    async def reconcile(input: ReconcileInput) -> Reconciliation:
        orders.append((server_now(), input.confirms_not_charged))
        if input.confirms_not_charged:
            return Reconciliation(receipt=await receipt(input))
        return unclear if len(orders) == 3 else NOT_CHARGED

    script = Script(
        prepare=[PATIENT], submit=[UNKNOWN], reconcile=again(reconcile), polls_of_task=[completed()], deliver=FULL
    )
    generation = await rig.generate(script)
    await generation.result()
    (confirmed,) = [at for at, confirms in orders if confirms]
    assert confirmed - orders[3][0] >= CONFIRM_NOT_CHARGED
    assert generation.script.count("submit_generation") == 1


@pytest.mark.parametrize("charged", Paid)
async def test_generation_in_doubt_shows_whether_it_was_charged(rig: Rig, charged: Paid) -> None:
    generation = await in_doubt(rig, reconcile=again(Reconciliation(charged=charged, evidence=("as the log shows",))))
    status = await generation.status()
    assert (status.charged, status.paid) == (charged, Paid.UNKNOWN)
    assert "- charged: " in await generation.page()
    await generation.handle.execute_update("decide", {"action": "abandon"})
    await generation.failure()
    assert (await generation.status()).charged is charged, "whoever finds it ended must know too"


async def in_doubt(rig: Rig, **script: Any) -> Generation:
    """A generation that asks what became of its submission."""
    known: dict[str, Any] = {"prepare": [PATIENT], "submit": [UNKNOWN], "reconcile": again(NO_RECORDS)}
    generation = await rig.generate(Script(**{**known, **script}), key=script.pop("key", None))
    await generation.reaches(lambda status: status.stage is Stage.AWAITING_DECISION)
    return generation


async def test_generation_in_doubt_shows_what_is_known_and_what_can_be_decided(rig: Rig) -> None:
    generation = await in_doubt(rig)

    status = await generation.status()

    assert (status.attention, status.last_problem) == (Attention.NEEDS_DECISION, "no answer")
    assert status.decisions == ("adopt", "resubmit", "abandon")
    assert (status.candidates, status.evidence) == (NO_RECORDS.candidates, NO_RECORDS.evidence)
    attributes = await generation.attributes()
    assert (attributes["VideoAttention"], attributes["VideoPaid"]) == ("needs_decision", "unknown")
    assert status.decide_by is not None
    page = await generation.page()
    assert page.startswith("**awaiting decision**: it was sent and no answer came")
    for told in (
        "task_a",
        "task_b",
        "charged 1 times",
        f"`starter.py decide {status.key} adopt TASK_ID --slot 1`",
        '{"action": "abandon", "slot": 1}',
        "paid: **nobody knows**",
        f"Without a decision by {status.decide_by:%Y-%m-%d %H:%M:%S} UTC it ends as `Abandoned`",
    ):
        assert told in page


async def test_decision_to_adopt_is_written_down_and_watched(rig: Rig) -> None:
    generation = await in_doubt(rig, resolve=[adopted], polls_of_task=[completed()], deliver=FULL)

    await generation.handle.execute_update("decide", {"action": "adopt", "task_id": "task_a"})

    assert (await generation.result()).task_id == "task_a"
    (input,) = generation.script.orders("resolve_submission")
    assert input.task_id == "task_a"
    assert generation.script.count("submit_generation") == 1
    attributes = await generation.attributes()
    assert (attributes["GatewayTaskId"], attributes["VideoPaid"]) == ("task_a", "yes")


async def test_decision_to_submit_again_is_written_down_first(rig: Rig) -> None:
    generation = await in_doubt(
        rig, submit=[UNKNOWN, accepted()], resolve=[Resolution()], polls_of_task=[completed()], deliver=FULL
    )
    await generation.handle.execute_update("decide", {"action": "resubmit"})
    assert (await generation.result()).outcome == "full"
    names = [name for name, _ in generation.script.calls if name in {"resolve_submission", "submit_generation"}]
    assert names == ["submit_generation", "resolve_submission", "submit_generation"]
    assert generation.script.orders("resolve_submission")[0].task_id is None


async def test_decision_that_the_ledger_refuses_is_asked_for_again(rig: Rig) -> None:
    owned = refusal("TaskOwned", "task_a belongs to order-1")
    generation = await in_doubt(rig, resolve=[owned, adopted], polls_of_task=[completed()], deliver=FULL)
    await generation.handle.execute_update("decide", {"action": "adopt", "task_id": "task_a"})
    await generation.reaches(lambda status: status.last_problem == "task_a belongs to order-1" and status.decisions)
    await generation.handle.execute_update("decide", {"action": "adopt", "task_id": "task_b"})
    assert (await generation.result()).task_id == "task_b"


async def test_decision_to_abandon_ends_it(rig: Rig) -> None:
    generation = await in_doubt(rig)
    await generation.handle.execute_update("decide", {"action": "abandon"})
    error, details = await generation.failure()
    assert error.type == "Abandoned"
    assert (await generation.attributes())["VideoPaid"] == "unknown", "nobody has found it out"
    assert "no answer" in error.message
    assert error.category is ApplicationErrorCategory.BENIGN
    assert (details.paid, details.slot) == (Paid.UNKNOWN, 1)
    assert (await generation.attributes())["VideoOutcome"] == "Abandoned"


async def test_nobody_decides_for_a_week(rig: Rig) -> None:
    generation = await rig.generate(Script(prepare=[PATIENT], submit=[UNKNOWN], reconcile=again(NO_RECORDS)))
    error, details = await generation.failure()
    assert (error.type, details.paid) == ("Abandoned", Paid.UNKNOWN)
    heard = generation.script.times("reconcile_submission")
    assert len(heard) >= 5, "the witnesses are heard again: a task may appear late"
    (submitted,) = generation.script.times("submit_generation")
    started, *_, ended = [event.event_time.ToDatetime() for event in await generation.events()]
    assert timedelta(days=7) <= ended - started < timedelta(days=7, hours=1)
    assert submitted < heard[0]


async def test_task_that_appears_late_is_adopted_without_a_decision(rig: Rig) -> None:
    script = Script(
        prepare=[PATIENT],
        submit=[UNKNOWN],
        reconcile=[NO_RECORDS, NO_RECORDS, found],
        polls_of_task=[completed()],
        deliver=FULL,
    )
    generation = await rig.generate(script)
    assert (await generation.result()).task_id == "task_found"
    status = await generation.status()
    assert (status.candidates, status.evidence, status.decisions) == ((), (), ())


async def test_decision_is_taken_while_the_witnesses_are_heard_and_only_one(rig: Rig) -> None:
    """The list may take minutes to come, and two people may look at the same page."""
    held = Held(NO_RECORDS)
    script = Script(
        prepare=[PATIENT],
        submit=[UNKNOWN],
        reconcile=[NO_RECORDS, held],
        resolve=[adopted],
        polls_of_task=[completed()],
        deliver=FULL,
    )
    generation = await rig.generate(script)
    await generation.skip_to(held)
    await generation.handle.execute_update("decide", {"action": "adopt", "task_id": "task_a"})
    for second in ({"action": "resubmit"}, {"action": "adopt", "task_id": "task_b"}):
        with pytest.raises(WorkflowUpdateFailedError) as rejection:
            await generation.handle.execute_update("decide", second)
        assert isinstance(rejection.value.cause, ApplicationError)
        assert (rejection.value.cause.type, rejection.value.cause.message) == (
            "NotAwaited",
            "somebody has just decided",
        )
    held.let_go()
    assert (await generation.result()).task_id == "task_a"
    assert [input.task_id for input in script.orders("resolve_submission")] == ["task_a"]
    assert script.count("submit_generation") == 1


async def test_of_two_decisions_at_once_one_is_taken(rig: Rig) -> None:
    generation = await in_doubt(rig, resolve=[adopted] * 2, polls_of_task=[completed()], deliver=FULL)
    choices = ("task_a", "task_b")
    ends = await asyncio.gather(
        *(generation.handle.execute_update("decide", {"action": "adopt", "task_id": choice}) for choice in choices),
        return_exceptions=True,
    )
    taken = [choice for choice, end in zip(choices, ends, strict=True) if not isinstance(end, BaseException)]
    assert [type(end) for end in ends if isinstance(end, BaseException)] == [WorkflowUpdateFailedError]
    assert [(await generation.result()).task_id] == taken
    assert generation.script.count("resolve_submission") == 1


async def test_witnesses_that_cannot_be_heard_are_evidence(rig: Rig) -> None:
    away = refusal("LedgerUnavailable", "the store is away")
    generation = await in_doubt(rig, reconcile=again(away))
    assert (await generation.status()).evidence == ("the witnesses could not be heard: the store is away",)


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        ({"action": "accept"}, "accept is not offered now; choose one of: adopt, resubmit, abandon"),
        ({"action": "adopt"}, "adopt needs a task_id, and nothing else takes one"),
        ({"action": "abandon", "task_id": "task_a"}, "adopt needs a task_id, and nothing else takes one"),
        *(
            ({"action": "adopt", "task_id": text}, f"this cannot be a task of the gateway: {TASK_ID_RULE}")
            for text in ("", " ", "task a", "x" * 3000)
        ),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_decision_that_does_not_fit_the_doubt_is_rejected(rig: Rig, decision: Any, said: str) -> None:
    generation = await in_doubt(rig)
    with pytest.raises(WorkflowUpdateFailedError) as rejection:
        await generation.handle.execute_update("decide", decision)
    assert isinstance(rejection.value.cause, ApplicationError)
    assert (rejection.value.cause.type, rejection.value.cause.message) == ("NotOffered", said)
    assert (await generation.status()).stage is Stage.AWAITING_DECISION


async def test_request_may_name_a_task_to_take_over(rig: Rig) -> None:
    script = Script(submit=[accepted(task_id="task_old")], polls_of_task=[completed()], deliver=FULL)
    generation = await rig.generate(script, task_id="task_old")
    assert (await generation.result()).task_id == "task_old"
    assert generation.script.orders("submit_generation")[0].request.task_id == "task_old"
    assert '"take over task task_old: nothing is paid"' in summaries(await generation.events())


# --- The ledger ------------------------------------------------------------------------------------------------------


async def test_outcome_that_the_ledger_did_not_take_is_recorded(rig: Rig) -> None:
    script = Script(submit=[accepted(recorded=False)], record=[None], polls_of_task=[completed()], deliver=FULL)
    generation = await rig.generate(script, key="order-21")
    assert (await generation.result()).warnings == ()
    (input,) = generation.script.orders("record_submission")
    assert (input.key, input.receipt.task_id, input.receipt.nonce) == ("order-21", TASK_ID, "n1")
    assert input.receipt.recorded is False


async def test_recorded_outcome_is_not_recorded_again(rig: Rig) -> None:
    generation = await rig.generate(Script(polls_of_task=[completed()], deliver=FULL))
    await generation.result()
    assert generation.script.count("record_submission") == 0


async def test_ledger_that_refuses_is_a_warning(rig: Rig) -> None:
    no = refusal("StoreRefused", "read only")
    script = Script(submit=[accepted(recorded=False)], record=[no], polls_of_task=[completed()], deliver=FULL)
    generation = await rig.generate(script)
    assert (await generation.result()).warnings == ("the ledger has no outcome for this submission: read only",)


# --- Trouble while looking -------------------------------------------------------------------------------------------


async def test_refused_key_is_shown_and_the_generation_goes_on_by_itself(rig: Rig) -> None:
    no = refusal("KeyRefused", "401: wrong key", http_status=401)
    generation = await rig.generate(Script(polls_of_task=[no, completed()], deliver=FULL))
    await rig.pass_time(timedelta(seconds=70))

    status = await generation.reaches(lambda status: status.attention is Attention.NEEDS_API_KEY)
    assert (status.polls, status.last_problem) == (1, "401: wrong key")
    assert "LONGTAKE_GATEWAY_API_KEY" in status.advice
    assert (await generation.attributes())["VideoAttention"] == "needs_api_key"

    assert (await generation.result()).outcome == "full"
    first, second = generation.script.times("query_generation")
    assert second - first >= PollSchedule().expected, "asking with a dead key helps nobody"
    assert "VideoAttention" not in await generation.attributes()
    assert (await generation.status()).last_problem is None


async def test_resume_looks_at_once(rig: Rig) -> None:
    no = refusal("KeyRefused", "401: wrong key", http_status=401)
    generation = await rig.generate(Script(polls_of_task=[no, running(70), completed()], deliver=FULL))
    await rig.pass_time(timedelta(seconds=70))
    await generation.reaches(lambda status: status.attention is Attention.NEEDS_API_KEY and status.next_poll_at)

    answer = await generation.handle.execute_update("poll_now")

    assert answer["attention"] == "needs_api_key"
    status = await generation.reaches(lambda status: status.polls == 2 and status.next_poll_at)
    assert (status.attention, status.progress) == (None, 70)
    assert (await generation.result()).polls == 3
    first, second, _ = generation.script.times("query_generation")
    assert second - first < timedelta(seconds=60), "no time was skipped, so it cannot have waited"


async def test_resume_during_a_look_brings_another_one(rig: Rig) -> None:
    slow = Held(running(10))
    generation = await rig.generate(Script(polls_of_task=[slow, running(20), completed()], deliver=FULL))
    await generation.skip_to(slow)
    await generation.handle.execute_update("poll_now")
    slow.let_go()
    assert (await generation.reaches(lambda status: status.polls == 2 and status.next_poll_at)).progress == 20
    await generation.result()


@pytest.mark.parametrize("stage", ["preparing", "delivering", "awaiting_decision"])
async def test_resume_is_rejected_where_nothing_is_looked_at(own_rig: Rig, stage: str) -> None:
    held = Held(GenerationPolicy() if stage == "preparing" else FULL[0])
    script = {
        "preparing": Script(prepare=[held], polls_of_task=[completed()], deliver=FULL),
        "delivering": Script(polls_of_task=[completed()], deliver=[held]),
        "awaiting_decision": Script(polls_of_task=[extend_failed()], deliver=FIRST),
    }[stage]
    generation = await own_rig.generate(script, on_extend_failed="ask")
    if stage == "awaiting_decision":
        await own_rig.pass_time(timedelta(seconds=70))
        await generation.reaches(lambda status: status.stage is Stage.AWAITING_DECISION)
    else:
        await generation.skip_to(held)

    with pytest.raises(WorkflowUpdateFailedError) as rejection:
        await generation.handle.execute_update("poll_now")

    assert isinstance(rejection.value.cause, ApplicationError)
    assert rejection.value.cause.type == "NotWatched"
    held.let_go()


async def test_resume_during_the_look_that_brings_the_verdict_skips_no_later_wait(own_rig: Rig) -> None:
    verdict = Held(extend_failed())
    policy = GenerationPolicy(extension_retries=1)
    script = Script(
        prepare=[policy],
        polls_of_task=[verdict, completed(task_id="task_extend_1")],
        extend=[accepted(task_id="task_extend_1")],
        deliver=[*FIRST, *FULL],
    )
    generation = await own_rig.generate(script, on_extend_failed="retry")
    await generation.skip_to(verdict)
    await generation.handle.execute_update("poll_now")
    verdict.let_go()
    assert (await generation.result()).outcome == "full"
    (submitted,) = script.times("submit_extension")
    assert script.times("query_generation")[1] - submitted > timedelta(seconds=20), "another task, another wait"


# --- Ended pages -----------------------------------------------------------------------------------------------------


async def test_an_ended_page_asks_nobody_to_decide(rig: Rig) -> None:
    """A week went by and nobody decided: what can be done now is something else."""
    generation = await rig.generate(Script(prepare=[PATIENT], submit=[UNKNOWN], reconcile=again(NO_RECORDS)))
    await generation.failure()
    status = await generation.status()
    assert (status.decisions, status.decide_by) == ((), None)
    assert status.advice
    assert status.advice in await generation.page()
    assert status.evidence, "what is known of the doubt helps whoever looks for it"
    assert "starter.py decide" not in await generation.page()


async def test_a_fallback_that_nobody_decided_about_asks_no_more(rig: Rig) -> None:
    policy = GenerationPolicy(decision_window=timedelta(days=1))
    generation = await rig.generate(
        Script(prepare=[policy], polls_of_task=[extend_failed()], deliver=FIRST), on_extend_failed="ask"
    )
    assert (await generation.result()).outcome == "fallback"
    status = await generation.status()
    assert (status.decisions, status.decide_by, status.advice) == ((), None, "")
    assert "starter.py decide" not in await generation.page()


async def test_a_cancelled_generation_asks_nobody_to_decide(own_rig: Rig) -> None:
    doubt = ClosedSubmission(in_doubt=FailureDetails(paid=Paid.UNKNOWN, slot=1))
    generation = await in_doubt(own_rig, close=again(doubt))
    await generation.handle.cancel()
    await generation.cancellation()
    status = await generation.status()
    assert (status.decisions, status.decide_by, status.paid) == ((), None, Paid.UNKNOWN)
    assert status.advice
    assert "starter.py decide" not in await generation.page()


@pytest.mark.parametrize("kind", ["InvalidResponse", "TaskNotFound", "Defect", "NeverHeardOf"])
async def test_look_that_tells_nothing_is_shown_and_looked_at_again(rig: Rig, kind: str) -> None:
    third = Held(completed(remix_id=None))
    polls_of_task = [running(61, remix_id="video_first"), refusal(kind, "an HTML page"), third]
    generation = await rig.generate(Script(polls_of_task=polls_of_task, deliver=FULL))
    await generation.skip_to(third)

    status = await generation.status()
    assert (status.attention, status.last_problem) == (Attention.POLL_FAILING, "an HTML page")
    assert (status.stage, status.remix_id) == (Stage.EXTENDING, "video_first")

    third.let_go()
    result = await generation.result()
    assert (result.outcome, result.polls) == ("full", 3)
    assert result.remix_id == "video_first", "an id once told is kept"
    assert (await generation.status()).last_problem is None


async def test_look_is_tried_four_times_and_counts_once(rig: Rig) -> None:
    trouble = [refusal("PollFailing", "502", retried=True)] * 8
    generation = await rig.generate(Script(polls_of_task=[*trouble, completed()], deliver=FULL))
    assert (await generation.result()).polls == 3
    assert generation.script.count("query_generation") == 9


async def test_task_that_is_not_found_for_a_while_is_waited_for(rig: Rig) -> None:
    polls_of_task = changing(timedelta(minutes=40), refusal("TaskNotFound", "task_not_exist"), completed())
    generation = await rig.generate(Script(polls_of_task=polls_of_task, deliver=FULL))
    assert (await generation.result()).outcome == "full"


async def test_task_that_is_never_found_is_lost(rig: Rig) -> None:
    generation = await rig.generate(Script(polls_of_task=again(refusal("TaskNotFound", "task_not_exist"))))

    error, details = await generation.failure()

    assert error.type == "TaskLost"
    assert error.message == f"the gateway does not know the task {TASK_ID}: task_not_exist"
    assert (details.paid, details.task_id, details.request_id) == (Paid.YES, TASK_ID, "req-1")
    times = generation.script.times("query_generation")
    assert timedelta(minutes=45) <= times[-1] - times[0] < timedelta(minutes=60)
    assert (await generation.attributes())["VideoOutcome"] == "TaskLost"


async def test_task_that_was_found_in_between_starts_the_clock_anew(rig: Rig) -> None:
    policy = GenerationPolicy(schedule=PollSchedule(expected=MINUTE), overdue_after=10 * MINUTE)
    missing = refusal("TaskNotFound", "task_not_exist")
    found = Held(running(10))
    polls_of_task = chain([missing, found], changing(9 * MINUTE, missing, completed()))
    generation = await rig.generate(Script(prepare=[policy], polls_of_task=polls_of_task, deliver=FULL))
    await generation.skip_to(found)
    found.let_go()
    assert (await generation.result()).outcome == "full"


# --- The gateway gives the task up -----------------------------------------------------------------------------------


async def test_task_given_up_without_a_verdict_is_still_watched_and_then_lost(rig: Rig) -> None:
    good = running(61, remix_id="video_first", remix_id_extend="video_second", upstream_task_id="up-1", quota=7)
    gone = lost(error_message="upstream returned error")
    third = Held(gone)
    generation = await rig.generate(Script(polls_of_task=chain([good, gone, third], again(gone))))
    await generation.skip_to(third)
    status = await generation.status()
    assert (status.attention, status.last_problem) == (Attention.TASK_LOST, "upstream returned error")
    assert (status.remix_id, status.stage) == ("video_first", Stage.EXTENDING)
    assert (await generation.attributes())["VideoAttention"] == "task_lost"
    third.let_go()

    error, details = await generation.failure()

    assert error.type == "TaskLost"
    assert "upstream returned error" in error.message
    assert error.category is ApplicationErrorCategory.UNSPECIFIED
    assert (details.paid, details.task_id, details.quota) == (Paid.YES, TASK_ID, 7)
    assert (details.remix_id, details.remix_id_extend) == ("video_first", "video_second")
    assert details.last_record is not None
    assert details.last_record.upstream_task_id == "up-1"
    times = generation.script.times("query_generation")
    assert timedelta(minutes=10) <= times[-1] - times[1] < timedelta(minutes=15)
    assert generation.script.count("submit_generation") == 1


async def test_lost_without_a_reason_says_what_the_gateway_said(rig: Rig) -> None:
    generation = await rig.generate(Script(polls_of_task=again(lost())))
    error, _ = await generation.failure()
    assert "the gateway says FAILURE, without a verdict" in error.message


async def test_task_given_up_and_found_again_is_delivered(rig: Rig) -> None:
    gone = lost(error_message="upstream returned error")
    polls_of_task = chain([running(20)], changing(timedelta(minutes=8), gone, completed()))
    generation = await rig.generate(Script(polls_of_task=polls_of_task, deliver=FULL))
    assert (await generation.result()).outcome == "full"
    assert (await generation.status()).last_problem is None


async def test_task_given_up_twice_is_watched_twice(rig: Rig) -> None:
    gone = lost(error_message="upstream returned error")
    polls_of_task = chain([gone, running(20)], changing(timedelta(minutes=9), gone, completed()))
    generation = await rig.generate(Script(polls_of_task=polls_of_task, deliver=FULL))
    assert (await generation.result()).outcome == "full"


# --- Late ------------------------------------------------------------------------------------------------------------


async def test_overdue_generation_is_stalled_looked_at_slowly_and_still_collected(rig: Rig) -> None:
    polls_of_task = changing(timedelta(hours=5), running(60), completed())
    generation = await rig.generate(Script(polls_of_task=polls_of_task, deliver=FULL))
    await rig.pass_time(timedelta(minutes=44))
    assert (await generation.status()).attention is None
    await rig.pass_time(timedelta(minutes=15))
    await generation.reaches(lambda status: status.attention is Attention.OVERDUE)
    assert (await generation.attributes())["VideoAttention"] == "stalled"
    assert "Never start it again elsewhere" in (await generation.status()).advice

    assert (await generation.result()).outcome == "full"

    times = generation.script.times("query_generation")
    late = [b - a for a, b in pairwise(times) if a - times[0] > timedelta(minutes=50)]
    assert len(late) > 20
    assert min(late) >= timedelta(minutes=9)
    assert max(late) <= timedelta(minutes=12)
    assert "VideoAttention" not in await generation.attributes()


async def test_no_verdict_within_a_day_ends_as_stalled_with_everything_known(rig: Rig) -> None:
    # Believed to be slow, so that it is looked at every half an hour once it is stalled, and the day passes quickly.
    policy = GenerationPolicy(schedule=PollSchedule(expected=5 * HOUR))
    script = Script(prepare=[policy], polls_of_task=again(running(60, remix_id="video_first")))
    generation = await rig.generate(script)

    error, details = await generation.failure()

    assert (error.type, error.message) == ("GenerationTimedOut", "no verdict within 1 day, 0:00:00")
    assert (details.paid, details.task_id, details.remix_id) == (Paid.YES, TASK_ID, "video_first")
    assert "pays nothing" in details.advice
    times = generation.script.times("query_generation")
    assert 21 * HOUR < times[-1] - times[0] < 24 * HOUR
    assert details.polls == len(times)
    assert (await generation.attributes())["VideoOutcome"] == "GenerationTimedOut"


@pytest.mark.parametrize(("verdict", "kind"), [(completed(), DeliveryKind.FULL), (extend_failed(), DeliveryKind.FIRST)])
async def test_delivery_that_fails_for_its_whole_window_ends_with_the_ids(
    rig: Rig, verdict: Any, kind: DeliveryKind
) -> None:
    no = refusal("StoreRefused", "the disk is full", retried=True, paid=Paid.YES, advice="overruled")
    policy = GenerationPolicy(delivery_window=3 * HOUR)
    generation = await rig.generate(Script(prepare=[policy], polls_of_task=[verdict], deliver=again(no)))

    error, details = await generation.failure()

    assert (error.type, error.message) == ("DeliveryFailed", "the disk is full")
    assert (details.paid, details.task_id, details.remix_id) == (Paid.YES, TASK_ID, "video_first")
    assert "without paying again" in details.advice
    assert {input.kind for input in generation.script.orders("deliver_video")} == {kind}
    times = generation.script.times("deliver_video")
    assert 2 * HOUR + 50 * MINUTE < times[-1] - times[0] <= 3 * HOUR
    assert generation.script.count("submit_generation") == 1
    assert (await generation.attributes())["VideoOutcome"] == "DeliveryFailed"


async def test_delivery_that_is_hopeless_ends_at_once(rig: Rig) -> None:
    no = refusal("DeliveryFailed", "every source says it is gone")
    generation = await rig.generate(Script(polls_of_task=[completed()], deliver=[no]))
    error, details = await generation.failure()
    assert (error.type, error.message, details.paid) == (
        "DeliveryFailed",
        "every source says it is gone",
        Paid.YES,
    )


# --- Pace ------------------------------------------------------------------------------------------------------------


async def test_looks_are_paced_by_the_policy_that_the_worker_brought(rig: Rig) -> None:
    policy = GenerationPolicy(schedule=PollSchedule(expected=timedelta(hours=1), min_interval=timedelta(minutes=9)))
    polls_of_task = changing(HOUR, running(10), completed())
    generation = await rig.generate(Script(prepare=[policy], polls_of_task=polls_of_task, deliver=FULL))
    await generation.result()
    submitted = generation.script.times("submit_generation")[0]
    times = generation.script.times("query_generation")
    assert timedelta(minutes=20) < times[0] - submitted < timedelta(minutes=30)
    assert min(b - a for a, b in pairwise(times)) >= timedelta(minutes=9)


async def test_hd_generations_are_looked_at_later(rig: Rig) -> None:
    generation = await rig.generate(Script(polls_of_task=[completed()], deliver=FULL), model="veo_3_1-hd-remix")
    await generation.result()
    (submitted,) = generation.script.times("submit_generation")
    (polled,) = generation.script.times("query_generation")
    assert polled - submitted > timedelta(seconds=120)


# --- Continue as new -------------------------------------------------------------------------------------------------


async def first_run(rig: Rig, generation: Generation) -> WorkflowExecutionDescription:
    run_id = generation.handle.first_execution_run_id
    return await rig.client.get_workflow_handle(generation.handle.id, run_id=run_id).describe()


async def first_run_status(rig: Rig, generation: Generation) -> WorkflowExecutionStatus | None:
    return (await first_run(rig, generation)).status


async def test_long_generation_continues_as_new_with_everything_it_knows(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_limit = watching.POLLS_PER_RUN
    monkeypatch.setattr(watching, "POLLS_PER_RUN", 40)
    policy = GenerationPolicy(schedule=PollSchedule(expected=MINUTE), overdue_after=20 * HOUR)
    told = running(70, remix_id="video_first", remix_id_extend="video_second", quota=7)
    forgetful = completed(remix_id=None, remix_id_extend=None, quota=None)
    script = Script(prepare=[policy], polls_of_task=[told, *[running(70)] * 84, forgetful], deliver=FULL)
    generation = await rig.generate(script, size="1920x1080")

    result = await generation.result()

    assert (result.polls, result.task_id) == (86, TASK_ID)
    assert (result.remix_id, result.remix_id_extend, result.quota) == ("video_first", "video_second", 7)
    assert ["not an -hd model" in warning for warning in result.warnings] == [True], "carried, not doubled"
    assert (script.count("prepare_generation"), script.count("submit_generation")) == (1, 1)
    first = await first_run(rig, generation)
    assert first.status is WorkflowExecutionStatus.CONTINUED_AS_NEW
    assert first.history_length / 40 * real_limit < 4_100, "the server's own limit"
    assert await generation.attributes() == {
        "VideoModel": REQUEST["model"],
        "VideoStage": "done",
        "VideoOutcome": "full",
        "VideoPaid": "yes",
        "GatewayTaskId": TASK_ID,
    }


async def test_clocks_that_were_running_go_on_in_the_next_run(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLLS_PER_RUN", 3)
    script = Script(polls_of_task=chain([running(60, remix_id="video_first")], again(lost(error_message="gone"))))
    generation = await rig.generate(script)

    error, details = await generation.failure()

    assert (error.type, details.remix_id, details.request_id) == ("TaskLost", "video_first", "req-1")
    times = script.times("query_generation")
    assert len(times) > 6
    assert 10 * MINUTE <= times[-1] - times[1] < 12 * MINUTE, "the ten minutes began in the first run"
    assert await first_run_status(rig, generation) is WorkflowExecutionStatus.CONTINUED_AS_NEW


async def test_what_needs_attention_is_still_shown_in_the_next_run(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLLS_PER_RUN", 1)
    last = Held(completed())
    generation = await rig.generate(Script(polls_of_task=[refusal("KeyRefused", "401"), last], deliver=FULL))
    await generation.skip_to(last)
    status = await generation.status()
    assert (status.attention, status.last_problem, status.polls) == (Attention.NEEDS_API_KEY, "401", 2)
    last.let_go()
    assert (await generation.result()).outcome == "full"
    first, second = generation.script.times("query_generation")
    assert second - first >= PollSchedule().expected, "a dead key is not asked with any sooner"
