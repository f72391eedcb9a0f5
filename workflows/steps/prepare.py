"""Before anything is paid: everything that can be known to fail."""

from temporalio import workflow

from activities.submission import SubmissionActivities
from longtake.models import Paid, PrepareInput, Stage
from longtake.request.rules import prompt_paths
from workflows import options
from workflows.failures import Cause, StepFailed, attempt
from workflows.reporting import report
from workflows.state import GenerationState
from workflows.steps.await_api_key import await_api_key
from workflows.steps.resolve import REFUSALS, learn_what_was_paid, learning_what_was_paid, submission_of

PROMPTS_SHOWN = (
    "LONGTAKE_HIDE_PROMPTS is on, but the workflow's input holds the prompts: put them into the store and give their "
    "paths, as starter.py does"
)


async def prepare(state: GenerationState) -> None:
    """Check the request, the gateway and the store, and bring the worker's policy.

    Raises:
        StepFailed: `SubmissionRefused`, `InvalidRequest` or `NotSubmitted`.
    """
    trial: bool | None = False
    async with learning_what_was_paid(state, submission_of(state)):
        while True:
            state.enter(Stage.PREPARING)
            report(state)
            policy = await attempt(
                workflow.execute_activity_method(
                    SubmissionActivities.prepare_generation,
                    PrepareInput(key=state.key, request=state.request, trial=trial),
                    summary="check images, store and gateway; nothing is paid yet",
                    **options.PREPARE,
                )
            )
            if not isinstance(policy, Cause):
                break
            if (trial := await await_api_key(state, policy)) is None:
                raise await _failed(state, policy)
    state.policy = policy
    if policy.hide_prompts and not prompt_paths(state.request) and not state.request.task_id:
        state.warn(PROMPTS_SHOWN)


async def _failed(state: GenerationState, cause: Cause) -> StepFailed:
    """This run sends nothing; an earlier one of the same key may have been paid."""
    state.set_paid(cause.details.paid)
    # A timeout or a defect says nothing about that, so the ledger is asked; but not if it was just unavailable.
    if cause.details.paid is Paid.UNKNOWN and cause.type != "LedgerUnavailable":
        await learn_what_was_paid(state, submission_of(state))
    kind = cause.type if cause.type in REFUSALS else "NotSubmitted"
    return StepFailed(kind, cause.message, cause.details.model_copy(update={"paid": state.paid}))
