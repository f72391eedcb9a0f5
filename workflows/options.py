"""The timeouts and the retry policy of each activity: every number with its reason.

`docs/timeouts.md` is generated from this table, and a test holds the two together.
"""

from datetime import timedelta
from typing import TypedDict

from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityCancellationType

from longtake.models import GenerationPolicy

HEARTBEAT = timedelta(seconds=20)
"""Four heartbeats may get lost before the worker counts as lost."""
SUBMISSION_MARGIN = timedelta(seconds=60)
"""Added to the longest HTTP exchange: the activity reads images before it, and writes the ledger after it."""
LEDGER_MARGIN = timedelta(seconds=120)
"""Added to the longest HTTP exchange: a ledger that has not said by then what was sent counts as unavailable."""


class Options(TypedDict, total=False):
    """Keyword arguments of `workflow.start_activity_method` and `execute_activity_method`."""

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
    # If the failure lasts longer, the workflow shows it and polls again later.
    schedule_to_close_timeout=timedelta(minutes=5),
    heartbeat_timeout=HEARTBEAT,
    retry_policy=RetryPolicy(
        initial_interval=timedelta(seconds=2), maximum_interval=timedelta(seconds=30), maximum_attempts=4
    ),
)

REFUND = Options(
    # As a poll.
    start_to_close_timeout=timedelta(seconds=90),
    # The video is stored, and somebody waits for it: what it cost must not hold it up.
    schedule_to_close_timeout=timedelta(seconds=90),
    heartbeat_timeout=HEARTBEAT,
    retry_policy=RetryPolicy(initial_interval=timedelta(seconds=2), maximum_attempts=2),
)

API_KEY = Options(
    # The two free requests of a trial, 20 s each, and the other keys of the ring.
    start_to_close_timeout=timedelta(seconds=90),
    # All waiting generations together ask the gateway no more often (`longtake.gateway.breaker`). The pause between two
    # attempts takes no slot and writes no event. There is no end: a caller who does not want to wait cancels.
    retry_policy=RetryPolicy(
        initial_interval=timedelta(minutes=5), backoff_coefficient=1, maximum_interval=timedelta(minutes=5)
    ),
)

RECORD = Options(
    start_to_close_timeout=timedelta(seconds=30),
    # The task id is safe in the workflow's own history; the ledger is the second place, so the retries may end. Whoever
    # cancels meanwhile waits for them too: an outcome that is missing in the ledger puts the same key in doubt.
    schedule_to_close_timeout=timedelta(hours=1),
    retry_policy=RetryPolicy(initial_interval=timedelta(seconds=2), maximum_interval=timedelta(minutes=1)),
)

RESOLVE = Options(
    # Two paths of 20 s each at most, and the other keys of the ring, to see that a task is there; then small records.
    start_to_close_timeout=timedelta(seconds=90),
    # A person is waiting, and is asked again when it fails.
    schedule_to_close_timeout=timedelta(hours=1),
    heartbeat_timeout=HEARTBEAT,
    retry_policy=RetryPolicy(initial_interval=timedelta(seconds=2), maximum_interval=timedelta(minutes=1)),
)


def submission(policy: GenerationPolicy) -> Options:
    """The paid POST. The ledger, not this policy, makes sure that it is sent at most once."""
    return Options(
        # Longer than the HTTP exchange itself, so that the activity's own timeout never interrupts an exchange.
        start_to_close_timeout=policy.submit_timeout + SUBMISSION_MARGIN,
        # How long a caller waits for a gateway that accepts nothing. The activity also waits for an earlier attempt in
        # doubt, so this is never shorter than that takes.
        schedule_to_close_timeout=policy.submit_window + policy.submit_timeout + SUBMISSION_MARGIN,
        heartbeat_timeout=HEARTBEAT,
        retry_policy=RetryPolicy(initial_interval=timedelta(seconds=2), maximum_interval=timedelta(minutes=1)),
        # Cancelled or not, the activity finishes an exchange that has begun, and returns its task id.
        cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    )


def closing(patience: timedelta | None) -> Options:
    """Asking the ledger whether anything was sent, and preventing that anything still is."""
    return Options(
        # The records of one key: a few reads and two small writes.
        start_to_close_timeout=timedelta(seconds=30),
        # An exchange under way and its margins pass first. Whoever cancels waits for a minute. While the ledger is
        # unavailable, one step asks it for as long as the workflow would wait for a person: a history holds only so
        # many steps.
        schedule_to_close_timeout=patience,
        retry_policy=RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1)),
    )


def reconciliation(policy: GenerationPolicy) -> Options:
    """Checking the account's records, once the submission in doubt must be over."""
    return Options(
        # A few pages of lists, and the ledger's records of that time.
        start_to_close_timeout=timedelta(minutes=3),
        # The longest exchange and its margins pass first; then an unavailable store gets some time.
        schedule_to_close_timeout=policy.submit_timeout + timedelta(minutes=15),
        heartbeat_timeout=HEARTBEAT,
        retry_policy=RetryPolicy(initial_interval=timedelta(seconds=5), maximum_interval=timedelta(minutes=1)),
    )


def delivery(window: timedelta) -> Options:
    """Repeating a download costs nothing, and what is not downloaded before its link expires is lost."""
    return Options(
        # One attempt may take all of it: a slow download continues, and the fetcher gives up one without progress.
        start_to_close_timeout=window,
        # By default 24 h: as long as links live (field notes).
        schedule_to_close_timeout=window,
        heartbeat_timeout=HEARTBEAT,
        retry_policy=RetryPolicy(initial_interval=timedelta(seconds=2), maximum_interval=timedelta(minutes=5)),
    )
