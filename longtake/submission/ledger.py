"""The write-once record of every paid submission: who may send, and what came of it ("late intent").

The gateway has no idempotency, so this is where "never pay twice" is kept. For each generation's business key there
is a row of slots in the store, every record created once, atomically, and never changed or deleted:

    submit/<hash of the key>/<n>/intent     "I am about to send": made after connect and TLS, before the first byte
    submit/<hash of the key>/<n>/response   "my exchange is over, and what came back does not say what was made"
    submit/<hash of the key>/<n>/outcome    "accepted" with the task id, or "not_sent"
    submit/<hash of the key>/<n>/late       an owner's own task id, where a person had settled the slot before it came
    submit/owners/<hash of a task id>       whose a task is; of the id in lower case
    submit/identity                         which ledger this is: made once, when the first worker starts
    open/<hash of the key>.<n>              an index of the slots without an outcome: made before the intent, deleted
                                            when the outcome stands

Whoever wants to submit walks the slots. No intent: the slot is free. Outcome "accepted": that is the answer, nothing
is sent. Outcome "not_sent": the next slot, unless its owner came back later with a task. An intent without an outcome
belongs to somebody who may still be alive: it is waited for until the longest exchange must be over, or its response
says that it is, and is in doubt after that. Because the records hang on the key, not on a workflow run or an activity
attempt, no retry, reset, termination or repeated start gets around them.

Whoever must be sure that nothing will be sent any more closes the free slot with an intent of its own
(`close_unsent`). That one record is the whole closing, so no crash leaves half of it. It holds a fence: no submission
that Temporal scheduled before it is sent by any later slot either.

An intent is made as late as possible, so that a connection that fails leaves no record, and a crash before the first
byte is simply sent again. What remains in doubt is what the gateway received and did not answer.

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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from longtake.gateway.errors import GatewayBusy, GatewayError, GatewayUnreachable, RequestRefused
from longtake.models import extension_key
from longtake.storage import Store, StoreProblem

logger = logging.getLogger(__name__)

PREFIX = "submit"
OPEN = "open"
"""Where the index of what has no outcome yet lies. No part of `submit/`, where nothing is ever deleted."""
IDENTITY = f"{PREFIX}/identity"
"""Where the store keeps which ledger it holds."""
MARGIN = timedelta(seconds=30)
"""Added to the longest exchange before its owner is given up: clocks differ, and a reply takes time to be written."""

_MAX_APPROACH_SECONDS = 55.0
"""From the walk through the slots to the first byte: images are read and a connection is made. An attempt that took
longer was stopped on the way, and what the ledger said then may not hold any more."""
_STALE_AFTER_SECONDS = 5.0
"""A process that slept this long around the intent must not send: somebody may have settled the slot meanwhile."""
POLL_AGAIN = timedelta(seconds=5)
_MAX_SLOTS = 1000
_WRITE_TRIES = 4
_MAX_READS_AT_ONCE = 16
_MAX_RETRIES = 100  # of an extension; whoever allows more is told of the task without its key
_REPORT_EVERY = 1000
_RESPONSE_SECONDS = 10.0  # the record helps, and nobody waits longer for it than for the store's usual answer
MAX_EXCERPT_CHARS = 500
"""Of what a gateway answered, in `response`."""
_NOTHING_MADE = (GatewayUnreachable, GatewayBusy, RequestRefused)
# CLOCK_BOOTTIME counts while the machine sleeps; where there is none the monotonic clock is the best there is.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class LedgerError(Exception):
    """The root of what this module raises; nothing was sent unless a subclass says otherwise."""


class LedgerUnavailable(LedgerError):
    """The store did not answer, refused, or is another one than before; nothing was sent.

    Attributes:
        needs_operator: True where waiting does not mend it: a permission, a wrong URL, a store that was emptied.
    """

    def __init__(self, message: str, *, needs_operator: bool = False) -> None:
        super().__init__(message)
        self.needs_operator = needs_operator


class WrongSide(StrEnum):
    """Which side has another ledger than it should."""

    WORKER = "worker"
    """This worker (or client) has another store than the one that the namespace belongs to."""
    GENERATION = "generation"
    """The worker's store is the namespace's; the generation began with another ledger."""
    UNKNOWN = "unknown"
    """Nothing says which ledger the namespace belongs to."""


class WrongLedger(LedgerUnavailable):
    """The store holds another ledger than the one that is meant; nothing was sent. Another worker may have the right.

    Attributes:
        side: Whose ledger is the wrong one.
    """

    def __init__(self, message: str, *, side: WrongSide) -> None:
        super().__init__(message)
        self.side = side


class KeyReused(LedgerError):
    """The key was used for another request; nothing was sent."""


class TaskOwned(LedgerError):
    """The task id belongs to another generation; nothing was changed."""


class SendSuspended(LedgerError):
    """The process was stopped or asleep just before sending; nothing was sent, and the slot is closed."""


class SlotTaken(LedgerError):
    """Another attempt took the slot in the same moment; nothing was sent by this one."""


class SubmissionClosed(LedgerError):
    """It was closed before this attempt came to send: nothing was sent, and this attempt never will be."""


class SubmissionInDoubt(LedgerError):
    """An earlier attempt sent, or was about to, and may still be alive; nothing was sent by this one.

    Attributes:
        wait: When to look again for its outcome.
    """

    def __init__(self, message: str, wait: timedelta) -> None:
        super().__init__(message)
        self.wait = wait


class OutcomeUnknown(LedgerError):
    """A request may have reached the gateway, and no answer says what came of it.

    Attributes:
        slot: The slot that it holds.
        sent_at: When it left, by its owner's clock.
        cause: What the gateway's boundary said, where this very attempt sent it.
        request_id: The gateway's name for the request, where it answered.
        status: The HTTP status, where it answered.
        excerpt: Of the answer, redacted; empty where there was none.
    """

    def __init__(
        self,
        message: str,
        *,
        slot: int,
        sent_at: datetime,
        cause: GatewayError | None = None,
        response: "Response | None" = None,
    ) -> None:
        super().__init__(message)
        self.slot = slot
        self.sent_at = sent_at
        self.cause = cause
        self.request_id = response.request_id if response else None
        self.status = response.status if response else None
        self.excerpt = response.excerpt if response else ""


# What is read is calculated with: a time without a zone, or at the end of all times, would end the step as a defect of
# ours, and that of every generation whose reconciliation reads the record.
_Moment: TypeAlias = Annotated[
    AwareDatetime, Field(ge=datetime(2000, 1, 1, tzinfo=UTC), le=datetime(2200, 1, 1, tzinfo=UTC))
]
_MAX_WINDOW_SECONDS = 31 * 86_400


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    nonce: str
    """Of the attempt that the slot belongs to."""


class TaskOwner(_Record):
    """Whose a task is."""

    folder: str
    """Of the key, in the ledger."""
    account: str = ""
    """See `Intent.account`."""
    request_id: str | None = None
    """The gateway's name for the POST that made it; None: not known."""
    sent_at: datetime | None = None
    """When that POST left, by its owner's clock; None where this ledger only took the task over."""


