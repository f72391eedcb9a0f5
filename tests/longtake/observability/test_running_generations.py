"""What all generations are doing, counted."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from longtake.client import Execution, VideoClient
from longtake.observability.metrics import (
    ATTENTION,
    OLDEST_WAITING,
    OTHER,
    RUNNING,
    WAITING,
    WAITING_GENERATIONS,
    Meter,
)
from longtake.observability.running_generations import RunningGenerations, watch_running_generations

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def generation(
    stage: str | None,
    *,
    attention: str | None = None,
    task_id: str | None = None,
    paid: str | None = None,
    minutes: float = 1,
) -> Execution:
    known: dict[str, Any] = dict.fromkeys(field.name for field in fields(Execution))
    known |= {
        "started_at": NOW - timedelta(minutes=minutes),
        "stage": stage,
        "attention": attention,
        "task_id": task_id,
        "paid": paid,
    }
    return Execution(**known)


class Recorded:
    """A meter that keeps the last value of every series."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], float] = {}

    def create_gauge_float(self, name: str, description: str | None = None, unit: str | None = None) -> Any:
        class Gauge:
            def set(_, value: float, labels: Mapping[str, str]) -> None:  # noqa: N805 - the outer one is meant below
                self.values[name, "/".join(labels.values())] = value

        return Gauge()

    def of(self, name: str) -> dict[str, float]:
        """The values that are not 0, by label."""
        return {label: value for (metric, label), value in self.values.items() if metric == name and value}


class Listing:
    """A client that lists what it is given, call by call; the last answer stays."""

    def __init__(self, *answers: list[Execution] | Exception) -> None:
        self._answers = list(answers)
        self.calls = 0
        self.queries: set[str] = set()

    async def generations(self, query: str = "", *, limit: int = 50) -> AsyncIterator[Execution]:
        self.calls += 1
        self.queries.add(query)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        for one in answer:
            yield one


def shown(*generations: Execution) -> Recorded:
    running_generations, meter = RunningGenerations(), Recorded()
    for one in generations:
        running_generations.add(one)
    running_generations.show(cast("Meter", meter), NOW)
    return meter


def test_generations_are_counted_by_stage_and_attention() -> None:
    meter = shown(
        generation("first_segment", task_id="t1"),
        generation("first_segment", task_id="t2", attention="overdue"),
        generation("delivering", task_id="t3"),
        generation(None),
    )
    assert meter.of(RUNNING.name) == {"first_segment": 2, "delivering": 1, OTHER: 1}
    assert meter.of(ATTENTION.name) == {"overdue": 1}


def test_what_is_waited_for_is_distinguished() -> None:
    meter = shown(
        generation(None, minutes=3),
        generation("preparing", minutes=4),
        generation("submitting", minutes=5),
        generation("awaiting_decision", attention="needs_decision", paid="unknown", minutes=6),
        generation("awaiting_decision", attention="needs_decision", paid="unknown", task_id="its extension", minutes=5),
        generation("awaiting_decision", attention="needs_decision", paid="yes", task_id="t", minutes=7),
        generation("extending", attention="needs_api_key", task_id="t", minutes=8),
        generation("first_segment", task_id="t", minutes=99),
    )
    assert meter.of(WAITING_GENERATIONS.name) == {"worker": 1, "submission": 2, "doubt": 2, "choice": 1, "key": 1}
    minutes = {reason: seconds / 60 for reason, seconds in meter.of(OLDEST_WAITING.name).items()}
    assert minutes == {"worker": 3, "submission": 5, "doubt": 6, "choice": 7, "key": 8}
    assert set(WAITING) == set(minutes)


def test_what_is_over_goes_back_to_zero() -> None:
    meter = Recorded()
    before = RunningGenerations()
    before.add(generation("awaiting_decision", attention="needs_decision"))
    before.show(cast("Meter", meter), NOW)
    RunningGenerations().show(cast("Meter", meter), NOW)
    assert not any(meter.of(name) for name in (RUNNING.name, ATTENTION.name, WAITING_GENERATIONS.name))
    assert meter.of(OLDEST_WAITING.name) == {}
    assert meter.values[RUNNING.name, "submitting"] == 0


def test_a_clock_that_is_behind_makes_no_negative_age() -> None:
    assert shown(generation("submitting", minutes=-1)).of(OLDEST_WAITING.name) == {}


async def watched(client: Listing, meter: Recorded, *, until_call: int) -> None:
    watching = asyncio.create_task(
        watch_running_generations(
            cast("VideoClient", client), cast("Meter", meter), every=timedelta(0), now=lambda: NOW
        )
    )
    async with asyncio.timeout(10):
        while client.calls < until_call:  # noqa: ASYNC110 - the watch tells nobody
            await asyncio.sleep(0.001)
    assert not watching.done()
    watching.cancel()


async def test_an_unavailable_temporal_is_reported_once_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "longtake.observability.running_generations")
    away = ConnectionError("no route")
    client, meter = Listing(away, away, away, [generation("submitting")], [], away, []), Recorded()
    await watched(client, meter, until_call=8)
    assert client.queries == {'ExecutionStatus = "Running"'}
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING", "INFO"]
    assert "ConnectionError: no route" in caplog.text


async def test_old_figures_stay_and_their_age_is_seen() -> None:
    client, meter = Listing([generation("submitting")], ConnectionError("no route")), Recorded()
    await watched(client, meter, until_call=3)
    assert meter.of(RUNNING.name) == {"submitting": 1}
    assert meter.of("longtake_running_generations_checked_timestamp_seconds") == {"": NOW.timestamp()}
