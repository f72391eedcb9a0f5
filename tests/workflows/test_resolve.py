"""Nobody knows whether a submission was paid: the ledger, the account's records, a person."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from longtake.models import (
    Attention,
    ClosedSubmission,
    CloseInput,
    DecisionAction,
    ExtensionInput,
    FailureDetails,
    GenerateVideoInput,
    GenerationPolicy,
    Paid,
    PrepareInput,
    ReconcileInput,
    Reconciliation,
    RecordInput,
    Resolution,
    ResolveInput,
    Stage,
    SubmitInput,
)
from longtake.request.rules import extension_digest, prompt_path, request_digest
from tests.workflows.cases import (
    FIRST,
    FULL,
    HOUR,
    MINUTE,
    NO_RECORDS,
    NOTHING_SENT,
    PATIENT,
    UNKNOWN,
    adopted,
    closed_as_paid,
    found,
    in_doubt,
    receipt,
)
from tests.workflows.rig import (
    FULL_VIDEO,
    REQUEST,
    TASK_ID,
    Rig,
    Script,
    accepted,
    again,
    changing,
    completed,
    delivered,
    extend_failed,
    refusal,
    server_now,
)
from workflows.steps.resolve import CONFIRM_NOT_CHARGED

pytestmark = pytest.mark.asyncio(loop_scope="session")


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
    assert generation.script.inputs("reconcile_submission")[0].slot == 1
    assert (await generation.attributes())["VideoOutcome"] == "SubmissionOutcomeUnknown"
    scheduled = [e for e in await generation.events() if e.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED]
    assert len(scheduled) == 3 + len(asked)


async def test_doubt_that_no_time_resolves_is_an_unknown_outcome(rig: Rig) -> None:
    doubt = refusal("SubmissionInDoubt", "still sending?", retried=True, after=2 * MINUTE, paid=Paid.UNKNOWN)
    closed = ClosedSubmission(in_doubt=FailureDetails(slot=1))
    generation = await rig.generate(Script(submit=again(doubt), close=[closed], reconcile=[NO_RECORDS]))
    error, details = await generation.failure()
    assert (error.type, error.message, details.paid) == ("SubmissionOutcomeUnknown", "still sending?", Paid.UNKNOWN)
    tries = generation.script.times("submit_generation")
    assert tries[-1] - tries[0] > HOUR - 3 * MINUTE


async def test_task_that_the_account_shows_is_adopted(rig: Rig) -> None:
    generation = await rig.generate(
        Script(submit=[UNKNOWN], reconcile=[found], polls=[completed()], deliver=FULL), key="order-30"
    )
    assert (await generation.result()).task_id == "task_found"
    (input,) = generation.script.inputs("reconcile_submission")
    assert (input.key, input.model) == ("order-30", REQUEST["model"])
    assert generation.script.count("submit_generation") == 1
    assert generation.script.inputs("query_generation")[0].task_id == "task_found"
    assert (await generation.attributes())["GatewayTaskId"] == "task_found"


async def test_ledger_without_doubt_lets_it_be_submitted_once_more(rig: Rig) -> None:
    clear = Reconciliation(clear=True)
    script = Script(submit=[UNKNOWN, accepted()], reconcile=[clear], polls=[completed()], deliver=FULL)
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
        submit=[refusal("Defect", "?")], close=[closed_as_paid], polls=[completed()], deliver=FULL, reconcile=[]
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


async def test_ledger_that_comes_back_after_the_window_is_asked_where_nobody_ends_the_wait(rig: Rig) -> None:
    away = refusal("LedgerUnavailable", "the store is away", retried=True, paid=Paid.UNKNOWN)
    policy = GenerationPolicy(decision_window=HOUR, wait_after_decision_timeout=True)
    close = changing(3 * HOUR, away, NOTHING_SENT)
    generation = await rig.generate(Script(prepare=[policy], submit=[refusal("Defect", "?")], close=close))
    error, details = await generation.failure()
    assert (error.type, details.paid) == ("NotSubmitted", Paid.NO)


async def test_account_is_checked_at_once_and_more_often_at_first(rig: Rig) -> None:
    generation = await in_doubt(rig)
    await rig.pass_time(timedelta(minutes=11))
    checked = generation.script.times("reconcile_submission")
    assert [round((at - checked[0]).total_seconds()) for at in checked] == pytest.approx([0, 15, 60, 180, 600], abs=5)


async def test_a_check_says_when_the_next_one_is_worthwhile(rig: Rig) -> None:
    soon = NO_RECORDS.model_copy(update={"retry_after": timedelta(seconds=20)})
    generation = await in_doubt(rig, reconcile=again(soon))
    await rig.pass_time(timedelta(days=6))
    checked = generation.script.times("reconcile_submission")
    assert any(after - before < timedelta(seconds=25) for before, after in pairwise(checked[4:]))
    assert len(checked) < 150, "it is checked more and more rarely all the same"


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
        polls=[completed()],
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

    script = Script(prepare=[PATIENT], submit=[UNKNOWN], reconcile=again(reconcile), polls=[completed()], deliver=FULL)
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


async def test_task_that_appears_late_is_adopted_without_a_decision(rig: Rig) -> None:
    script = Script(
        prepare=[PATIENT],
        submit=[UNKNOWN],
        reconcile=[NO_RECORDS, NO_RECORDS, found],
        polls=[completed()],
        deliver=FULL,
    )
    generation = await rig.generate(script)
    assert (await generation.result()).task_id == "task_found"
    status = await generation.status()
    assert (status.candidates, status.evidence, status.decisions) == ((), (), ())


async def test_account_records_that_cannot_be_read_are_evidence(rig: Rig) -> None:
    away = refusal("LedgerUnavailable", "the store is away")
    generation = await in_doubt(rig, reconcile=again(away))
    status = await generation.status()
    assert status.evidence == ("the account's records could not be checked: the store is away",)
    assert status.charged is Paid.UNKNOWN


# --- Everything that a step is asked ----------------------------------------------------------------------------------

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
LEDGER = "ledger-7"
WHOLE = PATIENT.model_copy(update={"ledger_id": LEDGER, "extension_retries": 1})


@pytest.mark.parametrize("hidden", [False, True])
async def test_every_step_around_a_doubt_is_asked_with_all_that_is_known(rig: Rig, hidden: bool) -> None:
    prompts = {name: prompt_path(REQUEST[name]) for name in ("prompt", "prompt_extend")} if hidden else {}
    request = GenerateVideoInput.model_validate({**REQUEST, **prompts})
    script = Script(
        prepare=[WHOLE],
        submit=[refusal("Defect", "?"), accepted(recorded=False)],
        close=[ClosedSubmission(in_doubt=FailureDetails(slot=4, sent_at=NOON))],
        reconcile=again(Reconciliation(candidates=("task_a",))),
        resolve=[Resolution()],
        record=[None],
        polls=[completed()],
        deliver=FULL,
    )
    key = f"whole-{hidden}"
    generation = await rig.generate(script, key=key, **prompts)
    status = await generation.reaches(lambda status: status.stage is Stage.AWAITING_DECISION)
    assert "2026-07-01 12:00:00 UTC" in status.evidence[0]
    await generation.handle.execute_update("decide", {"action": "resubmit"})
    assert (await generation.result()).outcome == "full"

    asked = {name: script.inputs(name) for name, _ in script.calls}
    digest, known = request_digest(request), {"key": key, "ledger_id": LEDGER}
    assert asked["prepare_generation"] == [PrepareInput(key=key, request=request)]
    assert asked["submit_generation"] == [SubmitInput(request=request, **known)] * 2
    assert asked["close_submission"] == [CloseInput(digest=digest, stage=Stage.SUBMITTING, **known)]
    whose = {"model": request.model, "slot": 4, "digest": digest}
    first, *_ = asked["reconcile_submission"]
    assert first == ReconcileInput(hide_words=hidden, stage=Stage.SUBMITTING, **whose, **known)
    assert asked["resolve_submission"] == [ResolveInput(**whose, **known)]
    (recorded,) = asked["record_submission"]
    assert recorded == RecordInput(receipt=recorded.receipt, **known)


async def test_every_step_around_a_doubt_about_an_extension_is_asked_with_all_that_is_known(rig: Rig) -> None:
    script = Script(
        prepare=[WHOLE],
        polls=[extend_failed(), completed(task_id="task_extend_1")],
        extend=[refusal("Defect", "?")],
        close=[ClosedSubmission(in_doubt=FailureDetails(slot=1))],
        reconcile=again(Reconciliation()),
        resolve=[adopted],
        deliver=[*FIRST, delivered(FULL_VIDEO)],
    )
    generation = await rig.generate(script, key="whole-extension", on_extend_failed="retry")
    await rig.pass_time(timedelta(seconds=70))
    await generation.reaches(lambda status: DecisionAction.ADOPT in status.decisions)
    assert (await generation.attributes())["VideoPaid"] == "unknown"
    await generation.handle.execute_update("decide", {"action": "adopt", "task_id": "task_extend_1"})
    result = await generation.result()
    assert (result.outcome, result.extension_task_id) == ("full", "task_extend_1")

    request = GenerateVideoInput.model_validate({**REQUEST, "on_extend_failed": "retry"})
    digest = extension_digest("video_first", request.prompt_extend)
    known = {"key": "whole-extension#extend-1", "ledger_id": LEDGER}
    whose = {"model": request.model, "slot": 1, "digest": digest, "extension": True}
    asked = {name: script.inputs(name) for name, _ in script.calls}
    (extension,) = asked["submit_extension"]
    assert extension == SubmitInput(
        key="whole-extension",
        request=request,
        extension=ExtensionInput(remix_id="video_first", number=1),
        ledger_id=LEDGER,
    )
    assert asked["close_submission"] == [CloseInput(digest=digest, stage=Stage.SUBMITTING, **known)]
    assert asked["reconcile_submission"][0] == ReconcileInput(stage=Stage.SUBMITTING, **whose, **known)
    assert asked["resolve_submission"] == [ResolveInput(task_id="task_extend_1", **whose, **known)]
