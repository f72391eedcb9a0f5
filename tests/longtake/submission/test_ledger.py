"""The ledger on real stores: at most one paid job for a key, whatever fails, stops, races or is cancelled."""

import asyncio
import contextlib
import hashlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from longtake.gateway.client import SubmittedTask
from longtake.gateway.errors import (
    GatewayBusy,
    GatewayError,
    GatewayUnreachable,
    InvalidResponse,
    KeyRefused,
    RequestRefused,
    ResponseLost,
)
from longtake.models import SubmissionReceipt
from longtake.storage import Store, StoreProblem
from longtake.submission import ledger as ledger_module
from longtake.submission import records as records_module
from longtake.submission.errors import (
    KeyReused,
    LedgerError,
    LedgerUnavailable,
    OutcomeUnknown,
    SendSuspended,
    SlotTaken,
    SubmissionClosed,
    SubmissionInDoubt,
    TaskOwned,
)
from longtake.submission.ledger import CreateIntent, HeartbeatState, OpenSubmission, Submission, SubmissionLedger
from longtake.submission.records import OPEN, PREFIX, Intent, Outcome

KEY = "order-1"
DIGEST = "what is sent"
PROOF = "what only the attempt knew"
_T = TypeVar("_T")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between tries take no time."""

    async def sleep(_seconds: float) -> None:
        await asyncio.sleep(0)

    for module in (ledger_module, records_module):
        monkeypatch.setattr(module, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))


@dataclass
class Gateway:
    """The far side of `send`: counts what left and what was made."""

    before_intent: BaseException | None = None
    after_intent: BaseException | None = None
    sends_twice: bool = False
    ignores_refusal: bool = False
    never_creates_the_intent: bool = False
    sent: int = 0
    made: list[str] = field(default_factory=list)

    async def send(self, create_intent: CreateIntent) -> SubmittedTask:
        await asyncio.sleep(0)  # connecting
        if self.before_intent:
            raise self.before_intent
        if not self.never_creates_the_intent:
            await create_intent()
        self.sent += 1
        await asyncio.sleep(0)  # the bytes leave
        if not isinstance(self.after_intent, GatewayUnreachable | GatewayBusy | RequestRefused):
            self.made.append(f"task-{len(self.made) + 1}")
        await asyncio.sleep(0)  # the answer comes
        if self.after_intent:
            raise self.after_intent
        if self.sends_twice:
            await create_intent()
            self.sent += 1
        return SubmittedTask(self.made[-1], "request-1")


@dataclass
class Caller:
    """Somebody who submits through a ledger, and what his heartbeat would hold."""

    store: Store
    gateway: Gateway
    heartbeat_state: HeartbeatState | None = None

    async def submit(self, *, key: str = KEY, digest: str = DIGEST, writer: str = "us") -> SubmissionReceipt:
        ledger = SubmissionLedger(self.store, longest_exchange=timedelta(milliseconds=1))
        return await ledger.submit(
            key,
            Submission(digest=digest, writer=writer, model="veo_3_1-fast-remix"),
            self.gateway.send,
            earlier=self.heartbeat_state,
            save_state=self._keep,
        )

    def _keep(self, state: HeartbeatState) -> None:
        self.heartbeat_state = state


def path_of(slot: int, name: str, key: str = KEY) -> str:
    return records_module.record_path(records_module.folder_of(key), slot, name)


async def intent_in(store: Store, slot: int = 1, key: str = KEY) -> Intent | None:
    content = await store.get(path_of(slot, "intent", key))
    return None if content is None else Intent.model_validate_json(content)


async def outcome_in(store: Store, slot: int = 1, key: str = KEY) -> Outcome | None:
    content = await store.get(path_of(slot, "outcome", key))
    return None if content is None else Outcome.model_validate_json(content)


async def write_intent(store: Store, *, age: timedelta, slot: int = 1, window: timedelta = timedelta(minutes=2)) -> str:
    """Somebody else's intent, that old."""
    intent = Intent(
        nonce=f"theirs-{slot}",
        digest=DIGEST,
        sent_at=datetime.now(UTC) - age,
        window_seconds=window.total_seconds(),
        writer="video-order-1/attempt 1",
        model="veo_3_1-fast-remix",
        proof_hash=hashlib.sha256(PROOF.encode()).hexdigest(),
    )
    await store.put(path_of(slot, "intent"), intent.model_dump_json().encode())
    return intent.nonce


async def write_outcome(store: Store, outcome: str, task_id: str | None = None, *, slot: int = 1) -> None:
    record = {"nonce": f"theirs-{slot}", "outcome": outcome, "task_id": task_id, "at": datetime.now(UTC).isoformat()}
    await store.put(path_of(slot, "outcome"), json.dumps(record).encode())


async def let_an_hour_pass(store: Store, key: str = KEY) -> None:
    """Make every intent an hour older: its owner cannot be alive any more."""
    for slot in itertools.count(1):
        intent = await intent_in(store, slot, key)
        if intent is None:
            return
        older = intent.model_copy(update={"sent_at": intent.sent_at - timedelta(hours=1)})
        await store.put(path_of(slot, "intent", key), older.model_dump_json().encode())


# --- What a caller finds ----------------------------------------------------------------------------------------------


async def test_a_free_key_is_sent_and_written_down(store: Store) -> None:
    caller = Caller(store, Gateway())
    before = datetime.now(UTC)
    accepted = await caller.submit()
    assert (accepted.task_id, accepted.slot, accepted.request_id) == ("task-1", 1, "request-1")
    assert accepted.recorded
    assert not accepted.attached
    assert before <= accepted.submitted_at <= datetime.now(UTC)
    intent, outcome = await intent_in(store), await outcome_in(store)
    assert intent
    assert outcome
    assert (intent.digest, intent.writer, intent.model) == (DIGEST, "us", "veo_3_1-fast-remix")
    assert (outcome.outcome, outcome.task_id, outcome.request_id) == ("accepted", "task-1", "request-1")
    assert accepted.nonce == intent.nonce == outcome.nonce
    assert caller.heartbeat_state == HeartbeatState(
        nonce=intent.nonce, outcome="accepted", task_id="task-1", request_id="request-1", reason=""
    )


async def test_the_intent_is_there_when_the_first_byte_leaves_and_not_before(store: Store) -> None:
    seen = []

    async def send(create_intent: CreateIntent) -> SubmittedTask:
        seen.append(await intent_in(store))
        await create_intent()
        seen.append(await intent_in(store))
        return SubmittedTask("task-1")

    ledger = SubmissionLedger(store, longest_exchange=timedelta(seconds=1))
    await ledger.submit(KEY, Submission(digest=DIGEST, writer="us"), send)
    assert seen[0] is None
    assert seen[1] is not None


async def test_what_was_accepted_is_found_again_and_nothing_is_sent(store: Store) -> None:
    gateway = Gateway()
    first = await Caller(store, gateway).submit()
    again = await Caller(store, gateway).submit(writer="another run of the workflow")
    assert (again.task_id, again.slot, again.submitted_at) == (first.task_id, first.slot, first.submitted_at)
    assert (again.request_id, again.nonce) == (first.request_id, first.nonce)
    assert again.attached
    assert again.recorded
    assert gateway.sent == 1


async def test_after_not_sent_the_next_slot_is_used(store: Store) -> None:
    for slot in (1, 2):
        await write_intent(store, age=timedelta(seconds=1), slot=slot)
        await write_outcome(store, "not_sent", slot=slot)
    gateway = Gateway()
    assert (await Caller(store, gateway).submit()).slot == 3
    assert (await Caller(store, gateway).submit()).slot == 3
    assert gateway.sent == 1


async def test_another_request_under_the_same_key_is_refused(store: Store) -> None:
    gateway = Gateway()
    await Caller(store, gateway).submit()
    with pytest.raises(KeyReused, match="use a new key"):
        await Caller(store, gateway).submit(digest="something else")
    assert gateway.sent == 1


@pytest.mark.parametrize("age", [timedelta(0), timedelta(hours=1)], ids=["just now", "an hour ago"])
async def test_another_request_is_refused_even_while_the_outcome_is_open(disk: Store, age: timedelta) -> None:
    await write_intent(disk, age=age)
    gateway = Gateway()
    with pytest.raises(KeyReused):
        await Caller(disk, gateway).submit(digest="something else")
    assert gateway.sent == 0


async def test_a_key_for_which_nothing_was_made_is_free_for_another_request(store: Store) -> None:
    refused = Gateway(after_intent=RequestRefused("no"))
    with pytest.raises(RequestRefused):
        await Caller(store, refused).submit()
    accepted = await Caller(store, Gateway()).submit(digest="the mended request")
    assert (accepted.slot, accepted.attached) == (2, False)


async def test_keys_do_not_see_each_other(disk: Store) -> None:
    gateway = Gateway()
    first = await Caller(disk, gateway).submit(key="a/b")
    second = await Caller(disk, gateway).submit(key="a:b", digest="something else")
    assert (first.task_id, second.task_id) == ("task-1", "task-2")


