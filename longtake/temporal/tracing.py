"""Traces, Temporal's part: one trace from the caller through the workflow to each activity.

Imported only where traces are on (`longtake.observability.http_tracing.exporter_names`). It is the SDK's own plugin: its ids come from the
workflow's seed, so that a worker that is killed and replays goes on in the same trace, and a workflow that somebody
started without a trace still has one. `docs/adr/0012-traces.md` says what else was considered.
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

_SHOWN_OF_FAILURES = ("exception.type", "exception.escaped")
"""OpenTelemetry's attributes of a recorded exception that hold no words."""


@functools.cache
def plugin() -> OpenTelemetryPlugin:
    """The plugin for `Client.connect`, which hands it on to workers. One for each process.

    The provider is made from the standard variables, unless the program has set one already: then its spans and ours
    are one trace, and what is exported of failures is that program's choice.

    Raises:
        SettingsProblem: The variables name an exporter that is not installed.
    """
    if isinstance(get_tracer_provider(), ProxyTracerProvider):  # nobody has set one
        provider = create_tracer_provider(resource=tracing.resource())
        for exporter in tracing.load_exporters(tracing.exporter_names()):
            provider.add_span_processor(_WithoutWords(exporter))
        set_tracer_provider(provider)
    # Each of its tries would be a warning; that it has failed is an error, in one line.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
    tracing.use(get_tracer("longtake", __version__))
    return _GenerationTracing()


class _WithoutWords(BatchSpanProcessor):
    """Exports of a failure only its type: its words and traceback are sealed in Temporal where that is encrypted."""

    def on_end(self, span: ReadableSpan) -> None:
        """See base class."""
        super().on_end(
            ReadableSpan(
                name=span.name,
                context=span.context,
                parent=span.parent,
                resource=span.resource,
                attributes=span.attributes,
                events=[_without_words(event) for event in span.events],
                links=span.links,
                kind=span.kind,
                status=Status(span.status.status_code),
                start_time=span.start_time,
                end_time=span.end_time,
                instrumentation_scope=span.instrumentation_scope,
            )
        )


def _without_words(event: Event) -> Event:
    shown = {name: value for name, value in (event.attributes or {}).items() if name in _SHOWN_OF_FAILURES}
    return Event(event.name, shown, event.timestamp) if event.name == "exception" else event


class _GenerationTracing(OpenTelemetryPlugin):
    def __init__(self) -> None:
        super().__init__(add_temporal_spans=True)
        self.interceptors = [_WithoutQueries(add_temporal_spans=True)]


class _WithoutQueries(OpenTelemetryInterceptor):
    """Looking at a generation is no part of it: `watch` asks once a second, which would be hundreds of spans."""

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002 - the SDK's name
        """See base class."""
        return _QueriesPassBy(super().intercept_client(next), next)

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> type[Any]:
        """See base class."""
        traced: type[WorkflowInboundInterceptor] = super().workflow_interceptor_class(input)

        class Inbound(traced):  # type: ignore[misc, valid-type] # the SDK makes this class for each worker
            async def handle_query(self, input: HandleQueryInput) -> Any:
                return await self.next.handle_query(input)

        return Inbound


class _QueriesPassBy(OutboundInterceptor):
    def __init__(self, traced: OutboundInterceptor, untraced: OutboundInterceptor) -> None:
        super().__init__(traced)
        self._untraced = untraced

    async def query_workflow(self, input: QueryWorkflowInput) -> Any:
        return await self._untraced.query_workflow(input)
