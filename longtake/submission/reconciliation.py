"""What became of a submission in doubt: the account's records are checked before a person is asked.

An orphan (a task that no key of the ledger owns) is adopted only beyond doubt: the list that shows it is surely this
account's, it is the only orphan of this model at the time in question, the key was charged for it, and no other
submission of the same model is in doubt that may have made it. Any other candidate is shown, and never adopted. Where
the worker that sent it had a wrong clock, the store's time counts as well, and a person decides.

Where an operator allows it, a submission is closed as "not charged", so that the workflow submits again: only where
usage log and task list both say so (`longtake.submission.charges`), both are confirmed, an earlier check said the same,
and at most `MAX_RESUBMISSIONS` times for one key. Nothing is sent here.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum

from longtake.gateway.account import AccountClient, AccountRecords, Charge, OrphanCandidate
from longtake.models import Paid, ReconcileInput, Reconciliation, SubmissionReceipt
from longtake.submission.charges import CLOCK_SKEW, ChargeEvidence, Verdict, judge, names_requests
from longtake.submission.errors import SubmissionInDoubt, TaskOwned
from longtake.submission.ledger import POLL_AGAIN, Doubt, OpenSubmission, SubmissionLedger
from longtake.submission.records import Intent, TaskOwner

REPORTING_DELAY = timedelta(minutes=3)
"""A stock gateway dates a task when its own upstream has accepted it, which may be after our timeout."""
LATEST_TASK = timedelta(hours=24)
"""After a submission left; a gateway gives its tasks up after that time. Later tasks are not searched, so that a
submission in doubt that somebody abandoned does not keep later ones from being adopted."""
_SOON = timedelta(seconds=30)
_SAME_TIME = timedelta(seconds=10)
"""Between a writer's clock, when it dates its intent, and the store's, when the entry of the index is written."""
_MAX_CHARGES_SHOWN = 10
MAX_RESUBMISSIONS = 2
"""For one key, and for good: a person looks into what was not charged twice."""
_CONTRADICTED = timedelta(minutes=1)
_NONE_LATER = AccountRecords(tasks=())
"""Before the time of a submission is over, nothing can be later."""


class Resubmit(Enum):
    """Whether a submission that was not charged may be closed, so that it is submitted again without a person."""

    NEVER = "never"
    """The operator has not allowed it."""
    IF_CONFIRMED = "if confirmed"
    """Not by this check: a later one has to confirm it."""
    NOW = "now"
    """An earlier check said the same."""


async def reconcile(
    ledger: SubmissionLedger,
    account_client: AccountClient | None,
    question: ReconcileInput,
    *,
    writer: str,
    resubmit: Resubmit = Resubmit.NEVER,
) -> Reconciliation:
    """Search the account's records for the task of a submission in doubt, and adopt it where there is no doubt left.

    Args:
        ledger: What was sent, and for which key.
        account_client: Reads the account's records; None where there are none for this submission.
        question: Which submission; without `slot`, the one of the key that is in doubt.
        writer: Who asks, for people who read the record.
        resubmit: Whether one that was not charged may be closed.

    Raises:
        SubmissionInDoubt: Its writer may still be alive: ask again later.
        LedgerUnavailable: The store did not answer.
    """
    key = question.key
    slot = question.slot or await ledger.open_slot(key)
    doubt = await ledger.doubt(key, slot) if slot else None
    if doubt is None:
        # Nothing is in doubt: it was paid, or nothing was made. A response may have come after Temporal's timeout.
        receipt = await ledger.outcome_of(key, slot) if slot else await ledger.accepted(key, question.digest)
        return Reconciliation(
            clear=receipt is None,
            receipt=receipt,
            slot=question.slot,
            resubmissions=await ledger.resubmissions(key),
        )
    if not doubt.exchange_is_over:
        until = doubt.intent.over_at
        wait = min(until - datetime.now(UTC), POLL_AGAIN)  # its writer may still write an outcome
        raise SubmissionInDoubt(
            "it was sent, no usable response has come, and its exchange may not be over: the search begins "
            f"at {until:%H:%M:%S} UTC",
            wait,
        )
    known = _what_the_gateway_responded(doubt)
    gateway = doubt.intent.gateway
    elsewhere: str | None = None
    if account_client is None:
        known.append("the account has no records of this kind of submission")
    elif gateway and gateway != account_client.origin:
        elsewhere = gateway
        known.append(f"it was sent to {gateway}, and this worker uses {account_client.origin}: nothing was checked")
    else:
        return await _Search(ledger, account_client, question, doubt, known).run(writer, resubmit)
    return Reconciliation(evidence=tuple(known), elsewhere=elsewhere, slot=question.slot, charged=Paid.UNKNOWN)


def _what_the_gateway_responded(doubt: Doubt) -> list[str]:
    response = doubt.response
    if response is None:
        return []
    request = f" (request {response.request_id})" if response.request_id else ""
    known = [f"the exchange ended without a task id{request}: {response.reason}"]
    return [*known, f"the gateway's response: {response.excerpt}"] if response.excerpt else known


class _Search:
    """One check of the account's records about one submission in doubt."""

    def __init__(
        self,
        ledger: SubmissionLedger,
        account_client: AccountClient,
        question: ReconcileInput,
        doubt: Doubt,
        evidence: list[str],
    ) -> None:
        self._ledger = ledger
        self._account_client = account_client
        self._question = question
        self._key = question.key
        self._model = question.model
        self._doubt = doubt
        self._evidence = evidence
        self._waits: list[timedelta] = []
        self._set_times(doubt.intent.sent_at, doubt.intent.sent_at)

    def _set_times(self, earliest: datetime, latest: datetime) -> None:
        """Set what is searched, for a submission that was sent between these two."""
        self._sent = earliest, latest
        self._over_at = latest + timedelta(seconds=self._doubt.intent.window_seconds)
        self._since = earliest - CLOCK_SKEW
        self._due = self._over_at + REPORTING_DELAY
        self._latest = min(datetime.now(UTC) + CLOCK_SKEW, latest + LATEST_TASK)
        self._clock_is_right = latest - earliest <= CLOCK_SKEW

    async def run(self, writer: str, resubmit: Resubmit) -> Reconciliation:
        """Ask, weigh, and adopt where nothing speaks against it."""
        reported, later, others = await self._ask()
        # In this order: what is not in doubt any more has an owner by the time that owners are read.
        owners = await self._ledger.owners_of(task.task_id for task in reported.seen)
        owned_later = await self._ledger.owners_of(task.task_id for task in later.seen)
        claimed = self._take_claimed(owners) | self._take_claimed(owned_later)
        if len(claimed) == 1:
            receipt = await self._adopt(claimed.pop(), "reconciled: claimed for this submission before", writer)
            if receipt is not None:
                return self._result(receipt=receipt, charged=Paid.YES)
        due = [task for task in reported.tasks or () if task.task_id not in owners]
        late = [task for task in later.tasks or () if task.task_id not in owned_later]
        orphans = [*due, *late]
        confirmed = reported.tasks is not None and await self._is_confirmed(reported, owners)
        if reported.tasks is not None:
            self._describe(len(due), len(late), confirmed=confirmed)
        # Each request may meet a database that fails, so what came later is confirmed by itself.
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

        receipt = None
        if (
            len(due) == 1
            and due[0].model
            and confirmed
            and self._clock_is_right
            and self._is_all()
            and not self._possible_makers(due[0], others)
        ):
            receipt = await self._adopt_if_charged(due[0], reported, unexplained, writer)
        makers = {other.nonce: other for task in orphans for other in self._possible_makers(task, others)}
        if makers:
            self._evidence.append(
                f"{len(makers)} other submissions of this model are in doubt too, and may have made them"
            )
        now = datetime.now(UTC)
        if now <= self._due or any(now < other.over_at for other in makers.values()):
            self._wait(_SOON)
        may_resubmit = whole and self._clock_is_right and not orphans and resubmit is not Resubmit.NEVER
        if receipt is None and verdict.charged is Paid.NO and may_resubmit:
            return await self._not_charged(verdict, writer, resubmit)
        if resubmit is not Resubmit.NEVER:
            self._wait(verdict.wait)
        return self._result(
            receipt=receipt,
            candidates=tuple(orphan.task_id for orphan in orphans),
            retry_after=None if receipt else min(self._waits, default=None),
            charged=Paid.YES if receipt else verdict.charged,
        )

    def _result(self, **fields: object) -> Reconciliation:
        known = {"slot": self._question.slot, "evidence": tuple(self._evidence)}
        return Reconciliation.model_validate({**known, **fields})

    async def _not_charged(self, verdict: Verdict, writer: str, resubmit: Resubmit) -> Reconciliation:
        """Usage log and task list both show no charge: close it, where that is allowed now."""
        done = await self._ledger.resubmissions(self._key)
        receipt, clear = None, False
        if done >= MAX_RESUBMISSIONS:
            self._evidence.append(f"the worker has submitted it again {done} times already: a person must decide")
        elif resubmit is Resubmit.NOW:
            reason = f"not charged: {verdict.why} ({writer})"
            receipt = await self._ledger.resolve(
                self._key, self._doubt.slot, task_id=None, reason=reason, not_charged=True
            )
            clear, done = receipt is None, await self._ledger.resubmissions(self._key)
        return self._result(
            clear=clear,
            receipt=receipt,
            charged=verdict.charged,
            resubmittable=not clear and receipt is None and done < MAX_RESUBMISSIONS,
            resubmissions=done,
        )

    def _is_all(self) -> bool:
        """Whether the submission's task would be in the list by now: before that, the only orphan may be another's.

        The gateway itself (a proxy's response has no request id) responds when it has done all that it ever will;
        where its response was lost, it may go on for as long as the writer would have waited.
        """
        response = self._doubt.response
        return bool(response and response.request_id) or datetime.now(UTC) >= self._over_at

    def _widen(self, listed_at: datetime | None) -> bool:
        """Search by the store's clock too, where it dates the submission elsewhere; whether that was not done yet."""
        if listed_at is None or self._sent[0] - _SAME_TIME <= listed_at <= self._sent[1] + _SAME_TIME:
            return False
        self._set_times(*OpenSubmission(self._doubt.intent, listed_at).sent_between)
        return True

    def _describe(self, due: int, late: int, *, confirmed: bool) -> None:
        self._evidence.append(f"{due} of these tasks belong to nobody")
        if late:
            self._evidence.append(f"{late} more were submitted later than expected, and may be it")
        if not confirmed:
            self._evidence.append("the list could not be confirmed: it shows no task that is known to be ours")

    async def _adopt_if_charged(
        self, orphan: OrphanCandidate, reported: AccountRecords, unexplained: Sequence[Charge], writer: str
    ) -> SubmissionReceipt | None:
        if reported.charges is None and reported.retry_after:
            # The list was read, so the log can be read later: it may name another request for the charge.
            self._evidence.append(f"{orphan.task_id} is not adopted before the usage log can be read")
            return None
        near = any(charge.at and _near(charge.at, orphan.submitted_at) for charge in unexplained)
        if reported.charges is None or near:
            reason = "reconciled: the only task of this model and time that nobody owns"
            return await self._adopt(orphan.task_id, reason, writer)
        self._evidence.append(f"this API key was not charged for {orphan.task_id}")
        return None

    def _take_claimed(self, owners: dict[str, TaskOwner]) -> set[str]:
        """Remove the owners that are this very submission: its writer died before it could write the outcome."""
        own = {task_id for task_id, task_owner in owners.items() if task_owner.nonce == self._doubt.intent.nonce}
        for task_id in own:
            del owners[task_id]
        return own

    async def _adopt(self, task_id: str, reason: str, writer: str) -> SubmissionReceipt | None:
        try:
            return await self._ledger.resolve(
                self._key, self._doubt.slot, task_id=task_id, reason=f"{reason} ({writer})"
            )
        except TaskOwned as error:  # since the owners were read
            self._evidence.append(str(error))
            return None

    async def _ask(self) -> tuple[AccountRecords, AccountRecords, tuple[OpenSubmission, ...]]:
        """What the account's records show of that time and later, and then what else is in doubt."""
        known = list(self._evidence)
        account = self._doubt.intent.account
        same_key = not account or account == self._account_client.account
        reported = await self._account_client.ask(model=self._model, since=self._since, until=self._due, log=same_key)
        self._evidence += reported.notes
        self._wait(reported.retry_after)
        if not same_key:
            self._evidence.append("another API key paid than this worker has: its log was not read")
        later = await self._ask_later()
        still_open = await self._ledger.open_submissions(self._key, self._model)
        if self._widen(still_open.listed_at.get(self._doubt.slot)):
            self._evidence = known
            if not self._clock_is_right:
                times = " or ".join(f"{moment:%H:%M:%S}" for moment in self._sent)
                self._evidence.append(
                    f"it was sent at {times} UTC: its worker's clock and the store's differ, so a person must decide"
                )
            return await self._ask()
        return reported, later, still_open.others

    async def _ask_later(self) -> AccountRecords:
        """Tasks that came later than expected: shown to a person, who may know more."""
        if self._latest <= self._due:
            return _NONE_LATER
        # A request of its own: a list of a whole day may be too long, which must not make the first one incomplete.
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
        """The charges that no generation owns, and that may be ours. Each owned task explains the nearest charge.

        Where the log names requests as we know them, a charge of another request is not ours.
        """
        window = set(reported.charged_at)
        charges = [one for one in reported.logged or () if one.at in window and one.model == self._model]
        for task in reported.tasks or ():
            task_owner = records.owners.get(task.task_id)
            request_id = task_owner.request_id if task_owner else None
            exact = [charge for charge in charges if request_id and charge.request_id == request_id]
            near = [(abs(charge.at - task.submitted_at), place) for place, charge in enumerate(charges) if charge.at]
            if task_owner and exact:
                charges.remove(exact[0])
            elif task_owner and near and min(near)[0] <= CLOCK_SKEW:
                del charges[min(near)[1]]
        response, account = self._doubt.response, self._doubt.intent.account
        if response and response.request_id and names_requests(records, account):
            charges = [one for one in charges if one.request_id in {None, response.request_id}]
        if charges:
            moments = sorted(charge.at for charge in charges if charge.at)
            times = ", ".join(f"{moment:%Y-%m-%d %H:%M:%S}" for moment in moments[:_MAX_CHARGES_SHOWN])
            more = f" and {len(charges) - _MAX_CHARGES_SHOWN} more" if len(charges) > _MAX_CHARGES_SHOWN else ""
            self._evidence.append(f"no generation owns the charges at (UTC): {times}{more}")
        return charges

    def _possible_makers(self, orphan: OrphanCandidate, others: Sequence[OpenSubmission]) -> list[Intent]:
        """Which other submissions may have made that task, however late it came."""
        makers = []
        for other in others:
            earliest, latest = other.sent_between
            in_time = earliest - CLOCK_SKEW <= orphan.submitted_at <= latest + LATEST_TASK
            if in_time and other.intent.gateway in {"", self._account_client.origin}:
                makers.append(other.intent)
        return makers

    def _wait(self, wait: timedelta | None) -> None:
        self._waits += [wait] if wait else []


def _near(one: datetime, other: datetime) -> bool:
    """Whether two moments of the gateway's clock may be of the same submission."""
    return abs(one - other) <= CLOCK_SKEW
