"""Fire times as a person reads them, in the schedule's own time zone."""

from __future__ import annotations

from datetime import UTC, datetime

from fsa_cli.schedules.schedule import Schedule, upcoming

_NEXT = 3

__all__ = ["format_fire_time"]


def format_fire_time(
    instant: datetime, schedule: Schedule, *, after: datetime | None = None
) -> str:
    """An instant in the schedule's zone; seconds only where there are any.

    Args:
        after: The instant that was named before this one; what they share is left out.
    """
    local = instant.astimezone(schedule.timezone)
    time = "%H:%M:%S" if _has_seconds(schedule) else "%H:%M"
    if after is None:
        return local.strftime(f"%a %Y-%m-%d {time}")
    same_day = after.astimezone(schedule.timezone).date() == local.date()
    return local.strftime(time if same_day else f"%a %d {time}")


def _has_seconds(schedule: Schedule) -> bool:
    instants = upcoming(schedule, datetime.now(UTC), _NEXT)
    return any(instant.second for instant in instants)
