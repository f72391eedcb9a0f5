"""Payloads in Temporal: frozen models, stored as plain JSON, that grow only by fields with defaults.

Old histories must always decode, so fields are never renamed, removed or made stricter. Secrets, signed links and the
bytes of images and videos never enter a payload; they go through the store (claim check). This module defines the form
of a request, `longtake.request.rules` its rules.
"""

import re
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_SCHEME = re.compile(r"(https?|data):", re.IGNORECASE)
_MAX_FIELDS = 10


def with_plain_scheme(uri: str) -> str:
    """The URI with `http`, `https` or `data` in lower case."""
    found = _SCHEME.match(uri)
    return found[0].lower() + uri[found.end() :] if found else uri


def extension_key(key: str, number: int) -> str:
    """The ledger's key of the n-th retry of an extension."""
    return f"{key}#extend-{number}"


class _Payload(BaseModel):
    """A frozen payload. It ignores unknown fields, because a newer worker may have written it."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class OnExtendFailed(StrEnum):
    """What to do after the extension failed. The 8 s clip is stored in any case."""

    FALLBACK = "fallback"
    """Return the 8 s clip: outcome `fallback`."""
    RETRY = "retry"
    """Pay for the extension again, if the workers are configured for it."""
    ASK = "ask"
    """Wait for the update `decide`."""
    FAIL = "fail"
    """Fail as `ExtensionFailed`; the error names the stored clip."""


class OnKeyRefused(StrEnum):
    """What to do if the gateway refuses the API key, or has no quota left, before anything is paid."""

    FAIL = "fail"
    """Fail as `SubmissionRefused`."""
    WAIT = "wait"
    """Wait without a timeout until the gateway accepts the key, then submit."""


class ImageInput(_Payload):
    """One image of a request. The order of the images matters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(repr=False)
    """A public `https://…` link, a complete `data:` URI, or an object in the store: its full URL, or its path as
    `longtake.store_image` returns it."""

    @field_validator("uri")
    @classmethod
    def _plain_scheme(cls, uri: str) -> str:
        return with_plain_scheme(uri)


class GenerateVideoInput(_Payload):
    """The workflow's input. Unknown fields are refused, so that a misspelt option is not paid for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """One of the eight names in `longtake.request.rules`."""
    prompt: str = Field(repr=False)
    """What the first segment (8 s) shows: the text, or its path in the store (`longtake.request.prompts`)."""
    prompt_extend: str = Field(repr=False)
    """What the extension (7 s) shows: the text or its path."""
    size: str | None = None
    """`1280x720`, `720x1280`, `1920x1080` or `1080x1920`, in pixels. None: the gateway's default."""
    images: tuple[ImageInput, ...] = ()
    on_extend_failed: OnExtendFailed = OnExtendFailed.FALLBACK
    keep_first: bool = False
    """Also store the first 8 s beside the full video."""
    task_id: str | None = None
    """Adopt this existing task instead of submitting."""
    on_key_refused: OnKeyRefused = OnKeyRefused.FAIL
    """Applies to the first submission; a retry of an extension never waits."""


class MediaInfo(_Payload):
    """Facts about a video, read from the file itself."""

    duration_seconds: float
    width: int
    """In pixels, as displayed."""
    height: int
    has_audio: bool


class StoredVideo(MediaInfo):
    """A video in the store, whole and verified."""

    uri: str
    """Its URL in the store, such as `s3://bucket/…`. Never a signed link."""
    sha256: str
    """Of the stored bytes, in hexadecimal."""
    bytes: int


class UncollectedExtension(_Payload):
    """A retried extension that was paid, or perhaps was, and whose video has not been delivered."""

    number: int
    """1 for the first retry. Its key in the ledger is `<key>#extend-<number>`."""
    task_id: str | None = None
    """None if it is unknown whether the submission created a task."""
    reason: str
    """Why it was not delivered: a failure type and its message."""


class GenerateVideoResult(_Payload):
    """The result of a generation that delivered a video."""

    outcome: Literal["full", "fallback"]
    video: StoredVideo
    first_video: StoredVideo | None = None
    """The first 8 s, if they were stored beside the full video."""
    model: str
    task_id: str
    remix_id: str | None = None
    """The upstream id of the first segment."""
    remix_id_extend: str | None = None
    """The upstream id of the extension. It is not a task of the gateway."""
    extension_task_id: str | None = None
    """The gateway's task of a retried extension."""
    uncollected: UncollectedExtension | None = None
    """A paid extension that could not be delivered yet. Start the same key again to collect it."""
    quota: int | None = None
    """The cost that the gateway reports, in its own unit."""
    refunded: bool | None = None
    """Whether the gateway refunded a failed extension (`quota` is then 0); None if it does not say."""
    refund_evidence: str | None = None
    """The record that shows the refund, for a person."""
    polls: int
    """How often the gateway was polled."""
    warnings: tuple[str, ...] = ()
    extend_error_code: str | None = None
    extend_error_message: str | None = None


