"""The paid step: refused, not sent, recorded in the ledger."""

from datetime import timedelta
from itertools import chain

import pytest
from temporalio.exceptions import ApplicationErrorCategory

from longtake.models import (
    Paid,
)
from tests.workflows.cases import FULL, HOUR, MINUTE, NOTHING_SENT, summaries
from tests.workflows.rig import (
    REQUEST,
    TASK_ID,
    Rig,
    Script,
    accepted,
    again,
    changing,
    completed,
    refusal,
    running,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_refused_submission_ends_at_once_with_what_the_gateway_said(rig: Rig) -> None:
    no = refusal(
        "SubmissionRefused", "[req-9] bad size", paid=Paid.NO, http_status=422, gateway_code="bad_size", advice="fix"
    )
    generation = await rig.generate(Script(submit=[no], close=[NOTHING_SENT]), key="order-20")

    error, details = await generation.failure()

    assert (error.type, error.message) == ("SubmissionRefused", "[req-9] bad size")
    assert error.category is ApplicationErrorCategory.BENIGN
    assert (details.paid, details.http_status, details.gateway_code, details.advice) == (
        Paid.NO,
        422,
        "bad_size",
        "fix",
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
    generation = await rig.generate(Script(submit=[patience, accepted()], polls=[completed()], deliver=FULL))
    assert (await generation.result()).outcome == "full"
    first, second = generation.script.times("submit_generation")
    assert second - first >= timedelta(minutes=7)


async def test_gateway_that_is_down_for_an_hour_costs_an_hour_and_nothing_else(rig: Rig) -> None:
    unreachable = refusal("GatewayUnreachable", "nothing was sent", retried=True, paid=Paid.NO)
    trouble = refusal("PollFailing", "connection refused", retried=True, paid=Paid.YES)
    script = Script(
        submit=changing(50 * MINUTE, unreachable, accepted()),
        polls=chain([running(30)], changing(HOUR, trouble, completed())),
        deliver=FULL,
    )
    generation = await rig.generate(script)
    result = await generation.result()
    assert (result.outcome, result.task_id) == ("full", TASK_ID)
    sent, polls = script.times("submit_generation"), script.times("query_generation")
    assert sent[-1] - sent[0] >= 50 * MINUTE
    assert polls[-1] - polls[0] >= HOUR
    assert script.count("reconcile_submission") == 0, "nothing was ever in doubt"


async def test_request_may_name_a_task_to_take_over(rig: Rig) -> None:
    script = Script(submit=[accepted(task_id="task_old")], polls=[completed()], deliver=FULL)
    generation = await rig.generate(script, task_id="task_old")
    assert (await generation.result()).task_id == "task_old"
    assert generation.script.inputs("submit_generation")[0].request.task_id == "task_old"
    assert '"adopt task task_old: nothing is paid"' in summaries(await generation.events())


async def test_outcome_that_the_ledger_did_not_take_is_recorded(rig: Rig) -> None:
    script = Script(submit=[accepted(recorded=False)], record=[None], polls=[completed()], deliver=FULL)
    generation = await rig.generate(script, key="order-21")
    assert (await generation.result()).warnings == ()
    (input,) = generation.script.inputs("record_submission")
    assert (input.key, input.receipt.task_id, input.receipt.nonce) == ("order-21", TASK_ID, "n1")
    assert input.receipt.recorded is False


async def test_recorded_outcome_is_not_recorded_again(rig: Rig) -> None:
    generation = await rig.generate(Script(polls=[completed()], deliver=FULL))
    await generation.result()
    assert generation.script.count("record_submission") == 0


async def test_ledger_that_refuses_is_a_warning(rig: Rig) -> None:
    no = refusal("StoreRefused", "read only")
    script = Script(submit=[accepted(recorded=False)], record=[no], polls=[completed()], deliver=FULL)
    generation = await rig.generate(script)
    assert (await generation.result()).warnings == ("the ledger has no outcome for this submission: read only",)
