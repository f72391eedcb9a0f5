"""Waiting, before anything is paid, for an API key that the gateway takes: `on_key_refused`."""

import asyncio
import contextlib
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

from activities.submission import SubmissionActivities
from longtake.models import Attention, AwaitKeyInput, KeyTrial, OnKeyRefused
from longtake.request.rules import prompt_paths
from longtake.temporal.connection import SUBMISSION_TASK_QUEUE
from workflows import options
from workflows.failures import Cause
from workflows.state import Generation


def waits_for_key(generation: Generation, cause: Cause) -> bool:
    """Whether this refusal is one that the caller wants to be waited out."""
    refused = cause.type == "SubmissionRefused" and cause.details.key_problem is not None and not cause.timed_out
    return refused and generation.request.on_key_refused is OnKeyRefused.WAIT


async def await_key(generation: Generation, cause: Cause) -> bool | None:
    """Wait, visibly and without holding anything, until another try is worthwhile, or somebody asks for it now.

    Returns:
        Whether the next step is to ask the gateway even where its worker believes that it refuses the key. None where
        the waiting itself was ended from outside.
    """
    generation.last_problem, generation.key_problem = cause.message, cause.details.key_problem
    generation.waiting_since = generation.waiting_since or workflow.now()
    generation.awaits_key, generation.poll_requested = True, False
    soonest = workflow.now() + generation.policy.schedule.min_interval
    generation.enter(generation.stage, Attention.NEEDS_API_KEY)
    waiting = workflow.start_activity_method(
        SubmissionActivities.await_api_key,
        AwaitKeyInput(
            key=generation.key,
            stage=generation.stage,
            details=cause.details,
            message=cause.message,
            hide_words=bool(prompt_paths(generation.request)),
        ),
        # Where the paid POSTs are made: one memory of what the gateway said of the key, in each worker.
        task_queue=SUBMISSION_TASK_QUEUE,
        summary="until the gateway takes the API key, or somebody asks for a try now",
        **options.API_KEY,
    )
    try:
        await workflow.wait_condition(lambda: waiting.done() or generation.poll_requested)
        if generation.poll_requested:
            # However often it is asked for: the gateway is not asked more often than about a task.
            if (early := soonest - workflow.now()) > timedelta(0):
                await workflow.sleep(early, summary="until the gateway may be asked again")
            return True
        found: KeyTrial = await waiting
        return found.trial
    except ActivityError as error:
        if is_cancelled_exception(error):
            raise
        return None
    finally:
        generation.awaits_key = generation.poll_requested = False
        generation.key_problem = None
        if not waiting.done():
            waiting.cancel()
            with contextlib.suppress(ActivityError, asyncio.CancelledError):
                await waiting
