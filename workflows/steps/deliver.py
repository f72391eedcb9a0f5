"""Bringing clips home: what was paid for is not lost."""

import asyncio
import contextlib
from datetime import datetime, timedelta
from typing import TypeAlias

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

from activities.delivery import DeliveryActivities
from longtake.models import Attention, DeliverInput, DeliveryKind, DeliveryReceipt, Stage, StoredVideo
from longtake.request.rules import expected_size, prompt_paths
from workflows import options
from workflows.failures import cause_of
from workflows.state import Generation, StepFailed
from workflows.steps.poll import learn_cost

EXTRA_CLIP_WINDOW = timedelta(minutes=10)
"""For the first 8 s beside a full video: wanted, but nobody waits a day for it."""
QUIET_WINDOW = timedelta(minutes=10)
"""A delivery that takes longer is shown in the list of workflows, and goes on."""


_TAKES_LONG = "it takes long: the pending activity `deliver_video` shows how far it is, or why it failed last"

_Delivery: TypeAlias = workflow.ActivityHandle[DeliveryReceipt]


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
        StepFailed: `DeliveryFailed`.
    """
    generation.enter(Stage.DELIVERING)
    size = expected_size(generation.request)
    task = generation.extension if task_id is not None and generation.extension else generation.task
    input = DeliverInput(
        key=generation.key,
        task_id=task_id or generation.task.task_id,
        kind=kind,
        width=size.width if size else None,
        height=size.height if size else None,
        extension_number=generation.extension_number if task_id is not None else 0,
        gateway=task.gateway,
        account=task.account,
        hide_words=bool(prompt_paths(generation.request)),
        keep_first_link=generation.request.keep_first and generation.first_video is None,
    )
    until = workflow.now() + (window or generation.policy.delivery_window)
    try:
        receipt = await _bring_home(generation, input, until)
    except ActivityError as error:
        if is_cancelled_exception(error):
            raise
        cause = cause_of(error)
        advice = (
            "The video was made and paid. Mend what the message names, then start again with the same key: it is "
            "delivered without paying again, as long as the ledger is the same and the gateway has it."
        )
        raise StepFailed("DeliveryFailed", cause.message, generation.known(cause.details, advice=advice)) from None
    generation.warnings += receipt.warnings
    if not input.extension:
        learn_cost(generation, receipt)
    return receipt.video


async def _bring_home(generation: Generation, input: DeliverInput, until: datetime) -> DeliveryReceipt:
    """Try until then, in one activity: a download that is slow and well goes on. From some time on visibly.

    Where the full video has trouble, the first clip is brought home meanwhile, while its own link lives.
    """
    salvage: _Delivery | None = None
    delivery = _start(input, until)
    try:
        if not await _is_over(delivery, within=QUIET_WINDOW, before=until):
            generation.last_problem = _TAKES_LONG
            generation.enter(Stage.DELIVERING, Attention.DELIVERY_FAILING)
            salvage = _start_first(generation, input, until)
            if salvage:
                await workflow.wait_condition(lambda: delivery.done() or salvage.done())
                await _keep_first(generation, salvage, full_is_there=_has_worked(delivery))
        receipt = await delivery
    except ActivityError as error:
        if not is_cancelled_exception(error):
            generation.last_problem = cause_of(error).message
            await _salvage_at_last(generation, input, salvage, until)
        raise
    finally:
        await _stop(delivery, salvage)
    generation.last_problem = None
    return receipt


async def _salvage_at_last(
    generation: Generation, input: DeliverInput, begun: _Delivery | None, until: datetime
) -> None:
    """The full video cannot be had: wait for the first clip as long as it may come, so that not all is lost."""
    salvage = begun or _start_first(generation, input, max(until, workflow.now() + EXTRA_CLIP_WINDOW))
    if salvage is None:
        return
    generation.enter(Stage.DELIVERING, Attention.DELIVERY_FAILING)
    try:
        await workflow.wait_condition(salvage.done)
        await _keep_first(generation, salvage, full_is_there=False)
    finally:
        await _stop(salvage)


def _start_first(generation: Generation, input: DeliverInput, until: datetime) -> _Delivery | None:
    """Begin to bring home the first clip, where there is one beside the full video and it is not stored yet."""
    record = generation.record
    if input.kind is not DeliveryKind.FULL or input.extension or generation.first_video is not None:
        return None
    if record is None or not record.has_first_video_link:
        return None
    return _start(input.model_copy(update={"kind": DeliveryKind.FIRST}), until)


async def _keep_first(generation: Generation, salvage: _Delivery, *, full_is_there: bool) -> None:
    """Take note of the first clip, if it is stored; where it could not be had, the full video is still tried."""
    if not salvage.done() or not _has_worked(salvage) or generation.first_video is not None:
        return
    receipt = await salvage
    generation.first_video = receipt.video
    generation.warnings += receipt.warnings
    if not full_is_there:
        generation.warnings.append("the first 8 s were stored while the full video could not be had, and are kept")
    generation.tell()


def _start(input: DeliverInput, until: datetime) -> _Delivery:
    return workflow.start_activity_method(
        DeliveryActivities.deliver_video,
        input,
        summary=f"bring home the {'15 s video' if input.kind is DeliveryKind.FULL else '8 s clip'}",
        **options.delivery(until - workflow.now()),
    )


async def _is_over(delivery: _Delivery, *, within: timedelta, before: datetime) -> bool:
    """Wait so long for its end; where it ends by its own time-out sooner, as long as that takes."""
    if within >= before - workflow.now():
        await workflow.wait_condition(delivery.done)
        return True
    with contextlib.suppress(TimeoutError):
        await workflow.wait_condition(delivery.done, timeout=within, timeout_summary="until it counts as trouble")
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


async def deliver_first_as_well(generation: Generation) -> None:
    """Store the first 8 s beside the full video; where that fails, the full video still counts."""
    if generation.first_video is not None:
        return  # stored already, while the full video had trouble
    try:
        generation.first_video = await deliver(generation, DeliveryKind.FIRST, window=EXTRA_CLIP_WINDOW)
    except StepFailed as failed:
        generation.warnings.append(f"the first 8 s could not be stored beside the full video: {failed.message}")
