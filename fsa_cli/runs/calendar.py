"""The calendar of a task: how its runs have ended, by day, for as long as runs are kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from fsa_cli.ledger import task_history
from fsa_cli.ledger.run_search import FAILED
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.time import instant_of, ms_of

__all__ = ["Calendar", "Day", "DayCounts"]

_DAY = timedelta(days=1)
_DAY_MS = 24 * 3600 * 1000
_YEAR = timedelta(days=371)  # 53 weeks
_LEAST = timedelta(days=34)
_WORST = (*FAILED, "cancelled", "discarded", "skipped")
# Runs that are counted at one look. PostgreSQL takes 3 to 6 microseconds for each.
_AT_ONCE = 1200
# What is younger is counted at each look.
_SETTLED_MS = 600_000
_KEPT_S = 3600.0
_MOST_TASKS = 50


@dataclass(frozen=True, slots=True)
class Day:
    """A day of UTC.

    Attributes:
        worst: The worst status of its runs; "unread": they are not counted yet; None: there was
            none, or none is kept.
        counts: How many runs are in each status.
    """

    day: date
    worst: str | None
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Calendar:
    """Whole weeks, five at least and 53 at most.

    Attributes:
        since: The instant of the first run that is kept; None: there is none.
        is_unfinished: Whether days are not counted yet: another look counts more.
    """

    days: Sequence[Day]
    since: datetime | None
    is_unfinished: bool


_Counts = dict[int, dict[str, int]]


@dataclass
class _Counted:
    """What was counted in [low_ms, high_ms)."""

    low_ms: int
    high_ms: int
    at_s: float
    counts: _Counts = field(default_factory=dict)
    is_whole: bool = False


class DayCounts:
    """The counts of days of the past. They are kept for an hour: a task that runs each minute has
    half a million runs in a year, which are counted a few thousand at a look."""

    def __init__(self) -> None:
        self._counted: dict[str, _Counted] = {}
        self._lock = threading.Lock()

    def calendar(self, ledger: Ledger, name: str, now_ms: int) -> Calendar:
        """The calendar of the task *name*."""
        today = _midnight(instant_of(now_ms))
        since_ms = ms_of(today - _YEAR)
        with self._lock:
            known = self._of(name, now_ms)
            if not known.is_whole:
                low_ms = task_history.nth_before(ledger, name, known.low_ms, _AT_ONCE)
                known.is_whole = low_ms is None or low_ms <= since_ms
                low_ms = since_ms if known.is_whole or low_ms is None else low_ms
                more = task_history.days(ledger, name, low_ms, known.low_ms)
                known.counts, known.low_ms = _sum(known.counts, more), low_ms
            counts = _sum(known.counts, task_history.days(ledger, name, known.high_ms, None))
            low_ms, is_whole = known.low_ms, known.is_whole
        first_ms = task_history.first_ms(ledger, name, since_ms)
        return _drawn(counts, low_ms, first_ms, today, is_unfinished=not is_whole)

    def _of(self, name: str, now_ms: int) -> _Counted:
        known = self._counted.get(name)
        if known is None or time.monotonic() - known.at_s > _KEPT_S:
            if len(self._counted) >= _MOST_TASKS:
                self._counted.clear()
            high_ms = now_ms - _SETTLED_MS
            known = self._counted[name] = _Counted(high_ms, high_ms, time.monotonic())
        return known


def _sum(counts: _Counts, more: Mapping[int, Mapping[str, int]]) -> _Counts:
    found = {day_ms: dict(each) for day_ms, each in counts.items()}
    for day_ms, each in more.items():
        day = found.setdefault(day_ms, {})
        for status, number in each.items():
            day[status] = day.get(status, 0) + number
    return found


def _drawn(
    counts: _Counts, low_ms: int, first_ms: int | None, today: datetime, *, is_unfinished: bool
) -> Calendar:
    since = instant_of(first_ms) if first_ms is not None else None
    first_day = min(_midnight(since or today), today)
    start = min(first_day, today - _LEAST)
    start -= _DAY * start.weekday()
    days = []
    for number in range((today - start) // _DAY + 1):
        day = start + _DAY * number
        of_day = counts.get(ms_of(day), {})
        worst = next((status for status in _WORST if status in of_day), next(iter(of_day), None))
        if is_unfinished and first_day <= day and ms_of(day) < low_ms:
            worst, of_day = "unread", {}
        days.append(Day(day.date(), worst, of_day))
    return Calendar(days, since, is_unfinished)


def _midnight(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)