class _Identity(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    identity: str


_R = TypeVar("_R", bound=_Record)
_T = TypeVar("_T")


class Intent(_Record):
    """Somebody is about to send."""

    digest: str
    """`catalog.request_digest` of what is sent."""
    sent_at: _Moment
    window_seconds: float = Field(ge=0, le=_MAX_WINDOW_SECONDS)
    """How long after `sent_at` its owner may still be alive."""
    owner: str
    """The workflow id, run and attempt: for people."""
    model: str = ""
    gateway: str = ""
    """The origin that it is sent to; empty: not known."""
    account: str = ""
    """Which key pays: its fingerprint (`GatewayClient.account`); empty: not known."""
    closing: bool = False
    """True where nothing is sent for it: it keeps others from sending, and needs no outcome."""
    fence: _Moment | None = None
    """Of a closing one: what Temporal scheduled until then is not sent any more."""
    proof_hash: str = ""
    """SHA-256 of `Evidence.proof`."""

    @property
    def over_at(self) -> datetime:
        """When it must have been over."""
        return self.sent_at + timedelta(seconds=self.window_seconds)


class Outcome(_Record):
    """What came of an intent."""

    outcome: Literal["accepted", "not_sent"]
    task_id: str | None = None
    request_id: str | None = None
    reason: str = ""
    at: _Moment
    decided: bool = False
    """True where a person, or the account's records, said "not sent": it counts, and yet a task may turn up that this
    submission made."""
    not_charged: bool = False
    """True where nobody but the account's records said so, and the worker submitted again by itself."""
    fence: _Moment | None = None
    """See `Intent.fence`."""


class Response(_Record):
    """The exchange of an intent is over, and what came back does not say whether anything was made."""

    at: _Moment
    status: int | None = None
    request_id: str | None = None
    reason: str = ""
    excerpt: str = ""
    """Of the answer, redacted, at most `MAX_EXCERPT_CHARS`: an id that no program can read may be in it."""


class _OpenEntry(_Record):
    """One entry of the index, for people: whoever reads the index goes by the slot's own records."""

    model: str = ""
    sent_at: _Moment


@dataclass(frozen=True)
class Doubt:
    """A submission without an outcome."""

    slot: int
    intent: Intent
    response: Response | None

    @property
    def exchange_is_over(self) -> bool:
        """Whether its owner will surely bring nothing any more."""
        return self.response is not None or datetime.now(UTC) >= self.intent.over_at


@dataclass(frozen=True)
class Accepted:
    """A paid submission whose task id is known.

    Attributes:
        attached: True where an earlier attempt sent it.
        recorded: False where the store did not take the outcome: write it again with `record_accepted`.
        gateway: The origin where the task lives; empty where the ledger does not know.
        account: The fingerprint of the key that paid; empty where the ledger does not know.
    """

    task_id: str
    slot: int
    sent_at: datetime
    request_id: str | None = None
    attached: bool = False
    recorded: bool = True
    nonce: str = ""
    gateway: str = ""
    account: str = ""


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


class Evidence(BaseModel):
    """What an attempt knows of its own slot, kept outside the store as well (in its heartbeat).

    It closes the slot where the store failed at the very moment when the outcome was to be written.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    nonce: str
    outcome: Literal["accepted", "not_sent"]
    task_id: str | None = None
    request_id: str | None = None
    reason: str = ""
    proof: str = ""
    """Of "not_sent", which lets the key be paid for: what only the attempt knew until it found that nothing was made.
    Heartbeats can be written by whoever may write to Temporal, and the nonce is seen there."""

    def is_of(self, intent: Intent) -> bool:
        """Whether the attempt that made this intent says so."""
        if self.nonce != intent.nonce:
            return False
        return bool(self.task_id) or (self.outcome == "not_sent" and _sha256(self.proof) == intent.proof_hash)


CreateIntent = Callable[[], Awaitable[None]]
"""Must be awaited directly before the first byte of the request leaves; raises where nothing may be sent."""


@dataclass(frozen=True)
class Answer:
    """What a send brought back."""

    task_id: str
    request_id: str | None = None


class SubmissionLedger:
    """The slots of all keys, in one store that all workers share."""

    def __init__(self, store: Store, *, longest_exchange: timedelta) -> None:
        """Use `store`.

        Args:
            store: Must honour create-if-absent (`Store.probe` shows it).
            longest_exchange: The longest that `send` can take, from the intent to its last byte.
        """
        self._store = store
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
        try:
            content = await self._store.get(IDENTITY)
            return None if content is None else _Identity.model_validate_json(content).identity
        except StoreProblem as error:
            raise LedgerUnavailable(
                f"the submission ledger cannot be read: {error}", needs_operator=error.needs_operator
            ) from None
        except ValidationError:
            raise LedgerUnavailable(
                f"{self._store.uri_of(IDENTITY)} is damaged: restore it from a copy of the store", needs_operator=True
            ) from None

    async def establish(self) -> str:
        """Give this ledger its identity, if it has none yet; only where the Temporal namespace belongs to none.

        `longtake.temporal.ledger_registration.claim` is what calls it.

        Returns:
            The identity: every later step of a generation names it, so that no store that was swapped, emptied or
            unmounted in between is taken for one in which nothing was sent.

        Raises:
            LedgerUnavailable: The store did not take it.
        """
        try:
            await self._store.create(IDENTITY, _Identity(identity=uuid.uuid4().hex).model_dump_json().encode())
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
                f"{self._registered}: mend this worker's LONGTAKE_STORE_URL or mount; nothing is sent meanwhile",
                side=WrongSide.WORKER,
            )
        return found

    async def _present_identity(self) -> str:
        for attempt in range(_WRITE_TRIES):
            if attempt:  # a folder that was away for a moment looks the same
                await asyncio.sleep(0.1 * 2**attempt)
            found = await self.known_identity()
            if found is not None:
                return found
        raise LedgerUnavailable(
            "the store has no submission ledger any more: restore it or mount it; nothing is sent without it"
        )

    async def check_identity(self, expected: str) -> None:
        """See that this is the ledger a generation began with; an empty `expected` is one from before there were any.

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

    async def submit(  # noqa: PLR0913 - each is a fact of its own, named at the one call
        self,
        key: str,
        *,
        digest: str,
        send: Callable[[CreateIntent], Awaitable[Answer]],
        owner: str,
        model: str = "",
        evidence: Evidence | None = None,
        on_evidence: Callable[[Evidence], None] = lambda _: None,
        gateway: str = "",
        account: str = "",
        scheduled_at: datetime | None = None,
    ) -> Accepted:
        """Send once for this key, or find what was sent before.

        Args:
            key: The generation's business key.
            digest: What would be sent.
            send: Performs the exchange, awaiting the arm it is given directly before the first byte.
            owner: Who we are, for people who read the record.
            model: For people and for reconciliation.
            evidence: What an earlier attempt of ours left in its heartbeat.
            on_evidence: Told at once what came of it, before that is written to the store.
            gateway: The origin that `send` sends to.
            account: The fingerprint of the key that pays.
            scheduled_at: When Temporal scheduled this step, by the server's clock: `close_unsent` stops what is older.

        Raises:
            GatewayUnreachable, GatewayBusy, RequestRefused: From `send`; nothing was made, the slot is closed.
            LedgerUnavailable, KeyReused, SendSuspended, SlotTaken, SubmissionInDoubt: Nothing was sent by this call.
            SubmissionClosed: Nothing was sent by this call, and it never will be.
            OutcomeUnknown: Something may have been sent, by this call or an earlier one.
        """
        slot_or_accepted = await self._find_slot(key, digest, evidence, scheduled_at)
        if isinstance(slot_or_accepted, Accepted):
            return slot_or_accepted
        intent = Intent(
            nonce=uuid.uuid4().hex,
            digest=digest,
            sent_at=datetime.now(UTC),
            window_seconds=self._window.total_seconds(),
            owner=owner,
            model=model,
            gateway=gateway,
            account=account,
        )
        attempt = _Attempt(self, key, slot_or_accepted, intent, on_evidence)
        answer = await attempt.run(send)
        on_evidence(
            Evidence(nonce=intent.nonce, outcome="accepted", task_id=answer.task_id, request_id=answer.request_id)
        )
        accepted = Accepted(
            answer.task_id,
            attempt.slot,
            attempt.intent.sent_at,
            request_id=answer.request_id,
            nonce=intent.nonce,
            gateway=gateway,
            account=account,
        )
        try:
            await self.record_accepted(key, accepted)
        except Exception as error:  # whatever it is, a defect of ours included
            # It is paid for and its id is known: hand the id on, whatever the store says. A later step writes it.
            logger.warning("ledger outcome not written", exc_info=error, extra={"task_id": answer.task_id})
            return replace(accepted, recorded=False)
        return accepted

    async def record_accepted(self, key: str, accepted: Accepted, *, only: bool = False) -> None:
        """Write the outcome of a paid submission; writing the same one again does nothing.

        Args:
            key: The generation's business key.
            accepted: What the gateway answered.
            only: Whether Temporal says so, and not the gateway itself: a task that is another's is not believed then.

        Raises:
            TaskOwned: It is another's; nothing was written.
            LedgerUnavailable: The store did not take it.
        """
        outcome = Outcome(
            nonce=accepted.nonce,
            outcome="accepted",
            task_id=accepted.task_id,
            request_id=accepted.request_id,
            at=datetime.now(UTC),
        )
        # Claimed first: once the ledger says whose a task is, nobody else can take it, whoever crashes in between.
        await self._claim(
            key,
            accepted.task_id,
            accepted.nonce,
            accepted.account,
            only=only,
            request_id=accepted.request_id,
            sent_at=accepted.sent_at,
        )
        stored = await self._conclude(key, accepted.slot, outcome, accepted.account)
        if stored.task_id != accepted.task_id:
            # A person settled it meanwhile. The task is ours all the same.
            await self._create(_path(key, accepted.slot, "late"), outcome)
            await self._forget(key, accepted.slot)
            logger.error(
                "a task was accepted, but its slot says something else",
                extra={"task_id": accepted.task_id, "outcome": stored.outcome, "reason": stored.reason},
            )

    async def is_untouched(self, key: str) -> bool:
        """Whether nothing was ever sent, or is in doubt, for this key.

        Raises:
            LedgerUnavailable: The store did not answer.
        """
        for slot in range(1, _MAX_SLOTS):
            intent = await self._read(Intent, _path(key, slot, "intent"))
            if intent is None:
                return True
            outcome = await self._outcome(key, slot, intent)
            if outcome is None or outcome.outcome == "accepted" or await self._late(key, slot, intent):
                return False
        return True

    async def outcome_of(self, key: str, slot: int) -> tuple[Accepted | None, bool]:
        """What is known of a submission: the task, if it was accepted, and whether there is any outcome.

        Raises:
            LedgerUnavailable: The store did not answer, or has no such slot.
        """
        intent, outcome = await self._slot(key, slot)
        if outcome is None:
            return None, False
        if outcome.outcome == "not_sent" or not outcome.task_id:
            return await self._late(key, slot, intent), True
        return _accepted(slot, intent, outcome), True

    async def accepted(self, key: str, digest: str = "") -> Accepted | None:
        """The paid submission of this key; None where the ledger knows of none.

        Args:
            key: The generation's business key.
            digest: Of the request, where only its own submission counts.

        Raises:
            LedgerUnavailable: The store did not answer.
        """
        late: Accepted | None = None
        for slot in range(1, _MAX_SLOTS):
            intent = await self._read(Intent, _path(key, slot, "intent"))
            if intent is None:
                break
            outcome = await self._outcome(key, slot, intent)
            if outcome is None or (digest and intent.digest != digest):
                continue
            if outcome.outcome == "accepted" and outcome.task_id:
                return _accepted(slot, intent, outcome)
            late = late or await self._late(key, slot, intent)
        return late

    async def open_slot(self, key: str) -> int | None:
        """The slot of this key that is in doubt; None where none is.

        Raises:
            LedgerUnavailable: The store did not answer.
        """
        for slot in range(1, _MAX_SLOTS):
            intent = await self._read(Intent, _path(key, slot, "intent"))
            if intent is None:
                return None
            if await self._outcome(key, slot, intent) is None:
                return slot
        return None

    async def resubmissions(self, key: str) -> int:
        """How often this key was submitted again by itself, because the account's records showed no charge.

        Raises:
            LedgerUnavailable: The store did not answer.
        """
        count = 0
        for slot in range(1, _MAX_SLOTS):
            intent = await self._read(Intent, _path(key, slot, "intent"))
            if intent is None:
                break
            outcome = await self._outcome(key, slot, intent)
            count += bool(outcome and outcome.not_charged)
        return count

    async def doubt(self, key: str, slot: int) -> Doubt | None:
        """What is known of a submission without an outcome; None where it has one.

        Raises:
            LedgerUnavailable: The store did not answer, or has no such slot.
        """
        intent, outcome = await self._slot(key, slot)
        return None if outcome else Doubt(slot, intent, await self._response(key, slot, intent))

    async def close_unsent(self, key: str, *, fence: datetime, owner: str, digest: str = "") -> Accepted | None:
        """Make sure that no submission of this key that Temporal scheduled until `fence` is sent any more.

        An attempt that was frozen on its way to the gateway finds its slot taken, and one that comes later `fence`.

        Args:
            key: The generation's business key.
            fence: By the clock of Temporal's server, as `submit`'s `scheduled_at` is; never by a worker's clock.
            owner: Who closes it, for people who read the record.
            digest: Of the request, where only its own submission counts.

        Returns:
            The paid submission, where there is one. None: nothing was made, and nothing older than `fence` will be.

        Raises:
            SubmissionInDoubt, OutcomeUnknown: Something may have been sent; nothing was closed.
            LedgerUnavailable: The store did not answer; perhaps it was closed.
        """
        closed = False
        for slot in range(1, _MAX_SLOTS):
            intent = await self._read(Intent, _path(key, slot, "intent"))
            if intent is None:
                accepted = await self.accepted(key, digest) if slot > 1 else None
                if accepted is not None or closed:
                    return accepted
                closing = Intent(
                    nonce=uuid.uuid4().hex,
                    digest=digest,
                    sent_at=datetime.now(UTC),
                    window_seconds=0,
                    owner=owner,
                    closing=True,
                    fence=fence,
                )
                with contextlib.suppress(SlotTaken):
                    await self._create(_path(key, slot, "intent"), closing)
                intent = await self._read(Intent, _path(key, slot, "intent")) or closing
            outcome = await self._outcome(key, slot, intent)
            if outcome is None or (outcome.outcome == "accepted" and not outcome.task_id):
                raise await self._why_in_doubt(key, slot, intent)
            if outcome.outcome == "accepted":
                return _accepted(slot, intent, outcome) if not digest or intent.digest == digest else None
            closed = closed or (outcome.fence is not None and outcome.fence >= fence)
        raise LedgerUnavailable(f"{_MAX_SLOTS} submissions of {key!r} were refused or not sent: use a new key")

    async def resolve(  # noqa: PLR0913 - each is a fact of its own, named at the call
        self,
        key: str,
        slot: int,
        *,
        task_id: str | None,
        reason: str,
        owner: str = "",
        not_charged: bool = False,
    ) -> Accepted | None:
        """Write the missing outcome of a submission in doubt: somebody knows it now.

        Args:
            key: The generation's business key.
            slot: The slot in doubt.
            task_id: What the submission brought, or None where it is known to have made nothing.
            reason: Why, for people who read the record.
            owner: Of the one who settles it.
            not_charged: Whether nobody but the account's records says that it made nothing (`resubmissions` counts it).

        Returns:
            The submission as the ledger knows it now, None where it made nothing. An outcome that was there already
            stands: its owner was slower than we were patient.

        Raises:
            SubmissionInDoubt: Its owner may still be alive.
            TaskOwned: The task id belongs to another generation.
            LedgerUnavailable: The store did not answer, or there is no such slot.
        """
        intent, outcome = await self._slot(key, slot)
        if outcome is None:
            doubt = await self._why_in_doubt(key, slot, intent)
            if isinstance(doubt, SubmissionInDoubt):
                raise doubt
            if task_id is not None:
                # Claimed first: of two generations that are given the same task at once, one is refused.
                await self._claim(key, task_id, intent.nonce, intent.account, only=True)
            wanted = Outcome(
                nonce=intent.nonce,
                outcome="not_sent" if task_id is None else "accepted",
                task_id=task_id,
                reason=f"{reason} ({owner})" if owner else reason,
                at=datetime.now(UTC),
                decided=task_id is None,
                not_charged=not_charged,
            )
            outcome = await self._conclude(key, slot, wanted, intent.account)
        if outcome.outcome == "not_sent" or not outcome.task_id:
            return await self._late(key, slot, intent)
        return _accepted(slot, intent, outcome)

    async def adopt(  # noqa: PLR0913 - each is a fact of its own, named at the call
        self,
        key: str,
        *,
        digest: str,
        task_id: str,
        owner: str,
        model: str,
        gateway: str = "",
        account: str = "",
    ) -> Accepted:
        """Take over a task that something else submitted: an intent and its outcome, without sending anything.

        Raises:
            TaskOwned: The task id belongs to another generation.
            KeyReused, SubmissionInDoubt, OutcomeUnknown, SlotTaken, LedgerUnavailable: See `submit`.
        """
        reason = "adopted"
        try:
            slot = await self._find_slot(key, digest, None)
        except KeyReused:
            accepted = await self.accepted(key)
            if accepted is None or accepted.task_id != task_id:
                raise
            return accepted  # its own task, by a request that nobody has any more (`recover`)
        except OutcomeUnknown as doubt:
            # Of this very adoption, which was interrupted between its two records: nothing was ever sent for it.
            slot = await self.resolve(key, doubt.slot, task_id=task_id, reason=reason, owner=owner) or doubt.slot
        if isinstance(slot, Accepted):
            return slot
        nonce = uuid.uuid4().hex
        await self._claim(key, task_id, nonce, account, only=True)
        intent = Intent(
            nonce=nonce,
            digest=digest,
            sent_at=datetime.now(UTC),
            window_seconds=0,
            owner=owner,
            model=model,
            gateway=gateway,
            account=account,
        )
        await self._create(_path(key, slot, "intent"), intent)
        accepted = Accepted(
            task_id, slot, intent.sent_at, attached=True, nonce=intent.nonce, gateway=gateway, account=account
        )
        await self.record_accepted(key, accepted)
        return accepted

    async def others_in_doubt(self, key: str, model: str) -> tuple[Intent, ...]:
        """Other keys' submissions of this model of which nobody knows what they made: an orphan may be theirs.

        Reads the records of what is open, and nothing of what was ever closed. What a crash left half written there is
        finished, so ask for owners (`owners_of`) after it.

        Raises:
            LedgerUnavailable: The store did not answer.
        """
        own = _hash(key)
        slots: list[tuple[str, int]] = []
        try:
            async for path, _ in self._store.entries(OPEN):
                folder, _, number = path.removeprefix(f"{OPEN}/").rpartition(".")
                if folder != own and number.isdecimal():
                    slots.append((folder, int(number)))
        except StoreProblem as error:
            raise LedgerUnavailable(f"the submission ledger cannot be listed: {error}") from None
        found = await _at_once(self._open_intent(folder, slot) for folder, slot in slots)
        return tuple(intent for intent in found if intent is not None and intent.model == model)

    async def check_owner(self, key: str, task_id: str) -> None:
        """See that a task is not another generation's; one that nobody has claimed yet is nobody's.

        Raises:
            TaskOwned: It is another's, and no submission of this key brought it.
            LedgerUnavailable: The store did not answer.
        """
        owner = await self._read(TaskOwner, _owner_path(task_id))
        if owner is None or owner.folder == _folder(key):
            return
        # A gateway may answer two submissions with one task: both paid for it.
        for slot in range(1, _MAX_SLOTS):
            intent = await self._read(Intent, _path(key, slot, "intent"))
            if intent is None:
                break
            for outcome in (await self._outcome(key, slot, intent), await self._late(key, slot, intent)):
                if outcome is not None and outcome.task_id == task_id:
                    return
        raise TaskOwned(f"the task {task_id} belongs to another generation")

    async def owners_of(self, task_ids: Iterable[str]) -> dict[str, TaskOwner]:
        """Which of these tasks belong to a generation of this ledger, and who paid for each.

        Raises:
            LedgerUnavailable: The store did not answer.
        """
        asked = sorted(set(task_ids))
        owners = await _at_once(self._read(TaskOwner, _owner_path(task_id)) for task_id in asked)
        return {task_id: owner for task_id, owner in zip(asked, owners, strict=True) if owner is not None}

    async def paid_tasks(
        self, *, since: datetime, key_of: Callable[[str], str], on_progress: Callable[[int], None] = lambda _: None
    ) -> AsyncIterator[PaidTask]:
        """Every task that was paid for or adopted since then, in no order. Reads only, a few records at a time.

        Args:
            since: Older ones are left out.
            key_of: The business key that a workflow id stands for.
            on_progress: Told how many tasks were seen, older ones included.

        Raises:
            LedgerUnavailable: The store did not answer.
        """
        seen = 0
        batch: list[str] = []
        # A task is claimed when its outcome is written, so an older claim is of an older task. Clocks may differ.
        written_since = since - MARGIN
        async for path, written_at in self._owner_entries():
            seen += 1
            if written_at >= written_since:
                batch.append(path)
            if len(batch) == _MAX_READS_AT_ONCE:
                for task in await _at_once(self._paid_task(path, key_of) for path in batch):
                    if task is not None and task.sent_at >= since:
                        yield task
                batch.clear()
            if seen % _REPORT_EVERY == 0:
                on_progress(seen)
        for task in await _at_once(self._paid_task(path, key_of) for path in batch):
            if task is not None and task.sent_at >= since:
                yield task
        on_progress(seen)

    async def first_paid(self, key: str, *, key_of: Callable[[str], str]) -> PaidTask | None:
        """The first payment of this key, as `paid_tasks` gives it; None where the ledger knows of none.

        Raises:
            LedgerUnavailable: The store did not answer.
        """
        accepted = await self.accepted(key)
        return None if accepted is None else await self._paid_task(_owner_path(accepted.task_id), key_of)

    async def _owner_entries(self) -> AsyncIterator[tuple[str, datetime]]:
        try:
            async for entry in self._store.entries(f"{PREFIX}/owners"):
                yield entry
        except StoreProblem as error:
            raise LedgerUnavailable(f"the submission ledger cannot be listed: {error}") from None

    async def _paid_task(self, owner_path: str, key_of: Callable[[str], str]) -> PaidTask | None:
        """The task that a claim is about; None where its outcome was never written."""
        owner = await self._read(TaskOwner, owner_path)
        if owner is None:
            return None
        for slot in range(1, _MAX_SLOTS):
            place = f"{owner.folder}/{slot}"
            intent = await self._read(Intent, f"{place}/intent")
            if intent is None:
                return None
            for name in ("outcome", "late"):
                outcome = await self._read(Outcome, f"{place}/{name}")
                if outcome is not None and outcome.task_id and _owner_path(outcome.task_id) == owner_path:
                    key, retry = _named(owner.folder, intent, key_of)
                    return PaidTask(key, retry, outcome.task_id, intent.digest, intent.model, intent.sent_at)
        return None

    async def _open_intent(self, folder: str, slot: int) -> Intent | None:
        """The intent of an entry of the index, if it may have made a task that nobody knows; else the entry goes."""
        place = f"{PREFIX}/{folder}/{slot}"
        intent = await self._read(Intent, f"{place}/intent")
        if intent is None:
            return None  # its owner may be just about to make it: the entry stays
        outcome = await self._read(Outcome, f"{place}/outcome")
        if outcome is None:
            return intent
        if outcome.decided and await self._read(Outcome, f"{place}/late") is None:
            return intent
        if outcome.task_id:
            # Its writer may have died before it did this.
            sent_at = intent.sent_at if outcome.request_id else None  # without one it may have been taken over
            known = {"request_id": outcome.request_id, "sent_at": sent_at}
            await self._claim_for(folder, outcome.task_id, outcome.nonce, intent.account, **known)
        await self._forget_at(folder, slot)
        return None

    async def _slot(self, key: str, slot: int) -> tuple[Intent, Outcome | None]:
        intent = await self._read(Intent, _path(key, slot, "intent"))
        if intent is None:
            raise LedgerUnavailable(f"the ledger has no slot {slot} for {key!r}: is LONGTAKE_STORE_URL the right one?")
        return intent, await self._outcome(key, slot, intent)

    async def _outcome(self, key: str, slot: int, intent: Intent) -> Outcome | None:
        """What came of a slot; a closing intent says so itself."""
        if intent.closing:
            closed = "closed: nothing older is sent"
            return Outcome(nonce=intent.nonce, outcome="not_sent", reason=closed, at=intent.sent_at, fence=intent.fence)
        return await self._read(Outcome, _path(key, slot, "outcome"))

    async def _response(self, key: str, slot: int, intent: Intent) -> Response | None:
        response = await self._read(Response, _path(key, slot, "response"))
        return response if response is not None and response.nonce == intent.nonce else None

    async def _late(self, key: str, slot: int, intent: Intent) -> Accepted | None:
        """What the owner of a slot brought after a person had settled it."""
        late = await self._read(Outcome, _path(key, slot, "late"))
        return _accepted(slot, intent, late) if late is not None and late.task_id else None

    async def _conclude(self, key: str, slot: int, outcome: Outcome, account: str) -> Outcome:
        """Write an outcome, and return the one that stands: the first one does."""
        path = _path(key, slot, "outcome")
        await self._create(path, outcome)
        stands = await self._read(Outcome, path) or outcome
        if stands.task_id:
            await self._claim(key, stands.task_id, stands.nonce, account)
        if not stands.decided:
            await self._forget(key, slot)
        return stands

    async def _claim(
        self, key: str, task_id: str, nonce: str, account: str, *, only: bool = False, **known: object
    ) -> None:
        """Write down whose a task is; the first claim stands.

        Raises:
            TaskOwned: It is another's, and `only` an owner may go on.
            LedgerUnavailable: The store did not answer.
        """
        owner = await self._claim_for(_hash(key), task_id, nonce, account, **known)
        if only and owner != _folder(key):
            raise TaskOwned(f"the task {task_id} belongs to another generation")

    async def _claim_for(self, folder: str, task_id: str, nonce: str, account: str, **known: object) -> str:
        """The same for a folder; returns whose it is."""
        record = {"nonce": nonce, "folder": f"{PREFIX}/{folder}", "account": account, **known}
        path, claim = _owner_path(task_id), TaskOwner.model_validate(record)
        try:
            await self._create(path, claim)
        except SlotTaken:
            stands = await self._read(TaskOwner, path)
            return stands.folder if stands else ""
        return claim.folder

    async def _forget(self, key: str, slot: int) -> None:
        await self._forget_at(_hash(key), slot)

    async def _forget_at(self, folder: str, slot: int) -> None:
        """Take a slot out of the index. One that stays there is taken out by whoever reads it next."""
        try:
            await self._store.delete(f"{OPEN}/{folder}.{slot}")
        except StoreProblem as problem:
            logger.info("an entry of the ledger's index was not deleted", exc_info=problem)

    async def _find_slot(
        self, key: str, digest: str, evidence: Evidence | None, scheduled_at: datetime | None = None
    ) -> int | Accepted:
        """The first free slot, or the accepted submission.

        Raises:
            KeyReused, SubmissionClosed, SubmissionInDoubt, OutcomeUnknown, LedgerUnavailable: See `submit`.
        """
        fence: _Moment | None = None
        for slot in range(1, _MAX_SLOTS):
            intent = await self._read(Intent, _path(key, slot, "intent"))
            if intent is None:
                # What came late was paid all the same: it is not sent again.
                accepted = await self.accepted(key, digest) if slot > 1 else None
                if accepted is None and fence and scheduled_at and scheduled_at <= fence:
                    raise SubmissionClosed(
                        f"what was scheduled until {fence:%Y-%m-%d %H:%M:%S} UTC was closed: nothing was sent"
                    )
                return accepted or slot
            outcome = await self._outcome(key, slot, intent)
            if evidence and evidence.is_of(intent):
                believed = await self._believe(key, slot, intent, outcome, evidence)
                if isinstance(believed, Accepted):
                    return believed
                outcome = believed
            if outcome is not None and outcome.outcome == "not_sent":
                if outcome.fence is not None:
                    fence = max(fence or outcome.fence, outcome.fence)
                continue  # whatever it was, nothing was made: the key is still free
            if intent.digest != digest:
                raise KeyReused(f"the key {key!r} was already used for another request: use a new key for this one")
            if outcome is None or not outcome.task_id:
                raise await self._why_in_doubt(key, slot, intent)
            return _accepted(slot, intent, outcome)
        raise LedgerUnavailable(f"{_MAX_SLOTS} submissions of {key!r} were refused or not sent: use a new key")

    async def _believe(
        self, key: str, slot: int, intent: Intent, outcome: Outcome | None, evidence: Evidence
    ) -> Outcome | Accepted:
        """What came of our own slot, by what is left of the attempt that it belongs to."""
        said = Outcome(at=datetime.now(UTC), **evidence.model_dump(exclude={"proof"}))
        if not evidence.task_id:
            return outcome or await self._conclude(key, slot, said, intent.account)
        if outcome is not None and outcome.task_id == evidence.task_id:
            return outcome
        # It is paid for and its id is known: hand the id on, whatever the store or a person says.
        accepted = _accepted(slot, intent, said)
        try:
            await self.record_accepted(key, accepted, only=True)
        except LedgerError:
            return replace(accepted, recorded=False)
        return accepted

    async def _why_in_doubt(self, key: str, slot: int, intent: Intent) -> SubmissionInDoubt | OutcomeUnknown:
        response = await self._response(key, slot, intent)
        wait = intent.over_at - datetime.now(UTC)
        if response is None and wait > timedelta(0):
            return SubmissionInDoubt(
                f"an earlier attempt ({intent.owner}) was sending at {intent.sent_at:%H:%M:%S} UTC and may still be; "
                f"waiting {wait.total_seconds():.0f} s for its outcome",
                min(wait, POLL_AGAIN),
            )
        left = f"got no answer that says what was made: {response.reason}" if response else "left no outcome"
        return OutcomeUnknown(
            f"an earlier attempt ({intent.owner}) sent at {intent.sent_at:%Y-%m-%d %H:%M:%S} UTC and {left}",
            slot=slot,
            sent_at=intent.sent_at,
            response=response,
        )

    async def _read(self, kind: type[_R], path: str) -> _R | None:
        try:
            content = await self._store.get(path)
        except StoreProblem as error:
            raise LedgerUnavailable(
                f"the submission ledger cannot be read: {error}", needs_operator=error.needs_operator
            ) from None
        try:
            return None if content is None else kind.model_validate_json(content)
        except ValidationError:
            raise LedgerUnavailable(
                f"{path} in the store is not a ledger record: find out who changed it; nothing is sent meanwhile"
            ) from None

    async def _create(self, path: str, record: _Record) -> None:
        """Create a record, and return only if the stored one is ours, whatever happened to the reply.

        Raises:
            SlotTaken: It exists and is another's.
            LedgerUnavailable: The store did not take it; it may exist all the same.
        """
        problem: Exception | None = None
        for attempt in range(_WRITE_TRIES):
            if attempt:
                await asyncio.sleep(0.1 * 2**attempt)
            try:
                if await self._store.create(path, record.model_dump_json().encode()):
                    return
                existing = await self._read(_Record, path)
            except (StoreProblem, LedgerUnavailable) as error:
                problem = error
                continue
            if existing is not None and existing.nonce == record.nonce:
                return  # our own write, whose reply was lost
            raise SlotTaken(f"{path} belongs to another attempt")
        raise LedgerUnavailable(f"the submission ledger cannot be written: {problem}")


class _Attempt:
    """One try to send in one slot."""

    def __init__(
        self,
        ledger: SubmissionLedger,
        key: str,
        slot: int,
        intent: Intent,
        on_evidence: Callable[[Evidence], None],
    ) -> None:
        self._ledger = ledger
        self._key = key
        self.slot = slot
        self._proof = uuid.uuid4().hex
        self.intent = intent.model_copy(update={"proof_hash": _sha256(self._proof)})
        self._on_evidence = on_evidence
        self._tried = False
        self._intent_created = False
        self._created = self._started = time.clock_gettime(_CLOCK)

    async def run(self, send: Callable[[CreateIntent], Awaitable[Answer]]) -> Answer:
        """Send, and close the slot where nothing can have been made."""
        try:
            answer = await send(self._create_intent)
        except _NOTHING_MADE as error:
            await self._close(type(error).__name__)
            raise
        except BaseException as error:
            if not self._intent_created:
                await self._close(type(error).__name__)
                raise
            # Armed, and then anything else, cancellation and defects included: the request may be on its way.
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
            if isinstance(error, Exception | asyncio.CancelledError):  # else the process is going
                await self._say_that_it_is_over(response)
            raise OutcomeUnknown(
                reason, slot=self.slot, sent_at=self.intent.sent_at, cause=cause, response=response
            ) from None
        if not self._intent_created:
            raise RuntimeError("a submission was answered although it never asked whether it may be sent")
        return answer

    async def _create_intent(self) -> None:
        if self._tried:
            raise RuntimeError("one submission, one transmission: a second one was refused")
        self._tried = True
        self.intent = self.intent.model_copy(update={"sent_at": datetime.now(UTC)})
        self._started = time.clock_gettime(_CLOCK)
        if self._started - self._created > _MAX_APPROACH_SECONDS:
            raise SendSuspended("the worker was stopped on its way to the gateway: nothing was sent")
        entry = _OpenEntry(nonce=self.intent.nonce, model=self.intent.model, sent_at=self.intent.sent_at)
        with contextlib.suppress(SlotTaken):  # of an attempt that got no further: the entry is there
            await self._ledger._create(_open_path(self._key, self.slot), entry)  # noqa: SLF001 - same module
        await self._ledger._create(_path(self._key, self.slot, "intent"), self.intent)  # noqa: SLF001 - same module
        if time.clock_gettime(_CLOCK) - self._started > _STALE_AFTER_SECONDS:
            raise SendSuspended(
                f"the worker was stopped just before sending, or the store took more than {_STALE_AFTER_SECONDS:.0f} s "
                "to write a record: nothing was sent"
            )
        self._intent_created = True

    async def _say_that_it_is_over(self, response: Response) -> None:
        """Spare others the wait for the end of the window; where it cannot be written they wait."""
        try:
            async with asyncio.timeout(_RESPONSE_SECONDS):
                await self._ledger._create(_path(self._key, self.slot, "response"), response)  # noqa: SLF001 - same module
        except (LedgerError, TimeoutError, asyncio.CancelledError) as error:
            logger.warning("ledger response not written", exc_info=error)

    async def _close(self, reason: str) -> None:
        """Write "not_sent", if the intent exists and is ours; otherwise there is nothing to close."""
        if not self._tried:
            return
        self._on_evidence(Evidence(nonce=self.intent.nonce, outcome="not_sent", reason=reason, proof=self._proof))
        ledger = self._ledger
        try:
            stored = await ledger._read(Intent, _path(self._key, self.slot, "intent"))  # noqa: SLF001 - same module
            if stored is None or stored.nonce != self.intent.nonce:
                return
            outcome = Outcome(nonce=self.intent.nonce, outcome="not_sent", reason=reason, at=datetime.now(UTC))
            await ledger._conclude(self._key, self.slot, outcome, self.intent.account)  # noqa: SLF001 - same module
        except LedgerError as error:
            # The slot stays open: the next attempt finds it in doubt, which is the safe side.
            logger.warning("ledger slot not closed", exc_info=error)


async def _at_once(reads: Iterable[Awaitable[_T]]) -> list[_T]:
    """Await them all, a few at a time; the first error counts."""
    gate = asyncio.Semaphore(_MAX_READS_AT_ONCE)

    async def read(one: Awaitable[_T]) -> _T:
        async with gate:
            return await one

    return list(await asyncio.gather(*map(read, reads)))


def _accepted(slot: int, intent: Intent, outcome: Outcome) -> Accepted:
    """A submission whose task id the ledger knows."""
    return Accepted(
        outcome.task_id or "",
        slot,
        intent.sent_at,
        outcome.request_id,
        attached=True,
        nonce=intent.nonce,
        gateway=intent.gateway,
        account=intent.account,
    )


def _named(folder: str, intent: Intent, key_of: Callable[[str], str]) -> tuple[str | None, int | None]:
    """Key and number of the extension's retry: the writer names its workflow, the folder's hash proves it."""
    workflow_id, _, _ = intent.owner.partition("/")
    key = key_of(workflow_id)
    if _folder(key) == folder:
        return key, None
    for number in range(1, _MAX_RETRIES + 1):
        if _folder(extension_key(key, number)) == folder:
            return key, number
    return None, None


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _folder(key: str) -> str:
    return f"{PREFIX}/{_hash(key)}"


def _sha256(proof: str) -> str:
    return hashlib.sha256(proof.encode(errors="replace")).hexdigest()


def _owner_path(task_id: str) -> str:
    """One place for all spellings of a task: to a gateway whose database ignores case they are one task.

    Two tasks whose ids differ in nothing else are not to be expected; they could not be taken over, and no more.
    """
    return f"{PREFIX}/owners/{_hash(task_id.casefold())}"


def _open_path(key: str, slot: int) -> str:
    return f"{OPEN}/{_hash(key)}.{slot}"


def _path(key: str, slot: int, name: str) -> str:
    return f"{_folder(key)}/{slot}/{name}"
