"""Schedules: cron text, "every 15m", "@daily", APScheduler triggers and lists become instants.

An instant is an aware datetime in UTC. It follows from the schedule alone, never from when a
process started, so that every replica computes the same ones. apscheduler is imported inside
functions only, and only for a schedule that is an APScheduler trigger.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import partial
from itertools import islice
from typing import Any, Protocol

from fsa_cli.exceptions import ScheduleError
from fsa_cli.schedules.cron import Cron
from fsa_cli.schedules.durations import duration_s
from fsa_cli.schedules.suggestions import suggest
from fsa_cli.schedules.timezones import parse_timezone
from fsa_cli.schedules.triggered import Triggered, trigger_text

__all__ = ["Schedule", "parse_schedule", "upcoming"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MAX_STEPS = 5000
_LONGEST_STEP_S = 100 * 366 * 86400
_EVERY = re.compile(r"every\s+(\S.*)", re.IGNORECASE)


class Schedule(Protocol):
    """When a task runs."""

    @property
    def text(self) -> str:
        """The schedule as a person would write it."""

    @property
    def timezone(self) -> tzinfo:
        """The zone in which it is read and shown."""

    def next_after(self, instant: datetime) -> datetime | None:
        """The first instant later than *instant*, in UTC; None if there is none."""


@dataclass(frozen=True)
class Every:
    """Equal steps counted from 1970-01-01 00:00 UTC, whatever the time zone does."""

    text: str
    timezone: tzinfo
    seconds: int

    def next_after(self, instant: datetime) -> datetime | None:
        steps = (instant - _EPOCH) // timedelta(seconds=self.seconds) + 1
        try:
            return _EPOCH + steps * timedelta(seconds=self.seconds)
        except OverflowError:  # in the year 10000
            return None


@dataclass(frozen=True)
class AnyOf:
    """Several schedules of one task; instants that fall together count once."""

    text: str
    timezone: tzinfo
    schedules: tuple[Schedule, ...]

    def next_after(self, instant: datetime) -> datetime | None:
        instants = (schedule.next_after(instant) for schedule in self.schedules)
        return min((one for one in instants if one is not None), default=None)


@dataclass(frozen=True)
class AllOf:
    """What several schedules have in common. APScheduler's AndTrigger looks for it for ever."""

    text: str
    timezone: tzinfo
    schedules: tuple[Schedule, ...]

    def next_after(self, instant: datetime) -> datetime | None:
        for _ in range(_MAX_STEPS):
            instants = [schedule.next_after(instant) for schedule in self.schedules]
            found = [each for each in instants if each is not None]
            if len(found) < len(instants):
                return None
            if min(found) == max(found):
                return found[0]
            instant = max(found) - _MICROSECOND
        raise ScheduleError(
            f'"{self.text}" never comes: its triggers have had no instant in common '
            f"in {_MAX_STEPS} steps",
            hint="OrTrigger, or one CronTrigger that says both",
        )


def parse_schedule(schedule: object, zone: object = None) -> Schedule:
    """Read a task's ``schedule=`` and ``timezone=``.

    Raises:
        ScheduleError: with what is wrong and what can be written instead.
    """
    timezone_ = parse_timezone(zone)
    if isinstance(schedule, str):
        try:
            return _parse_text(schedule.strip(), timezone_)
        except ScheduleError as exc:
            hint = suggest(schedule, partial(_reads, timezone_))
            raise ScheduleError(exc.message, hint=hint or exc.hint) from None
    if isinstance(schedule, Sequence):
        if not schedule:
            raise ScheduleError("a list of schedules is empty", hint="leave the schedule out")
        return _any_of([parse_schedule(one, timezone_) for one in schedule], timezone_)
    if hasattr(schedule, "get_next_fire_time") and not isinstance(schedule, type):
        return _from_trigger(schedule, timezone_)
    raise ScheduleError(
        f"a schedule cannot be a {type(schedule).__name__}",
        hint=suggest(schedule, partial(_reads, timezone_))
        or 'cron text ("0 3 * * *"), "every 15m", "@daily", an APScheduler trigger or a list',
    )


