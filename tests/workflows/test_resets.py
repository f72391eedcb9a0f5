"""An operator resets a generation that asked what became of its submissions: no paid POST that nobody asked for.

The server hands the decisions that came after the reset point to the new run once more.
"""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.client import WorkflowExecutionStatus

from longtake.models import Stage
from longtake.submission import ledger as ledger_module
from longtake.temporal.names import workflow_id
from tests.workflows.real_site import PATIENCE_SECONDS, running_site
from workflows.steps import resolve as resolving

ENDED = (Stage.DONE, Stage.FAILED, Stage.CANCELLED)


@pytest.fixture(autouse=True)
def _no_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner is given up as soon as its exchange must be over."""
    monkeypatch.setattr(ledger_module, "MARGIN", timedelta(0))
    monkeypatch.setattr(resolving, "CHECK_ACCOUNT_AGAIN", (timedelta(seconds=2),))


@pytest.mark.parametrize("named", [True, False], ids=["with its slot", "typed into the UI"])
@pytest.mark.parametrize("decisions", [1, pytest.param(2, marks=pytest.mark.proof)])
async def test_reset_at_any_workflow_task_never_pays_unasked(tmp_path: Path, decisions: int, named: bool) -> None:
    """Each POST but the first was asked for by one decision; no reset may turn one decision into two POSTs."""
    key, asked = "reset", 1 + decisions
    async with running_site(tmp_path) as site:
        run_id = await site.start(key, "submit_reset,unpaid,times=9")
        for number in range(1, asked):
            await site.reaches(key, lambda status: status.stage is Stage.AWAITING_DECISION)
            await site.decide(key, action="resubmit", **({"slot": number} if named else {}))
            async with asyncio.timeout(PATIENCE_SECONDS):
                while site.posts() <= number:  # noqa: ASYNC110 - the simulator's ledger tells nobody
                    await asyncio.sleep(0.02)
        await site.reaches(key, lambda status: status.stage is Stage.AWAITING_DECISION)
        assert site.posts() == asked

        points = await site.reset_points(key, run_id)
        assert len(points) >= 4 * asked
        for point in points:
            await site.reset(key, run_id, point)
            status = await site.reaches(key, lambda status: status.slot == asked or status.stage in ENDED)
            assert (point, site.posts()) == (point, asked)
            assert (point, status.stage, status.slot) == (point, Stage.AWAITING_DECISION, asked)
        current = await site.client.get_workflow_handle(workflow_id(key)).describe()
        assert current.status is WorkflowExecutionStatus.RUNNING
