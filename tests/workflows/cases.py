"""What the tests of several steps share: constants, failures and generations that have come to some point."""

from datetime import timedelta
from typing import Any

from temporalio.client import WorkflowExecutionDescription, WorkflowExecutionStatus

from longtake.models import (
    ClosedSubmission,
    GenerationPolicy,
    Paid,
    Reconciliation,
    Resolution,
    Stage,
    SubmissionReceipt,
)
from tests.workflows.rig import (
    FIRST_CLIP,
    FULL_VIDEO,
    Generation,
    Rig,
    Script,
    accepted,
    again,
    delivered,
    extend_failed,
    refusal,
)

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
FULL = (delivered(FULL_VIDEO),)
NOTHING_SENT = ClosedSubmission()
FIRST = (delivered(FIRST_CLIP),)


async def closed_as_paid(input: Any) -> ClosedSubmission:
    """An attempt whose answer was lost was paid."""
    return ClosedSubmission(receipt=await accepted(attached=True)(input))


def summaries(generation_events: Any) -> list[str]:
    return [
        event.user_metadata.summary.data.decode() for event in generation_events if event.user_metadata.summary.data
    ]


async def asking(rig: Rig, *, key: str | None = None) -> Generation:
    """A generation that awaits a decision."""
    generation = await rig.generate(Script(polls=[extend_failed()], deliver=FIRST), on_extend_failed="ask", key=key)
    await rig.pass_time(timedelta(seconds=70))
    await generation.reaches(lambda status: status.stage is Stage.AWAITING_DECISION)
    return generation


UNKNOWN = refusal("SubmissionOutcomeUnknown", "no answer", paid=Paid.UNKNOWN, slot=1, http_status=502)
PATIENT = GenerationPolicy(decision_window=timedelta(days=7))
NO_RECORDS = Reconciliation(candidates=("task_a", "task_b"), evidence=("the key was charged 1 times",))


RETRYING = GenerationPolicy(extension_retries=2, lost_grace=timedelta(0))
EXTENDED = {"task_id": "task_extend_1"}
"""The task that the first retry of the extension pays for."""


def retrying(*polls: Any, **script: Any) -> Script:
    """The extension fails and is paid for again; `polls` are of that retry."""
    known: dict[str, Any] = {
        "prepare": [RETRYING],
        "polls": [extend_failed(), *polls],
        "extend": [accepted(**EXTENDED)],
        "deliver": [*FIRST, *FULL],
    }
    return Script(**{**known, **script})


async def receipt(_: Any) -> SubmissionReceipt:
    return await accepted(task_id="task_found")(_)


async def found(input: Any) -> Reconciliation:
    return Reconciliation(receipt=await receipt(input))


async def adopted(input: Any) -> Resolution:
    return Resolution(receipt=await accepted(task_id=input.task_id)(input))


async def in_doubt(rig: Rig, **script: Any) -> Generation:
    """A generation that asks what became of its submission."""
    known: dict[str, Any] = {"prepare": [PATIENT], "submit": [UNKNOWN], "reconcile": again(NO_RECORDS)}
    generation = await rig.generate(Script(**{**known, **script}), key=script.pop("key", None))
    await generation.reaches(lambda status: status.stage is Stage.AWAITING_DECISION)
    return generation


async def first_run(rig: Rig, generation: Generation) -> WorkflowExecutionDescription:
    run_id = generation.handle.first_execution_run_id
    return await rig.client.get_workflow_handle(generation.handle.id, run_id=run_id).describe()


async def first_run_status(rig: Rig, generation: Generation) -> WorkflowExecutionStatus | None:
    return (await first_run(rig, generation)).status
