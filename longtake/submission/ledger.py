"""The write-once record of every paid submission: who may send, and what it led to ("late intent").

The gateway has no idempotency, so the ledger keeps "never pay twice". For each generation's business key there is a
row of slots in the store (`longtake.submission.records`). Every record is created once, atomically, and never changed
or deleted:

    submit/<hash of the key>/<n>/intent     "I am about to send": made after connect and TLS, before the first byte
    submit/<hash of the key>/<n>/response   "my exchange is over, and its response does not say what was made"
    submit/<hash of the key>/<n>/outcome    "accepted" with the task id, or "not_sent"
    submit/<hash of the key>/<n>/late       the writer's own task id, where a person resolved the slot before it came
    submit/owners/<hash of a task id>       which key a task belongs to; of the id in lower case
    submit/identity                         which ledger this is: made once, when the first worker starts
    open/<hash of the key>.<n>              an index of the slots without an outcome: made before the intent, deleted
                                            when the outcome stands

An attempt that wants to submit walks the slots. No intent: the slot is free. Outcome "accepted": the attempt returns
that task and sends nothing. Outcome "not_sent": the next slot, unless its writer came back later with a task. An
intent without an outcome may belong to a writer that is still alive: the attempt waits until the longest exchange must
be over, or a response says that it is. After that the submission is in doubt. Because the records hang on the key, not
on a workflow run or an activity attempt, no retry, reset, termination or repeated start gets around them.

`close_unsent` makes sure that nothing older is sent any more: it takes the free slot with an intent of its own. That
one record is the whole closing, so no crash leaves half of it. It holds a fence: no submission that Temporal scheduled
before it is sent by any later slot either.

An intent is made as late as possible, so that a connection that fails leaves no record, and a crash before the first
byte is simply sent again. In doubt remains only what the gateway received and did not answer.

The records are few and small (about 300 bytes each), and losing them means paying twice: no lifecycle rule and no
delete permission on `submit/`. The index `open/` only keeps one generation from adopting another one's task: it needs
the delete permission, and its records are worth keeping as long as anything is in doubt.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from longtake.gateway.client import SubmittedTask
from longtake.gateway.errors import GatewayBusy, GatewayError, GatewayUnreachable, RequestRefused
from longtake.models import SubmissionReceipt, extension_key
from longtake.storage import Store, StoreProblem
from longtake.submission.errors import (
    KeyReused,
    LedgerError,
    LedgerUnavailable,
    OutcomeUnknown,
    SendSuspended,
    SlotTaken,
    SubmissionClosed,
    SubmissionInDoubt,
    TaskOwned,
    WrongLedger,
    WrongSide,
)
from longtake.submission.records import (
    IDENTITY,
    MAX_EXCERPT_CHARS,
    MAX_SLOTS,
    OPEN,
    OPEN_ENTRY,
    OWNERS,
    PREFIX,
    Identity,
    Intent,
    OpenEntry,
    Outcome,
    Records,
    Response,
    Slot,
    TaskOwner,
    folder_of,
    open_path,
    owner_path,
    record_path,
)

logger = logging.getLogger(__name__)

MARGIN = timedelta(seconds=30)
"""Added to the longest exchange before its writer is given up: clocks differ, and a reply takes time to be written."""

_MAX_APPROACH_SECONDS = 55.0
"""From the walk through the slots to the first byte: images are read and a connection is made. A longer attempt was
stopped on the way, and what it read in the ledger may not hold any more."""
_STALE_AFTER_SECONDS = 5.0
"""A process that slept this long around the intent must not send: a person may have resolved the slot meanwhile."""
POLL_AGAIN = timedelta(seconds=5)
_IDENTITY_TRIES = 4
_MAX_READS_AT_ONCE = 16
_MAX_RETRIES = 100  # of an extension; the task of a later one is listed without its key
_REPORT_EVERY = 1000
_RESPONSE_SECONDS = 10.0  # the record helps, and nobody waits longer for it than for the store's usual reply
_NOTHING_MADE = (GatewayUnreachable, GatewayBusy, RequestRefused)
# CLOCK_BOOTTIME counts while the machine sleeps; where there is none the monotonic clock is the best there is.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Submission:
    """What is submitted, and by whom.

    Attributes:
        digest: Of what is sent.
        writer: The workflow id, run and attempt, for people who read the record.
        model: For people and for reconciliation.
        gateway: The origin that it is sent to; empty: not known.
        account: The fingerprint of the API key that pays; empty: not known.
    """

    digest: str
    writer: str
    model: str = ""
    gateway: str = ""
    account: str = ""


@dataclass(frozen=True)
class Doubt:
    """A submission without an outcome."""

    slot: int
    intent: Intent
    response: Response | None

    @property
    def exchange_is_over(self) -> bool:
        """Whether its writer can write no outcome any more."""
        return self.response is not None or datetime.now(UTC) >= self.intent.over_at


@dataclass(frozen=True)
class OpenSubmission:
    """A submission of any key that may have made a task which no key owns.

    Attributes:
        intent: Dated by its writer's clock.
        listed_at: By the store's clock, when its entry of the index was written, just before the intent. A writer whose
            clock is minutes off must not seem to have sent at another time than the task was made.
    """

    intent: Intent
    listed_at: datetime

    @property
    def sent_between(self) -> tuple[datetime, datetime]:
        """The earliest and the latest time at which it was sent, as one of the two clocks is right."""
        return min(self.intent.sent_at, self.listed_at), max(self.intent.sent_at, self.listed_at)


@dataclass(frozen=True)
class OpenSubmissions:
    """What is open for one model, seen from one key.

    Attributes:
        others: The other keys' submissions.
        listed_at: The key's own slots that are open, see `OpenSubmission.listed_at`.
    """

    others: tuple[OpenSubmission, ...]
    listed_at: Mapping[int, datetime]


@dataclass(frozen=True)
class PaidTask:
    """A task that the ledger knows, for a walk through all of them.

    Attributes:
        key: The generation's business key; None where the ledger's records do not name it.
        retry: Which retry of the extension made it; None for the first payment.
        task_id: The gateway's.
        digest: Of what was sent.
        model: What it was submitted with.
        sent_at: When, by its writer's clock.
    """

    key: str | None
    retry: int | None
    task_id: str
    digest: str
    model: str
    sent_at: datetime


class HeartbeatState(BaseModel):
    """What an attempt knows of its own slot, kept in its heartbeat as well as in the store.

    It closes the slot where the store failed at the very moment when the outcome was to be written.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    nonce: str
    outcome: Literal["accepted", "not_sent"]
    task_id: str | None = None
    request_id: str | None = None
    reason: str = ""
    proof: str = ""
    """Of "not_sent", which lets the key be paid for again: a secret of the attempt until it found that nothing was
    made. Any client that may write to Temporal can write heartbeats, and sees the nonce there."""

    def is_of(self, intent: Intent) -> bool:
        """Whether the attempt that made this intent wrote it."""
        if self.nonce != intent.nonce:
            return False
        return bool(self.task_id) or (self.outcome == "not_sent" and _sha256(self.proof) == intent.proof_hash)


