"""What is measured: every metric of ours, its labels and all their values, and the few verbs to record one.

Pure data and no Temporal: workflows and activities hand over the meter that the SDK gives them, which adds
`namespace`, `task_queue`, and `workflow_type` or `activity_type`. A workflow's meter records nothing on replay.

Counters tell of trends and trouble; they are not the books. What a process had not shown to Prometheus when it was
killed is lost, and a workflow task that is carried out twice counts twice. Who wants to know what was paid reads the
submission ledger (`longtake.submission.ledger`).

Every label has a closed set of values (anything else is `other`), so the number of series is bounded, and no prompt,
key, link or id can become one.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Final, Protocol

from longtake.models import Attention, DeliveryKind, Stage, TaskState
from longtake.request.rules import MODELS

OTHER: Final = "other"

WORKFLOW: Final = "workflow"
"""Recorded by the workflow itself."""
WORKER: Final = "worker"
"""Recorded by a worker beside its work: what the whole fleet looks like, so every worker says the same."""

ACTIVITIES: Final = (
    "prepare_generation",
    "submit_generation",
    "submit_extension",
    "await_api_key",
    "record_submission",
    "close_submission",
    "reconcile_submission",
    "resolve_submission",
    "query_generation",
    "deliver_video",
)
PAYING_ACTIVITIES: Final = ("submit_generation", "submit_extension")
"""These make the paid POSTs."""
_ASK_THE_GATEWAY: Final = ("prepare_generation", *PAYING_ACTIVITIES, "await_api_key", "query_generation")
SUBMISSION_ACTIVITIES: Final = (*PAYING_ACTIVITIES, "await_api_key")
"""These run on the task queue for submissions; the last one there, because it shares what a worker knows of the key."""

Attributes = Mapping[str, str | int | float | bool]


class Counter(Protocol):
    """As the SDK's `MetricCounter`."""

    def add(self, value: int, additional_attributes: Attributes | None = None, /) -> None:
        """Add to the sum."""


class Gauge(Protocol):
    """As the SDK's `MetricGaugeFloat`."""

    def set(self, value: float, additional_attributes: Attributes | None = None, /) -> None:
        """Replace the value."""


class Histogram(Protocol):
    """As the SDK's `MetricHistogramTimedelta`."""

    def record(self, value: timedelta, additional_attributes: Attributes | None = None, /) -> None:
        """Count a duration."""


class Meter(Protocol):
    """As much of `temporalio.common.MetricMeter` as is used here."""

    def create_counter(self, name: str, description: str | None = None, unit: str | None = None, /) -> Counter:
        """Make a counter, or find it."""

    def create_gauge_float(self, name: str, description: str | None = None, unit: str | None = None, /) -> Gauge:
        """Make a gauge, or find it."""

    def create_histogram_timedelta(
        self, name: str, description: str | None = None, unit: str | None = None, /
    ) -> Histogram:
        """Make a histogram of durations, or find it."""


class Kind(StrEnum):
    """Prometheus' type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """One metric. `name` is what the SDK is given; `exposed` is what Prometheus sees."""

    name: str
    kind: Kind
    help: str
    recorded_by: tuple[str, ...]
    """`WORKFLOW`, `WORKER`, or names of activities."""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Each label's values, without `OTHER`, which every label has too."""

    @property
    def exposed(self) -> str:
        """With the suffixes that the exporter adds (`longtake.temporal.connection`)."""
        return self.name + {Kind.COUNTER: "_total", Kind.HISTOGRAM: "_seconds", Kind.GAUGE: ""}[self.kind]

    def attributes(self, labels: Mapping[str, str | None]) -> dict[str, str]:
        """The labels as they are recorded: all of them, and only known values.

        Raises:
            ValueError: They are not this metric's.
        """
        if labels.keys() != self.labels.keys():
            raise ValueError(f"{self.name} has the labels {sorted(self.labels)}, not {sorted(labels)}")
        return {name: value if value in self.labels[name] else OTHER for name, value in labels.items()}


# --- Labels -----------------------------------------------------------------------------------------------------------

_MODEL = tuple(MODELS)
_TASK = ("generation", "extension")
_VERDICTS = (TaskState.COMPLETED, TaskState.EXTEND_FAILED, TaskState.GENERATE_FAILED)
_OVER = frozenset({Stage.DONE, Stage.FAILED, Stage.CANCELLED})
_STAGES = tuple(stage for stage in Stage if stage not in _OVER)

OUTCOMES: Final = (
    *("full", "fallback"),
    *("InvalidRequest", "SubmissionRefused", "NotSubmitted", "GenerationFailed", "ExtensionFailed"),
    *("SubmissionOutcomeUnknown", "Abandoned", "TaskLost", "GenerationTimedOut", "DeliveryFailed"),
    "Cancelled",
)
"""How a generation can end: the two outcomes, the failure types, and cancelled."""

