"""The records of the submission ledger, and how they are read and written in the store.

Every record below `submit/` is created once, atomically, and never changed or deleted. `longtake.submission.ledger`
says what they mean together.
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from longtake.models import SubmissionReceipt
from longtake.storage import Store, StoreProblem
from longtake.submission.errors import LedgerUnavailable, SlotTaken, TaskOwned

logger = logging.getLogger("longtake.submission.ledger")

PREFIX = "submit"
OPEN = "open"
"""The index of submissions without an outcome. Not below `submit/`, where nothing is ever deleted."""
OPEN_ENTRY = re.compile(rf"{OPEN}/([0-9a-f]{{32}})\.([1-9][0-9]{{0,3}})")
"""Any other object there is no entry, and keeps nobody from reading the entries."""
OWNERS = f"{PREFIX}/owners"
IDENTITY = f"{PREFIX}/identity"
"""Says which ledger the store holds."""
MAX_SLOTS = 1000
MAX_EXCERPT_CHARS = 500
"""Of a gateway's response, in `Response`."""
_WRITE_TRIES = 4

# Code calculates with these. A time without a zone, or at the end of all times, would make the step fail as a defect,
# and with it every generation whose reconciliation reads the record.
_Moment: TypeAlias = Annotated[
    AwareDatetime, Field(ge=datetime(2000, 1, 1, tzinfo=UTC), le=datetime(2200, 1, 1, tzinfo=UTC))
]
_MAX_WINDOW_SECONDS = 31 * 86_400


class Identity(BaseModel):
    """Which ledger the store holds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    identity: str


class Record(BaseModel):
    """A record that one attempt writes."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    nonce: str
    """Of the attempt that the slot belongs to."""


class TaskOwner(Record):
    """Which key a task belongs to."""

    folder: str
    """Of the key, in the ledger."""
    account: str = ""
    """See `Intent.account`."""
    request_id: str | None = None
    """The gateway's id of the POST that made it; None: not known."""
    sent_at: datetime | None = None
    """When that POST left, by its writer's clock; None where the ledger adopted the task."""


class Intent(Record):
    """An attempt is about to send."""

    digest: str
    """`longtake.request.rules.request_digest` of what is sent."""
    sent_at: _Moment
    window_seconds: float = Field(ge=0, le=_MAX_WINDOW_SECONDS)
    """How long after `sent_at` its writer may still be alive."""
    writer: str
    """The workflow id, run and attempt: for people."""
    model: str = ""
    gateway: str = ""
    """The origin that it is sent to; empty: not known."""
    account: str = ""
    """The fingerprint of the API key that pays (`GatewayClient.account`); empty: not known."""
    closing: bool = False
    """True where nothing is sent for it: it keeps others from sending, and needs no outcome."""
    fence: _Moment | None = None
    """Of a closing one: nothing that Temporal scheduled until then is sent any more."""
    proof_hash: str = ""
    """SHA-256 of `HeartbeatState.proof`."""

    @property
    def over_at(self) -> datetime:
        """When its exchange is over at the latest."""
        return self.sent_at + timedelta(seconds=self.window_seconds)


class Outcome(Record):
    """What an intent led to."""

    outcome: Literal["accepted", "not_sent"]
    task_id: str | None = None
    request_id: str | None = None
    reason: str = ""
    at: _Moment
    decided: bool = False
    """True where a person, or the account's records, said "not sent": a task of this submission may still turn up."""
    not_charged: bool = False
    """True where only the account's records said so, and the worker submitted again by itself."""
    fence: _Moment | None = None
    """See `Intent.fence`."""


class Response(Record):
    """The exchange of an intent is over, and the response does not say whether anything was made."""

    at: _Moment
    status: int | None = None
    request_id: str | None = None
    reason: str = ""
    excerpt: str = ""
    """Redacted, at most `MAX_EXCERPT_CHARS`: it may hold an id that no program can read."""


class OpenEntry(Record):
    """One entry of the index, for people: code that reads the index goes by the slot's own records."""

    model: str = ""
    sent_at: _Moment


_R = TypeVar("_R", bound=Record)


@dataclass(frozen=True)
class Slot:
    """One submission of a key, as its records show it."""

    folder: str
    number: int
    intent: Intent
    outcome: Outcome | None

    @property
    def task_id(self) -> str | None:
        """The task that it made, where its outcome names one."""
        return self.outcome.task_id if self.outcome and self.outcome.outcome == "accepted" else None

    def receipt(self, outcome: Outcome | None = None) -> SubmissionReceipt:
        """What an earlier attempt paid for; by another outcome than the slot's own, where one is given."""
        outcome = outcome or self.outcome
        return SubmissionReceipt(
            task_id=(outcome.task_id if outcome else None) or "",
            slot=self.number,
            submitted_at=self.intent.sent_at,
            request_id=outcome.request_id if outcome else None,
            attached=True,
            nonce=self.intent.nonce,
            gateway=self.intent.gateway,
            account=self.intent.account,
        )


