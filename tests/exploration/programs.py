"""Real coroutines, run one reply at a time: each is run once for every sequence of replies that it can get.

Between two replies a coroutine is deterministic (clock and `uuid4` are the search's), so what it does next hangs on
the replies alone. The search combines these trees over all interleavings without running the code again.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from types import ModuleType
from typing import Any, cast
from unittest import mock

from longtake.storage import Store, StoreProblem
from longtake.submission import ledger as ledger_module
from longtake.submission import reconciliation as reconciliation_module
from longtake.submission import records as records_module
from longtake.submission.records import OpenEntry

BEGAN = datetime(2030, 1, 1, tzinfo=UTC)
_PATCHED_MODULES: tuple[ModuleType, ...] = (ledger_module, records_module, reconciliation_module)


@dataclass(frozen=True)
class Ask:
    """What an actor waits for; everything between two of these happens at once."""

    verb: str
    """Of the store: get, create, put, delete, entries. Of the gateway: post, answer, tasks, charges. Of
    Temporal: heartbeat, time, until."""
    path: str = ""
    content: bytes = b""

    def __str__(self) -> str:
        return f"{self.verb} {self.path}".rstrip()


class StoreFails(Exception):
    """The reply "no answer from the store"."""


Reply = Any
"""Hashable. The class above stands for the error."""


class _Gone(BaseException):
    """Unwinds a coroutine that is not needed any more."""


class _Clock:
    """What the running step may read; whether it did decides which steps are the same."""

    def __init__(self) -> None:
        self.now = 0
        self.was_read = False
        self.prefix = ""
        self.made = 0
        self.told: tuple[Any, ...] = ()
        self.discarding = False

    def read(self) -> float:
        self.was_read = True
        return self.now


clock = _Clock()


class _Datetime(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "_Datetime":  # noqa: ARG003 - always UTC here
        return cast("_Datetime", BEGAN + timedelta(seconds=clock.read()))


class _Uuid:
    @staticmethod
    def uuid4() -> Any:
        clock.made += 1
        return mock.Mock(hex=f"{clock.prefix}-{clock.made}")


class _Time:
    @staticmethod
    def clock_gettime(_which: int) -> float:
        return clock.read()


class _Unlimited:
    """A semaphore that is free, and a time that is never over: to take too long is to get no answer."""

    def __init__(self, _limit: float) -> None:
        pass

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


class _Asyncio:
    """What the ledger uses of asyncio, without an event loop. Another name is an AttributeError: add it here."""

    CancelledError = asyncio.CancelledError
    Semaphore = _Unlimited
    timeout = _Unlimited

    @staticmethod
    async def sleep(_seconds: float) -> None:
        """A pause is only a chance for others, which every step is."""

    @staticmethod
    async def gather(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
        """One after the other: only reads are gathered, and others may run between any two of them."""
        waiting = list(coroutines)
        replies = []
        try:
            while waiting:
                replies.append(await waiting.pop(0))
        finally:
            for coroutine in waiting:
                coroutine.close()
        return replies


@contextlib.contextmanager
def frozen_world() -> Iterator[None]:
    """The ledger's modules get the search's clock, names and pauses."""
    substitutes = {"datetime": _Datetime, "uuid": _Uuid, "time": _Time, "asyncio": _Asyncio}
    with contextlib.ExitStack() as stack:
        for module in _PATCHED_MODULES:
            for name, substitute in substitutes.items():
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, substitute))
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, logging.NOTSET)
        yield


class _Point:
    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def __await__(self) -> Generator[Ask, Reply, Reply]:
        if clock.discarding:
            raise _Gone
        reply = yield self._ask
        if reply is StoreFails:
            raise StoreProblem("no answer", retryable=True)
        return reply


def ask(verb: str, path: str = "", content: bytes = b"") -> _Point:
    """Let the others run, then get the reply."""
    return _Point(Ask(verb, path, content))


class ScheduledStore(Store):
    """Every operation is an `Ask`; the search holds the content."""

    def __init__(self) -> None:
        """Nothing is opened."""
        self.url = "memory://"

    async def get(self, path: str, **_limits: Any) -> bytes | None:
        return cast("bytes | None", await ask("get", path))

    async def create(self, path: str, content: bytes) -> bool:
        return cast("bool", await ask("create", path, content))

    async def put(self, path: str, content: bytes) -> None:
        await ask("put", path, content)

    async def delete(self, path: str) -> None:
        await ask("delete", path)

    async def entries(self, prefix: str) -> AsyncIterator[tuple[str, datetime]]:
        for path, written in await ask("entries", prefix):
            yield path, written


def entries_in(content: Mapping[str, bytes], prefix: str) -> tuple[tuple[str, datetime], ...]:
    """What a listing replies. No clock of these actors is wrong, so the store's time is what the record says."""
    return tuple(
        (path, OpenEntry.model_validate_json(record).sent_at)
        for path, record in sorted(content.items())
        if path.startswith(f"{prefix}/")
    )


