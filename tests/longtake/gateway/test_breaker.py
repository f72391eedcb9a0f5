"""A refused key is tried rarely, by one for all, until it is known to be taken."""

from datetime import timedelta
from itertools import pairwise

import pytest

from longtake.gateway.breaker import MAX_TRIAL_PAUSE, TRIAL_PAUSE, KeyBreaker
from longtake.gateway.errors import KeyRefused, QuotaExhausted

EMPTY = QuotaExhausted("out of quota", status=403, code="insufficient_user_quota", retry_after=timedelta(seconds=1))
PAUSE = TRIAL_PAUSE.total_seconds()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> KeyBreaker:
    return KeyBreaker(clock)


def is_open(breaker: KeyBreaker, *, preflight: bool = False) -> bool:
    try:
        breaker.check(preflight=preflight)
    except KeyRefused:
        return True
    return False


def trial(breaker: KeyBreaker) -> bool | None:
    """None where somebody else has it."""
    try:
        return breaker.reserve_trial(EMPTY)
    except KeyRefused:
        return None


def test_nothing_is_stopped_before_the_key_is_refused(breaker: KeyBreaker) -> None:
    assert not is_open(breaker)


def test_the_gateways_answer_is_repeated_and_marked(breaker: KeyBreaker) -> None:
    breaker.refused(EMPTY)
    with pytest.raises(QuotaExhausted, match=r"^out of quota") as caught:
        breaker.check()
    assert (caught.value.remembered, caught.value.code, caught.value.status) == (True, EMPTY.code, EMPTY.status)
    assert caught.value.retry_after is None, "it was about the gateway, not about this memory"
    assert (EMPTY.remembered, str(EMPTY)) == (False, "out of quota")


def test_one_of_all_tries_it_every_five_minutes(breaker: KeyBreaker, clock: Clock) -> None:
    breaker.refused(EMPTY)
    tried = []
    for _ in range(3 * 300):
        clock.now += 1
        tried += [clock.now for _ in range(500) if trial(breaker)]
    assert tried == [1000 + PAUSE, 1000 + 2 * PAUSE, 1000 + 3 * PAUSE]


def test_a_refusal_that_lasts_is_tried_more_rarely(breaker: KeyBreaker, clock: Clock) -> None:
    tried = []
    breaker.refused(EMPTY)
    for _ in range(7 * 24 * 60):
        clock.now += 60
        if trial(breaker):
            tried.append(clock.now)
            breaker.refused(EMPTY)
    pauses = [after - before for before, after in pairwise(tried)]
    assert min(pauses) >= PAUSE
    assert max(pauses) == MAX_TRIAL_PAUSE.total_seconds()
    assert len(tried) < 250, "each may use up one of the thousand slots of a generation"


def test_a_trial_that_went_well_lets_everybody_go_on(breaker: KeyBreaker, clock: Clock) -> None:
    breaker.refused(EMPTY)
    clock.now += PAUSE
    assert trial(breaker) is True
    assert trial(breaker) is None
    breaker.accepted()
    assert trial(breaker) is False
    assert not is_open(breaker)


def test_a_worker_that_was_restarted_lets_one_try(breaker: KeyBreaker) -> None:
    assert [trial(breaker) for _ in range(3)] == [True, None, None]


def test_a_list_of_models_proves_nothing_about_the_quota(breaker: KeyBreaker) -> None:
    breaker.refused(EMPTY)
    breaker.accepted(preflight=True)
    assert is_open(breaker)
    assert not is_open(breaker, preflight=True), "it is free"


def test_a_key_that_is_refused_everywhere_is_good_again_everywhere(breaker: KeyBreaker, clock: Clock) -> None:
    breaker.refused(KeyRefused("401"), preflight=True)
    assert is_open(breaker, preflight=True)
    clock.now += PAUSE
    assert trial(breaker) is True
    breaker.accepted(preflight=True)
    assert trial(breaker) is False
