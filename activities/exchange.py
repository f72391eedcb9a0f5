"""One activity attempt's way through the ledger to the paid POST."""

import asyncio
from collections.abc import Awaitable, Callable

from pydantic import ValidationError
from temporalio import activity

from activities.heartbeats import Heartbeat
from longtake.gateway.client import SubmittedTask
from longtake.models import SubmissionReceipt
from longtake.submission.ledger import CreateIntent, HeartbeatState, Submission, SubmissionLedger

BeforeSend = Callable[[], Awaitable[None]]
Post = Callable[[BeforeSend], Awaitable[SubmittedTask]]
"""Makes the paid POST, awaiting what it is given directly before the first byte."""


async def pay_once(
    ledger: SubmissionLedger, ledger_key: str, submission: Submission, post: Post, heartbeat: Heartbeat
) -> SubmissionReceipt:
    """Make a paid POST at most once for a ledger key; a cancellation stops it only while nothing can have left.

    Raises:
        Whatever `SubmissionLedger.submit` raises.
    """
    sending = False

    async def send(create_intent: CreateIntent) -> SubmittedTask:
        async def before_send() -> None:
            nonlocal sending
            sending = True
            await create_intent()

        return await post(before_send)

    task = asyncio.create_task(
        ledger.submit(
            ledger_key,
            submission,
            send,
            earlier=_state_of_earlier_attempt(),
            save_state=lambda state: heartbeat.send(state.model_dump()),
            # The same for all attempts of this activity: when the ledger is closed after it, none of them sends.
            scheduled_at=activity.info().scheduled_time,
        )
    )
    while True:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
            if not sending:
                task.cancel()


def writer() -> str:
    """Who we are, for people who read the ledger."""
    info = activity.info()
    return f"{info.workflow_id}/{(info.workflow_run_id or '')[:8]}/attempt {info.attempt}"


def _state_of_earlier_attempt() -> HeartbeatState | None:
    """What an earlier attempt of this activity left in its heartbeat, if it can be read."""
    details = activity.info().heartbeat_details
    try:
        return HeartbeatState.model_validate(details[0]) if details else None
    except ValidationError:
        return None
