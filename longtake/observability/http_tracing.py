"""Traces, the part beside Temporal: when they are written, where they go, and a span for each HTTP exchange.

Off unless the standard variables of OpenTelemetry say otherwise, and then nothing of OpenTelemetry is imported. What
they mean is the OpenTelemetry SDK's business; here is only read whether there are to be traces at all, and which
exporter. Spans of workflows and activities: `longtake.temporal.tracing`.

A span of an exchange shows method, address, path and outcome. It has no query, no header but the gateway's request id,
no body and no exception text; a download from elsewhere shows no path either, because a path can be a signature too.
"""

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from longtake.gateway.wire import read_request_id

if TYPE_CHECKING:  # OpenTelemetry is an optional extra; and a client of Temporal that makes no request needs no httpx
    import httpx
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

FLUSH_SECONDS = 5.0
"""The longest that a process waits at its end for a collector that does not answer."""
REQUEST_ID_HEADER = "x-oneapi-request-id"

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
MISSING_EXTRA = "install the extra `longtake[otel]`, or switch them off with OTEL_SDK_DISABLED=true"
_MISSING_EXPORTERS = {
    "otlp_proto_http": MISSING_EXTRA,
    "otlp_proto_grpc": "install opentelemetry-exporter-otlp-proto-grpc, or leave OTEL_EXPORTER_OTLP_PROTOCOL unset",
}
_FAILED_FROM = 400  # HTTP's errors; for a client they are its span's too

Origin: TypeAlias = tuple[str, str, int | None]

_tracer: "Tracer | None" = None
_told: Origin | None = None
_own: Origin | None = None


def exporter_names(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The exporters that the standard variables ask for; none where traces are off.

    https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables: off by default here, so it takes
    `OTEL_TRACES_EXPORTER`, or an OTLP endpoint to send to. `OTEL_SDK_DISABLED=true` switches all of it off.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    listed = environment.get("OTEL_TRACES_EXPORTER", "")
    if not listed.strip():
        return ("otlp",) if any(environment.get(name, "").strip() for name in _ENDPOINTS) else ()
    return tuple(name for part in listed.split(",") if (name := part.strip().lower()) not in {"", "none"})


def load_exporters(names: tuple[str, ...], environment: Mapping[str, str] = os.environ) -> "list[SpanExporter]":
    """The exporters of these names, as installed packages offer them.

    Raises:
        SettingsProblem: There is none of such a name.
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
    """Who writes: what the standard variables say, and `longtake` where they name no service."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415 - only where traces are on

    said = Resource.create()
    unnamed = str(said.attributes.get(SERVICE_NAME, "")).startswith("unknown_service")
    return said.merge(Resource({SERVICE_NAME: "longtake"})) if unnamed else said


def use(tracer: "Tracer") -> None:
    """Write spans of HTTP exchanges with this tracer from now on."""
    global _tracer  # noqa: PLW0603 - OpenTelemetry's own provider is one for each process too
    _tracer = tracer


def know_gateway(url: str, *, trace_it: bool) -> None:
    """Say where the gateway is: only its own exchanges show a path, and only it may be told of the trace.

    Args:
        url: The gateway's base URL.
        trace_it: Whether its own origin is sent a `traceparent`. No other origin ever is.
    """
    import httpx  # noqa: PLC0415 - see above

    global _own, _told  # noqa: PLW0603 - as above
    _own = _origin(httpx.URL(url))
    _told = _own if trace_it else None


def current_trace_id() -> str | None:
    """The trace that is being written just now."""
    if _tracer is None:
        return None
    from opentelemetry.trace import format_trace_id, get_current_span  # noqa: PLC0415 - only where traces are on

    context = get_current_span().get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else None


class ExchangeSpan:
    """The span of one HTTP exchange; without traces it does nothing."""

    def __init__(self, span: "Span | None" = None) -> None:
        self._span = span
        self._failed = False

    def answered(self, response: "httpx.Response") -> None:
        """Write down the head of the answer."""
        if self._span is None:
            return
        self._span.set_attribute("http.response.status_code", response.status_code)
        self._span.set_attribute("network.protocol.version", response.http_version.removeprefix("HTTP/"))
        if request_id := read_request_id(response.headers, REQUEST_ID_HEADER):
            self._span.set_attribute(f"http.response.header.{REQUEST_ID_HEADER}", [request_id])
        if response.status_code >= _FAILED_FROM:
            self.failed(str(response.status_code))

    def failed(self, kind: str) -> None:
        """Mark it as failed; `kind` is an exception's class or a status, never its words. The first one counts."""
        if self._span is None or self._failed:
            return
        self._failed = True
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - only where traces are on

        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR)


@contextmanager
def exchange_span(request: "httpx.Request") -> Iterator[ExchangeSpan]:
    """A client span around one HTTP exchange, its body included, as HTTP's semantic conventions want it.

    It is nobody's current span: the block may be a generator that is finished in another context.
    """
    if _tracer is None:
        yield ExchangeSpan()
        return
    span = _start(_tracer, request)
    exchange = ExchangeSpan(span)
    try:
        yield exchange
    except BaseException as error:
        if not isinstance(error, GeneratorExit):  # the reader has what it wanted
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
    if origin == _own:
        attributes["url.full"] = str(url.copy_with(query=None, fragment=None, userinfo=b""))
    span = tracer.start_span(request.method, kind=SpanKind.CLIENT, attributes=attributes)
    if origin == _told:
        context = span.get_span_context()
        request.headers["traceparent"] = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return span


def flush() -> None:
    """Send what is still kept back; before a process ends by `os._exit`, which asks nobody."""
    if _tracer is None:
        return
    from opentelemetry.trace import get_tracer_provider  # noqa: PLC0415 - only where traces are on

    send = getattr(get_tracer_provider(), "force_flush", None)
    if send is not None:
        # In a thread that may be left behind: the exporter goes on trying for longer than anybody wants to wait.
        sending = threading.Thread(target=send, daemon=True)
        sending.start()
        sending.join(FLUSH_SECONDS)


def _origin(url: "httpx.URL") -> Origin:
    return url.scheme, url.host, url.port  # httpx leaves a scheme's own port out
