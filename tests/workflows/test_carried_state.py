"""What a run hands to the next one: nothing that is shown is lost, and it is never judged as a request again."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import EventType

from longtake.client import KeyInUse, VideoClient
from longtake.models import (
    Attention,
    Decision,
    DecisionAction,
    FailureDetails,
    GenerateVideoInput,
    GenerationPolicy,
    GenerationStatus,
    KeyProblem,
    Paid,
    Stage,
    SubmissionReceipt,
    TaskRecord,
    TaskState,
    UncollectedExtension,
)
from longtake.request import rules
from longtake.temporal.connection import DATA_CONVERTER
from tests.workflows.cases import EXTENDED, FIRST, FULL, HOUR, RETRYING, retrying
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
    completed,
    extend_failed,
    lost,
    refusal,
    running,
    server_now,
)
from workflows.state import Doubt, GenerationState, LastPoll, PaidTask, Question
from workflows.steps import poll as watching

pytestmark = pytest.mark.asyncio(loop_scope="session")

AT = datetime(2026, 7, 22, 10, tzinfo=UTC)
TASK_FAILED = EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED

# --- The same key, asked for again ------------------------------------------------------------------------------------


async def test_a_key_that_was_continued_as_new_names_the_request_that_it_was_started_with(
    own_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "POLLS_PER_RUN", 1)
    held = Held(completed())
    generation = await own_rig.generate(Script(polls=[running(10), held], deliver=FULL), key="long-one")
    await generation.skip_to(held)
    client = VideoClient(own_rig.client)
    same = GenerateVideoInput.model_validate(REQUEST)
    with pytest.raises(KeyInUse, match="differs in prompt"):
        await client.start("long-one", same.model_copy(update={"prompt": "another"}))
    _, started = await client.start("long-one", same)
    assert not started
    held.let_go()
    assert (await generation.result()).polls == 2


# --- Never judged again ----------------------------------------------------------------------------------------------


async def test_model_that_is_retired_meanwhile_is_still_collected(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLLS_PER_RUN", 1)

    async def retired(_: Any) -> TaskRecord:
        offered = {name: model for name, model in rules.MODELS.items() if name != REQUEST["model"]}
        monkeypatch.setattr(rules, "MODELS", offered)
        return running(10)

    generation = await rig.generate(Script(polls=[retired, running(20), completed()], deliver=FULL), size="1280x720")

    result = await generation.result()

    assert (result.outcome, result.polls, result.model) == ("full", 3, REQUEST["model"])


async def test_what_an_older_worker_cannot_read_waits_for_a_newer_one(
    own_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was paid for: an unknown value fails the workflow task, never the workflow."""
    await _waits_for_a_newer_worker(own_rig, monkeypatch, {"stage": "polishing"})


