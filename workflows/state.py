"""What is known of one generation, and how the world is told of it: list, page, query and failure alike."""

import contextlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NoReturn

from temporalio import workflow
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from longtake.models import (
    Attention,
    CarriedGeneration,
    Decision,
    DecisionAction,
    FailureDetails,
    GenerateVideoInput,
    GenerateVideoResult,
    GenerationPolicy,
    GenerationStatus,
    KeyProblem,
    Paid,
    Stage,
    StoredVideo,
    SubmissionReceipt,
    TaskRecord,
    TaskState,
    UncollectedExtension,
)
from longtake.temporal.connection import (
    GATEWAY_TASK_ID,
    VIDEO_ATTENTION,
    VIDEO_MODEL,
    VIDEO_OUTCOME,
    VIDEO_PAID,
    VIDEO_STAGE,
)
from workflows import logbook, measuring
from workflows import status_text as status_text

_BENIGN_KINDS = frozenset({"InvalidRequest", "SubmissionRefused", "GenerationFailed", "ExtensionFailed", "Abandoned"})
"""Expected ends that should alarm nobody."""

_SAME_KEY_AGAIN = "Starting again with the same key goes on where it was and pays nothing twice."

NOT_CARRIED: Mapping[str, str] = {
    "key": "it is in the workflow's id",
    "asked": "carried as `request`",
    "clock": "carried as `stage` and `stage_since`",
    "paid": "a run continues as new only while it watches what is paid for",
    "watched": "the next run watches at once",
    **dict.fromkeys(("awaits_key", "waiting_since"), "of a submission; it was made long before"),
    "next_poll_at": "the next run plans the next look at once",
    **dict.fromkeys(
        ("offered", "asked_slot", "decide_by", "decision", "candidates", "evidence", "charged"),
        "of a question; none is open then",
    ),
    **dict.fromkeys(("outcome", "video", "advice", "uncollected"), "of an end, and it has not ended"),
}
"""The parts of `Generation` that are not in `CarriedGeneration`, and why."""


class StepFailed(Exception):
    """A step cannot go on; whoever called it decides whether the generation ends with it.

    Attributes:
        kind: The failure type that others depend on, such as `TaskLost`.
    """

    def __init__(self, kind: str, message: str, details: FailureDetails) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.details = details