async def test_while_its_writer_may_be_alive_an_open_intent_is_waited_for(store: Store) -> None:
    await write_intent(store, age=timedelta(seconds=10), window=timedelta(minutes=2))
    gateway = Gateway()
    with pytest.raises(SubmissionInDoubt, match="attempt 1") as caught:
        await Caller(store, gateway).submit()
    assert timedelta(0) < caught.value.wait <= timedelta(minutes=2)
    assert gateway.sent == 0
    await write_outcome(store, "accepted", "task-7")
    found = await Caller(store, gateway).submit()
    assert (found.task_id, found.attached, gateway.sent) == ("task-7", True, 0)


async def test_the_wait_never_goes_past_the_window(disk: Store) -> None:
    await write_intent(disk, age=timedelta(seconds=59), window=timedelta(minutes=1))
    with pytest.raises(SubmissionInDoubt) as caught:
        await Caller(disk, Gateway()).submit()
    assert caught.value.wait <= timedelta(seconds=1)


async def test_after_its_window_an_open_intent_is_unknown_and_stays_so(store: Store) -> None:
    await write_intent(store, age=timedelta(minutes=3), window=timedelta(minutes=2))
    gateway = Gateway()
    for _ in range(3):
        with pytest.raises(OutcomeUnknown, match="attempt 1") as caught:
            await Caller(store, gateway).submit()
    intent = await intent_in(store)
    assert intent
    assert (caught.value.slot, caught.value.sent_at, caught.value.cause) == (1, intent.sent_at, None)
    assert gateway.sent == 0


async def test_an_operator_resolves_what_was_unknown(disk: Store) -> None:
    await write_intent(disk, age=timedelta(hours=1))
    await write_outcome(disk, "not_sent")
    assert (await Caller(disk, Gateway()).submit()).slot == 2


async def test_the_window_covers_the_longest_exchange(disk: Store) -> None:
    ledger = SubmissionLedger(disk, longest_exchange=timedelta(seconds=120))
    await ledger.submit(KEY, Submission(digest=DIGEST, writer="us"), Gateway().send)
    intent = await intent_in(disk)
    assert intent
    assert timedelta(seconds=intent.window_seconds) == timedelta(seconds=120) + ledger_module.MARGIN


# --- What `send` may do -----------------------------------------------------------------------------------------------

EVERYTHING_ELSE = [
    ResponseLost("read timeout"),
    InvalidResponse("no id"),
    RuntimeError("a defect"),
    TimeoutError(),
    asyncio.CancelledError(),
    KeyboardInterrupt(),
    StoreProblem("images", retryable=True),
]


@pytest.mark.parametrize(
    "error",
    [GatewayUnreachable("refused"), GatewayBusy("wait"), RequestRefused("no"), KeyRefused("no"), *EVERYTHING_ELSE],
    ids=lambda error: type(error).__name__,
)
async def test_before_intent_nothing_is_recorded_and_the_error_passes(disk: Store, error: BaseException) -> None:
    caller = Caller(disk, Gateway(before_intent=error))
    with pytest.raises(type(error)) as caught:
        await caller.submit()
    assert caught.value is error
    assert await intent_in(disk) is None
    assert caller.heartbeat_state is None
    assert (await Caller(disk, Gateway()).submit()).slot == 1