CreateIntent = Callable[[], Awaitable[None]]
"""Must be awaited directly before the first byte of the request leaves; raises where nothing may be sent."""

Send = Callable[[CreateIntent], Awaitable[SubmittedTask]]
"""Performs the exchange, awaiting what it is given directly before the first byte."""


class SubmissionLedger:
    """The slots of all keys, in one store that all workers share."""

    def __init__(self, store: Store, *, longest_exchange: timedelta) -> None:
        """Use `store`.

        Args:
            store: Must honour create-if-absent (`Store.probe` shows it).
            longest_exchange: The longest that `send` can take, from the intent to its last byte.
        """
        self._store = store
        self._records = Records(store)
        self._window = longest_exchange + MARGIN
        self._registered = ""

    @property
    def store_url(self) -> str:
        """Where the ledger lies, without secrets."""
        return self._store.url

    def hold_to(self, registered: str) -> None:
        """From now on accept this identity only: the one that the Temporal namespace belongs to."""
        self._registered = registered

    async def known_identity(self) -> str | None:
        """Which ledger the store holds; None where it holds none.

        Raises:
            LedgerUnavailable: It cannot be read.
        """
        content = await self._records.get(IDENTITY)
        try:
            return None if content is None else Identity.model_validate_json(content).identity
        except ValidationError:
            raise LedgerUnavailable(
                f"{self._store.uri_of(IDENTITY)} is damaged: restore it from a copy of the store", needs_operator=True
            ) from None

    async def establish(self) -> str:
        """Give this ledger its identity, if it has none yet; only where the Temporal namespace belongs to none.

        `longtake.temporal.ledger_registration.claim` calls it.

        Returns:
            The identity. Every later step of a generation names it, so that no store that was swapped, emptied or
            unmounted in between is taken for one in which nothing was sent.

        Raises:
            LedgerUnavailable: The store did not take it.
        """
        try:
            await self._store.create(IDENTITY, Identity(identity=uuid.uuid4().hex).model_dump_json().encode())
        except StoreProblem as error:
            raise LedgerUnavailable(
                f"the submission ledger cannot be written: {error}", needs_operator=error.needs_operator
            ) from None
        return await self.identity()

    async def identity(self) -> str:
        """Which ledger this is.

        Raises:
            WrongLedger: It is another one than the namespace's.
            LedgerUnavailable: It cannot be read, or has none: then it is not the ledger that the worker began with.
        """
        found = await self._present_identity()
        if self._registered and found != self._registered:
            raise WrongLedger(
                f"this worker's store {self.store_url} holds the ledger {found}, and the namespace belongs to "
                f"{self._registered}: correct this worker's LONGTAKE_STORE_URL or mount; nothing is sent meanwhile",
                side=WrongSide.WORKER,
            )
        return found

    async def _present_identity(self) -> str:
        for attempt in range(_IDENTITY_TRIES):
            if attempt:  # a folder that was away for a moment looks the same
                await asyncio.sleep(0.1 * 2**attempt)
            found = await self.known_identity()
            if found is not None:
                return found
        raise LedgerUnavailable(
            "the store has no submission ledger any more: restore it or mount it; nothing is sent without it"
        )

    async def check_identity(self, expected: str) -> None:
        """Check that this is the ledger a generation began with; an empty `expected` checks nothing.

        Raises:
            WrongLedger: It is another one; says which side is wrong.
            LedgerUnavailable: It cannot be read.
        """
        if not expected or (found := await self.identity()) == expected:
            return
        if self._registered:
            raise WrongLedger(
                f"the generation began with the ledger {expected}, and namespace and worker belong to {found}: "
                "nothing is sent for it; cancel the generation, or restore the ledger that it began with",
                side=WrongSide.GENERATION,
            )
        raise WrongLedger(
            f"this worker's store holds the ledger {found}, and the generation began with {expected}: give all workers "
            "the same LONGTAKE_STORE_URL; nothing is sent meanwhile",
            side=WrongSide.UNKNOWN,
        )

    async def submit(  # noqa: PLR0913 - what is sent, and what Temporal knows of the step that sends it
        self,
        key: str,
        submission: Submission,
        send: Send,
        *,
        earlier: HeartbeatState | None = None,
        save_state: Callable[[HeartbeatState], None] = lambda _: None,
        scheduled_at: datetime | None = None,
    ) -> SubmissionReceipt:
        """Send once for this key, or find what was sent before.

        Args:
            key: The generation's business key.
            submission: What is sent.
            send: Sends it.
            earlier: What an earlier attempt of this step left in its heartbeat.
            save_state: Called with what this attempt led to, before that is written to the store.
            scheduled_at: When Temporal scheduled this step, by the server's clock: `close_unsent` stops what is older.

        Returns:
            The task, `attached` where an earlier attempt sent it. With `recorded` False the store did not take the
            outcome: write it again with `record_accepted`.

        Raises:
            GatewayUnreachable, GatewayBusy, RequestRefused: From `send`; nothing was made, the slot is closed.
            LedgerUnavailable, KeyReused, SendSuspended, SlotTaken, SubmissionInDoubt: Nothing was sent by this call.
            SubmissionClosed: Nothing was sent by this call, and it never will be.
            OutcomeUnknown: Something may have been sent, by this call or an earlier one.
        """
        free = await self._find_free_slot(key, submission.digest, earlier, scheduled_at)
        if isinstance(free, SubmissionReceipt):
            return free
        intent = _intent(submission, self._window)
        attempt = _Attempt(self._records, folder_of(key), free, intent, save_state)
        task = await attempt.run(send)
        save_state(
            HeartbeatState(nonce=intent.nonce, outcome="accepted", task_id=task.task_id, request_id=task.request_id)
        )
        receipt = SubmissionReceipt(
            task_id=task.task_id,
            submitted_at=attempt.intent.sent_at,
            slot=free,
            request_id=task.request_id,
            nonce=intent.nonce,
            gateway=submission.gateway,
            account=submission.account,
        )
        try:
            await self.record_accepted(key, receipt)
        except Exception as error:  # whatever it is, a defect of ours included
            # It is paid for and its id is known: return the id, whatever the store says. A later step writes it.
            logger.warning("ledger outcome not written", exc_info=error, extra={"task_id": receipt.task_id})
            return receipt.model_copy(update={"recorded": False})
        return receipt

    async def record_accepted(self, key: str, receipt: SubmissionReceipt, *, only: bool = False) -> None:
        """Write the outcome of a paid submission; writing the same one again does nothing.

        Args:
            key: The generation's business key.
            receipt: What the gateway accepted.
            only: Whether Temporal says so, and not the gateway itself: then a task of another key is refused.

        Raises:
            TaskOwned: `only`, and it belongs to another key; nothing was written.
            LedgerUnavailable: The store did not take it.
        """
        folder = folder_of(key)
        outcome = Outcome(
            nonce=receipt.nonce,
            outcome="accepted",
            task_id=receipt.task_id,
            request_id=receipt.request_id,
            at=datetime.now(UTC),
        )
        # Claimed first: once the ledger says whose a task is, no other key can take it, whichever process crashes.
        owner = TaskOwner(
            nonce=receipt.nonce,
            folder=folder,
            account=receipt.account,
            request_id=receipt.request_id,
            sent_at=receipt.submitted_at,
        )
        await self._records.claim(receipt.task_id, owner, only=only)
        stored = await self._records.write_outcome(folder, receipt.slot, outcome, receipt.account)
        if stored.task_id != receipt.task_id:
            # A person resolved it meanwhile. The task is ours all the same.
            await self._records.create(record_path(folder, receipt.slot, "late"), outcome)
            await self._records.remove_open_entry(folder, receipt.slot)
            logger.error(
                "a task was accepted, but its slot says something else",
                extra={"task_id": receipt.task_id, "outcome": stored.outcome, "reason": stored.reason},
            )

    async def is_untouched(self, key: str) -> bool:
        """Whether nothing was ever sent, or is in doubt, for this key.

        Raises:
            LedgerUnavailable: The store did not answer.
        """
        async for slot in self._records.slots(folder_of(key)):
            outcome = slot.outcome
            if outcome is None or outcome.outcome == "accepted" or await self._records.late(slot):
                return False
        return True

    async def outcome_of(self, key: str, slot: int) -> SubmissionReceipt | None:
        """The task of a submission; None where it made none, or has no outcome.

        Raises:
            LedgerUnavailable: The store did not answer, or has no such slot.
        """
        found = await self._slot(key, slot)
        if found.task_id:
            return found.receipt()
        return await self._records.late(found) if found.outcome else None

    async def accepted(self, key: str, digest: str = "") -> SubmissionReceipt | None:
        """The paid submission of this key; None where the ledger knows of none.

        Args:
            key: The generation's business key.
            digest: Of the request, where only its own submission counts.

        Raises:
            LedgerUnavailable: The store did not answer.
        """
        late: SubmissionReceipt | None = None
        async for slot in self._records.slots(folder_of(key)):
            if slot.outcome is None or (digest and slot.intent.digest != digest):
                continue
            if slot.task_id:
                return slot.receipt()
            late = late or await self._records.late(slot)
        return late

    async def open_slot(self, key: str) -> int | None:
        """The slot of this key that is in doubt; None where none is.

        Raises:
            LedgerUnavailable: The store did not answer.
        """
        async for slot in self._records.slots(folder_of(key)):
            if slot.outcome is None:
                return slot.number
        return None

    async def resubmissions(self, key: str) -> int:
        """How often the worker submitted this key again by itself, because the account's records showed no charge.

        Raises:
            LedgerUnavailable: The store did not answer.
        """
        slots = self._records.slots(folder_of(key))
        return sum([bool(slot.outcome and slot.outcome.not_charged) async for slot in slots])

    async def doubt(self, key: str, slot: int) -> Doubt | None:
        """What is known of a submission without an outcome; None where it has one.

        Raises:
            LedgerUnavailable: The store did not answer, or has no such slot.
        """
        found = await self._slot(key, slot)
        return None if found.outcome else Doubt(slot, found.intent, await self._records.response(found))

    async def close_unsent(
        self, key: str, *, fence: datetime, writer: str, digest: str = ""
    ) -> SubmissionReceipt | None:
        """Make sure that no submission of this key that Temporal scheduled until `fence` is sent any more.

        An attempt that was frozen on its way to the gateway finds its slot taken, and one that comes later `fence`.

        Args:
            key: The generation's business key.
            fence: By the clock of Temporal's server, as `submit`'s `scheduled_at` is; never by a worker's clock.
            writer: Who closes it, for people who read the record.
            digest: Of the request, where only its own submission counts.

        Returns:
            The paid submission, where there is one. None: nothing was made, and nothing older than `fence` will be.

        Raises:
            SubmissionInDoubt, OutcomeUnknown: Something may have been sent; nothing was closed.
            LedgerUnavailable: The store did not answer; perhaps it was closed.
        """
        folder, free, closed = folder_of(key), 1, False
        while True:
            async for slot in self._records.slots(folder):
                free, outcome = slot.number + 1, slot.outcome
                if slot.task_id:
                    return slot.receipt() if not digest or slot.intent.digest == digest else None
                if outcome is None or outcome.outcome == "accepted":
                    raise await self._doubt_error(slot)
                closed = closed or (outcome.fence is not None and outcome.fence >= fence)
            if free == MAX_SLOTS:
                raise _no_free_slot(key)
            accepted = await self.accepted(key, digest) if free > 1 else None
            if accepted is not None or closed:
                return accepted
            closing = _intent(Submission(digest, writer), timedelta(0), closing=True, fence=fence)
            with contextlib.suppress(SlotTaken):  # by another writer: the next walk sees whose
                await self._records.create(record_path(folder, free, "intent"), closing)

    async def resolve(
        self, key: str, slot: int, *, task_id: str | None, reason: str, not_charged: bool = False
    ) -> SubmissionReceipt | None:
        """Write the missing outcome of a submission in doubt.

        Args:
            key: The generation's business key.
            slot: The slot in doubt.
            task_id: What the submission made, or None where it is known to have made nothing.
            reason: Why, and who says so, for people who read the record.
            not_charged: Whether only the account's records say that it made nothing (`resubmissions` counts it).

        Returns:
            The submission as the ledger knows it now, None where it made nothing. An outcome that was there already
            stands: the writer finished after our timeout.

        Raises:
            SubmissionInDoubt: Its writer may still be alive.
            TaskOwned: The task id belongs to another generation.
            LedgerUnavailable: The store did not answer, or there is no such slot.
        """
        found = await self._slot(key, slot)
        outcome = found.outcome
        if outcome is None:
            doubt = await self._doubt_error(found)
            if isinstance(doubt, SubmissionInDoubt):
                raise doubt
            intent = found.intent
            if task_id is not None:
                # Claimed first: of two generations that are given the same task at once, one is refused.
                owner = TaskOwner(nonce=intent.nonce, folder=found.folder, account=intent.account)
                await self._records.claim(task_id, owner, only=True)
            wanted = Outcome(
                nonce=intent.nonce,
                outcome="not_sent" if task_id is None else "accepted",
                task_id=task_id,
                reason=reason,
                at=datetime.now(UTC),
                decided=task_id is None,
                not_charged=not_charged,
            )
            outcome = await self._records.write_outcome(found.folder, slot, wanted, intent.account)
        if outcome.outcome == "not_sent" or not outcome.task_id:
            return await self._records.late(found)
        return found.receipt(outcome)

    async def adopt(self, key: str, submission: Submission, task_id: str) -> SubmissionReceipt:
        """Take over a task that something else submitted: an intent and its outcome, without sending anything.

        Raises:
            TaskOwned: The task id belongs to another generation.
            KeyReused, SubmissionInDoubt, OutcomeUnknown, SlotTaken, LedgerUnavailable: See `submit`.
        """
        try:
            slot = await self._find_free_slot(key, submission.digest)
        except KeyReused:
            accepted = await self.accepted(key)
            if accepted is None or accepted.task_id != task_id:
                raise
            return accepted  # its own task, by a request that nobody has any more (`recover`)
        except OutcomeUnknown as doubt:
            # Of this very adoption, which was interrupted between its two records: nothing was ever sent for it.
            reason = f"adopted ({submission.writer})"
            slot = await self.resolve(key, doubt.slot, task_id=task_id, reason=reason) or doubt.slot
        if isinstance(slot, SubmissionReceipt):
            return slot
        folder, intent = folder_of(key), _intent(submission, timedelta(0))
        owner = TaskOwner(nonce=intent.nonce, folder=folder)  # which account paid for it is not known
        await self._records.claim(task_id, owner, only=True)
        await self._records.create(record_path(folder, slot, "intent"), intent)
        receipt = SubmissionReceipt(
            task_id=task_id,
            submitted_at=intent.sent_at,
            slot=slot,
            attached=True,
            nonce=intent.nonce,
        )
        await self.record_accepted(key, receipt)
        return receipt

    async def open_submissions(self, key: str, model: str) -> OpenSubmissions:
        """The submissions of this model that may have made a task which no key owns.

        Reads the records of what other keys have open, and none of what was closed. It finishes what a crash left half
        written there, so ask for owners (`owners_of`) after it.

        Raises:
            LedgerUnavailable: The store did not answer.
        """
        own: dict[int, datetime] = {}
        entries: list[tuple[str, int, datetime]] = []
        async for path, listed_at in self._records.list(OPEN):
            entry = OPEN_ENTRY.fullmatch(path)
            if entry and (folder := f"{PREFIX}/{entry[1]}") != folder_of(key):
                entries.append((folder, int(entry[2]), listed_at))
            elif entry:
                own[int(entry[2])] = listed_at
        intents = await _at_once(self._open_intent(folder, number) for folder, number, _ in entries)
        others = [
            OpenSubmission(intent, listed_at)
            for intent, (_, _, listed_at) in zip(intents, entries, strict=True)
            if intent is not None and intent.model == model
        ]
        return OpenSubmissions(tuple(others), own)

    async def _open_intent(self, folder: str, number: int) -> Intent | None:
        """The intent of an entry of the index, if it may have made a task that nobody knows; else the entry goes."""
        slot = await self._records.slot(folder, number)
        if slot is None:
            return None  # its writer may be just about to make it: the entry stays
        intent, outcome = slot.intent, slot.outcome
        if outcome is None or (outcome.decided and await self._records.late(slot) is None):
            return intent
        if outcome.task_id:
            # Its writer may have died before it did this.
            sent_at = intent.sent_at if outcome.request_id else None  # without one the ledger may have adopted it
            owner = TaskOwner(
                nonce=outcome.nonce,
                folder=folder,
                account=intent.account,
                request_id=outcome.request_id,
                sent_at=sent_at,
            )
            await self._records.claim(outcome.task_id, owner)
        await self._records.remove_open_entry(folder, number)
        return None

    async def check_owner(self, key: str, task_id: str) -> None:
        """Check that a task is not another generation's; a task that nobody has claimed yet is nobody's.

        Raises:
            TaskOwned: It is another's, and no submission of this key made it.
            LedgerUnavailable: The store did not answer.
        """
        owner = await self._records.read(TaskOwner, owner_path(task_id))
        if owner is None or owner.folder == folder_of(key):
            return
        # A gateway may answer two submissions with one task: both paid for it.
        async for slot in self._records.slots(folder_of(key)):
            late = await self._records.late(slot)
            if task_id in {slot.task_id, late and late.task_id}:
                return
        raise TaskOwned(f"the task {task_id} belongs to another generation")

    async def owners_of(self, task_ids: Iterable[str]) -> dict[str, TaskOwner]:
        """Which of these tasks belong to a generation of this ledger, and who paid for each.

        Raises:
            LedgerUnavailable: The store did not answer.
        """
        asked = sorted(set(task_ids))
        owners = await _at_once(self._records.read(TaskOwner, owner_path(task_id)) for task_id in asked)
        return {task_id: owner for task_id, owner in zip(asked, owners, strict=True) if owner is not None}

    async def paid_tasks(
        self, *, since: datetime, key_of: Callable[[str], str], on_progress: Callable[[int], None] = lambda _: None
    ) -> AsyncIterator[PaidTask]:
        """Every task that was paid for or adopted since then, in no order. Reads only, a few records at a time.

        Args:
            since: Older ones are left out.
            key_of: The business key that a workflow id stands for.
            on_progress: Called with the number of tasks that were seen, older ones included.

        Raises:
            LedgerUnavailable: The store did not answer.
        """
        seen = 0
        batch: list[str] = []
        # A task is claimed when its outcome is written, so an older claim is of an older task. Clocks may differ.
        written_since = since - MARGIN
        async for path, written_at in self._records.list(OWNERS):
            seen += 1
            if written_at >= written_since:
                batch.append(path)
            if len(batch) == _MAX_READS_AT_ONCE:
                for task in await self._paid_tasks(batch, since, key_of):
                    yield task
                batch.clear()
            if seen % _REPORT_EVERY == 0:
                on_progress(seen)
        for task in await self._paid_tasks(batch, since, key_of):
            yield task
        on_progress(seen)

    async def first_paid(self, key: str, *, key_of: Callable[[str], str]) -> PaidTask | None:
        """The first payment of this key, as `paid_tasks` gives it; None where the ledger knows of none.

        Raises:
            LedgerUnavailable: The store did not answer.
        """
        accepted = await self.accepted(key)
        return None if accepted is None else await self._paid_task(owner_path(accepted.task_id), key_of)

    async def _paid_tasks(self, paths: list[str], since: datetime, key_of: Callable[[str], str]) -> list[PaidTask]:
        found = await _at_once(self._paid_task(path, key_of) for path in paths)
        return [task for task in found if task is not None and task.sent_at >= since]

    async def _paid_task(self, path: str, key_of: Callable[[str], str]) -> PaidTask | None:
        """The task that a claim is about; None where its outcome was never written."""
        owner = await self._records.read(TaskOwner, path)
        if owner is None:
            return None
        async for slot in self._records.slots(owner.folder):
            late = await self._records.late(slot)
            for task_id in (slot.task_id, late and late.task_id):
                if task_id and owner_path(task_id) == path:
                    key, retry = _key_and_retry(slot, key_of)
                    return PaidTask(key, retry, task_id, slot.intent.digest, slot.intent.model, slot.intent.sent_at)
        return None

    async def _slot(self, key: str, number: int) -> Slot:
        slot = await self._records.slot(folder_of(key), number)
        if slot is None:
            raise LedgerUnavailable(f"the ledger has no slot {number} for {key!r}: check LONGTAKE_STORE_URL")
        return slot

    async def _find_free_slot(
        self, key: str, digest: str, earlier: HeartbeatState | None = None, scheduled_at: datetime | None = None
    ) -> int | SubmissionReceipt:
        """The first free slot, or the accepted submission.

        Raises:
            KeyReused, SubmissionClosed, SubmissionInDoubt, OutcomeUnknown, LedgerUnavailable: See `submit`.
        """
        free = 1
        fence: datetime | None = None
        async for slot in self._records.slots(folder_of(key)):
            free, outcome = slot.number + 1, slot.outcome
            if earlier and earlier.is_of(slot.intent):
                known = await self._apply(earlier, key, slot)
                if isinstance(known, SubmissionReceipt):
                    return known
                outcome = known
            if outcome is not None and outcome.outcome == "not_sent":
                if outcome.fence is not None:
                    fence = max(fence or outcome.fence, outcome.fence)
                continue  # whatever it was, nothing was made: the key is still free
            if slot.intent.digest != digest:
                raise KeyReused(f"the key {key!r} was already used for another request: use a new key for this one")
            if outcome is None or not outcome.task_id:
                raise await self._doubt_error(slot)
            return slot.receipt(outcome)
        if free == MAX_SLOTS:
            raise _no_free_slot(key)
        # What came late was paid all the same: it is not sent again.
        accepted = await self.accepted(key, digest) if free > 1 else None
        if accepted is None and fence and scheduled_at and scheduled_at <= fence:
            raise SubmissionClosed(
                f"what was scheduled until {fence:%Y-%m-%d %H:%M:%S} UTC was closed: nothing was sent"
            )
        return accepted or free

    async def _apply(self, earlier: HeartbeatState, key: str, slot: Slot) -> Outcome | SubmissionReceipt:
        """What our own slot led to, by the heartbeat of the attempt that it belongs to."""
        outcome = Outcome(at=datetime.now(UTC), **earlier.model_dump())  # without the proof, which it ignores
        if not earlier.task_id:
            return slot.outcome or await self._records.write_outcome(
                slot.folder, slot.number, outcome, slot.intent.account
            )
        if slot.outcome is not None and slot.outcome.task_id == earlier.task_id:
            return slot.outcome
        # It is paid for and its id is known: hand the id on, whatever the store or a person says.
        receipt = slot.receipt(outcome)
        try:
            await self.record_accepted(key, receipt, only=True)
        except LedgerError:
            return receipt.model_copy(update={"recorded": False})
        return receipt

    async def _doubt_error(self, slot: Slot) -> SubmissionInDoubt | OutcomeUnknown:
        """Whether the writer of a slot without an outcome may still be alive."""
        intent = slot.intent
        response = await self._records.response(slot)
        wait = intent.over_at - datetime.now(UTC)
        if response is None and wait > timedelta(0):
            return SubmissionInDoubt(
                f"an earlier attempt ({intent.writer}) was sending at {intent.sent_at:%H:%M:%S} UTC and may still be; "
                f"waiting {wait.total_seconds():.0f} s for its outcome",
                min(wait, POLL_AGAIN),
            )
        left = f"got no response that says what was made: {response.reason}" if response else "left no outcome"
        return OutcomeUnknown(
            f"an earlier attempt ({intent.writer}) sent at {intent.sent_at:%Y-%m-%d %H:%M:%S} UTC and {left}",
            slot=slot.number,
            sent_at=intent.sent_at,
            response=response,
        )


