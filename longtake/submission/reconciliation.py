"""What became of a submission whose outcome is unknown: the witnesses are heard before any person is asked.

An orphan is adopted only beyond doubt: the list that shows it is surely this account's, it is the only task of this
model in the time in question that nobody owns, the key was charged for it, and no other submission of the same model is
in doubt, whose it might be. Whatever else may be ours is shown, and never adopted.

Where an operator has allowed it, a submission is closed as "not charged", so that the workflow submits again: only
where usage log and task list both say so (`longtake.submission.charges`), both are confirmed, an earlier check said the
same, and not more than `MAX_RESUBMISSIONS` times for one key. Nothing is sent here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum

from longtake.gateway.account import AccountClient, AccountRecords, Charge, OrphanCandidate
from longtake.models import Paid
from longtake.submission.charges import CLOCK_SKEW, ChargeEvidence, Verdict, judge, names_requests
from longtake.submission.ledger import (
    POLL_AGAIN,
    Accepted,
    Doubt,
    Intent,
    SubmissionInDoubt,
    SubmissionLedger,
    TaskOwned,
    TaskOwner,
)

REPORTING_DELAY = timedelta(minutes=3)
"""A stock gateway dates a task when its own upstream has accepted it, which may be after we have given up waiting."""
LATEST_TASK = timedelta(hours=24)
"""After a submission left; a gateway gives its tasks up after that time. Later ones are not looked for, and whoever
abandons a submission in doubt does not keep every later one from being found."""
_SOON = timedelta(seconds=30)
_MAX_CHARGES_SHOWN = 10
MAX_RESUBMISSIONS = 2
"""For one key, and for good: what was not charged twice is looked into by a person."""
_CONTRADICTED = timedelta(minutes=1)


_NONE_LATER = AccountRecords(tasks=())
"""Where the time of a submission is not over, nothing can be later."""


class Resubmit(Enum):
    """Whether a submission that was not charged may be closed, so that it is submitted again without a person."""

    NEVER = "never"
    """The operator has not allowed it."""
    IF_CONFIRMED = "if confirmed"
    """Not by this check: it has to be confirmed by a later one."""
    NOW = "now"
    """An earlier check said the same."""


@dataclass(frozen=True)
class Finding:
    """What the witnesses say.

    Attributes:
        clear: Nothing is in doubt (any more), and nothing was made.
        accepted: The task, where it is known beyond doubt; the ledger has it by then.
        candidates: Task ids that it may be.
        evidence: What was learnt, one sentence each, for a person.
        elsewhere: The gateway that it was sent to, where the witnesses are another one's.
        retry_after: When asking again may show more; None where it pays no more than at any other time.
        charged: What the account's records show; None where nothing is in doubt.
        resubmittable: A later check that says the same may close it as not charged.
        resubmissions: How often this key was closed so.
    """

    clear: bool = False
    accepted: Accepted | None = None
    candidates: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    elsewhere: str = ""
    retry_after: timedelta | None = None
    charged: Paid | None = None
    resubmittable: bool = False
    resubmissions: int = 0


async def reconcile(  # noqa: PLR0913 - each a fact of its own, named at the one call
    ledger: SubmissionLedger,
    account_client: AccountClient | None,
    *,
    key: str,
    slot: int | None,
    model: str,
    owner: str,
    digest: str = "",
    resubmit: Resubmit = Resubmit.NEVER,
) -> Finding:
    """Look for the task of a submission in doubt, and adopt it where there is no doubt left.

    Args:
        ledger: What was sent, and by whom.
        account_client: Who else knows of it; None where nobody does.
        key: The ledger's.
        slot: Which submission is in doubt, where that is known.
        model: Of the submission.
        owner: Who asks, for people who read the record.
        digest: Of the request, where the key may have been used for another one before.
        resubmit: Whether one that was not charged may be closed.

    Raises:
        SubmissionInDoubt: Its owner may still be alive: ask again later.
        LedgerUnavailable: The store did not answer.
    """
    slot = slot or await ledger.open_slot(key)
    doubt = await ledger.doubt(key, slot) if slot else None
    if doubt is None:
        # Nothing is in doubt: it was paid, or nothing was made. An answer may have come after Temporal had given up.
        accepted = await ledger.outcome_of(key, slot) if slot else await ledger.accepted(key, digest)
        return Finding(clear=accepted is None, accepted=accepted, resubmissions=await ledger.resubmissions(key))
    if not doubt.exchange_is_over:
        until = doubt.intent.over_at
        wait = min(until - datetime.now(UTC), POLL_AGAIN)  # its owner may still write an answer down
        message = "it was sent, no usable answer has come, and its exchange may not be over"
        raise SubmissionInDoubt(f"{message}: from {until:%H:%M:%S} UTC on its task is looked for", wait)
    said = _what_it_said(doubt)
    if account_client is None:
        no_records = "there is no witness for this kind of submission"
        return Finding(evidence=(*said, no_records), charged=Paid.UNKNOWN)
    gateway = doubt.intent.gateway
    if gateway and gateway != account_client.origin:
        where = f"it was sent to {gateway}, and this worker knows {account_client.origin} only: nobody was asked"
        return Finding(evidence=(*said, where), elsewhere=gateway, charged=Paid.UNKNOWN)
    return await _Search(ledger, account_client, key, model, doubt).run(owner, said, resubmit)


def _what_it_said(doubt: Doubt) -> list[str]:
    """What the gateway answered to it, if it did."""
    response = doubt.response
    if response is None:
        return []
    named = f" (request {response.request_id})" if response.request_id else ""
    said = [f"the exchange ended without a task id{named}: {response.reason}"]
    return [*said, f"the gateway's answer: {response.excerpt}"] if response.excerpt else said


class _Search:
    """One question about one submission in doubt."""

    def __init__(
        self, ledger: SubmissionLedger, account_client: AccountClient, key: str, model: str, doubt: Doubt
    ) -> None:
        self._ledger = ledger
        self._account_client = account_client
        self._key = key
        self._model = model
        self._doubt = doubt
        self._since = doubt.intent.sent_at - CLOCK_SKEW
        self._due = doubt.intent.over_at + REPORTING_DELAY
        self._latest = min(datetime.now(UTC) + CLOCK_SKEW, doubt.intent.sent_at + LATEST_TASK)
        self._evidence: list[str] = []
        self._waits: list[timedelta] = []

    async def run(self, owner: str, said: Sequence[str], resubmit: Resubmit) -> Finding:
        """Ask, weigh, and adopt where nothing speaks against it."""
        account = self._doubt.intent.account
        same_key = not account or account == self._account_client.account
        reported = await self._account_client.ask(model=self._model, since=self._since, until=self._due, log=same_key)
        self._evidence += reported.notes
        self._wait(reported.retry_after)
        if not same_key:
            self._evidence.append("another API key paid than the one that this worker has: its log was not asked")
        later = await self._ask_later()
        # In this order: what is not in doubt any more has an owner by the time that owners are asked for.
        others_in_doubt = await self._ledger.others_in_doubt(self._key, self._model)
        owners = await self._ledger.owners_of(task.task_id for task in reported.seen)
        owned_later = await self._ledger.owners_of(task.task_id for task in later.seen)
        claimed = self._take_claimed(owners) | self._take_claimed(owned_later)
        if len(claimed) == 1:
            accepted = await self._adopt(claimed.pop(), "reconciled: claimed for this submission before", owner)
            if accepted is not None:
                return Finding(accepted=accepted, evidence=(*said, *self._evidence), charged=Paid.YES)
        due = [task for task in reported.tasks or () if task.task_id not in owners]
        late = [task for task in later.tasks or () if task.task_id not in owned_later]
        orphans = [*due, *late]
        confirmed = reported.tasks is not None and await self._is_confirmed(reported, owners)
        if reported.tasks is not None:
            self._describe(len(due), len(late), confirmed=confirmed)
        # Each question may meet a database that fails, so what came later is confirmed by itself.
        whole = confirmed and later.tasks is not None and (later is _NONE_LATER or self._knows_one(owned_later))
        records = ChargeEvidence(
            charges=reported.logged,
            tasks=(*(reported.tasks or ()), *(later.tasks or ())) if whole else None,
            owners={**owners, **owned_later},
            model=self._model,
            since=self._since,
            until=max(self._due, self._latest),
        )
        verdict = judge(self._doubt, records, datetime.now(UTC))
        self._evidence.append(f"charged: {verdict.charged}: {verdict.why}")
        unexplained = self._unexplained_charges(reported, records)

        accepted = None
        if (
            len(due) == 1
            and due[0].model
            and confirmed
            and self._is_all()
            and not self._may_be_theirs(due[0], others_in_doubt)
        ):
            accepted = await self._adopt_if_charged(due[0], reported, unexplained, owner)
        theirs = {rival.nonce: rival for task in orphans for rival in self._may_be_theirs(task, others_in_doubt)}
        if theirs:
            self._evidence.append(
                f"{len(theirs)} other submissions of this model are in doubt too, and may have made them"
            )
        now = datetime.now(UTC)
        if now <= self._due or any(now < rival.over_at for rival in theirs.values()):
            self._wait(_SOON)
        if accepted is None and verdict.charged is Paid.NO and whole and not orphans and resubmit is not Resubmit.NEVER:
            return await self._not_charged(verdict, owner, said, resubmit)
        if resubmit is not Resubmit.NEVER:
            self._wait(verdict.wait)
        return Finding(
            accepted=accepted,
            candidates=tuple(orphan.task_id for orphan in orphans),
            evidence=(*said, *self._evidence),
            retry_after=None if accepted else min(self._waits, default=None),
            charged=Paid.YES if accepted else verdict.charged,
        )

    async def _not_charged(self, verdict: Verdict, owner: str, said: Sequence[str], resubmit: Resubmit) -> Finding:
        """Usage log and task list both show no charge: close it, where that is allowed now."""
        done = await self._ledger.resubmissions(self._key)
        accepted, clear = None, False
        if done >= MAX_RESUBMISSIONS:
            self._evidence.append(f"it was submitted again by itself {done} times already: a person must decide")
        elif resubmit is Resubmit.NOW:
            reason = f"not charged: {verdict.why}"
            accepted = await self._ledger.resolve(
                self._key, self._doubt.slot, task_id=None, reason=reason, owner=owner, not_charged=True
            )
            clear, done = accepted is None, await self._ledger.resubmissions(self._key)
        return Finding(
            clear=clear,
            accepted=accepted,
            evidence=(*said, *self._evidence),
            charged=verdict.charged,
            resubmittable=not clear and accepted is None and done < MAX_RESUBMISSIONS,
            resubmissions=done,
        )

    def _is_all(self) -> bool:
        """Whether what the submission made would be in the list by now: before that, the only orphan may be another's.

        An answer of the gateway itself (a proxy's has no request id) comes when it has done all that it ever will;
        where its answer was lost, it may go on for as long as its owner would have waited.
        """
        response = self._doubt.response
        return bool(response and response.request_id) or datetime.now(UTC) >= self._doubt.intent.over_at

    def _describe(self, due: int, late: int, *, confirmed: bool) -> None:
        self._evidence.append(f"{due} of these tasks belong to nobody")
        if late:
            self._evidence.append(f"{late} more were submitted later than expected, and may be it")
        if not confirmed:
            self._evidence.append("the list could not be confirmed: it shows no task that is known to be ours")

    async def _adopt_if_charged(
        self, orphan: OrphanCandidate, reported: AccountRecords, unexplained: Sequence[Charge], owner: str
    ) -> Accepted | None:
        if reported.charges is None and reported.retry_after:
            # The list was read, so it is the log that answers later: it may name another request for the charge.
            self._evidence.append(f"{orphan.task_id} is not adopted before the usage log can be read")
            return None
        near = any(charge.at and _near(charge.at, orphan.submitted_at) for charge in unexplained)
        if reported.charges is None or near:
            reason = "reconciled: the only task of this model and time that nobody owns"
            return await self._adopt(orphan.task_id, reason, owner)
        self._evidence.append(f"this API key was not charged for {orphan.task_id}")
        return None

    def _take_claimed(self, owners: dict[str, TaskOwner]) -> set[str]:
        """Take out what is owned for this very submission: its writer died before it could write the outcome."""
        mine = {task_id for task_id, task_owner in owners.items() if task_owner.nonce == self._doubt.intent.nonce}
        for task_id in mine:
            del owners[task_id]
        return mine

    async def _adopt(self, task_id: str, reason: str, owner: str) -> Accepted | None:
        try:
            return await self._ledger.resolve(self._key, self._doubt.slot, task_id=task_id, reason=reason, owner=owner)
        except TaskOwned as error:  # since we asked
            self._evidence.append(str(error))
            return None

    async def _ask_later(self) -> AccountRecords:
        """What came later than it should have: for a person, who may know better than we do."""
        if self._latest <= self._due:
            return _NONE_LATER
        # Asked for by itself: a list of a whole day may be too long, and that must not spoil the one that counts.
        since = self._due + timedelta(seconds=1)
        reported = await self._account_client.ask(model=self._model, since=since, until=self._latest, log=False)
        if reported.tasks is None:
            self._evidence += [f"later tasks: {note}" for note in reported.notes]
        return reported

    async def _is_confirmed(self, reported: AccountRecords, owners: Mapping[str, TaskOwner]) -> bool:
        """Whether the list is this account's, and whole: stock answers a database error with an empty one.

        A task that the ledger knows shows in it; or, where none is due there, one shows in the same list asked without
        a window, and that one shows none that was missing.
        """
        if self._knows_one(owners):
            return True
        newest = await self._account_client.ask_newest()
        self._evidence += newest.notes
        self._wait(newest.retry_after)
        shown = {task.task_id for task in reported.seen}
        if any(
            task.submitted_at and self._since <= task.submitted_at <= self._due and task.task_id not in shown
            for task in newest.seen
        ):
            self._evidence.append("asked again, the list shows tasks of that time which it did not show before")
            self._wait(_CONTRADICTED)
            return False
        return self._knows_one(await self._ledger.owners_of(task.task_id for task in newest.seen))

    def _knows_one(self, owners: Mapping[str, TaskOwner]) -> bool:
        """Whether one of these was paid by the account of the submission in doubt."""
        account = self._doubt.intent.account
        return any(not account or owner.account == account for owner in owners.values())

    def _unexplained_charges(self, reported: AccountRecords, records: ChargeEvidence) -> list[Charge]:
        """What the key was charged that no generation owns, and that may be ours; else each task explains the nearest.

        Where the log names requests as we know them, a charge of another request is not ours.
        """
        window = set(reported.charged_at)
        charges = [one for one in reported.logged or () if one.at in window and one.model == self._model]
        for task in reported.tasks or ():
            task_owner = records.owners.get(task.task_id)
            request_id = task_owner.request_id if task_owner else None
            named = [charge for charge in charges if request_id and charge.request_id == request_id]
            near = [(abs(charge.at - task.submitted_at), place) for place, charge in enumerate(charges) if charge.at]
            if task_owner and named:
                charges.remove(named[0])
            elif task_owner and near and min(near)[0] <= CLOCK_SKEW:
                del charges[min(near)[1]]
        response, account = self._doubt.response, self._doubt.intent.account
        if response and response.request_id and names_requests(records, account):
            charges = [one for one in charges if one.request_id in {None, response.request_id}]
        if charges:
            moments = sorted(charge.at for charge in charges if charge.at)
            times = ", ".join(f"{moment:%Y-%m-%d %H:%M:%S}" for moment in moments[:_MAX_CHARGES_SHOWN])
            more = f" and {len(charges) - _MAX_CHARGES_SHOWN} more" if len(charges) > _MAX_CHARGES_SHOWN else ""
            self._evidence.append(f"no generation owns what was charged at (UTC): {times}{more}")
        return charges

    def _may_be_theirs(self, orphan: OrphanCandidate, others_in_doubt: Sequence[Intent]) -> list[Intent]:
        """Which other submissions may have made that task: however late it came."""
        gateway = self._account_client.origin
        return [
            rival
            for rival in others_in_doubt
            if rival.sent_at - CLOCK_SKEW <= orphan.submitted_at <= rival.sent_at + LATEST_TASK
            and rival.gateway in {"", gateway}
        ]

    def _wait(self, wait: timedelta | None) -> None:
        self._waits += [wait] if wait else []


def _near(one: datetime, other: datetime) -> bool:
    """Whether two moments of the gateway's clock may be of the same submission."""
    return abs(one - other) <= CLOCK_SKEW
