"""What all generations under way are doing, as gauges: for dashboards and alerts.

Temporal's visibility knows it whatever has become of the workers, so every worker can say it, and all say the same.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from longtake.client import Execution, VideoClient
from longtake.models import Attention, Paid, Stage
from longtake.observability.metrics import (
    ATTENTION,
    OLDEST_WAITING,
    OTHER,
    RUNNING,
    RUNNING_GENERATIONS_CHECKED,
    WAITING_GENERATIONS,
    Meter,
    Metric,
    show,
)

EVERY = timedelta(seconds=15)
"""How often it is counted: as often as Prometheus asks."""
_SHARE = 20
"""A list so long that it takes a while to read is read less often: at most this part of the time is spent on it."""
_MOST = 1_000_000

logger = logging.getLogger(__name__)


@dataclass
class RunningGenerations:
    """What is under way."""

    running: Counter[str] = field(default_factory=Counter)
    """By stage."""
    attention: Counter[str] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)
    """By what is waited for (`longtake.observability.metrics.WAITING`)."""
    oldest: dict[str, datetime] = field(default_factory=dict)
    """When the oldest of them was started."""

    def add(self, generation: Execution) -> None:
        """Count one."""
        self.running[generation.stage or OTHER] += 1
        if generation.attention:
            self.attention[generation.attention] += 1
        if reason := _waits_for(generation):
            self.waiting[reason] += 1
            began = generation.started_at
            self.oldest[reason] = min(began, self.oldest.get(reason, began))

    def show(self, meter: Meter, now: datetime) -> None:
        """Set every gauge, those of nothing to 0."""
        for metric, label, counted in (
            (RUNNING, "stage", self.running),
            (ATTENTION, "attention", self.attention),
            (WAITING_GENERATIONS, "reason", self.waiting),
        ):
            for value in _values(metric, label):
                show(meter, metric, counted[value], **{label: value})
        for reason in _values(OLDEST_WAITING, "reason"):
            age = now - self.oldest.get(reason, now)
            # Two clocks: what was started just now may lie in the future of this one.
            show(meter, OLDEST_WAITING, max(age.total_seconds(), 0), reason=reason)
        show(meter, RUNNING_GENERATIONS_CHECKED, now.timestamp())


async def watch_running_generations(
    client: VideoClient,
    meter: Meter,
    *,
    every: timedelta = EVERY,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Count again and again until cancelled; trouble is said once, and never stops anything."""
    loop = asyncio.get_running_loop()
    silent = False
    while True:
        began = loop.time()
        try:
            running_generations = RunningGenerations()
            async for generation in client.generations('ExecutionStatus = "Running"', limit=_MOST):
                running_generations.add(generation)
            running_generations.show(meter, now())
        except Exception as error:  # noqa: BLE001 - whatever it is, a gauge must not stop a worker
            if not silent:
                logger.warning("generations cannot be counted for the metrics: %s: %s", type(error).__name__, error)
            silent = True
        else:
            if silent:
                logger.info("generations are counted for the metrics again")
            silent = False
        await asyncio.sleep(max(every.total_seconds(), (loop.time() - began) * _SHARE))


def _waits_for(generation: Execution) -> str | None:
    if generation.stage is None:
        return "worker"
    if generation.stage == Stage.AWAITING_DECISION:
        # Not by the task id: an extension that was paid for again and not answered has one, and is in doubt.
        return "choice" if generation.paid == Paid.YES else "doubt"
    if generation.attention == Attention.NEEDS_API_KEY:
        return "key"
    return "submission" if generation.stage in {Stage.PREPARING, Stage.SUBMITTING} else None


def _values(metric: Metric, label: str) -> tuple[str, ...]:
    return (*metric.labels[label], OTHER)
