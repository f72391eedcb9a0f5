"""Whatever an activity logs, deep inside the gateway's client or the ledger too, names its generation.

Where the generation's prompts are hidden, it has no words that may repeat one.
"""

from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.failures import may_quote
from longtake.models import GenerateVideoInput, Stage
from longtake.observability.logs import note, withhold_words
from longtake.request.rules import prompt_paths

_STAGES = {
    "prepare_generation": Stage.PREPARING,
    "submit_generation": Stage.SUBMITTING,
    "submit_extension": Stage.SUBMITTING,
    "record_submission": Stage.SUBMITTING,
    "resolve_submission": Stage.AWAITING_DECISION,
    "deliver_video": Stage.DELIVERING,
}
"""Of the activities that belong to one stage; the others are told theirs."""


class LogContext(Interceptor):
    """Give it to every worker."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002 - the SDK's name
        """See base class."""
        return _Noting(next)


class _Noting(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        info = activity.info()
        order = input.args[0] if input.args else None
        receipt = getattr(order, "receipt", None)
        request = getattr(order, "request", None)
        if getattr(order, "hide_words", False) or (isinstance(request, GenerateVideoInput) and prompt_paths(request)):
            withhold_words(may_quote)
        # Not taken back at the end: the SDK logs in the same asyncio task how the activity ended.
        note(
            workflow_id=info.workflow_id,
            run_id=info.workflow_run_id,
            task_id=getattr(receipt or order, "task_id", None),
            stage=getattr(order, "stage", None) or _STAGES.get(info.activity_type),
            activity=info.activity_type,
            attempt=info.attempt,
        )
        return await super().execute_activity(input)
