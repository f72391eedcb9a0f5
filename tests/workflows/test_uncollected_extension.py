"""An extension that was paid for again: its task is shown, and what was not delivered is collected by the same key."""

from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType

from longtake.models import ClosedSubmission, GenerationPolicy, Paid, Reconciliation, Stage
from tests.workflows.cases import EXTENDED, FIRST, RETRYING, UNKNOWN, retrying
from tests.workflows.rig import (
    FIRST_CLIP,
    TASK_ID,
    Held,
    Rig,
    Script,
    accepted,
    again,
    completed,
    extend_failed,
    generate_failed,
    lost,
    refusal,
    running,
)
from workflows.steps import poll as polling

pytestmark = pytest.mark.asyncio(loop_scope="session")

SENT = RETRYING.model_copy(update={"extensions_sent": 1})
"""What `prepare_generation` brings where an earlier run of the key has paid for an extension."""


# --- Its task is shown -----------------------------------------------------------------------------------------------


async def test_the_task_of_a_paid_retry_is_shown_everywhere(rig: Rig) -> None:
    poll = Held(completed(**EXTENDED, remix_id_extend="video_third"))
    generation = await rig.generate(retrying(poll), on_extend_failed="retry")
    await generation.skip_to(poll)
    status = await generation.status()
    assert (status.task_id, status.extension_task_id) == (TASK_ID, "task_extend_1")
    assert "task_extend_1" in await generation.page()
    poll.let_go()
    result = await generation.result()
    assert (result.extension_task_id, result.remix_id_extend) == ("task_extend_1", "video_third")
    assert result.uncollected is None


async def test_an_upstream_id_is_never_a_task_of_the_gateway(rig: Rig) -> None:
    gone = refusal("DeliveryFailed", "gone")
    script = retrying(completed(**EXTENDED, remix_id_extend=None), deliver=[*FIRST, gone])
    _, details = await (await rig.generate(script, on_extend_failed="retry")).failure()
    assert (details.extension_task_id, details.remix_id_extend) == ("task_extend_1", "video_second")


@pytest.mark.parametrize("while_submitted", [True, False])
async def test_the_task_of_a_paid_retry_is_shown_when_it_is_cancelled(own_rig: Rig, while_submitted: bool) -> None:
    held = Held(accepted(**EXTENDED) if while_submitted else running(10, **EXTENDED))
    script = retrying(extend=[held], deliver=FIRST) if while_submitted else retrying(held, deliver=FIRST)
    generation = await own_rig.generate(script, on_extend_failed="retry")
    await generation.skip_to(held)
    await generation.handle.cancel()
    if while_submitted:
        await generation.has_event(EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED)
    held.let_go()
    await generation.cancellation()
    status = await generation.status()
    assert (status.stage, status.extension_task_id, status.paid) == (Stage.CANCELLED, "task_extend_1", Paid.YES)
    assert status.advice
    assert "task_extend_1" in await generation.page()


# --- What was not delivered ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extend", "polls", "task_id"),
    [
        ([accepted(**EXTENDED)], [lost(**EXTENDED)] * 3, "task_extend_1"),
        ([UNKNOWN], [], None),
        ([refusal("SubmissionRefused", "no", paid=Paid.NO)], [], "nothing was paid"),
        ([accepted(**EXTENDED)] * 2, [generate_failed(**EXTENDED)] * 2, "nothing is left"),
    ],
    ids=["lost", "unknown", "refused", "failed"],
)
async def test_the_result_says_whether_a_paid_extension_is_uncollected(
    rig: Rig, extend: Any, polls: Any, task_id: str | None
) -> None:
    script = retrying(
        *polls,
        extend=extend,
        close=again(ClosedSubmission()),
        reconcile=again(Reconciliation(evidence=("charged once",))),
        deliver=FIRST,
    )
    generation = await rig.generate(script, on_extend_failed="retry")
    result = await generation.result()
    status = await generation.status()
    assert (result.outcome, result.video) == ("fallback", FIRST_CLIP)
    if task_id and task_id.startswith("nothing"):
        assert (result.uncollected, status.advice, status.evidence) == (None, "", ())
    else:
        assert result.uncollected is not None
        assert (result.uncollected.number, result.uncollected.task_id) == (1, task_id)
        assert status.advice
    assert status.paid is Paid.YES
    assert (await generation.attributes())["VideoPaid"] == "yes"


