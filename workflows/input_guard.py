"""Refuses a start with more than one input, on which the workflow would otherwise hang: ADR 0003 says why."""

from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue
from temporalio.worker import (
    ExecuteWorkflowInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)


class SingleInputGuard(Interceptor):
    """Give it to every worker and replayer of `GenerateVideoWorkflow`."""

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: ARG002 - the SDK's name
    ) -> type[WorkflowInboundInterceptor]:
        """See base class."""
        return _SingleInputInbound


class _SingleInputInbound(WorkflowInboundInterceptor):
    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
        if len(input.args) > 1:
            input.args = [RawValue(Payload())]  # no input at all, which the workflow refuses
        return await super().execute_workflow(input)
