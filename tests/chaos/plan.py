"""What a seed decides: which generations are started, what their callers do, and what the weather is."""

import random
from dataclasses import dataclass, replace
from typing import Literal

from longtake.models import GenerateVideoInput, ImageInput
from tests.chaos.cases import CASES, PLAIN, Case, Pace

MARK = "quokka"
"""Stands in every prompt, so that a prompt in a log can be recognised."""
LONG_RUN_SECONDS = 100
"""Shorter runs leave out what takes minutes."""

_MODELS = ("veo_3_1-fast-remix",) * 4 + ("veo_3_1-remix",) * 3
# Few of each, so that a submission in doubt is sometimes the only one of its model, and the records show whose it is.
_RARE_MODELS = ("veo_3_1-fl-remix", "veo_3_1-fast-fl-remix", "veo_3_1-hd-remix", "veo_3_1-fast-hd-remix")
_HIGH_MODELS = ("veo_3_1-fast-hd-remix", "veo_3_1-hd-remix")
_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5E"
    "rkJggg=="
)

_RESET_AFTER_DECISION = 0.6
"""Of the generations whose submission a person decides on."""

Interference = Literal["", "cancel", "cancel and start again", "terminate and start again"]
What = Literal[
    "kill",
    "stop",
    "drain",
    "server killed",
    "server stopped",
    "store",
    "keys",
    "key",
    "outage",
    "refuse",
    "roll back",
    "pause activity",
    "reset activity",
]


@dataclass(frozen=True)
class Planned:
    """One generation and its caller."""

    key: str
    case: Case
    model: str
    starts_at: float
    """Seconds from the beginning; so are all other times here."""
    repeats: tuple[float, ...] = ()
    """When the same key is started once more with the same request."""
    stranger_at: float | None = None
    """When the same key is started with another request, which must be refused."""
    interference: Interference = ""
    interferes_at: float = 0.0
    keep_first: bool = False
    abandons: bool = False
    """What the operator decides if the submission is in doubt."""
    wants_retry: bool = False
    """What the operator decides after `ask`."""
    resets: tuple[float, ...] = ()
    """When an operator resets its newest run, ended or not, to one of its workflow tasks."""
    reset_after_decision: float | None = None
    """How long after the first decision on its submission that happens as well."""

    @property
    def prompt(self) -> str:
        """Unique, with the scenario."""
        return f"a {MARK} named {self.key} [sim:{self.case.scenario}]"

    @property
    def prompt_extend(self) -> str:
        """Unique too: the prompt of a retried extension."""
        return f"and then the {MARK} named {self.key} sleeps [sim:{self.case.extension}]"

    @property
    def request(self) -> GenerateVideoInput:
        """What is asked for."""
        return GenerateVideoInput(
            model=self.model,
            prompt=self.prompt,
            prompt_extend=self.prompt_extend,
            images=(ImageInput(uri=_PIXEL),) if "-fl" in self.model else (),
            on_extend_failed=self.case.on_extend_failed,
            keep_first=self.keep_first,
        )


@dataclass(frozen=True)
class Event:
    """Something happens to the site."""

    at: float
    what: What
    seconds: float = 0.0
    """How long it lasts, where it lasts."""
    worker: int = 0


@dataclass(frozen=True)
class Plan:
    """A whole run."""

    seed: int
    seconds: float
    generations: tuple[Planned, ...]
    events: tuple[Event, ...]
    calm_at: float
    """No more faults from here on."""
    clock_shifts: tuple[float, ...] = (0.0, 0.0)
    """How far each worker's wall clock is ahead, in seconds; below zero: behind."""


def make_plan(seed: int, generations: int, seconds: float) -> Plan:
    """The same plan for the same arguments.

    Args:
        seed: Any number.
        generations: How many keys are started.
        seconds: How long the run may take until the last generation has ended.
    """
    chance = random.Random(seed)  # noqa: S311 (a plan wants repeatable dice, not secret ones)
    long = seconds >= LONG_RUN_SECONDS
    starts_for = seconds * (0.27 if long else 0.25)
    calm_at = starts_for + seconds * 0.06
    planned = _generations(chance, generations, starts_for, long=long)
    planned = tuple(_with_resets(chance, one, until=seconds * 0.6, long=long) for one in planned)
    return Plan(seed, seconds, planned, _events(chance, calm_at, long=long), calm_at, _clock_shifts(chance))


