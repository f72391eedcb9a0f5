"""Was a submission in doubt charged? What the account's own records prove.

Newer gateways name the request of each charge in the usage log (`request_id`, the POST's `X-Oneapi-Request-Id`). So
after a response of the gateway itself the log decides: a row with our id was charged. A missing row proves something
only in a log that is this key's, names requests by the ids that we got, and is up to date: it must show the charge of
a submission whose id we know and that was sent after ours was over.

Without such an id, the records are matched. Each charge of the model must belong to one of our tasks and each of our
tasks to one charge, the list must show no task without an owner, and the gateway must have had enough time to accept
late (`LATE_ACCEPTANCE`). A record that cannot be read, or does not match, means "unknown".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from longtake.gateway.account import Charge, OrphanCandidate
from longtake.models import Paid
from longtake.submission.ledger import Doubt
from longtake.submission.records import Response, TaskOwner

CLOCK_SKEW = timedelta(minutes=2)
"""Between the gateway's clock and ours, and between those of our workers."""
LATE_ACCEPTANCE = timedelta(hours=1)
"""For this long after a submission left whose response was lost, the gateway may still accept and charge it. No gateway
promises a limit: it waits for its upstream, with retries, and proxies cut such a request off after one to ten minutes.
The latest that was seen came after 400 s; this is nine times as long, and waiting costs only time."""

_UNTIL_THE_NEXT_CHARGE = timedelta(minutes=10)
_SERVER_ERROR = 500
_PROXY_STATUSES = frozenset({502, 504, *range(520, 531)})
"""The 5xx that a proxy sends when its own timeout ends: the gateway behind it may go on."""


@dataclass(frozen=True)
class ChargeEvidence:
    """What was read about the time since a submission left.

    Attributes:
        charges: The usage log's; None where it was not read.
        tasks: All tasks of the model, or of a model that the list does not name; None where the list was not read, or
            nothing confirmed that it is the account's.
        owners: Who owns the tasks that the list shows, of whatever model.
        model: Of the submission.
        since: The beginning of that time.
        until: Its end.
    """

    charges: tuple[Charge, ...] | None
    tasks: tuple[OrphanCandidate, ...] | None
    owners: Mapping[str, TaskOwner]
    model: str
    since: datetime
    until: datetime


@dataclass(frozen=True)
class Verdict:
    """What the records show.

    Attributes:
        charged: Yes, no, or unknown.
        why: On what evidence, for a person.
        wait: When checking again may show more, where that is known.
    """

    charged: Paid
    why: str
    wait: timedelta | None = None


def judge(doubt: Doubt, records: ChargeEvidence, now: datetime) -> Verdict:
    """Judge whether a submission in doubt was charged."""
    return _Judge(doubt, records, now).verdict()


def names_requests(records: ChargeEvidence, account: str) -> bool:
    """Whether the log names requests by the ids that we got: it shows one of ours."""
    known = {owner.request_id for owner in records.owners.values() if owner.account == account and owner.request_id}
    return any(charge.request_id in known for charge in records.charges or ())


