"""How an activity fails, in the words of its failure."""

from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import timedelta

import pytest
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from longtake.models import FailureDetails


@dataclass(frozen=True)
class Failure:
    """An `ApplicationError`, read back as the workflow would."""

    type: str | None
    message: str
    retried: bool
    details: FailureDetails
    delay: timedelta | None
    benign: bool


def read(error: ApplicationError) -> Failure:
    assert error.__cause__ is None, "a chained traceback is too long for Temporal to keep the failure's type"
    (details,) = error.details
    return Failure(
        type=error.type,
        message=error.message,
        retried=not error.non_retryable,
        details=FailureDetails.model_validate_json(FailureDetails.model_validate(details).model_dump_json()),
        delay=error.next_retry_delay,
        benign=error.category is ApplicationErrorCategory.BENIGN,
    )


async def failure_of(work: Awaitable[object]) -> Failure:
    with pytest.raises(ApplicationError) as caught:
        await work
    return read(caught.value)