async def test_state_of_a_later_form_waits_for_a_newer_worker(own_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await _waits_for_a_newer_worker(own_rig, monkeypatch, {"carried": 2})


async def _waits_for_a_newer_worker(rig: Rig, monkeypatch: pytest.MonkeyPatch, newer: dict[str, Any]) -> None:
    monkeypatch.setattr(watching, "POLLS_PER_RUN", 1)
    ours = workflow.continue_as_new
    known: dict[str, Any] = {}

    def as_a_newer_worker_does(state: GenerationState) -> None:
        known.update(state.model_dump(mode="json"))
        ours(known | newer)

    monkeypatch.setattr(workflow, "continue_as_new", as_a_newer_worker_does)
    generation = await rig.generate(Script(polls=[running(10), completed()], deliver=FULL))
    failed = asyncio.create_task(generation.result())  # lets time pass
    await generation.has_event(TASK_FAILED)
    assert generation.script.count("query_generation") == 1

    read = GenerationState.model_validate
    monkeypatch.setattr(GenerationState, "model_validate", lambda _: read(known))
    result = await failed
    assert (result.outcome, result.polls) == ("full", 2)


async def test_only_what_has_the_marker_is_taken_for_carried_state(own_rig: Rig) -> None:
    """A cron schedule starts the same request once more: that is a request, and is judged as one."""
    script = Script(polls=[completed()], deliver=FULL)
    forged = {"key": "k", "input": REQUEST, "carried": 1}
    error, _ = await (await own_rig.start(script, forged)).failure()
    assert error.type == "InvalidRequest", "nothing was continued as new here"


# --- Nothing is lost -------------------------------------------------------------------------------------------------

_TIMES = {"next_poll_at", "submitted_at"}
"""They differ from run to run by chance."""


class Watched:
    """Notes what the status says at every poll, and while clips are delivered."""

    def __init__(self) -> None:
        self.generation: Generation | None = None
        self.statuses: list[dict[str, Any]] = []

    def __call__(self, answer: Any) -> Callable[[Any], Any]:
        async def noting(input: Any) -> Any:
            assert self.generation is not None
            status = await self.generation.status()
            self.statuses.append(_comparable(status))
            if isinstance(answer, BaseException):
                raise answer
            return await answer(input) if callable(answer) else answer

        return noting


def _comparable(status: GenerationStatus) -> dict[str, Any]:
    shown = status.model_dump(mode="json", exclude=_TIMES | {"key"})
    return shown | {"submitted": status.submitted_at is not None, "advice": status.advice.replace(status.key, "KEY")}


REFUSED = refusal("KeyRefused", "401")
MISSING = refusal("TaskNotFound", "task_not_exist")
SCRIPTS: dict[str, dict[str, Any]] = {
    "trouble": {
        "polls": [
            REFUSED,
            running(61, remix_id="video_first", remix_id_extend="video_second", quota=7, upstream_task_id="up-1"),
            MISSING,
            running(70),
            completed(remix_id=None, remix_id_extend=None, quota=None),
        ],
        "deliver": FULL,
    },
    "lost": {"polls": [running(61, remix_id="video_first", quota=7), MISSING, *[lost(error_message="upstream")] * 3]},
    "retried extension": {
        "polls": [
            running(20, remix_id="video_first", quota=5),
            extend_failed(),
            REFUSED,
            running(30, **EXTENDED, quota=3, remix_id_extend="video_third", upstream_task_id="up-2"),
            MISSING,
            running(60, **EXTENDED),
            completed(**EXTENDED, remix_id_extend=None, quota=None),
        ],
        "extend": [accepted(**EXTENDED)],
        "deliver": [*FIRST, *FULL],
    },
    "two retries, the second one lost": {
        "polls": [
            extend_failed(),
            running(30, **EXTENDED, quota=3),
            extend_failed(**EXTENDED, error_message="again"),
            running(40, task_id="task_extend_2"),
            MISSING,
            *[lost(task_id="task_extend_2", error_message="upstream")] * 3,
        ],
        "extend": [accepted(**EXTENDED), accepted(task_id="task_extend_2")],
        "deliver": FIRST,
    },
    "retried extension that cannot be delivered": {
        "polls": [extend_failed(), running(30, **EXTENDED), completed(**EXTENDED)],
        "extend": [accepted(**EXTENDED)],
        "deliver": [*FIRST, refusal("DeliveryFailed", "gone")],
    },
}


async def played(rig: Rig, parts: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """How it ended, and every status on the way."""
    watched = Watched()
    script: dict[str, Any] = {step: [watched(answer) for answer in answers] for step, answers in parts.items()}
    generation = await rig.generate(Script(prepare=[RETRYING], **script), on_extend_failed="retry", keep_first=False)
    watched.generation = generation
    try:
        end: Any = await generation.result()
    except Exception:  # noqa: BLE001 - `failure` says how it ended
        error, details = await generation.failure()
        end = (error.type, error.message, details.model_copy(update={"key": None}))
    watched.statuses.append(_comparable(await generation.status()))
    return end, watched.statuses


def differing(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}


@pytest.mark.parametrize("name", SCRIPTS)
async def test_continued_as_new_after_every_poll_everything_is_shown_as_before(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = await played(rig, SCRIPTS[name])
    for limit in (1, 2, 3):
        monkeypatch.setattr(watching, "POLLS_PER_RUN", limit)
        end, statuses = await played(rig, SCRIPTS[name])
        assert [differing(one, other) for one, other in zip(statuses, whole[1], strict=False)] == [{}] * len(statuses)
        assert (end, len(statuses)) == (whole[0], len(whole[1]))


async def test_a_dead_key_is_not_asked_with_any_sooner_for_an_extension(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "POLLS_PER_RUN", 1)
    script = retrying(running(10, **EXTENDED), REFUSED, completed(**EXTENDED))
    await (await rig.generate(script, on_extend_failed="retry")).result()
    *_, refused, last = script.times("query_generation")
    assert last - refused >= RETRYING.schedule.expected


async def test_every_field_of_the_state_goes_through_temporal_unchanged() -> None:
    receipt = SubmissionReceipt(task_id=TASK_ID, submitted_at=AT, slot=2)
    task = PaidTask(
        receipt=receipt,
        record=running(61),
        polls=3,
        polling_since=AT,
        lost_since=AT,
        missing_since=AT,
        polls_without_task=2,
    )
    state = GenerationState(
        key="order-1",
        input=GenerateVideoInput.model_validate(REQUEST),
        policy=RETRYING,
        stage=Stage.EXTENDING,
        stage_since=AT,
        attention=Attention.TASK_LOST,
        paid=Paid.YES,
        first_task=task,
        extension_number=1,
        extension_task=task,
        polls=6,
        last_poll=LastPoll(number=6, result="lost"),
        polling=True,
        next_poll_at=AT,
        poll_requested=True,
        awaiting_key=True,
        waiting_since=AT,
        key_problem=KeyProblem.REFUSED,
        last_problem="gone",
        doubt=Doubt(extension=True, charged=Paid.NO, candidates=("a",), evidence=("b",)),
        question=Question(actions=(DecisionAction.ADOPT,), by=AT, slot=2),
        decision=Decision(action=DecisionAction.ADOPT, task_id="a", slot=2),
        first_video=FIRST_CLIP,
        video=FULL_VIDEO,
        uncollected=UncollectedExtension(number=1, reason="gone"),
        outcome="full",
        failure=FailureDetails(advice="wait"),
        warnings=("slow",),
    )
    fresh = GenerationState(key="")
    same = [name for name in GenerationState.model_fields if getattr(state, name) == getattr(fresh, name)]
    assert same == ["carried"], "give every field another value here"
    assert [name for name in PaidTask.model_fields if not getattr(task, name)] == []
    converter = DATA_CONVERTER.payload_converter
    carried = GenerationState.model_validate(converter.from_payloads(converter.to_payloads([state]))[0])
    assert carried == state


async def test_a_snapshot_is_out_of_reach_of_later_changes() -> None:
    state = GenerationState(key="k")
    state.first_task = PaidTask(receipt=SubmissionReceipt(task_id=TASK_ID, submitted_at=AT, slot=1))
    before, shown = state.show()
    assert before is None
    state.first_task.polls, state.warnings = 1, ("slow",)
    again_before, now = state.show()
    assert again_before == shown
    assert shown.first_task is not None
    assert (shown.first_task.polls, shown.warnings) == (0, ())
    assert now.first_task is not None
    assert (now.first_task.polls, now.warnings) == (1, ("slow",))


async def test_what_was_surely_paid_stays_so() -> None:
    state = GenerationState(key="k", paid=Paid.YES)
    for unsure in (Paid.UNKNOWN, Paid.NO, None):
        state.set_paid(unsure)
        assert state.paid is Paid.YES


# --- A day, and another one ------------------------------------------------------------------------------------------

SLOW = GenerationPolicy.model_validate({"schedule": {"expected": "PT5H"}})


def submitted_long_ago(age: timedelta) -> Callable[[Any], Any]:
    """A key that is started again: the ledger knows its task."""

    async def answer(input: Any) -> Any:
        return await accepted(submitted_at=server_now() - age, attached=True)(input)

    return answer


async def test_one_failed_poll_does_not_end_a_task_that_is_older_than_two_days(rig: Rig) -> None:
    script = Script(submit=[submitted_long_ago(50 * HOUR)], polls=[REFUSED, completed()], deliver=FULL)
    assert (await (await rig.generate(script)).result()).outcome == "full"


async def test_the_second_day_of_failed_polls_counts_from_the_start_of_this_watch(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "POLLS_PER_RUN", 7)
    script = Script(prepare=[SLOW], submit=[submitted_long_ago(50 * HOUR)], polls=again(refusal("Defect", "?")))
    error, details = await (await rig.generate(script)).failure()
    assert (error.type, details.task_id) == ("GenerationTimedOut", TASK_ID)
    times = script.times("query_generation")
    assert 22 * HOUR < times[-1] - times[0] < 26 * HOUR


@pytest.mark.parametrize("last", [lost(error_message="upstream"), refusal("Defect", "?")], ids=["lost", "trouble"])
async def test_given_up_while_the_gateways_last_word_is_lost_it_is_lost(rig: Rig, last: Any) -> None:
    policy = SLOW.model_copy(update={"lost_grace": timedelta(days=30), "give_up_after": HOUR})
    script = Script(prepare=[policy], polls=chain([lost(error_message="upstream")], again(last)))
    error, details = await (await rig.generate(script)).failure()
    assert error.type == "TaskLost"
    assert details.last_record is not None
    assert details.last_record.state is TaskState.LOST


# --- Time is Temporal's ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("minutes", [10, -10])
async def test_polls_are_planned_by_temporals_time_alone(rig: Rig, attached: bool, minutes: int) -> None:
    """The worker that submitted had a clock that was ten minutes off."""

    async def off(input: Any) -> Any:
        at = server_now() + timedelta(minutes=minutes)
        return await accepted(submitted_at=at, attached=attached)(input)

    script = Script(submit=[off], polls=[running(10), completed()], deliver=FULL)
    generation = await rig.generate(script)
    assert (await generation.result()).outcome == "full"
    (submitted,) = script.times("submit_generation")
    waited = script.times("query_generation")[0] - submitted
    if attached and minutes < 0:
        assert waited < timedelta(seconds=20), "it may really have been sent ten minutes ago"
    else:
        assert timedelta(seconds=40) < waited < timedelta(seconds=90)
    status = await generation.status()
    assert status.submitted_at is not None
    assert status.submitted_at <= script.times("query_generation")[0]


async def test_the_time_of_a_retried_extension_is_temporals_too(rig: Rig) -> None:
    async def ahead(input: Any) -> Any:
        return await accepted(**EXTENDED, submitted_at=server_now() + timedelta(minutes=10))(input)

    script = Script(
        prepare=[RETRYING],
        polls=[extend_failed(), completed(**EXTENDED)],
        extend=[ahead],
        deliver=[*FIRST, *FULL],
    )
    await (await rig.generate(script, on_extend_failed="retry")).result()
    (submitted,) = script.times("submit_extension")
    assert script.times("query_generation")[1] - submitted < timedelta(minutes=2)
