"""What somebody meant who has written a schedule as other programs have it."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import time, timedelta

from fsa_cli.schedules.cron import MACROS

__all__ = ["suggest"]

_LONGEST = 200  # a schedule is a line; what is longer is something else
_ZONE = re.compile(r"(?:CRON_)?TZ=[\"']?([\w/+-]+)[\"']?\s+(\S.*)", re.I)
_EVERY = re.compile(r"(?:@?every\s+)?(\d+\s*[a-z]+(?:\s*\d+\s*[a-z]+)*)", re.I)
_WORD = re.compile(
    r"(?:@?every\s+)?(minute|hour|day|week|month|year|hourly|daily|weekly|monthly|yearly)", re.I
)
_CLOCK = re.compile(r"(?:@?(?:daily|every\s+day)\s+)?(?:at\s+)?(\d{1,2}):(\d\d)", re.I)
_AWS = re.compile(r"(?:cron|rate)\((.*)\)", re.I)
_NAME = re.compile(
    r"\b(jan(?=uary)|feb(?=ruary)|mar(?=ch)|apr(?=il)|jun(?=e)|jul(?=y)|aug(?=ust)|sep(?=tember)"
    r"|oct(?=ober)|nov(?=ember)|dec(?=ember)|sun(?=day)|mon(?=day)|tue(?=sday)|wed(?=nesday)"
    r"|thu(?=rsday)|fri(?=day)|sat(?=urday))[a-z]+",
    re.I,
)
_CRON_WORD = re.compile(r"[\d*?/,-]+|[\d*?/,a-z-]*(?:[a-z]{3}|[\dlw#]+)", re.I)
_WORDS = {
    **dict.fromkeys(("hour", "hourly"), "@hourly"),
    **dict.fromkeys(("day", "daily"), "@daily"),
    **dict.fromkeys(("week", "weekly"), "@weekly"),
    **dict.fromkeys(("month", "monthly"), "@monthly"),
    **dict.fromkeys(("year", "yearly"), "@yearly"),
    "minute": "every 1m",
}


#: The fields of a `celery.schedules.crontab` as they were written.
_CELERYS = (
    *("_orig_minute", "_orig_hour"),
    *("_orig_day_of_month", "_orig_month_of_year", "_orig_day_of_week"),
)


def suggest(schedule: object, reads: Callable[[str], bool]) -> str | None:
    """A hint with what to write in its place; None where nobody can tell.

    Args:
        reads: Whether a text is a schedule.
    """
    if isinstance(schedule, timedelta):
        seconds = int(schedule.total_seconds())
        text = f"{seconds}s" if seconds % 60 else f"{seconds // 60}m"
        return f'write "every {text}"' if seconds > 0 else None
    if isinstance(schedule, time):
        return f'write "{schedule.minute} {schedule.hour} * * *"'
    if isinstance(schedule, int) and not isinstance(schedule, bool):
        return f'seconds? write "every {schedule}s"' if schedule > 0 else None
    if all(hasattr(schedule, field) for field in _CELERYS):
        schedule = " ".join(str(getattr(schedule, field)) for field in _CELERYS)
    if not isinstance(schedule, str) or len(schedule) > _LONGEST:
        return None
    for meant, more in _meant(schedule.strip()):
        if reads(meant):
            return f'write "{meant}"{more}'
    return None


def _meant(text: str) -> list[tuple[str, str]]:
    """Texts that may be meant, and what else is to be said of each."""
    if found := _ZONE.fullmatch(text):
        inner = _meant(found[2]) if not found[2].startswith("TZ=") else []
        zone = f', and timezone="{found[1]}"'
        return [(found[2], zone), *((meant, zone + more) for meant, more in inner)]
    if found := _EVERY.fullmatch(text):
        return [(f"every {found[1]}", "")]
    if found := _WORD.fullmatch(text):
        return [(_WORDS[found[1].lower()], "")]
    if found := _CLOCK.fullmatch(text):
        return [(f"{int(found[2])} {int(found[1])} * * *", "")]
    words = _NAME.sub(lambda name: name[1].lower(), text).split()
    if found := _AWS.fullmatch(text):
        inside = found[1].split()
        return _cron([*inside[:5]], "") if len(inside) == 6 else _meant(found[1])
    if words and words[0].lower() in MACROS:
        return [(words[0].lower(), ": what runs is the task itself")]
    count = next((n for n, word in enumerate(words) if not _CRON_WORD.fullmatch(word)), len(words))
    if len(words) in (6, 7) and count == len(words):
        seconds = "" if words[0] == "0" else f' (its seconds, "{words[0]}", left out: "every 10s")'
        return _cron(words[1:6], seconds)
    if len(words) > 5 and count >= 5:
        return _cron(words[:5], ": what runs is the task itself")
    return _cron(words, "")


def _cron(words: list[str], more: str) -> list[tuple[str, str]]:
    meant = " ".join("*" if word == "?" else word for word in words)
    if "?" in words and any(letter.isdigit() for letter in words[-1]):
        more += ": here 1 is Monday, in Quartz Sunday"
    return [(meant, more)]
