"""The time that submissions are dated and judged by: Temporal's, as near as this process can tell.

Records of several workers are compared, and one worker's clock may be minutes off. Then another generation's task would
seem to be nobody's.
"""

from contextvars import ContextVar
from datetime import datetime, timedelta

_ahead: ContextVar[timedelta] = ContextVar("ahead", default=timedelta(0))


def note_skew(ahead: timedelta) -> None:
    """Correct this asyncio task, and those that it starts.

    Args:
        ahead: How far this process's clock is ahead of Temporal's; negative: behind.
    """
    _ahead.set(ahead)


def corrected(now: datetime) -> datetime:
    """The time of Temporal's clock, from the time of ours."""
    return now - _ahead.get()


def uncertainty() -> timedelta:
    """How much too early a corrected time may be: a task that was long on its way looks like a clock that is ahead."""
    return max(timedelta(0), _ahead.get())
