"""One run: callers start generations, the weather breaks things, an operator decides what people must decide."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from temporalio.client import Client
from temporalio.service import RPCError

from longtake.client import DecisionRejected, Execution, GenerationNotFound, KeyInUse, NoWorker, VideoClient
from longtake.models import Attention, Decision, DecisionAction
from longtake.temporal.connection import TemporalProblem, connect
from longtake.temporal.names import workflow_id
from tests.chaos.operators import Operators
from tests.chaos.plan import LONG_RUN_SECONDS, Event, Plan, Planned
from tests.chaos.site import API_KEYS, NEW_BUILD, OLD_BUILD, Site, Worker

_CENSUS_SECONDS = 2.0
_QUIET_POLLS = 2
_UPDATE_SECONDS = 15.0
_PATIENCE_SECONDS = 60.0
_FOR_PEOPLE = ", ".join(f'"{one}"' for one in (Attention.OVERDUE, Attention.NEEDS_API_KEY, Attention.NEEDS_DECISION))
_START_AGAIN = '"SubmissionRefused", "GenerationTimedOut"'
_T = TypeVar("_T")

Say = Callable[[str], None]


@dataclass
class Journal:
    """What was done to the site and by its people, for the report.

    Attributes:
        happened: Kills, restarts and outages, by kind.
        callers: What callers did, by kind; `wrong answers` should be 0.
        operator: The decisions sent, by action.
        submitted_again: How often a person asked for another submission, by its prompt. One that was sent and not
            answered counts: it may have been taken.
        reset: The generations that an operator has reset.
        keys_out: When which keys were refused.
        complaints: Wrong answers to callers, in words.
        all_ended: Whether the run was over before its time.
    """

    happened: Counter[str] = field(default_factory=Counter)
    callers: Counter[str] = field(default_factory=Counter)
    operator: Counter[str] = field(default_factory=Counter)
    keys_out: list[tuple[datetime, datetime]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    interfered: set[str] = field(default_factory=set)
    abandoned: set[str] = field(default_factory=set)
    retried: set[str] = field(default_factory=set)
    submitted_again: Counter[str] = field(default_factory=Counter)
    reset: set[str] = field(default_factory=set)
    seconds: float = 0.0
    all_ended: bool = False


class Run:
    """A plan being played."""

    def __init__(self, plan: Plan, site: Site, say: Say) -> None:
        self._plan = plan
        self._site = site
        self._say = say
        self._by_key = {one.key: one for one in plan.generations}
        self._began = 0.0
        self._store_lock = asyncio.Lock()
        self._keys_valid = asyncio.Event()
        self._keys_valid.set()
        self._started_again_after: set[str] = set()
        self._deploying = asyncio.Lock()
        self._resets: dict[str, asyncio.Task[None]] = {}
        self.journal = Journal()
        self.temporal: Client
        self.client: VideoClient
        self.operators: Operators

    async def play(self) -> None:
        """Play the plan, until every generation has ended or the time is up."""
        self.temporal = await connect(self._site.temporal_address)
        self.client = VideoClient(self.temporal)
        self.operators = Operators(self.temporal, self._plan.seed)
        keepers = [asyncio.create_task(worker.keep_running()) for worker in self._site.workers]
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._workers_ready()
            await self.operators.make_current(NEW_BUILD)
            self._began = time.monotonic()
            self._site.storm(long=self._plan.seconds >= LONG_RUN_SECONDS)
            tasks += [asyncio.create_task(self._calm())]
            tasks += [asyncio.create_task(self._happen(event)) for event in self._plan.events]
            tasks += [asyncio.create_task(self._caller(one)) for one in self._plan.generations]
            tasks += [
                asyncio.create_task(self._reset_at(one, at)) for one in self._plan.generations for at in one.resets
            ]
            async with asyncio.timeout(self._plan.seconds + _PATIENCE_SECONDS):
                await self._operate(tasks)
        finally:
            self.journal.seconds = self._now
            tasks += self._resets.values()
            for task in (*tasks, *keepers):
                task.cancel()
            for outcome in await asyncio.gather(*tasks, *keepers, return_exceptions=True):
                if isinstance(outcome, Exception):
                    self.journal.complaints.append(f"the harness itself: {outcome!r}"[:500])
            self._site.store.bring_back()

    @property
    def _now(self) -> float:
        return time.monotonic() - self._began

    async def _at(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds - self._now))

    async def _workers_ready(self) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not all(worker.ready for worker in self._site.workers):
            assert time.monotonic() < deadline, self._site.workers[0].process.log.read_text()[-2000:]
            await asyncio.sleep(0.1)

    # The weather

    async def _calm(self) -> None:
        await self._at(self._plan.calm_at)
        self._site.calm()
        self._say(f"{self._now:5.0f} s  calm")

    async def _happen(self, event: Event) -> None:
        await self._at(event.at)
        deeds: dict[str, Callable[[], Awaitable[None]]] = {
            "kill": lambda: self._kill(self._site.workers[event.worker]),
            "stop": lambda: self._site.workers[event.worker].stop_for(event.seconds),
            "drain": lambda: self._drain(self._site.workers[event.worker]),
            "server killed": lambda: self._restart_server(signal.SIGKILL, event.seconds),
            "server stopped": lambda: self._restart_server(signal.SIGTERM, event.seconds),
            "store": lambda: self._lose_store(event.seconds),
            "key": lambda: self._expire(event.seconds, API_KEYS[1]),
            "keys": lambda: self._expire(event.seconds, "sk-chaos-nobody-has-it"),
            "outage": lambda: self._site.admin.outage(event.seconds, "503"),
            "refuse": lambda: self._site.admin.outage(event.seconds, "refuse"),
            "roll back": lambda: self._roll_back(self._site.workers[event.worker], event.seconds),
            "pause activity": lambda: self._disturb(lambda keys: self.operators.pause_activity(keys, event.seconds)),
            "reset activity": lambda: self._disturb(self.operators.reset_activity),
        }
        self.journal.happened[event.what] += 1
        where = f" worker {event.worker}" if event.what in {"kill", "stop", "drain", "roll back"} else ""
        self._say(f"{self._now:5.0f} s  {event.what}{where}{f' for {event.seconds:.1f} s' if event.seconds else ''}")
        await deeds[event.what]()

    async def _kill(self, worker: Worker) -> None:
        worker.kill()

    async def _drain(self, worker: Worker) -> None:
        worker.drain()

    async def _restart_server(self, number: signal.Signals, down_seconds: float) -> None:
        self._site.server.signal(number)
        await self._site.server.ended()
        await asyncio.sleep(down_seconds)
        self._site.server.start()
        await self._site.server_ready()

    async def _lose_store(self, seconds: float) -> None:
        """Rename the store's folder away and back; no worker starts meanwhile: it would make a new, empty one."""
        async with self._store_lock:
            for worker in self._site.workers:
                worker.may_start.clear()
            try:
                for _ in range(200):
                    if all(worker.ready or not worker.process.running for worker in self._site.workers):
                        break
                    await asyncio.sleep(0.1)
                self._site.store.take_away()
                await asyncio.sleep(seconds)
            finally:
                self._site.store.bring_back()
                for worker in self._site.workers:
                    worker.may_start.set()

    async def _expire(self, seconds: float, *valid: str) -> None:
        began = datetime.now(UTC)
        self._keys_valid.clear()
        try:
            await self._site.admin.set_keys(*valid)
            await asyncio.sleep(seconds)
            await self._site.admin.set_keys(*API_KEYS)
        finally:
            self._keys_valid.set()
            self.journal.keys_out.append((began, datetime.now(UTC)))

    # Operators by Temporal's own means

    async def _roll_back(self, worker: Worker, seconds: float) -> None:
        """One worker becomes one of the older build, that is made current, and after a while all goes forward again."""
        async with self._deploying:
            await self._redeploy(worker, OLD_BUILD)
            await self.operators.make_current(OLD_BUILD)
            await asyncio.sleep(seconds)
            # The other worker has been of this build all the time.
            await self.operators.make_current(NEW_BUILD)
            await self._redeploy(worker, NEW_BUILD)

    async def _redeploy(self, worker: Worker, build: str) -> None:
        before = worker.process.pid
        worker.rename_build(build)
        worker.drain()
        while not worker.ready or worker.process.pid == before:  # noqa: ASYNC110 (a process tells nobody)
            await asyncio.sleep(0.1)

    async def _disturb(self, disturb: Callable[[list[str]], Awaitable[None]]) -> None:
        async def now() -> None:
            await disturb([one.key for one in await self._listed('ExecutionStatus = "Running"')])

        await self._patiently(now)

    async def _reset_at(self, one: Planned, at: float) -> None:
        await self._at(at)
        await self._reset(one)

    async def _reset(self, one: Planned) -> None:
        # Noted before: what is not answered may have been done all the same.
        self.journal.reset.add(one.key)
        with suppress(GenerationNotFound):
            await self._patiently(lambda: self.operators.reset(one.key))

    # Callers

    async def _caller(self, one: Planned) -> None:
        await self._at(one.starts_at)
        await self._patiently(lambda: self.client.start(one.key, one.request))
        self.journal.callers["started"] += 1
        others: list[Coroutine[Any, Any, None]] = [self._repeat(one, at) for at in one.repeats]
        if one.stranger_at is not None:
            others.append(self._strange(one, one.stranger_at))
        if one.interference:
            others.append(self._interfere(one))
        await asyncio.gather(*others)

    async def _repeat(self, one: Planned, at: float) -> None:
        await self._at(at)
        await self._patiently(lambda: self.client.start(one.key, one.request))
        self.journal.callers["started the same key again"] += 1

    async def _strange(self, one: Planned, at: float) -> None:
        """The same key for another request, which must be refused."""
        await self._at(at)
        now = (await self._patiently(lambda: self.client.snapshot(one.key))).execution
        if now.state != "RUNNING" and now.outcome != "full":
            return
        other = one.request.model_copy(update={"prompt": one.prompt.replace("named", "called")})
        try:
            await self._patiently(lambda: self.client.start(one.key, other))
        except KeyInUse:
            self.journal.callers["refused another request with a key in use"] += 1
        else:
            self.journal.complaints.append(f"{one.key}: another request with its key was taken")

    async def _interfere(self, one: Planned) -> None:
        await self._at(one.interferes_at)
        self.journal.interfered.add(one.key)
        handle = self.temporal.get_workflow_handle(workflow_id(one.key))
        terminates = one.interference.startswith("terminate")
        with suppress(GenerationNotFound):
            if terminates:
                with suppress(RPCError):  # it has ended already
                    await self._patiently(lambda: handle.terminate("chaos"), but=RPCError)
            else:
                await self._patiently(lambda: self.client.cancel(one.key))
            self.journal.callers["terminated" if terminates else "cancelled"] += 1
        if one.interference.endswith("again"):
            while (  # noqa: ASYNC110 (the server tells nobody)
                await self._patiently(lambda: self.client.snapshot(one.key))
            ).running:
                await asyncio.sleep(0.5)
            await self._patiently(lambda: self.client.start(one.key, one.request))
            self.journal.callers["started again after that"] += 1

    async def _patiently(self, call: Callable[[], Awaitable[_T]], *, but: type[Exception] | None = None) -> _T:
        """As a backend would: the server may be away for a while, and a key may be used again and again."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return await call()
            except (RPCError, TemporalProblem) as error:
                gone = but is not None and isinstance(error, but) and "already completed" in str(error)
                if gone or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.3)

    # The operator

    async def _operate(self, tasks: list[asyncio.Task[None]]) -> None:
        """Look at the list now and then, as an operator does, and decide what waits for a person."""
        quiet = 0
        while self._now < self._plan.seconds:
            with suppress(RPCError):
                waiting = await self._listed(f'ExecutionStatus = "Running" AND VideoAttention IN ({_FOR_PEOPLE})')
                ended = await self._listed(f'ExecutionStatus = "Failed" AND VideoOutcome IN ({_START_AGAIN})')
                await asyncio.gather(*map(self._attend, waiting), *map(self._start_again, ended))
                running = await self.temporal.count_workflows(
                    'WorkflowType = "GenerateVideo" AND ExecutionStatus = "Running"'
                )
                # The list is some moments behind.
                quiet = (
                    quiet + 1
                    if all(task.done() for task in (*tasks, *self._resets.values())) and not running.count
                    else 0
                )
                if quiet == _QUIET_POLLS:
                    self.journal.all_ended = True
                    return
            await asyncio.sleep(_CENSUS_SECONDS)

    async def _listed(self, query: str) -> list[Execution]:
        return [one async for one in self.client.generations(query, limit=1000)]

    async def _attend(self, execution: Execution) -> None:
        # An update waits for a worker; nobody waits for it here, because others wait too.
        no_worker = (RPCError, NoWorker, TimeoutError)
        with suppress(*no_worker, DecisionRejected, GenerationNotFound):
            async with asyncio.timeout(_UPDATE_SECONDS):
                await self._attend_now(execution)

    async def _attend_now(self, execution: Execution) -> None:
        if execution.attention in {Attention.OVERDUE, Attention.NEEDS_API_KEY}:
            if self._keys_valid.is_set():
                await self.client.poll_now(execution.key)
                self.journal.operator[f"resume: {execution.attention}"] += 1
        elif execution.attention == Attention.NEEDS_DECISION:
            await self._decide(self._by_key[execution.key])

    async def _decide(self, one: Planned) -> None:
        """What a careful person does: look in the gateway's console whether the task was made, then say so."""
        status = (await self.client.snapshot(one.key)).status
        if status is None or not status.decisions:
            return
        prompt = one.prompt_extend if status.task_id else one.prompt
        decision = await self._careful(one, prompt, status.decisions)
        # Noted before it is sent: an update that is not answered in time may have been taken all the same.
        if decision.action is DecisionAction.ABANDON:
            self.journal.abandoned.add(one.key)
        if decision.action is DecisionAction.RETRY:
            self.journal.retried.add(one.key)
        if decision.action is DecisionAction.RESUBMIT:
            self.journal.submitted_again[prompt] += 1
        if one.reset_after_decision is not None and one.key not in self._resets:
            after = self._now + one.reset_after_decision
            self._resets[one.key] = asyncio.create_task(self._reset_at(one, after))
        try:
            await self.client.decide(one.key, decision)
        except DecisionRejected:
            if decision.action is DecisionAction.RESUBMIT:
                self.journal.submitted_again[prompt] -= 1
            raise
        self.journal.operator[f"decide: {decision.action}"] += 1

    async def _careful(self, one: Planned, prompt: str, offered: tuple[str, ...]) -> Decision:
        if DecisionAction.ADOPT not in offered:
            retries = one.wants_retry and DecisionAction.RETRY in offered
            return Decision(action=DecisionAction.RETRY if retries else DecisionAction.ACCEPT)
        if one.abandons:
            return Decision(action=DecisionAction.ABANDON)
        orphans = [task["task_id"] for task in await self._site.admin.tasks() if task["prompt"] == prompt]
        if orphans:
            return Decision(action=DecisionAction.ADOPT, task_id=orphans[0])
        return Decision(action=DecisionAction.RESUBMIT)

    async def _start_again(self, execution: Execution) -> None:
        """What was refused because of the key, or given up for its age, is started again with the same key.

        That is what the failure's advice says; nothing is paid twice by it.
        """
        one = self._by_key[execution.key]
        if execution.outcome in one.case.ends or execution.run_id in self._started_again_after:
            return
        if not self._keys_valid.is_set() or one.interference == "cancel":
            return
        try:
            _, new = await self.client.start(one.key, one.request)
        except KeyInUse:
            return  # by a stranger's request, which the ledger is about to refuse
        self._started_again_after.add(execution.run_id)
        self.journal.callers[f"started again after {execution.outcome}"] += new