class _Unclear(Exception):
    """The records prove nothing; the text says why."""

    def __init__(self, why: str, wait: timedelta | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class _Judge:
    def __init__(self, doubt: Doubt, records: ChargeEvidence, now: datetime) -> None:
        self._doubt = doubt
        self._records = records
        self._now = now
        self._charges = records.charges or ()
        account = doubt.intent.account
        self._ours = {task_id: one for task_id, one in records.owners.items() if account and one.account == account}
        self._by_request: dict[str | None, TaskOwner] = {
            one.request_id: one for one in self._ours.values() if one.request_id
        }

    def verdict(self) -> Verdict:
        """Yes, no or unknown."""
        if self._records.charges is None:
            return Verdict(Paid.UNKNOWN, "the usage log could not be read")
        response = self._doubt.response
        request_id = response.request_id if response else None
        ours = next((charge for charge in self._charges if request_id and charge.request_id == request_id), None)
        if ours is not None:
            return Verdict(Paid.YES, f"the usage log shows a charge for the request {request_id}{_at(ours.at)}")
        try:
            self._check_that_records_can_decide(response)
            done_at, by_id = self._done_at(response)
            if self._now < done_at:
                why = f"until {done_at:%Y-%m-%d %H:%M:%S} UTC the gateway may still accept it"
                return Verdict(Paid.UNKNOWN, why, done_at - self._now)
            later = self._shown() if by_id else self._explained()
            proof = self._sent_after(done_at + CLOCK_SKEW, later)
        except _Unclear as unclear:
            return Verdict(Paid.UNKNOWN, str(unclear), unclear.wait)
        proven = f"no charge for the request {request_id}" if by_id else "a task of ours for each charge, and no other"
        return Verdict(Paid.NO, f"the usage log shows {proven}, and a later charge of ours, sent{_at(proof)}")

    def _check_that_records_can_decide(self, response: Response | None) -> None:
        if response is not None and response.status is not None and response.status < _SERVER_ERROR:
            raise _Unclear(f"the gateway responded with {response.status}, so it may have accepted it")
        if not self._doubt.intent.account or not self._doubt.intent.gateway:
            raise _Unclear("the ledger does not say which gateway and API key it was sent with")
        for charge in self._charges:
            owner = self._by_request.get(charge.request_id)
            if owner is not None and not self._is_dated_consistently(charge.at, owner):
                raise _Unclear("the gateway's clock and ours differ too much to compare times")

    def _is_dated_consistently(self, at: datetime | None, owner: TaskOwner) -> bool:
        if owner.sent_at is None:
            return True
        latest = owner.sent_at + timedelta(seconds=self._doubt.intent.window_seconds) + CLOCK_SKEW
        return at is not None and owner.sent_at - CLOCK_SKEW <= at <= latest

    def _done_at(self, response: Response | None) -> tuple[datetime, bool]:
        """When the gateway can accept it no more, and whether the request's id decides."""
        recent = [charge for charge in self._charges if charge.at is None or charge.at >= self._records.since]
        if (
            response is not None
            and response.request_id
            and response.status is not None
            and response.status not in _PROXY_STATUSES
            and names_requests(self._records, self._doubt.intent.account)
            and all(charge.request_id for charge in recent)
        ):
            return response.at, True
        return self._doubt.intent.sent_at + LATE_ACCEPTANCE, False

    def _sent_after(self, moment: datetime, charged: Iterable[TaskOwner]) -> datetime:
        """When the first later submission was sent whose charge the log shows: the log is up to date until then."""
        sent = [owner.sent_at for owner in charged if owner.sent_at and owner.sent_at >= moment]
        if not sent:
            why = "the usage log shows no charge of ours that is later, so it may not be up to date"
            raise _Unclear(why, _UNTIL_THE_NEXT_CHARGE)
        return min(sent)

    def _shown(self) -> list[TaskOwner]:
        """Our tasks whose charge the log shows by the request's id."""
        return [self._by_request[one.request_id] for one in self._charges if one.request_id in self._by_request]

    def _explained(self) -> list[TaskOwner]:
        """Our tasks, each with a charge of its own, where no charge and no task is left over."""
        records = self._records
        if records.tasks is None:
            raise _Unclear("the task list could not be read, or was not confirmed")
        if any(task.task_id not in records.owners for task in records.tasks):
            raise _Unclear("the task list shows tasks without an owner")
        left = list(self._charges)
        explained: list[TaskOwner] = []
        for task in records.tasks:
            owner = self._ours.get(task.task_id)
            if owner is None:
                continue  # another key of the account paid for it
            charge = self._charge_of(task, owner, left)
            if charge is None:
                raise _Unclear(f"the usage log shows no charge for our task {task.task_id}, so it may be incomplete")
            left.remove(charge)
            explained.append(owner)
            if not self._is_dated_consistently(charge.at, owner):
                raise _Unclear("the gateway's clock and ours differ too much to compare times")
        if any(self._is_of_that_time(charge) for charge in left):
            raise _Unclear("the usage log shows charges that no task of ours explains")
        return explained

    def _charge_of(self, task: OrphanCandidate, owner: TaskOwner, charges: list[Charge]) -> Charge | None:
        """Its charge by the request's id; where one of the two does not name it, the nearest one of its model."""
        for charge in charges:
            if owner.request_id and charge.request_id == owner.request_id:
                return charge
        near = [
            (abs(charge.at - task.submitted_at), place)
            for place, charge in enumerate(charges)
            if charge.at is not None and task.model and charge.model == task.model
            if not (owner.request_id and charge.request_id) and charge.request_id not in self._by_request
        ]
        distance, place = min(near, default=(CLOCK_SKEW * 2, -1))
        return charges[place] if distance <= CLOCK_SKEW else None

    def _is_of_that_time(self, charge: Charge) -> bool:
        if charge.model not in {"", self._records.model}:
            return False
        return charge.at is None or self._records.since <= charge.at <= self._records.until


def _at(moment: datetime | None) -> str:
    return f" at {moment:%Y-%m-%d %H:%M:%S} UTC" if moment else ""
