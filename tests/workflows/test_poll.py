"""Polling: its schedule, failing polls, lost and overdue tasks, and continuing as new."""

from datetime import timedelta
from itertools import chain, pairwise

import pytest
from temporalio.client import WorkflowExecutionStatus, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from longtake.models import (
    Attention,
    GenerationPolicy,
    Paid,
    PollSchedule,
    Stage,
)
from tests.workflows.cases import FIRST, FULL, HOUR, MINUTE, first_run, first_run_status
from tests.workflows.rig import (
    REQUEST,
    TASK_ID,
    Held,
    Rig,
    Script,
    accepted,
    again,
    changing,
    completed,
    extend_failed,
    lost,
    refusal,
    running,
)
from workflows.steps import poll as watching

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("kind", ["WrongGateway", "TaskNotVisible"])
async def test_a_worker_that_cannot_see_the_task_never_makes_it_lost(rig: Rig, kind: str) -> None:
    """`TaskNotFound` for that long would end it: its row is missing."""
    elsewhere = refusal(kind, "the task lives at https://elsewhere.example", retried=True, paid=Paid.YES)
    generation = await rig.generate(Script(polls=changing(6 * HOUR, elsewhere, completed()), deliver=FULL))
    assert (await generation.result()).outcome == "full"


async def test_refused_key_is_shown_and_the_generation_goes_on_by_itself(rig: Rig) -> None:
    no = refusal("KeyRefused", "401: wrong key", http_status=401)
    generation = await rig.generate(Script(polls=[no, completed()], deliver=FULL))
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


async def test_poll_now_polls_at_once(rig: Rig) -> None:
    no = refusal("KeyRefused", "401: wrong key", http_status=401)
    generation = await rig.generate(Script(polls=[no, running(70), completed()], deliver=FULL))
    await rig.pass_time(timedelta(seconds=70))
    await generation.reaches(lambda status: status.attention is Attention.NEEDS_API_KEY and status.next_poll_at)

    answer = await generation.handle.execute_update("poll_now")

    assert answer["attention"] == "needs_api_key"
    status = await generation.reaches(lambda status: status.polls == 2 and status.next_poll_at)
    assert (status.attention, status.progress) == (None, 70)
    assert (await generation.result()).polls == 3
    first, second, _ = generation.script.times("query_generation")
    assert second - first < timedelta(seconds=60), "no time was skipped, so it cannot have waited"


async def test_poll_now_during_a_poll_brings_another_one(rig: Rig) -> None:
    slow = Held(running(10))
    generation = await rig.generate(Script(polls=[slow, running(20), completed()], deliver=FULL))
    await generation.skip_to(slow)
    await generation.handle.execute_update("poll_now")
    slow.let_go()
    assert (await generation.reaches(lambda status: status.polls == 2 and status.next_poll_at)).progress == 20
    await generation.result()