Body = Callable[[], Coroutine[Ask, Reply, Any]]


class Node:
    """Where an actor stands after a sequence of replies."""

    __slots__ = ("_coroutine", "_made", "children", "end", "number", "parent", "told", "waits_for")

    def __init__(self, number: int, parent: "tuple[Node, Reply, int] | None") -> None:
        self.number = number
        self.parent = parent
        self.waits_for: Ask | None = None
        self.end: Any = None
        """What it returned or raised, where it has ended."""
        self.told: tuple[Any, ...] = ()
        """What it has said so far, heartbeats included."""
        self.children: dict[tuple[Reply, int | None], Node] = {}
        self._coroutine: Coroutine[Ask, Reply, Any] | None = None
        self._made = 0


class Program:
    """One actor: a coroutine, and the tree of all that it can do."""

    def __init__(self, name: str, body: Body, *, clock_ahead: int = 0, began: int = 0) -> None:
        """Run to the first `Ask`.

        Args:
            name: Of the actor.
            body: Makes the coroutine; each call must make the same.
            clock_ahead: Seconds by which this machine's clock differs.
            began: When it begins, by everybody else's clock.
        """
        self.name = name
        self.runs = 0
        self._body = body
        self._ahead = clock_ahead
        self._began = began
        self._over: dict[tuple[bool, Any, tuple[Any, ...]], Node] = {}
        self.nodes: list[Node] = []
        self.root = self._begin()

    def after(self, node: Node, reply: Reply, now: int) -> Node:
        """Where it stands after one more reply, given at this moment."""
        found = node.children.get((reply, now)) or node.children.get((reply, None))
        if found is None:
            found = self._extend(node, reply, now)
            node.children[reply, now if clock.was_read else None] = found
        return found

    def heeds_the_clock(self, node: Node, reply: Reply) -> bool:
        """Whether the step that this reply leads to reads the clock; known once it was taken."""
        return (reply, None) not in node.children

    def at_the_end(self, node: Node, *, dead: bool) -> Node:
        """The node that stands for all in which it is over in the same way: how it came there matters no more."""
        return self._over.setdefault((dead, None if dead else node.end, node.told), node)

    def close(self) -> None:
        """End all coroutines that still wait."""
        for node in self.nodes:
            if node._coroutine is not None:
                _discard(node._coroutine)

    def _begin(self) -> Node:
        return self._step(self._node(None), self._body(), None, now=self._began, made=0, told=())

    def _node(self, parent: tuple[Node, Reply, int] | None) -> Node:
        node = Node(len(self.nodes), parent)
        self.nodes.append(node)
        return node

    def _extend(self, node: Node, reply: Reply, now: int) -> Node:
        coroutine = node._coroutine or self._again(node)
        node._coroutine = None
        made = node._made
        return self._step(self._node((node, reply, now)), coroutine, reply, now=now, made=made, told=node.told)

    def _again(self, node: Node) -> Coroutine[Ask, Reply, Any]:
        """Run a new coroutine to where this node stands."""
        replies = []
        at: Node = node
        while at.parent is not None:
            at, reply, now = at.parent
            replies.append((reply, now))
        coroutine = self._body()
        self._poll_now(coroutine, None, now=self._began, made=0, told=())
        for reply, now in reversed(replies):
            self._poll_now(coroutine, reply, now=now, made=clock.made, told=clock.told)
        return coroutine

    def _step(
        self,
        node: Node,
        coroutine: Coroutine[Ask, Reply, Any],
        reply: Reply,
        *,
        now: int,
        made: int,
        told: tuple[Any, ...],
    ) -> Node:
        try:
            node.waits_for = self._poll_now(coroutine, reply, now=now, made=made, told=told)
            node._coroutine = coroutine
        except StopIteration as ended:
            node.end = ended.value
        node._made, node.told = clock.made, clock.told
        return node

    def _poll_now(
        self, coroutine: Coroutine[Ask, Reply, Any], reply: Reply, *, now: int, made: int, told: tuple[Any, ...]
    ) -> Ask:
        self.runs += 1
        clock.now, clock.was_read = now + self._ahead, False
        clock.prefix, clock.made, clock.told = self.name, made, told
        return coroutine.send(reply)


def tell(fact: object) -> None:
    """Note what the running actor has made known outside the store: a heartbeat, an answer it was given."""
    clock.told = (*clock.told, fact)


def _discard(coroutine: Coroutine[Ask, Reply, Any]) -> None:
    clock.discarding = True
    try:
        # It may hold `finally` blocks that wait, or raise errors of their own: nobody is there to hear them.
        with contextlib.suppress(BaseException):
            coroutine.close()
    finally:
        clock.discarding = False
