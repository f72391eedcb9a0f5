"""A circuit breaker for the API key that pays: while it is refused, one trial every few minutes for all generations.

It keeps what the gateway said in memory only: a restarted worker asks once, and knows it again.
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
"""The pause grows with a refusal: a twelfth of the time that it has lasted, so it is 5 minutes for the first hour."""


class KeyBreaker:
    """One for each worker process; safe within one event loop.

    What a free request brought (`preflight`) and what a paid POST brought are kept apart: a key that may list models
    may still be without quota, so only a POST that goes well proves a key that a POST was refused with.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refusal: KeyRefused | None = None
        self._by_preflight = False
        self._refused_since = 0.0
        self._next_trial = 0.0
        self._is_good = False

    def refused(self, refusal: KeyRefused, *, preflight: bool = False) -> None:
        """The gateway refuses the key."""
        now = self._clock()
        if self._refusal is None:
            self._refused_since = now
        self._refusal, self._by_preflight, self._is_good = copy.copy(refusal), preflight, False
        self._next_trial = now + self._pause(now)

    def accepted(self, *, preflight: bool = False) -> None:
        """The gateway takes the key."""
        if not preflight or self._by_preflight:
            self._refusal, self._by_preflight, self._is_good = None, False, True

    def check(self, *, preflight: bool = False) -> None:
        """Let through what would ask the gateway, unless it has just refused this.

        Args:
            preflight: Whether a free request is meant, which no refusal of a paid POST stops.

        Raises:
            KeyRefused: As the gateway said it; it need not be asked.
        """
        left = self._next_trial - self._clock()
        if self._refusal is not None and left > 0 and (self._by_preflight or not preflight):
            raise self._remembered(self._refusal, left)

    def reserve_trial(self, otherwise: KeyRefused) -> bool:
        """Whether the caller is the one who tries the key now; False where it is known to be taken, by anybody.

        Args:
            otherwise: What the gateway said, where this worker has not heard it itself.

        Raises:
            KeyRefused: As the gateway said it, and somebody else tries, or nobody yet.
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
        told = copy.copy(refusal)
        told.args = (f"{refusal} (said before; the gateway is not asked again for {left:.0f} s)",)
        told.remembered, told.retry_after = True, None
        return told
