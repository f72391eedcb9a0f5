"""Who works on the ledger at the same time, and what must hold whatever they meet.

All of them run the product's own code; only the store, the gateway, the clock and the names are the search's.
"""

import hashlib
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

from longtake.gateway.account import AccountClient, AccountRecords, Charge, OrphanCandidate, SeenTask
from longtake.gateway.client import SubmittedTask
from longtake.gateway.errors import GatewayBusy, GatewayError, ResponseLost
from longtake.models import ReconcileInput, Reconciliation, SubmissionReceipt
from longtake.submission.charges import LATE_ACCEPTANCE
from longtake.submission.errors import LedgerError
from longtake.submission.ledger import CreateIntent, HeartbeatState, Submission, SubmissionLedger
from longtake.submission.reconciliation import Resubmit, reconcile
from longtake.submission.records import TaskOwner
from tests.exploration.programs import BEGAN, Ask, Node, Program, ScheduledStore, ask, clock, entries_in, tell
from tests.exploration.search import Content, Limits, Post, State, Tally, World
from tests.exploration.search import Search as _Search
from workflows.steps.resolve import CONFIRM_NOT_CHARGED

KEY, OTHER_KEY = "order-1", "order-2"
MODEL = "veo_3_1-fast-remix"
MAX_EXCHANGE = timedelta(seconds=120)
DECIDED = "decided"
"""How a person's decision is told from what the ledger knows by itself."""
_FAR_FUTURE = 10**6


class End(NamedTuple):
    """How an actor's work ended."""

    kind: str
    """accepted, closed, clear, not found, settled, not charged, untouched, touched; or an error's name."""
    key: str
    task_id: str = ""
    slot: int = 0
    recorded: bool = True
    fence: int = 0


Build = Callable[[SubmissionLedger, str], Coroutine[Any, Any, End]]


@dataclass(frozen=True)
class Actor:
    """Somebody who works on the ledger."""

    name: str
    build: Build
    key: str = KEY
    clock_ahead: int = 0
    decides_slot: int = 0
    """Whose decision it is about; 0 for those who decide nothing."""
    takes: str = ""
    """The task that a person told it to take, whoever made it."""
    scheduled: int = 0
    """When Temporal scheduled it, in seconds by its own clock."""


@dataclass(frozen=True)
class Scenario:
    """Some actors, and how much may go wrong while they work."""

    name: str
    actors: tuple[Actor, ...]
    limits: Limits = field(default_factory=Limits)
    others: tuple[int, ...] = ()
    """When other generations of the account send, are accepted and charged."""

    def deeper(self) -> "Scenario":
        """The same, while more goes wrong: this may take hours."""
        limits = replace(
            self.limits, crashes=2, faults=max(1, self.limits.faults), jumps=2, frozen_at_the_last_instant=True
        )
        return replace(self, limits=limits)


def submits(
    name: str, *, key: str = KEY, retries: str = "", clock_ahead: int = 0, scheduled: int = 0, account: str = ""
) -> Actor:
    """An attempt to submit.

    Args:
        name: Of the attempt; it may hold no `-`.
        key: The generation's.
        retries: Which attempt's heartbeat it reads first.
        clock_ahead: Seconds.
        scheduled: When Temporal scheduled it.
        account: Who pays, where the ledger says so.
    """

    async def send(create_intent: CreateIntent) -> SubmittedTask:
        await create_intent()
        await ask("post")
        answer = await ask("answer")
        if answer == "busy":
            raise GatewayBusy("later")
        if answer == "lost":
            raise ResponseLost("no answer")
        if answer == "broken":
            raise ResponseLost("HTTP 500", status=500, request_id=f"request-{name}")
        return SubmittedTask(answer)

    async def work(ledger: SubmissionLedger, me: str) -> End:
        told = await ask("heartbeat", retries) if retries else None
        try:
            accepted = await ledger.submit(
                key,
                Submission(
                    digest=f"what {key} sends",
                    writer=me,
                    model=MODEL,
                    gateway=_TaskList.origin if account else "",
                    account=account,
                ),
                send,
                earlier=HeartbeatState.model_validate_json(told) if told else None,
                save_state=lambda evidence: tell(evidence.model_dump_json()),
                scheduled_at=BEGAN + timedelta(seconds=scheduled),
            )
        except (LedgerError, GatewayError) as error:
            return End(type(error).__name__, key, slot=getattr(error, "slot", 0))
        return await _kept(ledger, key, accepted)

    return Actor(name, work, key, clock_ahead=clock_ahead, scheduled=scheduled)


