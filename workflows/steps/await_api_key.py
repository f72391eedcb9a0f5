"""Waiting, before anything is paid, for an API key that the gateway takes: `on_key_refused`."""

import asyncio
import contextlib
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.submission import SubmissionActivities
from longtake.models import Attention, AwaitKeyInput, OnKeyRefused
from longtake.request.rules import prompt_paths
from longtake.temporal.names import SUBMISSION_TASK_QUEUE
from workflows import options
from workflows.failures import Cause, attempt
from workflows.reporting import report
from workflows.state import GenerationState


async def await_api_key(state: GenerationState, cause: Cause) -> bool | None:
    """Wait, visibly and without holding a slot, until another try is worthwhile, or somebody asks for it now.

    Returns:
        Whether the next step asks the gateway even where its worker believes that it refuses the key. None where the
        failure is not a refusal that the caller wants to wait out, or somebody ended the waiting from outside.
    """
    refused = cause.type == "SubmissionRefused" and cause.details.key_problem is not None and not cause.timed_out
    if not refused or state.request.on_key_refused is not OnKeyRefused.WAIT:
        return None
    state.last_problem, state.key_problem = cause.message, cause.details.key_problem
    state.waiting_since = state.waiting_since or workflow.now()
    state.awaiting_key, state.poll_requested = True, False
    earliest = workflow.now() + state.policy.schedule.min_interval
    state.enter(state.stage, Attention.NEEDS_API_KEY)
    report(state)
    waiting = workflow.start_activity_method(
        SubmissionActivities.await_api_key,
        AwaitKeyInput(
            key=state.key,
            stage=state.stage,
            details=cause.details,
            message=cause.message,
            hide_words=bool(prompt_paths(state.request)),
        ),
        # Where the paid POSTs are made: each worker remembers there what the gateway said of the key.
        task_queue=SUBMISSION_TASK_QUEUE,
        summary="until the gateway takes the API key, or somebody asks for a try now",
        **options.API_KEY,
    )
    try:
        await workflow.wait_condition(lambda: waiting.done() or state.poll_requested)
        if state.poll_requested:
            # However often people ask: the gateway is not asked more often than about a task.
            if (early := earliest - workflow.now()) > timedelta(0):
                await workflow.sleep(early, summary="until the gateway may be asked again")
            return True
        found = await attempt(waiting)
        return None if isinstance(found, Cause) else found.trial
    finally:
        state.awaiting_key = state.poll_requested = False
        state.key_problem = None
        if not waiting.done():
            waiting.cancel()
            with contextlib.suppress(ActivityError, asyncio.CancelledError):
                await waiting
