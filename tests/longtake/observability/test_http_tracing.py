"""When traces are written, where they go, and what a span of an HTTP exchange shows; over real HTTP."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from longtake.delivery.download import Fetcher, Source, SourceFailed
from longtake.observability import http_tracing as tracing
from longtake.observability.http_tracing import (
    current_trace_id,
    exchange_span,
    exporter_names,
    know_gateway,
    load_exporters,
    resource,
)
from longtake.settings import SettingsProblem

TO = "http://collector:4318"


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, ()),
        ({"OTEL_SERVICE_NAME": "x"}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": TO}, ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, ()),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": TO}, ("otlp",)),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ("otlp",)),
        ({"OTEL_TRACES_EXPORTER": "OTLP, console"}, ("otlp", "console")),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": TO}, ()),
        ({"OTEL_SDK_DISABLED": "True", "OTEL_EXPORTER_OTLP_ENDPOINT": TO}, ()),
        ({"OTEL_SDK_DISABLED": "false", "OTEL_EXPORTER_OTLP_ENDPOINT": TO}, ("otlp",)),
    ],
)
def test_when_traces_are_on(environment: Mapping[str, str], names: tuple[str, ...]) -> None:
    assert exporter_names(environment) == names


def test_the_exporter_is_the_named_one(capsys: pytest.CaptureFixture[str]) -> None:
    otlp, console = load_exporters(("otlp", "console"), {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})
    assert type(otlp).__module__ == "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    assert isinstance(console, ConsoleSpanExporter)
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(console))
    provider.get_tracer("test").start_span("shown").end()
    told = capsys.readouterr()
    assert told.out == "", "standard output is for results"
    assert "shown" in told.err
    otlp.shutdown()


@pytest.mark.parametrize(
    ("names", "environment", "advice"),
    [
        (("zipkin",), {}, "OTEL_TRACES_EXPORTER"),
        (("otlp",), {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "opentelemetry-exporter-otlp-proto-grpc"),
    ],
)
def test_an_exporter_that_is_not_there_is_one_clear_message(
    names: tuple[str, ...], environment: Mapping[str, str], advice: str
) -> None:
    with pytest.raises(SettingsProblem, match=advice):
        load_exporters(names, environment)


def test_the_service_has_a_name_unless_it_is_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    assert resource().attributes["service.name"] == "longtake"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=films,deployment.environment.name=test")
    assert resource().attributes["service.name"] == "films"
    assert resource().attributes["deployment.environment.name"] == "test"


# --- Exchanges --------------------------------------------------------------------------------------------------------


class Server:
    """Answers every request alike and keeps its head."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Oneapi-Request-Id: req-1\r\n\r\nok"
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(self.answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    @property
    def traceparents(self) -> list[str]:
        lines = [line for head in self.heads for line in head.lower().splitlines()]
        return [line.partition(": ")[2] for line in lines if line.startswith("traceparent:")]


@asynccontextmanager
async def listening() -> AsyncIterator[Server]:
    server = Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listener:
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        yield server


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for name in ("_tracer", "_gateway", "_traced"):
        monkeypatch.setattr(tracing, name, None)
    tracing.use(provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


async def get(url: str) -> None:
    async with httpx.AsyncClient() as client:
        request = client.build_request("GET", url)
        with exchange_span(request) as span:
            span.answered(await client.send(request))


def one(kept: InMemorySpanExporter) -> ReadableSpan:
    (span,) = kept.get_finished_spans()
    return span


async def test_an_exchange_with_the_gateway(kept: InMemorySpanExporter) -> None:
    async with listening() as gateway:
        know_gateway(f"{gateway.url}/v1", trace_it=True)
        await get(f"{gateway.url}/v1/videos/task_1?Signature=SECRET#fragment")
    span = one(kept)
    assert span.context
    assert span.kind is SpanKind.CLIENT
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "url.full": f"{gateway.url}/v1/videos/task_1",
        "server.address": "127.0.0.1",
        "server.port": httpx.URL(gateway.url).port,
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "http.response.header.x-oneapi-request-id": ("req-1",),
    }
    flags = f"{span.context.trace_flags:02x}"
    assert gateway.traceparents == [f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{flags}"]


async def test_only_the_gateways_own_origin_gets_trace_headers_and_only_where_set(kept: InMemorySpanExporter) -> None:
    async with listening() as gateway, listening() as other:
        know_gateway(gateway.url, trace_it=False)
        await get(f"{gateway.url}/v1/models")
        know_gateway(gateway.url, trace_it=True)
        await get(f"{other.url}/secret-path/x.mp4?Signature=SECRET")
    assert gateway.traceparents == other.traceparents == []
    shown, hidden = kept.get_finished_spans()
    assert "url.full" in (shown.attributes or {})
    assert "secret" not in str(hidden.to_json()).lower()


async def test_a_redirect_from_the_gateway_takes_no_trace_headers_elsewhere(kept: InMemorySpanExporter) -> None:
    async with listening() as gateway, listening() as other:
        know_gateway(gateway.url, trace_it=True)
        location = f"Location: {other.url}/x?Signature=SECRET".encode()
        gateway.answer = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n" + location + b"\r\n\r\n"
        source = Source("content", f"{gateway.url}/v1/videos/t/content")
        async with Fetcher(gateway.url, allow_private_addresses=True) as fetcher, fetcher.open(source) as response:
            assert await response.aread() == b"ok"
    assert (len(gateway.traceparents), other.traceparents) == (1, [])
    statuses = [(span.attributes or {})["http.response.status_code"] for span in kept.get_finished_spans()]
    assert statuses == [302, 200]
    assert not [span for span in kept.get_finished_spans() if "SECRET" in str(span.to_json())]


async def test_a_failure_shows_its_kind_and_not_its_words(kept: InMemorySpanExporter) -> None:
    async with listening() as gateway:
        know_gateway(gateway.url, trace_it=False)
        gateway.answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        await get(f"{gateway.url}/x")
        async with Fetcher(gateway.url) as fetcher:
            with pytest.raises(SourceFailed):
                async with fetcher.open(Source("a link", f"{gateway.url}/x")):
                    raise SourceFailed("SECRET words")
    with pytest.raises(httpx.ConnectError):
        await get(f"{gateway.url}/SECRET")
    spans = kept.get_finished_spans()
    assert [(span.attributes or {})["error.type"] for span in spans] == ["404", "404", "ConnectError"]
    for span in spans:
        assert (span.status.status_code, span.status.description, list(span.events)) == (StatusCode.ERROR, None, [])


async def test_the_exchange_is_a_child_of_what_is_being_done(kept: InMemorySpanExporter) -> None:
    assert current_trace_id() is None
    assert tracing._tracer is not None
    async with listening() as gateway:
        with tracing._tracer.start_as_current_span("step") as step:
            assert current_trace_id() == f"{step.get_span_context().trace_id:032x}"
            await get(gateway.url)
            assert current_trace_id() == f"{step.get_span_context().trace_id:032x}"
    child, _ = kept.get_finished_spans()
    assert child.parent
    assert child.parent.span_id == step.get_span_context().span_id


async def test_without_traces_nothing_is_sent_along(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_gateway", "_traced"):  # put back at the end
        monkeypatch.setattr(tracing, name, None)
    async with listening() as gateway:
        know_gateway(gateway.url, trace_it=True)
        assert tracing._tracer is None
        await get(gateway.url)
    assert gateway.traceparents == []
    tracing.flush()