async def _kept(ledger: SubmissionLedger, key: str, accepted: SubmissionReceipt) -> End:
    """As the workflow does: what the store did not take at once is written by a later step."""
    recorded = accepted.recorded
    if not recorded:
        try:
            await ledger.record_accepted(key, accepted, only=True)
            recorded = True
        except LedgerError:
            pass
    return End("accepted", key, accepted.task_id, accepted.slot, recorded)


def decides(name: str, slot: int, task_id: str | None = None, *, key: str = KEY) -> Actor:
    """A person who was asked about one slot; attempts that come late or twice decide the same."""

    async def work(ledger: SubmissionLedger, me: str) -> End:
        try:
            accepted = await ledger.resolve(key, slot, task_id=task_id, reason=f"{DECIDED} ({me})")
        except LedgerError as error:
            return End(type(error).__name__, key)
        return End("accepted", key, accepted.task_id, accepted.slot) if accepted else End("settled", key, slot=slot)

    return Actor(name, work, key, decides_slot=slot)


def adopts(name: str, task_id: str, *, key: str = KEY) -> Actor:
    """A request that names a task which something else has made."""

    async def work(ledger: SubmissionLedger, me: str) -> End:
        try:
            accepted = await ledger.adopt(key, Submission(digest=f"what {key} sends", writer=me, model=MODEL), task_id)
        except LedgerError as error:
            return End(type(error).__name__, key)
        return End("accepted", key, accepted.task_id, accepted.slot)

    return Actor(name, work, key, takes=task_id)


def closes(name: str, fence: int, *, key: str = KEY) -> Actor:
    """Somebody who must be sure that nothing will be sent any more that was scheduled until `fence`."""

    async def work(ledger: SubmissionLedger, me: str) -> End:
        try:
            accepted = await ledger.close_unsent(key, fence=BEGAN + timedelta(seconds=fence), writer=me)
        except LedgerError as error:
            return End(type(error).__name__, key)
        if accepted:
            return End("accepted", key, accepted.task_id, accepted.slot)
        return End("closed", key, fence=fence)

    return Actor(name, work, key)


KNOWN_TASK = "task-known"
"""One that a generation long ago has delivered: the list that shows it is ours."""


class _TaskList:
    """The account's task list, as far as reconciliation asks for it."""

    origin = "https://gateway.example"
    account = "0123456789abcdef"

    async def ask(self, *, model: str, since: datetime, until: datetime, log: bool) -> AccountRecords:
        shown = [
            OrphanCandidate(task_id=task_id, submitted_at=BEGAN + timedelta(seconds=at), model=model)
            for task_id, at in await ask("tasks")
        ]
        tasks = tuple(task for task in shown if since <= task.submitted_at <= until)
        seen = [SeenTask(task_id=task.task_id, submitted_at=task.submitted_at) for task in tasks]
        return AccountRecords(tasks=tasks, seen=(*seen, SeenTask(task_id=KNOWN_TASK, submitted_at=BEGAN)))


def reconciles(name: str, *, key: str = KEY, slot: int | None = 1) -> Actor:
    """Looks for what a submission in doubt has made."""

    async def work(ledger: SubmissionLedger, me: str) -> End:
        account_client = cast("AccountClient", _TaskList())
        try:
            question = ReconcileInput(key=key, slot=slot, model=MODEL)
            finding = await reconcile(ledger, account_client, question, writer=me)
        except LedgerError as error:
            return End(type(error).__name__, key)
        if finding.receipt:
            return End("accepted", key, finding.receipt.task_id, finding.receipt.slot)
        return End("clear" if finding.clear else "not found", key)

    return Actor(name, work, key)


ACCOUNT = _TaskList.account


class _Records(_TaskList):
    """The account's task list and usage log, beside other generations of the same account."""

    def __init__(self, others: tuple[int, ...]) -> None:
        self._others = others

    async def ask(self, *, model: str, since: datetime, until: datetime, log: bool) -> AccountRecords:
        listed = await ask("tasks")
        logged = await ask("charges") if log else None
        tasks = [
            OrphanCandidate(task_id=task_id, submitted_at=at, model=model)
            for task_id, at in self._with_others(listed)
            if since <= at <= until
        ]
        seen = [SeenTask(task_id=task.task_id, submitted_at=task.submitted_at) for task in tasks]
        charges = [
            Charge(at=at, model=model, request_id=task_id.replace("task", "request"))
            for task_id, at in self._with_others(logged or ())
        ]
        charged_at = tuple(one.at for one in charges if one.at and since <= one.at <= until)
        return AccountRecords(
            tasks=tuple(tasks),
            seen=(*seen, SeenTask(task_id=KNOWN_TASK, submitted_at=BEGAN)),
            charges=None if logged is None else len(charged_at),
            charged_at=charged_at,
            logged=None if logged is None else tuple(charges),
        )

    def _with_others(self, rows: tuple[tuple[str, int], ...]) -> list[tuple[str, datetime]]:
        others = [(_task_of_another(at), at) for at in self._others if at <= clock.read()]
        return [(task_id, BEGAN + timedelta(seconds=at)) for task_id, at in (*others, *rows)]