# --- Collected by the same key, without paying -----------------------------------------------------------------------


@pytest.mark.parametrize("wish", ["retry", "ask", "fallback"])
async def test_what_an_earlier_run_paid_for_is_collected_before_anybody_is_asked(rig: Rig, wish: str) -> None:
    script = retrying(
        completed(**EXTENDED),
        prepare=[SENT],
        submit=[accepted(attached=True)],
        extend=[accepted(**EXTENDED, attached=True)],
    )
    generation = await rig.generate(script, on_extend_failed=wish, key=f"again-{wish}")
    result = await generation.result()
    assert (result.outcome, result.extension_task_id, result.uncollected) == ("full", "task_extend_1", None)
    (input,) = script.inputs("submit_extension")
    assert input.ledger_key == f"again-{wish}#extend-1"


async def test_what_is_collected_goes_on_being_collected_when_continued_as_new(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "POLLS_PER_RUN", 1)
    script = retrying(
        running(60, **EXTENDED),
        completed(**EXTENDED),
        prepare=[SENT],
        submit=[accepted(attached=True)],
        extend=[accepted(**EXTENDED, attached=True)],
    )
    result = await (await rig.generate(script, on_extend_failed="fallback")).result()
    assert (result.outcome, result.extension_task_id, result.uncollected) == ("full", "task_extend_1", None)
    assert script.count("submit_extension") == 1


async def test_a_key_that_is_started_again_pays_for_no_further_extension(rig: Rig) -> None:
    script = retrying(
        generate_failed(**EXTENDED), prepare=[SENT], extend=[accepted(**EXTENDED, attached=True)], deliver=FIRST
    )
    result = await (await rig.generate(script, on_extend_failed="retry")).result()
    assert (result.outcome, result.uncollected, len(result.warnings)) == ("fallback", None, 2)


async def test_a_person_may_still_choose_to_pay_for_the_next_one(rig: Rig) -> None:
    script = retrying(
        generate_failed(**EXTENDED),
        completed(task_id="task_extend_2"),
        prepare=[SENT],
        extend=[accepted(**EXTENDED, attached=True), accepted(task_id="task_extend_2")],
    )
    generation = await rig.generate(script, on_extend_failed="ask", key="again-asked")
    await rig.pass_time(timedelta(minutes=4))
    await generation.reaches(lambda status: status.stage is Stage.AWAITING_DECISION)
    await generation.handle.execute_update("decide", {"action": "retry"})
    assert (await generation.result()).outcome == "full"
    assert [input.ledger_key for input in script.inputs("submit_extension")] == [
        "again-asked#extend-1",
        "again-asked#extend-2",
    ]


async def test_where_it_cannot_be_collected_now_it_stays_to_be_collected(rig: Rig) -> None:
    policy = GenerationPolicy(extensions_sent=1)  # the gateway that retries is not configured any more
    script = Script(prepare=[policy], polls=[extend_failed()], deliver=FIRST)
    result = await (await rig.generate(script, on_extend_failed="retry")).result()
    assert result.uncollected is not None
    assert (result.outcome, result.uncollected.number) == ("fallback", 1)


# --- A doubt about it ------------------------------------------------------------------------------------------------


async def test_a_doubt_about_an_extension_never_lowers_what_was_surely_paid(rig: Rig) -> None:
    policy = RETRYING.model_copy(update={"decision_window": timedelta(days=7)})
    script = retrying(
        prepare=[policy],
        extend=[UNKNOWN],
        reconcile=again(Reconciliation(candidates=("task_a",), evidence=("charged once",))),
        deliver=FIRST,
    )
    generation = await rig.generate(script, on_extend_failed="retry")
    await rig.pass_time(timedelta(seconds=80))
    status = await generation.reaches(lambda status: status.stage is Stage.AWAITING_DECISION)
    assert status.paid is Paid.YES
    assert (await generation.attributes())["VideoPaid"] == "unknown", "the list finds every open doubt"

    await generation.handle.execute_update("decide", {"action": "abandon"})

    result = await generation.result()
    assert result.uncollected is not None
    status = await generation.status()
    assert (status.paid, status.decisions, status.decide_by) == (Paid.YES, (), None)
    assert status.evidence, "it still says where to look"
    assert (await generation.attributes())["VideoPaid"] == "yes"
    assert "starter.py decide" not in await generation.page()
