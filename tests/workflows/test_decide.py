"""The question, the update `decide`, and what a page says once the question is over."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from longtake.models import (
    Attention,
    ClosedSubmission,
    FailureDetails,
    GenerationPolicy,
    Paid,
    Resolution,
    Stage,
)
from tests.workflows.cases import FIRST, FULL, MINUTE, NO_RECORDS, PATIENT, UNKNOWN, adopted, asking, in_doubt
from tests.workflows.rig import (
    Held,
    Rig,
    Script,
    accepted,
    again,
    completed,
    extend_failed,
    refusal,
)
from workflows.steps.resolve import CHECK_YOURSELF

pytestmark = pytest.mark.asyncio(loop_scope="session")


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
    generation = await rig.generate(Script(polls=[completed()], deliver=FULL))
    await generation.reaches(lambda status: status.next_poll_at)

    with pytest.raises(WorkflowUpdateFailedError) as rejection:
        await generation.handle.execute_update("decide", {"action": "accept"})

    assert isinstance(rejection.value.cause, ApplicationError)
    assert (rejection.value.cause.type, rejection.value.cause.message) == ("NotAwaited", "no decision is awaited now")
    assert (await generation.result()).outcome == "full"


TASK_ID_RULE = "a task id has 1 to 255 characters: letters, digits and . _ : -"


async def test_decision_names_the_submission_that_it_resolves(rig: Rig) -> None:
    """After another one the ledger is asked about that one: an old decision says nothing about it."""
    second = refusal("SubmissionOutcomeUnknown", "no answer", paid=Paid.UNKNOWN, slot=2)
    script = {"submit": [UNKNOWN, second, accepted()], "resolve": [Resolution()] * 2}
    generation = await in_doubt(rig, **script, polls=[completed()], deliver=FULL)
    assert (await generation.status()).slot == 1
    await generation.handle.execute_update("decide", {"action": "resubmit", "slot": 1})
    await generation.reaches(lambda status: status.slot == 2)
    with pytest.raises(WorkflowUpdateFailedError) as rejection:
        await generation.handle.execute_update("decide", {"action": "resubmit", "slot": 1})
    assert isinstance(rejection.value.cause, ApplicationError)
    assert rejection.value.cause.type == "NotOffered"
    await generation.handle.execute_update("decide", {"action": "resubmit"})
    assert (await generation.result()).outcome == "full"
    assert [input.slot for input in generation.script.inputs("resolve_submission")] == [1, 2]
    assert [input.slot for input in generation.script.inputs("reconcile_submission")] == [1, 2]
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
        polls=[completed()],
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
    assert page.startswith("**awaiting decision**")
    for told in (
        "task_a",
        "task_b",
        "charged 1 times",
        f"`starter.py decide {status.key} adopt TASK_ID --slot 1`",
        '{"action": "abandon", "slot": 1}',
        f"{status.decide_by:%Y-%m-%d %H:%M:%S} UTC",
    ):
        assert told in page


async def test_decision_to_adopt_is_written_down_and_watched(rig: Rig) -> None:
    generation = await in_doubt(rig, resolve=[adopted], polls=[completed()], deliver=FULL)

    await generation.handle.execute_update("decide", {"action": "adopt", "task_id": "task_a"})

    assert (await generation.result()).task_id == "task_a"
    (input,) = generation.script.inputs("resolve_submission")
    assert input.task_id == "task_a"
    assert generation.script.count("submit_generation") == 1
    attributes = await generation.attributes()
    assert (attributes["GatewayTaskId"], attributes["VideoPaid"]) == ("task_a", "yes")


async def test_decision_to_submit_again_is_written_down_first(rig: Rig) -> None:
    generation = await in_doubt(
        rig, submit=[UNKNOWN, accepted()], resolve=[Resolution()], polls=[completed()], deliver=FULL
    )
    await generation.handle.execute_update("decide", {"action": "resubmit"})
    assert (await generation.result()).outcome == "full"
    names = [name for name, _ in generation.script.calls if name in {"resolve_submission", "submit_generation"}]
    assert names == ["submit_generation", "resolve_submission", "submit_generation"]
    assert generation.script.inputs("resolve_submission")[0].task_id is None


async def test_decision_that_the_ledger_refuses_is_asked_for_again(rig: Rig) -> None:
    owned = refusal("TaskOwned", "task_a belongs to order-1")
    generation = await in_doubt(rig, resolve=[owned, adopted], polls=[completed()], deliver=FULL)
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
    assert (details.paid, details.slot, details.advice) == (Paid.UNKNOWN, 1, CHECK_YOURSELF)
    assert (await generation.attributes())["VideoOutcome"] == "Abandoned"


async def test_nobody_decides_for_a_week(rig: Rig) -> None:
    generation = await rig.generate(Script(prepare=[PATIENT], submit=[UNKNOWN], reconcile=again(NO_RECORDS)))
    error, details = await generation.failure()
    assert (error.type, details.paid) == ("Abandoned", Paid.UNKNOWN)
    checked = generation.script.times("reconcile_submission")
    assert len(checked) >= 5, "the account is checked again: a task may appear late"
    (submitted,) = generation.script.times("submit_generation")
    started, *_, ended = [event.event_time.ToDatetime() for event in await generation.events()]
    assert timedelta(days=7) <= ended - started < timedelta(days=7, hours=1)
    assert submitted < checked[0]


async def test_decision_is_taken_while_the_account_is_checked_and_only_one(rig: Rig) -> None:
    """The list may take minutes to come, and two people may read the same page."""
    held = Held(NO_RECORDS)
    script = Script(
        prepare=[PATIENT],
        submit=[UNKNOWN],
        reconcile=[NO_RECORDS, held],
        resolve=[adopted],
        polls=[completed()],
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
    assert [input.task_id for input in script.inputs("resolve_submission")] == ["task_a"]
    assert script.count("submit_generation") == 1


async def test_of_two_decisions_at_once_one_is_taken(rig: Rig) -> None:
    generation = await in_doubt(rig, resolve=[adopted] * 2, polls=[completed()], deliver=FULL)
    choices = ("task_a", "task_b")
    ends = await asyncio.gather(
        *(generation.handle.execute_update("decide", {"action": "adopt", "task_id": choice}) for choice in choices),
        return_exceptions=True,
    )
    taken = [choice for choice, end in zip(choices, ends, strict=True) if not isinstance(end, BaseException)]
    assert [type(end) for end in ends if isinstance(end, BaseException)] == [WorkflowUpdateFailedError]
    assert [(await generation.result()).task_id] == taken
    assert generation.script.count("resolve_submission") == 1


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        ({"action": "accept"}, "accept is not offered now; choose one of: adopt, resubmit, abandon"),
        ({"action": "adopt"}, "adopt needs a task_id, and no other action takes one"),
        ({"action": "abandon", "task_id": "task_a"}, "adopt needs a task_id, and no other action takes one"),
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


async def test_an_ended_page_asks_nobody_to_decide(rig: Rig) -> None:
    """A week went by and nobody decided: what can be done now is something else."""
    generation = await rig.generate(Script(prepare=[PATIENT], submit=[UNKNOWN], reconcile=again(NO_RECORDS)))
    await generation.failure()
    status = await generation.status()
    assert (status.decisions, status.decide_by) == ((), None)
    assert status.advice
    assert status.advice in await generation.page()
    assert status.evidence, "what is known of the doubt helps whoever polls for it"
    assert "starter.py decide" not in await generation.page()


async def test_a_fallback_that_nobody_decided_about_asks_no_more(rig: Rig) -> None:
    policy = GenerationPolicy(decision_window=timedelta(days=1))
    generation = await rig.generate(
        Script(prepare=[policy], polls=[extend_failed()], deliver=FIRST), on_extend_failed="ask"
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
