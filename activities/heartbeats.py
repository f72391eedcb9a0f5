"""Heartbeats of long activities: Temporal notices a lost worker, and a cancellation arrives."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from temporalio import activity

INTERVAL = timedelta(seconds=4)


class Heartbeat:
    """The details that are sent with every heartbeat; a heartbeat without details would erase earlier ones."""

    def __init__(self) -> None:
        self._details: tuple[Any, ...] = tuple(activity.info().heartbeat_details)

    def send(self, details: object) -> None:
        """Send these details now and with every later heartbeat."""
        self._details = (details,)
        activity.heartbeat(details)

    async def repeat(self) -> None:
        """Send the details every `INTERVAL`, until cancelled."""
        while True:
            activity.heartbeat(*self._details)
            await asyncio.sleep(INTERVAL.total_seconds())


@asynccontextmanager
async def heartbeating() -> AsyncIterator[Heartbeat]:
    """Send heartbeats every `INTERVAL` while the block runs."""
    heartbeat = Heartbeat()
    repeating = asyncio.create_task(heartbeat.repeat())
    try:
        yield heartbeat
    finally:
        repeating.cancel()
