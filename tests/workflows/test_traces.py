"""One trace for a generation, whatever starts it and however often it continues as new; and none of its replays."""

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest
import pytest_asyncio
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import get_tracer, get_tracer_provider
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.contrib.opentelemetry import OpenTelemetryPlugin, ReplaySafeTracerProvider
from temporalio.worker import Replayer

from longtake.observability import http_tracing as tracing
from longtake.temporal.connection import DATA_CONVERTER
from longtake.temporal.tracing import plugin
from tests.workflows.cases import FULL, first_run_status
from tests.workflows.rig import REQUEST, Rig, Script, completed, running, running_rig
from tests.workflows.test_replay import HISTORIES, history
from worker import workflow_setup
from workflows.steps import poll as watching

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEPT = InMemorySpanExporter()


@pytest.fixture(scope="module")
def traces() -> Iterator[OpenTelemetryPlugin]:
    """The product's own plugin; its spans are kept here. OpenTelemetry's provider is one for each process, for good."""
    made = plugin()
    provider = get_tracer_provider()
    assert isinstance(provider, ReplaySafeTracerProvider)
    provider.add_span_processor(SimpleSpanProcessor(KEPT))
    yield made
    tracing._tracer = None


@pytest_asyncio.fixture(loop_scope="session")
async def rig(traces: OpenTelemetryPlugin) -> AsyncIterator[Rig]:
    async with running_rig(traces) as rig:
        KEPT.clear()
        yield rig
        await rig.clean_up()


def spans() -> list[ReadableSpan]:
    return list(KEPT.get_finished_spans())


def line(span: ReadableSpan) -> str:
    """The names from the root to this span."""
    by_id = {one.context.span_id: one for one in spans() if one.context}
    return f"{line(by_id[span.parent.span_id])} > {span.name}" if span.parent else span.name


def traces_of(found: list[ReadableSpan]) -> set[int]:
    return {span.context.trace_id for span in found if span.context}


async def test_the_callers_own_span_is_the_root(rig: Rig) -> None:
    with get_tracer("backend").start_as_current_span("order-17"):
        generation = await rig.generate(Script(polls=[running(20), completed()], deliver=FULL))
    await generation.result()
    await generation.status()
    workflow = "order-17 > StartWorkflow:GenerateVideo > RunWorkflow:GenerateVideo"
    steps = ["prepare_generation", "submit_generation", "query_generation", "query_generation", "deliver_video"]
    assert len(traces_of(spans())) == 1
    assert sorted(line(span) for span in spans() if span.name.startswith("RunActivity")) == sorted(
        f"{workflow} > StartActivity:{step} > RunActivity:{step}" for step in steps
    )
    assert not [span.name for span in spans() if "Query" in span.name], "looking on is no part of a generation"


async def test_continued_as_new_it_is_the_same_trace(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLLS_PER_RUN", 2)
    generation = await rig.generate(Script(polls=[running(20)] * 5 + [completed()], deliver=FULL))
    await generation.result()
    assert await first_run_status(rig, generation) is WorkflowExecutionStatus.CONTINUED_AS_NEW
    assert len(traces_of(spans())) == 1
    runs = [span for span in spans() if span.name == "RunWorkflow:GenerateVideo"]
    assert len(runs) == 3
    assert len({(span.attributes or {})["temporalRunID"] for span in runs}) == 3


async def test_started_by_a_program_without_traces_it_is_one_trace_all_the_same(rig: Rig) -> None:
    """The workflow makes the trace's id from its seed."""
    untraced = Client(rig.client.service_client, data_converter=DATA_CONVERTER)
    generation = await rig.start(Script(polls=[running(20), completed()], deliver=FULL), REQUEST, client=untraced)
    await rig.pass_time(timedelta(hours=1))
    await generation.result()
    assert "StartWorkflow:GenerateVideo" not in {span.name for span in spans()}
    assert {line(span).partition(" > ")[0] for span in spans()} == {"RunWorkflow:GenerateVideo"}
    assert len(traces_of(spans())) == 1


async def test_a_replay_writes_no_span(traces: OpenTelemetryPlugin) -> None:
    KEPT.clear()
    for path in HISTORIES:
        if path.stem in {"full", "decided", "generation_failed", "cancelled"}:
            replayer = Replayer(**workflow_setup(), data_converter=DATA_CONVERTER, plugins=[traces])
            await replayer.replay_workflow(history(path))
    assert [span.name for span in spans()] == []
