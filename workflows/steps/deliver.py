"""Downloading, verifying and storing the clips: what was paid for is not lost."""

import asyncio
import contextlib
from datetime import datetime, timedelta
from typing import TypeAlias

from temporalio import workflow

from activities.delivery import DeliveryActivities
from longtake.models import (
    Attention,
    DeliverInput,
    DeliveryKind,
    DeliveryReceipt,
    Stage,
    StoredVideo,
)
from longtake.request.rules import expected_size, prompt_paths
from workflows import options
from workflows.failures import Cause, StepFailed, attempt
from workflows.reporting import report
from workflows.state import GenerationState
from workflows.steps.poll import learn_cost

EXTRA_CLIP_WINDOW = timedelta(minutes=10)
"""For the first 8 s beside a full video: wanted, but nobody waits a day for it."""
QUIET_WINDOW = timedelta(minutes=10)
"""A delivery that takes longer is shown in the list of workflows, and continues."""

_TAKES_LONG = "it takes long: the pending activity `deliver_video` shows its progress, or why it failed last"
_ADVICE = (
    "The video was made and paid. Fix what the message names, then start again with the same key: it is delivered "
    "without paying again, as long as the ledger is the same and the gateway has the video."
)

_Delivery: TypeAlias = workflow.ActivityHandle[DeliveryReceipt]


async def deliver(
    state: GenerationState, kind: DeliveryKind, *, extension: bool = False, window: timedelta | None = None
) -> StoredVideo:
    """Download, verify and store one clip.

    Args:
        state: Whose.
        kind: Which clip.
        extension: Whether the task of the retried extension made it.
        window: How long it is tried; by default what the policy says.

    Raises:
        StepFailed: `DeliveryFailed`.
    """
    state.enter(Stage.DELIVERING)
    report(state)
    size = expected_size(state.request)
    task = state.extension_task if extension and state.extension_task else state.task
    input = DeliverInput(
        key=state.key,
        task_id=task.id,
        kind=kind,
        width=size.width if size else None,
        height=size.height if size else None,
        extension_number=state.extension_number if extension else 0,
        gateway=task.receipt.gateway,
        account=task.receipt.account,
        hide_words=bool(prompt_paths(state.request)),
        keep_first_link=state.request.keep_first and state.first_video is None,
    )
    until = workflow.now() + (window or state.policy.delivery_window)
    receipt = await _deliver_until(state, input, until)
    if isinstance(receipt, Cause):
        raise StepFailed("DeliveryFailed", receipt.message, receipt.details.model_copy(update={"advice": _ADVICE}))
    state.warn(*receipt.warnings)
    if not extension:
        learn_cost(state, receipt)
    return receipt.video


async def deliver_first_as_well(state: GenerationState) -> None:
    """Store the first 8 s beside the full video; where that fails, the full video still counts."""
    if state.first_video is not None:
        return  # stored already, while the full video had trouble
    try:
        state.first_video = await deliver(state, DeliveryKind.FIRST, window=EXTRA_CLIP_WINDOW)
    except StepFailed as failure:
        state.warn(f"the first 8 s could not be stored beside the full video: {failure.message}")


async def _deliver_until(state: GenerationState, input: DeliverInput, until: datetime) -> DeliveryReceipt | Cause:
    """Try until then, in one activity: a download that is slow and well continues. From some time on visibly.

    Where the full video has trouble, the first clip is delivered meanwhile, before its own link expires.
    """
    salvage: _Delivery | None = None
    delivery = _start(input, until)
    try:
        if not await _is_over(delivery, within=QUIET_WINDOW, before=until):
            state.last_problem = _TAKES_LONG
            state.enter(Stage.DELIVERING, Attention.DELIVERY_FAILING)
            report(state)
            salvage = _start_first(state, input, until)
            if salvage:
                await workflow.wait_condition(lambda: delivery.done() or salvage.done())
                await _keep_first(state, salvage, full_is_there=_has_worked(delivery))
        receipt = await attempt(delivery)
        if isinstance(receipt, Cause):
            state.last_problem = receipt.message
            await _salvage_at_last(state, input, salvage, until)
        else:
            state.last_problem = None
        return receipt
    finally:
        await _stop(delivery, salvage)


async def _salvage_at_last(
    state: GenerationState, input: DeliverInput, begun: _Delivery | None, until: datetime
) -> None:
    """The full video cannot be had: wait for the first clip as long as it may come, so that not all is lost."""
    salvage = begun or _start_first(state, input, max(until, workflow.now() + EXTRA_CLIP_WINDOW))
    if salvage is None:
        return
    state.enter(Stage.DELIVERING, Attention.DELIVERY_FAILING)
    report(state)
    try:
        await workflow.wait_condition(salvage.done)
        await _keep_first(state, salvage, full_is_there=False)
    finally:
        await _stop(salvage)


def _start_first(state: GenerationState, input: DeliverInput, until: datetime) -> _Delivery | None:
    """Begin to deliver the first clip, where there is one beside the full video and it is not stored yet."""
    record = state.record
    if input.kind is not DeliveryKind.FULL or input.extension or state.first_video is not None:
        return None
    if record is None or not record.has_first_video_link:
        return None
    return _start(input.model_copy(update={"kind": DeliveryKind.FIRST}), until)


async def _keep_first(state: GenerationState, salvage: _Delivery, *, full_is_there: bool) -> None:
    """Take note of the first clip, if it is stored; where it could not be had, the full video is still tried."""
    if not salvage.done() or not _has_worked(salvage) or state.first_video is not None:
        return
    receipt = await salvage
    state.first_video = receipt.video
    state.warn(*receipt.warnings)
    if not full_is_there:
        state.warn("the first 8 s were stored while the full video could not be delivered, and are kept")
    report(state)


def _start(input: DeliverInput, until: datetime) -> _Delivery:
    return workflow.start_activity_method(
        DeliveryActivities.deliver_video,
        input,
        summary=f"deliver the {'15 s video' if input.kind is DeliveryKind.FULL else '8 s clip'}",
        **options.delivery(until - workflow.now()),
    )


async def _is_over(delivery: _Delivery, *, within: timedelta, before: datetime) -> bool:
    """Wait so long for its end; where it ends by its own timeout sooner, as long as that takes."""
    if within >= before - workflow.now():
        await workflow.wait_condition(delivery.done)
        return True
    with contextlib.suppress(TimeoutError):
        await workflow.wait_condition(delivery.done, timeout=within, timeout_summary="until it counts as failing")
    return delivery.done()


def _has_worked(delivery: _Delivery) -> bool:
    return delivery.done() and not delivery.cancelled() and delivery.exception() is None


async def _stop(*deliveries: _Delivery | None) -> None:
    """Cancel what still runs, and leave no failure that nobody has taken."""
    left = [delivery for delivery in deliveries if delivery is not None]
    for delivery in left:
        if not delivery.done():
            delivery.cancel()
    await asyncio.gather(*left, return_exceptions=True)
