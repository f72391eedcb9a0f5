"""Adds the generation to everything that an activity logs, inside the gateway's client and the ledger too.

Where the generation's prompts are hidden, it withholds words that may repeat one.
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
"""Of the activities that belong to one stage; the input of the others names it."""


class LogContext(Interceptor):
    """Give it to every worker."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002 - the SDK's name
        """See base class."""
        return _Noting(next)


class _Noting(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        info = activity.info()
        payload = input.args[0] if input.args else None
        receipt = getattr(payload, "receipt", None)
        request = getattr(payload, "request", None)
        hidden = isinstance(request, GenerateVideoInput) and prompt_paths(request)
        if hidden or getattr(payload, "hide_words", False):
            withhold_words(may_quote)
        # Not taken back at the end: the SDK logs in the same asyncio task how the activity ended.
        note(
            workflow_id=info.workflow_id,
            run_id=info.workflow_run_id,
            task_id=getattr(receipt or payload, "task_id", None),
            stage=getattr(payload, "stage", None) or _STAGES.get(info.activity_type),
            activity=info.activity_type,
            attempt=info.attempt,
        )
        return await super().execute_activity(input)
