"""Delivering the clips, and saving the first one where the full video has trouble."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import pytest

from longtake.display import prose
from longtake.models import (
    Attention,
    DeliveryKind,
    GenerationPolicy,
    Paid,
    Stage,
)
from tests.workflows.cases import FIRST, FULL, HOUR, MINUTE
from tests.workflows.rig import (
    FIRST_CLIP,
    FULL_VIDEO,
    TASK_ID,
    Generation,
    Held,
    Rig,
    Script,
    again,
    completed,
    delivered,
    extend_failed,
    refusal,
    server_now,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")


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
    generation = await rig.generate(Script(polls=[completed()], deliver=FULL), **fields)

    result = await generation.result()

    (input,) = generation.script.inputs("deliver_video")
    assert (input.width, input.height) == picture
    assert [("not an -hd model" in warning) for warning in result.warnings] == [True] * warned


async def test_warnings_of_the_delivery_are_in_the_result(rig: Rig) -> None:
    late = [delivered(FULL_VIDEO, "the video has 1280x720, 1920x1080 was asked for")]
    generation = await rig.generate(Script(polls=[completed()], deliver=late))
    assert (await generation.result()).warnings == ("the video has 1280x720, 1920x1080 was asked for",)


async def test_delivery_is_tried_until_it_works(rig: Rig) -> None:
    trouble = [refusal("DeliveryFailed", "no source gives a whole video", retried=True)] * 5
    generation = await rig.generate(Script(polls=[completed()], deliver=[*trouble, *FULL]))
    assert (await generation.result()).outcome == "full"
    assert generation.script.count("deliver_video") == 6


async def test_delivery_that_takes_long_is_shown_and_goes_on(rig: Rig) -> None:
    dies = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    no = refusal("StoreRefused", "the disk is full", retried=True, paid=Paid.YES)
    shown = Held(delivered(FULL_VIDEO))
    deliver = chain(changing_until(timedelta(minutes=11), no), [shown])
    generation = await rig.generate(Script(polls=[completed(link_expires_at=dies)], deliver=deliver))
    await generation.skip_to(shown)

    status = await generation.status()
    assert (status.stage, status.attention) == (Stage.DELIVERING, Attention.DELIVERY_FAILING)
    assert status.last_problem
    assert (await generation.attributes())["VideoAttention"] == "delivery_failing"
    page = await generation.page()
    for told in (prose(status.last_problem), "2030-01-02 03:04:05 UTC"):
        assert told in page

    shown.let_go()
    assert (await generation.result()).outcome == "full"
    assert "VideoAttention" not in await generation.attributes()
    assert "2030-01-02" not in await generation.page(), "what is stored needs no link"
    assert (await generation.status()).last_problem is None
    assert await delivery_activities(generation) == 1, "one activity for the whole window"


async def test_one_attempt_of_a_delivery_may_take_the_whole_window(rig: Rig) -> None:
    """What is slow and well is not begun again at its first byte."""
    policy = GenerationPolicy(delivery_window=timedelta(hours=5))
    generation = await rig.generate(Script(prepare=[policy], polls=[completed()], deliver=FULL))
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
    script = Script(polls=[completed(**BOTH)], deliver=by_kind(NO_FULL, delivered(FIRST_CLIP)))
    generation = await rig.generate(script, key="order-19")

    error, details = await generation.failure()

    assert error.type == "DeliveryFailed"
    assert details.first_video == FIRST_CLIP
    status = await generation.status()
    assert status.first_video == FIRST_CLIP
    began = generation.script.times("deliver_video")
    kinds = [input.kind for input in generation.script.inputs("deliver_video")]
    assert kinds.count(DeliveryKind.FIRST) == 1
    assert began[kinds.index(DeliveryKind.FIRST)] - began[0] < timedelta(minutes=11), "while its link lives"
    assert began[-1] - began[0] > timedelta(hours=23), "the full one is tried to the end of its window"


async def test_the_first_clip_is_shown_while_the_full_video_is_still_tried(rig: Rig) -> None:
    held = Held(delivered(FULL_VIDEO))
    full = chain(changing_until(timedelta(minutes=40), NO_FULL), [held])
    script = Script(polls=[completed(**BOTH)], deliver=by_kind(full, delivered(FIRST_CLIP)))
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
    script = Script(polls=[completed(**BOTH)], deliver=by_kind(full, delivered(FIRST_CLIP)))
    generation = await rig.generate(script, keep_first=keep_first)
    assert (await generation.result()).first_video == FIRST_CLIP
    kinds = [input.kind for input in generation.script.inputs("deliver_video")]
    assert kinds.count(DeliveryKind.FIRST) == 1


async def test_a_full_video_that_is_gone_for_good_leaves_the_first_clip(rig: Rig) -> None:
    gone = refusal("DeliveryFailed", "gone", paid=Paid.YES)
    trouble = refusal("DeliveryFailed", "502", retried=True, paid=Paid.YES)
    first = chain([trouble] * 5, again(delivered(FIRST_CLIP)))
    generation = await rig.generate(Script(polls=[completed(**BOTH)], deliver=by_kind(gone, first)))
    error, details = await generation.failure()
    assert (error.type, error.message, details.first_video) == ("DeliveryFailed", "gone", FIRST_CLIP)


async def test_neither_clip_can_be_had(rig: Rig) -> None:
    gone = refusal("DeliveryFailed", "gone", paid=Paid.YES)
    script = Script(polls=[completed(**BOTH)], deliver=by_kind(NO_FULL, gone))
    generation = await rig.generate(script)
    error, details = await generation.failure()
    assert (error.type, details.first_video) == ("DeliveryFailed", None)
    assert [input.kind for input in generation.script.inputs("deliver_video")].count(DeliveryKind.FIRST) == 1


async def test_a_full_video_that_comes_ends_the_search_for_the_first_clip(own_rig: Rig) -> None:
    full = chain(changing_until(timedelta(minutes=40), NO_FULL), again(delivered(FULL_VIDEO)))
    never = refusal("DeliveryFailed", "502", retried=True, paid=Paid.YES)
    generation = await own_rig.generate(Script(polls=[completed(**BOTH)], deliver=by_kind(full, never)))
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


async def test_first_clip_is_kept_where_it_is_asked_for(rig: Rig) -> None:
    generation = await rig.generate(Script(polls=[completed()], deliver=[*FULL, *FIRST]), keep_first=True)
    result = await generation.result()
    assert (result.video, result.first_video) == (FULL_VIDEO, FIRST_CLIP)
    assert [input.kind for input in generation.script.inputs("deliver_video")] == [
        DeliveryKind.FULL,
        DeliveryKind.FIRST,
    ]


async def test_first_clip_that_cannot_be_kept_is_a_warning(rig: Rig) -> None:
    gone = refusal("DeliveryFailed", "it is gone")
    generation = await rig.generate(Script(polls=[completed()], deliver=[*FULL, gone]), keep_first=True)
    result = await generation.result()
    assert (result.outcome, result.video, result.first_video) == ("full", FULL_VIDEO, None)
    assert result.warnings == ("the first 8 s could not be stored beside the full video: it is gone",)


@pytest.mark.parametrize(("verdict", "kind"), [(completed(), DeliveryKind.FULL), (extend_failed(), DeliveryKind.FIRST)])
async def test_delivery_that_fails_for_its_whole_window_ends_with_the_ids(
    rig: Rig, verdict: Any, kind: DeliveryKind
) -> None:
    no = refusal("StoreRefused", "the disk is full", retried=True, paid=Paid.YES, advice="overruled")
    policy = GenerationPolicy(delivery_window=3 * HOUR)
    generation = await rig.generate(Script(prepare=[policy], polls=[verdict], deliver=again(no)))

    error, details = await generation.failure()

    assert (error.type, error.message) == ("DeliveryFailed", "the disk is full")
    assert (details.paid, details.task_id, details.remix_id) == (Paid.YES, TASK_ID, "video_first")
    assert "without paying again" in details.advice
    assert {input.kind for input in generation.script.inputs("deliver_video")} == {kind}
    times = generation.script.times("deliver_video")
    assert 2 * HOUR + 50 * MINUTE < times[-1] - times[0] <= 3 * HOUR
    assert generation.script.count("submit_generation") == 1
    assert (await generation.attributes())["VideoOutcome"] == "DeliveryFailed"


async def test_delivery_that_is_hopeless_ends_at_once(rig: Rig) -> None:
    no = refusal("DeliveryFailed", "every source says it is gone")
    generation = await rig.generate(Script(polls=[completed()], deliver=[no]))
    error, details = await generation.failure()
    assert (error.type, error.message, details.paid) == (
        "DeliveryFailed",
        "every source says it is gone",
        Paid.YES,
    )
