"""Before anything is paid: what fails there, and what is said about an earlier run of the key."""

from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from longtake.models import (
    ClosedSubmission,
    FailureDetails,
    GenerationPolicy,
    Paid,
)
from longtake.request.rules import prompt_path
from tests.workflows.cases import FULL, closed_as_paid
from tests.workflows.rig import (
    REQUEST,
    TASK_ID,
    Rig,
    Script,
    completed,
    refusal,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("hidden", [True, False])
async def test_prompts_that_were_to_be_hidden_and_are_not_are_warned_of(rig: Rig, hidden: bool) -> None:
    prompts = {name: prompt_path(REQUEST[name]) for name in ("prompt", "prompt_extend")} if hidden else {}
    script = Script(prepare=[GenerationPolicy(hide_prompts=True)], polls=[completed()], deliver=FULL)
    generation = await rig.generate(script, **prompts)
    assert [("LONGTAKE_HIDE_PROMPTS" in warning) for warning in (await generation.result()).warnings] == [True] * (
        not hidden
    )
    (poll,) = script.inputs("query_generation")
    assert poll.hide_words is hidden


async def test_refusal_found_out_while_preparing_submits_nothing(rig: Rig) -> None:
    no = refusal("SubmissionRefused", "the key is refused", paid=Paid.NO, http_status=401)
    generation = await rig.generate(Script(prepare=[no]))
    error, details = await generation.failure()
    assert (error.type, details.paid, details.http_status) == ("SubmissionRefused", Paid.NO, 401)
    assert [name for name, _ in generation.script.calls] == ["prepare_generation"]


@pytest.mark.parametrize("kind", ["StoreRefused", "NotAGateway"])
async def test_worker_that_cannot_prepare_means_not_submitted(rig: Rig, kind: str) -> None:
    no = refusal(kind, "the store refuses", paid=Paid.NO, advice="Fix the store.")
    generation = await rig.generate(Script(prepare=[no]))
    error, details = await generation.failure()
    assert (error.type, error.message) == ("NotSubmitted", "the store refuses")
    assert (details.paid, details.advice) == (Paid.NO, "Fix the store.")
    assert [name for name, _ in generation.script.calls] == ["prepare_generation"]


@pytest.mark.parametrize(
    ("answer", "paid", "task_id"),
    [
        (ClosedSubmission(), Paid.NO, None),
        (ClosedSubmission(in_doubt=FailureDetails(slot=1)), Paid.UNKNOWN, None),
        (refusal("LedgerUnavailable", "away"), Paid.UNKNOWN, None),
        (closed_as_paid, Paid.YES, TASK_ID),
    ],
    ids=["untouched", "in doubt", "no answer", "paid"],
)
@pytest.mark.parametrize(
    "failure",
    [
        refusal("Defect", "KeyError", paid=Paid.UNKNOWN),
        ApplicationError("Activity function close is not registered", type="NotFoundError", non_retryable=True),
    ],
    ids=lambda error: error.type,
)
async def test_defect_while_preparing_says_what_the_ledger_says(
    rig: Rig, failure: ApplicationError, answer: Any, paid: Paid, task_id: str | None
) -> None:
    """An earlier run of the same key may have been paid."""
    generation = await rig.generate(Script(prepare=[failure], close=[answer]))
    error, details = await generation.failure()
    assert (error.type, details.paid, details.task_id) == ("NotSubmitted", paid, task_id)
    assert (await generation.status()).paid == paid
    assert (await generation.attributes())["VideoPaid"] == paid
    assert generation.script.count("submit_generation") == 0


async def test_ledger_that_is_away_while_preparing_leaves_it_unknown(rig: Rig) -> None:
    away = refusal("LedgerUnavailable", "the store is away", paid=Paid.UNKNOWN)
    generation = await rig.generate(Script(prepare=[away]))
    error, details = await generation.failure()
    assert (error.type, details.paid) == ("NotSubmitted", Paid.UNKNOWN)
    assert generation.script.count("close_submission") == 0