@pytest.mark.parametrize(
    "error",
    [
        GatewayUnreachable("Cloudflare could not reach it"),
        GatewayBusy("wait", retry_after=timedelta(seconds=7)),
        RequestRefused("no"),
        KeyRefused("no"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_answer_that_nothing_was_made_closes_the_slot_and_passes(store: Store, error: GatewayError) -> None:
    caller = Caller(store, Gateway(after_intent=error))
    with pytest.raises(type(error)) as caught:
        await caller.submit()
    assert caught.value is error
    outcome = await outcome_in(store)
    assert outcome
    assert (outcome.outcome, outcome.reason) == ("not_sent", type(error).__name__)
    assert caller.heartbeat_state
    assert (caller.heartbeat_state.outcome, caller.heartbeat_state.nonce) == ("not_sent", outcome.nonce)
    assert (await Caller(store, Gateway()).submit()).slot == 2


@pytest.mark.parametrize("error", EVERYTHING_ELSE, ids=lambda error: type(error).__name__)
async def test_anything_else_after_intent_is_unknown_and_never_sent_again(disk: Store, error: BaseException) -> None:
    gateway = Gateway(after_intent=error)
    caller = Caller(disk, gateway)
    with pytest.raises(OutcomeUnknown, match=type(error).__name__) as caught:
        await caller.submit()
    intent = await intent_in(disk)
    assert intent
    assert caught.value.cause is (error if isinstance(error, GatewayError) else None)
    assert (caught.value.slot, caught.value.sent_at) == (1, intent.sent_at)
    assert caught.value.__cause__ is None  # a chained traceback is too long for Temporal
    assert await outcome_in(disk) is None
    assert caller.heartbeat_state is None
    if isinstance(error, KeyboardInterrupt):  # the process is going: it has said nothing
        with pytest.raises(SubmissionInDoubt):
            await caller.submit()
        await let_an_hour_pass(disk)
    with pytest.raises(OutcomeUnknown):
        await caller.submit()
    assert gateway.sent == 1


async def test_a_second_transmission_is_refused_and_the_outcome_is_unknown(store: Store) -> None:
    gateway = Gateway(sends_twice=True)
    with pytest.raises(OutcomeUnknown, match="a second one was refused"):
        await Caller(store, gateway).submit()
    assert gateway.sent == 1


async def test_an_answer_without_having_asked_is_a_defect_that_is_named(disk: Store) -> None:
    with pytest.raises(RuntimeError, match="never asked whether it may be sent"):
        await Caller(disk, Gateway(never_creates_the_intent=True)).submit()


async def test_a_process_that_was_asleep_around_the_intent_does_not_send(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 0.0, 3600.0])  # made, armed, and an hour later the intent was written

    class Clock:
        CLOCK_BOOTTIME = 7

        @staticmethod
        def clock_gettime(_clock: int) -> float:
            return next(times)

    gateway = Gateway()
    with monkeypatch.context() as patched:
        patched.setattr(ledger_module, "time", Clock)
        with pytest.raises(SendSuspended, match="nothing was sent"):
            await Caller(store, gateway).submit()
    assert gateway.sent == 0
    outcome = await outcome_in(store)
    assert outcome
    assert outcome.outcome == "not_sent"
    assert (await Caller(store, gateway).submit()).slot == 2


async def test_a_process_that_was_asleep_on_its_way_to_the_gateway_does_not_send(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had read in the ledger may not hold any more: it leaves no record, and another attempt may send."""
    times = iter([0.0, 3600.0])  # made, and an hour later connected

    class Clock:
        @staticmethod
        def clock_gettime(_clock: int) -> float:
            return next(times, 3600.0)

    gateway = Gateway()
    with monkeypatch.context() as patched:
        patched.setattr(ledger_module, "time", Clock)
        with pytest.raises(SendSuspended):
            await Caller(disk, gateway).submit()
    assert gateway.sent == 0
    assert (await Caller(disk, gateway).submit()).slot == 1


async def test_a_store_without_a_ledger_is_not_taken_for_one(disk: Store, hurried: None) -> None:
    with pytest.raises(LedgerUnavailable):
        await ledger_of(disk).identity()
    assert await ledger_of(disk).known_identity() is None


async def test_the_slot_taken_at_the_last_moment_is_not_sent_and_not_closed(disk: Store) -> None:
    async def send(create_intent: CreateIntent) -> SubmittedTask:
        await write_intent(disk, age=timedelta(0))  # somebody was faster while we connected
        await create_intent()
        raise AssertionError("sent")

    ledger = SubmissionLedger(disk, longest_exchange=timedelta(seconds=1))
    with pytest.raises(SlotTaken):
        await ledger.submit(KEY, Submission(digest=DIGEST, writer="us"), send)
    intent = await intent_in(disk)
    assert intent
    assert intent.nonce == "theirs-1"
    assert await outcome_in(disk) is None  # it is theirs to say


@pytest.mark.parametrize("racers", [2, 20])
async def test_of_many_at_once_exactly_one_sends(store: Store, racers: int) -> None:
    gateway = Gateway()
    ended = await asyncio.gather(
        *(Caller(store, gateway).submit(writer=f"racer {number}") for number in range(racers)), return_exceptions=True
    )
    assert gateway.sent == 1
    assert all(isinstance(end, SubmissionReceipt | SlotTaken | SubmissionInDoubt) for end in ended), ended
    assert {end.task_id for end in ended if isinstance(end, SubmissionReceipt)} == {"task-1"}
    assert (await Caller(store, gateway).submit()).task_id == "task-1"
    assert gateway.sent == 1


# --- What an earlier attempt left in its heartbeat --------------------------------------------------------------------


@pytest.mark.parametrize("age", [timedelta(0), timedelta(hours=1)], ids=["in doubt", "unknown"])
async def test_evidence_of_acceptance_resolves_the_slot(store: Store, age: timedelta) -> None:
    nonce = await write_intent(store, age=age)
    gateway = Gateway()
    evidence = HeartbeatState(nonce=nonce, outcome="accepted", task_id="task-9", request_id="request-9")
    found = await Caller(store, gateway, evidence).submit()
    assert (found.task_id, found.request_id, found.attached, found.recorded) == ("task-9", "request-9", True, True)
    outcome = await outcome_in(store)
    assert outcome
    assert (outcome.outcome, outcome.task_id) == ("accepted", "task-9")
    assert (await Caller(store, gateway).submit()).task_id == "task-9"
    assert gateway.sent == 0


async def test_evidence_that_nothing_was_sent_frees_the_key(store: Store) -> None:
    nonce = await write_intent(store, age=timedelta(hours=1))
    gateway = Gateway()
    evidence = HeartbeatState(nonce=nonce, outcome="not_sent", reason="GatewayBusy", proof=PROOF)
    accepted = await Caller(store, gateway, evidence).submit()
    assert (accepted.slot, accepted.attached, gateway.sent) == (2, False, 1)
    outcome = await outcome_in(store)
    assert outcome
    assert (outcome.outcome, outcome.reason) == ("not_sent", "GatewayBusy")


@pytest.mark.parametrize(
    "forged",
    [
        {"nonce": "another", "proof": PROOF},
        {"nonce": "theirs-1"},
        {"nonce": "theirs-1", "proof": "guessed"},
        {"nonce": "theirs-1", "proof": "\ud800"},
        {"nonce": "theirs-1", "proof": PROOF, "outcome": "accepted"},
    ],
)
async def test_evidence_without_the_attempts_proof_proves_nothing(disk: Store, forged: dict[str, str]) -> None:
    """Whoever may write to Temporal may write a heartbeat, and sees the nonce there."""
    await write_intent(disk, age=timedelta(hours=1))
    gateway = Gateway()
    with pytest.raises(OutcomeUnknown):
        await Caller(disk, gateway, HeartbeatState.model_validate({"outcome": "not_sent", **forged})).submit()
    assert await outcome_in(disk) is None
    assert gateway.sent == 0


async def test_evidence_does_not_outvote_the_record(disk: Store) -> None:
    nonce = await write_intent(disk, age=timedelta(hours=1))
    await write_outcome(disk, "accepted", "task-3")
    gateway = Gateway()
    found = await Caller(disk, gateway, HeartbeatState(nonce=nonce, outcome="not_sent", proof=PROOF)).submit()
    assert (found.task_id, gateway.sent) == ("task-3", 0)


# --- A store that fails -----------------------------------------------------------------------------------------------


class FailingStore(Store):
    """Another store whose n-th call fails, before or after it was performed, once or from then on."""

    def __init__(self, inner: Store, *, at: int, performed: bool, lasting: bool) -> None:
        self._inner, self._at, self._performed, self._lasting = inner, at, performed, lasting
        self.calls = 0
        self.url = inner.url

    async def get(self, path: str) -> bytes | None:
        return await self._call(lambda: self._inner.get(path))

    async def create(self, path: str, content: bytes) -> bool:
        return await self._call(lambda: self._inner.create(path, content))

    async def delete(self, path: str) -> None:
        await self._call(lambda: self._inner.delete(path))

    async def _call(self, operation: Callable[[], Awaitable[_T]]) -> _T:
        self.calls += 1
        fails = self.calls >= self._at if self._lasting else self.calls == self._at
        if fails and not self._performed:
            raise StoreProblem("the store is away", retryable=True)
        result = await operation()
        if fails:
            raise StoreProblem("the store's answer was lost", retryable=True)
        return result

    @property
    def failed(self) -> bool:
        return self.calls >= self._at


async def each_failure(inner: Store, run: Callable[[FailingStore, str], Awaitable[None]]) -> int:
    """Run, under a new key each time, with every single call failing in every way, until a run needs no more calls."""
    runs = 0
    for performed, lasting in itertools.product((False, True), repeat=2):
        for at in itertools.count(1):
            runs += 1
            failing = FailingStore(inner, at=at, performed=performed, lasting=lasting)
            await run(failing, f"order-{runs}")
            if not failing.failed:
                assert at > 2, "a run without a read and a write shows nothing"
                break
    return runs


FAILURES = pytest.mark.parametrize(
    "error",
    [None, GatewayBusy("wait"), ResponseLost("reset")],
    ids=["accepted", "nothing made", "answer lost"],
)


@pytest.mark.usefixtures("hurried")
@FAILURES
async def test_a_store_failing_anywhere_never_leads_to_a_second_job(disk: Store, error: GatewayError | None) -> None:
    await _fail_everywhere(disk, error, with_evidence=True)


@pytest.mark.usefixtures("hurried")
@FAILURES
async def test_nor_does_it_where_the_heartbeat_is_lost_as_well(disk: Store, error: GatewayError | None) -> None:
    await _fail_everywhere(disk, error, with_evidence=False)


async def _fail_everywhere(store: Store, error: GatewayError | None, *, with_evidence: bool) -> None:
    async def run(failing: FailingStore, key: str) -> None:
        gateway = Gateway(after_intent=error)
        caller = Caller(failing, gateway)
        first: SubmissionReceipt | Exception
        try:
            first = await caller.submit(key=key)
        except (LedgerError, GatewayError) as problem:
            first = problem
        if isinstance(first, LedgerUnavailable):
            assert gateway.sent == 0  # it says that nothing was sent
        if gateway.sent and error is None:
            assert isinstance(first, SubmissionReceipt), "the id of a paid job was lost"
            assert first.task_id == "task-1"
            assert caller.heartbeat_state
            assert (caller.heartbeat_state.outcome, caller.heartbeat_state.task_id) == ("accepted", "task-1")
            outcome = await outcome_in(store, key=key)
            assert first.recorded is False or (outcome is not None and outcome.task_id == "task-1")
        sent_at_first = gateway.sent
        gateway.after_intent = None
        second = await _follow_up(Caller(store, gateway, caller.heartbeat_state if with_evidence else None), key)
        assert len(gateway.made) <= 1
        if isinstance(second, SubmissionReceipt):
            assert second.task_id == gateway.made[0]
        if isinstance(first, SubmissionReceipt) and (first.recorded or with_evidence):
            assert second == first or (isinstance(second, SubmissionReceipt) and second.attached)
        if with_evidence and not isinstance(error, ResponseLost):
            assert isinstance(second, SubmissionReceipt), "the evidence settles every slot"
        if not sent_at_first and with_evidence:
            assert gateway.sent == 1, "what was surely not sent is sent by the next attempt"

    assert await each_failure(store, run) >= 12


async def _follow_up(caller: Caller, key: str) -> SubmissionReceipt | OutcomeUnknown:
    """Following attempts, the later ones when every window is over: they must end in one of the states allowed."""
    for _ in range(5):
        try:
            return await caller.submit(key=key)
        except OutcomeUnknown as unknown:
            return unknown
        except SubmissionInDoubt:
            await let_an_hour_pass(caller.store, key)
        except SlotTaken:
            continue  # by a write that went on behind a cancelled await
    raise AssertionError("no end")


@pytest.mark.usefixtures("hurried")
async def test_an_accepted_id_that_was_not_recorded_is_written_later(disk: Store) -> None:
    gateway = Gateway()
    # Calls: read the intent, create the index's entry and the intent, and from the fourth on the disk is away.
    away = FailingStore(disk, at=4, performed=False, lasting=True)
    accepted = await Caller(away, gateway).submit()
    assert (accepted.task_id, accepted.recorded) == ("task-1", False)
    ledger = SubmissionLedger(disk, longest_exchange=timedelta(seconds=1))
    await ledger.record_accepted(KEY, accepted)
    await ledger.record_accepted(KEY, accepted)  # again does nothing
    found = await Caller(disk, gateway).submit()
    assert (found.task_id, found.attached, gateway.sent) == ("task-1", True, 1)


@pytest.mark.usefixtures("hurried")
async def test_recording_says_when_the_store_does_not_take_it(disk: Store) -> None:
    away = FailingStore(disk, at=1, performed=False, lasting=True)
    accepted = SubmissionReceipt(task_id="task-1", slot=1, submitted_at=datetime.now(UTC), nonce="ours")
    with pytest.raises(LedgerUnavailable, match="the store is away"):
        await SubmissionLedger(away, longest_exchange=timedelta(seconds=1)).record_accepted(KEY, accepted)


async def test_recording_does_not_overwrite_what_was_resolved(disk: Store) -> None:
    await write_intent(disk, age=timedelta(hours=1))
    await write_outcome(disk, "accepted", "task-by-operator")
    ledger = SubmissionLedger(disk, longest_exchange=timedelta(seconds=1))
    with pytest.raises(SlotTaken):
        await ledger.record_accepted(
            KEY, SubmissionReceipt(task_id="task-1", slot=1, submitted_at=datetime.now(UTC), nonce="ours")
        )
    outcome = await outcome_in(disk)
    assert outcome
    assert outcome.task_id == "task-by-operator"


@pytest.mark.usefixtures("hurried")
async def test_a_paid_id_known_from_the_heartbeat_is_handed_on_though_the_store_cannot_be_written(store: Store) -> None:
    # Killed between the answer and the record; the disk is full now. Without this the paid id is lost in the end.
    nonce = await write_intent(store, age=timedelta(hours=1))
    evidence = HeartbeatState(nonce=nonce, outcome="accepted", task_id="task-9")
    # Calls: read the intent, read the outcome, and every write fails.
    full = FailingStore(store, at=3, performed=False, lasting=True)
    accepted = await Caller(full, Gateway(), evidence).submit()
    assert (accepted.task_id, accepted.recorded, accepted.nonce) == ("task-9", False, nonce)


CORRUPT = [b"", b"{", b"null", b"[]", b'{"nonce": "x"}', b"<html>", b"\xff\xfe", b"{}" * 1000]


@pytest.mark.parametrize("content", CORRUPT, ids=repr)
@pytest.mark.parametrize("name", ["intent", "outcome"])
async def test_a_corrupted_record_never_counts_as_free(disk: Store, name: str, content: bytes) -> None:
    await write_intent(disk, age=timedelta(hours=1))
    await write_outcome(disk, "not_sent")
    await disk.put(path_of(1, name), content)
    gateway = Gateway()
    with pytest.raises(LedgerUnavailable, match="is not a ledger record"):
        await Caller(disk, gateway).submit()
    assert gateway.sent == 0


async def test_an_acceptance_without_an_id_is_not_believed(disk: Store) -> None:
    await write_intent(disk, age=timedelta(hours=1))
    await write_outcome(disk, "accepted", None)
    gateway = Gateway()
    with pytest.raises(OutcomeUnknown):
        await Caller(disk, gateway).submit()
    assert gateway.sent == 0


async def test_a_folder_that_went_away_is_not_an_empty_ledger(disk: Store, tmp_path: Path) -> None:
    gateway = Gateway()
    await Caller(disk, gateway).submit()
    (tmp_path / "store").rename(tmp_path / "unmounted")
    with pytest.raises(LedgerUnavailable, match="mount or restore"):
        await Caller(disk, gateway).submit()
    (tmp_path / "unmounted").rename(tmp_path / "store")
    assert (await Caller(disk, gateway).submit()).attached
    assert gateway.sent == 1


async def test_records_hold_neither_key_nor_anything_that_was_sent(disk: Store, tmp_path: Path) -> None:
    await Caller(disk, Gateway()).submit(key="somebody@example.com")
    records = [path for path in (tmp_path / "store" / PREFIX).rglob("*") if path.is_file()]
    assert len(records) == 3  # intent, outcome, owner
    assert not [path for path in records if "somebody" in str(path) or b"somebody" in path.read_bytes()]


# --- Cancellation -----------------------------------------------------------------------------------------------------


class CancelledAt:
    """Runs a coroutine in the current task and cancels that task at the coroutine's n-th suspension."""

    def __init__(self, work: Awaitable[_T], at: int) -> None:
        self._work, self._at = work, at
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._work.__await__()
        error: BaseException | None = None
        while True:
            try:
                waited_for = steps.throw(error) if error else next(steps)
            except StopIteration as end:
                return end.value
            self.suspensions += 1
            if self.suspensions == self._at:
                task = asyncio.current_task()
                assert task
                task.cancel()
            error = None
            try:
                yield waited_for
            except BaseException as thrown:  # noqa: BLE001 - handed to the coroutine, as the event loop would
                error = thrown


async def _awaited(work: CancelledAt) -> Any:
    return await work


@FAILURES
async def test_a_cancellation_at_any_await_leads_to_no_second_job(store: Store, error: GatewayError | None) -> None:
    cancelled = 0
    for at in itertools.count(1):
        key, gateway = f"order-{at}", Gateway(after_intent=error)
        caller = Caller(store, gateway)
        work = CancelledAt(caller.submit(key=key), at)
        try:
            await asyncio.create_task(_awaited(work))
        except (asyncio.CancelledError, OutcomeUnknown, GatewayBusy):
            cancelled += 1
        if work.suspensions < at:
            break
        intent_created = gateway.sent == 1
        gateway.after_intent = None
        second = await _follow_up(Caller(store, gateway, caller.heartbeat_state), key)
        assert len(gateway.made) <= 1, f"cancelled at suspension {at}"
        if intent_created and not isinstance(error, GatewayBusy):
            assert gateway.sent == 1, f"cancelled at suspension {at}"
        if isinstance(second, SubmissionReceipt):
            assert second.task_id == gateway.made[0]
    assert cancelled > 5


# --- Settling what is in doubt, and taking over -----------------------------------------------------------------------


def ledger_of(store: Store) -> SubmissionLedger:
    return SubmissionLedger(store, longest_exchange=timedelta(seconds=1))


async def in_doubt(store: Store, key: str, *, model: str = "veo_3_1-fast-remix") -> datetime:
    """A submission of this key that was sent an hour ago, and nobody knows what became of it; tells when it left."""
    with pytest.raises(OutcomeUnknown):
        await ledger_of(store).submit(
            key,
            Submission(digest=DIGEST, writer=f"owner of {key}", model=model),
            Gateway(after_intent=ResponseLost("reset")).send,
        )
    await let_an_hour_pass(store, key)
    intent = await intent_in(store, key=key)
    assert intent
    return intent.sent_at


async def test_a_resolved_task_is_attached_to_and_never_sent_again(store: Store) -> None:
    sent_at = await in_doubt(store, KEY)
    ledger, gateway = ledger_of(store), Gateway()
    assert await ledger.open_slot(KEY) == 1
    accepted = await ledger.resolve(KEY, 1, task_id="task-7", reason="decided (anna)")
    assert accepted
    assert (accepted.task_id, accepted.slot, accepted.submitted_at, accepted.attached) == ("task-7", 1, sent_at, True)
    assert await ledger.open_slot(KEY) is None
    found = await Caller(store, gateway).submit()
    assert (found.task_id, found.attached, gateway.sent) == ("task-7", True, 0)
    outcome = await outcome_in(store)
    assert outcome
    assert outcome.reason == "decided (anna)"


async def test_resolved_as_never_made_it_may_be_sent_again_once(store: Store) -> None:
    await in_doubt(store, KEY)
    gateway = Gateway()
    assert await ledger_of(store).resolve(KEY, 1, task_id=None, reason="decided") is None
    assert (await Caller(store, gateway).submit()).slot == 2
    assert (await Caller(store, gateway).submit()).attached
    assert gateway.sent == 1


@pytest.mark.parametrize("task_id", ["task-7", None])
async def test_nothing_is_resolved_while_its_writer_may_be_alive(disk: Store, task_id: str | None) -> None:
    await write_intent(disk, age=timedelta(seconds=1))
    with pytest.raises(SubmissionInDoubt):
        await ledger_of(disk).resolve(KEY, 1, task_id=task_id, reason="decided")
    assert await outcome_in(disk) is None


async def test_of_two_resolutions_the_first_stands(store: Store) -> None:
    await in_doubt(store, KEY)
    ledger = ledger_of(store)
    await ledger.resolve(KEY, 1, task_id="task-7", reason="decided")
    again = await ledger.resolve(KEY, 1, task_id=None, reason="decided otherwise")
    assert again
    assert again.task_id == "task-7"


async def test_a_writer_that_finishes_after_our_timeout_finds_it_resolved(store: Store) -> None:
    """He was asleep after sending; a person has adopted another task meanwhile. His own id is not lost: he is told."""
    sending, resolved = asyncio.Event(), asyncio.Event()

    async def send(create_intent: CreateIntent) -> SubmittedTask:
        await create_intent()
        sending.set()
        await resolved.wait()
        return SubmittedTask("task-of-the-owner")

    owner = asyncio.create_task(ledger_of(store).submit(KEY, Submission(digest=DIGEST, writer="asleep"), send))
    await sending.wait()
    await let_an_hour_pass(store)
    await ledger_of(store).resolve(KEY, 1, task_id="task-7", reason="decided")
    resolved.set()
    assert (await owner).task_id == "task-of-the-owner"
    outcome = await outcome_in(store)
    assert outcome
    assert outcome.task_id == "task-7"


async def test_a_task_of_another_generation_is_not_given_away(store: Store) -> None:
    await Caller(store, Gateway()).submit(key="another")
    await in_doubt(store, KEY)
    ledger = ledger_of(store)
    with pytest.raises(TaskOwned):
        await ledger.resolve(KEY, 1, task_id="task-1", reason="decided")
    with pytest.raises(TaskOwned):
        await ledger.adopt("a third", Submission(digest=DIGEST, writer="anna", model=""), "task-1")
    assert await outcome_in(store) is None
    assert await intent_in(store, key="a third") is None


async def test_a_slot_that_is_not_there_is_not_resolved(disk: Store) -> None:
    with pytest.raises(LedgerUnavailable, match="LONGTAKE_STORE_URL"):
        await ledger_of(disk).resolve(KEY, 1, task_id="task-7", reason="decided")


async def test_a_task_of_somebody_else_is_taken_over_without_sending(store: Store) -> None:
    ledger, gateway = ledger_of(store), Gateway()
    adopted = await ledger.adopt(KEY, Submission(digest=DIGEST, writer="anna", model="veo_3_1-remix"), "task-7")
    assert (adopted.task_id, adopted.attached, adopted.slot) == ("task-7", True, 1)
    again = await ledger.adopt(KEY, Submission(digest=DIGEST, writer="anna", model="veo_3_1-remix"), "task-7")
    assert (again.task_id, again.slot) == ("task-7", 1)
    assert (await Caller(store, gateway).submit()).task_id == "task-7"
    with pytest.raises(KeyReused):
        await ledger.adopt(KEY, Submission(digest="another request", writer="anna", model=""), "task-8")
    assert gateway.sent == 0


@pytest.mark.usefixtures("hurried")
async def test_a_takeover_that_was_interrupted_between_its_records_is_finished(store: Store) -> None:
    # Calls: read the intent, read the owner, create the intent; then the store is away.
    away = FailingStore(store, at=4, performed=False, lasting=True)
    away.entries = store.entries  # type: ignore[method-assign]
    with pytest.raises(LedgerUnavailable):
        await ledger_of(away).adopt(KEY, Submission(digest=DIGEST, writer="anna", model=""), "task-7")
    assert await intent_in(store) is not None
    finished = await ledger_of(store).adopt(KEY, Submission(digest=DIGEST, writer="anna", model=""), "task-7")
    assert (finished.task_id, finished.slot) == ("task-7", 1)


async def test_other_submissions_in_doubt_are_found(store: Store) -> None:
    ledger = ledger_of(store)
    await in_doubt(store, KEY)
    await Caller(store, Gateway()).submit(key="paid")
    await in_doubt(store, "another")
    await in_doubt(store, "of another model", model="veo_3_1-remix")
    with pytest.raises(GatewayBusy):
        await Caller(store, Gateway(after_intent=GatewayBusy("wait"))).submit(key="refused")
    still_open = await ledger.open_submissions(KEY, "veo_3_1-fast-remix")
    assert {other.intent.writer for other in still_open.others} == {"owner of another"}
    assert set(still_open.listed_at) == {1}
    owners = await ledger.owners_of(["task-1", "task-2"])
    assert {task_id: owner.account for task_id, owner in owners.items()} == {"task-1": ""}


async def test_other_submissions_in_doubt_are_not_known_while_the_store_is_away(disk: Store, tmp_path: Path) -> None:
    """Whoever took an absent list for an empty one would adopt somebody else's task."""
    await Caller(disk, Gateway()).submit(key="paid")
    (tmp_path / "store").rename(tmp_path / "unmounted")
    with pytest.raises(LedgerUnavailable):
        await ledger_of(disk).open_submissions(KEY, "")
    with pytest.raises(LedgerUnavailable):
        await ledger_of(disk).owners_of(["task-1"])


async def test_the_doubt_about_a_submission(disk: Store) -> None:
    await write_intent(disk, age=timedelta(seconds=10), window=timedelta(minutes=2))
    doubt = await ledger_of(disk).doubt(KEY, 1)
    assert doubt
    assert (doubt.exchange_is_over, doubt.response) == (False, None)
    assert doubt.intent.over_at - doubt.intent.sent_at == timedelta(minutes=2)
    await write_outcome(disk, "not_sent")
    assert await ledger_of(disk).doubt(KEY, 1) is None


async def test_where_it_was_sent_and_who_paid_is_written_down(store: Store) -> None:
    async def submit() -> SubmissionReceipt:
        return await ledger_of(store).submit(
            KEY,
            Submission(digest=DIGEST, writer="us", gateway="https://gateway.example", account="0123456789abcdef"),
            Gateway().send,
        )

    first, attached = await submit(), await submit()
    intent = await intent_in(store)
    assert intent
    for record in (first, attached, intent):
        assert (record.gateway, record.account) == ("https://gateway.example", "0123456789abcdef")
    owner = (await ledger_of(store).owners_of(["task-1"]))["task-1"]
    assert (owner.account, owner.sent_at) == ("0123456789abcdef", intent.sent_at)
    assert owner.request_id == first.request_id is not None


# --- An exchange that is over, and no id ------------------------------------------------------------------------------


async def test_an_answer_that_does_not_help_spares_everybody_the_wait(store: Store) -> None:
    error = InvalidResponse("no id", status=200, request_id="req-7", excerpt="x" * 600)
    with pytest.raises(OutcomeUnknown) as sent:
        await patient(store, Gateway(after_intent=error)).submit()
    with pytest.raises(OutcomeUnknown) as found:
        await patient(store, Gateway()).submit()
    for caught in (sent, found):
        assert (caught.value.status, caught.value.request_id) == (200, "req-7")
        assert caught.value.slot == 1
    ledger = ledger_of(store)
    assert (await ledger.open_slot(KEY), await ledger.is_untouched(KEY)) == (1, False)
    doubt = await ledger.doubt(KEY, 1)
    assert doubt
    assert doubt.exchange_is_over
    assert doubt.intent.over_at > datetime.now(UTC)
    resolved = await ledger.resolve(KEY, 1, task_id="task-7", reason="decided")
    assert resolved
    assert (await patient(store, Gateway()).submit()).task_id == "task-7"


async def test_a_time_out_of_ours_spares_the_wait_as_well(disk: Store) -> None:
    with pytest.raises(OutcomeUnknown):
        await patient(disk, Gateway(after_intent=ResponseLost("read timeout"))).submit()
    with pytest.raises(OutcomeUnknown) as found:
        await patient(disk, Gateway()).submit()
    assert (found.value.status, found.value.request_id) == (None, None)


async def test_the_response_of_another_attempt_proves_nothing(disk: Store) -> None:
    await write_intent(disk, age=timedelta(0))
    response = {"nonce": "another", "at": datetime.now(UTC).isoformat()}
    await disk.put(path_of(1, "response"), json.dumps(response).encode())
    with pytest.raises(SubmissionInDoubt):
        await ledger_of(disk).resolve(KEY, 1, task_id=None, reason="decided")


async def test_a_store_that_hangs_does_not_keep_the_doubt_back(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(Store):
        async def create(self, path: str, content: bytes) -> bool:
            if path.endswith("response"):
                await asyncio.Event().wait()
            return await super().create(path, content)

    monkeypatch.setattr(ledger_module, "_RESPONSE_SECONDS", 0.05)
    hanging = Hanging(disk._backend, disk.url, disk._root)
    with pytest.raises(OutcomeUnknown):
        await patient(hanging, Gateway(after_intent=ResponseLost("reset"))).submit()
    with pytest.raises(SubmissionInDoubt):
        await patient(disk, Gateway()).submit()


class Patient(Caller):
    """A caller whose exchange may take two minutes."""

    async def submit(
        self,
        *,
        key: str = KEY,
        digest: str = DIGEST,
        writer: str = "us",
        scheduled_at: datetime | None = None,
        send: Callable[[CreateIntent], Awaitable[SubmittedTask]] | None = None,
    ) -> SubmissionReceipt:
        ledger = SubmissionLedger(self.store, longest_exchange=timedelta(minutes=2))
        return await ledger.submit(
            key,
            Submission(digest=digest, writer=writer, model="veo_3_1-fast-remix"),
            send or self.gateway.send,
            earlier=self.heartbeat_state,
            save_state=self._keep,
            scheduled_at=scheduled_at,
        )


def patient(store: Store, gateway: Gateway) -> Patient:
    return Patient(store, gateway)


# --- Making sure that nothing is sent any more ------------------------------------------------------------------------

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


async def close(store: Store, fence: datetime = NOON) -> SubmissionReceipt | None:
    return await ledger_of(store).close_unsent(KEY, fence=fence, writer="the closer", digest=DIGEST)


async def test_what_is_closed_is_not_sent_by_any_attempt_scheduled_before(store: Store) -> None:
    gateway = Gateway()
    assert await close(store) is None
    for scheduled_at in (NOON - SECOND, NOON):
        with pytest.raises(SubmissionClosed):
            await patient(store, gateway).submit(scheduled_at=scheduled_at)
    assert gateway.sent == 0
    ledger = ledger_of(store)
    assert (await ledger.is_untouched(KEY), await ledger.open_slot(KEY)) == (True, None)
    assert await ledger.doubt(KEY, 1) is None
    assert await ledger.outcome_of(KEY, 1) is None
    accepted = await patient(store, gateway).submit(scheduled_at=NOON + SECOND)
    assert (accepted.slot, gateway.sent) == (2, 1)
    # What was paid since is found by everybody, however old.
    assert (await patient(store, gateway).submit(scheduled_at=NOON - SECOND)).task_id == accepted.task_id
    closed = await close(store)
    assert closed
    assert closed.task_id == accepted.task_id
    assert gateway.sent == 1


async def test_a_straggler_on_its_way_to_the_gateway_finds_its_slot_closed(store: Store) -> None:
    """It has walked the slots and is in TLS when the workflow gives it up."""

    async def send(create_intent: CreateIntent) -> SubmittedTask:
        assert await close(store) is None
        await create_intent()
        raise AssertionError("sent")

    caller = patient(store, Gateway())
    with pytest.raises(SlotTaken):
        await caller.submit(scheduled_at=NOON - SECOND, send=send)
    with pytest.raises(SubmissionClosed):
        await caller.submit(scheduled_at=NOON - SECOND)
    assert await close(store) is None


async def test_a_straggler_that_was_faster_is_in_doubt_and_not_reported_as_unsent(disk: Store) -> None:
    class Raced(Store):
        """Somebody takes the slot in the very moment when it is closed."""

        async def create(self, path: str, content: bytes) -> bool:
            if path.endswith("/1/intent"):
                await write_intent(disk, age=timedelta(0))
            return await super().create(path, content)

    with pytest.raises(SubmissionInDoubt):
        await close(Raced(disk._backend, disk.url, disk._root))
    await write_outcome(disk, "accepted", "task-7")
    closed = await close(disk)
    assert closed
    assert closed.task_id == "task-7"


@pytest.mark.parametrize("racers", [2, 10])
async def test_of_closers_and_stragglers_at_once_nobody_gets_a_wrong_answer(store: Store, racers: int) -> None:
    gateway = Gateway()
    stragglers = [patient(store, gateway).submit(scheduled_at=NOON) for _ in range(racers)]
    ended = await asyncio.gather(*(close(store) for _ in range(racers)), *stragglers, return_exceptions=True)
    closings = ended[:racers]
    assert all(end is None or isinstance(end, SubmissionReceipt | SubmissionInDoubt) for end in closings), closings
    if None in closings:
        assert gateway.sent == 0
    with contextlib.suppress(SubmissionClosed):
        await patient(store, gateway).submit(scheduled_at=NOON)
    assert gateway.sent == (0 if None in closings else 1)


async def test_closing_again_takes_no_further_slot_unless_the_fence_is_later(disk: Store) -> None:
    for _ in range(3):
        assert await close(disk) is None
    assert await close(disk, NOON - SECOND) is None
    assert await intent_in(disk, 2) is None
    assert await close(disk, NOON + SECOND) is None
    assert await intent_in(disk, 2)
    with pytest.raises(SubmissionClosed):
        await patient(disk, Gateway()).submit(scheduled_at=NOON + SECOND)


async def test_what_may_have_been_sent_is_not_closed(store: Store) -> None:
    with pytest.raises(OutcomeUnknown):
        await patient(store, Gateway(after_intent=ResponseLost("reset"))).submit()
    with pytest.raises(OutcomeUnknown):
        await close(store)
    await ledger_of(store).resolve(KEY, 1, task_id=None, reason="decided")
    assert await close(store) is None
    with pytest.raises(OutcomeUnknown):
        await patient(store, Gateway(after_intent=ResponseLost("reset"))).submit(scheduled_at=NOON + SECOND)
    with pytest.raises(OutcomeUnknown):
        await close(store)  # though nothing older can be sent: what came later is in doubt


async def test_what_came_late_is_returned_by_whoever_closes(disk: Store) -> None:
    await write_intent(disk, age=timedelta(hours=1))
    await write_outcome(disk, "not_sent")
    late = Outcome(nonce="theirs-1", outcome="accepted", task_id="task-9", at=datetime.now(UTC))
    await disk.put(path_of(1, "late"), late.model_dump_json().encode())
    closed = await close(disk)
    assert closed
    assert closed.task_id == "task-9"
    assert await intent_in(disk, 2) is None


async def test_the_task_of_another_request_of_the_key_is_not_returned(disk: Store) -> None:
    await Caller(disk, Gateway()).submit(digest="another request")
    assert await close(disk) is None
    with pytest.raises(KeyReused):
        await patient(disk, Gateway()).submit(scheduled_at=NOON - SECOND)


@pytest.mark.usefixtures("hurried")
async def test_a_store_failing_anywhere_while_it_is_closed_leads_to_no_wrong_answer(disk: Store) -> None:
    async def run(failing: FailingStore, key: str) -> None:
        closed = False
        with contextlib.suppress(LedgerUnavailable):
            assert await ledger_of(failing).close_unsent(key, fence=NOON, writer="closer") is None
            closed = True
        gateway, ledger = Gateway(), ledger_of(disk)
        assert (await ledger.is_untouched(key), await ledger.open_slot(key)) == (True, None)
        with contextlib.suppress(SubmissionClosed):
            await patient(disk, gateway).submit(key=key, scheduled_at=NOON)
        assert gateway.sent == 0 or not closed
        if not gateway.sent:
            assert await ledger.close_unsent(key, fence=NOON, writer="closer") is None

    assert await each_failure(disk, run) >= 12


# --- The index of what is open ----------------------------------------------------------------------------------------


async def open_entries(store: Store) -> list[str]:
    return sorted([path async for path, _ in store.entries(OPEN)])


async def test_what_is_open_is_in_the_index_from_before_the_first_byte_until_its_outcome(store: Store) -> None:
    seen: list[list[str]] = []

    async def send(create_intent: CreateIntent) -> SubmittedTask:
        await create_intent()
        seen.append(await open_entries(store))
        return SubmittedTask("task-1")

    await patient(store, Gateway()).submit(send=send)
    assert seen == [[records_module.open_path(records_module.folder_of(KEY), 1)]]
    assert await open_entries(store) == []
    with pytest.raises(GatewayBusy):
        await Caller(store, Gateway(after_intent=GatewayBusy("wait"))).submit(key="refused")
    assert await open_entries(store) == []
    await in_doubt(store, "another")
    assert len(await open_entries(store)) == 1
    await ledger_of(store).resolve("another", 1, task_id="task-2", reason="decided")
    assert await open_entries(store) == []


async def test_an_entry_without_an_intent_is_no_other_doubt_and_stays(store: Store) -> None:
    """Its owner may be just about to make the intent."""
    await store.put(f"{OPEN}/{'0' * 32}.1", b"{}")
    assert (await ledger_of(store).open_submissions(KEY, "")).others == ()
    assert len(await open_entries(store)) == 1


async def test_an_entry_that_was_left_behind_is_tidied_and_its_task_has_an_owner(store: Store) -> None:
    """Killed between the outcome and what follows it."""
    await Caller(store, Gateway()).submit(key="paid")
    owner = records_module.owner_path("task-1")
    await store.delete(owner)
    await store.put(records_module.open_path(records_module.folder_of("paid"), 1), b"{}")
    ledger = ledger_of(store)
    assert (await ledger.open_submissions(KEY, "veo_3_1-fast-remix")).others == ()
    assert set(await ledger.owners_of(["task-1"])) == {"task-1"}
    assert await open_entries(store) == []


async def test_another_submission_in_flight_counts(store: Store) -> None:
    others: list[OpenSubmission] = []

    async def send(create_intent: CreateIntent) -> SubmittedTask:
        await create_intent()
        others.extend((await ledger_of(store).open_submissions("another", "veo_3_1-fast-remix")).others)
        return SubmittedTask("task-1")

    await patient(store, Gateway()).submit(send=send)
    assert [other.intent.writer for other in others] == ["us"]


class CountingStore(Store):
    """Another store that counts what is asked of it, and what a listing brings."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner._backend, inner.url, inner._root)
        self.calls = 0

    async def get(self, path: str) -> bytes | None:
        self.calls += 1
        return await super().get(path)

    async def entries(self, prefix: str) -> AsyncIterator[tuple[str, datetime]]:
        self.calls += 1
        async for entry in super().entries(prefix):
            self.calls += 1
            yield entry


async def test_how_much_is_read_does_not_grow_with_the_number_of_keys(disk: Store) -> None:
    await in_doubt(disk, KEY)
    await in_doubt(disk, "another")
    calls = []
    for keys in (1, 30):
        for number in range(keys):
            gateway = Gateway(made=[f"{keys}-{number}"])
            await Caller(disk, gateway).submit(key=f"paid {keys}-{number}")
        counting = CountingStore(disk)
        ledger = ledger_of(counting)
        assert len((await ledger.open_submissions(KEY, "veo_3_1-fast-remix")).others) == 1
        await ledger.owners_of(["task-2", "task-3"])
        calls.append(counting.calls)
    assert calls[0] == calls[1] < 12


# --- Whose a task is --------------------------------------------------------------------------------------------------


async def test_of_two_generations_given_the_same_task_at_once_one_is_refused(store: Store) -> None:
    keys = [f"order-{number}" for number in range(4)]
    for key in keys:
        await in_doubt(store, key)
    ledger = ledger_of(store)
    ended = await asyncio.gather(
        *(ledger.resolve(key, 1, task_id="task-7", reason="decided") for key in keys[:2]),
        *(ledger.adopt(f"new {key}", Submission(digest=DIGEST, writer="anna", model=""), "task-7") for key in keys[2:]),
        return_exceptions=True,
    )
    assert len([end for end in ended if isinstance(end, SubmissionReceipt)]) == 1
    assert len([end for end in ended if isinstance(end, TaskOwned)]) == 3


async def test_a_heartbeat_state_does_not_make_anothers_task_ours(store: Store) -> None:
    """Whoever may write to Temporal may run our steps with an input of his own, and write heartbeats."""
    victims = await Caller(store, Gateway()).submit(key="victim")
    nonce = await write_intent(store, age=timedelta(hours=1))
    evidence = HeartbeatState(nonce=nonce, outcome="accepted", task_id=victims.task_id)
    believed = await Caller(store, Gateway(), evidence).submit()
    assert not believed.recorded
    ledger = ledger_of(store)
    with pytest.raises(TaskOwned):
        await ledger.record_accepted(KEY, believed, only=True)
    assert await outcome_in(store) is None
    with pytest.raises(TaskOwned):
        await ledger.check_owner(KEY, victims.task_id)
    await ledger.check_owner("victim", victims.task_id)


async def test_a_task_that_answered_two_submissions_is_both_of_theirs(store: Store) -> None:
    first = await Caller(store, Gateway()).submit(key="first")
    second = await Caller(store, Gateway()).submit()
    assert first.task_id == second.task_id
    ledger = ledger_of(store)
    await ledger.check_owner("first", first.task_id)
    await ledger.check_owner(KEY, first.task_id)
    with pytest.raises(TaskOwned):
        await ledger.check_owner("third", first.task_id)
    await ledger.check_owner("third", "a task that nobody has claimed")


async def test_a_task_that_came_after_a_decision_is_its_submissions_too(store: Store) -> None:
    """The gateway answered two submissions with it, and a person had said of one that it made nothing."""
    first = await Caller(store, Gateway()).submit(key="first")
    nonce = await write_intent(store, age=timedelta(hours=1))
    await write_outcome(store, "not_sent")
    ledger = ledger_of(store)
    with pytest.raises(TaskOwned):
        await ledger.check_owner(KEY, first.task_id)
    late = Outcome(nonce=nonce, outcome="accepted", task_id=first.task_id, at=datetime.now(UTC))
    await store.put(path_of(1, "late"), late.model_dump_json().encode())
    await ledger.check_owner(KEY, first.task_id)


async def test_a_paid_id_that_only_the_heartbeat_knows_outlives_a_decision(store: Store) -> None:
    """A person said "nothing was made", and the worker was killed before it could write its id down."""
    await in_doubt(store, KEY)
    intent = await intent_in(store)
    assert intent
    await ledger_of(store).resolve(KEY, 1, task_id=None, reason="decided")
    evidence = HeartbeatState(nonce=intent.nonce, outcome="accepted", task_id="task-9")
    gateway = Gateway()
    found = await Caller(store, gateway, evidence).submit()
    assert (found.task_id, found.attached, gateway.sent) == ("task-9", True, 0)
    assert (await Caller(store, gateway).submit()).task_id == "task-9"
    assert set(await ledger_of(store).owners_of(["task-9"])) == {"task-9"}
    assert gateway.sent == 0


async def test_a_resolved_slot_returns_its_outcome_and_no_other_one_is_touched(store: Store) -> None:
    """A decision that is replayed, such as by a reset, when the next submission is in doubt too."""
    await in_doubt(store, KEY)
    ledger = ledger_of(store)
    assert await ledger.resolve(KEY, 1, task_id=None, reason="decided") is None
    with pytest.raises(OutcomeUnknown):
        await patient(store, Gateway(after_intent=ResponseLost("reset"))).submit()
    assert await ledger.resolve(KEY, 1, task_id=None, reason="decided") is None
    assert await ledger.resolve(KEY, 1, task_id="task-7", reason="decided") is None
    assert await outcome_in(store, 2) is None
    assert await ledger.owners_of(["task-7"]) == {}
    with pytest.raises(OutcomeUnknown) as caught:
        await patient(store, Gateway()).submit()
    assert caught.value.slot == 2


# --- Every field of every record --------------------------------------------------------------------------------------

GATEWAY, ACCOUNT = "https://gateway.example", "0123456789abcdef"


async def all_records(store: Store) -> dict[str, dict[str, Any]]:
    """Everything that the store holds, by path; times are read, and keys hashed as the ledger hashes them."""
    records = {}
    for prefix in (PREFIX, OPEN):
        async for path, _ in store.entries(prefix):
            record = json.loads(await store.get(path) or b"{}")
            for name in ("sent_at", "at", "fence"):
                if record.get(name):
                    record[name] = datetime.fromisoformat(record[name])
            records[path] = record
    return records


async def send_whole(store: Store, gateway: Gateway) -> tuple[SubmissionReceipt | None, dict[str, dict[str, Any]]]:
    """Submit with everything that can be said; returns what the store held when the first byte left as well."""
    seen: dict[str, dict[str, Any]] = {}

    async def send(create_intent: CreateIntent) -> SubmittedTask:
        async def create_intent_and_read() -> None:
            await create_intent()
            seen.update(await all_records(store))

        return await gateway.send(create_intent_and_read)

    accepted = None
    with contextlib.suppress(OutcomeUnknown, GatewayError):
        accepted = await SubmissionLedger(store, longest_exchange=timedelta(seconds=60)).submit(
            KEY, Submission(digest=DIGEST, writer="us", model="a model", gateway=GATEWAY, account=ACCOUNT), send
        )
    return accepted, seen


def intent_record(record: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What an intent of this caller must be, its name and moment apart."""
    wanted = {"digest": DIGEST, "window_seconds": 90.0, "writer": "us", "model": "a model"}
    wanted |= {"gateway": GATEWAY, "account": ACCOUNT}
    wanted |= {"closing": False, "fence": None, "proof_hash": record["proof_hash"]}
    return {"nonce": record["nonce"], "sent_at": record["sent_at"], **wanted, **more}


def outcome_record(nonce: str, record: dict[str, Any], **more: Any) -> dict[str, Any]:
    wanted = {"task_id": None, "request_id": None, "reason": "", "decided": False, "not_charged": False, "fence": None}
    return {"nonce": nonce, "at": record["at"], **wanted, **more}


def folder_of(key: str = KEY) -> str:
    return records_module.folder_of(key)


async def test_every_record_of_a_paid_submission(disk: Store) -> None:
    accepted, intent_created = await send_whole(disk, Gateway())
    intent = intent_created[path_of(1, "intent")]
    nonce, sent_at = intent["nonce"], intent["sent_at"]
    entry = {"nonce": nonce, "model": "a model", "sent_at": sent_at}
    assert intent_created == {
        path_of(1, "intent"): intent_record(intent),
        records_module.open_path(records_module.folder_of(KEY), 1): entry,
    }
    assert accepted == SubmissionReceipt(
        task_id="task-1",
        slot=1,
        submitted_at=sent_at,
        request_id="request-1",
        nonce=nonce,
        gateway=GATEWAY,
        account=ACCOUNT,
    )
    records = await all_records(disk)
    outcome = records[path_of(1, "outcome")]
    assert records == {
        path_of(1, "intent"): intent,
        path_of(1, "outcome"): outcome_record(
            nonce, outcome, outcome="accepted", task_id="task-1", request_id="request-1"
        ),
        records_module.owner_path("task-1"): {
            "nonce": nonce,
            "folder": folder_of(),
            "account": ACCOUNT,
            "request_id": "request-1",
            "sent_at": sent_at,
        },
    }
    attached = SubmissionReceipt(
        task_id="task-1",
        slot=1,
        submitted_at=sent_at,
        request_id="request-1",
        attached=True,
        nonce=nonce,
        gateway=GATEWAY,
        account=ACCOUNT,
    )
    ledger = ledger_of(disk)
    assert await ledger.accepted(KEY) == await ledger.outcome_of(KEY, 1) == attached
    assert await ledger.resolve(KEY, 1, task_id=None, reason="decided") == attached


async def test_every_record_of_a_refused_submission(disk: Store) -> None:
    _, intent_created = await send_whole(disk, Gateway(after_intent=GatewayBusy("later")))
    records = await all_records(disk)
    intent, outcome = records[path_of(1, "intent")], records[path_of(1, "outcome")]
    assert intent == intent_created[path_of(1, "intent")]
    assert outcome == outcome_record(intent["nonce"], outcome, outcome="not_sent", reason="GatewayBusy")
    assert set(records) == {path_of(1, "intent"), path_of(1, "outcome")}


async def test_every_record_of_a_submission_in_doubt_and_of_its_resolution(disk: Store) -> None:
    error = InvalidResponse("no id", status=200, request_id="req-7", excerpt="<p>")
    await send_whole(disk, Gateway(after_intent=error))
    records = await all_records(disk)
    intent, response = records[path_of(1, "intent")], records[path_of(1, "response")]
    assert response == {
        "nonce": intent["nonce"],
        "at": response["at"],
        "status": 200,
        "request_id": "req-7",
        "reason": f"InvalidResponse: {error}",
        "excerpt": "<p>",
    }
    assert set(records) == {
        path_of(1, "intent"),
        path_of(1, "response"),
        records_module.open_path(records_module.folder_of(KEY), 1),
    }
    ledger = ledger_of(disk)
    assert await ledger.outcome_of(KEY, 1) is None
    resolved = await ledger.resolve(KEY, 1, task_id="task-7", reason="decided")
    attached = SubmissionReceipt(
        task_id="task-7",
        slot=1,
        submitted_at=intent["sent_at"],
        attached=True,
        nonce=intent["nonce"],
        gateway=GATEWAY,
        account=ACCOUNT,
    )
    assert resolved == attached == await ledger.outcome_of(KEY, 1)
    records = await all_records(disk)
    outcome = records[path_of(1, "outcome")]
    assert outcome == outcome_record(intent["nonce"], outcome, outcome="accepted", task_id="task-7", reason="decided")
    assert records[records_module.owner_path("task-7")] == {
        "nonce": intent["nonce"],
        "folder": folder_of(),
        "account": ACCOUNT,
        "request_id": None,
        "sent_at": None,
    }


@pytest.mark.parametrize("not_charged", [False, True])
async def test_every_record_of_a_decision_that_nothing_was_made(disk: Store, not_charged: bool) -> None:
    await in_doubt(disk, KEY)
    more = {"not_charged": True} if not_charged else {}
    assert await ledger_of(disk).resolve(KEY, 1, task_id=None, reason="decided (anna)", **more) is None
    records = await all_records(disk)
    intent, outcome = records[path_of(1, "intent")], records[path_of(1, "outcome")]
    assert outcome == outcome_record(
        intent["nonce"],
        outcome,
        outcome="not_sent",
        reason="decided (anna)",
        decided=True,
        not_charged=not_charged,
    )
    assert records_module.open_path(records_module.folder_of(KEY), 1) in records, "a task may turn up that it made"
    assert await ledger_of(disk).resubmissions(KEY) == int(not_charged)


async def test_every_record_of_what_came_after_a_decision(disk: Store) -> None:
    await send_whole(disk, Gateway(after_intent=ResponseLost("reset")))
    intent = await intent_in(disk)
    assert intent
    ledger = ledger_of(disk)
    await ledger.resolve(KEY, 1, task_id=None, reason="decided")
    late = SubmissionReceipt(
        task_id="task-9",
        slot=1,
        submitted_at=intent.sent_at,
        request_id="request-9",
        nonce=intent.nonce,
        gateway=GATEWAY,
        account=ACCOUNT,
    )
    await ledger.record_accepted(KEY, late)
    records = await all_records(disk)
    record = records[path_of(1, "late")]
    assert record == outcome_record(intent.nonce, record, outcome="accepted", task_id="task-9", request_id="request-9")
    assert records[records_module.owner_path("task-9")] == {
        "nonce": intent.nonce,
        "folder": folder_of(),
        "account": ACCOUNT,
        "request_id": "request-9",
        "sent_at": intent.sent_at,
    }
    assert records_module.open_path(records_module.folder_of(KEY), 1) not in records
    assert await ledger.outcome_of(KEY, 1) == await ledger.accepted(KEY) == late.model_copy(update={"attached": True})
    assert await ledger.resolve(KEY, 1, task_id=None, reason="again") == late.model_copy(update={"attached": True})
    assert not await ledger.is_untouched(KEY)


async def test_every_record_of_a_takeover(disk: Store) -> None:
    adopted = await ledger_of(disk).adopt(KEY, Submission(digest=DIGEST, writer="anna", model="a model"), "task-7")
    records = await all_records(disk)
    intent, outcome = records[path_of(1, "intent")], records[path_of(1, "outcome")]
    assert adopted == SubmissionReceipt(
        task_id="task-7", slot=1, submitted_at=intent["sent_at"], attached=True, nonce=intent["nonce"]
    )
    assert records == {
        path_of(1, "intent"): intent_record(intent, window_seconds=0.0, writer="anna", gateway="", account=""),
        path_of(1, "outcome"): outcome_record(intent["nonce"], outcome, outcome="accepted", task_id="task-7"),
        records_module.owner_path("task-7"): {
            "nonce": intent["nonce"],
            "folder": folder_of(),
            "account": "",
            "request_id": None,
            "sent_at": None,
        },
    }


async def test_every_record_of_a_takeover_that_was_interrupted(disk: Store) -> None:
    nonce = await write_intent(disk, age=timedelta(hours=1))
    adopted = await ledger_of(disk).adopt(KEY, Submission(digest=DIGEST, writer="anna", model="a model"), "task-7")
    outcome = (await all_records(disk))[path_of(1, "outcome")]
    assert outcome == outcome_record(nonce, outcome, outcome="accepted", task_id="task-7", reason="adopted (anna)")
    assert (adopted.task_id, adopted.slot, adopted.nonce, adopted.attached) == ("task-7", 1, nonce, True)


async def test_every_record_of_a_closing(disk: Store) -> None:
    assert await close(disk) is None
    records = await all_records(disk)
    intent = records[path_of(1, "intent")]
    nothing = {"window_seconds": 0.0, "writer": "the closer", "model": "", "gateway": "", "account": ""}
    assert records == {path_of(1, "intent"): intent_record(intent, **nothing, closing=True, fence=NOON)}


@pytest.mark.parametrize("request_id", ["request-1", None])
async def test_an_entry_that_was_left_behind_names_the_owner_as_its_writer_would_have(
    disk: Store, request_id: str | None
) -> None:
    sent_at = await in_doubt(disk, "paid")
    intent = await intent_in(disk, key="paid")
    assert intent
    intent = intent.model_copy(update={"account": ACCOUNT})
    await disk.put(path_of(1, "intent", "paid"), intent.model_dump_json().encode())
    now = datetime.now(UTC)
    outcome = Outcome(nonce=intent.nonce, outcome="accepted", task_id="Task-1", request_id=request_id, at=now)
    await disk.put(path_of(1, "outcome", "paid"), outcome.model_dump_json().encode())
    await ledger_of(disk).open_submissions(KEY, "veo_3_1-fast-remix")
    (owner,) = (await ledger_of(disk).owners_of(["task-1"])).values()
    assert owner.model_dump() == {
        "nonce": intent.nonce,
        "folder": folder_of("paid"),
        "account": ACCOUNT,
        "request_id": request_id,
        "sent_at": sent_at if request_id else None,
    }


# --- At the edges -----------------------------------------------------------------------------------------------------


async def test_whoever_closes_without_a_request_gets_whatever_was_paid(disk: Store) -> None:
    await Caller(disk, Gateway()).submit(digest="another request")
    closed = await ledger_of(disk).close_unsent(KEY, fence=NOON, writer="the closer")
    assert closed
    assert closed.task_id == "task-1"


async def test_what_came_late_for_another_request_is_not_returned(disk: Store) -> None:
    await write_intent(disk, age=timedelta(hours=1))
    await write_outcome(disk, "not_sent")
    late = Outcome(nonce="theirs-1", outcome="accepted", task_id="task-9", at=datetime.now(UTC))
    await disk.put(path_of(1, "late"), late.model_dump_json().encode())
    ledger = ledger_of(disk)
    assert await ledger.close_unsent(KEY, fence=NOON, writer="the closer", digest="another request") is None
    assert await ledger.accepted(KEY, "another request") is None


@pytest.mark.parametrize("name", [f"{'0' * 32}.later.1", f"{'0' * 32}.x", f"{'0' * 32}", "a.b/1"])
async def test_what_somebody_else_put_into_the_index_is_left_alone(disk: Store, name: str) -> None:
    await in_doubt(disk, "another")
    await disk.put(f"{OPEN}/{name}", b"{}")
    still_open = await ledger_of(disk).open_submissions(KEY, "veo_3_1-fast-remix")
    assert len(still_open.others) == 1


@pytest.mark.parametrize("request_of", ["resolve", "outcome_of"])
async def test_an_acceptance_without_an_id_brings_nothing(disk: Store, request_of: str) -> None:
    await write_intent(disk, age=timedelta(hours=1))
    await write_outcome(disk, "accepted", None)
    ledger = ledger_of(disk)
    if request_of == "resolve":
        assert await ledger.resolve(KEY, 1, task_id=None, reason="decided") is None
    else:
        assert await ledger.outcome_of(KEY, 1) is None


async def test_a_key_whose_slots_are_used_up_is_refused_by_everybody(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (ledger_module, records_module):
        monkeypatch.setattr(module, "MAX_SLOTS", 4)
    for slot in (1, 2, 3):
        await write_intent(disk, age=timedelta(hours=1), slot=slot)
        await write_outcome(disk, "not_sent", slot=slot)
    gateway, ledger = Gateway(), ledger_of(disk)
    with pytest.raises(LedgerUnavailable):
        await Caller(disk, gateway).submit()
    with pytest.raises(LedgerUnavailable):
        await close(disk)
    assert (await ledger.is_untouched(KEY), await ledger.open_slot(KEY), gateway.sent) == (True, None, 0)
    assert (await ledger.accepted(KEY), await ledger.resubmissions(KEY)) == (None, 0)


async def test_it_left_when_its_first_byte_was_to_leave_and_not_when_it_set_out(disk: Store) -> None:
    moments: list[datetime] = []

    async def send(create_intent: CreateIntent) -> SubmittedTask:
        await asyncio.sleep(0.002)  # connecting
        moments.append(datetime.now(UTC))
        await create_intent()
        return SubmittedTask("task-1")

    accepted = await patient(disk, Gateway()).submit(send=send)
    intent = await intent_in(disk)
    assert intent
    assert accepted.submitted_at == intent.sent_at >= moments[0]


@pytest.mark.parametrize("needs_operator", [True, False])
async def test_a_ledger_that_cannot_begin_says_whether_waiting_helps(
    disk: Store, monkeypatch: pytest.MonkeyPatch, *, needs_operator: bool
) -> None:
    async def create(_path: str, _content: bytes) -> bool:
        raise StoreProblem("no", retryable=True, needs_operator=needs_operator)

    monkeypatch.setattr(disk, "create", create)
    with pytest.raises(LedgerUnavailable) as caught:
        await ledger_of(disk).establish()
    assert caught.value.needs_operator is needs_operator