FAILURES: Final = (
    *("InvalidRequest", "SubmissionRefused", "NotAGateway", "GatewayUnreachable", "DownloadsBlocked", "GatewayBusy"),
    *("LedgerUnavailable", "SendSuspended", "SlotTaken", "SubmissionClosed"),
    *("SubmissionInDoubt", "SubmissionOutcomeUnknown"),
    *("KeyRefused", "TaskNotFound", "InvalidResponse", "PollFailing", "DeliveryFailed", "StoreRefused", "Defect"),
    *("WrongGateway", "TaskNotVisible", "TaskOwned"),
)
"""The types of `activities.failures.RULES`."""

_POLLS = (
    *TaskState,
    *("KeyRefused", "TaskNotFound", "InvalidResponse", "PollFailing", "StoreRefused", "Defect", "TimedOut"),
    *("WrongGateway", "TaskNotVisible"),
)

GATEWAY_CODES: Final = (
    *("insufficient_user_quota", "pre_consume_token_quota_failed", "invalid_media_input"),
    *("model_not_found", "get_channel_failed", "build_request_failed"),
    *("do_request_failed", "read_response_body_failed", "unmarshal_response_body_failed", "invalid_response"),
    *("new_api_panic", "fail_to_fetch_task", "task_not_exist", "task_origin_not_exist"),
    *(f"http_{status}" for status in (400, 401, 402, 403, 404, 408, 413, 415, 422, 429)),
    *(f"http_{status}" for status in (500, 502, 503, 504, 520, 521, 522, 523, 524, 525, 526)),
    *("unreachable", "no_answer", "unreadable"),
)
"""The gateway's own codes (contract, field notes), else the HTTP status, else what became of the exchange."""

WAITING: Final = ("worker", "submission", "doubt", "choice", "key")
"""What generations wait for. `worker`: none has taken it up. `submission`: checked or about to be sent. `doubt`: it may
have been paid, a person decides. `choice`: a task of ours waits for a decision, such as whether 8 s are enough. `key`:
the gateway refuses the key."""

# --- The catalogue ----------------------------------------------------------------------------------------------------

GENERATIONS: Final = Metric(
    "longtake_generations",
    Kind.COUNTER,
    "Generations that ended, by outcome: full, fallback, a failure type, or Cancelled.",
    (WORKFLOW,),
    {"outcome": OUTCOMES, "model": _MODEL},
)
STAGE_DURATION: Final = Metric(
    "longtake_stage_duration",
    Kind.HISTOGRAM,
    "How long generations stayed in a stage, in seconds; recorded when they leave it.",
    (WORKFLOW,),
    {"stage": _STAGES, "model": _MODEL},
)
VERDICTS: Final = Metric(
    "longtake_verdicts",
    Kind.COUNTER,
    "What the gateway said became of a task: of a generation, or of an extension that was paid for again.",
    (WORKFLOW,),
    {"verdict": _VERDICTS, "task": _TASK, "model": _MODEL},
)
POLLS: Final = Metric(
    "longtake_polls",
    Kind.COUNTER,
    "Looks at tasks, by what they told: a state, or why they told nothing.",
    (WORKFLOW,),
    {"result": _POLLS},
)
PAID_SUBMISSIONS: Final = Metric(
    "longtake_paid_submissions",
    Kind.COUNTER,
    "Submissions that are known to have been accepted, and so paid. The books are the submission ledger.",
    (WORKFLOW,),
    {"task": _TASK, "model": _MODEL},
)
QUOTA: Final = Metric(
    "longtake_quota",
    Kind.COUNTER,
    "What the gateway says that paid submissions cost, in its own unit, refunds not taken off.",
    (WORKFLOW,),
    {"task": _TASK, "model": _MODEL},
)
REFUNDED_QUOTA: Final = Metric(
    "longtake_refunded_quota",
    Kind.COUNTER,
    "What the gateway gave back of `longtake_quota_total`, as it says itself.",
    (WORKFLOW,),
    {"task": _TASK, "model": _MODEL},
)
IN_DOUBT: Final = Metric(
    "longtake_submissions_in_doubt",
    Kind.COUNTER,
    "Submissions of which nobody knew whether they were paid, each time that this happened.",
    (WORKFLOW,),
    {"task": _TASK, "model": _MODEL},
)
DELIVERED_BYTES: Final = Metric(
    "longtake_delivered_bytes",
    Kind.COUNTER,
    "Bytes of clips that were downloaded, verified and stored.",
    ("deliver_video",),
    {"clip": tuple(DeliveryKind)},
)
FAILED_STEPS: Final = Metric(
    "longtake_step_failures",
    Kind.COUNTER,
    "Attempts of activities that failed, by failure type (docs/failures.md).",
    ACTIVITIES,
    {"type": FAILURES},
)
GATEWAY_ERRORS: Final = Metric(
    "longtake_gateway_errors",
    Kind.COUNTER,
    "Failed attempts to use the gateway: its own code, else http_<status>, else unreachable, no_answer, unreadable.",
    _ASK_THE_GATEWAY,
    {"code": GATEWAY_CODES},
)
RUNNING: Final = Metric(
    "longtake_running",
    Kind.GAUGE,
    "Generations under way, by stage; `other`: no worker has taken it up. The same from every worker: take the max.",
    (WORKER,),
    {"stage": _STAGES},
)
ATTENTION: Final = Metric(
    "longtake_attention",
    Kind.GAUGE,
    "Generations under way that need attention. The same from every worker: take the max.",
    (WORKER,),
    {"attention": tuple(Attention)},
)
WAITING_GENERATIONS: Final = Metric(
    "longtake_waiting",
    Kind.GAUGE,
    "Generations that wait for something other than the gateway. The same from every worker: take the max.",
    (WORKER,),
    {"reason": WAITING},
)
OLDEST_WAITING: Final = Metric(
    "longtake_oldest_waiting_seconds",
    Kind.GAUGE,
    "Age, since its start, of the oldest of them; 0 where none waits. The same from every worker: take the max.",
    (WORKER,),
    {"reason": WAITING},
)
RUNNING_GENERATIONS_CHECKED: Final = Metric(
    "longtake_running_generations_checked_timestamp_seconds",
    Kind.GAUGE,
    "When this worker last learnt from Temporal what all generations are doing, in Unix seconds.",
    (WORKER,),
)
WORKER_CLOCK_SKEW: Final = Metric(
    "longtake_worker_clock_skew_seconds",
    Kind.GAUGE,
    "By how much this worker's clock is ahead of Temporal's (negative: behind), estimated at its latest activities.",
    (WORKER,),
)

