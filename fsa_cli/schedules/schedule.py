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
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from functools import partial
from itertools import islice
from typing import Any, Protocol

from fsa_cli.exceptions import ScheduleError
from fsa_cli.schedules.cron import Cron
from fsa_cli.schedules.durations import duration_s
from fsa_cli.schedules.suggestions import suggest
from fsa_cli.schedules.timezones import parse_timezone

__all__ = ["Schedule", "parse_schedule", "upcoming"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MAX_STEPS = 5000
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

    def next_after(self, instant: datetime) -> datetime:
        steps = (instant - _EPOCH) // timedelta(seconds=self.seconds) + 1
        return _EPOCH + steps * timedelta(seconds=self.seconds)


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


@dataclass(frozen=True)
class Triggered:
    """An APScheduler trigger, with APScheduler's meaning."""

    text: str
    timezone: tzinfo
    trigger: Any

    def next_after(self, instant: datetime) -> datetime | None:
        # Without the previous instant: in an hour that the clocks repeat, that sticks for ever.
        found: datetime | None = self.trigger.get_next_fire_time(
            None, instant.astimezone(UTC) + _MICROSECOND
        )
        # Date and calendar triggers ignore "now" and start at their own beginning.
        while found is not None and found <= instant:
            following = self.trigger.get_next_fire_time(found, instant)
            found = following if following is None or following > found else None
        if found is None:
            return None
        return min([found.astimezone(UTC), *self._after_changes(instant, found)])

    def _after_changes(self, instant: datetime, found: datetime) -> Iterator[datetime]:
        """What the trigger has on the days after a change of the clocks.

        Counted from before the change, CronTrigger passes over the next day:
        https://github.com/agronholm/apscheduler/issues/606
        """
        from apscheduler.triggers.cron import CronTrigger  # type: ignore[import-untyped]

        if not isinstance(self.trigger, CronTrigger):
            return
        day = instant.astimezone(self.timezone).date()
        last = found.astimezone(self.timezone).date()
        offset = _midnight(day, self.timezone).utcoffset()
        while day < last:
            day += timedelta(days=1)
            begin = _midnight(day, self.timezone)
            if begin.utcoffset() != offset:
                offset = begin.utcoffset()
                again = self.trigger.get_next_fire_time(None, begin)
                if again is not None and again > instant:
                    yield again.astimezone(UTC)
            if (skipped := self._in_skipped_midnight(begin)) is not None and skipped > instant:
                yield skipped

    def _in_skipped_midnight(self, begin: datetime) -> datetime | None:
        """What falls into the hour after midnight where the clocks skip it (Havana, Cairo, Beirut):
        by the clocks before the change, as in a skipped hour of the day; CronTrigger passes over
        that whole day."""
        there = begin.astimezone(UTC).astimezone(self.timezone)
        gap = there.replace(tzinfo=None) - begin.replace(tzinfo=None)
        if not gap:
            return None
        before = copy.copy(self.trigger)
        before.timezone = timezone(begin.utcoffset() or timedelta())
        found: datetime | None = before.get_next_fire_time(None, begin.astimezone(before.timezone))
        if found is None or found >= begin.astimezone(UTC) + gap:
            return None
        return found.astimezone(UTC)


def _midnight(day: date, zone: tzinfo) -> datetime:
    """It in its own offset: a zone that pytz made gives it another way than zoneinfo."""
    naive = datetime.combine(day, time())
    localize = getattr(zone, "localize", None)
    return localize(naive) if localize is not None else naive.replace(tzinfo=zone)


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
    if hasattr(schedule, "get_next_fire_time"):
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
    if seconds is None:
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
            hint="leave the trigger's jitter out",
        )
    if isinstance(trigger, AndTrigger):
        schedules = tuple(_from_trigger(one, zone) for one in trigger.triggers)
        both = AllOf(text=str(trigger), timezone=zone, schedules=schedules)
        both.next_after(datetime.now(UTC))  # raises where it never comes
        return both
    if isinstance(trigger, OrTrigger):
        return _any_of([_from_trigger(one, zone) for one in trigger.triggers], zone)
    if isinstance(trigger, CalendarIntervalTrigger) and trigger.start_date == date.today():
        trigger = _anchored(trigger)
    own_zone = getattr(trigger, "timezone", None) or zone
    if isinstance(trigger, IntervalTrigger) and trigger.start_date.microsecond:
        # Without a start date of its own the trigger counts from the moment of its creation, which
        # no two processes share. A start that a person wrote has no microseconds and is kept.
        trigger = copy.copy(trigger)
        trigger.start_date = _EPOCH
    return Triggered(text=str(trigger), timezone=own_zone, trigger=trigger)


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
