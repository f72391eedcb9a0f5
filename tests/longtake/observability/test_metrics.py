"""The catalogue of metrics, and the real endpoint that serves it."""

import asyncio
import re
import socket
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from itertools import chain, product

import pytest

from activities.failures import RULES
from docs import generate
from longtake.observability import metrics
from longtake.observability.metrics import METRICS, OTHER, Kind, Metric, count, observe, show, start_at_zero
from longtake.temporal.connection import MetricsAddressUnusable, sdk_runtime
from tests.end_to_end.processes import free_port
from tests.exposition import Exposition

MAX_SERIES = 2500
"""For one worker, all labels used: what a small Prometheus does not notice."""


def free_address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def address() -> str:
    return free_address()


def named(kind: Kind) -> list[Metric]:
    return [metric for metric in METRICS if metric.kind is kind]


def series(metric: Metric) -> int:
    """How many there can be in one worker."""
    combinations = len(list(product(*((*known, OTHER) for known in metric.labels.values()))))
    buckets = len(metrics.BUCKETS[metric.name]) + 3 if metric.kind is Kind.HISTOGRAM else 1
    return combinations * buckets * len(metric.recorded_by)


def test_names_follow_prometheus_conventions() -> None:
    exposed = [metric.exposed for metric in METRICS]
    assert len(set(exposed)) == len(exposed)
    for metric in METRICS:
        assert re.fullmatch(r"longtake_[a-z_]+", metric.name)
        assert metric.help.endswith(".")
        assert metric.exposed.endswith("_total") == (metric.kind is Kind.COUNTER)


def test_every_metric_is_in_the_catalogue() -> None:
    assert {id(one) for one in vars(metrics).values() if isinstance(one, Metric)} == {id(one) for one in METRICS}


def test_the_number_of_series_is_bounded() -> None:
    counters = sum(series(metric) for metric in METRICS if metric.kind is not Kind.HISTOGRAM)
    histograms = sum(series(metric) for metric in named(Kind.HISTOGRAM))
    assert counters < MAX_SERIES
    assert histograms < MAX_SERIES


def test_no_label_can_hold_what_must_not_be_seen() -> None:
    allowed = {"outcome", "model", "stage", "verdict", "task", "result", "clip", "type", "code", "attention", "reason"}
    assert {label for metric in METRICS for label in metric.labels} == allowed
    assert all(known for metric in METRICS for known in metric.labels.values())


def test_an_unknown_value_becomes_other() -> None:
    labels = metrics.GENERATIONS.attributes({"outcome": "full", "model": "sk-0123456789"})
    assert labels == {"outcome": "full", "model": OTHER}
    assert metrics.POLLS.attributes({"result": None}) == {"result": OTHER}


@pytest.mark.parametrize("labels", [{}, {"outcome": "full"}, {"outcome": "full", "model": "x", "key": "order-17"}])
def test_labels_that_are_not_the_metrics_are_refused(labels: Mapping[str, str]) -> None:
    with pytest.raises(ValueError, match="longtake_generations has the labels"):
        metrics.GENERATIONS.attributes(labels)


def test_the_failure_types_are_those_of_the_table() -> None:
    assert set(metrics.FAILURES) == {rule.type for rule in RULES}


def test_the_activities_are_those_of_the_workflow() -> None:
    steps = generate.steps()
    assert set(metrics.ACTIVITIES) == set(chain.from_iterable(step.activities for step in steps.values()))
    assert set(steps["submission"].activities) == set(metrics.PAYING_ACTIVITIES)
    recorders = {recorder for metric in METRICS for recorder in metric.recorded_by}
    assert recorders == {metrics.WORKFLOW, metrics.WORKER, *metrics.ACTIVITIES}


def test_the_buckets_rise() -> None:
    for name, bounds in metrics.BUCKETS.items():
        assert list(bounds) == sorted(set(bounds)), name
    assert {metric.name for metric in named(Kind.HISTOGRAM)} <= metrics.BUCKETS.keys()


async def test_the_endpoint_shows_what_is_recorded_under_the_names_of_the_catalogue(address: str) -> None:
    meter = sdk_runtime(address).metric_meter
    for metric in METRICS:
        labels = {name: known[0] for name, known in metric.labels.items()}
        match metric.kind:
            case Kind.COUNTER:
                count(meter, metric, 3, **labels)
            case Kind.GAUGE:
                show(meter, metric, 2.5, **labels)
            case Kind.HISTOGRAM:
                observe(meter, metric, timedelta(seconds=95), **labels)

    seen = await asyncio.to_thread(Exposition.of, address)

    for metric in METRICS:
        labels = {name: known[0] for name, known in metric.labels.items()}
        assert f"# HELP {metric.exposed} {metric.help}\n# TYPE {metric.exposed} {metric.kind}\n" in seen.text
        match metric.kind:
            case Kind.COUNTER:
                assert seen.sum(metric.exposed, **labels) == 3
            case Kind.GAUGE:
                assert seen.sum(metric.exposed, **labels) == 2.5
            case Kind.HISTOGRAM:
                assert seen.sum(f"{metric.exposed}_sum", **labels) == 95
                bounds = {float(one.labels["le"]): one.value for one in seen.find(f"{metric.exposed}_bucket")}
                assert set(bounds) == {*map(float, metrics.BUCKETS[metric.name]), float("inf")}
                assert (bounds[90], bounds[120]) == (0, 1)


async def test_every_counter_of_a_recorder_begins_at_zero() -> None:
    address = free_address()
    meter = sdk_runtime(address).metric_meter
    start_at_zero(meter.with_additional_attributes({"activity_type": "query_generation"}), "query_generation")

    seen = await asyncio.to_thread(Exposition.of, address)

    expected = {
        metric.exposed: len(list(product(*((*known, OTHER) for known in metric.labels.values()))))
        for metric in named(Kind.COUNTER)
        if "query_generation" in metric.recorded_by
    }
    assert {"longtake_step_failures_total", "longtake_gateway_errors_total"} == set(expected)
    assert Counter(one.name for one in seen.samples) == expected
    assert {one.value for one in seen.samples} == {0}


def test_an_address_that_is_taken_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MetricsAddressUnusable) as refusal:
            sdk_runtime(address)
    assert str(refusal.value).startswith(f"LONGTAKE_METRICS_ADDRESS: metrics cannot be served at {address} (")
    assert "in use" in str(refusal.value)
