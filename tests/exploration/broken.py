"""Ledgers with one defect each. The search must find every one of them, else it shows nothing."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from unittest import mock

from longtake.gateway.errors import GatewayError
from longtake.storage import StoreProblem
from longtake.submission import ledger as ledger_module
from longtake.submission.ledger import Accepted, Evidence, Intent, Outcome, SubmissionLedger, TaskOwner, _Attempt, _path
from tests.exploration.programs import ScheduledStore
from tests.exploration.scenarios import MAX_EXCHANGE


class SettlesTheOpenSlot(SubmissionLedger):
    async def resolve(self, key: str, slot: int, **facts: Any) -> Accepted | None:
        return await super().resolve(key, await self.open_slot(key) or slot, **facts)


class TakesNoOutcomeForNotSent(SubmissionLedger):
    async def _outcome(self, key: str, slot: int, intent: Intent) -> Outcome | None:
        outcome = await super()._outcome(key, slot, intent)
        return outcome or Outcome(nonce=intent.nonce, outcome="not_sent", at=intent.sent_at)


class ForgetsWhatCameLate(SubmissionLedger):
    async def record_accepted(self, key: str, accepted: Accepted, **_: Any) -> None:
        outcome = Outcome(nonce=accepted.nonce, outcome="accepted", task_id=accepted.task_id, at=accepted.sent_at)
        await self._conclude(key, accepted.slot, outcome, accepted.account)


class DoesNotSeeWhatCameLate(SubmissionLedger):
    async def _late(self, key: str, slot: int, intent: Intent) -> Accepted | None:
        return None


class ClaimsAfterwards(SubmissionLedger):
    async def record_accepted(self, key: str, accepted: Accepted, **more: Any) -> None:
        with mock.patch.object(self, "_claim", mock.AsyncMock()):
            outcome = Outcome(nonce=accepted.nonce, outcome="accepted", task_id=accepted.task_id, at=accepted.sent_at)
            await self._create(_path(key, accepted.slot, "outcome"), outcome)
        await super().record_accepted(key, accepted, **more)


class AdoptsWhatIsOwned(SubmissionLedger):
    async def _claim(
        self, key: str, task_id: str, nonce: str, account: str, *, only: bool = False, **known: Any
    ) -> None:
        await super()._claim(key, task_id, nonce, account, **known)


class HeedsNoFence(SubmissionLedger):
    async def submit(self, key: str, **facts: Any) -> Accepted:
        return await super().submit(key, **{**facts, "scheduled_at": None})


class ClosesNothing(SubmissionLedger):
    async def close_unsent(self, key: str, **facts: Any) -> Accepted | None:
        await self._find_slot(key, "", None)
        return None


class BelievesAnyEvidence(SubmissionLedger):
    async def _find_slot(self, key: str, digest: str, evidence: Any, *more: Any) -> int | Accepted:
        intent = await self._read(Intent, _path(key, 1, "intent"))
        if evidence and intent:
            evidence = evidence.model_copy(update={"nonce": intent.nonce})
            with mock.patch.object(Evidence, "is_of", lambda evidence, intent: evidence.nonce == intent.nonce):
                return await super()._find_slot(key, digest, evidence, *more)
        return await super()._find_slot(key, digest, evidence, *more)


class SeesNoOthersInDoubt(SubmissionLedger):
    async def others_in_doubt(self, key: str, model: str) -> tuple[Intent, ...]:
        return ()


class SeesNoOwners(AdoptsWhatIsOwned):
    async def owners_of(self, task_ids: Any) -> dict[str, TaskOwner]:
        return {task_id: found for task_id, found in (await super().owners_of(task_ids)).items() if "known" in task_id}


class WritesOverWhatStands(SubmissionLedger):
    async def _create(self, path: str, record: Any) -> None:
        if path.endswith("/outcome"):
            try:
                await self._store.put(path, record.model_dump_json().encode())
            except StoreProblem as problem:
                raise ledger_module.LedgerUnavailable(str(problem)) from None
        else:
            await super()._create(path, record)


async def _closes_whose_ever_it_is(self: _Attempt, reason: str) -> None:
    outcome = Outcome(nonce=self.intent.nonce, outcome="not_sent", reason=reason, at=datetime.now(UTC))
    with contextlib.suppress(ledger_module.LedgerError):
        await self._ledger._create(_path(self._key, self.slot, "outcome"), outcome)


async def arms_without_a_record(self: _Attempt) -> None:
    """Let it send, and write nothing down before."""
    self._tried = self._intent_created = True


async def _ignores_a_lost_race(self: _Attempt) -> None:
    self._tried = True
    with contextlib.suppress(ledger_module.SlotTaken):
        await self._ledger._create(_path(self._key, self.slot, "intent"), self.intent)
    self._intent_created = True


@dataclass(frozen=True)
class Defect:
    """A ledger that breaks a promise, and by which scenario that comes out."""

    name: str
    scenario: str
    ledger: type[SubmissionLedger] = SubmissionLedger
    patches: tuple[tuple[Any, str, object], ...] = ()
    overwrites: bool = False

    def make(self) -> SubmissionLedger:
        """The ledger."""
        return self.ledger(ScheduledStore(), longest_exchange=MAX_EXCHANGE)

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
_AGAIN = "a decision, a second submission, and the decision once more"

DEFECTS = (
    Defect("a store that overwrites", _TWO, overwrites=True),
    Defect(
        "a slot is closed without a look at whose it is",
        _TWO,
        patches=((_Attempt, "_close", _closes_whose_ever_it_is),),
    ),
    Defect("no record before the send", _TWO, patches=((_Attempt, "_create_intent", arms_without_a_record),)),
    Defect("a lost race is not noticed", _TWO, patches=((_Attempt, "_create_intent", _ignores_a_lost_race),)),
    Defect("who slept sends", _TWO, patches=((ledger_module, "_STALE_AFTER_SECONDS", float("inf")),)),
    Defect("a lost answer counts as not made", _TWO, patches=((ledger_module, "_NOTHING_MADE", (GatewayError,)),)),
    Defect("no outcome counts as not sent", _TWO, TakesNoOutcomeForNotSent),
    Defect("an outcome is written over another", _TWO, WritesOverWhatStands),
    Defect("what came late is not written", _TWO, ForgetsWhatCameLate),
    Defect("what came late is not read", _TWO, DoesNotSeeWhatCameLate),
    Defect("a decision settles the slot that is open", _AGAIN, SettlesTheOpenSlot),
    Defect(
        "anybody's evidence is believed", "an attempt, its retry, and an attempt of another run", BelievesAnyEvidence
    ),
    Defect("the outcome is written before the task is claimed", _WANTED, ClaimsAfterwards),
    Defect("a claim keeps nobody out", "two who adopt the same task for two keys", AdoptsWhatIsOwned),
    Defect("a fence stops nobody", _CLOSING, HeedsNoFence),
    Defect("closing leaves the slot free", _CLOSING, ClosesNothing),
    Defect("other submissions in doubt are not seen", _RECONCILED, SeesNoOthersInDoubt),
    Defect("owners are not seen, and a claim keeps nobody out", _RECONCILED, SeesNoOwners),
)