def _task_of_another(at: int) -> str:
    return f"task-other-{at}"


def resubmits(name: str, *, others: tuple[int, ...], confirm_after: timedelta = CONFIRM_NOT_CHARGED) -> Actor:
    """Closes what was not charged, as the workflow does where it may submit again by itself: by two checks."""

    async def work(ledger: SubmissionLedger, me: str) -> End:
        async def check(resubmit: Resubmit) -> Reconciliation:
            account_client = cast("AccountClient", _Records(others))
            question = ReconcileInput(key=KEY, slot=1, model=MODEL)
            return await reconcile(ledger, account_client, question, writer=me, resubmit=resubmit)

        try:
            finding = await check(Resubmit.IF_CONFIRMED)
            if finding.resubmittable:
                now = await ask("time")
                if await ask("until", str(now + round(confirm_after.total_seconds()))):
                    finding = await check(Resubmit.NOW)
        except LedgerError as error:
            return End(type(error).__name__, KEY)
        if finding.receipt:
            return End("accepted", KEY, finding.receipt.task_id, finding.receipt.slot)
        return End("not charged" if finding.clear else "not found", KEY)

    return Actor(name, work)


def polls_of_task(name: str, *, key: str = KEY) -> Actor:
    """Asks whether anything was ever sent."""

    async def work(ledger: SubmissionLedger, _me: str) -> End:
        try:
            untouched = await ledger.is_untouched(key)
        except LedgerError as error:
            return End(type(error).__name__, key)
        return End("untouched" if untouched else "touched", key)

    return Actor(name, work, key)


_NOTHING_WAS_MADE = frozenset({"untouched", "clear", "closed", "not charged"})

ChargeEvidence = dict[tuple[str, int], dict[str, Any]]
"""What the ledger's slots hold, by the key's folder and the slot's number."""


