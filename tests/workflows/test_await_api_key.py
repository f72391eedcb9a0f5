"""`on_key_refused`: a refused key ends one generation, and makes hundreds wait."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.common import RetryPolicy

from longtake.gateway import breaker
from longtake.models import (
    Attention,
    ClosedSubmission,
    GenerationPolicy,
    KeyProblem,
    KeyTrial,
    Paid,
    Stage,
)
from tests.workflows.real_site import PATIENCE_SECONDS, running_site
from tests.workflows.rig import (
    FIRST_CLIP,
    FULL_VIDEO,
    Held,
    Rig,
    Script,
    accepted,
    again,
    changing,
    completed,
    delivered,
    extend_failed,
    refusal,
)
from workflows import options

pytestmark = pytest.mark.asyncio(loop_scope="session")

FULL = (delivered(FULL_VIDEO),)
NOTHING_SENT = ClosedSubmission()
GO_ON = KeyTrial(trial=True)
EMPTY = refusal(
    "SubmissionRefused",
    "out of quota (HTTP 403)",
    paid=Paid.NO,
    http_status=403,
    gateway_code="insufficient_user_quota",
    key_problem=KeyProblem.OUT_OF_QUOTA,
    advice="Out of quota: top up.",
)
WRONG = refusal(
    "SubmissionRefused", "the key was refused", paid=Paid.NO, http_status=401, key_problem=KeyProblem.REFUSED
)
STILL = refusal(
    "KeyRefused", "still", retried=True, paid=Paid.NO, after=timedelta(minutes=5), key_problem=KeyProblem.OUT_OF_QUOTA
)


def waiting(status: Any) -> bool:
    return bool(status.attention is Attention.NEEDS_API_KEY and status.waiting_since)


async def test_it_is_shown_and_goes_on_after_a_top_up_by_itself(rig: Rig) -> None:
    held = Held(STILL)
    script = Script(submit=[EMPTY, accepted()], await_key=[held, GO_ON], polls=[completed()], deliver=FULL)
    generation = await rig.generate(script, on_key_refused="wait", key="batch-1")
    await generation.skip_to(held)

    status = await generation.reaches(waiting)
    assert (status.stage, status.key_problem) == (Stage.SUBMITTING, KeyProblem.OUT_OF_QUOTA)
    assert status.last_problem == "out of quota (HTTP 403)"
    assert status.paid is not Paid.YES
    assert "starter.py poll batch-1" in status.advice
    assert status.waiting_since
    assert f"{status.waiting_since:%H:%M:%S} UTC" in await generation.page()
    assert (await generation.attributes())["VideoAttention"] == "needs_api_key"

    held.let_go()
    assert (await generation.result()).outcome == "full"
    assert [input.trial for input in script.inputs("submit_generation")] == [False, True]
    status = await generation.status()
    assert (status.attention, status.key_problem, status.waiting_since, status.paid) == (None, None, None, Paid.YES)


async def test_a_single_start_ends_at_once(rig: Rig) -> None:
    generation = await rig.generate(Script(submit=[EMPTY], close=[NOTHING_SENT]))
    error, details = await generation.failure()
    assert (error.type, details.paid, details.key_problem) == (
        "SubmissionRefused",
        Paid.NO,
        KeyProblem.OUT_OF_QUOTA,
    )


async def test_any_other_refusal_ends_at_once(rig: Rig) -> None:
    no = refusal("SubmissionRefused", "bad size", paid=Paid.NO, http_status=422)
    generation = await rig.generate(Script(submit=[no], close=[NOTHING_SENT]), on_key_refused="wait")
    assert (await generation.failure())[0].type == "SubmissionRefused"


async def test_somebody_who_has_topped_up_need_not_wait(rig: Rig) -> None:
    held = Held(STILL)
    script = Script(submit=[EMPTY, accepted()], await_key=[held], polls=[completed()], deliver=FULL)
    generation = await rig.generate(script, on_key_refused="wait")
    await generation.skip_to(held)
    await generation.reaches(waiting)

    await generation.handle.execute_update("poll_now")

    await generation.reaches(lambda status: status.task_id)
    held.let_go()
    assert (await generation.result()).outcome == "full"
    assert [input.trial for input in script.inputs("submit_generation")] == [False, True]


async def test_poll_now_is_rejected_where_nothing_waits(rig: Rig) -> None:
    held = Held(accepted())
    generation = await rig.generate(Script(submit=[held], polls=[completed()], deliver=FULL), on_key_refused="wait")
    await generation.skip_to(held)
    with pytest.raises(WorkflowUpdateFailedError):
        await generation.handle.execute_update("poll_now")
    held.let_go()
    await generation.result()


async def test_a_trial_that_is_refused_waits_on_since_the_first(rig: Rig) -> None:
    held = Held(STILL)
    script = Script(
        submit=[EMPTY, WRONG, accepted()],
        await_key=[STILL, GO_ON, held, GO_ON],
        polls=[completed()],
        deliver=FULL,
    )
    generation = await rig.generate(script, on_key_refused="wait")
    await generation.skip_to(held)
    status = await generation.reaches(waiting)
    assert status.key_problem is KeyProblem.REFUSED, "the newest is what counts"
    assert status.waiting_since
    assert status.waiting_since <= script.times("await_api_key")[0]
    held.let_go()
    assert (await generation.result()).outcome == "full"


async def test_a_key_that_is_refused_while_preparing_is_waited_for_there(rig: Rig) -> None:
    held = Held(GO_ON)
    script = Script(prepare=[WRONG, GenerationPolicy()], await_key=[held], polls=[completed()], deliver=FULL)
    generation = await rig.generate(script, on_key_refused="wait")
    await generation.skip_to(held)
    status = await generation.reaches(waiting)
    assert (status.stage, status.key_problem) == (Stage.PREPARING, KeyProblem.REFUSED)
    assert "LONGTAKE_GATEWAY_API_KEY" in status.advice
    held.let_go()
    assert (await generation.result()).outcome == "full"
    assert [input.trial for input in script.inputs("prepare_generation")] == [False, True]


@pytest.mark.parametrize("stage", [Stage.PREPARING, Stage.SUBMITTING])
async def test_it_can_be_cancelled(own_rig: Rig, stage: Stage) -> None:
    first: dict[str, Any] = {"prepare": [WRONG]} if stage is Stage.PREPARING else {"submit": [EMPTY]}
    script = Script(**first, await_key=again(STILL), close=[NOTHING_SENT])
    generation = await own_rig.generate(script, on_key_refused="wait")
    await own_rig.pass_time(timedelta(minutes=12))
    assert waiting(await generation.status())
    await generation.handle.cancel()
    await generation.cancellation()
    assert (await generation.status()).paid is Paid.NO
    assert script.count("submit_generation") == (0 if stage is Stage.PREPARING else 1)


async def test_days_of_it_leave_no_longer_history(rig: Rig) -> None:
    script = Script(
        submit=[EMPTY, accepted()],
        await_key=changing(timedelta(days=2), STILL, GO_ON),
        polls=[completed()],
        deliver=FULL,
    )
    generation = await rig.generate(script, on_key_refused="wait")
    assert (await generation.result()).outcome == "full"
    assert script.count("await_api_key") > 300
    assert len(await generation.events()) < 80


async def test_it_survives_a_restart_of_the_worker(forgetful_rig: Rig) -> None:
    script = Script(
        submit=[EMPTY, accepted()],
        await_key=changing(timedelta(minutes=20), STILL, GO_ON),
        polls=[completed()],
        deliver=FULL,
    )
    generation = await forgetful_rig.generate(script, on_key_refused="wait")
    await forgetful_rig.pass_time(timedelta(minutes=7))
    before = await generation.status()
    async with forgetful_rig.no_workflow_worker():
        pass
    assert (await generation.status()).waiting_since == before.waiting_since
    assert before.waiting_since
    assert (await generation.result()).outcome == "full"


async def test_waiting_that_is_ended_from_outside_ends_as_the_refusal(rig: Rig) -> None:
    """Such as by `temporal activity fail`."""
    script = Script(submit=[EMPTY], await_key=[refusal("ByHand", "enough")], close=[NOTHING_SENT])
    generation = await rig.generate(script, on_key_refused="wait")
    error, details = await generation.failure()
    assert (error.type, details.paid, details.key_problem) == ("SubmissionRefused", Paid.NO, KeyProblem.OUT_OF_QUOTA)


async def test_the_retry_of_an_extension_never_waits(rig: Rig) -> None:
    script = Script(
        prepare=[GenerationPolicy(extension_retries=1)],
        polls=[extend_failed()],
        extend=[EMPTY],
        close=[NOTHING_SENT],
        deliver=[delivered(FIRST_CLIP)],
    )
    generation = await rig.generate(script, on_key_refused="wait", on_extend_failed="retry")
    assert (await generation.result()).outcome == "fallback"


async def test_out_of_quota_while_polling_is_shown_as_such(rig: Rig) -> None:
    no = refusal("KeyRefused", "out of quota", http_status=403, key_problem=KeyProblem.OUT_OF_QUOTA)
    generation = await rig.generate(Script(polls=[no, completed()], deliver=FULL))
    await rig.pass_time(timedelta(seconds=70))
    status = await generation.reaches(lambda status: status.attention is Attention.NEEDS_API_KEY)
    assert status.key_problem is KeyProblem.OUT_OF_QUOTA
    assert "LONGTAKE_GATEWAY_API_KEY" not in status.advice
    assert (await generation.result()).outcome == "full"
    assert (await generation.status()).key_problem is None


async def test_a_batch_on_the_real_server_goes_on_by_itself_after_a_top_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workflow, activities, ledger and gateway together; only the pauses are shorter."""
    soon = RetryPolicy(initial_interval=timedelta(seconds=1), backoff_coefficient=1)
    monkeypatch.setitem(options.API_KEY, "retry_policy", soon)
    monkeypatch.setattr(breaker, "TRIAL_PAUSE", timedelta(seconds=2))
    keys = [f"batch-{number}" for number in range(12)]
    async with running_site(tmp_path) as site:
        site.sim.world.account_quota = 0
        for key in keys:
            await site.start(key, on_key_refused="wait")
        async with asyncio.timeout(PATIENCE_SECONDS):
            for key in keys:
                while not waiting(await site.status(key)):  # noqa: ASYNC110 - the server tells nobody
                    await asyncio.sleep(0.1)
        before = site.posts()
        await asyncio.sleep(5)
        assert site.posts() - before <= 3, "one trial in two seconds, for all of them"

        site.sim.world.account_quota = 10**9
        statuses = [await site.reaches(key, lambda status: status.task_id) for key in keys]
    assert len({status.task_id for status in statuses}) == len(keys)
    assert {(status.attention, status.paid) for status in statuses} == {(None, Paid.YES)}
    assert site.sim.ledger.paid()["total"] == len(keys)
