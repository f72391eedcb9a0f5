"""Failures in the workflow: what an activity's failure says, and how a step says that it cannot go on."""

from collections.abc import Awaitable
from typing import NamedTuple, TypeVar

from pydantic import ValidationError
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    FailureError,
    is_cancelled_exception,
)
from temporalio.exceptions import TimeoutError as TemporalTimeout

from longtake.models import FailureDetails

T = TypeVar("T")

BENIGN = frozenset({"InvalidRequest", "SubmissionRefused", "GenerationFailed", "ExtensionFailed", "Abandoned"})
"""Failure types that are expected, so that they raise no alarm."""


class StepFailed(Exception):
    """A step cannot go on; its caller decides whether the generation ends with it.

    Attributes:
        kind: The failure type that others depend on, such as `TaskLost`.
        details: What is known besides the generation's state, which is added where the generation ends.
    """

    def __init__(self, kind: str, message: str, details: FailureDetails) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.details = details


class Cause(NamedTuple):
    """Why an activity failed for good: its innermost failure."""

    type: str
    message: str
    details: FailureDetails
    timed_out: bool
    """The last attempt never answered: nobody knows what it did, whatever the attempts before it said."""


async def attempt(activity: Awaitable[T]) -> T | Cause:
    """Await an activity.

    Returns:
        Its result, or why it failed for good.

    Raises:
        ActivityError: The workflow is being cancelled. That is no failure of the activity, so no step may handle it.
    """
    try:
        return await activity
    except ActivityError as error:
        if is_cancelled_exception(error):
            raise
        return cause_of(error)


def cause_of(error: ActivityError) -> Cause:
    """Unwrap an activity's failure.

    A timeout of all attempts carries the last attempt's own failure as its cause: that one is what people need.
    """
    inner: BaseException = error
    timed_out = False
    while isinstance(inner, FailureError) and inner.cause is not None:
        inner = inner.cause
        timed_out = timed_out or isinstance(inner, TemporalTimeout)
    if isinstance(inner, ApplicationError):
        return Cause(inner.type or "Defect", inner.message, _details(inner), timed_out=timed_out)
    kind = inner.type.name.lower() if isinstance(inner, TemporalTimeout) and inner.type else type(inner).__name__
    return Cause("TimedOut", f"{error.activity_type}: {kind}", FailureDetails(), timed_out=True)


def _details(error: ApplicationError) -> FailureDetails:
    try:
        return FailureDetails.model_validate(error.details[0]) if error.details else FailureDetails()
    except ValidationError:
        return FailureDetails()