def _generations(chance: random.Random, count: int, starts_for: float, *, long: bool) -> tuple[Planned, ...]:
    planned: list[Planned] = []
    for number, case in enumerate(_cases(chance, count, long=long)):
        # What takes long begins early.
        share = {Pace.QUICK: 1.0, Pace.DOUBT: 0.7, Pace.SLOW: 0.2}[case.duration_factor] if long else 1.0
        share = share if long or case.duration_factor is Pace.QUICK else 0.1
        starts_at = chance.uniform(0, starts_for * share)
        models = _HIGH_MODELS if case.high else _RARE_MODELS if chance.random() < 0.25 else _MODELS
        planned.append(
            Planned(
                key=f"chaos-{number:03}",
                case=case,
                model=chance.choice(models),
                starts_at=starts_at,
                repeats=tuple(starts_at + chance.choice((0.0, chance.uniform(0, 8))) for _ in range(2))
                if number % 12 == 3
                else (),
                stranger_at=starts_at + chance.uniform(1, 6) if case is PLAIN and number % 25 in {7, 8} else None,
                interference=_interference(number),
                interferes_at=starts_at + chance.uniform(0.1, 5),
                keep_first=case is PLAIN and chance.random() < 0.1,
                abandons=case.duration_factor is Pace.DOUBT and number % 17 == 0,
                wants_retry=chance.random() < 0.5,
            )
        )
    return tuple(sorted(planned, key=lambda one: one.starts_at))


def _cases(chance: random.Random, count: int, *, long: bool) -> list[Case]:
    """Half plain ones; of the others each once, then each once more."""
    quick = [case for case in CASES if case.duration_factor is Pace.QUICK]
    others: list[Case] = []
    if not long:
        others += chance.sample([case for case in CASES if case.duration_factor is Pace.DOUBT], 3)
    while len(others) < count // 2:
        pool = list(CASES) if long else quick
        others += chance.sample(pool, len(pool))
    cases = [*others[: count // 2], *[PLAIN] * (count - count // 2)]
    chance.shuffle(cases)
    return cases


def _interference(number: int) -> Interference:
    by_rest: dict[int, Interference] = {
        9: "cancel",
        13: "terminate and start again",
        19: "cancel and start again",
        29: "terminate and start again",
    }
    return by_rest.get(number % 40, "")


def _with_resets(chance: random.Random, one: Planned, *, until: float, long: bool) -> Planned:
    """One in three is reset: soon after its start, or late, which may be after its end."""
    number = int(one.key.rpartition("-")[2])
    soon = one.starts_at + chance.uniform(0.2, 8)
    late = one.starts_at + chance.uniform(8, 40)
    by_rest = {2: (soon,), 5: (late,), 8: (soon, late)}
    # At once, or when another submission may be in doubt.
    after_decision = chance.choice((chance.uniform(0, 5), chance.uniform(15, 42) if long else 0.5))
    return replace(
        one,
        resets=tuple(at for at in by_rest.get(number % 9, ()) if at < until),
        reset_after_decision=after_decision if chance.random() < _RESET_AFTER_DECISION else None,
    )


def _clock_shifts(chance: random.Random) -> tuple[float, ...]:
    """One clock is right, and one is minutes ahead or behind."""
    shift = chance.choice((-1, 1)) * chance.uniform(45, 240)
    return chance.choice(((0.0, shift), (shift, 0.0)))


def _events(chance: random.Random, until: float, *, long: bool) -> tuple[Event, ...]:
    def moment(first: float = 0.08, last: float = 1.0) -> float:
        return chance.uniform(until * first, until * last)

    def several(what: What, count: int, *, first: float = 0.1) -> list[Event]:
        return [Event(moment(first), what, worker=chance.randrange(2)) for _ in range(count)]

    events = several("kill", 14 if long else 4) + several("drain", 2 if long else 1)
    events += [Event(moment(0.1), "stop", chance.uniform(2, 9), chance.randrange(2)) for _ in range(5 if long else 1)]
    events += several("reset activity", 15 if long else 3)
    events += [Event(moment(0.1), "pause activity", chance.uniform(0.5, 6)) for _ in range(15 if long else 3)]
    events += [
        Event(at, "roll back", chance.uniform(4, 10), chance.randrange(2))
        for at in ((moment(0.1, 0.4), moment(0.5, 0.8)) if long else (moment(0.2, 0.6),))
    ]
    if long:
        # Longer than the ledger waits for an owner: woken again, it must not send late.
        events.append(Event(moment(0.2, 0.5), "stop", 40, 1))
        events.append(Event(moment(0.2, 0.45), "server killed", chance.uniform(0.5, 4)))
        events.append(Event(moment(0.6, 0.95), "server stopped", chance.uniform(0.5, 4)))
        events.append(Event(moment(0.1, 0.4), "refuse", chance.uniform(3, 6)))
        events.append(Event(moment(0.5, 0.9), "outage", chance.uniform(3, 6)))
        events += [Event(at, "store", chance.uniform(2, 6)) for at in (moment(0.15, 0.4), moment(0.55, 0.9))]
        events.append(Event(moment(0.1, 0.5), "key", chance.uniform(4, 8)))
        events.append(Event(moment(0.6, 0.9), "keys", chance.uniform(4, 8)))
    else:
        events.append(Event(moment(0.3, 0.8), "server killed", chance.uniform(0.3, 1.5)))
        events.append(Event(moment(0.2, 0.9), "outage", chance.uniform(1, 2)))
        events.append(Event(moment(0.3, 0.9), "store", chance.uniform(1, 2)))
        events.append(Event(moment(0.2, 0.9), "keys", chance.uniform(1, 2)))
    return tuple(sorted(events, key=lambda event: event.at))
