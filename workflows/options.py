"""How long each step may take and how it is tried again: every number with its reason.

`docs/timeouts.md` is generated from this table, and a test holds the two together.
"""

from datetime import timedelta
from typing import TypedDict

from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityCancellationType

from longtake.models import GenerationPolicy

HEARTBEAT = timedelta(seconds=20)
"""Five heartbeats may get lost before the worker counts as lost."""
SUBMISSION_MARGIN = timedelta(seconds=60)
"""Over the longest HTTP exchange: reading images from the store before it, writing the ledger after it."""

LEDGER_MARGIN = timedelta(seconds=120)
"""Over the longest HTTP exchange, before a ledger that does not tell what was sent counts as away."""


class Options(TypedDict, total=False):
    """The keyword arguments of an activity that say how long and how often."""

    start_to_close_timeout: timedelta
    schedule_to_close_timeout: timedelta | None
    heartbeat_timeout: timedelta
    retry_policy: RetryPolicy
    cancellation_type: ActivityCancellationType


PREPARE = Options(
    # Reading up to 60 MB of images from a slow store, and one request to the gateway.
    start_to_close_timeout=timedelta(seconds=90),
    # The default of `submit_window`, which is not known yet: this activity brings it.
    schedule_to_close_timeout=timedelta(hours=1),
    heartbeat_timeout=HEARTBEAT,
    retry_policy=RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1)),
)

POLL = Options(
    # Two paths, and the usage log, of 20 s each at most, and the other keys of the ring.
    start_to_close_timeout=timedelta(seconds=90),
    # Longer trouble is the workflow's business: it shows it and looks again later.
    schedule_to_close_timeout=timedelta(minutes=5),
    heartbeat_timeout=HEARTBEAT,
    retry_policy=RetryPolicy(
        initial_interval=timedelta(seconds=2), maximum_interval=timedelta(seconds=30), maximum_attempts=4
    ),
)

REFUND = Options(
    # As a look.
    start_to_close_timeout=timedelta(seconds=90),
    # The video is stored, and somebody waits for it: what it cost must not hold it up.
    schedule_to_close_timeout=timedelta(seconds=90),
    heartbeat_timeout=HEARTBEAT,
    retry_policy=RetryPolicy(initial_interval=timedelta(seconds=2), maximum_attempts=2),
)

API_KEY = Options(
    # The two free requests of a trial, 20 s each, and the other keys of the ring.
    start_to_close_timeout=timedelta(seconds=90),
    # All waiting generations together ask the gateway no oftener (`longtake.gateway.breaker`); a pause in between costs
    # neither a slot nor an event of the history. There is no end: a caller who does not want to wait cancels.
    retry_policy=RetryPolicy(
        initial_interval=timedelta(minutes=5), backoff_coefficient=1, maximum_interval=timedelta(minutes=5)
    ),
)

RECORD = Options(
    start_to_close_timeout=timedelta(seconds=30),
    # The id is safe in the workflow's own history; the ledger is the second place, so this ends some time. Whoever
    # cancels meanwhile waits for it too: an outcome that is missing there puts the same key in doubt.
    schedule_to_close_timeout=timedelta(hours=1),
    retry_policy=RetryPolicy(initial_interval=timedelta(seconds=2), maximum_interval=timedelta(minutes=1)),
)

SETTLE = Options(
    # Two paths of 20 s each at most, and the other keys of the ring, to see that a task is there; then small records.
    start_to_close_timeout=timedelta(seconds=90),
    # A person is waiting for it, and is asked again when it ends.
    schedule_to_close_timeout=timedelta(hours=1),
    heartbeat_timeout=HEARTBEAT,
    retry_policy=RetryPolicy(initial_interval=timedelta(seconds=2), maximum_interval=timedelta(minutes=1)),
)


def submission(policy: GenerationPolicy) -> Options:
    """The paid POST: the ledger, not this policy, sees to it that it is made at most once."""
    return Options(
        # Longer than the HTTP exchange itself, so that no exchange is torn by its own activity's time-out.
        start_to_close_timeout=policy.submit_timeout + SUBMISSION_MARGIN,
        # How long a caller is content to wait for a gateway that takes nothing; an earlier attempt in doubt is
        # waited for inside this, so it is never shorter than that takes.
        schedule_to_close_timeout=policy.submit_window + policy.submit_timeout + SUBMISSION_MARGIN,
        heartbeat_timeout=HEARTBEAT,
        retry_policy=RetryPolicy(initial_interval=timedelta(seconds=2), maximum_interval=timedelta(minutes=1)),
        # The activity finishes an exchange that has begun and tells its id, cancelled or not.
        cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    )


def closing(patience: timedelta | None) -> Options:
    """Asking the ledger whether anything was sent, and seeing to it that nothing can be any more."""
    return Options(
        # The records of one key: a few reads and two small writes.
        start_to_close_timeout=timedelta(seconds=30),
        # An exchange under way and its margins pass first. Whoever cancels waits for a minute; while the ledger is
        # away it is asked as long as a person would be waited for, in one step, because a history has room for so many.
        schedule_to_close_timeout=patience,
        retry_policy=RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1)),
    )


def reconciliation(policy: GenerationPolicy) -> Options:
    """Hearing the witnesses, once the submission in doubt must be over."""
    return Options(
        # A few pages of lists, and the ledger's records of that time.
        start_to_close_timeout=timedelta(minutes=3),
        # The longest exchange and its margins pass first; then a store that is away gets some time.
        schedule_to_close_timeout=policy.submit_timeout + timedelta(minutes=15),
        heartbeat_timeout=HEARTBEAT,
        retry_policy=RetryPolicy(initial_interval=timedelta(seconds=5), maximum_interval=timedelta(minutes=1)),
    )


def delivery(window: timedelta) -> Options:
    """Downloads are free to repeat, and what is not collected before its link dies is lost."""
    return Options(
        # One attempt may take all of it: what is slow and well goes on. What makes no progress the fetcher leaves.
        start_to_close_timeout=window,
        # By default 24 h: as long as links live (field notes).
        schedule_to_close_timeout=window,
        heartbeat_timeout=HEARTBEAT,
        retry_policy=RetryPolicy(initial_interval=timedelta(seconds=2), maximum_interval=timedelta(minutes=5)),
    )