class Promises:
    """Holds every state against what was promised."""

    def __init__(self, actors: tuple[Actor, ...], make_ledger: Callable[[], SubmissionLedger]) -> None:
        self._actors = actors
        self._make_ledger = make_ledger
        self._records: dict[int, ChargeEvidence] = {}
        self._later: dict[tuple[int, str], End] = {}

    def on_post(self, world: World, state: State, post: Post) -> str | None:
        """Never two sends unasked; nothing leaves without a record, or after it was said that nothing will."""
        if not post.folder:
            return "it was sent without a record in the ledger"
        before = [other for other in state.posts if other.folder == post.folder]
        if any(other.slot == post.slot for other in before):
            return f"slot {post.slot} was sent twice"
        slots = self._slots(world, state)
        if "outcome" in slots.get((post.folder, post.slot), {}):
            # A person said that it was not sent, while its sender was frozen in front of its first byte.
            return None if world.limits.frozen_at_the_last_instant else f"slot {post.slot} is sent after it was settled"
        for closer, fence in state.claims:
            closed = self._actors[closer].key == self._actors[post.actor].key
            if closed and self._actors[post.actor].scheduled <= cast("int", fence):
                return f"{world.names[post.actor]} sends what {world.names[closer]} has closed"
        undecided = [other for other in (*before, post) if other.made and not _was_decided(slots, other)]
        if len(undecided) > 1:
            return f"paid twice, and nobody was asked: {undecided}"
        return None

    def on_write(self, world: World, state: State, write: Ask) -> str | None:
        """A task that the ledger knows to be somebody's is nobody else's."""
        if not write.path.startswith("submit/owners/"):
            return None
        claimed_for = json.loads(write.content)["folder"]
        for folder, task_id in _tasks_of(self._slots(world, state)):
            if owner_path(task_id) == write.path and folder != claimed_for:
                return f"{task_id} is claimed, though the ledger knows whose it is"
        return None

    def on_end(self, world: World, state: State, actor: int, node: Node) -> tuple[str | None, object]:
        """What an actor says is true when it says so."""
        end: End = node.end
        own = [post for post in state.posts if post.actor == actor and post.made]
        slots = self._slots(world, state)
        if end.kind == "accepted":
            return self._false_acceptance(world, state, actor, end), None
        if end.kind in _NOTHING_WAS_MADE:
            folder = ledger_folder(end.key)
            made = [
                post
                for post in state.posts
                if post.made and post.folder == folder and not _was_decided(slots, post) and self._speaks_of(end, post)
            ]
            wrong = f"{world.names[actor]} says {end.kind}: nothing was made, but there is {made}" if made else None
            return wrong, end.fence if end.kind == "closed" else None
        if own and end.kind != "OutcomeUnknown":
            return f"{world.names[actor]} says {end.kind}, which means that it sent nothing, but it was paid", None
        return None, None

    def is_true_whenever(self, node: Node) -> bool:
        """Who says that nothing was made speaks of this moment."""
        return node.end.kind not in _NOTHING_WAS_MADE

    def _speaks_of(self, end: End, post: Post) -> bool:
        """What is newer than the fence is none of the closer's business."""
        return end.kind != "closed" or self._actors[post.actor].scheduled <= end.fence

    def _false_acceptance(self, world: World, state: State, actor: int, end: End) -> str | None:
        folders = {post.folder for post in state.posts if post.task_id(world.names) == end.task_id}
        if folders - {ledger_folder(end.key)} and not self._actors[actor].takes:
            return f"{end.task_id} was given to {end.key}, whose it is not"
        return None

    def at_rest(self, world: World, state: State) -> str | None:
        """What the ledger says in the end is true, and a later attempt does what it must."""
        slots = self._slots(world, state)
        names = world.names
        for post in state.posts:
            outcome = slots.get((post.folder, post.slot), {}).get("outcome")
            not_sent = outcome is not None and outcome["outcome"] == "not_sent"
            if post.made and not_sent and not _was_decided(slots, post):
                return f'the ledger says "not sent" of slot {post.slot}, which was paid'
        return (
            self._lost_id(world, state, slots)
            or self._wrong_slot(slots)
            or self._two_owners(world, state, slots)
            or self._later_attempt(world, state, names)
        )

    def _lost_id(self, world: World, state: State, slots: ChargeEvidence) -> str | None:
        """An id that came back is in the ledger, in a heartbeat, or in the hands of whoever must write it down."""
        for post in state.posts:
            if not post.returned:
                continue
            task_id = post.task_id(world.names)
            told = world.node(state, post.actor).told
            end = world.node(state, post.actor).end
            in_ledger = any(
                record["task_id"] == task_id
                for (folder, _), records in slots.items()
                if folder == post.folder
                for name, record in records.items()
                if name in {"outcome", "late"}
            )
            if not in_ledger and not any(task_id in str(fact) for fact in told):
                return f"{task_id} came back, and nobody knows it any more"
            if not in_ledger and isinstance(end, End) and end.recorded:
                return f"{task_id} is called recorded, and is not in the ledger"
        return None

    def _wrong_slot(self, slots: ChargeEvidence) -> str | None:
        for (_, slot), records in slots.items():
            reason = records.get("outcome", {}).get("reason", "")
            for actor in self._actors:
                if actor.decides_slot and reason == f"{DECIDED} ({actor.name})" and actor.decides_slot != slot:
                    return f"the decision about slot {actor.decides_slot} settled slot {slot}"
        return None

    def _two_owners(self, world: World, state: State, slots: ChargeEvidence) -> str | None:
        """Of two who have the same task one paid for it, and the other was told to take it before that was known."""
        owners: dict[str, set[str]] = {}
        for folder, task_id in _tasks_of(slots):
            owners.setdefault(task_id, set()).add(folder)
        paid = {post.task_id(world.names): post.folder for post in state.posts if post.made}
        for task_id, folders in owners.items():
            claim = world.content(state.store).get(owner_path(task_id))
            owner = json.loads(claim)["folder"] if claim else None
            if folders - {owner, paid.get(task_id)}:
                return f"{task_id} belongs to several generations"
        return None

    def _later_attempt(self, world: World, state: State, names: tuple[str, ...]) -> str | None:
        """Long after, the same key again, without faults."""
        slots = self._slots(world, state)
        for key in sorted({actor.key for actor in self._actors}):
            folder = ledger_folder(key)
            posts = [post for post in state.posts if post.folder == folder and post.made]
            known = {
                record["task_id"]
                for (of, _), records in slots.items()
                if of == folder
                for name, record in records.items()
                if name in {"outcome", "late"} and record["task_id"]
            }
            end = self._afterwards(world, state.store, key)
            undecided = [post.task_id(names) for post in posts if not _was_decided(slots, post)]
            if end.kind == "sends" and (undecided or known):
                return f"a later attempt pays again: {undecided or known}"
            if end.kind == "accepted" and end.task_id not in known:
                return f"a later attempt is given {end.task_id}, which the ledger does not hold"
            if end.kind not in {"sends", "accepted", "OutcomeUnknown"}:
                return f"a later attempt ends with {end.kind}: nobody can go on"
        return None

    def _afterwards(self, world: World, store: int, key: str) -> End:
        found = self._later.get((store, key))
        if found is None:
            actor = submits("later", key=key, scheduled=_FAR_FUTURE)
            ledger = self._make_ledger()
            program = Program(actor.name, lambda: actor.build(ledger, actor.name), began=_FAR_FUTURE)
            found = self._later[store, key] = _alone(world, store, program, key)
        return found

    def _slots(self, world: World, state: State) -> ChargeEvidence:
        found = self._records.get(state.store)
        if found is None:
            found = self._records[state.store] = _slots(world.content(state.store))
        return found