class _Attempt:
    """One try to send in one slot."""

    def __init__(
        self, records: Records, folder: str, slot: int, intent: Intent, save_state: Callable[[HeartbeatState], None]
    ) -> None:
        self._records = records
        self._folder = folder
        self._slot = slot
        self._proof = uuid.uuid4().hex
        self.intent = intent.model_copy(update={"proof_hash": _sha256(self._proof)})
        self._save_state = save_state
        self._tried = False
        self._intent_created = False
        self._began = time.clock_gettime(_CLOCK)

    async def run(self, send: Send) -> SubmittedTask:
        """Send, and close the slot where nothing can have been made."""
        try:
            task = await send(self._create_intent)
        except _NOTHING_MADE as error:
            await self._close(type(error).__name__)
            raise
        except BaseException as error:
            if not self._intent_created:
                await self._close(type(error).__name__)
                raise
            # The intent exists, and then anything else, cancellation and defects included: the request may have left.
            raise await self._outcome_unknown(error) from None
        if not self._intent_created:
            raise RuntimeError("a submission got a response although it never asked whether it may be sent")
        return task

    async def _create_intent(self) -> None:
        if self._tried:
            raise RuntimeError("one submission, one transmission: a second one was refused")
        self._tried = True
        self.intent = self.intent.model_copy(update={"sent_at": datetime.now(UTC)})
        started = time.clock_gettime(_CLOCK)
        if started - self._began > _MAX_APPROACH_SECONDS:
            raise SendSuspended("the worker was stopped on its way to the gateway: nothing was sent")
        entry = OpenEntry(nonce=self.intent.nonce, model=self.intent.model, sent_at=self.intent.sent_at)
        with contextlib.suppress(SlotTaken):  # of an attempt that got no further: the entry is there
            await self._records.create(open_path(self._folder, self._slot), entry)
        await self._records.create(self._path("intent"), self.intent)
        if time.clock_gettime(_CLOCK) - started > _STALE_AFTER_SECONDS:
            raise SendSuspended(
                f"the worker was stopped just before sending, or the store took more than {_STALE_AFTER_SECONDS:.0f} s "
                "to write a record: nothing was sent"
            )
        self._intent_created = True

    async def _outcome_unknown(self, error: BaseException) -> OutcomeUnknown:
        """Write that the exchange is over, which spares others the wait for the end of the window."""
        cause = error if isinstance(error, GatewayError) else None
        reason = f"{type(error).__name__}: {error}"[:500]
        response = Response(
            nonce=self.intent.nonce,
            at=datetime.now(UTC),
            status=cause and cause.status,
            request_id=cause and cause.request_id,
            reason=reason,
            excerpt=((cause and cause.excerpt) or "")[:MAX_EXCERPT_CHARS],
        )
        if isinstance(error, Exception | asyncio.CancelledError):  # else the process is ending
            try:
                async with asyncio.timeout(_RESPONSE_SECONDS):
                    await self._records.create(self._path("response"), response)
            except (LedgerError, TimeoutError, asyncio.CancelledError) as problem:
                logger.warning("ledger response not written", exc_info=problem)
        return OutcomeUnknown(reason, slot=self._slot, sent_at=self.intent.sent_at, cause=cause, response=response)

    async def _close(self, reason: str) -> None:
        """Write "not_sent", if the intent exists and is ours; otherwise there is nothing to close."""
        if not self._tried:
            return
        self._save_state(HeartbeatState(nonce=self.intent.nonce, outcome="not_sent", reason=reason, proof=self._proof))
        try:
            stored = await self._records.read(Intent, self._path("intent"))
            if stored is None or stored.nonce != self.intent.nonce:
                return
            outcome = Outcome(nonce=self.intent.nonce, outcome="not_sent", reason=reason, at=datetime.now(UTC))
            await self._records.write_outcome(self._folder, self._slot, outcome, self.intent.account)
        except LedgerError as error:
            # The slot stays open: the next attempt finds it in doubt, which is the safe side.
            logger.warning("ledger slot not closed", exc_info=error)

    def _path(self, name: str) -> str:
        return record_path(self._folder, self._slot, name)


