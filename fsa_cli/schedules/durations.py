"""Durations as a person writes them: `90s`, `15m`, `1h30m`."""

from __future__ import annotations

import re
from datetime import timedelta

from fsa_cli.exceptions import ScheduleError

__all__ = ["duration_s", "kept_ms"]


_UNITS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
}
#: Who has just asked for a run must find its end.
_LEAST_KEPT_S = 60
# Of more digits Python makes no number, and no span of time has so many.
_DURATION = re.compile(r"(?:\d{1,15}\s*[a-z]+\s*)+", re.IGNORECASE)
_DURATION_PART = re.compile(r"(?<!\d)(\d++)\s*([a-z]+)", re.IGNORECASE)


def duration_s(text: str, written: str = "") -> int | None:
    """The seconds of `90s`, `15m`, `1h30m`; None if *text* is no duration, or is 0.

    Args:
        written: Its text in an error, if not *text*.

    Raises:
        ScheduleError: Its unit is unknown.
    """
    if not _DURATION.fullmatch(text):
        return None
    seconds = 0
    for number, unit in _DURATION_PART.findall(text):
        if unit.lower() not in _UNITS:
            raise ScheduleError(f'"{written or text}": "{unit}" is no unit', hint="s, m, h or d")
        seconds += int(number) * _UNITS[unit.lower()]
    return seconds or None


def kept_ms(given: object) -> int | None:
    """The milliseconds for which something is kept: `30d`, or a timedelta; None if it is neither,
    or less than a minute."""
    seconds: float | None = None
    if isinstance(given, timedelta):
        seconds = given.total_seconds()
    elif isinstance(given, str):
        try:
            seconds = duration_s(given.strip())
        except ScheduleError:
            return None
    return None if seconds is None or seconds < _LEAST_KEPT_S else round(seconds * 1000)
