"""What became of a submission whose outcome is unknown: the witnesses are heard before any person is asked.

An orphan is adopted only beyond doubt: the list that shows it is surely this account's, it is the only task of this
model in the time in question that nobody owns, the key was charged for it, and no other submission of the same model is
in doubt, whose it might be. Whatever else may be ours is shown, and never adopted. Nothing is ever sent again here.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from longtake.gateway.witnesses import OrphanCandidate, Testimony, Witnesses
from longtake.ledger import LOOK_AGAIN, Accepted, Doubt, Intent, SubmissionInDoubt, SubmissionLedger, TaskOwned

CLOCKS = timedelta(minutes=2)
"""Between the gateway's clock and ours."""
LATE = timedelta(minutes=3)
"""A stock gateway dates a task when its own upstream has accepted it, which may be after we have given up waiting."""
LATEST_TASK = timedelta(hours=24)
"""After a submission left; a gateway gives its tasks up after that time. Later ones are not looked for, and whoever
abandons a submission in doubt does not keep every later one from being found."""
_SOON = timedelta(seconds=30)
_MOST_CHARGES_SHOWN = 10
_CONTRADICTED = timedelta(minutes=1)


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
    """

    clear: bool = False
    accepted: Accepted | None = None
    candidates: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    elsewhere: str = ""
    retry_after: timedelta | None = None


async def reconcile(  # noqa: PLR0913 - each a fact of its own, named at the one call
    ledger: SubmissionLedger,
    witnesses: Witnesses | None,
    *,
    key: str,
    slot: int | None,
    model: str,
    owner: str,
    digest: str = "",
) -> Finding:
    """Look for the task of a submission in doubt, and adopt it where there is no doubt left.

    Args:
        ledger: What was sent, and by whom.
        witnesses: Who else knows of it; None where nobody does.
        key: The ledger's.
        slot: Which submission is in doubt, where that is known.
        model: Of the submission.
        owner: Who asks, for people who read the record.
        digest: Of the request, where the key may have been used for another one before.

    Raises:
        SubmissionInDoubt: Its owner may still be alive: ask again later.
        LedgerUnavailable: The store did not answer.
    """
    slot = slot or await ledger.open_slot(key)
    doubt = await ledger.doubt(key, slot) if slot else None
    if doubt is None:
        # Nothing is in doubt: it was paid, or nothing was made. An answer may have come after Temporal had given up.
        accepted = (await ledger.outcome_of(key, slot))[0] if slot else await ledger.accepted(key, digest)
        return Finding(clear=accepted is None, accepted=accepted)
    if not doubt.exchange_is_over:
        until = doubt.intent.over_at
        wait = min(until - datetime.now(UTC), LOOK_AGAIN)  # its owner may still write an answer down
        message = "it was sent, no usable answer has come, and its exchange may not be over"
        raise SubmissionInDoubt(f"{message}: from {until:%H:%M:%S} UTC on its task is looked for", wait)
    said = _what_it_said(doubt)
    if witnesses is None:
        return Finding(evidence=(*said, "there is no witness for this kind of submission"))
    gateway = doubt.intent.gateway
    if gateway and gateway != witnesses.origin:
        where = f"it was sent to {gateway}, and this worker knows {witnesses.origin} only: nobody was asked"
        return Finding(evidence=(*said, where), elsewhere=gateway)
    return await _Search(ledger, witnesses, key, model, doubt).run(owner, said)


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

    def __init__(self, ledger: SubmissionLedger, witnesses: Witnesses, key: str, model: str, doubt: Doubt) -> None:
        self._ledger = ledger
        self._witnesses = witnesses
        self._key = key
        self._model = model
        self._doubt = doubt
        self._since = doubt.intent.sent_at - CLOCKS
        self._due = doubt.intent.over_at + LATE
        self._evidence: list[str] = []
        self._waits: list[timedelta] = []

    async def run(self, owner: str, said: Sequence[str]) -> Finding:
        """Ask, weigh, and adopt where nothing speaks against it."""
        account = self._doubt.intent.account
        same_key = not account or account == self._witnesses.account
        testimony = await self._witnesses.ask(model=self._model, since=self._since, until=self._due, log=same_key)
        self._evidence += testimony.notes
        self._wait(testimony.retry_after)
        if not same_key:
            self._evidence.append("another API key paid than the one that this worker has: its log was not asked")
        later = await self._later_tasks()
        # In this order: what is not in doubt any more has an owner by the time that owners are asked for.
        rivals = await self._ledger.rivals(self._key, self._model)
        owners = await self._ledger.owners_of(task.task_id for task in testimony.seen)
        owned_later = await self._ledger.owners_of(task.task_id for task in later)
        due = [task for task in testimony.tasks or () if task.task_id not in owners]
        late = [task for task in later if task.task_id not in owned_later]
        orphans = [*due, *late]
        confirmed = testimony.tasks is not None and await self._is_confirmed(testimony, owners)
        if testimony.tasks is not None:
            self._evidence.append(f"{len(due)} of these tasks belong to nobody")
            if late:
                self._evidence.append(f"{len(late)} more were submitted later than expected, and may be it")
            if not confirmed:
                self._evidence.append("the list could not be confirmed: it shows no task that is known to be ours")
        unexplained = self._unexplained_charges(testimony, owners)

        accepted = None
        if len(due) == 1 and confirmed and self._is_all() and not self._may_be_theirs(due[0], rivals):
            if testimony.charges is None or any(_near(moment, due[0].submitted_at) for moment in unexplained):
                accepted = await self._adopt(due[0], owner)
            else:
                self._evidence.append(f"this API key was not charged for {due[0].task_id}")
        theirs = {rival.nonce: rival for task in orphans for rival in self._may_be_theirs(task, rivals)}
        if theirs:
            self._evidence.append(
                f"{len(theirs)} other submissions of this model are in doubt too, and may have made them"
            )
        now = datetime.now(UTC)
        if now <= self._due or any(now < rival.over_at for rival in theirs.values()):
            self._wait(_SOON)
        return Finding(
            accepted=accepted,
            candidates=tuple(orphan.task_id for orphan in orphans),
            evidence=(*said, *self._evidence),
            retry_after=None if accepted else min(self._waits, default=None),
        )

    def _is_all(self) -> bool:
        """Whether what the submission made would be in the list by now: before that, the only orphan may be another's.

        An answer of the gateway itself (a proxy's has no request id) comes when it has done all that it ever will;
        where its answer was lost, it may go on for as long as its owner would have waited.
        """
        response = self._doubt.response
        return bool(response and response.request_id) or datetime.now(UTC) >= self._doubt.intent.over_at

    async def _adopt(self, orphan: OrphanCandidate, owner: str) -> Accepted | None:
        reason = "reconciled: the only task of this model and time that nobody owns"
        try:
            return await self._ledger.settle(
                self._key, self._doubt.slot, task_id=orphan.task_id, reason=reason, owner=owner
            )
        except TaskOwned as error:  # since we asked
            self._evidence.append(str(error))
            return None

    async def _later_tasks(self) -> tuple[OrphanCandidate, ...]:
        """What came later than it should have: for a person, who may know better than we do."""
        until = min(datetime.now(UTC) + CLOCKS, self._doubt.intent.sent_at + LATEST_TASK)
        if until <= self._due:
            return ()
        # Asked for by itself: a list of a whole day may be too long, and that must not spoil the one that counts.
        since = self._due + timedelta(seconds=1)
        testimony = await self._witnesses.ask(model=self._model, since=since, until=until, log=False)
        if testimony.tasks is None:
            self._evidence += [f"later tasks: {note}" for note in testimony.notes]
        return testimony.tasks or ()

    async def _is_confirmed(self, testimony: Testimony, owners: dict[str, str]) -> bool:
        """Whether the list is this account's, and whole: stock answers a database error with an empty one.

        A task that the ledger knows shows in it; or, where none is due there, one shows in the same list asked without
        a window, and that one shows none that was missing.
        """
        if self._knows_one(owners):
            return True
        newest = await self._witnesses.ask_newest()
        self._evidence += newest.notes
        self._wait(newest.retry_after)
        shown = {task.task_id for task in testimony.seen}
        if any(
            task.submitted_at and self._since <= task.submitted_at <= self._due and task.task_id not in shown
            for task in newest.seen
        ):
            self._evidence.append("asked again, the list shows tasks of that time which it did not show before")
            self._wait(_CONTRADICTED)
            return False
        return self._knows_one(await self._ledger.owners_of(task.task_id for task in newest.seen))

    def _knows_one(self, owners: dict[str, str]) -> bool:
        """Whether one of these was paid by the account of the submission in doubt."""
        account = self._doubt.intent.account
        return any(not account or paid_by == account for paid_by in owners.values())

    def _unexplained_charges(self, testimony: Testimony, owners: Collection[str]) -> list[datetime]:
        """When the key was charged for something that no generation owns; each task explains the nearest charge."""
        charges = list(testimony.charged_at)
        for task in testimony.tasks or ():
            near = [moment for moment in charges if _near(moment, task.submitted_at)]
            if task.task_id in owners and near:
                charges.remove(min(near, key=lambda moment: abs(moment - task.submitted_at)))
        if charges:
            times = ", ".join(f"{moment:%Y-%m-%d %H:%M:%S}" for moment in charges[:_MOST_CHARGES_SHOWN])
            more = f" and {len(charges) - _MOST_CHARGES_SHOWN} more" if len(charges) > _MOST_CHARGES_SHOWN else ""
            self._evidence.append(f"no generation owns what was charged at (UTC): {times}{more}")
        return charges

    def _may_be_theirs(self, orphan: OrphanCandidate, rivals: Sequence[Intent]) -> list[Intent]:
        """Which other submissions may have made that task: however late it came."""
        gateway = self._witnesses.origin
        return [
            rival
            for rival in rivals
            if rival.sent_at - CLOCKS <= orphan.submitted_at <= rival.sent_at + LATEST_TASK
            and rival.gateway in {"", gateway}
        ]

    def _wait(self, wait: timedelta | None) -> None:
        self._waits += [wait] if wait else []


def _near(one: datetime, other: datetime) -> bool:
    """Whether two moments of the gateway's clock may be of the same submission."""
    return abs(one - other) <= CLOCKS
