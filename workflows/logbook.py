"""What the workflow writes to the log: each stage, and how it ended. The SDK's logger is silent while it replays."""

import logging
from typing import TYPE_CHECKING

from temporalio import workflow

if TYPE_CHECKING:
    from longtake.models import FailureDetails
    from workflows.state import Generation


def log_stage(generation: "Generation") -> None:
    """The generation has come to another stage, or needs another kind of attention."""
    workflow.logger.info("stage %s", generation.stage, extra=_known(generation))


def log_failure(generation: "Generation", kind: str, details: "FailureDetails", *, benign: bool) -> None:
    """The generation ends without what was asked for."""
    told = {"error_type": kind, "error": generation.last_problem, "paid": details.paid, "advice": details.advice}
    ids = {"request_id": details.request_id, "http_status": details.http_status, "gateway_code": details.gateway_code}
    level = logging.INFO if benign else logging.WARNING
    workflow.logger.log(
        level, "generation failed", extra={**_known(generation), **told, **{k: v for k, v in ids.items() if v}}
    )


def _known(generation: "Generation") -> dict[str, object]:
    task = generation.extension or generation.receipt
    record = generation.record
    extension = generation.extension
    return {
        "task_id": task and task.task_id,
        "request_id": task and task.request_id,
        "remix_id": record and record.remix_id,
        "extension_task_id": extension and extension.task_id,
        "stage": generation.stage,
        "attention": generation.attention,
        "outcome": generation.outcome,
        "polls": generation.polls or None,
    }
