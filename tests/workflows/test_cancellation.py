"""Cancelling works in every state: nobody waits any more, and no id that is known gets lost."""

from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowExecutionStatus

from longtake.display import after_cancelling
from longtake.models import (
    Attention,
    ClosedSubmission,
    DeliveryKind,
    FailureDetails,
    GenerationPolicy,
    Paid,
    Reconciliation,
    Stage,
)
from tests.workflows.rig import (
    FIRST_CLIP,
    FULL_VIDEO,
    TASK_ID,
    Generation,
    Held,
    Rig,
    Script,
    accepted,
    again,
    completed,
    delivered,
    extend_failed,
    refusal,
    running,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

COMPLETED = EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
IN_DOUBT = ClosedSubmission(in_doubt=FailureDetails(slot=1))
CANCEL_HEARD = EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED


async def cancelled(generation: Generation, *, task_id: str | None, paid: str = "yes") -> None:
    """It has ended as `Cancelled`, everybody is told so, and its task id is kept."""
    await generation.cancellation()
    status = await generation.status()
    assert (status.stage, status.outcome, status.task_id) == (Stage.CANCELLED, None, task_id)
    assert status.message.endswith(after_cancelling(paid))
    attributes = await generation.attributes()
    assert attributes.pop("VideoModel")
    known = {"VideoStage": "cancelled", "VideoPaid": paid}
    assert attributes == known | ({"GatewayTaskId": task_id} if task_id else {})
    page = await generation.page()
    assert page.startswith("**cancelled**")
    assert task_id is None or task_id in page


async def test_before_the_worker_has_seen_it(own_rig: Rig) -> None:
    generation = await own_rig.generate(Script(prepare=[Held(GenerationPolicy())], close=[ClosedSubmission()]))
    await generation.handle.cancel()
    await generation.cancellation()
    status = await generation.status()
    assert (status.stage, status.paid) == (Stage.CANCELLED, Paid.NO)
    assert generation.script.count("submit_generation") == 0


async def test_while_preparing(own_rig: Rig) -> None:
    held = Held(GenerationPolicy())
    generation = await own_rig.generate(Script(prepare=[held], close=[ClosedSubmission()]))
    await held.begun.wait()
    await generation.handle.cancel()
    await cancelled(generation, task_id=None, paid="no")
    held.let_go()
    assert generation.script.count("submit_generation") == 0


async def earlier(_: Any) -> ClosedSubmission:
    """An earlier run of the same key was paid."""
    return ClosedSubmission(receipt=await accepted(attached=True)(_))


@pytest.mark.parametrize(
    ("answer", "paid", "task_id"),
    [
        (ClosedSubmission(), "no", None),
        (earlier, "yes", TASK_ID),
        (ClosedSubmission(in_doubt=FailureDetails(slot=1)), "unknown", None),
    ],
    ids=["untouched", "paid", "in doubt"],
)
@pytest.mark.parametrize("stage", ["preparing", "submitting"])
async def test_the_ledger_says_what_was_paid_when_it_is_cancelled(
    own_rig: Rig, stage: str, answer: Any, paid: str, task_id: str | None
) -> None:
    """Nobody is to look for what was never sent, and what an earlier run of the key has paid is not "no"."""
    busy = refusal("GatewayBusy", "no channel", retried=True, after=timedelta(minutes=20), paid=Paid.NO)
    held = Held(GenerationPolicy())
    script = Script(prepare=[held], close=[answer]) if stage == "preparing" else Script(submit=[busy], close=[answer])
    generation = await own_rig.generate(script)
    await generation.reaches(lambda status: status.stage == stage and script.calls[stage == "submitting" :])
    await generation.handle.cancel()
    await cancelled(generation, task_id=task_id, paid=paid)
    assert (await generation.status()).paid == paid
    held.let_go()


async def test_a_ledger_that_does_not_answer_holds_up_no_cancellation(own_rig: Rig) -> None:
    away = refusal("LedgerUnavailable", "the store is away", retried=True, paid=Paid.UNKNOWN)
    busy = refusal("GatewayBusy", "no channel", retried=True, after=timedelta(minutes=20), paid=Paid.NO)
    generation = await own_rig.generate(Script(submit=[busy], close=again(away)))
    await generation.reaches(lambda status: status.stage is Stage.SUBMITTING and generation.script.calls[1:])
    await generation.handle.cancel()
    await cancelled(generation, task_id=None, paid="unknown")
    first, *_, last = generation.script.times("close_submission")
    assert last - first <= timedelta(minutes=1)


async def test_while_the_post_is_under_way_waits_for_its_id(own_rig: Rig) -> None:
    held = Held(accepted())
    generation = await own_rig.generate(Script(submit=[held]))
    await held.begun.wait()
    await generation.handle.cancel()
    await generation.has_event(CANCEL_HEARD)
    assert (await generation.handle.describe()).status is WorkflowExecutionStatus.RUNNING
    held.let_go()
    await cancelled(generation, task_id=TASK_ID)
    assert generation.script.count("submit_generation") == 1
    assert generation.script.count("query_generation") == 0


@pytest.mark.parametrize("cancelled_first", [True, False])
async def test_in_the_very_moment_the_id_arrives(forgetful_rig: Rig, cancelled_first: bool) -> None:
    """In one activation with its cancellation the SDK drops an activity's result, and this one was paid for."""
    held = Held(accepted())
    generation = await forgetful_rig.generate(Script(submit=[held]))
    await held.begun.wait()
    async with forgetful_rig.no_workflow_worker():
        if cancelled_first:
            await generation.handle.cancel()
        held.let_go()
        await generation.has_event(COMPLETED, times=2)
        if not cancelled_first:
            await generation.handle.cancel()
    await cancelled(generation, task_id=TASK_ID)


async def test_while_the_post_is_under_way_its_outcome_still_reaches_the_ledger(own_rig: Rig) -> None:
    """The id would be in the workflow alone, and the same key started again would be in doubt for ever."""
    held = Held(accepted(recorded=False))
    generation = await own_rig.generate(Script(submit=[held], record=[None]))
    await held.begun.wait()
    await generation.handle.cancel()
    await generation.has_event(CANCEL_HEARD)
    held.let_go()
    await cancelled(generation, task_id=TASK_ID)
    assert generation.script.count("record_submission") == 1


async def test_while_the_post_is_under_way_and_it_is_refused(own_rig: Rig) -> None:
    held = Held(refusal("SubmissionRefused", "bad size", paid=Paid.NO))
    generation = await own_rig.generate(Script(submit=[held], close=[ClosedSubmission()]))
    await held.begun.wait()
    await generation.handle.cancel()
    await generation.has_event(CANCEL_HEARD)
    held.let_go()
    error, details = await generation.failure()
    assert (error.type, details.paid) == ("SubmissionRefused", Paid.NO)


async def test_while_the_post_is_under_way_and_its_outcome_is_unknown(own_rig: Rig) -> None:
    held = Held(refusal("SubmissionOutcomeUnknown", "no answer", paid=Paid.UNKNOWN, slot=1))
    generation = await own_rig.generate(Script(submit=[held], close=[IN_DOUBT]))
    await held.begun.wait()
    await generation.handle.cancel()
    await generation.has_event(CANCEL_HEARD)
    held.let_go()
    error, details = await generation.failure()
    assert (error.type, details.paid, details.slot) == ("SubmissionOutcomeUnknown", Paid.UNKNOWN, 1)


async def test_while_a_submission_waits_to_be_tried_again(own_rig: Rig) -> None:
    busy = refusal("GatewayBusy", "no channel", retried=True, after=timedelta(minutes=20), paid=Paid.NO)
    generation = await own_rig.generate(Script(submit=[busy], close=[ClosedSubmission()]))
    await generation.reaches(lambda status: status.stage is Stage.SUBMITTING and generation.script.calls[1:])
    await generation.handle.cancel()
    await cancelled(generation, task_id=None, paid="no")
    assert generation.script.count("submit_generation") == 1


async def test_while_the_ledger_is_written(own_rig: Rig) -> None:
    held = Held()
    generation = await own_rig.generate(Script(submit=[accepted(recorded=False)], record=[held]))
    await held.begun.wait()
    assert (await generation.status()).task_id == TASK_ID, "it is known, and nobody must guess"
    await generation.handle.cancel()
    await generation.has_event(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
    assert (await generation.handle.describe()).status is WorkflowExecutionStatus.RUNNING
    held.let_go()
    await cancelled(generation, task_id=TASK_ID)
    done = [event for event in await generation.events() if event.event_type == COMPLETED]
    assert len(done) == 3, "the ledger's record was written to its end"
    assert generation.script.count("query_generation") == 0


async def test_while_the_ledger_is_written_and_does_not_take_it(own_rig: Rig) -> None:
    held = Held(refusal("LedgerUnavailable", "read only"))
    generation = await own_rig.generate(Script(submit=[accepted(recorded=False)], record=[held]))
    await held.begun.wait()
    await generation.handle.cancel()
    held.let_go()
    await cancelled(generation, task_id=TASK_ID)
    assert "read only" in (await generation.status()).warnings[0]


async def test_while_waiting_for_the_next_look(own_rig: Rig) -> None:
    generation = await own_rig.generate(Script(polls_of_task=[running(10)]))
    await generation.reaches(lambda status: status.next_poll_at)
    await generation.handle.cancel()
    await cancelled(generation, task_id=TASK_ID)
    assert generation.script.count("query_generation") == 0


async def test_while_looking(own_rig: Rig) -> None:
    held = Held(completed())
    generation = await own_rig.generate(Script(polls_of_task=[held]))
    await generation.skip_to(held)
    await generation.handle.cancel()
    await cancelled(generation, task_id=TASK_ID)
    held.let_go()
    assert generation.script.count("deliver_video") == 0


async def test_while_a_look_waits_to_be_tried_again(own_rig: Rig) -> None:
    trouble = refusal("PollFailing", "502", retried=True, after=timedelta(minutes=1))
    generation = await own_rig.generate(Script(polls_of_task=[running(10), trouble]))
    await own_rig.pass_time(timedelta(seconds=70))
    await generation.handle.execute_update("poll_now")
    await generation.reaches(lambda _: generation.script.count("query_generation") == 2)
    await generation.handle.cancel()
    await cancelled(generation, task_id=TASK_ID)


async def test_while_a_key_is_needed(own_rig: Rig) -> None:
    generation = await own_rig.generate(Script(polls_of_task=[refusal("KeyRefused", "401")]))
    await own_rig.pass_time(timedelta(seconds=70))
    await generation.reaches(lambda status: status.attention is Attention.NEEDS_API_KEY)
    await generation.handle.cancel()
    await cancelled(generation, task_id=TASK_ID)


@pytest.mark.parametrize(
    ("kind", "verdict", "clip"), [("full", completed(), FULL_VIDEO), ("first", extend_failed(), FIRST_CLIP)]
)
async def test_while_delivering(own_rig: Rig, kind: str, verdict: Any, clip: Any) -> None:
    held = Held(delivered(clip))
    generation = await own_rig.generate(Script(polls_of_task=[verdict], deliver=[held]))
    await generation.skip_to(held)
    await generation.handle.cancel()
    await cancelled(generation, task_id=TASK_ID)
    held.let_go()


async def test_while_both_clips_are_being_delivered(own_rig: Rig) -> None:
    """The full video has had trouble for long, and the first clip is tried beside it."""
    held = Held()
    trouble = refusal("DeliveryFailed", "502", retried=True, paid=Paid.YES)

    async def answer(input: Any) -> Any:
        if input.kind is DeliveryKind.FIRST:
            return await held(input)
        raise trouble.with_traceback(None)

    generation = await own_rig.generate(
        Script(polls_of_task=[completed(has_first_video_link=True)], deliver=again(answer))
    )
    await generation.skip_to(held)
    await generation.handle.cancel()
    await cancelled(generation, task_id=TASK_ID)
    held.let_go()


async def test_while_a_decision_about_the_extension_is_awaited(own_rig: Rig) -> None:
    script = Script(polls_of_task=[extend_failed()], deliver=[delivered(FIRST_CLIP)])
    generation = await own_rig.generate(script, on_extend_failed="ask")
    await own_rig.pass_time(timedelta(seconds=70))
    await generation.reaches(lambda status: status.stage is Stage.AWAITING_DECISION)
    await generation.handle.cancel()
    await cancelled(generation, task_id=TASK_ID)
    assert (await generation.status()).first_video == FIRST_CLIP


async def test_while_a_decision_about_the_submission_is_awaited(own_rig: Rig) -> None:
    unknown = refusal("SubmissionOutcomeUnknown", "no answer", paid=Paid.UNKNOWN, slot=1)
    policy = GenerationPolicy(decision_window=timedelta(days=7))
    generation = await own_rig.generate(
        Script(prepare=[policy], submit=[unknown], reconcile=again(Reconciliation()), close=[IN_DOUBT])
    )
    await generation.reaches(lambda status: status.stage is Stage.AWAITING_DECISION)
    await generation.handle.cancel()
    await cancelled(generation, task_id=None, paid="unknown")


async def test_while_the_witnesses_are_heard(own_rig: Rig) -> None:
    unknown = refusal("SubmissionOutcomeUnknown", "no answer", paid=Paid.UNKNOWN, slot=1)
    held = Held(Reconciliation())
    generation = await own_rig.generate(Script(submit=[unknown], reconcile=[held], close=[IN_DOUBT]))
    await held.begun.wait()
    await generation.handle.cancel()
    await cancelled(generation, task_id=None, paid="unknown")
    held.let_go()


async def test_while_a_retried_extension_is_submitted(own_rig: Rig) -> None:
    held = Held(accepted(task_id="task_extend_1"))
    script = Script(
        prepare=[GenerationPolicy(extension_retries=1)],
        polls_of_task=[extend_failed()],
        deliver=[delivered(FIRST_CLIP)],
        extend=[held],
    )
    generation = await own_rig.generate(script, on_extend_failed="retry")
    await generation.skip_to(held)
    await generation.handle.cancel()
    await generation.has_event(CANCEL_HEARD)
    held.let_go()
    await cancelled(generation, task_id=TASK_ID)
