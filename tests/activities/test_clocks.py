"""A worker whose clock differs from Temporal's finds it out and says so once."""

import dataclasses
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from temporalio import activity
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from activities.clocks import CompareClocks, WorkerClock
from longtake.observability.metrics import WORKER_CLOCK_SKEW, Meter
from tests.longtake.observability.test_running_generations import Recorded

THEN = datetime(2026, 7, 22, 10, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.levelname for entry in caplog.records if entry.name == "activities.clocks"]


@pytest.fixture(autouse=True)
def _all_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, "activities.clocks"):
        yield


@pytest.mark.parametrize("seconds", [600, -600])
def test_a_clock_that_is_off_is_logged_once_and_again_when_it_is_over(
    seconds: int, caplog: pytest.LogCaptureFixture
) -> None:
    off = [seconds * SECOND]
    meter = Recorded()
    clock = WorkerClock(cast("Meter", meter), now=lambda: THEN + off[0])
    for late in (0.2, 4, 0.1, 30, 0.3, 2):
        clock.compare(THEN - late * SECOND)
    assert said(caplog) == ["WARNING"]
    value = meter.of(WORKER_CLOCK_SKEW.name)[""]
    assert abs(value - seconds) < 1, "the time on the way is not taken for a difference"

    off[0] = timedelta(0)
    for _ in range(6):
        clock.compare(THEN - 0.2 * SECOND)
    assert said(caplog) == ["WARNING", "INFO"]


def test_tasks_that_were_long_on_their_way_are_no_difference(caplog: pytest.LogCaptureFixture) -> None:
    clock = WorkerClock(cast("Meter", Recorded()), now=lambda: THEN)
    for late in (40, 25, 3, 60, 9, 30):
        clock.compare(THEN - late * SECOND)
    assert said(caplog) == []


async def test_every_activity_is_a_sample(caplog: pytest.LogCaptureFixture) -> None:
    class Innermost(ActivityInboundInterceptor):
        def __init__(self) -> None:
            pass

        async def execute_activity(self, input: ExecuteActivityInput) -> str:
            return "done"

    chain = CompareClocks(WorkerClock(cast("Meter", Recorded()), now=lambda: THEN - 600 * SECOND)).intercept_activity(
        Innermost()
    )

    @activity.defn
    async def anything() -> str:
        return str(await chain.execute_activity(ExecuteActivityInput(fn=anything, args=[], executor=None, headers={})))

    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(environment.info, started_time=THEN)
    assert await environment.run(anything) == "done"
    assert said(caplog) == ["WARNING"]
