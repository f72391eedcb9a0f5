"""Gauges of all running generations, for dashboards and alerts.

They come from Temporal's visibility store, so every worker reports the same values.
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
"""Interval between two counts; Prometheus scrapes as often."""
_MIN_PAUSE_FACTOR = 20
"""The pause is at least this many times as long as the count took, so that long lists are read less often."""
_MAX_GENERATIONS = 1_000_000

logger = logging.getLogger(__name__)


@dataclass
class RunningGenerations:
    """Counts of running generations."""

    running: Counter[str] = field(default_factory=Counter)
    """By stage."""
    attention: Counter[str] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)
    """By reason (`longtake.observability.metrics.WAITING`)."""
    oldest: dict[str, datetime] = field(default_factory=dict)
    """By reason: the start of the oldest."""

    def add(self, generation: Execution) -> None:
        """Count one generation."""
        self.running[generation.stage or OTHER] += 1
        if generation.attention:
            self.attention[generation.attention] += 1
        if reason := _waits_for(generation):
            self.waiting[reason] += 1
            began = generation.started_at
            self.oldest[reason] = min(began, self.oldest.get(reason, began))

    def show(self, meter: Meter, now: datetime) -> None:
        """Set every gauge, also to 0."""
        for metric, label, counted in (
            (RUNNING, "stage", self.running),
            (ATTENTION, "attention", self.attention),
            (WAITING_GENERATIONS, "reason", self.waiting),
        ):
            for value in _values(metric, label):
                show(meter, metric, counted[value], **{label: value})
        for reason in _values(OLDEST_WAITING, "reason"):
            age = now - self.oldest.get(reason, now)
            # By this machine's clock the start may be in the future.
            show(meter, OLDEST_WAITING, max(age.total_seconds(), 0), reason=reason)
        show(meter, RUNNING_GENERATIONS_CHECKED, now.timestamp())


async def watch_running_generations(
    client: VideoClient,
    meter: Meter,
    *,
    every: timedelta = EVERY,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Count in a loop until cancelled. A failure is logged once and never stops the worker."""
    loop = asyncio.get_running_loop()
    failing = False
    while True:
        began = loop.time()
        try:
            running_generations = RunningGenerations()
            async for generation in client.generations('ExecutionStatus = "Running"', limit=_MAX_GENERATIONS):
                running_generations.add(generation)
            running_generations.show(meter, now())
        except Exception as error:  # noqa: BLE001 - a gauge must not stop a worker
            if not failing:
                logger.warning("generations cannot be counted for the metrics: %s: %s", type(error).__name__, error)
            failing = True
        else:
            if failing:
                logger.info("generations are counted for the metrics again")
            failing = False
        await asyncio.sleep(max(every.total_seconds(), (loop.time() - began) * _MIN_PAUSE_FACTOR))


def _waits_for(generation: Execution) -> str | None:
    if generation.stage is None:
        return "worker"
    if generation.stage == Stage.AWAITING_DECISION:
        # Not by the task id: a retried extension in doubt has the first submission's.
        return "choice" if generation.paid == Paid.YES else "doubt"
    if generation.attention == Attention.NEEDS_API_KEY:
        return "key"
    return "submission" if generation.stage in {Stage.PREPARING, Stage.SUBMITTING} else None


def _values(metric: Metric, label: str) -> tuple[str, ...]:
    return (*metric.labels[label], OTHER)