METRICS: Final = (
    *(GENERATIONS, STAGE_DURATION, VERDICTS, POLLS, PAID_SUBMISSIONS, QUOTA, REFUNDED_QUOTA, IN_DOUBT),
    *(DELIVERED_BYTES, FAILED_STEPS, GATEWAY_ERRORS),
    *(RUNNING, ATTENTION, WAITING_GENERATIONS, OLDEST_WAITING, RUNNING_GENERATIONS_CHECKED, WORKER_CLOCK_SKEW),
)

_MINUTES = 60
_HOURS = 3600
BUCKETS: Final[Mapping[str, Sequence[float]]] = {
    # From a second (preparing) to a week (a decision); dense around the minutes that a segment takes.
    STAGE_DURATION.name: (
        *(1, 5, 15, 30, 60, 90, 120, 150, 180, 240, 300),
        *(10 * _MINUTES, 20 * _MINUTES, 45 * _MINUTES, 2 * _HOURS, 6 * _HOURS, 24 * _HOURS, 168 * _HOURS),
    ),
    # The SDK's own end at 60 s; a submission may take two minutes, a download forty.
    "activity_execution_latency": (0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 2400),
    # Waiting for one of the few slots of the submitting worker.
    "activity_schedule_to_start_latency": (0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600),
}
"""Upper bounds in seconds, by the name that the SDK knows."""


# --- Recording --------------------------------------------------------------------------------------------------------


def count(meter: Meter, metric: Metric, amount: int = 1, /, **labels: str | None) -> None:
    """Add to a counter."""
    meter.create_counter(metric.name, metric.help).add(amount, metric.attributes(labels))


def observe(meter: Meter, metric: Metric, duration: timedelta, /, **labels: str | None) -> None:
    """Record a duration."""
    # The unit is the SDK's word for "milliseconds or seconds, as the exporter is told".
    meter.create_histogram_timedelta(metric.name, metric.help, "duration").record(duration, metric.attributes(labels))


def show(meter: Meter, metric: Metric, value: float, /, **labels: str | None) -> None:
    """Set a gauge."""
    meter.create_gauge_float(metric.name, metric.help).set(value, metric.attributes(labels))


def start_at_zero(meter: Meter, recorder: str) -> None:
    """Show every counter of a recorder with all its labels as 0.

    Prometheus sees no increase in a series that begins with 1, so without this the first of each kind of trouble,
    which is often the only one, would raise no alert.

    Args:
        meter: With the attributes that the SDK adds there.
        recorder: `WORKFLOW`, or an activity's name.
    """
    for metric in METRICS:
        if metric.kind is Kind.COUNTER and recorder in metric.recorded_by:
            counter = meter.create_counter(metric.name, metric.help)
            for values in itertools.product(*((*known, OTHER) for known in metric.labels.values())):
                counter.add(0, dict(zip(metric.labels, values, strict=True)))
