"""Tracing in Temporal: one trace from the caller through the workflow to each activity.

Imported only if tracing is on (`longtake.observability.http_tracing.exporter_names`). The SDK's plugin derives its ids
from the workflow's seed, so a replay continues the same trace, and a workflow that was started without a trace
still gets one. `docs/adr/0012-traces.md` lists the alternatives.
"""

import functools
import logging
from typing import Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import ProxyTracerProvider, Status, get_tracer, get_tracer_provider, set_tracer_provider
from temporalio.client import OutboundInterceptor, QueryWorkflowInput
from temporalio.contrib.opentelemetry import OpenTelemetryInterceptor, OpenTelemetryPlugin, create_tracer_provider
from temporalio.worker import HandleQueryInput, WorkflowInboundInterceptor, WorkflowInterceptorClassInput

from longtake import __version__
from longtake.observability import http_tracing as tracing

_SAFE_ATTRIBUTES = ("exception.type", "exception.escaped")
"""Attributes of a recorded exception that contain no message."""


@functools.cache
def plugin() -> OpenTelemetryPlugin:
    """The process's only plugin for `Client.connect`, which passes it to workers.

    It creates a provider from the standard variables, unless the program has set one. Then that program's spans and
    ours form one trace, and that program decides what is exported of failures.

    Raises:
        SettingsProblem: The variables name an exporter that is not installed.
    """
    if isinstance(get_tracer_provider(), ProxyTracerProvider):  # nobody has set one
        provider = create_tracer_provider(resource=tracing.resource())
        for exporter in tracing.load_exporters(tracing.exporter_names()):
            provider.add_span_processor(_WithoutMessages(exporter))
        set_tracer_provider(provider)
    # The exporter logs each retry as a warning, and its failure as one error.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
    tracing.use(get_tracer("longtake", __version__))
    return _GenerationTracing()


class _WithoutMessages(BatchSpanProcessor):
    """Exports only the type of a failure: Temporal may store its message and traceback encrypted."""

    def on_end(self, span: ReadableSpan) -> None:
        """See base class."""
        super().on_end(
            ReadableSpan(
                name=span.name,
                context=span.context,
                parent=span.parent,
                resource=span.resource,
                attributes=span.attributes,
                events=[_without_message(event) for event in span.events],
                links=span.links,
                kind=span.kind,
                status=Status(span.status.status_code),
                start_time=span.start_time,
                end_time=span.end_time,
                instrumentation_scope=span.instrumentation_scope,
            )
        )


def _without_message(event: Event) -> Event:
    shown = {name: value for name, value in (event.attributes or {}).items() if name in _SAFE_ATTRIBUTES}
    return Event(event.name, shown, event.timestamp) if event.name == "exception" else event


class _GenerationTracing(OpenTelemetryPlugin):
    def __init__(self) -> None:
        super().__init__(add_temporal_spans=True)
        self.interceptors = [_WithoutQueries(add_temporal_spans=True)]


class _WithoutQueries(OpenTelemetryInterceptor):
    """Skips queries: `watch` sends one a second, which would make hundreds of spans."""

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002 - the SDK's name
        """See base class."""
        return _UntracedQueries(super().intercept_client(next), next)

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> type[Any]:
        """See base class."""
        traced: type[WorkflowInboundInterceptor] = super().workflow_interceptor_class(input)

        class Inbound(traced):  # type: ignore[misc, valid-type] # the SDK creates this class per worker
            async def handle_query(self, input: HandleQueryInput) -> Any:
                return await self.next.handle_query(input)

        return Inbound


class _UntracedQueries(OutboundInterceptor):
    def __init__(self, traced: OutboundInterceptor, untraced: OutboundInterceptor) -> None:
        super().__init__(traced)
        self._untraced = untraced

    async def query_workflow(self, input: QueryWorkflowInput) -> Any:
        return await self._untraced.query_workflow(input)
