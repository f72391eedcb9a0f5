"""Every way of ending, recorded once, can still be followed by today's workflow."""

import base64
import getpass
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from longtake.temporal.connection import DATA_CONVERTER
from longtake.temporal.names import workflow_id
from tests.workflows.changed_workflows import WithAnotherCommandAtTheEnd, WithAnotherEnd, WithAnotherTimer
from tests.workflows.record_histories import FOLDER, RECORDINGS, SHORT_RUN
from tests.workflows.rig import IDENTITY, without_summary
from worker import workflow_setup
from workflows.steps import poll as watching

HISTORIES = sorted(FOLDER.glob("*.json"))

COMPLETED, FAILED, CANCELLED, CONTINUED = (
    f"EVENT_TYPE_WORKFLOW_EXECUTION_{end}" for end in ("COMPLETED", "FAILED", "CANCELED", "CONTINUED_AS_NEW")
)
ENDS = {
    "full": (COMPLETED, "full"),
    "with_trouble": (COMPLETED, "full"),
    "fallback": (COMPLETED, "fallback"),
    "decided": (COMPLETED, "fallback"),
    "extension_retried": (COMPLETED, "full"),
    "extension_failed": (FAILED, "ExtensionFailed"),
    "generation_failed": (FAILED, "GenerationFailed"),
    "invalid_request": (FAILED, "InvalidRequest"),
    "refused": (FAILED, "SubmissionRefused"),
    "not_submitted": (FAILED, "NotSubmitted"),
    "unknown": (FAILED, "SubmissionOutcomeUnknown"),
    "adopted": (COMPLETED, "full"),
    "abandoned": (FAILED, "Abandoned"),
    "task_lost": (FAILED, "TaskLost"),
    "overdue": (FAILED, "GenerationTimedOut"),
    "delivery_failed": (FAILED, "DeliveryFailed"),
    "cancelled": (CANCELLED, None),
    "cancelled_while_submitting": (CANCELLED, None),
    "continued_as_new": (CONTINUED, None),
}
CONTROLS = ("full", "decided", "cancelled", "generation_failed", "invalid_request")


def history(path: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json(workflow_id(path.stem), path.read_text())


def replayer(*workflows: type) -> Replayer:
    setup = workflow_setup()
    return Replayer(
        workflows=list(workflows) or setup["workflows"],
        workflow_runner=setup["workflow_runner"],
        interceptors=setup["interceptors"],
        data_converter=DATA_CONVERTER,
    )


def test_there_is_a_history_for_each_way_of_ending() -> None:
    assert {path.stem for path in HISTORIES} == {play.__name__ for play in RECORDINGS} == set(ENDS)


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_history_is_what_it_says(path: Path) -> None:
    last = json.loads(path.read_text())["events"][-1]
    kind, outcome = ENDS[path.stem]
    assert last["eventType"] == kind
    if kind == COMPLETED:
        (result,) = last["workflowExecutionCompletedEventAttributes"]["result"]["payloads"]
        assert json.loads(base64.b64decode(result["data"]))["outcome"] == outcome
    if kind == FAILED:
        failure = last["workflowExecutionFailedEventAttributes"]["failure"]
        assert failure["applicationFailureInfo"]["type"] == outcome


@pytest.fixture
def polls_per_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one history that continues as new was recorded with few polls, to be short."""
    if path.stem == "continued_as_new":
        monkeypatch.setattr(watching, "POLLS_PER_RUN", SHORT_RUN)


@pytest.mark.usefixtures("polls_per_run")
@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_history_can_still_be_followed(path: Path) -> None:
    await replayer().replay_workflow(history(path))


@pytest.mark.parametrize("path", [FOLDER / f"{name}.json" for name in CONTROLS], ids=lambda path: path.stem)
@pytest.mark.parametrize("changed", [WithAnotherTimer, WithAnotherCommandAtTheEnd, WithAnotherEnd])
async def test_changed_workflow_is_found_out(path: Path, changed: type) -> None:
    """The control: were these to pass, the test above could not fail."""
    with pytest.raises(NondeterminismError):
        await replayer(changed).replay_workflow(history(path))


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_every_timer_and_activity_has_a_summary(path: Path) -> None:
    """Held for every history that other tests make, too: `Rig.clean_up`."""
    events = history(path).events
    assert without_summary(events) == []
    if path.stem == "full":
        for event in events:
            event.ClearField("user_metadata")
        names = {name.partition(" ")[2] for name in without_summary(events)}
        assert names >= {"timer", "submit_generation", "query_generation"}, "the control"


def texts(value: Any) -> Iterator[str]:
    """Every string of a history, and what is inside its payloads."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            if key == "data" and isinstance(inner, str):
                yield base64.b64decode(inner).decode()
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    else:
        yield str(value)


def values(value: Any, wanted: str) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == wanted:
                yield inner
            yield from values(inner, wanted)
    elif isinstance(value, list):
        for inner in value:
            yield from values(inner, wanted)


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_history_names_nothing_of_the_machine_it_was_recorded_on(path: Path) -> None:
    recorded = json.loads(path.read_text())
    assert set(values(recorded, "identity")) == {IDENTITY}
    assert list(values(recorded, "stackTrace")) == []
    here = {socket.gethostname(), str(Path.cwd()), str(Path.home()), sys.prefix, f"{getpass.getuser()}@"}
    for text in texts(recorded):
        assert not [name for name in here if name in text]
        assert not [sign for sign in ("site-packages", "Traceback", 'File "', "@", "/home/", "/Users/") if sign in text]
