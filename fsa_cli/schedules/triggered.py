"""APScheduler's triggers as schedules, and what their users' own may do: raise, go back, hang."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from typing import Any

from fsa_cli.exceptions import ScheduleError
from fsa_cli.terminal.user_code import summarize_error

__all__ = ["Triggered", "trigger_text"]

_MICROSECOND = timedelta(microseconds=1)
_MAX_STEPS = 5000
# A day that is lost comes again within it: 29 February on one weekday, around 2100.
_LONGEST_WAIT_YEARS = 40


@dataclass(frozen=True)
class Triggered:
    """An APScheduler trigger, with APScheduler's meaning."""

    text: str
    timezone: tzinfo
    trigger: Any

    def next_after(self, instant: datetime) -> datetime | None:
        try:
            return self._next_after(instant)
        except ScheduleError:
            raise
        except Exception as exc:
            raise ScheduleError(f'"{self.text}" raised {summarize_error(exc)}') from exc

    def _next_after(self, instant: datetime) -> datetime | None:
        # Without the previous instant: in an hour that the clocks repeat, that sticks for ever.
        found = self._ask(self._before(instant), instant.astimezone(UTC) + _MICROSECOND)
        # Date and calendar triggers ignore "now" and start at their own beginning.
        for _ in range(_MAX_STEPS):
            if found is None or found > instant:
                break
            following = self._ask(found, instant)
            if following is not None and following <= found:
                raise ScheduleError(f'"{self.text}" does not go on after {found.isoformat()}')
            found = following
        else:
            raise ScheduleError(
                f'"{self.text}" has more than {_MAX_STEPS} instants that are past, and is read '
                "one by one",
                hint="a later start, or cron text",
            )
        if found is None:
            return None
        return min([found.astimezone(UTC), *self._after_changes(instant, found)])

    def _ask(self, previous: datetime | None, now: datetime) -> datetime | None:
        found = self.trigger.get_next_fire_time(previous, now)
        if found is not None and (not isinstance(found, datetime) or found.utcoffset() is None):
            raise ScheduleError(
                f'"{self.text}" gives a {type(found).__name__} that is no time with a zone'
            )
        return found

    def _before(self, instant: datetime) -> datetime | None:
        """An instant of a calendar trigger of days shortly before *instant*: it would count the
        days from its start, a thousand of them in 10 ms."""
        from apscheduler.triggers.calendarinterval import (  # type: ignore[import-untyped]
            CalendarIntervalTrigger,
        )

        trigger = self.trigger
        if not isinstance(trigger, CalendarIntervalTrigger) or trigger.years or trigger.months:
            return None
        step = timedelta(days=trigger.days + 7 * trigger.weeks)
        steps = (instant.astimezone(self.timezone).date() - trigger.start_date) // step - 2
        if steps <= 0:
            return None
        return _midnight(trigger.start_date + steps * step, self.timezone)

    def _after_changes(self, instant: datetime, found: datetime) -> Iterator[datetime]:
        """What the trigger has on the days after a change of the clocks.

        Counted from before the change, CronTrigger passes over the next day:
        https://github.com/agronholm/apscheduler/issues/606
        """
        from apscheduler.triggers.cron import CronTrigger  # type: ignore[import-untyped]

        if not isinstance(self.trigger, CronTrigger):
            return
        day = instant.astimezone(self.timezone).date()
        last = min(found.astimezone(self.timezone).date(), _farthest(day))
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


def _farthest(day: date) -> date:
    return date(min(day.year + _LONGEST_WAIT_YEARS, date.max.year), 12, 30)


def trigger_text(trigger: object) -> str:
    """*trigger* as it describes itself, or its class."""
    try:
        return str(trigger)
    except Exception:
        return type(trigger).__name__
