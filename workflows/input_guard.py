"""Refuses a start with more than one input, which would otherwise hang: the workflow's `run` takes one."""

from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.worker import (
    ExecuteWorkflowInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

with workflow.unsafe.imports_passed_through():
    from longtake.models import FailureDetails, Paid, Problem
    from workflows import measuring


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
            measuring.ended("InvalidRequest", None)
            rule = f"must be one JSON object; {len(input.args)} inputs were given"
            raise ApplicationError(
                f"input: {rule}",
                FailureDetails(
                    paid=Paid.NO,
                    problems=(Problem(field="input", rule=rule),),
                    advice="Start it again with the same key and one input.",
                ),
                type="InvalidRequest",
                non_retryable=True,
                category=ApplicationErrorCategory.BENIGN,
            )
        return await super().execute_workflow(input)
