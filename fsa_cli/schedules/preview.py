"""Coming fire times for a person, in the task's zone, with the changes of clocks between them."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

from fsa_cli.exceptions import UsageError
from fsa_cli.schedules.schedule import Schedule
from fsa_cli.schedules.timezones import zone_name

__all__ = ["FireCheck", "FireTime", "check_fires", "read_instant", "upcoming_fire_times"]

_FARTHEST = timedelta(days=366 * 9)
_MILLISECOND = timedelta(milliseconds=1)
_YEARS = range(1900, 9900)


@dataclass(frozen=True)
class FireTime:
    """One instant of a task.

    Attributes:
        change: The change of clocks between the instant before and this one, if any.
    """

    task: str
    at: datetime
    schedule: Schedule
    change: str | None

    @property
    def local(self) -> datetime:
        return self.at.astimezone(self.schedule.timezone)


@dataclass(frozen=True)
class FireCheck:
    """Whether a schedule fires at an instant, and when it does before and after."""

    fires: bool
    at: datetime
    before: datetime | None
    after: datetime | None


def upcoming_fire_times(
    tasks: Iterable[tuple[str, Schedule]], now: datetime, count: int
) -> list[FireTime]:
    """The next *count* instants of all *tasks*, in their order."""
    streams = [_stream(name, schedule, now) for name, schedule in tasks]
    return list(islice(heapq.merge(*streams, key=lambda each: (each.at, each.task)), count))


def check_fires(schedule: Schedule, at: datetime) -> FireCheck:
    """Whether *schedule* fires at *at*, to the second."""
    at = at.astimezone(UTC).replace(microsecond=0)
    found = schedule.next_after(at - _MILLISECOND)
    fires = found is not None and found.replace(microsecond=0) == at
    return FireCheck(fires, at, _before(schedule, at), schedule.next_after(at))


def read_instant(text: str, schedule: Schedule) -> datetime:
    """An instant as a person writes it; without an offset it is in the schedule's zone.

    Raises:
        UsageError: It is none.
    """
    try:
        instant = datetime.fromisoformat(re.sub(r"(?<!\s)\s++(?=[+-]|Z$)", "", text.strip()))
    except ValueError:
        raise UsageError(
            f'--at "{text}": expected an instant', hint="2026-10-25T02:30, 2026-10-25T00:30Z"
        ) from None
    if instant.year not in _YEARS:  # nine years on either side are looked at, in any zone
        raise UsageError(f'--at "{text}": expected a year from {_YEARS[0]} to {_YEARS[-1]}')
    return instant if instant.tzinfo else instant.replace(tzinfo=schedule.timezone)


def _stream(name: str, schedule: Schedule, now: datetime) -> Iterator[FireTime]:
    last, instant = now, schedule.next_after(now)
    while instant is not None:
        yield FireTime(name, instant, schedule, _change(schedule, last, instant))
        last, instant = instant, schedule.next_after(instant)


def _change(schedule: Schedule, before: datetime, after: datetime) -> str | None:
    def offset(instant: datetime) -> timedelta:
        return instant.astimezone(schedule.timezone).utcoffset() or timedelta()

    by = offset(after) - offset(before)
    if not by:
        return None
    earlier, later = before, after
    while later - earlier > timedelta(seconds=1):
        middle = earlier + (later - earlier) / 2
        if offset(middle) == offset(before):
            earlier = middle
        else:
            later = middle
    at = later.replace(microsecond=0).astimezone(schedule.timezone)
    minutes = abs(by) // timedelta(minutes=1)
    span = f"{minutes // 60} h" if minutes % 60 == 0 else f"{minutes} min"
    word = "forward" if by > timedelta() else "back"
    return f"clocks go {word} {span} to {at:%a %Y-%m-%d %H:%M} {zone_name(schedule.timezone)}"


def _before(schedule: Schedule, at: datetime) -> datetime | None:
    """The last instant earlier than *at*: a schedule only knows the ones after."""
    back = timedelta(minutes=1)
    while back < _FARTHEST * 2:
        found = schedule.next_after(at - min(back, _FARTHEST))
        if found is not None and found < at:
            while (later := schedule.next_after(found)) is not None and later < at:
                found = later
            return found
        back *= 2
    return None
