"""When to poll next: a pure function, so that it can be read, tested and measured.

From the field notes: a poll costs eleven history events; the gateway itself polls upstream about every 15 s, so closer
polls show nothing new; generations end after 150 to 300 s, some after ten minutes; the gateway gives up after 24 h.
Hence: no poll before one can show anything, half of the remaining time while there is much of it, the gateway's own
cadence around the expected end, and ever longer waits once a generation is overdue.
"""

from dataclasses import dataclass
from datetime import timedelta

from longtake.models import PollSchedule, Stage

_FIRST_POLL = 0.4
"""Of the expected time. By then the first segment is well on its way, and most early refusals are there."""
_CADENCE = 0.1
"""Of the expected time: 15 s of 150 s, the gateway's own."""
_EXTENSION = 0.4
"""Of the expected time: what the extension still takes where it has not begun."""
_OVERDUE_GROWTH = 0.1
"""Of the time since the expected end: ten minutes late is noticed within another minute."""
_MAX_OVERDUE = 0.5
"""Of the expected time, before the deadline."""
_OVERDUE_POLL = timedelta(minutes=10)
_JITTER = 0.1


@dataclass(frozen=True)
class Progress:
    """What is known when the next poll is planned."""

    elapsed: timedelta
    """Since the submission."""
    polls_of_task: int
    stage: Stage
    overdue: bool = False
    """The deadline has passed: the worker still polls, but nobody waits for it by the second."""
    retry_after: timedelta | None = None
    """How long the gateway asked us to wait."""


def next_poll(
    policy: PollSchedule, progress: Progress, *, duration_factor: float = 1.0, jitter: float = 0.5
) -> timedelta:
    """How long to wait before the next poll.

    Args:
        policy: What a plain generation is expected to take, and the shortest wait allowed.
        progress: What is known so far.
        duration_factor: How much longer this model's generations take (`VideoModel.duration_factor`).
        jitter: A random number from 0 to 1; 0.5 means none.

    Returns:
        The wait: never under the floor, never under what the gateway asked for.
    """
    expected = policy.expected * duration_factor
    cadence = policy.expected * _CADENCE  # whatever the model: the gateway polls upstream no more often
    if progress.polls_of_task == 0:
        wait = expected * _FIRST_POLL - progress.elapsed
    elif progress.overdue:
        wait = max(_OVERDUE_POLL, cadence)
    else:
        remaining = expected - progress.elapsed
        if progress.stage is Stage.FIRST_SEGMENT:
            remaining = max(remaining, expected * _EXTENSION)
        overdue = max(timedelta(0), progress.elapsed - expected)
        wait = max(remaining / 2, cadence, min(overdue * _OVERDUE_GROWTH, expected * _MAX_OVERDUE))
    wait *= 1 + _JITTER * (2 * jitter - 1)
    return max(wait, policy.min_interval, progress.retry_after or timedelta(0))
