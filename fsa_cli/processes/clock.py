"""The database's clock, as this process estimates it between two readings."""

from __future__ import annotations

import time

__all__ = ["Clock"]


class Clock:
    """Advances by the monotonic clock: setting the wall clock changes nothing."""

    def __init__(self) -> None:
        self._at_s = time.monotonic()
        self._ms = time.time() * 1000

    def set(self, database_ms: int, asked_s: float, answered_s: float) -> None:
        """Note that the database answered *database_ms* between two monotonic readings."""
        self._at_s, self._ms = (asked_s + answered_s) / 2, float(database_ms)

    @property
    def now_ms(self) -> int:
        at_s, ms = self._at_s, self._ms
        return int(ms + (time.monotonic() - at_s) * 1000)

    @property
    def skew_s(self) -> float:
        """How far the wall clock of this machine is ahead of the database's."""
        return time.time() - self.now_ms / 1000
