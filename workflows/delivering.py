"""Bringing clips home: what was paid for is not lost."""

from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, RetryState, is_cancelled_exception

from activities.delivery import DeliveryActivities
from longtake.catalog import expected_size, prompt_paths
from longtake.models import Attention, DeliverOrder, DeliveryKind, DeliveryReceipt, Stage, StoredVideo
from workflows import options
from workflows.failures import cause_of
from workflows.generation import Ending, Generation

EXTRA_CLIP_WINDOW = timedelta(minutes=10)
"""For the first 8 s beside a full video: wanted, but nobody waits a day for it."""
QUIET_WINDOW = timedelta(minutes=10)
"""A delivery that takes longer is shown in the list of workflows, and tried on."""


async def deliver(
    generation: Generation, kind: DeliveryKind, *, task_id: str | None = None, window: timedelta | None = None
) -> StoredVideo:
    """Download, verify and store one clip.

    Args:
        generation: Whose.
        kind: Which clip.
        task_id: Of a retried extension, where it is not the first task that made it.
        window: How long it is tried; by default what the policy says.

    Raises:
        Ending: `DeliveryFailed`.
    """
    generation.enter(Stage.DELIVERING)
    size = expected_size(generation.request)
    task = generation.extension if task_id is not None and generation.extension else generation.task
    order = DeliverOrder(
        key=generation.key,
        task_id=task_id or generation.task.task_id,
        kind=kind,
        width=size.width if size else None,
        height=size.height if size else None,
        extension=task_id is not None,
        gateway=task.gateway,
        account=task.account,
        hide_words=bool(prompt_paths(generation.request)),
        keep_first_link=generation.request.keep_first and generation.first_video is None,
    )
    until = workflow.now() + (window or generation.policy.delivery_window)
    try:
        receipt = await _bring_home(generation, order, until)
    except ActivityError as error:
        if is_cancelled_exception(error):
            raise
        cause = cause_of(error)
        advice = (
            "The video was made and paid. Mend what the message names, then start again with the same key: it is "
            "delivered without paying again, as long as the ledger is the same and the gateway has it."
        )
        raise Ending("DeliveryFailed", cause.message, generation.known(cause.details, advice=advice)) from None
    generation.warnings += receipt.warnings
    return receipt.video


async def _bring_home(generation: Generation, order: DeliverOrder, until: datetime) -> DeliveryReceipt:
    """Try until then; from some time on visibly."""
    try:
        return await _execute(order, min(QUIET_WINDOW, until - workflow.now()))
    except ActivityError as error:
        hopeless = error.retry_state is RetryState.NON_RETRYABLE_FAILURE
        if hopeless or is_cancelled_exception(error) or workflow.now() >= until:
            raise
        generation.last_problem = cause_of(error).message
    generation.enter(Stage.DELIVERING, Attention.DELIVERY_TROUBLE)
    receipt = await _execute(order, until - workflow.now())
    generation.last_problem = None
    return receipt


async def _execute(order: DeliverOrder, window: timedelta) -> DeliveryReceipt:
    receipt: DeliveryReceipt = await workflow.execute_activity_method(
        DeliveryActivities.deliver_video,
        order,
        summary=f"bring home the {'15 s video' if order.kind is DeliveryKind.FULL else '8 s clip'}",
        **options.delivery(window),
    )
    return receipt


async def deliver_first_as_well(generation: Generation) -> None:
    """Store the first 8 s beside the full video; where that fails, the full video still counts."""
    try:
        generation.first_video = await deliver(generation, DeliveryKind.FIRST, window=EXTRA_CLIP_WINDOW)
    except Ending as ending:
        generation.warnings.append(f"the first 8 s could not be stored beside the full video: {ending.message}")
