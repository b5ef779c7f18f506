"""The database's clock, as this process estimates it between two readings."""

from __future__ import annotations

import math
import time

__all__ = ["Clock"]

# By how much two machines' clocks run apart at most: NTP bounds it with 500 ppm.
_DRIFT = 0.0005
# The database's answer is in whole milliseconds.
_GRAIN_S = 0.001


class Clock:
    """Advances by the monotonic clock: setting the wall clock changes nothing."""

    def __init__(self) -> None:
        self._at_s = time.monotonic()
        self._ms = time.time() * 1000
        self._error_s = math.inf

    def set(self, database_ms: int, asked_s: float, answered_s: float) -> None:
        """Note that the database answered *database_ms* between two monotonic readings.

        An answer that was long on its way tells less than an earlier one, unless they contradict
        each other: somebody has set the database's clock.
        """
        at_s, error_s = (asked_s + answered_s) / 2, (answered_s - asked_s) / 2
        known_s = self._error_s + (at_s - self._at_s) * _DRIFT
        apart_s = (database_ms - self._ms) / 1000 - (at_s - self._at_s)
        if error_s <= known_s or abs(apart_s) > error_s + known_s + _GRAIN_S:
            self._at_s, self._ms, self._error_s = at_s, float(database_ms), error_s

    @property
    def now_ms(self) -> int:
        at_s, ms = self._at_s, self._ms
        return int(ms + (time.monotonic() - at_s) * 1000)

    @property
    def skew_s(self) -> float:
        """How far the wall clock of this machine is ahead of the database's."""
        return time.time() - self.now_ms / 1000
