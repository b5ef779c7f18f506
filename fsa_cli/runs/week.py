"""The week that comes: weekday by hour, how many runs, and of how many tasks."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from fsa_cli.exceptions import FsaError
from fsa_cli.ledger import queries
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.time import instant_of, ms_of
from fsa_cli.ledger.values import options_in
from fsa_cli.runs.coming import next_ms, schedules
from fsa_cli.schedules.schedule import Schedule
from fsa_cli.tasks.registry import registry

__all__ = ["Hour", "Week", "WeekCounts", "week"]

_HOUR_MS = 3_600_000
_HOURS = 7 * 24
# Three times an hour, all week long, is all the time.
_MOST_EXACT = 500
_FIRST, _FIRST_MS = 30, 10 * _HOUR_MS
_MOST_TASKS = 2000
_BUDGET_S = 0.03
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Hour:
    """An hour: how many runs begin in it, and the tasks with most of them."""

    start: datetime
    runs: int
    tasks: int
    most: Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Week:
    """Seven days from this hour on, in UTC.

    Attributes:
        days: For each day its hours; those that are past are None.
        busiest: The most runs of an hour.
        often: Tasks that run all the time, and how often in an hour; the hours are without them.
        left: How many tasks are not counted yet.
    """

    days: Sequence[tuple[datetime, Sequence[Hour | None]]]
    busiest: int
    often: Sequence[tuple[str, int]]
    left: int


@dataclass
class _Counted:
    text: str
    until_ms: int
    hours: dict[int, int] = field(default_factory=dict)
    per_hour: int | None = None


class WeekCounts:
    """How often each task comes in each hour; it is kept, since to count takes a second."""

    def __init__(self) -> None:
        self._counted: dict[str, _Counted] = {}
        self._lock = threading.Lock()

    def of(
        self, wanted: Mapping[str, Schedule], start_ms: int
    ) -> tuple[dict[str, Mapping[int, int]], list[tuple[str, int]], int]:
        """Of each task its hours; of those that run all the time how often; how many are left."""
        until_ms = start_ms + _HOURS * _HOUR_MS
        deadline = time.monotonic() + _BUDGET_S
        found: dict[str, Mapping[int, int]] = {}
        often, left = [], 0
        with self._lock:
            if len(self._counted) > _MOST_TASKS:
                self._counted.clear()
            for name, schedule in wanted.items():
                text = f"{schedule.text}\0{schedule.timezone}"
                known = self._counted.get(name)
                if known is None or known.text != text or known.until_ms < until_ms:
                    if time.monotonic() > deadline:
                        left += 1
                        continue
                    known = self._counted[name] = _count(text, schedule, start_ms, until_ms)
                if known.per_hour is None:
                    found[name] = known.hours
                else:
                    often.append((name, known.per_hour))
        return found, often, left


def week(ledger: Ledger, counts: WeekCounts, now_ms: int, zone: str | None) -> Week:
    """The coming week of all tasks that are not paused."""
    rows = queries.tasks(ledger)
    paused = {row.name for row in rows if row.paused_ms is not None}
    options = {row.name: options_in(row.options) for row in rows}
    names = sorted({*options, *(task.name for task in registry)} - paused)
    wanted = schedules([(name, options.get(name, {})) for name in names], zone)
    start_ms = now_ms - now_ms % _HOUR_MS
    found, often, left = counts.of(wanted, start_ms)
    hours: dict[int, list[tuple[str, int]]] = {}
    for name, per_hour in found.items():
        for hour_ms, number in per_hour.items():
            if start_ms <= hour_ms < start_ms + _HOURS * _HOUR_MS:
                hours.setdefault(hour_ms, []).append((name, number))
    first_day = instant_of(start_ms).replace(hour=0, minute=0, second=0, microsecond=0)
    days = []
    for day in (first_day + timedelta(days=number) for number in range(8)):
        cells = [
            _hour(hours.get(hour_ms, []), hour_ms)
            if start_ms <= hour_ms < start_ms + _HOURS * _HOUR_MS
            else None
            for hour_ms in range(ms_of(day), ms_of(day) + 24 * _HOUR_MS, _HOUR_MS)
        ]
        if any(cell is not None for cell in cells):
            days.append((day, cells))
    busiest = max((cell.runs for _, cells in days for cell in cells if cell is not None), default=0)
    return Week(days, busiest, often, left)


def _hour(pairs: list[tuple[str, int]], hour_ms: int) -> Hour:
    most = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
    return Hour(instant_of(hour_ms), sum(n for _, n in pairs), len(pairs), most[:_NAMED])


def _count(text: str, schedule: Schedule, start_ms: int, until_ms: int) -> _Counted:
    counted = _Counted(text, until_ms)
    last_ms, number, first_ms = start_ms - 1, 0, start_ms
    while number < _MOST_EXACT:
        try:
            coming_ms = next_ms(schedule, last_ms)
        except FsaError:
            return counted
        if coming_ms is None or coming_ms >= until_ms:
            return counted
        last_ms = coming_ms
        first_ms = first_ms if number else coming_ms
        hour_ms = last_ms - last_ms % _HOUR_MS
        counted.hours[hour_ms] = counted.hours.get(hour_ms, 0) + 1
        number += 1
        if number == _FIRST and last_ms - start_ms < _FIRST_MS:
            break
    counted.per_hour = max(round((number - 1) * _HOUR_MS / max(last_ms - first_ms, 1)), 1)
    return counted