class Paid(StrEnum):
    """What is known about money."""

    NO = "no"
    YES = "yes"
    UNKNOWN = "unknown"


class KeyProblem(StrEnum):
    """Why the gateway does not accept the API key."""

    REFUSED = "key_refused"
    """It is wrong, disabled, expired or exhausted."""
    OUT_OF_QUOTA = "out_of_quota"
    """It is valid, but it or its account has no quota left: top up."""


class Problem(_Payload):
    """One thing wrong with a request."""

    field: str
    """Where: `model`, `images[1].uri`, …"""
    rule: str
    """What the field must be; says what to do."""


class FailureDetails(_Payload):
    """The details of every failure of a generation."""

    key: str | None = None
    model: str | None = None
    paid: Paid = Paid.UNKNOWN
    advice: str = ""
    """What a person can do now."""
    task_id: str | None = None
    remix_id: str | None = None
    remix_id_extend: str | None = None
    extension_task_id: str | None = None
    """The gateway's task of a retried extension."""
    quota: int | None = None
    """The cost that the gateway reports, in its own unit."""
    refunded: bool | None = None
    """Whether the gateway refunded it (`quota` is then 0); None if it does not say."""
    refund_evidence: str | None = None
    """The record that shows the refund, for a person."""
    http_status: int | None = None
    gateway_code: str | None = None
    gateway_message: str | None = None
    request_id: str | None = None
    """The gateway's `X-Oneapi-Request-Id`; its support asks for it."""
    problems: tuple[Problem, ...] = ()
    first_video: StoredVideo | None = None
    """The 8 s clip, if it was stored before the failure."""
    last_record: "TaskRecord | None" = None
    """The last readable response about the task."""
    sent_at: datetime | None = None
    """When the submission in doubt was sent, by the worker's clock."""
    slot: int | None = None
    """Its slot in the ledger."""
    polls: int = 0
    key_problem: KeyProblem | None = None
    """Why the gateway refused the API key, if it did."""


class TaskState(StrEnum):
    """The state of a task in one response."""

    RUNNING = "running"
    COMPLETED = "completed"
    EXTEND_FAILED = "extend_failed"
    GENERATE_FAILED = "generate_failed"
    LOST = "lost"
    """The gateway gave the task up: a FAILURE without a verdict on the video."""


class TaskRecord(_Payload):
    """One readable response about a task, without its links, which are secrets."""

    task_id: str
    state: TaskState
    gateway_status: str = ""
    """The raw status of the envelope, or of the inner record if there is no envelope."""
    progress: int | None = None
    """0 to 100; not monotonic, so only for the poll schedule and display."""
    remix_id: str | None = None
    remix_id_extend: str | None = None
    upstream_task_id: str | None = None
    """The middleware's own id (`data.id`)."""
    model: str | None = None
    quota: int | None = None
    refunded: bool | None = None
    """Whether the gateway refunded a failed task; None if it does not say, or nothing failed."""
    refund_evidence: str | None = None
    """The record that shows the refund, for a person."""
    error_code: str | None = None
    error_message: str | None = None
    submitted_at: datetime | None = None
    updated_at: datetime | None = None
    """When the gateway last polled upstream."""
    finished_at: datetime | None = None
    has_video_link: bool = False
    has_first_video_link: bool = False
    link_expires_at: datetime | None = None
    """When the link to the video expires; None if it does not say."""
    request_id: str | None = None


class Stage(StrEnum):
    """The stage of a generation; also the search attribute `VideoStage`."""

    PREPARING = "preparing"
    SUBMITTING = "submitting"
    AWAITING_DECISION = "awaiting_decision"
    FIRST_SEGMENT = "first_segment"
    EXTENDING = "extending"
    DELIVERING = "delivering"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Attention(StrEnum):
    """Why a generation needs attention; also the search attribute `VideoAttention`."""

    NEEDS_API_KEY = "needs_api_key"
    NEEDS_DECISION = "needs_decision"
    OVERDUE = "overdue"
    TASK_LOST = "task_lost"
    POLL_FAILING = "poll_failing"
    """The last poll failed; polling continues."""
    DELIVERY_FAILING = "delivery_failing"
    """The video exists and cannot be downloaded yet; its link may expire."""
    LEDGER_UNAVAILABLE = "ledger_unavailable"
    """The submission ledger cannot be read or written, so it is unknown whether anything was sent."""


