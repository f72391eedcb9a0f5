"""The workflow runs in the SDK's sandbox, shares its types with the activities, and cannot touch the world."""

import ast
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.worker.workflow_sandbox import (
    SandboxedWorkflowRunner,
    SandboxRestrictions,
    UnintentionalPassthroughError,
)

import workflows
from longtake.temporal.connection import DATA_CONVERTER
from tests.workflows.careless_workflow import CarelessWorkflow
from worker import sandbox, workflow_setup

FILES = sorted(Path(workflows.__path__[0]).glob("**/*.py"))
ENTERED = [path for path in FILES if "imports_passed_through" in path.read_text()]
"""What the sandbox runs anew; the others are passed through by these."""

HARMLESS = {"typing"} | SandboxRestrictions.default.passthrough_modules
"""The SDK's own list, and what does nothing at import."""


def test_worker_runs_the_workflow_in_the_sandbox() -> None:
    setup = workflow_setup()
    assert isinstance(setup["workflow_runner"], SandboxedWorkflowRunner)
    assert setup["workflow_runner"].restrictions.import_notification_policy


FULL = WorkflowHistory.from_json(
    "video-full", (Path(__file__).parent / "histories" / "full.json").read_text(encoding="utf-8")
)


async def test_sandbox_takes_the_workflow() -> None:
    """A replay loads it, under the policy that refuses a second copy of our modules: two copies are two types."""
    await Replayer(**workflow_setup(), data_converter=DATA_CONVERTER).replay_workflow(FULL)


async def test_sandbox_refuses_a_workflow_that_forgets_to_pass_through() -> None:
    """The control of the test above."""
    careless = Replayer(workflows=[CarelessWorkflow], workflow_runner=sandbox(), data_converter=DATA_CONVERTER)
    with pytest.raises(RuntimeError, match="Failed validating workflow CarelessWorkflow") as refusal:
        await careless.replay_workflow(FULL)
    assert isinstance(refusal.value.__cause__, UnintentionalPassthroughError)


@pytest.mark.parametrize("path", ENTERED, ids=lambda path: path.stem)
def test_entered_modules_import_only_what_is_passed_through(path: Path) -> None:
    outside: set[str] = set()
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Import):
            outside |= {name.name.split(".")[0] for name in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            outside.add((statement.module or "").split(".")[0])
    assert outside
    assert outside <= HARMLESS


def test_some_modules_are_entered_and_most_are_not() -> None:
    assert "generate_video" in {path.stem for path in ENTERED}
    # Two for every generation, and the one that holds the ledger's registration.
    assert len(ENTERED) <= 3, "each is executed again for every workflow"
