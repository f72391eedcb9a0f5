"""A whole generation, and what is shown of it, on the time-skipping server. Each step has a file of its own."""

from datetime import timedelta

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.exceptions import ApplicationErrorCategory

from longtake.models import (
    DeliveryKind,
    GenerateVideoInput,
    GenerationPolicy,
    Paid,
    Stage,
    TaskState,
)
from tests.workflows.cases import FULL, summaries
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
    running,
)
from workflows.steps import poll

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_full_video_is_delivered_and_everything_about_it_is_returned(rig: Rig) -> None:
    polls = [running(10), running(61, remix_id="video_first", remix_id_extend="video_second"), completed()]
    generation = await rig.generate(Script(polls=polls, deliver=FULL), key="order-17")

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
    (submitted,) = generation.script.inputs("submit_generation")
    assert (submitted.key, submitted.request) == ("order-17", GenerateVideoInput(**REQUEST))
    (input,) = generation.script.inputs("deliver_video")
    assert (input.key, input.task_id, input.kind) == ("order-17", TASK_ID, DeliveryKind.FULL)
    assert (input.width, input.height) == (None, None)
    assert await generation.attributes() == {
        "VideoModel": REQUEST["model"],
        "VideoStage": "done",
        "VideoOutcome": "full",
        "VideoPaid": "yes",
        "GatewayTaskId": TASK_ID,
    }


async def test_where_the_task_lives_goes_with_every_poll_and_delivery(rig: Rig) -> None:
    home = {"gateway": "https://gateway.example", "account": "0123456789abcdef"}
    retried = {"gateway": "https://extend.example", "account": "fedcba9876543210"}
    generation = await rig.generate(
        Script(
            prepare=(GenerationPolicy(extension_retries=1),),
            submit=(accepted(**home),),
            polls=[extend_failed(), completed(task_id="task_extend")],
            deliver=(delivered(FIRST_CLIP), delivered(FULL_VIDEO)),
            extend=(accepted(task_id="task_extend", **retried),),
        ),
        on_extend_failed="retry",
    )
    assert (await generation.result()).outcome == "full"
    for name in ("query_generation", "deliver_video"):
        first, second = generation.script.inputs(name)
        assert [(one.gateway, one.account) for one in (first, second)] == [
            tuple(home.values()),
            tuple(retried.values()),
        ]


async def test_closed_generation_still_answers_and_its_page_shows_what_happened(rig: Rig) -> None:
    generation = await rig.generate(Script(polls=[completed()], deliver=FULL))
    await generation.result()

    status = await generation.status()
    assert (status.stage, status.outcome, status.video, status.polls) == (Stage.DONE, "full", FULL_VIDEO, 1)
    assert (status.task_id, status.remix_id, status.next_poll_at) == (TASK_ID, "video_first", None)
    page = await generation.page()
    assert page.startswith("**done**")
    for told in (TASK_ID, "video_first", "video_second", FULL_VIDEO.uri):
        assert told in page


async def test_page_of_a_running_generation_names_stage_task_and_next_poll(rig: Rig) -> None:
    generation = await rig.generate(Script(polls=[running(61, remix_id="video_first"), completed()], deliver=FULL))
    await rig.pass_time(timedelta(seconds=70))

    status = await generation.reaches(lambda status: status.polls == 1 and status.next_poll_at)
    assert (status.stage, status.progress) == (Stage.EXTENDING, 61)
    page = await generation.page()
    assert page.startswith("**extending** 61 %")
    assert f"{status.next_poll_at:%H:%M:%S} UTC" in page
    assert f"`{TASK_ID}`" in page
    assert "`video_first`" in page
    await generation.result()


async def test_page_says_that_there_is_nothing_to_do(rig: Rig) -> None:
    generation = await rig.generate(Script(polls=[completed()], deliver=FULL))
    await generation.result()
    assert "**What to do:** nothing." in await generation.page()


async def test_history_shows_each_step_by_its_summary_and_has_no_failed_task(rig: Rig) -> None:
    generation = await rig.generate(Script(polls=[running(10), completed()], deliver=FULL))
    await generation.result()

    events = await generation.events()
    told = summaries(events)
    assert '"submit veo_3_1-fast-remix: paid, at most once"' in told
    assert '"until poll 1: first_segment"' in told
    assert '"poll 2"' in told
    assert '"deliver the 15 s video"' in told
    kinds = [event.event_type for event in events]
    assert EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED in kinds
    assert EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED not in kinds


async def test_generate_failed_names_code_message_and_remix_id(rig: Rig) -> None:
    generation = await rig.generate(Script(polls=[running(20), generate_failed()]), key="order-19")

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
    generation = await rig.generate(Script(polls=[generate_failed(error_message=None)]))
    error, _ = await generation.failure()
    assert error.message == "the first segment failed"


async def test_only_what_has_changed_is_written_into_the_search_attributes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poll, "POLLS_PER_RUN", 2)
    generation = await rig.generate(Script(polls=[*[running(10)] * 4, completed()], deliver=FULL))
    await generation.result()
    shown: dict[str, bytes] = {}
    written = 0
    for event in await rig.history(generation):
        if event.event_type == EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES:
            attributes = event.upsert_workflow_search_attributes_event_attributes.search_attributes.indexed_fields
            for name, payload in attributes.items():
                assert shown.get(name) != payload.data
                shown[name] = payload.data
            written += 1
    assert written == len(("preparing", "submitting", "task", "first_segment", "extending", "delivering", "done"))