class GenerationStatus(_Payload):
    """The result of the query `status`."""

    key: str
    stage: Stage
    attention: Attention | None = None
    message: str = ""
    """What is happening, in one sentence."""
    advice: str = ""
    """What a person can do now, with the command; empty if nothing."""
    outcome: str | None = None
    paid: Paid | None = None
    """What is known about money; None while it is being checked. Also the search attribute `VideoPaid`."""
    charged: Paid | None = None
    """Whether the account's records show a charge for a submission in doubt; None if none is in doubt. `evidence` says
    why. It is weaker than `paid`: the gateway may still accept and charge a submission."""
    quota: int | None = None
    """The cost of the first task that the gateway reports, in its own unit."""
    refunded: bool | None = None
    """Whether the gateway refunded it (`quota` is then 0); None if nothing failed, or nobody says."""
    refund_evidence: str | None = None
    """The record that shows the refund, for a person."""
    model: str | None = None
    progress: int | None = None
    polls: int = 0
    task_id: str | None = None
    request_id: str | None = None
    """The gateway's id of the request that submitted the task."""
    remix_id: str | None = None
    remix_id_extend: str | None = None
    extension_task_id: str | None = None
    """The gateway's task of a retried extension."""
    submitted_at: datetime | None = None
    """By Temporal's clock if this run submitted it, else by the ledger, and never in the future."""
    next_poll_at: datetime | None = None
    has_link: bool = False
    """Whether the gateway has returned a link to the video. The link itself is a secret."""
    link_expires_at: datetime | None = None
    """When that link expires; None if it does not say."""
    decisions: tuple[str, ...] = ()
    """The actions that the update `decide` accepts now."""
    decide_by: datetime | None = None
    """When the generation stops waiting for a decision; None if it never does."""
    slot: int | None = None
    """The ledger slot of the submission that the decision is about. Send it with the decision."""
    evidence: tuple[str, ...] = ()
    """What is known about the submission in doubt, in words."""
    candidates: tuple[str, ...] = ()
    """Tasks of the account without an owner that may be this submission."""
    last_problem: str | None = None
    """Why the last poll failed, if it did."""
    key_problem: KeyProblem | None = None
    """Why the gateway refuses the API key, if it does."""
    waiting_since: datetime | None = None
    """Since when the submission waits for a valid API key (`on_key_refused`)."""
    video: StoredVideo | None = None
    first_video: StoredVideo | None = None
    warnings: tuple[str, ...] = ()


class PollSchedule(_Payload):
    """How often to poll; see `longtake.gateway.poll_schedule`."""

    expected: timedelta = timedelta(seconds=150)
    min_interval: timedelta = timedelta(seconds=5)


class GenerationPolicy(_Payload):
    """The worker's settings that the workflow needs, carried to it as data."""

    schedule: PollSchedule = PollSchedule()
    overdue_after: timedelta = timedelta(minutes=45)
    give_up_after: timedelta = timedelta(hours=24)
    submit_timeout: timedelta = timedelta(seconds=120)
    """The longest that one submitting HTTP exchange may take."""
    submit_window: timedelta = timedelta(hours=1)
    """How long a submission that was surely not sent is tried again."""
    delivery_window: timedelta = timedelta(hours=24)
    """How long a delivery is tried again."""
    lost_grace: timedelta = timedelta(minutes=10)
    """How long a task that the gateway gave up is still watched."""
    decision_window: timedelta = timedelta(0)
    """How long a decision is waited for before the generation is abandoned; zero ends an unknown submission at once."""
    wait_after_decision_timeout: bool = False
    """Whether a submission of unknown outcome goes on waiting for a decision after that."""
    ledger_id: str = ""
    """Which submission ledger the generation began with; see `longtake.submission.ledger`."""
    extension_retries: int = 0
    """How often a failed extension may be paid for again; zero where no way to do so is configured."""
    hide_prompts: bool = False
    """Whether prompts are to be kept out of Temporal: a request that holds them gets a warning."""
    extensions_sent: int = 0
    """How many retries of the extension earlier runs of this key have submitted, as the ledger knows."""