class Generation:
    """The state of one run of the workflow."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.asked: GenerateVideoInput | None = None
        self.policy = GenerationPolicy()
        self.receipt: SubmissionReceipt | None = None
        self.record: TaskRecord | None = None
        self.first_video: StoredVideo | None = None
        self.extension: SubmissionReceipt | None = None
        self.extension_number = 0
        self.extension_record: TaskRecord | None = None
        self.polls = 0
        self.polls_of_task = 0
        self.polling_since: datetime | None = None
        self.watched = False
        self.warnings: list[str] = []
        self.stage = Stage.PREPARING
        self.attention: Attention | None = None
        self.last_problem: str | None = None
        self.key_problem: KeyProblem | None = None
        self.awaits_key = False
        self.waiting_since: datetime | None = None
        self.lost_since: datetime | None = None
        self.missing_since: datetime | None = None
        self.next_poll_at: datetime | None = None
        self.poll_requested = False
        self._paid: Paid | None = None
        self.advice = ""
        self.offered: tuple[DecisionAction, ...] = ()
        self.decide_by: datetime | None = None
        self.asked_slot: int | None = None
        self.candidates: tuple[str, ...] = ()
        self.evidence: tuple[str, ...] = ()
        self.charged: Paid | None = None
        self.outcome: str | None = None
        self.video: StoredVideo | None = None
        self.uncollected: UncollectedExtension | None = None
        self._decision: Decision | None = None
        self._clock = measuring.StageClock()

    def restore(self, carried: CarriedGeneration) -> None:
        """Go on where the run before continued as new."""
        for name in _CARRIED_AS_THEY_ARE:
            setattr(self, name, getattr(carried, name))
        self.asked, self.paid, self.warnings = carried.request, Paid.YES, list(carried.warnings)
        # Not `stage`: the watch enters it at once, which shows it anew.
        self._clock = measuring.StageClock(carried.stage, carried.stage_since)

    @property
    def request(self) -> GenerateVideoInput:
        """What was asked, once it has been found good."""
        assert self.asked is not None  # noqa: S101 - set before anything else happens
        return self.asked

    @property
    def task(self) -> SubmissionReceipt:
        """The paid submission of the first request."""
        assert self.receipt is not None  # noqa: S101 - nothing is looked at before it is submitted
        return self.receipt

    @property
    def retried(self) -> SubmissionReceipt:
        """The paid submission of the extension that is being retried."""
        assert self.extension is not None  # noqa: S101 - nothing is looked at before it is submitted
        return self.extension

    @property
    def paid(self) -> Paid | None:
        """What is known about money."""
        return self._paid

    @paid.setter
    def paid(self, paid: Paid | None) -> None:
        # What was surely paid for stays so, whatever is unknown of an extension that was paid for again.
        if self._paid is not Paid.YES:
            self._paid = paid

    @property
    def remix_id_extend(self) -> str | None:
        """The upstream id of the extension: of the one that was paid for again, once that has one."""
        known = (record.remix_id_extend for record in (self.extension_record, self.record) if record)
        return next((remix_id for remix_id in known if remix_id), None)

    def cancelled(self) -> None:
        """Nobody waits any more; what is known about money stays known."""
        # Before it is submitted, and while it is, the ledger has been asked by now (`workflows.steps.resolve`).
        self.paid = self.paid or Paid.UNKNOWN
        if self.paid is not Paid.NO:
            self.advice = _SAME_KEY_AGAIN
        self.enter(Stage.CANCELLED)

    def enter(self, stage: Stage, attention: Attention | None = None) -> None:
        """Change where the generation stands; a question that was asked is over, unless it is what is awaited."""
        if stage is not Stage.AWAITING_DECISION:
            self.offered, self.decide_by = (), None
        if (stage, attention) != (self.stage, self.attention) or stage is Stage.PREPARING:
            self.stage, self.attention = stage, attention
            updates: list[Any] = [VIDEO_STAGE.value_set(stage)]
            updates.append(VIDEO_ATTENTION.value_set(attention) if attention else VIDEO_ATTENTION.value_unset())
            # While it is open, a doubt about an extension is found like any other, though the generation was paid.
            paid = Paid.UNKNOWN if DecisionAction.ADOPT in self.offered else self.paid
            updates.append(VIDEO_PAID.value_set(paid) if paid else VIDEO_PAID.value_unset())
            if stage is Stage.PREPARING and self.asked:
                updates.append(VIDEO_MODEL.value_set(self.asked.model))
            if self.outcome:
                updates.append(VIDEO_OUTCOME.value_set(self.outcome))
            if stage is Stage.CANCELLED and self.receipt:
                updates.append(GATEWAY_TASK_ID.value_set(self.receipt.task_id))
            workflow.upsert_search_attributes(updates)
            logbook.log_stage(self)
        self._clock.enter(stage, self.outcome, self.asked.model if self.asked else None)
        self.tell()

    def tell(self) -> None:
        """Show it on the workflow's page."""
        workflow.set_current_details(status_text.markdown(self.status()))

    def own(self, receipt: SubmissionReceipt, *, extension: bool = False) -> None:
        """A paid submission is ours from here on; its time becomes Temporal's, which looks are planned by.

        Args:
            receipt: With the time of the worker that sent it, whose clock may be wrong.
            extension: Whether it is an extension that was paid for again.
        """
        now = workflow.now()
        submitted_at = min(receipt.submitted_at, now) if receipt.attached else now
        receipt = receipt.model_copy(update={"submitted_at": submitted_at})
        self.polls_of_task, self.polling_since = 0, None
        if extension:
            self.extension = receipt
            return
        self.receipt, self.paid = receipt, Paid.YES
        workflow.upsert_search_attributes([GATEWAY_TASK_ID.value_set(receipt.task_id), VIDEO_PAID.value_set(Paid.YES)])

    def offer(self, actions: Iterable[DecisionAction], *, by: datetime | None, slot: int | None = None) -> None:
        """Let the update `decide` choose one of these; it can from now on, until it is taken.

        Args:
            actions: The choices.
            by: When nobody is waited for any more; None where that has no end.
            slot: Which submission it is about, if it is about one.
        """
        self.offered, self.decide_by, self.asked_slot = tuple(actions), by, slot
        self.enter(Stage.AWAITING_DECISION, Attention.NEEDS_DECISION)

    async def decision(self, *, within: timedelta | None) -> Decision | None:
        """Wait, durably and visibly, for what was offered; None where nobody decided in time."""
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self._decision is not None, timeout=within, timeout_summary="until somebody decides"
            )
        decision, self._decision = self._decision, None
        if decision:
            self.offered = ()
        return decision

    @property
    def is_decided(self) -> bool:
        """Whether a decision has been made that nobody has taken up yet."""
        return self._decision is not None

    def decide(self, decision: Decision) -> None:
        """Take a decision that was asked for."""
        self._decision = decision

    def status(self) -> GenerationStatus:
        """The answer to the query `status`."""
        record = self.extension_record or self.record
        return GenerationStatus(
            key=self.key,
            stage=self.stage,
            attention=self.attention,
            message=status_text.message_for(self.stage, self.attention, self.offered, self.key_problem, paid=self.paid),
            advice=self.advice or self._advice,
            outcome=self.outcome,
            paid=self.paid,
            charged=self.charged,
            quota=self.record.quota if self.record else None,
            refunded=self.record.refunded if self.record else None,
            refund_evidence=self.record.refund_evidence if self.record else None,
            model=self.asked.model if self.asked else None,
            progress=record.progress if record else None,
            polls=self.polls,
            task_id=self.receipt.task_id if self.receipt else None,
            request_id=self.receipt.request_id if self.receipt else None,
            remix_id=self.record.remix_id if self.record else None,
            remix_id_extend=self.remix_id_extend,
            extension_task_id=self.extension.task_id if self.extension else None,
            submitted_at=self.receipt.submitted_at if self.receipt else None,
            next_poll_at=self.next_poll_at,
            has_link=record is not None and record.has_video_link,
            link_expires_at=record.link_expires_at if record else None,
            decisions=tuple(self.offered),
            decide_by=self.decide_by if self.offered else None,
            slot=self.asked_slot if self.offered else None,
            evidence=self.evidence,
            candidates=self.candidates,
            last_problem=self.last_problem,
            key_problem=self.key_problem,
            waiting_since=self.waiting_since if self.awaits_key else None,
            video=self.video,
            first_video=self.first_video,
            warnings=tuple(self.warnings),
        )

    @property
    def _advice(self) -> str:
        if self.awaits_key and self.key_problem:
            return status_text.advice_awaiting_key(self.key_problem, self.key)
        return status_text.advice_for(self.attention, self.key, self.offered, self.asked_slot, self.key_problem)

    def known(self, details: FailureDetails | None = None, *, advice: str) -> FailureDetails:
        """Everything known about a paid generation that ends without what was asked for."""
        record = self.record
        return (details or FailureDetails()).model_copy(
            update={
                "paid": Paid.YES,
                "advice": advice,
                "task_id": self.task.task_id,
                "remix_id": record and record.remix_id,
                "remix_id_extend": self.remix_id_extend,
                "extension_task_id": self.extension and self.extension.task_id,
                "quota": record and record.quota,
                "refunded": record and record.refunded,
                "refund_evidence": record and record.refund_evidence,
                "gateway_code": record and record.error_code,
                "gateway_message": record and record.error_message,
                "request_id": self.task.request_id,
                "first_video": self.first_video,
                "last_record": record,
            }
        )

    def fail(self, failed: StepFailed) -> NoReturn:
        """End with a typed error that holds everything known."""
        self.outcome, self.paid = failed.kind, failed.details.paid
        self.last_problem, self.advice = failed.message, failed.details.advice
        if self.paid is not Paid.UNKNOWN:
            self.candidates = self.evidence = ()
            self.charged = None
        self.enter(Stage.FAILED)
        benign = failed.kind in _BENIGN_KINDS
        logbook.log_failure(self, failed.kind, failed.details, benign=benign)
        raise ApplicationError(
            failed.message,
            failed.details.model_copy(
                update={
                    "key": self.key,
                    "model": self.asked.model if self.asked else None,
                    "polls": self.polls,
                    "paid": self.paid or Paid.UNKNOWN,
                }
            ),
            type=failed.kind,
            non_retryable=True,
            category=ApplicationErrorCategory.BENIGN if benign else ApplicationErrorCategory.UNSPECIFIED,
        )

    def result(self, outcome: str, video: StoredVideo) -> GenerateVideoResult:
        """End with a video."""
        self.outcome, self.video = outcome, video
        if outcome == "full":
            self.last_problem = None
        if self.uncollected is None:
            self.candidates = self.evidence = ()
            self.charged = None
        else:
            self.advice = (
                "An extension was paid for again, or perhaps was, and is not delivered: start again with the same key "
                "to collect it. Nothing is paid for that."
            )
        self.enter(Stage.DONE)
        record = self.record
        assert record is not None  # noqa: S101 - a verdict is a record
        failed = record.state is TaskState.EXTEND_FAILED
        extended = self.extension_record if outcome == "full" and self.extension else None
        return GenerateVideoResult.model_validate(
            {
                "outcome": outcome,
                "video": video,
                "first_video": self.first_video,
                "model": self.request.model,
                "task_id": self.task.task_id,
                "remix_id": record.remix_id,
                "remix_id_extend": extended.remix_id_extend if extended else self.remix_id_extend,
                "extension_task_id": self.extension and self.extension.task_id,
                "uncollected": self.uncollected,
                "quota": record.quota,
                "refunded": record.refunded,
                "refund_evidence": record.refund_evidence,
                "polls": self.polls,
                "warnings": tuple(self.warnings),
                "extend_error_code": record.error_code if failed else None,
                "extend_error_message": record.error_message if failed else None,
            }
        )

    def carried(self) -> CarriedGeneration:
        """What the next run needs."""
        parts: dict[str, Any] = {name: getattr(self, name) for name in _CARRIED_AS_THEY_ARE}
        return CarriedGeneration(
            request=self.request,
            warnings=tuple(self.warnings),
            stage=self._clock.stage,
            stage_since=self._clock.since,
            **parts,
        )


_CARRIED_AS_THEY_ARE = CarriedGeneration.model_fields.keys() - {
    "carried",
    "request",
    "warnings",
    "stage",
    "stage_since",
}
