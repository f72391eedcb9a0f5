"""Traces, Temporal's part: one trace from the caller through the workflow to each activity.

Imported only where traces are on (`longtake.tracing.exporter_names`). It is the SDK's own plugin: its ids come from the
workflow's seed, so that a worker that is killed and replays goes on in the same trace, and a workflow that somebody
started without a trace still has one. `docs/adr/0012-traces.md` says what else was considered.
"""

import functools
import logging
from typing import Any

from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import ProxyTracerProvider, get_tracer, get_tracer_provider, set_tracer_provider
from temporalio.client import OutboundInterceptor, QueryWorkflowInput
from temporalio.contrib.opentelemetry import OpenTelemetryInterceptor, OpenTelemetryPlugin, create_tracer_provider
from temporalio.worker import HandleQueryInput, WorkflowInboundInterceptor, WorkflowInterceptorClassInput

from longtake import __version__, tracing


@functools.cache
def plugin() -> OpenTelemetryPlugin:
    """The plugin for `Client.connect`, which hands it on to workers. One for each process.

    The provider is made from the standard variables, unless the program has set one already: then its spans and ours
    are one trace.

    Raises:
        SettingsProblem: The variables name an exporter that is not installed.
    """
    if isinstance(get_tracer_provider(), ProxyTracerProvider):  # nobody has set one
        provider = create_tracer_provider(resource=tracing.resource())
        for exporter in tracing.load_exporters(tracing.exporter_names()):
            provider.add_span_processor(BatchSpanProcessor(exporter))
        set_tracer_provider(provider)
    # Each of its tries would be a warning; that it has failed is an error, in one line.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
    tracing.use(get_tracer("longtake", __version__))
    return _GenerationTracing()


class _GenerationTracing(OpenTelemetryPlugin):
    def __init__(self) -> None:
        super().__init__(add_temporal_spans=True)
        self.interceptors = [_WithoutQueries(add_temporal_spans=True)]


class _WithoutQueries(OpenTelemetryInterceptor):
    """Looking at a generation is no part of it: `watch` asks once a second, which would be hundreds of spans."""

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002 - the SDK's name
        """See base class."""
        return _QueriesPassBy(super().intercept_client(next), next)

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> type[Any]:  # noqa: A002 - the SDK's
        """See base class."""
        traced: type[WorkflowInboundInterceptor] = super().workflow_interceptor_class(input)

        class Inbound(traced):  # type: ignore[misc, valid-type] # the SDK makes this class for each worker
            async def handle_query(self, input: HandleQueryInput) -> Any:  # noqa: A002 - the SDK's name
                return await self.next.handle_query(input)

        return Inbound


class _QueriesPassBy(OutboundInterceptor):
    def __init__(self, traced: OutboundInterceptor, untraced: OutboundInterceptor) -> None:
        super().__init__(traced)
        self._untraced = untraced

    async def query_workflow(self, input: QueryWorkflowInput) -> Any:  # noqa: A002 - the SDK's name
        return await self._untraced.query_workflow(input)
