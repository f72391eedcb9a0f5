"""What became of a submission whose outcome is unknown: the witnesses are heard before any person is asked.

An orphan is adopted only beyond doubt: it is the only task of this model in the time in question that nobody owns, and
no other submission of the same model is in doubt, whose it might be. Nothing is ever sent again here.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from longtake.gateway.witnesses import OrphanCandidate, Witnesses
from longtake.ledger import LOOK_AGAIN, Accepted, Intent, SubmissionInDoubt, SubmissionLedger

CLOCKS = timedelta(minutes=2)
"""Between the gateway's clock and ours."""
LATE = timedelta(minutes=3)
"""A stock gateway dates a task when its own upstream has accepted it, which may be after we have given up waiting."""


@dataclass(frozen=True)
class Finding:
    """What the witnesses say.

    Attributes:
        clear: Nothing is in doubt (any more), and nothing was made.
        accepted: The task, where it is known beyond doubt; the ledger has it by then.
        candidates: Task ids that it may be.
        evidence: What was learnt, one sentence each, for a person.
    """

    clear: bool = False
    accepted: Accepted | None = None
    candidates: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()


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
    if slot is None:
        # Nothing is in doubt: it was paid, or nothing was made. An answer may have come after Temporal had given up.
        accepted = await ledger.accepted(key, digest)
        return Finding(clear=accepted is None, accepted=accepted)
    accepted, settled = await ledger.outcome_of(key, slot)
    if settled:
        return Finding(clear=accepted is None, accepted=accepted)
    doubt = await ledger.doubt(key, slot)
    if doubt is None:
        return await reconcile(
            ledger, witnesses, key=key, slot=slot, model=model, owner=owner, digest=digest
        )  # its outcome has come this moment
    since, until = doubt.intent.sent_at, doubt.intent.over_at
    if not doubt.exchange_is_over:
        wait = min(until - datetime.now(UTC), LOOK_AGAIN)  # its owner may still write an answer down
        message = "it was sent, no usable answer has come, and its exchange may not be over"
        raise SubmissionInDoubt(f"{message}: from {until:%H:%M:%S} UTC on its task is looked for", wait)
    if witnesses is None:
        return Finding(evidence=("there is no witness for this kind of submission",))
    testimony = await witnesses.ask(model=model, since=since - CLOCKS, until=until + LATE)
    others = await ledger.rivals(key, model)
    owned = await ledger.owners_of(task.task_id for task in testimony.tasks or ())
    orphans = [task for task in testimony.tasks or () if task.task_id not in owned]
    rivals = sum(any(_may_be(rival, orphan) for orphan in orphans) for rival in others)
    if len(orphans) == 1 and not rivals and testimony.charges != 0:
        reason = "reconciled: the only task of this model and time that nobody owns"
        accepted = await ledger.settle(key, slot, task_id=orphans[0].task_id, reason=reason, owner=owner)
    evidence = list(testimony.notes)
    if testimony.tasks is not None:
        evidence.append(f"{len(orphans)} of these tasks belong to nobody")
    if rivals:
        evidence.append(f"{rivals} other submissions of this model and time are in doubt too, and may have made them")
    candidates = tuple(orphan.task_id for orphan in orphans)
    return Finding(accepted=accepted, candidates=candidates, evidence=tuple(evidence))


def _may_be(intent: Intent, orphan: OrphanCandidate) -> bool:
    """Whether this submission may have made that task."""
    return intent.sent_at - CLOCKS <= orphan.submitted_at <= intent.over_at + LATE