def _alone(world: World, store: int, program: Program, key: str) -> End:
    """Run somebody to the first request that leaves, or to the end; nobody else is there and nothing fails."""
    node = program.root
    while (wants := node.waits_for) is not None:
        content = world.content(store)
        reply: Any = None
        if wants.verb == "post":
            program.close()
            return End("sends", key)
        if wants.verb == "get":
            reply = content.get(wants.path)
        elif wants.verb == "entries":
            reply = entries_in(content, wants.path)
        else:
            store, reply = world.write(store, wants)
        node = program.after(node, reply, _FAR_FUTURE)
    end: End = node.end
    return end


def _slots(content: Content) -> ChargeEvidence:
    """The ledger's records by key and slot, as anybody can read them in the store."""
    slots: ChargeEvidence = {}
    for path, record in content.items():
        parts = path.split("/")
        if len(parts) == 4 and parts[0] == "submit":
            slots.setdefault((f"submit/{parts[1]}", int(parts[2])), {})[parts[3]] = json.loads(record)
    return slots


def _tasks_of(slots: ChargeEvidence) -> list[tuple[str, str]]:
    """Whose tasks the ledger knows: folders and task ids."""
    return [
        (folder, record["task_id"])
        for (folder, _), records in slots.items()
        for name, record in records.items()
        if name in {"outcome", "late"} and record["task_id"]
    ]


def owner_path(task_id: str) -> str:
    """Where it stands whose a task is."""
    return f"submit/owners/{hashlib.sha256(task_id.casefold().encode()).hexdigest()[:32]}"


def _was_decided(slots: ChargeEvidence, post: Post) -> bool:
    """Whether a person has said that this may be sent again."""
    outcome = slots.get((post.folder, post.slot), {}).get("outcome", {})
    return bool(outcome.get("decided")) and not outcome.get("not_charged")


def ledger_folder(key: str) -> str:
    """Where the records of a key lie."""
    return f"submit/{hashlib.sha256(key.encode()).hexdigest()[:32]}"


_NO_INDEX = ("open/",)
"""Only reconciliation reads the index of what is open."""
THREE = Limits(crashes=1, faults=1, jumps=1, unread=_NO_INDEX)
FOUR = Limits(crashes=1, faults=0, jumps=1, unread=_NO_INDEX)
RECONCILED = Limits(crashes=1, faults=0, jumps=1, jump_seconds=(600,), answers=("accepted", "lost"), dated_late=True)

# What the judgement relies on, to the second: the gateway accepts within the hour, and its records show it within the
# time between two checks.
_RESUBMITTED = Limits(
    crashes=1,
    faults=0,
    dated_late=True,
    dated_within=round(LATE_ACCEPTANCE.total_seconds()),
    reported_within=round(CONFIRM_NOT_CHARGED.total_seconds()),
)
_AFTER_LOST = (0, 3720, 7100)
_AFTER_ANSWER = (0, 125, 430)

