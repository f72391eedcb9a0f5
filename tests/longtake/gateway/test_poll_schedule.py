"""When to look next: what must hold for every input, and what the field notes say about a typical one."""

from datetime import timedelta

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from longtake.gateway.poll_schedule import Progress, next_poll
from longtake.models import PollSchedule, Stage
from longtake.request.rules import MODELS

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
LONGEST = timedelta(minutes=11)
"""A stalled look with all its jitter, where nothing else asks for more."""

spans = st.timedeltas(min_value=timedelta(0), max_value=2 * DAY)
policies = st.builds(
    PollSchedule,
    expected=st.timedeltas(min_value=timedelta(milliseconds=1), max_value=DAY),
    min_interval=st.timedeltas(min_value=timedelta(milliseconds=1), max_value=timedelta(hours=1)),
)
progresses = st.builds(
    Progress,
    # Clocks differ: the submission may seem to lie in the future.
    elapsed=st.timedeltas(min_value=-DAY, max_value=10 * DAY),
    polls_of_task=st.integers(0, 10_000),
    stage=st.sampled_from(list(Stage)),
    overdue=st.booleans(),
    retry_after=st.none() | spans,
)
paces = st.sampled_from(sorted({model.duration_factor for model in MODELS.values()} | {0.6}))
jitters = st.floats(0, 1)

DEFAULT = PollSchedule()


def wait(elapsed: float, *, polls_of_task: int = 1, stage: Stage = Stage.EXTENDING, overdue: bool = False) -> float:
    """Seconds, for a plain generation with the default policy and no jitter."""
    progress = Progress(timedelta(seconds=elapsed), polls_of_task, stage, overdue=overdue)
    return next_poll(DEFAULT, progress).total_seconds()


@given(policies, progresses, paces, jitters)
def test_never_sooner_than_the_floor_or_what_the_gateway_asks(
    policy: PollSchedule, progress: Progress, duration_factor: float, jitter: float
) -> None:
    planned = next_poll(policy, progress, duration_factor=duration_factor, jitter=jitter)
    assert planned >= policy.min_interval
    assert planned >= (progress.retry_after or timedelta(0))


@given(policies, progresses, paces, jitters)
def test_never_later_than_what_asks_for_the_longest_wait(
    policy: PollSchedule, progress: Progress, duration_factor: float, jitter: float
) -> None:
    """Finite, and with a reason: nobody waits a day for a clip of minutes, however late it is."""
    assume(progress.elapsed >= timedelta(0))
    planned = next_poll(policy, progress, duration_factor=duration_factor, jitter=jitter)
    reasons = (
        policy.min_interval,
        progress.retry_after or timedelta(0),
        policy.expected * duration_factor * 1.1,
        LONGEST,
    )
    assert planned <= max(reasons)


@given(policies, progresses, paces)
def test_jitter_is_at_most_a_tenth_either_way(policy: PollSchedule, progress: Progress, duration_factor: float) -> None:
    early, middle, late = (
        next_poll(policy, progress, duration_factor=duration_factor, jitter=jitter) for jitter in (0, 0.5, 1)
    )
    assert early <= middle <= late
    assert late <= early * (1.1 / 0.9) + timedelta(microseconds=2)


@given(progresses, jitters)
def test_same_input_same_wait(progress: Progress, jitter: float) -> None:
    assert next_poll(DEFAULT, progress, jitter=jitter) == next_poll(DEFAULT, progress, jitter=jitter)


@pytest.mark.parametrize("name", MODELS)
def test_first_poll_can_find_something_and_comes_before_the_end(name: str) -> None:
    """Eight seconds of video take 83 s at least (field notes), and an early refusal should not be waited for longer."""
    first = next_poll(
        DEFAULT, Progress(timedelta(0), 0, Stage.FIRST_SEGMENT), duration_factor=MODELS[name].duration_factor
    )
    expected = DEFAULT.expected * MODELS[name].duration_factor
    assert expected * 0.3 <= first <= expected * 0.6


def test_first_poll_is_planned_from_the_submission_not_from_now() -> None:
    assert wait(40, polls_of_task=0, stage=Stage.FIRST_SEGMENT) == pytest.approx(60 - 40)
    assert wait(1000, polls_of_task=0, stage=Stage.FIRST_SEGMENT) == DEFAULT.min_interval.total_seconds()


@pytest.mark.parametrize("elapsed", [130, 140, 150, 160, 200, 250])
def test_near_the_expected_end_polls_come_at_the_gateways_own_interval(elapsed: float) -> None:
    """The gateway looks upstream about every 15 s: closer looks show nothing new."""
    assert wait(elapsed) == pytest.approx(15)


def test_polls_come_closer_towards_the_end() -> None:
    waits = [wait(elapsed) for elapsed in (60, 80, 100, 120, 150)]
    assert waits == sorted(waits, reverse=True)
    assert waits[0] > waits[-1]


def test_extension_that_has_not_begun_is_not_polled_every_second() -> None:
    assert wait(140, stage=Stage.FIRST_SEGMENT) > wait(140, stage=Stage.EXTENDING)


def test_overdue_polls_grow_apart_up_to_a_limit() -> None:
    waits = [wait(elapsed) for elapsed in (300, 600, 1200, 2400)]
    assert waits == sorted(waits)
    assert waits[0] < waits[-1] <= 75


def test_stalled_is_slow() -> None:
    assert wait(46 * 60, overdue=True) == 600
    assert wait(23 * 3600, overdue=True) == 600


def test_stalled_is_never_quicker_than_the_cadence_of_a_slow_model() -> None:
    slow = PollSchedule(expected=timedelta(hours=10))
    assert next_poll(slow, Progress(DAY, 9, Stage.EXTENDING, overdue=True)) == timedelta(hours=1)


def test_gateway_that_asks_for_patience_gets_it_even_when_it_is_late() -> None:
    late = Progress(timedelta(minutes=10), 9, Stage.EXTENDING, retry_after=timedelta(minutes=7))
    assert next_poll(DEFAULT, late, jitter=0) == timedelta(minutes=7)


@given(st.timedeltas(min_value=timedelta(minutes=1), max_value=timedelta(minutes=20)), st.integers(0, 2**32))
@example(timedelta(minutes=20), 0)  # chance shortens every wait as far as it can
def test_no_generation_of_ordinary_length_is_polled_more_than_31_times(duration: timedelta, seed: int) -> None:
    elapsed, polls_of_task = timedelta(0), 0
    while elapsed < duration:
        stage = Stage.FIRST_SEGMENT if elapsed < duration * 0.6 else Stage.EXTENDING
        elapsed += next_poll(
            DEFAULT, Progress(elapsed, polls_of_task, stage), jitter=(seed * (polls_of_task + 1) % 97) / 97
        )
        polls_of_task += 1
    assert polls_of_task <= 31
