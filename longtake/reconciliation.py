"""What became of a submission whose outcome is unknown: the witnesses are heard before any person is asked.

An orphan is adopted only beyond doubt: it is the only task of this model in the time in question that nobody owns, and
no other submission of the same model is in doubt, whose it might be. Nothing is ever sent again here.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from longtake.gateway.witnesses import Testimony, Witnesses
from longtake.ledger import Accepted, Neighbours, SubmissionInDoubt, SubmissionLedger

CLOCKS = timedelta(minutes=2)
"""Between the gateway's clock and ours."""
LATE = timedelta(minutes=10)
"""A stock gateway dates a task when its own upstream has accepted it, which may be after we have given up waiting."""


@dataclass(frozen=True)
class Finding:
    """What the witnesses say.

    Attributes:
        clear: Nothing is in doubt (any more).
        accepted: The task, where it is known beyond doubt; the ledger has it by then.
        candidates: Task ids that it may be.
        evidence: What was learnt, one sentence each, for a person.
    """

    clear: bool = False
    accepted: Accepted | None = None
    candidates: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()


async def reconcile(
    ledger: SubmissionLedger, witnesses: Witnesses | None, *, key: str, model: str, owner: str
) -> Finding:
    """Look for the task of a submission in doubt, and adopt it where there is no doubt left.

    Raises:
        SubmissionInDoubt: Its owner may still be alive: ask again later.
        LedgerUnavailable: The store did not answer.
    """
    slot = await ledger.open_slot(key)
    if slot is None:
        return Finding(clear=True)
    since, until = await ledger.window_of(key, slot)
    if datetime.now(UTC) < until:
        wait = until - datetime.now(UTC)
        raise SubmissionInDoubt("the submission may still be under way; the witnesses are heard after it", wait)
    if witnesses is None:
        return Finding(evidence=("there is no witness for this kind of submission",))
    testimony = await witnesses.ask(model=model, since=since - CLOCKS, until=until + LATE)
    neighbours = await ledger.neighbours(key, model=model, since=since)
    orphans = [task.task_id for task in testimony.tasks or () if task.task_id not in neighbours.owned]
    accepted = None
    if len(orphans) == 1 and not neighbours.rivals:
        reason = "reconciled: the only task of this model and time that nobody owns"
        accepted = await ledger.settle(key, slot, task_id=orphans[0], reason=reason, owner=owner)
    evidence = tuple(_evidence(testimony, neighbours, orphans))
    return Finding(accepted=accepted, candidates=tuple(orphans), evidence=evidence)


def _evidence(testimony: Testimony, neighbours: Neighbours, orphans: list[str]) -> list[str]:
    said = list(testimony.notes)
    if testimony.tasks is not None:
        said.append(f"{len(orphans)} of these tasks belong to nobody")
    if neighbours.rivals:
        said.append(f"{len(neighbours.rivals)} other submissions of this model are in doubt too")
    return said