@pytest.mark.parametrize("stage", ["preparing", "delivering", "awaiting_decision"])
async def test_poll_now_is_rejected_where_nothing_is_polled(own_rig: Rig, stage: str) -> None:
    held = Held(GenerationPolicy() if stage == "preparing" else FULL[0])
    script = {
        "preparing": Script(prepare=[held], polls=[completed()], deliver=FULL),
        "delivering": Script(polls=[completed()], deliver=[held]),
        "awaiting_decision": Script(polls=[extend_failed()], deliver=FIRST),
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
    assert rejection.value.cause.type == "NotPolling"
    held.let_go()


async def test_poll_now_during_the_poll_that_brings_the_verdict_skips_no_later_wait(own_rig: Rig) -> None:
    verdict = Held(extend_failed())
    policy = GenerationPolicy(extension_retries=1)
    script = Script(
        prepare=[policy],
        polls=[verdict, completed(task_id="task_extend_1")],
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


@pytest.mark.parametrize("kind", ["InvalidResponse", "TaskNotFound", "Defect", "NeverHeardOf"])
async def test_poll_without_a_status_is_shown_and_repeated(rig: Rig, kind: str) -> None:
    third = Held(completed(remix_id=None))
    polls = [running(61, remix_id="video_first"), refusal(kind, "an HTML page"), third]
    generation = await rig.generate(Script(polls=polls, deliver=FULL))
    await generation.skip_to(third)

    status = await generation.status()
    assert (status.attention, status.last_problem) == (Attention.POLL_FAILING, "an HTML page")
    assert (status.stage, status.remix_id) == (Stage.EXTENDING, "video_first")

    third.let_go()
    result = await generation.result()
    assert (result.outcome, result.polls) == ("full", 3)
    assert result.remix_id == "video_first", "an id once told is kept"
    assert (await generation.status()).last_problem is None


async def test_poll_is_tried_four_times_and_counts_once(rig: Rig) -> None:
    trouble = [refusal("PollFailing", "502", retried=True)] * 8
    generation = await rig.generate(Script(polls=[*trouble, completed()], deliver=FULL))
    assert (await generation.result()).polls == 3
    assert generation.script.count("query_generation") == 9


async def test_task_that_is_not_found_for_a_while_is_waited_for(rig: Rig) -> None:
    polls = changing(timedelta(minutes=40), refusal("TaskNotFound", "task_not_exist"), completed())
    generation = await rig.generate(Script(polls=polls, deliver=FULL))
    assert (await generation.result()).outcome == "full"


async def test_task_that_is_never_found_is_lost(rig: Rig) -> None:
    generation = await rig.generate(Script(polls=again(refusal("TaskNotFound", "task_not_exist"))))

    error, details = await generation.failure()

    assert error.type == "TaskLost"
    assert error.message == f"the gateway does not know the task {TASK_ID}: task_not_exist"
    assert (details.paid, details.task_id, details.request_id) == (Paid.YES, TASK_ID, "req-1")
    times = generation.script.times("query_generation")
    assert timedelta(minutes=45) <= times[-1] - times[0] < timedelta(minutes=60)
    assert (await generation.attributes())["VideoOutcome"] == "TaskLost"


@pytest.mark.parametrize("answer", [refusal("TaskNotFound", "task_not_exist"), lost(error_message="gone")])
async def test_time_without_polls_is_no_evidence_that_a_task_is_lost(rig: Rig, answer: object) -> None:
    """No worker for an hour, or polls that are far apart: two answers are two answers."""
    policy = GenerationPolicy(
        schedule=PollSchedule(expected=100 * MINUTE), overdue_after=5 * MINUTE, lost_grace=5 * MINUTE
    )
    generation = await rig.generate(Script(prepare=[policy], polls=[answer, answer, completed()], deliver=FULL))
    result = await generation.result()
    assert (result.outcome, result.polls) == ("full", 3)


async def test_task_that_was_found_in_between_starts_the_clock_anew(rig: Rig) -> None:
    policy = GenerationPolicy(schedule=PollSchedule(expected=MINUTE), overdue_after=10 * MINUTE)
    missing = refusal("TaskNotFound", "task_not_exist")
    found = Held(running(10))
    polls = chain([missing, found], changing(9 * MINUTE, missing, completed()))
    generation = await rig.generate(Script(prepare=[policy], polls=polls, deliver=FULL))
    await generation.skip_to(found)
    found.let_go()
    assert (await generation.result()).outcome == "full"


async def test_task_given_up_without_a_verdict_is_still_watched_and_then_lost(rig: Rig) -> None:
    good = running(61, remix_id="video_first", remix_id_extend="video_second", upstream_task_id="up-1", quota=7)
    gone = lost(error_message="upstream returned error")
    third = Held(gone)
    generation = await rig.generate(Script(polls=chain([good, gone, third], again(gone))))
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
    generation = await rig.generate(Script(polls=again(lost())))
    error, _ = await generation.failure()
    assert "the gateway says FAILURE, without a verdict" in error.message


async def test_task_given_up_and_found_again_is_delivered(rig: Rig) -> None:
    gone = lost(error_message="upstream returned error")
    polls = chain([running(20)], changing(timedelta(minutes=8), gone, completed()))
    generation = await rig.generate(Script(polls=polls, deliver=FULL))
    assert (await generation.result()).outcome == "full"
    assert (await generation.status()).last_problem is None


async def test_task_given_up_twice_is_watched_twice(rig: Rig) -> None:
    gone = lost(error_message="upstream returned error")
    polls = chain([gone, running(20)], changing(timedelta(minutes=9), gone, completed()))
    generation = await rig.generate(Script(polls=polls, deliver=FULL))
    assert (await generation.result()).outcome == "full"


async def test_overdue_generation_is_shown_polled_slowly_and_still_collected(rig: Rig) -> None:
    polls = changing(timedelta(hours=5), running(60), completed())
    generation = await rig.generate(Script(polls=polls, deliver=FULL))
    await rig.pass_time(timedelta(minutes=44))
    assert (await generation.status()).attention is None
    await rig.pass_time(timedelta(minutes=15))
    await generation.reaches(lambda status: status.attention is Attention.OVERDUE)
    assert (await generation.attributes())["VideoAttention"] == "overdue"
    assert (await generation.status()).advice

    assert (await generation.result()).outcome == "full"

    times = generation.script.times("query_generation")
    late = [b - a for a, b in pairwise(times) if a - times[0] > timedelta(minutes=50)]
    assert len(late) > 20
    assert min(late) >= timedelta(minutes=9)
    assert max(late) <= timedelta(minutes=12)
    assert "VideoAttention" not in await generation.attributes()


async def test_no_verdict_within_a_day_ends_as_stalled_with_everything_known(rig: Rig) -> None:
    # Believed to be slow, so that it is polled every half an hour once it is stalled, and the day passes quickly.
    policy = GenerationPolicy(schedule=PollSchedule(expected=5 * HOUR))
    script = Script(prepare=[policy], polls=again(running(60, remix_id="video_first")))
    generation = await rig.generate(script)

    error, details = await generation.failure()

    assert (error.type, error.message) == ("GenerationTimedOut", "no verdict within 1 day, 0:00:00")
    assert (details.paid, details.task_id, details.remix_id) == (Paid.YES, TASK_ID, "video_first")
    assert "pays nothing" in details.advice
    times = generation.script.times("query_generation")
    assert 21 * HOUR < times[-1] - times[0] < 24 * HOUR
    assert details.polls == len(times)
    assert (await generation.attributes())["VideoOutcome"] == "GenerationTimedOut"


async def test_polls_are_paced_by_the_policy_that_the_worker_brought(rig: Rig) -> None:
    policy = GenerationPolicy(schedule=PollSchedule(expected=timedelta(hours=1), min_interval=timedelta(minutes=9)))
    polls = changing(HOUR, running(10), completed())
    generation = await rig.generate(Script(prepare=[policy], polls=polls, deliver=FULL))
    await generation.result()
    submitted = generation.script.times("submit_generation")[0]
    times = generation.script.times("query_generation")
    assert timedelta(minutes=20) < times[0] - submitted < timedelta(minutes=30)
    assert min(b - a for a, b in pairwise(times)) >= timedelta(minutes=9)


async def test_hd_generations_are_polled_later(rig: Rig) -> None:
    generation = await rig.generate(Script(polls=[completed()], deliver=FULL), model="veo_3_1-hd-remix")
    await generation.result()
    (submitted,) = generation.script.times("submit_generation")
    (polled,) = generation.script.times("query_generation")
    assert polled - submitted > timedelta(seconds=120)


async def test_long_generation_continues_as_new_with_everything_it_knows(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_limit = watching.POLLS_PER_RUN
    monkeypatch.setattr(watching, "POLLS_PER_RUN", 40)
    policy = GenerationPolicy(schedule=PollSchedule(expected=MINUTE), overdue_after=20 * HOUR)
    told = running(70, remix_id="video_first", remix_id_extend="video_second", quota=7)
    forgetful = completed(remix_id=None, remix_id_extend=None, quota=None)
    script = Script(prepare=[policy], polls=[told, *[running(70)] * 84, forgetful], deliver=FULL)
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
    script = Script(polls=chain([running(60, remix_id="video_first")], again(lost(error_message="gone"))))
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
    generation = await rig.generate(Script(polls=[refusal("KeyRefused", "401"), last], deliver=FULL))
    await generation.skip_to(last)
    status = await generation.status()
    assert (status.attention, status.last_problem, status.polls) == (Attention.NEEDS_API_KEY, "401", 2)
    last.let_go()
    assert (await generation.result()).outcome == "full"
    first, second = generation.script.times("query_generation")
    assert second - first >= PollSchedule().expected, "a dead key is not asked with any sooner"
