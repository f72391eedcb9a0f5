"""All interleavings of some actors on one store: every order of their steps, crash, unanswered write and lost answer.

A state is what the store holds, which writes are still under way, what has left for the gateway, the time, and where
every actor stands. Two interleavings that lead to the same state have the same future, so each state is looked at once;
how many interleavings run through it is counted on the way back.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple, Protocol

from tests.exploration.programs import Ask, Node, Program, Reply, StoreFails, entries_in

Content = dict[str, bytes]


class Post(NamedTuple):
    """A request that has left for the gateway."""

    actor: int
    number: int
    """Which of the actor's posts it is."""
    folder: str
    """Of the key in the ledger; empty where the ledger has no record of it."""
    slot: int
    made: bool
    """Whether the gateway made (and charged) a task of it."""
    at: int | None
    """When its task is dated; None where the gateway's own upstream has not accepted it yet."""
    returned: bool = False
    """Whether the task's id has reached its sender."""
    sent: int = 0
    """When it left, where that limits when it is dated."""
    listed: bool = True
    """Whether the account's list shows its task, once that is dated."""
    logged: bool = True
    """Whether the account's log shows its charge, once its task is dated."""

    def task_id(self, names: tuple[str, ...]) -> str:
        """The gateway's name of what it made."""
        return f"task-{names[self.actor]}-{self.number}"


class State(NamedTuple):
    """Everything that the future hangs on."""

    store: int
    under_way: tuple[Ask, ...]
    """Writes whose sender was told "no answer": each may still arrive, at any time, or never."""
    now: int
    posts: tuple[Post, ...]
    claims: tuple[tuple[int, object], ...]
    """What was stated as true for good, and by whom."""
    crashes: int
    faults: int
    jumps: int
    actors: tuple[int, ...]
    """Where each stands; a dead one's is complemented."""


class Move(NamedTuple):
    """One step."""

    text: str
    state: State


@dataclass(frozen=True)
class Limits:
    """How much may go wrong in one interleaving."""

    crashes: int = 1
    faults: int = 1
    jumps: int = 1
    """How often the clock jumps, which is also how often everybody who is at work is frozen."""
    jump_seconds: tuple[int, ...] = (3600,)
    answers: tuple[str, ...] = ("accepted", "lost", "busy", "lost unmade")
    """What the gateway may do: `lost` made a task whose answer never came, `broken` one that it answers with a 500."""
    dated_late: bool = False
    """Whether a task may appear in the account's list, and be dated, long after its request has left."""
    dated_within: int | None = None
    """Seconds after its request has left within which a task is dated, if ever; None: at any time."""
    reported_within: int | None = None
    """Seconds after a task is dated within which list and log show it, each by itself; None: at once."""
    frozen_at_the_last_instant: bool = False
    """Whether a process may be frozen between its last check and its first byte, for as long as the clock jumps."""
    unread: tuple[str, ...] = ()
    """Beginnings of paths that nobody here reads: what is written there matters to nobody, nor when."""


class Judge(Protocol):
    """Says what is wrong, None where nothing is."""

    def on_post(self, world: "World", state: State, post: Post) -> str | None:
        """A request leaves."""

    def on_write(self, world: "World", state: State, write: Ask) -> str | None:
        """A write changes what the store holds until now."""

    def on_end(self, world: "World", state: State, actor: int, node: Node) -> tuple[str | None, object]:
        """An actor has ended: what is wrong, and what it claims for good (None: nothing)."""

    def is_true_whenever(self, node: Node) -> bool:
        """Whether how an actor ended is right or wrong, whatever others do meanwhile."""

    def at_rest(self, world: "World", state: State) -> str | None:
        """Nobody is left who could do anything."""


class Violation(Exception):
    """A promise was broken.

    Attributes:
        what: Which.
        trace: The steps that lead there.
    """

    def __init__(self, what: str, trace: list[str]) -> None:
        steps = "\n".join(f"  {number:2}. {step}" for number, step in enumerate(trace, 1))
        super().__init__(f"{what}\n{steps}")
        self.what = what
        self.trace = trace


