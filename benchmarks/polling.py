"""Looks, history events and the delay of noticing, beside a fixed five seconds: `python -m benchmarks.polling`.

Generations last as the field notes say: 150 to 300 s, first-and-last-frame 180 to 300 s, 1080p 300 to 600 s; some are
overdue. The gateway itself looks upstream every 15 s, so an end is visible only at its next look; the delay counts
from there. Nothing is slept: the same seed gives the same table.
"""

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from longtake.gateway.poll_schedule import Progress, next_poll
from longtake.models import PollSchedule, Stage
from longtake.request.rules import MODELS, VideoModel

GENERATIONS = 4_000
SEED = 20260722
GATEWAY_CADENCE_SECONDS = 15
FIXED_SECONDS = 5
OVERDUE = 0.03
"""The share of generations that take two to six times as long as they should."""
EVENTS_PER_POLL = 11
OTHER_EVENTS = 30
"""Of a generation that ends `full`: its start, three more activities, search attributes, its end (the stored history
`full.json`, less its looks)."""

Wait = Callable[["Generation", float, int, random.Random], float]


@dataclass(frozen=True)
class Generation:
    model: VideoModel
    visible_after_seconds: float
    extending_after_seconds: float


@dataclass(frozen=True)
class Figures:
    polls_of_task: float
    events: float
    mean_delay: float
    p95_delay: float


def generations(chance: random.Random, models: list[VideoModel]) -> list[Generation]:
    return [_generation(chance, chance.choice(models)) for _ in range(GENERATIONS)]


def _generation(chance: random.Random, model: VideoModel) -> Generation:
    shortest, longest = (300, 600) if model.hd else (180, 300) if model.frames else (150, 300)
    seconds = chance.uniform(shortest, longest)
    if chance.random() < OVERDUE:
        seconds *= chance.uniform(2, 6)
    # Where in its own rhythm the gateway is when the job ends, nobody knows.
    visible = seconds + chance.uniform(0, GATEWAY_CADENCE_SECONDS)
    return Generation(model, visible, seconds * chance.uniform(0.5, 0.7))


def paced(generation: Generation, elapsed: float, polls_of_task: int, chance: random.Random) -> float:
    stage = Stage.EXTENDING if polls_of_task and elapsed >= generation.extending_after_seconds else Stage.FIRST_SEGMENT
    progress = Progress(timedelta(seconds=elapsed), polls_of_task, stage, overdue=elapsed > 45 * 60)
    planned = next_poll(
        PollSchedule(), progress, duration_factor=generation.model.duration_factor, jitter=chance.random()
    )
    return planned.total_seconds()


def fixed(_generation: Generation, _elapsed: float, _polls: int, _chance: random.Random) -> float:
    return FIXED_SECONDS


def measure(made: list[Generation], wait: Wait) -> Figures:
    """Watch each generation to its end."""
    chance = random.Random(SEED)  # noqa: S311 - reproducible, not secret
    polls_of_task: list[int] = []
    delays: list[float] = []
    for generation in made:
        elapsed, count = 0.0, 0
        while elapsed < generation.visible_after_seconds:
            elapsed += wait(generation, elapsed, count, chance)
            count += 1
        polls_of_task.append(count)
        delays.append(elapsed - generation.visible_after_seconds)
    mean_polls = statistics.fmean(polls_of_task)
    return Figures(
        mean_polls,
        mean_polls * EVENTS_PER_POLL + OTHER_EVENTS,
        statistics.fmean(delays),
        statistics.quantiles(delays, n=20)[-1],
    )


def kinds() -> dict[str, list[VideoModel]]:
    every = list(MODELS.values())
    return {
        "all eight models": every,
        "plain": [model for model in every if not (model.hd or model.frames)],
        "first and last frame": [model for model in every if model.frames and not model.hd],
        "1080p": [model for model in every if model.hd],
    }


def main() -> None:
    print(f"{GENERATIONS:,} generations of each kind, seed {SEED}; means, and the delay until an end is noticed\n")
    print(f"{'':22}{'pace':>10}{'looks':>9}{'events':>9}{'delay':>10}{'p95':>10}")
    for kind, models in kinds().items():
        made = generations(random.Random(SEED), models)  # noqa: S311 - reproducible, not secret
        ours, theirs = measure(made, paced), measure(made, fixed)
        for title, name, figures in ((kind, "ours", ours), ("", f"{FIXED_SECONDS} s", theirs)):
            print(
                f"{title:22}{name:>10}{figures.polls_of_task:>9.1f}{figures.events:>9.0f}"
                f"{figures.mean_delay:>8.1f} s{figures.p95_delay:>8.1f} s"
            )
        print(
            f"{'':22}{'ratio':>10}{ours.polls_of_task / theirs.polls_of_task:>9.2f}{ours.events / theirs.events:>9.2f}"
            f"{ours.mean_delay / theirs.mean_delay:>10.1f}{ours.p95_delay / theirs.p95_delay:>10.1f}\n"
        )


if __name__ == "__main__":
    main()
