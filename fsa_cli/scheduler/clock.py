"""The database's clock, as this process knows it between two looks at it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

__all__ = ["Clock", "instant_of", "ms_of"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock:
    """Goes on by the monotonic clock, so that nothing happens when somebody sets the wall clock."""

    def __init__(self) -> None:
        self._at_s = time.monotonic()
        self._ms = time.time() * 1000

    def set(self, database_ms: int, asked_s: float, answered_s: float) -> None:
        """The database said *database_ms* between two readings of the monotonic clock."""
        self._at_s, self._ms = (asked_s + answered_s) / 2, float(database_ms)

    @property
    def now_ms(self) -> int:
        at_s, ms = self._at_s, self._ms
        return int(ms + (time.monotonic() - at_s) * 1000)

    @property
    def skew_s(self) -> float:
        """How far the wall clock of this machine is ahead of the database's."""
        return time.time() - self.now_ms / 1000


def instant_of(ms: int) -> datetime:
    """The instant of *ms* since 1970, in UTC."""
    return _EPOCH + timedelta(milliseconds=ms)


def ms_of(instant: datetime) -> int:
    """Milliseconds since 1970."""
    return (instant - _EPOCH) // timedelta(milliseconds=1)