@dataclass
class Tally:
    """What a search has seen."""

    interleavings: int = 0
    states: int = 0
    steps: int = 0
    ends: int = 0
    runs: int = 0
    """How often real code was resumed."""
    seconds: float = 0.0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(one + another for one, another in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        return (
            f"{self.interleavings:,} interleavings through {self.states:,} states and {self.steps:,} steps "
            f"({self.ends:,} ends; real code resumed {self.runs:,} times) in {self.seconds:.1f} s"
        )


class World:
    """The store's contents by number, and what happens to them."""

    def __init__(
        self,
        programs: tuple[Program, ...],
        limits: Limits,
        *,
        content: Content | None = None,
        overwrites: bool = False,
    ) -> None:
        """Begin.

        Args:
            programs: The actors.
            limits: How much may go wrong.
            content: Of the store.
            overwrites: A broken store: create-if-absent is not honoured.
        """
        self.programs = programs
        self.names = tuple(program.name for program in programs)
        self.limits = limits
        self._overwrites = overwrites
        self._contents: list[Content] = [content or {}]
        self._numbers: dict[frozenset[tuple[str, bytes]], int] = {frozenset(self._contents[0].items()): 0}
        self._written: dict[tuple[int, Ask], tuple[int, bool]] = {}

    def content(self, store: int) -> Content:
        """What the store holds."""
        return self._contents[store]

    def write(self, store: int, write: Ask) -> tuple[int, bool]:
        """Carry out a write: the new content's number, and whether it changed anything."""
        known = self._written.get((store, write))
        if known is not None:
            return known
        before = self._contents[store]
        if write.path.startswith(self.limits.unread or "\0"):
            result = store, True
        elif write.verb == "create" and write.path in before and not self._overwrites:
            result = store, False
        elif write.verb == "delete":
            after = {path: content for path, content in before.items() if path != write.path}
            result = self._number(after), True
        else:
            result = self._number({**before, write.path: write.content}), True
        self._written[store, write] = result
        return result

    def still_under_way(self, store: int, writes: tuple[Ask, ...]) -> tuple[Ask, ...]:
        """Which writes may still change something when they arrive."""
        if not writes or self._overwrites:
            return writes
        there, unread = self._contents[store], self.limits.unread
        return tuple(
            write
            for write in writes
            if not (write.verb == "create" and write.path in there) and not write.path.startswith(unread or "\0")
        )

    def is_written_for_good(self, state: State, path: str) -> bool:
        """Whether this is there, and will never change."""
        return not self._overwrites and path.startswith("submit/") and path in self._contents[state.store]

    def _number(self, content: Content) -> int:
        key = frozenset(content.items())
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._contents)
            self._contents.append(content)
        return number

    def beginning(self) -> State:
        """Nobody has done anything yet."""
        return State(
            store=0,
            under_way=(),
            now=0,
            posts=(),
            claims=(),
            crashes=self.limits.crashes,
            faults=self.limits.faults,
            jumps=self.limits.jumps,
            actors=tuple(program.root.number for program in self.programs),
        )

    def node(self, state: State, actor: int) -> Node:
        """Where an actor stands, dead or alive."""
        number = state.actors[actor]
        return self.programs[actor].nodes[number if number >= 0 else ~number]

    def at_work(self, state: State) -> list[int]:
        """Who is alive and waits for something."""
        return [
            actor
            for actor, number in enumerate(state.actors)
            if number >= 0 and self.programs[actor].nodes[number].waits_for is not None
        ]


