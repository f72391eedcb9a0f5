"""One generation, traced into a real OTLP receiver; and what happens where traces are off, or cannot be written."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.collector import Collector, ReceivedSpan, collecting
from tests.end_to_end.processes import (
    MARK,
    SimulatorProcess,
    Site,
    Starter,
    WorkerProcess,
    eventually,
    flags,
    secrets_in,
)

pytestmark = pytest.mark.system

SERVER, CLIENT = 2, 3
NO_OPENTELEMETRY = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def is_poll(span: ReceivedSpan) -> bool:
    return span.name == "GET" and "/v1/videos/" in span.attributes.get("url.full", "")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def otlp(collector: Collector) -> dict[str, str]:
    """The standard variables that switch traces on."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_SERVICE_NAME": "films",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }


@pytest.fixture
def site(distributed: dict[str, str], collector: Collector, tmp_path: Path) -> Iterator[Site]:
    # The next poll comes late enough for the worker to be killed between two.
    ours = {"LONGTAKE_TRACE_GATEWAY": "true", "LONGTAKE_MIN_POLL_INTERVAL_SECONDS": "3"}
    site = Site(tmp_path, distributed | otlp(collector) | ours)
    yield site
    site.stop()


async def test_one_trace_from_the_command_through_a_killed_worker_to_each_gateway_call(
    client: Starter, site: Site, collector: Collector, simulator: SimulatorProcess
) -> None:
    await site.start()
    # The links of both routes are refused, twice, and `/content` leads to the CDN: the gateway is asked, and left, in
    # every way.
    prompt = f"traced {MARK} [sim:link_403,links=4,content_redirect,seconds=240,label=traced]"
    generate = client.but(**site.env).start("generate", *flags(prompt), "--key", "traced")
    await eventually(lambda: [span for span in collector.spans if is_poll(span)], "a poll", unless=[generate])
    await site.worker.kill()
    await site.worker.restart()
    ended = await generate.finished(seconds=90)
    assert ended.code == 0, ended
    site.worker.stop()

    # The first worker of a namespace also starts the workflow that registers its ledger: a trace of its own.
    generation = [span for span in collector.spans if not span.name.endswith(":LedgerRegistration")]
    (trace_id,) = {span.trace_id for span in generation}
    assert {span.service for span in collector.spans} == {"films"}
    root = ["StartWorkflow:GenerateVideo", "RunWorkflow:GenerateVideo"]
    exchanges = [span for span in collector.spans if span.is_exchange]
    for span in exchanges:
        *above, start, run, name = collector.line(span)
        step = run.removeprefix("RunActivity:")
        assert (above, start, run, name) == (root, f"StartActivity:{step}", f"RunActivity:{step}", span.name)
        assert span.kind == CLIENT
    assert [span.kind for span in collector.spans if span.name == root[1]] == [SERVER], "once, for both workers"

    # Every request that arrived is in the trace, and only the gateway's own origin knows of it.
    arrived = simulator.requests("traced")
    gateway = [entry for entry in arrived if entry["origin"] == "gateway"]
    assert {(entry["kind"]) for entry in gateway} >= {"submit", "query", "content"}
    by_span = {entry["traceparent"].split("-")[2]: entry for entry in gateway}
    assert {entry["traceparent"].rpartition("-")[0] for entry in gateway} == {
        f"00-{trace_id}-{span}" for span in by_span
    }
    # What a killed worker had not sent yet is lost: a poll that ended in its last 0.2 s.
    assert len(by_span.keys() - collector.by_id().keys()) <= 1
    for span_id, entry in by_span.items():
        if shown := collector.by_id().get(span_id):
            assert shown.attributes["url.full"] == f"{simulator.url}{entry['path']}"
            assert shown.attributes["http.response.header.x-oneapi-request-id"] == [entry["request_id"]]
    elsewhere = [entry for entry in arrived if entry["origin"] != "gateway"]
    assert {entry["origin"] for entry in elsewhere} == {"cdn"}
    assert not [entry for entry in elsewhere if "traceparent" in entry]
    abroad = [span for span in exchanges if "url.full" not in span.attributes]
    assert [span.attributes["http.response.status_code"] for span in abroad] == [entry["status"] for entry in elsewhere]
    assert all(span.attributes["url.full"].startswith(simulator.url) for span in exchanges if span not in abroad)

    assert secrets_in("\n".join(text for span in collector.spans for text in span.texts)) == []
    assert secrets_in(site.worker.log()) == []
    assert trace_id in site.worker.log(), "so that a log line leads to its trace"
    assert "detach" not in site.worker.log()


async def test_the_gateway_gets_no_trace_headers_unless_a_setting_allows_them(
    client: Starter, distributed: dict[str, str], collector: Collector, simulator: SimulatorProcess, tmp_path: Path
) -> None:
    """Traces are on, and `LONGTAKE_TRACE_GATEWAY` is not set: the test above is the control."""
    assert "LONGTAKE_TRACE_GATEWAY" not in distributed
    site = Site(tmp_path, distributed | otlp(collector))
    try:
        await site.start()
        prompt = f"untold {MARK} [sim:link_403,links=4,content_redirect,seconds=30,label=untold]"
        ended = await client.but(**site.env)("generate", *flags(prompt), "--key", "untold")
        assert ended.code == 0, ended
    finally:
        site.stop()
    arrived = simulator.requests("untold")
    assert {entry["kind"] for entry in arrived} >= {"submit", "query", "content"}
    assert {entry["origin"] for entry in arrived} == {"gateway", "cdn"}
    assert [entry for entry in arrived if "traceparent" in entry] == []
    exchanges = [span for span in collector.spans if span.is_exchange]
    assert len(exchanges) >= len(arrived), "each is in the trace all the same"


async def test_off_means_off(
    starter: Starter, worker: WorkerProcess, collector: Collector, simulator: SimulatorProcess
) -> None:
    """The worker's environment says nothing of traces; the command's says where to, and that there are to be none."""
    caller = starter.but(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SDK_DISABLED="true")
    prompt = f"untraced {MARK} [sim:ok,seconds=30,label=untraced]"
    ended = await caller("generate", *flags(prompt), "--key", "untraced")
    assert ended.code == 0, ended
    assert collector.requests == 0
    assert {entry["origin"] for entry in simulator.requests("untraced")} == {"gateway", "cdn"}
    assert not [entry for entry in simulator.requests("untraced") if "traceparent" in entry]
    assert "trace_id" not in worker.log()


async def test_a_missing_package_is_one_clear_message(starter: Starter, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_OPENTELEMETRY)
    without = starter.executed().but(PYTHONPATH=str(tmp_path), OTEL_TRACES_EXPORTER="otlp")
    ended = await without("list")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert "longtake[otel]" in ended.err
    worker = WorkerProcess(tmp_path / "worker", without.env)
    worker.start()
    assert await worker.ended() == 2
    (line,) = worker.log().splitlines()
    assert "longtake[otel]" in line
