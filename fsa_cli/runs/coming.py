"""The coming instants of every task, each computed once and not at each look."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from fsa_cli.exceptions import FsaError
from fsa_cli.ledger.time import instant_of, ms_of
from fsa_cli.schedules.schedule import Schedule, parse_schedule, upcoming
from fsa_cli.schedules.timezones import zone_name
from fsa_cli.tasks.registry import registry

__all__ = [
    "ComingInstants",
    "ScheduledTask",
    "next_ms",
    "schedule_of",
    "scheduled_task",
    "schedules",
]

_MOST_TASKS = 2000
_NEXT = 5
_REST_OF_MILLISECOND = timedelta(microseconds=999)


def schedule_of(name: str, options: Mapping[str, Any], zone: str | None) -> Schedule | None:
    """The schedule of a task: as it is registered here, else as the ledger has it.

    Args:
        options: Those of its row in the ledger.
        zone: The zone of schedules that name none.

    Returns:
        None if it has none, or one that is no text and is known to other processes alone.
    """
    task = registry.get(name)
    given, timezone = options.get("schedule"), options.get("timezone")
    if task is not None:
        given, timezone = task.schedule, task.timezone or zone
    elif not isinstance(given, str) or not isinstance(timezone, str | None):
        return None
    if given is None:
        return None
    parse = parse_schedule if isinstance(given, list) else _parsed
    try:
        return parse(given, timezone)
    except FsaError:
        return None


def schedules(
    tasks: Iterable[tuple[str, Mapping[str, Any]]], zone: str | None
) -> dict[str, Schedule]:
    """The schedules of these tasks, by name, without those that have none."""
    found = {name: schedule_of(name, options, zone) for name, options in tasks}
    return {name: schedule for name, schedule in found.items() if schedule is not None}


@dataclass(frozen=True, slots=True)
class ScheduledTask:
    """When a task comes: what `fsa scheduler list --json` prints.

    Attributes:
        next: Its next instants; what is paused has them too.
    """

    task: str
    schedule: str
    timezone: str
    next: Sequence[datetime]
    paused: bool


def scheduled_task(
    name: str, schedule: Schedule, now: datetime, *, paused: bool = False
) -> ScheduledTask:
    """A task of this process, as it comes from now on."""
    instants = upcoming(schedule, now, _NEXT)
    return ScheduledTask(name, schedule.text, zone_name(schedule.timezone), instants, paused)


_parsed = lru_cache(maxsize=4096)(parse_schedule)


@dataclass
class _Known:
    text: str
    instants_ms: list[int] = field(default_factory=list)
    ended: bool = False


class ComingInstants:
    """The coming instants of tasks. They are kept: to compute those of 300 tasks takes a second."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()

    def of(
        self, name: str, schedule: Schedule, after_ms: int, until_ms: int, limit: int
    ) -> Sequence[int]:
        """The instants in (after_ms, until_ms], at most *limit* of them."""
        text = f"{schedule.text}\0{schedule.timezone}"
        with self._lock:
            known = self._known.get(name)
            if known is None or known.text != text:
                if len(self._known) >= _MOST_TASKS:
                    self._known.clear()
                known = self._known[name] = _Known(text)
            while known.instants_ms and known.instants_ms[0] <= after_ms:
                del known.instants_ms[0]
            self._extend(known, schedule, after_ms, until_ms, limit)
            return [each for each in known.instants_ms[:limit] if each <= until_ms]

    def _extend(
        self, known: _Known, schedule: Schedule, after_ms: int, until_ms: int, limit: int
    ) -> None:
        last_ms = known.instants_ms[-1] if known.instants_ms else after_ms
        while not known.ended and last_ms <= until_ms and len(known.instants_ms) < limit:
            try:
                coming_ms = next_ms(schedule, last_ms)
            except FsaError:  # two triggers that never meet
                coming_ms = None
            if coming_ms is None:
                known.ended = True
                return
            last_ms = coming_ms
            known.instants_ms.append(last_ms)


def next_ms(schedule: Schedule, after_ms: int) -> int | None:
    """The first instant later than *after_ms*; None if there is none.

    A trigger of the user's may have microseconds: two instants of one millisecond are one.
    """
    instant = schedule.next_after(instant_of(after_ms) + _REST_OF_MILLISECOND)
    return None if instant is None else ms_of(instant)