SCENARIOS = (
    Scenario(
        "two attempts at once, and a decision about the first slot",
        (submits("W1"), submits("W2"), decides("R", 1)),
        THREE,
    ),
    Scenario(
        "an attempt, its retry that reads its heartbeat, and a decision",
        (submits("W1"), submits("W2", retries="W1"), decides("R", 1)),
        THREE,
    ),
    Scenario(
        "an attempt, its retry, and an attempt of another run",
        (submits("W1"), submits("W2", retries="W1"), submits("W3")),
        FOUR,
    ),
    Scenario(
        "two people who decide the same slot differently",
        (submits("W1"), submits("W2"), decides("R1", 1), decides("R2", 1, "task-W1-0")),
        FOUR,
    ),
    Scenario(
        "a decision, a second submission, and the decision once more",
        (submits("W1"), submits("W2"), decides("R1", 1), decides("R2", 1)),
        FOUR,
    ),
    Scenario(
        "a task that two generations want",
        (submits("W1"), adopts("A", "task-W1-0", key=OTHER_KEY), decides("R", 1, "task-W1-0")),
        THREE,
    ),
    Scenario(
        "two who adopt the same task for two keys",
        (adopts("A1", "task-0"), adopts("A2", "task-0"), adopts("A3", "task-0", key=OTHER_KEY)),
        THREE,
    ),
    Scenario(
        "two attempts, and somebody who asks whether anything was sent",
        (submits("W1"), submits("W2"), polls_of_task("L")),
        THREE,
    ),
    Scenario(
        "a straggler, somebody who closes what was not sent, and the next run",
        (submits("W1", scheduled=0), closes("C", fence=10), submits("W2", scheduled=20)),
        THREE,
    ),
    Scenario(
        "two who close with different fences, and one who was scheduled between them",
        (closes("C1", fence=10), closes("C2", fence=30), submits("W", scheduled=20)),
        FOUR,
    ),
    Scenario(
        "somebody who closes, and a decision",
        (submits("W1", scheduled=0), closes("C", fence=10), decides("R", 1), submits("W2", scheduled=5)),
        FOUR,
    ),
    Scenario(
        "two submissions of one model in doubt, one of which is reconciled",
        (submits("X"), submits("Y", key=OTHER_KEY), reconciles("R", key=OTHER_KEY)),
        RECONCILED,
    ),
    Scenario(
        "a lost answer, and a worker that may submit again by itself",
        (submits("W", account=ACCOUNT), resubmits("R", others=_AFTER_LOST)),
        replace(_RESUBMITTED, answers=("lost", "lost unmade"), jumps=3, jump_seconds=(300, 3500)),
        others=_AFTER_LOST,
    ),
    Scenario(
        "an answer that names the request, and a worker that may submit again by itself",
        (submits("W", account=ACCOUNT), resubmits("R", others=_AFTER_ANSWER)),
        replace(_RESUBMITTED, answers=("broken", "broken unmade"), jumps=3, jump_seconds=(130, 300)),
        others=_AFTER_ANSWER,
    ),
)


def explore(
    scenario: Scenario,
    *,
    make_ledger: Callable[[], SubmissionLedger] | None = None,
    overwrites: bool = False,
) -> Tally:
    """Look at all interleavings of a scenario.

    Args:
        scenario: Who works.
        make_ledger: Makes the ledger, where a broken one is to be shown.
        overwrites: A broken store.

    Raises:
        Violation: A promise was broken.
    """
    make = make_ledger or (lambda: SubmissionLedger(ScheduledStore(), longest_exchange=MAX_EXCHANGE))
    programs = tuple(_program(actor, make()) for actor in scenario.actors)
    account = ACCOUNT if scenario.others else ""
    known = {owner_path(KNOWN_TASK): _owner("long ago", account)}
    known |= {owner_path(_task_of_another(at)): _owner(f"other-{at}", account, at) for at in scenario.others}
    world = World(programs, scenario.limits, content=known, overwrites=overwrites)
    try:
        return _Search(world, Promises(scenario.actors, make)).run()
    finally:
        for program in programs:
            program.close()


def _owner(key: str, account: str, sent: int | None = None) -> bytes:
    """The record of whose a task is."""
    owner = TaskOwner(nonce=key, folder=ledger_folder(key), account=account)
    if sent is not None:
        sent_at = BEGAN + timedelta(seconds=sent)
        owner = owner.model_copy(update={"request_id": f"request-{key}", "sent_at": sent_at})
    return owner.model_dump_json().encode()


def _program(actor: Actor, ledger: SubmissionLedger) -> Program:
    def body() -> Coroutine[Ask, Any, End]:
        return actor.build(ledger, actor.name)

    return Program(actor.name, body, clock_ahead=actor.clock_ahead)