class SubmissionReceipt(_Payload):
    """A paid submission whose task id is known."""

    task_id: str
    submitted_at: datetime
    slot: int
    attached: bool = False
    """True where the ledger already had it, so that nothing was sent this time."""
    recorded: bool = True
    """False where the ledger could not take the outcome yet: `record_submission` writes it."""
    nonce: str = ""
    """Of the attempt that sent it, as the ledger knows it."""
    request_id: str | None = None
    gateway: str = ""
    """The origin of the gateway that it was sent to, `https://host[:port]`; empty where that is not known."""
    account: str = ""
    """The fingerprint of the API key that paid for it; empty where that is not known."""


class LedgerRegistration(_Payload):
    """Which submission ledger a Temporal namespace belongs to; kept in the memo of the workflow `longtake-ledger`."""

    ledger: str
    """The identity that the ledger's store holds in `submit/identity`."""
    store: str = ""
    """The store's URL when it was registered, without secrets: for people; the identity is what counts."""


class DeliveryKind(StrEnum):
    """Which clip to deliver."""

    FULL = "full"
    FIRST = "first"


class DeliveryReceipt(_Payload):
    """A verified clip in the store."""

    video: StoredVideo
    warnings: tuple[str, ...] = ()
    source: str = ""
    """Where it came from, in words, without the link."""
    already_stored: bool = False
    quota: int | None = None
    """What the task cost, where the gateway was asked on the way and told."""
    refunded: bool | None = None
    refund_evidence: str | None = None


class PrepareInput(_Payload):
    """What `prepare_generation` is asked."""

    key: str = ""
    request: GenerateVideoInput
    trial: bool = False
    """See `SubmitInput.trial`."""


class AwaitKeyInput(_Payload):
    """What `await_api_key` is asked."""

    key: str
    stage: Stage | None = None
    """For the log."""
    details: FailureDetails = FailureDetails()
    """How the gateway refused."""
    message: str = ""
    """The same in words."""
    hide_words: bool = False
    """Whether the gateway's words stay in the store, because they may repeat a hidden prompt."""


class KeyTrial(_Payload):
    """What `await_api_key` brings: a submission is worth a try."""

    trial: bool
    """Whether it is the one try of this worker, the key being taken as refused until it has gone well."""


class ExtensionInput(_Payload):
    """Which extension to pay for again."""

    remix_id: str
    """The upstream id of the first segment."""
    number: int
    """1 for the first retry."""


class SubmitInput(_Payload):
    """What `submit_generation` and `submit_extension` are asked."""

    key: str
    request: GenerateVideoInput
    extension: ExtensionInput | None = None
    ledger_id: str = ""
    trial: bool = False
    """Whether the gateway is to be asked although it has just refused this worker's API key."""

    @property
    def ledger_key(self) -> str:
        """The name of this payment in the ledger: each retry of an extension is one of its own."""
        return extension_key(self.key, self.extension.number) if self.extension else self.key


class RecordInput(_Payload):
    """What `record_submission` is asked: to write an outcome that the ledger could not take at once."""

    key: str
    """The ledger's."""
    receipt: SubmissionReceipt
    ledger_id: str = ""


class CloseInput(_Payload):
    """What `close_submission` is asked."""

    key: str
    """The ledger's."""
    ledger_id: str = ""
    digest: str = ""
    """Of what was to be paid for; empty where whatever the key paid for counts."""
    stage: Stage | None = None
    """For the log."""


class ClosedSubmission(_Payload):
    """What the ledger knows of a key, once no submission scheduled before can be sent any more.

    With neither field set, nothing was made, and nothing that was scheduled before will be.
    """

    receipt: SubmissionReceipt | None = None
    """The paid submission."""
    in_doubt: FailureDetails | None = None
    """A submission that was sent and has no known outcome: its slot, and when it was sent."""


class ReconcileInput(_Payload):
    """What `reconcile_submission` is asked."""

    key: str
    """The ledger's."""
    model: str
    slot: int | None = None
    """Which submission is in doubt, where that is known."""
    extension: bool = False
    """Whether it is a retried extension, for which the account's records show nothing."""
    ledger_id: str = ""
    digest: str = ""
    """Of what was to be paid for."""
    stage: Stage | None = None
    """For the log."""
    hide_words: bool = False
    """Whether what the gateway said stays in the store, because it may repeat a hidden prompt."""
    confirms_not_charged: bool = False
    """Whether earlier checks, without one that said otherwise, found it `resubmittable`: a worker that may submit again
    by itself closes it now, if it still is."""