def _intent(
    submission: Submission, window: timedelta, *, closing: bool = False, fence: datetime | None = None
) -> Intent:
    return Intent(
        nonce=uuid.uuid4().hex,
        digest=submission.digest,
        sent_at=datetime.now(UTC),
        window_seconds=window.total_seconds(),
        writer=submission.writer,
        model=submission.model,
        gateway=submission.gateway,
        account=submission.account,
        closing=closing,
        fence=fence,
    )


def _sha256(proof: str) -> str:
    return hashlib.sha256(proof.encode(errors="replace")).hexdigest()


def _no_free_slot(key: str) -> LedgerUnavailable:
    return LedgerUnavailable(f"{MAX_SLOTS} submissions of {key!r} were refused or not sent: use a new key")


async def _at_once(reads: Iterable[Awaitable[_T]]) -> list[_T]:
    """Await them all, a few at a time; the first error counts."""
    gate = asyncio.Semaphore(_MAX_READS_AT_ONCE)

    async def read(one: Awaitable[_T]) -> _T:
        async with gate:
            return await one

    return list(await asyncio.gather(*map(read, reads)))


def _key_and_retry(slot: Slot, key_of: Callable[[str], str]) -> tuple[str | None, int | None]:
    """Key and number of the extension's retry: the writer names its workflow, the folder's hash proves it."""
    workflow_id, _, _ = slot.intent.writer.partition("/")
    key = key_of(workflow_id)
    if folder_of(key) == slot.folder:
        return key, None
    for number in range(1, _MAX_RETRIES + 1):
        if folder_of(extension_key(key, number)) == slot.folder:
            return key, number
    return None, None
