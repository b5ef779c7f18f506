"""Cron text: the meaning of five fields in crontab, and their instants.

The meaning is crontab(5)'s, not APScheduler 3's: weekday 0 and 7 are Sunday, and restricting both
day of month and weekday means either (https://github.com/agronholm/apscheduler/issues/286).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import NamedTuple

from fsa_cli.exceptions import ScheduleError

__all__ = ["MACROS", "Cron"]

MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_DAY = timedelta(days=1)
_LARGEST_CHANGE_S = 3 * 3600
_LONGEST_NUMBER = 1000
# 29 February is the rarest day that there is: 1896 to 1904, 2096 to 2104.
_FARTHEST = timedelta(days=366 * 9)


@dataclass(frozen=True)
class _Field:
    name: str
    first: int
    last: int
    names: dict[str, int]


_FIELDS = (
    _Field("minute", 0, 59, {}),
    _Field("hour", 0, 23, {}),
    _Field("day of month", 1, 31, {}),
    _Field("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    _Field("weekday", 0, 7, {name: number for number, name in enumerate(_WEEKDAYS)}),
)

_FOREIGN = {
    r"\w*#\w*": "the nth weekday",
    r"\d*l|[a-z]{3}l": "the last day",
    r"\d*w|lw": "the nearest weekday",
    r"\?": "any but *",
}


class _Span(NamedTuple):
    """A time in which a zone's offset stays the same.

    Attributes:
        start: In UTC.
        first, last: Its first local time, and the one with which it ends, before the change.
    """

    start: datetime
    offset: timedelta
    first: datetime
    last: datetime


@lru_cache(maxsize=256)
def _spans(zone: tzinfo, day: date) -> tuple[_Span, ...]:
    """The spans that touch *day*, and the one after them, in their order."""
    midnight = datetime.combine(day, time(), UTC)
    start, end = midnight - timedelta(hours=27), midnight + timedelta(hours=51)
    starts = [start]
    offset = _offset_at(zone, start)
    while start < end:
        later = min(start + timedelta(hours=1), end)
        if (changed := _offset_at(zone, later)) != offset:
            low, high = start, later
            while high - low > timedelta(seconds=1):
                middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
                low, high = (low, middle) if _offset_at(zone, middle) != offset else (middle, high)
            starts.append(high)
            offset = changed
        start = later
    spans = []
    for begin, finish in zip(starts, [*starts[1:], end], strict=True):
        offset = _offset_at(zone, begin)
        first, last = ((at + offset).replace(tzinfo=None) for at in (begin, finish))
        spans.append(_Span(begin, offset, first, last))
    return tuple(spans)


def _offset_at(zone: tzinfo, instant: datetime) -> timedelta:
    return instant.astimezone(zone).utcoffset() or timedelta()


@dataclass(frozen=True)
class Cron:
    """One line of cron text in one time zone.

    At a change of the clocks it means what it means to Debian's cron (cron(8)). Where neither
    minute nor hour begins with `*`, it is a time of day: it comes once; in a repeated hour the
    first time only, and when it is skipped as soon as the clocks have gone forward (02:30 at
    03:00). Else it follows the wall clock: every matching minute that occurs, in a repeated hour
    twice. A change of more than three hours sets the clocks right: what it skips does not come.
    """

    text: str
    timezone: tzinfo
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool
    fixed_time: bool

    @classmethod
    def parse(cls, text: str, timezone: tzinfo) -> Cron:
        """Read *text*; raise ScheduleError that names the field and what it may hold."""
        parts = (_expand_macro(text) if text.startswith("@") else text).split()
        if len(parts) != len(_FIELDS):
            hint = (
                'for seconds write "every 10s"'
                if len(parts) > len(_FIELDS)
                else 'minute, hour, day of month, month, weekday: "0 3 * * *" is 03:00 every day'
            )
            fields = "1 field" if len(parts) == 1 else f"{len(parts)} fields"
            raise ScheduleError(f'"{text}" has {fields}, cron text has five', hint=hint)
        minutes, hours, days, months, weekdays = (
            _read_field(field, word, text) for field, word in zip(_FIELDS, parts, strict=True)
        )
        if parts[4].startswith("*") and all(
            min(days) > _LONGEST_MONTH[month - 1] for month in months
        ):
            raise ScheduleError(
                f'"{text}" never comes: there is no day {min(days)} in month {parts[3]}'
            )
        return cls(
            text=text,
            timezone=timezone,
            minutes=tuple(sorted(minutes)),
            hours=tuple(sorted(hours)),
            days=frozenset(days),
            months=frozenset(months),
            weekdays=frozenset(weekday % 7 for weekday in weekdays),
            either_day=not (parts[2].startswith("*") or parts[4].startswith("*")),
            fixed_time=not (parts[0].startswith("*") or parts[1].startswith("*")),
        )

    def next_after(self, instant: datetime) -> datetime | None:
        """The first instant later than *instant*, in UTC; None if none comes within nine years."""
        after = instant.astimezone(UTC)
        # A skipped time can come past midnight, so yesterday may still have one to give.
        day = after.astimezone(self.timezone).date() - _DAY
        farthest = day + _FARTHEST
        best: datetime | None = None
        while day <= farthest:
            if best is not None and day > best.astimezone(self.timezone).date():
                return best
            if day.month not in self.months:
                day = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
                continue
            if self._matches(day):
                candidate = self._first(day, after)
                if candidate is not None and (best is None or candidate < best):
                    best = candidate
            day += _DAY
        return best

    def _matches(self, day: date) -> bool:
        in_month = day.day in self.days
        in_week = day.isoweekday() % 7 in self.weekdays
        return (in_month or in_week) if self.either_day else (in_month and in_week)

    def _first(self, day: date, after: datetime) -> datetime | None:
        """The first instant of *day* later than *after*."""
        offset = self._offset(datetime.combine(day, time()))
        if offset != self._offset(datetime.combine(day + _DAY, time())):
            return self._first_of_change(day, after)
        threshold = (after + offset).replace(tzinfo=None)
        if threshold.date() > day:
            return None
        for local in self._times(day, threshold):
            if local > threshold:
                return (local - offset).replace(tzinfo=UTC)
        return None

    def _times(self, day: date, threshold: datetime) -> Iterator[datetime]:
        first_hour = threshold.hour if threshold.date() == day else 0
        for hour in self.hours:
            if hour >= first_hour:
                for minute in self.minutes:
                    yield datetime.combine(day, time(hour, minute))

    def _first_of_change(self, day: date, after: datetime) -> datetime | None:
        """The first instant later than *after* of a day on which the zone's offset changes."""
        midnight = datetime.combine(day, time())
        begin = midnight
        for span in _spans(self.timezone, day):
            gap_s = (span.first - begin).total_seconds()
            if self.fixed_time and 0 < gap_s <= _LARGEST_CHANGE_S and span.start > after:
                skipped = next(
                    (t for t in self._times(day, begin) if begin <= t < span.first), None
                )
                if skipped is not None:
                    return span.start
            threshold = max(midnight, span.first)
            if self.fixed_time:
                threshold = max(threshold, begin)
            later = (after + span.offset).replace(tzinfo=None)
            last = min(span.last, midnight + _DAY)
            if max(threshold, later) < last:
                for local in self._times(day, max(threshold, later)):
                    if local >= last:
                        break
                    if local >= threshold and local > later:
                        return (local - span.offset).replace(tzinfo=UTC)
            begin = max(begin, span.last)
        return None

    def _offset(self, local: datetime) -> timedelta:
        return local.replace(tzinfo=self.timezone).utcoffset() or timedelta()


