"""Ledgers with one defect each. The search must find every one of them, else it shows nothing."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

from longtake.gateway.errors import GatewayError
from longtake.models import Reconciliation, SubmissionReceipt
from longtake.storage import StoreProblem
from longtake.submission import charges as charges_module
from longtake.submission import ledger as ledger_module
from longtake.submission.charges import Verdict
from longtake.submission.errors import LedgerError, LedgerUnavailable, SlotTaken
from longtake.submission.ledger import HeartbeatState, OpenSubmissions, SubmissionLedger, _Attempt
from longtake.submission.reconciliation import Resubmit, _Search
from longtake.submission.records import Intent, Outcome, Record, Records, Slot, TaskOwner, folder_of, record_path
from tests.exploration.programs import ScheduledStore
from tests.exploration.scenarios import MAX_EXCHANGE


class ResolvesTheOpenSlot(SubmissionLedger):
    async def resolve(self, key: str, slot: int, **facts: Any) -> SubmissionReceipt | None:
        return await super().resolve(key, await self.open_slot(key) or slot, **facts)


class TakesNoOutcomeForNotSent(Records):
    async def _outcome(self, folder: str, number: int, intent: Intent) -> Outcome | None:
        outcome = await super()._outcome(folder, number, intent)
        return outcome or Outcome(nonce=intent.nonce, outcome="not_sent", at=intent.sent_at)


class ForgetsWhatCameLate(SubmissionLedger):
    async def record_accepted(self, key: str, receipt: SubmissionReceipt, **_: Any) -> None:
        await self._records.write_outcome(folder_of(key), receipt.slot, _outcome_of(receipt), receipt.account)


class DoesNotSeeWhatCameLate(Records):
    async def late(self, slot: Slot) -> SubmissionReceipt | None:
        return None


class ClaimsAfterwards(SubmissionLedger):
    async def record_accepted(self, key: str, receipt: SubmissionReceipt, **more: Any) -> None:
        await self._records.create(record_path(folder_of(key), receipt.slot, "outcome"), _outcome_of(receipt))
        await super().record_accepted(key, receipt, **more)


class AdoptsWhatIsOwned(Records):
    async def claim(self, task_id: str, owner: TaskOwner, *, only: bool = False) -> None:
        await super().claim(task_id, owner)


class HeedsNoFence(SubmissionLedger):
    async def submit(self, *facts: Any, **more: Any) -> SubmissionReceipt:
        return await super().submit(*facts, **{**more, "scheduled_at": None})


class ClosesNothing(SubmissionLedger):
    async def close_unsent(self, key: str, **facts: Any) -> SubmissionReceipt | None:
        await self._find_free_slot(key, "")
        return None


class BelievesAnyHeartbeat(SubmissionLedger):
    async def _find_free_slot(
        self, key: str, digest: str, earlier: HeartbeatState | None = None, scheduled_at: datetime | None = None
    ) -> int | SubmissionReceipt:
        intent = await self._records.read(Intent, record_path(folder_of(key), 1, "intent"))
        if earlier and intent:
            earlier = earlier.model_copy(update={"nonce": intent.nonce})
            with mock.patch.object(HeartbeatState, "is_of", lambda state, intent: state.nonce == intent.nonce):
                return await super()._find_free_slot(key, digest, earlier, scheduled_at)
        return await super()._find_free_slot(key, digest, earlier, scheduled_at)


class SeesNoOthersInDoubt(SubmissionLedger):
    async def open_submissions(self, key: str, model: str) -> OpenSubmissions:
        return OpenSubmissions((), {})


class SeesNoOwners(SubmissionLedger):
    async def owners_of(self, task_ids: Any) -> dict[str, TaskOwner]:
        return {task_id: found for task_id, found in (await super().owners_of(task_ids)).items() if "known" in task_id}


class WritesOverWhatStands(Records):
    async def create(self, path: str, record: Record) -> None:
        if path.endswith("/outcome"):
            try:
                await self._store.put(path, record.model_dump_json().encode())
            except StoreProblem as problem:
                raise LedgerUnavailable(str(problem)) from None
        else:
            await super().create(path, record)


def _outcome_of(receipt: SubmissionReceipt) -> Outcome:
    return Outcome(nonce=receipt.nonce, outcome="accepted", task_id=receipt.task_id, at=receipt.submitted_at)


async def _closes_whose_ever_it_is(self: _Attempt, reason: str) -> None:
    outcome = Outcome(nonce=self.intent.nonce, outcome="not_sent", reason=reason, at=datetime.now(UTC))
    with contextlib.suppress(LedgerError):
        await self._records.create(self._path("outcome"), outcome)


async def sends_without_a_record(self: _Attempt) -> None:
    """Let it send, and write nothing down before."""
    self._tried = self._intent_created = True


async def _ignores_a_lost_race(self: _Attempt) -> None:
    self._tried = True
    with contextlib.suppress(SlotTaken):
        await self._records.create(self._path("intent"), self.intent)
    self._intent_created = True


_not_charged = _Search._not_charged


async def _closes_by_the_first_check(
    self: _Search, verdict: Verdict, writer: str, _resubmit: Resubmit
) -> Reconciliation:
    return await _not_charged(self, verdict, writer, Resubmit.NOW)


@dataclass(frozen=True)
class Defect:
    """A ledger that breaks a promise, and by which scenario that comes out."""

    name: str
    scenario: str
    ledger: type[SubmissionLedger] = SubmissionLedger
    records: type[Records] = Records
    patches: tuple[tuple[Any, str, object], ...] = ()
    overwrites: bool = False

    def make(self) -> SubmissionLedger:
        """The ledger."""
        store = ScheduledStore()
        ledger = self.ledger(store, longest_exchange=MAX_EXCHANGE)
        ledger._records = self.records(store)
        return ledger

    @contextlib.contextmanager
    def applied(self) -> Iterator[Callable[[], SubmissionLedger]]:
        """While this lasts the ledger that it makes is broken."""
        with contextlib.ExitStack() as stack:
            for patch in self.patches:
                stack.enter_context(mock.patch.object(*patch))
            yield self.make


_TWO = "two attempts at once, and a decision about the first slot"
_CLOSING = "a straggler, somebody who closes what was not sent, and the next run"
_RECONCILED = "two submissions of one model in doubt, one of which is reconciled"
_WANTED = "a task that two generations want"
_LOST = "a lost answer, and a worker that may submit again by itself"
_ANSWERED = "an answer that names the request, and a worker that may submit again by itself"
_BY_ONE_CHECK = (_Search, "_not_charged", _closes_by_the_first_check)
_AGAIN = "a decision, a second submission, and the decision once more"

DEFECTS = (
    Defect("a store that overwrites", _TWO, overwrites=True),
    Defect(
        "a slot is closed without a look at whose it is",
        _TWO,
        patches=((_Attempt, "_close", _closes_whose_ever_it_is),),
    ),
    Defect("no record before the send", _TWO, patches=((_Attempt, "_create_intent", sends_without_a_record),)),
    Defect("a lost race is not noticed", _TWO, patches=((_Attempt, "_create_intent", _ignores_a_lost_race),)),
    Defect("who slept sends", _TWO, patches=((ledger_module, "_STALE_AFTER_SECONDS", float("inf")),)),
    Defect("a lost answer counts as not made", _TWO, patches=((ledger_module, "_NOTHING_MADE", (GatewayError,)),)),
    Defect("no outcome counts as not sent", _TWO, records=TakesNoOutcomeForNotSent),
    Defect("an outcome is written over another", _TWO, records=WritesOverWhatStands),
    Defect("what came late is not written", _TWO, ForgetsWhatCameLate),
    Defect("what came late is not read", _TWO, records=DoesNotSeeWhatCameLate),
    Defect("a decision resolves the slot that is open", _AGAIN, ResolvesTheOpenSlot),
    Defect(
        "anybody's heartbeat is believed", "an attempt, its retry, and an attempt of another run", BelievesAnyHeartbeat
    ),
    Defect("the outcome is written before the task is claimed", _WANTED, ClaimsAfterwards),
    Defect("a claim keeps nobody out", "two who adopt the same task for two keys", records=AdoptsWhatIsOwned),
    Defect("a fence stops nobody", _CLOSING, HeedsNoFence),
    Defect("closing leaves the slot free", _CLOSING, ClosesNothing),
    Defect("other submissions in doubt are not seen", _RECONCILED, SeesNoOthersInDoubt),
    Defect("owners are not seen, and a claim keeps nobody out", _RECONCILED, SeesNoOwners, AdoptsWhatIsOwned),
    Defect("one check is enough after a lost answer", _LOST, patches=(_BY_ONE_CHECK,)),
    Defect("one check is enough after an answer", _ANSWERED, patches=(_BY_ONE_CHECK,)),
    Defect("nobody accepts late", _LOST, patches=((charges_module, "LATE_ACCEPTANCE", timedelta(minutes=30)),)),
    Defect(
        "a log that may have stopped is believed",
        _ANSWERED,
        patches=((charges_module._Judge, "_sent_after", lambda _self, moment, _charged: moment),),
    ),
)