class Records:
    """Reads and writes the ledger's records. Every method raises `LedgerUnavailable` where the store fails."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def slots(self, folder: str) -> AsyncIterator[Slot]:
        """The used slots of a key in order, up to the first free one."""
        for number in range(1, MAX_SLOTS):
            slot = await self.slot(folder, number)
            if slot is None:
                return
            yield slot

    async def slot(self, folder: str, number: int) -> Slot | None:
        """One slot; None where it is free."""
        intent = await self.read(Intent, record_path(folder, number, "intent"))
        return None if intent is None else Slot(folder, number, intent, await self._outcome(folder, number, intent))

    async def _outcome(self, folder: str, number: int, intent: Intent) -> Outcome | None:
        if intent.closing:  # it needs no second record
            return Outcome(nonce=intent.nonce, outcome="not_sent", at=intent.sent_at, fence=intent.fence)
        return await self.read(Outcome, record_path(folder, number, "outcome"))

    async def late(self, slot: Slot) -> SubmissionReceipt | None:
        """What the writer of a slot paid for, where a person had resolved the slot before its response came."""
        late = await self.read(Outcome, record_path(slot.folder, slot.number, "late"))
        return slot.receipt(late) if late is not None and late.task_id else None

    async def response(self, slot: Slot) -> Response | None:
        """The response that says too little, if its writer left one."""
        response = await self.read(Response, record_path(slot.folder, slot.number, "response"))
        return response if response is not None and response.nonce == slot.intent.nonce else None

    async def write_outcome(self, folder: str, number: int, outcome: Outcome, account: str) -> Outcome:
        """Write an outcome, and return the one that stands: the first one does."""
        path = record_path(folder, number, "outcome")
        await self.create(path, outcome)
        stands = await self.read(Outcome, path) or outcome
        if stands.task_id:
            await self.claim(stands.task_id, TaskOwner(nonce=stands.nonce, folder=folder, account=account))
        if not stands.decided:
            await self.remove_open_entry(folder, number)
        return stands

    async def claim(self, task_id: str, owner: TaskOwner, *, only: bool = False) -> None:
        """Write down which key a task belongs to; the first claim stands.

        Args:
            task_id: The gateway's.
            owner: The key, and the attempt that made or takes the task.
            only: Whether a task of another key is an error.

        Raises:
            TaskOwned: `only`, and it belongs to another key.
            LedgerUnavailable: The store did not answer.
        """
        path = owner_path(task_id)
        try:
            await self.create(path, owner)
        except SlotTaken:
            stands = await self.read(TaskOwner, path)
            if only and (stands is None or stands.folder != owner.folder):
                raise TaskOwned(f"the task {task_id} belongs to another generation") from None

    async def remove_open_entry(self, folder: str, number: int) -> None:
        """Take a slot out of the index. An entry that stays there is removed by whoever reads it next."""
        try:
            await self._store.delete(open_path(folder, number))
        except StoreProblem as problem:
            logger.info("an entry of the ledger's index was not deleted", exc_info=problem)

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, datetime]]:
        """The paths below a prefix, each with the time of its last change."""
        try:
            async for entry in self._store.entries(prefix):
                yield entry
        except StoreProblem as error:
            raise LedgerUnavailable(f"the submission ledger cannot be listed: {error}") from None

    async def read(self, kind: type[_R], path: str) -> _R | None:
        """One record; None where there is none."""
        content = await self.get(path)
        try:
            return None if content is None else kind.model_validate_json(content)
        except ValidationError:
            raise LedgerUnavailable(
                f"{path} in the store is not a ledger record: find out who changed it; nothing is sent meanwhile"
            ) from None

    async def get(self, path: str) -> bytes | None:
        """The content at a path; None where there is nothing."""
        try:
            return await self._store.get(path)
        except StoreProblem as error:
            raise LedgerUnavailable(
                f"the submission ledger cannot be read: {error}", needs_operator=error.needs_operator
            ) from None

    async def create(self, path: str, record: Record) -> None:
        """Create a record, and return only if the stored one is ours, even where a reply of the store was lost.

        Raises:
            SlotTaken: It exists and is another attempt's.
            LedgerUnavailable: The store did not take it; it may exist all the same.
        """
        problem: Exception | None = None
        for attempt in range(_WRITE_TRIES):
            if attempt:
                await asyncio.sleep(0.1 * 2**attempt)
            try:
                if await self._store.create(path, record.model_dump_json().encode()):
                    return
                existing = await self.read(Record, path)
            except (StoreProblem, LedgerUnavailable) as error:
                problem = error
                continue
            if existing is not None and existing.nonce == record.nonce:
                return  # our own write, whose reply was lost
            raise SlotTaken(f"{path} belongs to another attempt")
        raise LedgerUnavailable(f"the submission ledger cannot be written: {problem}")


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def folder_of(key: str) -> str:
    """Where the slots of a key lie."""
    return f"{PREFIX}/{_hash(key)}"


def record_path(folder: str, slot: int, name: str) -> str:
    """Where one record of a slot lies."""
    return f"{folder}/{slot}/{name}"


def owner_path(task_id: str) -> str:
    """One place for all spellings of a task: to a gateway whose database ignores case they are one task.

    Two tasks whose ids differ in case only would share one owner; no gateway is known to make them.
    """
    return f"{OWNERS}/{_hash(task_id.casefold())}"


def open_path(folder: str, slot: int) -> str:
    """Where the index names a slot."""
    return f"{OPEN}/{folder.removeprefix(f'{PREFIX}/')}.{slot}"
