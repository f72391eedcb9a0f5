"""The whole truth of one run: steps change it, people are shown a view of it, the next run gets it whole."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, PrivateAttr
from temporalio import workflow

from longtake.models import (
    Attention,
    Decision,
    DecisionAction,
    FailureDetails,
    GenerateVideoInput,
    GenerationPolicy,
    KeyProblem,
    Paid,
    Stage,
    StoredVideo,
    SubmissionReceipt,
    TaskRecord,
    TaskState,
    UncollectedExtension,
)

VERDICTS = frozenset({TaskState.COMPLETED, TaskState.EXTEND_FAILED, TaskState.GENERATE_FAILED})


class _Part(BaseModel):
    """Mutable; it ignores fields that it does not know, because a newer worker may have written them."""

    model_config = ConfigDict(extra="ignore")


class PaidTask(_Part):
    """A task of the gateway that was paid for, and what polling has found out about it."""

    receipt: SubmissionReceipt
    """`submitted_at` is by Temporal's clock, which the polls are planned by."""
    record: TaskRecord | None = None
    """The latest readable answer, with the ids of those before it."""
    polls: int = 0
    polling_since: datetime | None = None
    """When this run of the key began to poll the task."""
    lost_since: datetime | None = None
    """Since when the gateway has given the task up without a verdict."""
    missing_since: datetime | None = None
    """Since when the gateway does not know the task."""
    polls_without_task: int = 0
    """How many polls in a row said so, or that it has given the task up."""

    @property
    def id(self) -> str:
        """The gateway's task id."""
        return self.receipt.task_id


class LastPoll(_Part, frozen=True):
    """How the latest poll went."""

    number: int
    result: str
    """The task's state, or the type of the failure."""


class Doubt(_Part, frozen=True):
    """A submission whose outcome is unknown, and what the account's records say of it."""

    extension: bool
    charged: Paid | None = None
    candidates: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()


class Question(_Part, frozen=True):
    """What a person can decide now."""

    actions: tuple[DecisionAction, ...]
    by: datetime | None = None
    """When the workflow stops waiting; None: never."""
    slot: int | None = None
    """Which submission it is about, if it is about one."""


class GenerationState(_Part):
    """Everything that a generation knows.

    Continue-as-new passes it whole. It was accepted and paid for, so the next run does not judge it as a request again.
    A worker that cannot read it fails the workflow task, and a newer worker takes it.
    """

    carried: Literal[1] = 1
    """Marks it as ours: a retry policy or a cron schedule passes on the bare request. Increase it when older workers
    must not go on with what a newer one has written."""
    key: str
    input: GenerateVideoInput | None = None
    """None until the request is accepted."""
    policy: GenerationPolicy = GenerationPolicy()

    stage: Stage = Stage.PREPARING
    stage_since: datetime | None = None
    attention: Attention | None = None
    paid: Paid | None = None
    """Change it by `set_paid`."""
    first_task: PaidTask | None = None
    """The task of the request itself, which makes both segments."""
    extension_number: int = 0
    """Which retry of the extension is under way; 0: none."""
    extension_task: PaidTask | None = None
    """The task of that retry, once it is submitted."""

    polls: int = 0
    """Of all tasks, the one under way included."""
    last_poll: LastPoll | None = None
    polling: bool = False
    """Whether a task is polled, so that `poll_now` makes sense."""
    next_poll_at: datetime | None = None
    poll_requested: bool = False
    """Whether somebody asked for a poll, or for another try with the API key, that has not begun."""
    awaiting_key: bool = False
    """Whether an unpaid generation waits for an API key that the gateway takes."""
    waiting_since: datetime | None = None
    key_problem: KeyProblem | None = None
    last_problem: str | None = None

    doubt: Doubt | None = None
    """Outlives the question, so that whoever finds the generation ended knows too."""
    question: Question | None = None
    decision: Decision | None = None
    """The answer that no step has taken up yet."""

    first_video: StoredVideo | None = None
    video: StoredVideo | None = None
    uncollected: UncollectedExtension | None = None
    outcome: str | None = None
    """`full`, `fallback` or a failure type, once it has ended."""
    failure: FailureDetails | None = None
    warnings: tuple[str, ...] = ()

    _shown: "GenerationState | None" = PrivateAttr(default=None)

    @property
    def request(self) -> GenerateVideoInput:
        """The accepted request."""
        assert self.input is not None  # noqa: S101 - accepted before any step begins
        return self.input

    @property
    def task(self) -> PaidTask:
        """The task of the request itself."""
        assert self.first_task is not None  # noqa: S101 - nothing is polled before it is submitted
        return self.first_task

    @property
    def record(self) -> TaskRecord | None:
        """The latest answer about the task of the request itself."""
        return self.first_task.record if self.first_task else None

    @property
    def remix_id_extend(self) -> str | None:
        """The upstream id of the extension: of the retried one, once that has one."""
        tasks = (self.extension_task, self.first_task)
        return next(
            (task.record.remix_id_extend for task in tasks if task and task.record and task.record.remix_id_extend),
            None,
        )

    def enter(self, stage: Stage, attention: Attention | None = None) -> None:
        """Change where the generation stands. Any question is over, unless its answer is what is awaited."""
        if stage is not self.stage or self.stage_since is None:
            self.stage, self.stage_since = stage, workflow.now()
        self.attention = attention
        if stage is not Stage.AWAITING_DECISION:
            self.question = None

    def set_paid(self, paid: Paid | None) -> None:
        """Note what is known about money. What was surely paid stays so, whatever is unknown of a retried extension."""
        if self.paid is not Paid.YES:
            self.paid = paid

    def own(self, receipt: SubmissionReceipt, *, extension: bool = False) -> None:
        """Take a paid submission for ours.

        Args:
            receipt: With the time of the worker that sent it, whose clock may be wrong.
            extension: Whether it is a retried extension.
        """
        now = workflow.now()
        submitted_at = min(receipt.submitted_at, now) if receipt.attached else now
        task = PaidTask(receipt=receipt.model_copy(update={"submitted_at": submitted_at}))
        if extension:
            self.extension_task = task
        else:
            self.first_task = task
            self.set_paid(Paid.YES)

    def warn(self, *warnings: str) -> None:
        """Add to what the result warns of."""
        self.warnings += warnings

    def snapshot(self) -> "GenerationState":
        """A copy that later changes do not reach."""
        # The tasks are the only parts that are not frozen.
        tasks = {"first_task": self.first_task, "extension_task": self.extension_task}
        return self.model_copy(update={name: task and task.model_copy() for name, task in tasks.items()})

    def show(self) -> tuple["GenerationState | None", "GenerationState"]:
        """Note that the state as it is now is shown.

        Returns:
            What was shown last, and what is to be shown now.
        """
        before, self._shown = self._shown, None  # so that no copy keeps all those before it
        self._shown = after = self.snapshot()
        return before, after