def _expand_macro(text: str) -> str:
    if text.lower() == "@reboot":
        raise ScheduleError(
            '"@reboot" is not a time', hint="run it before the scheduler: fsa run-task NAME"
        )
    try:
        return MACROS[text.lower()]
    except KeyError:
        raise ScheduleError(
            f'"{text}" is not known', hint=f"one of {', '.join(sorted(MACROS))}"
        ) from None


def _read_field(field: _Field, word: str, text: str) -> set[int]:
    values: set[int] = set()
    for part in word.split(","):
        values |= _read_part(field, part, text)
    return values


def _read_part(field: _Field, part: str, text: str) -> set[int]:
    def wrong(reason: str, hint: str | None = None) -> ScheduleError:
        return ScheduleError(f'"{text}": {field.name} "{part}" {reason}', hint=hint)

    span, slash, step_text = part.partition("/")
    step = 1
    if max(len(step_text), len(span)) > _LONGEST_NUMBER:  # Python reads no number of 5000 digits
        raise ScheduleError(f'"{text}": {field.name} has a number that is too long')
    if slash:
        if not (step_text.isascii() and step_text.isdigit()) or int(step_text) == 0:
            raise wrong("has a step that is not a number of 1 or more")
        step = int(step_text)
    if span == "*":
        first, last = field.first, field.last
        if field.name == "weekday":
            last = 6
        return set(range(first, last + 1, step))
    first_text, dash, last_text = span.partition("-")
    numbers = []
    for value in (first_text, last_text) if dash else (first_text,):
        number = field.names.get(value.lower(), None)
        if number is None and value.isascii() and value.isdigit():
            number = int(value)
        if number is None:
            for sign, meaning in _FOREIGN.items():
                if re.fullmatch(sign, value.lower()):
                    raise wrong(f"is not crontab's: it has no sign for {meaning}")
            allowed = f"{field.first}-{field.last}"
            names = f" or {next(iter(field.names))}-{list(field.names)[-1]}" if field.names else ""
            raise wrong(f"is not understood: {allowed}{names}, *, a-b, */n, lists with commas")
        if not field.first <= number <= field.last:
            raise wrong(f"is outside {field.first}-{field.last}")
        numbers.append(number)
    first, last = numbers[0], numbers[-1]
    if slash and not dash:
        raise wrong("has a step without a range", f'write "{first_text}-{field.last}/{step}"')
    if dash and field.name == "weekday" and last == 0 and first > 0:
        last = 7
    if first > last:
        lowest, *_, highest = field.names or (str(field.first), str(field.last))
        raise wrong("runs backwards", f'write "{first_text}-{highest},{lowest}-{last_text}"')
    return set(range(first, last + 1, step))
