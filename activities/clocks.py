"""A worker compares its clock with Temporal's at every activity: a wrong clock makes its times misleading."""

import logging
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from longtake.observability.metrics import WORKER_CLOCK_SKEW, Meter, show

TOLERATED: Final = timedelta(seconds=10)
"""NTP keeps clocks within milliseconds, so this is no jitter; and ten seconds mislead nobody."""
_SAMPLES: Final = 5
"""Network delay makes a sample late, never early, so the smallest of a few is the best."""
_MIN_SAMPLES: Final = 3
"""Before a clock counts as ahead: one task may have been delayed."""

logger = logging.getLogger(__name__)


class WorkerClock:
    """How far this process's clock is ahead of Temporal's; negative: behind."""

    def __init__(self, meter: Meter, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._meter = meter
        self._now = now
        self._samples: deque[timedelta] = deque(maxlen=_SAMPLES)
        self._is_off = False

    def compare(self, started: datetime) -> timedelta:
        """Take one sample: the moment when Temporal started a task, by Temporal's clock.

        Returns:
            The estimate. The log says when it leaves what is tolerated, and when it is back.
        """
        self._samples.append(self._now() - started)
        skew = min(self._samples)
        show(self._meter, WORKER_CLOCK_SKEW, skew.total_seconds())
        is_off = skew < -TOLERATED or (skew > TOLERATED and len(self._samples) >= _MIN_SAMPLES)
        if is_off != self._is_off:
            self._is_off = is_off
            seconds = round(skew.total_seconds())
            if is_off:
                direction = "ahead of" if seconds > 0 else "behind"
                logger.warning(
                    "this worker's clock is %d s %s Temporal's: set it (NTP)",
                    abs(seconds),
                    direction,
                    extra={"skew_seconds": seconds},
                )
            else:
                logger.info("this worker's clock agrees with Temporal's again", extra={"skew_seconds": seconds})
        return skew


class CompareClocks(Interceptor):
    """Give it to every worker of a process, with one clock for all."""

    def __init__(self, clock: WorkerClock) -> None:
        self._clock = clock

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002 - the SDK's name
        """See base class."""
        return _Comparing(next, self._clock)


class _Comparing(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, clock: WorkerClock) -> None:  # noqa: A002 - the SDK's name
        super().__init__(next)
        self._clock = clock

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        self._clock.compare(activity.info().started_time)
        return await super().execute_activity(input)
