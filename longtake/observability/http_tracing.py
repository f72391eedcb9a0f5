"""Tracing outside Temporal: whether it is on, its exporters, and a span for each HTTP exchange.

OpenTelemetry's standard variables switch tracing on. While it is off, nothing of OpenTelemetry is imported.
`longtake.temporal.tracing` writes the spans of workflows and activities.

A span has method, address, path and outcome. It has no query, no header but the gateway's request id, no body and no
exception message. A download from another host has no path either: a path can be a signature. ADR 0021 says why this is
not `opentelemetry-instrumentation-httpx`.
"""

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from longtake.gateway.wire import read_request_id

if TYPE_CHECKING:  # OpenTelemetry is optional, and httpx is not needed everywhere
    import httpx
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

FLUSH_SECONDS = 5.0
"""How long a process waits at its end for a collector that does not answer."""
REQUEST_ID_HEADER = "x-oneapi-request-id"

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
MISSING_EXTRA = "install the extra `longtake[otel]`, or switch them off with OTEL_SDK_DISABLED=true"
_MISSING_EXPORTERS = {
    "otlp_proto_http": MISSING_EXTRA,
    "otlp_proto_grpc": "install opentelemetry-exporter-otlp-proto-grpc, or leave OTEL_EXPORTER_OTLP_PROTOCOL unset",
}
_FIRST_ERROR_STATUS = 400  # HTTP's semantic conventions: a client span with such a status is an error

Origin: TypeAlias = tuple[str, str, int | None]

_tracer: "Tracer | None" = None
_traced: Origin | None = None
_gateway: Origin | None = None


def exporter_names(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The exporters that the standard variables name; empty if tracing is off.

    https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables: here tracing is
    off by default. `OTEL_TRACES_EXPORTER` or an OTLP endpoint switches it on, `OTEL_SDK_DISABLED=true` off.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    listed = environment.get("OTEL_TRACES_EXPORTER", "")
    if not listed.strip():
        return ("otlp",) if any(environment.get(name, "").strip() for name in _ENDPOINTS) else ()
    return tuple(name for part in listed.split(",") if (name := part.strip().lower()) not in {"", "none"})


def load_exporters(names: tuple[str, ...], environment: Mapping[str, str] = os.environ) -> "list[SpanExporter]":
    """Load exporters from the installed packages.

    Raises:
        SettingsProblem: An exporter is not installed.
    """
    return [_load_exporter(name, environment) for name in names]


def _load_exporter(name: str, environment: Mapping[str, str]) -> "SpanExporter":
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter  # noqa: PLC0415 - only where traces are on

        return ConsoleSpanExporter(out=sys.stderr)  # results go to standard output
    installed = name
    if name == "otlp":
        protocol = next((environment[variable] for variable in _PROTOCOLS if environment.get(variable)), "")
        installed = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    from importlib.metadata import entry_points  # noqa: PLC0415 - only where traces are on

    try:
        (offer,) = entry_points(group="opentelemetry_traces_exporter", name=installed)
        exporter: SpanExporter = offer.load()()
    except (ImportError, ValueError):
        from longtake.settings import SettingsProblem  # noqa: PLC0415 - costs 20 ms, and is hardly ever needed

        advice = _MISSING_EXPORTERS.get(installed, "set OTEL_TRACES_EXPORTER to otlp, console or none")
        raise SettingsProblem(f"traces cannot be exported to {name!r}: {advice}") from None
    return exporter


def resource() -> "Resource":
    """The resource from the standard variables; the service is `longtake` if they name none."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415 - only where traces are on

    found = Resource.create()
    unnamed = str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service")
    return found.merge(Resource({SERVICE_NAME: "longtake"})) if unnamed else found


def use(tracer: "Tracer") -> None:
    """Write spans of HTTP exchanges with this tracer."""
    global _tracer  # noqa: PLW0603 - one per process, as OpenTelemetry's provider
    _tracer = tracer


def know_gateway(url: str, *, trace_it: bool) -> None:
    """Set the gateway's origin: only its spans have a path, and only it may get a `traceparent`.

    Args:
        url: The gateway's base URL.
        trace_it: Whether its requests get a `traceparent`. Requests to other origins never do.
    """
    import httpx  # noqa: PLC0415 - see above

    global _gateway, _traced  # noqa: PLW0603 - as above
    _gateway = _origin(httpx.URL(url))
    _traced = _gateway if trace_it else None


def current_trace_id() -> str | None:
    """The id of the current trace; None if there is none."""
    if _tracer is None:
        return None
    from opentelemetry.trace import format_trace_id, get_current_span  # noqa: PLC0415 - only where traces are on

    context = get_current_span().get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else None


class ExchangeSpan:
    """The span of one HTTP exchange; while tracing is off it does nothing."""

    def __init__(self, span: "Span | None" = None) -> None:
        self._span = span
        self._failed = False

    def answered(self, response: "httpx.Response") -> None:
        """Record the head of the response."""
        if self._span is None:
            return
        self._span.set_attribute("http.response.status_code", response.status_code)
        self._span.set_attribute("network.protocol.version", response.http_version.removeprefix("HTTP/"))
        if request_id := read_request_id(response.headers, REQUEST_ID_HEADER):
            self._span.set_attribute(f"http.response.header.{REQUEST_ID_HEADER}", [request_id])
        if response.status_code >= _FIRST_ERROR_STATUS:
            self.failed(str(response.status_code))

    def failed(self, kind: str) -> None:
        """Mark the span as failed. `kind` is an exception's class or a status, never a message. The first counts."""
        if self._span is None or self._failed:
            return
        self._failed = True
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - only where traces are on

        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR)


@contextmanager
def exchange_span(request: "httpx.Request") -> Iterator[ExchangeSpan]:
    """A client span around one HTTP exchange with its body, by HTTP's semantic conventions.

    It does not become the current span: the block may be a generator that is closed in another context.
    """
    if _tracer is None:
        yield ExchangeSpan()
        return
    span = _start(_tracer, request)
    exchange = ExchangeSpan(span)
    try:
        yield exchange
    except BaseException as error:
        if not isinstance(error, GeneratorExit):  # the reader stopped early, on purpose
            exchange.failed(type(error).__name__)
        raise
    finally:
        span.end()


def _start(tracer: "Tracer", request: "httpx.Request") -> "Span":
    from opentelemetry.trace import SpanKind  # noqa: PLC0415 - only where traces are on

    url, origin = request.url, _origin(request.url)
    attributes: dict[str, str | int] = {
        "http.request.method": request.method,
        "url.scheme": url.scheme,
        "server.address": url.host,
        "server.port": url.port or (443 if url.scheme == "https" else 80),
    }
    if origin == _gateway:
        attributes["url.full"] = str(url.copy_with(query=None, fragment=None, userinfo=b""))
    span = tracer.start_span(request.method, kind=SpanKind.CLIENT, attributes=attributes)
    if origin == _traced:
        context = span.get_span_context()
        request.headers["traceparent"] = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return span


def flush() -> None:
    """Export the remaining spans. Call it before `os._exit`, which runs no exit handlers."""
    if _tracer is None:
        return
    from opentelemetry.trace import get_tracer_provider  # noqa: PLC0415 - only where traces are on

    send = getattr(get_tracer_provider(), "force_flush", None)
    if send is not None:
        # In a daemon thread, because the exporter retries for longer than anybody wants to wait.
        sending = threading.Thread(target=send, daemon=True)
        sending.start()
        sending.join(FLUSH_SECONDS)


def _origin(url: "httpx.URL") -> Origin:
    return url.scheme, url.host, url.port  # httpx omits a scheme's default port