def upcoming(schedule: Schedule, after: datetime, count: int) -> list[datetime]:
    """The next *count* instants later than *after* (fewer if the schedule ends)."""
    return list(islice(_instants(schedule, after), count))


def _instants(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    instant = schedule.next_after(after)
    while instant is not None:
        yield instant
        instant = schedule.next_after(instant)


def _parse_text(text: str, zone: tzinfo) -> Schedule:
    if text.lower().startswith("every"):
        return _parse_every(text, zone)
    return Cron.parse(text, zone)


def _reads(zone: tzinfo, text: str) -> bool:
    try:
        _parse_text(text, zone)
    except ScheduleError:
        return False
    return True


def _parse_every(text: str, zone: tzinfo) -> Every:
    match = _EVERY.fullmatch(text)
    seconds = duration_s(match[1], text) if match else None
    if seconds is None or seconds > _LONGEST_STEP_S:
        raise ScheduleError(
            f'"{text}" is not understood', hint='"every 10s", "every 15m", "every 1h30m"'
        )
    return Every(text=text, timezone=zone, seconds=seconds)


def _any_of(schedules: list[Schedule], zone: tzinfo) -> Schedule:
    if len(schedules) == 1:
        return schedules[0]
    text = ", ".join(schedule.text for schedule in schedules)
    return AnyOf(text=text, timezone=zone, schedules=tuple(schedules))


def _from_trigger(trigger: Any, zone: tzinfo) -> Schedule:
    from apscheduler.triggers.calendarinterval import (  # type: ignore[import-untyped]
        CalendarIntervalTrigger,
    )
    from apscheduler.triggers.combining import AndTrigger, OrTrigger  # type: ignore[import-untyped]
    from apscheduler.triggers.interval import IntervalTrigger  # type: ignore[import-untyped]

    if getattr(trigger, "jitter", None):
        raise ScheduleError(
            f"{trigger} has jitter, so each process would compute other instants",
            hint=f"leave it out, and write @task(jitter_s={trigger.jitter})",
        )
    if isinstance(trigger, AndTrigger | OrTrigger) and not trigger.triggers:
        raise ScheduleError(f"an {type(trigger).__name__} has no triggers")
    if isinstance(trigger, AndTrigger):
        schedules = tuple(_from_trigger(one, zone) for one in trigger.triggers)
        both = AllOf(text=trigger_text(trigger), timezone=zone, schedules=schedules)
        both.next_after(datetime.now(UTC))  # raises where it never comes
        return both
    if isinstance(trigger, OrTrigger):
        return _any_of([_from_trigger(one, zone) for one in trigger.triggers], zone)
    if isinstance(trigger, CalendarIntervalTrigger) and trigger.start_date == date.today():
        trigger = _anchored(trigger)
    own_zone = parse_timezone(getattr(trigger, "timezone", None) or zone)
    if isinstance(trigger, IntervalTrigger) and trigger.start_date.microsecond:
        # Without a start date of its own the trigger counts from the moment of its creation, which
        # no two processes share. A start that a person wrote has no microseconds and is kept.
        trigger = copy.copy(trigger)
        trigger.start_date = _EPOCH
    triggered = Triggered(text=trigger_text(trigger), timezone=own_zone, trigger=trigger)
    triggered.next_after(datetime.now(UTC))  # raises where the trigger does
    return triggered


def _anchored(trigger: Any) -> Any:
    """A CalendarIntervalTrigger without a start date, which begins on the day it is made.

    Raises:
        ScheduleError: On another day its instants would be others.
    """
    if (trigger.years, trigger.months, trigger.weeks, trigger.days) != (0, 0, 0, 1):
        raise ScheduleError(
            f"{trigger} has no start_date, or today's: a process that starts tomorrow would "
            "compute other instants",
            hint=f'start_date="{trigger.start_date.year}-01-01", or another day that is past',
        )
    trigger = copy.copy(trigger)
    trigger.start_date -= timedelta(days=31)
    return trigger
