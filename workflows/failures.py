"""What the workflow makes of an activity's failure."""

from typing import NamedTuple

from pydantic import ValidationError
from temporalio.exceptions import ActivityError, ApplicationError, FailureError, TimeoutError  # noqa: A004 - Temporal's

from longtake.models import FailureDetails


class Cause(NamedTuple):
    """The innermost thing that an activity's failure says."""

    type: str
    message: str
    details: FailureDetails
    timed_out: bool
    """The last attempt never answered: what it did is not known, whatever the attempts before it said."""


def cause_of(error: ActivityError) -> Cause:
    """Unwrap an activity's failure.

    A time-out of all attempts carries the last attempt's own failure as its cause: that one is what people need.
    """
    inner: BaseException = error
    timed_out = False
    while isinstance(inner, FailureError) and inner.cause is not None:
        inner = inner.cause
        timed_out = timed_out or isinstance(inner, TimeoutError)
    if isinstance(inner, ApplicationError):
        return Cause(inner.type or "Defect", inner.message, _details(inner), timed_out=timed_out)
    kind = inner.type.name.lower() if isinstance(inner, TimeoutError) and inner.type else type(inner).__name__
    return Cause("TimedOut", f"{error.activity_type}: {kind}", FailureDetails(), timed_out=True)


def _details(error: ApplicationError) -> FailureDetails:
    try:
        return FailureDetails.model_validate(error.details[0]) if error.details else FailureDetails()
    except ValidationError:
        return FailureDetails()
