"""A circuit breaker for the API key that pays: while it is refused, one trial every few minutes for all generations.

It keeps the refusal in memory only: a restarted worker asks the gateway once, and knows it again.
"""

import copy
import time
from collections.abc import Callable
from datetime import timedelta

from longtake.gateway.errors import KeyRefused

TRIAL_PAUSE = timedelta(minutes=5)
"""Between two trials of a key that was refused."""
MAX_TRIAL_PAUSE = timedelta(hours=1)
"""A trial by a paid POST uses up one of the ledger's slots of its generation, and there are a thousand."""
_SHARE = 12
"""The pause is a twelfth of the time that the refusal has lasted, so it is 5 minutes for the first hour."""


class KeyBreaker:
    """One for each worker process; safe within one event loop.

    The results of a free request (`preflight`) and of a paid POST are kept apart: a key that may list models may still
    be without quota, so only a successful POST clears a key that a POST was refused with.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refusal: KeyRefused | None = None
        self._by_preflight = False
        self._refused_since = 0.0
        self._next_trial = 0.0
        self._is_good = False

    def refused(self, refusal: KeyRefused, *, preflight: bool = False) -> None:
        """Note that the gateway refuses the key."""
        now = self._clock()
        if self._refusal is None:
            self._refused_since = now
        self._refusal, self._by_preflight, self._is_good = copy.copy(refusal), preflight, False
        self._next_trial = now + self._pause(now)

    def accepted(self, *, preflight: bool = False) -> None:
        """Note that the gateway accepts the key."""
        if not preflight or self._by_preflight:
            self._refusal, self._by_preflight, self._is_good = None, False, True

    def check(self, *, preflight: bool = False) -> None:
        """Do nothing, unless the gateway has just refused the key.

        Args:
            preflight: True before a free request, which no refusal of a paid POST stops.

        Raises:
            KeyRefused: As the gateway raised it; no request is needed.
        """
        left = self._next_trial - self._clock()
        if self._refusal is not None and left > 0 and (self._by_preflight or not preflight):
            raise self._remembered(self._refusal, left)

    def reserve_trial(self, otherwise: KeyRefused) -> bool:
        """Whether the caller is the one that tries the key now; False where the gateway is known to accept it.

        Args:
            otherwise: The refusal to raise, where this worker has met none itself.

        Raises:
            KeyRefused: The gateway refuses the key; another caller tries it, or none yet.
        """
        if self._is_good:
            return False
        now = self._clock()
        if now < self._next_trial:
            raise self._remembered(self._refusal or otherwise, self._next_trial - now)
        self._next_trial = now + self._pause(now)
        return True

    def _pause(self, now: float) -> float:
        grown = (now - self._refused_since) / _SHARE if self._refusal else 0.0
        return min(max(grown, TRIAL_PAUSE.total_seconds()), MAX_TRIAL_PAUSE.total_seconds())

    @staticmethod
    def _remembered(refusal: KeyRefused, left: float) -> KeyRefused:
        error = copy.copy(refusal)
        error.args = (f"{refusal} (an earlier response; the next request is due in {left:.0f} s)",)
        error.remembered, error.retry_after = True, None
        return error
