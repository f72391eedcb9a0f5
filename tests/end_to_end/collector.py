"""A small OTLP/HTTP receiver: what a collector would be sent, decoded."""

import gzip
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue


@dataclass(frozen=True)
class ReceivedSpan:
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    failed: bool
    attributes: Mapping[str, Any]
    service: str
    texts: tuple[str, ...]
    """Every text that the span has, wherever."""

    @property
    def is_exchange(self) -> bool:
        return "http.request.method" in self.attributes


@dataclass
class Collector:
    url: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)
    requests: int = 0

    def by_id(self) -> dict[str, ReceivedSpan]:
        return {span.span_id: span for span in self.spans}

    def line(self, span: ReceivedSpan) -> list[str]:
        """The names from the root to this span; a parent that never came is `?`."""
        known, names = self.by_id(), [span.name]
        while span.parent_id:
            if span.parent_id not in known:
                return ["?", *names]
            span = known[span.parent_id]
            names.insert(0, span.name)
        return names

    def take(self, body: bytes) -> None:
        self.requests += 1
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = read(resource.resource.attributes).get("service.name", "")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        ReceivedSpan(
                            name=span.name,
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            kind=span.kind,
                            failed=span.status.code == span.status.STATUS_CODE_ERROR,
                            attributes=read(span.attributes),
                            service=service,
                            texts=tuple(text_format(span)),
                        )
                    )


def text_format(span: Any) -> Iterator[str]:
    yield span.name
    yield span.status.message
    yield span.trace_state
    for holder in (span, *span.events, *span.links):
        for key, value in read(holder.attributes).items():
            yield from (key, str(value))
    for event in span.events:
        yield event.name


def read(attributes: Any) -> dict[str, Any]:
    return {pair.key: value_of(pair) for pair in attributes}


def value_of(pair: KeyValue) -> Any:
    value: AnyValue = pair.value
    if value.HasField("array_value"):
        return [element.string_value for element in value.array_value.values]
    return getattr(value, value.WhichOneof("value") or "string_value")


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    serving.start()
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield collector
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
