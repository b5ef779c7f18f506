"""Time zones by name, from zoneinfo or pytz."""

from __future__ import annotations

from datetime import UTC, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from fsa_cli.exceptions import ScheduleError, did_you_mean

__all__ = ["parse_timezone", "zone_name"]


def parse_timezone(zone: object) -> tzinfo:
    """A time zone from a name, a zoneinfo or pytz zone, or any other tzinfo; None is UTC."""
    if zone is None:
        return UTC
    if isinstance(zone, str):
        return _zone_of_name(zone)
    if isinstance(zone, tzinfo):
        if hasattr(zone, "localize"):
            # pytz zones answer local mean time in plain arithmetic: use the zone they name.
            name = getattr(zone, "zone", None)
            return _zone_of_name(name) if name else timezone(zone.utcoffset(None) or timedelta())
        return zone
    raise ScheduleError(
        f"a time zone cannot be a {type(zone).__name__}",
        hint='a name ("Europe/Berlin"), a zoneinfo.ZoneInfo or a pytz zone',
    )


def zone_name(zone: tzinfo) -> str:
    """The name of *zone* for people: "Europe/Berlin", "UTC"."""
    return getattr(zone, "key", None) or str(zone)


def _zone_of_name(name: str) -> tzinfo:
    """Slim images have no system zone files: zoneinfo then reads the package tzdata's."""
    if name.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ScheduleError(
            f'there is no time zone "{name}"',
            hint=did_you_mean(name, available_timezones()) or 'for instance "Europe/Berlin"',
        ) from None