class Search:
    """Depth first through all states."""

    def __init__(self, world: World, judge: Judge) -> None:
        self._world = world
        self._judge = judge
        self._trace: list[str] = []
        self.tally = Tally()

    def run(self) -> Tally:
        """Look at everything.

        Raises:
            Violation: A promise was broken; the first one found.
        """
        began = time.monotonic()
        try:
            self.tally.interleavings = self._count(self._world.beginning())
        finally:
            self.tally.seconds = time.monotonic() - began
            self.tally.runs = sum(program.runs for program in self._world.programs)
        return self.tally

    def _count(self, beginning: State) -> int:
        """How many interleavings lead from a state to an end; no recursion, since one may have a hundred steps."""
        counts: dict[State, int] = {}
        stack: list[tuple[State, Iterator[Move], list[int]]] = [(beginning, self._moves(beginning), [0, 0])]
        while True:
            state, moves, sum_and_moves = stack[-1]
            move = next(moves, None)
            if move is not None:
                self.tally.steps += 1
                sum_and_moves[1] += 1
                known = counts.get(move.state)
                if known is None:
                    self._trace.append(move.text)
                    stack.append((move.state, self._moves(move.state), [0, 0]))
                else:
                    sum_and_moves[0] += known
                continue
            stack.pop()
            count = sum_and_moves[0] if sum_and_moves[1] else 1
            counts[state] = count
            self.tally.states += 1
            if not stack:
                return count
            stack[-1][2][0] += count
            self._trace.pop()

    def _moves(self, state: State) -> Iterator[Move]:
        world = self._world
        at_work = world.at_work(state)
        if not at_work:
            self.tally.ends += 1
            self._hold(self._judge.at_rest(world, state), "at rest")
        for actor in at_work:
            if self._is_independent(state, actor):
                yield from self._steps(state, actor)
                return
        yield from self._of_nobody(state, at_work)
        for actor in at_work:
            yield from self._steps(state, actor)
            if state.crashes:
                node = world.programs[actor].at_the_end(world.node(state, actor), dead=True)
                crashed = state._replace(crashes=state.crashes - 1, actors=_put(state.actors, actor, ~node.number))
                yield Move(f"{world.names[actor]} crashes before: {world.node(state, actor).waits_for}", crashed)

    def _of_nobody(self, state: State, at_work: list[int]) -> Iterator[Move]:
        """What happens without anybody: writes arrive, tasks are dated, time passes."""
        world = self._world
        for write in dict.fromkeys(state.under_way):
            rest = list(state.under_way)
            rest.remove(write)
            store, _ = world.write(state.store, write)
            arrived = state._replace(store=store, under_way=world.still_under_way(store, tuple(rest)))
            yield Move(f"late arrival: {write}", arrived)
        for index, post in enumerate(state.posts if at_work else ()):
            if post.made and post.at is None:
                yield self._becomes(state, index, "is accepted upstream", at=state.now)
            if post.at is not None and not post.listed:
                yield self._becomes(state, index, "shows in the list", listed=True)
            if post.at is not None and not post.logged:
                yield self._becomes(state, index, "shows in the log", logged=True)
        if state.jumps and (world.limits.frozen_at_the_last_instant or not self._is_sending(state, at_work)):
            for seconds in world.limits.jump_seconds if at_work else ():
                if not self._may_pass(state, seconds):
                    continue
                jumped = state._replace(now=state.now + seconds, jumps=state.jumps - 1)
                yield Move(f"{seconds} s pass", jumped)

    def _becomes(self, state: State, index: int, what: str, **fields: Any) -> Move:
        """Something happens to what was sent."""
        post = state.posts[index]
        posts = (*state.posts[:index], post._replace(**fields), *state.posts[index + 1 :])
        return Move(f"{post.task_id(self._world.names)} {what}", state._replace(posts=posts))

    def _may_pass(self, state: State, seconds: int) -> bool:
        """Whether nothing has to happen before so much time has passed."""
        return all(state.now + seconds <= self._latest(post) for post in state.posts)

    def _latest(self, post: Post) -> float:
        """When the next thing must have happened to what was sent."""
        limits = self._world.limits
        if post.made and post.at is None and limits.dated_within is not None:
            return post.sent + limits.dated_within
        if post.at is not None and not (post.listed and post.logged) and limits.reported_within is not None:
            return post.at + limits.reported_within
        return math.inf

    def _is_sending(self, state: State, at_work: list[int]) -> bool:
        """Whether somebody has made all checks, and only the first byte is still to leave."""
        waits = (self._world.node(state, actor).waits_for for actor in at_work)
        return any(wants is not None and wants.verb == "post" for wants in waits)

    def _is_independent(self, state: State, actor: int) -> bool:
        """Whether an actor's next step is the same now and later, and nobody else can tell: then it goes first.

        Reading or creating a record that is there already is such a step, since records are never changed; so is
        writing where nobody reads. To crash before it and after it is the same too. What is said at the end may not
        be: others may make it untrue.
        """
        node = self._world.node(state, actor)
        wants = node.waits_for
        if wants is None:
            return False
        if wants.verb in {"create", "delete"} and wants.path.startswith(self._world.limits.unread or "\0"):
            reply: Reply = True if wants.verb == "create" else None
        elif wants.verb in {"get", "create"} and self._world.is_written_for_good(state, wants.path):
            reply = self._world.content(state.store)[wants.path] if wants.verb == "get" else False
        else:
            return False
        program = self._world.programs[actor]
        after = program.after(node, reply, state.now)
        if after.told != node.told or (after.waits_for is None and not self._judge.is_true_whenever(after)):
            return False
        return not state.jumps or not program.heeds_the_clock(node, reply)

    def _steps(self, state: State, actor: int) -> Iterator[Move]:
        wants = self._world.node(state, actor).waits_for
        assert wants is not None
        yield from _VERBS[wants.verb](self, state, actor, wants)

    def _polled_now(self, state: State, actor: int, reply: Reply, said: str) -> Move:
        """The actor gets its reply, and goes on to what it waits for next or to its end."""
        world = self._world
        program = world.programs[actor]
        node = program.after(world.node(state, actor), reply, state.now)
        text = f"{program.name}: {world.node(state, actor).waits_for} -> {said}"
        if node.waits_for is None:
            node = program.at_the_end(node, dead=False)
        state = state._replace(actors=_put(state.actors, actor, node.number))
        if node.waits_for is None:
            text = f"{text}; ends with {node.end}"
            wrong, claim = self._judge.on_end(world, state, actor, node)
            self._hold(wrong, text)
            if claim is not None:
                state = state._replace(claims=(*state.claims, (actor, claim)))
        return Move(text, state)

    def _hold(self, wrong: str | None, text: str) -> None:
        if wrong is not None:
            raise Violation(wrong, [*self._trace, text])

    def _reads(self, state: State, actor: int, wants: Ask) -> Iterator[Move]:
        content = self._world.content(state.store).get(wants.path)
        yield self._polled_now(state, actor, content, "nothing" if content is None else "a record")
        yield from self._fails(state, actor)

    def _lists(self, state: State, actor: int, wants: Ask) -> Iterator[Move]:
        entries = entries_in(self._world.content(state.store), wants.path)
        yield self._polled_now(state, actor, entries, f"{len(entries)} names")
        yield from self._fails(state, actor)

    def _writes(self, state: State, actor: int, wants: Ask) -> Iterator[Move]:
        store, done = self._world.write(state.store, wants)
        reply = done if wants.verb == "create" else None
        if done:
            self._hold(self._judge.on_write(self._world, state, wants), f"{self._world.names[actor]}: {wants}")
        under_way = self._world.still_under_way(store, state.under_way)
        written = state._replace(store=store, under_way=under_way)
        yield self._polled_now(written, actor, reply, "done" if done else "there is one already")
        if state.faults:
            under_way = self._world.still_under_way(state.store, (*state.under_way, wants))
            yield from self._fails(state._replace(under_way=tuple(sorted(under_way, key=str))), actor)

    def _fails(self, state: State, actor: int) -> Iterator[Move]:
        if state.faults:
            yield self._polled_now(state._replace(faults=state.faults - 1), actor, StoreFails, "no answer")

    def _posts(self, state: State, actor: int, wants: Ask) -> Iterator[Move]:
        world = self._world
        number = sum(post.actor == actor for post in state.posts)
        folder, slot = _place(world.content(state.store), world.names[actor])
        for made in (True, False):
            if not any(made == (answer in _MADE) for answer in world.limits.answers):
                continue
            limits = world.limits
            post = Post(actor, number, folder, slot, made, None if limits.dated_late else state.now)
            if limits.dated_within is not None:
                post = post._replace(sent=state.now)
            if made and limits.reported_within is not None:
                post = post._replace(listed=False, logged=False)
            text = f"{world.names[actor]}: post in slot {slot} -> {'made, paid' if made else 'not made'}"
            self._hold(self._judge.on_post(world, state, post), text)
            posted = state._replace(posts=(*state.posts, post))
            yield self._polled_now(posted, actor, None, "made, paid" if made else "not made")

    def _answers(self, state: State, actor: int, wants: Ask) -> Iterator[Move]:
        world = self._world
        index, post = max((index, post) for index, post in enumerate(state.posts) if post.actor == actor)
        allowed = world.limits.answers
        if post.made and "accepted" in allowed:
            posts = (*state.posts[:index], post._replace(returned=True), *state.posts[index + 1 :])
            yield self._polled_now(state._replace(posts=posts), actor, post.task_id(world.names), "accepted")
        if not post.made and "busy" in allowed:
            yield self._polled_now(state, actor, "busy", "busy")
        if ("lost" if post.made else "lost unmade") in allowed:
            yield self._polled_now(state, actor, "lost", "lost")
        # An answer of the gateway itself comes when it has done all that it ever will.
        if ("broken" if post.made else "broken unmade") in allowed and not (post.made and post.at is None):
            yield self._polled_now(state, actor, "broken", "HTTP 500")

    def _shows_tasks(self, state: State, actor: int, wants: Ask) -> Iterator[Move]:
        made = self._rows(state, lambda post: post.listed)
        yield self._polled_now(state, actor, made, f"{len(made)} tasks")

    def _shows_charges(self, state: State, actor: int, wants: Ask) -> Iterator[Move]:
        charged = self._rows(state, lambda post: post.logged)
        yield self._polled_now(state, actor, charged, f"{len(charged)} charges")

    def _rows(self, state: State, shows: Callable[[Post], bool]) -> tuple[tuple[str, int], ...]:
        """What the account's records show: tasks and when they are dated."""
        names = self._world.names
        dated = [(post, post.at) for post in state.posts if post.made and post.at is not None and shows(post)]
        return tuple(sorted((post.task_id(names), at) for post, at in dated))

    def _tells_time(self, state: State, actor: int, wants: Ask) -> Iterator[Move]:
        yield self._polled_now(state, actor, state.now, f"{state.now} s")

    def _waits(self, state: State, actor: int, wants: Ask) -> Iterator[Move]:
        """Until that moment; where the clock jumps no more, it never comes."""
        if state.now >= int(wants.path):
            yield self._polled_now(state, actor, True, "it is time")
        elif not state.jumps:
            yield self._polled_now(state, actor, False, "it never comes")

    def _reads_heartbeat(self, state: State, actor: int, wants: Ask) -> Iterator[Move]:
        """Of an earlier attempt: what it told last, or nothing, where that did not arrive."""
        told = self._world.node(state, self._world.names.index(wants.path)).told
        yield self._polled_now(state, actor, None, "nothing")
        if told:
            yield self._polled_now(state, actor, told[-1], "its evidence")


_MADE = frozenset({"accepted", "lost", "broken"})
_VERBS: dict[str, Callable[[Search, State, int, Ask], Iterator[Move]]] = {
    "get": Search._reads,
    "entries": Search._lists,
    "create": Search._writes,
    "put": Search._writes,
    "delete": Search._writes,
    "post": Search._posts,
    "answer": Search._answers,
    "tasks": Search._shows_tasks,
    "charges": Search._shows_charges,
    "time": Search._tells_time,
    "until": Search._waits,
    "heartbeat": Search._reads_heartbeat,
}


def _put(actors: tuple[int, ...], actor: int, number: int) -> tuple[int, ...]:
    return (*actors[:actor], number, *actors[actor + 1 :])


def _place(content: Content, name: str) -> tuple[str, int]:
    """In which key's folder and slot an actor's newest intent lies; ("", 0) where it has none."""
    mine = f'"nonce":"{name}-'.encode()
    places = [
        (folder, int(slot))
        for path, record in content.items()
        if path.endswith("/intent") and mine in record
        for folder, slot in [path.removesuffix("/intent").rsplit("/", 1)]
    ]
    return max(places, key=lambda place: place[1], default=("", 0))