class Reconciliation(_Payload):
    """What the account's records show about a submission whose outcome is unknown."""

    receipt: SubmissionReceipt | None = None
    """The task, where it was found beyond doubt."""
    clear: bool = False
    """True where the ledger has nothing in doubt (any more): submitting again attaches, or sends for the first time."""
    candidates: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    slot: int | None = None
    """Which submission this is about."""
    retry_after: timedelta | None = None
    """When checking again is worthwhile; None: at the next regular time."""
    elsewhere: str | None = None
    """The gateway that it was sent to, where this worker uses another one, whose records say nothing about it."""
    charged: Paid | None = None
    """Whether the account's records show a charge for it; None where nothing is in doubt."""
    resubmittable: bool = False
    """Whether usage log and task list both show no charge, and the worker may submit again by itself."""
    resubmissions: int = 0
    """How often this payment was closed as not charged, and so submitted again without a person."""


class ResolveInput(_Payload):
    """What `resolve_submission` is asked: to write down what a person decided."""

    key: str
    """The ledger's."""
    task_id: str | None = None
    """What it brought; None: it made nothing."""
    digest: str = ""
    """Of what was to be paid for, so that a task can be adopted even where the ledger has nothing in doubt any more."""
    model: str = ""
    ledger_id: str = ""
    extension: bool = False
    """Whether it is about an extension that was paid for again: then the task is at the gateway that retries them."""
    slot: int | None = None
    """Which submission the person was asked about: this one only is written down, whatever else is in doubt."""


class Resolution(_Payload):
    """What stands in the ledger now."""

    receipt: SubmissionReceipt | None = None
    """None: nothing was made."""


class PollInput(_Payload):
    """What `query_generation` is asked."""

    key: str
    task_id: str
    extension: bool = False
    """Whether it is the task of a retried extension, which may live at another gateway."""
    stage: Stage | None = None
    """For the log."""
    hide_words: bool = False
    """Whether the gateway's words stay in the store, because they may repeat a hidden prompt."""
    gateway: str = ""
    """The origin of the gateway where the task lives; empty where that is not known."""
    account: str = ""
    """A fingerprint of the API key that paid; empty where that is not known."""
    clip_is_stored: bool = False
    """Whether the links are of no more use: then they are not kept."""


class DeliverInput(_Payload):
    """What `deliver_video` is asked."""

    key: str
    task_id: str
    kind: DeliveryKind
    width: int | None = None
    """The picture that was asked for, in pixels; None where the gateway chose."""
    height: int | None = None
    extension_number: int = 0
    """Which retry of the extension made the task; 0 where it is the first payment's."""
    gateway: str = ""
    """The origin of the gateway where the task lives; empty where that is not known."""
    account: str = ""
    """A fingerprint of the API key that paid; empty where that is not known."""
    hide_words: bool = False
    """Whether the gateway's words stay in the store, because they may repeat a hidden prompt."""
    keep_first_link: bool = False
    """Whether the first 8 s of a full video are to be downloaded too, so that their link is still needed."""

    @property
    def extension(self) -> bool:
        """Whether a retry of the extension made the task."""
        return self.extension_number > 0

    @property
    def ledger_key(self) -> str:
        """Whose the task is, in the ledger."""
        return extension_key(self.key, self.extension_number) if self.extension else self.key


class DecisionAction(StrEnum):
    """What a person can decide."""

    ACCEPT = "accept"
    """Accept the 8 s clip as the result."""
    RETRY = "retry"
    """Pay for the extension again."""
    ADOPT = "adopt"
    """The submission in doubt created this task."""
    RESUBMIT = "resubmit"
    """The submission in doubt created nothing: submit and pay again."""
    ABANDON = "abandon"
    """Give the generation up."""


class Decision(_Payload):
    """The argument of the update `decide`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: DecisionAction
    task_id: str | None = None
    """Which task to adopt."""
    slot: int | None = None
    """The submission that it is about (`GenerationStatus.slot`); None: the current one."""

    @model_validator(mode="before")
    @classmethod
    def _not_too_much(cls, given: Any) -> Any:
        """One short error for what nobody means: one for each of thousands of fields is more than Temporal takes."""
        if isinstance(given, dict) and (len(given) > _MAX_FIELDS or any(len(name) > 100 for name in map(str, given))):  # noqa: PLR2004 - no field's name is nearly so long
            raise ValueError(f"a decision has the fields {', '.join(cls.model_fields)}")
        return given
