"""A schedule in words: `at 03:00 on Monday to Friday` for `0 3 * * 1-5`."""

from __future__ import annotations

import re

from fsa_cli.schedules.cron import MACROS

__all__ = ["in_words"]

_WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("", "January", "February", "March", "April", "May", "June", "July", "August"),
    *("September", "October", "November", "December"),
)
_STEP = re.compile(r"\*/(\d+)")
_MOST_TIMES = 4


def in_words(text: str) -> str | None:
    """Cron text as one would say it; None of what says it itself, as `every 15m` does."""
    fields = MACROS.get(text.strip().lower(), text).split()
    if len(fields) != 5:
        return None
    minute, hour, day, month, weekday = (field.lower() for field in fields)
    try:
        parts = [_times(minute, hour), *_days(day, weekday), *_months(month)]
    except (ValueError, IndexError):
        return None
    return " ".join(parts)


def _times(minute: str, hour: str) -> str:
    hours = hour.split(",")
    if minute.isdigit() and all(each.isdigit() for each in hours) and len(hours) <= _MOST_TIMES:
        return "at " + ", ".join(f"{int(each):02}:{int(minute):02}" for each in hours)
    if minute.isdigit():
        past = f"at :{int(minute):02}"
        if hour == "*":
            return f"each hour {past}"
        if step := _STEP.fullmatch(hour):
            return f"every {step[1]} hours {past}"
        return f"{past} of each hour {_list(hour)}"
    if minute == "*":
        often = "each minute"
    elif step := _STEP.fullmatch(minute):
        often = f"every {step[1]} minutes"
    else:
        often = f"at the minutes {_list(minute)}"
    if hour == "*":
        return often
    if step := _STEP.fullmatch(hour):
        return f"{often} of every {step[1]} hours"
    return f"{often} of the hours {_list(hour)}"


def _days(day: str, weekday: str) -> list[str]:
    said = []
    if not day.startswith("*"):
        said.append(f"on day {_list(day)}")
    elif step := _STEP.fullmatch(day):
        said.append(f"on every {step[1]} days of the month")
    if not weekday.startswith("*"):
        said.append(("or " if said else "") + f"on {_list(weekday, _WEEKDAYS)}")
    return said


def _months(month: str) -> list[str]:
    if month == "*":
        return []
    return [f"in {_list(month, _MONTHS)}"]


def _list(field: str, names: tuple[str, ...] = ()) -> str:
    """`1-5,7` as `1 to 5, 7`, with names where there are any."""

    def named(text: str) -> str:
        if not names:
            if not text.isdigit():
                raise ValueError(text)
            return text
        for name in names:
            if name and name[:3].lower() == text:
                return name
        return names[int(text)]

    return ", ".join(
        " to ".join(named(end) for end in part.split("-")) for part in field.split(",")
    )
