"""Times, durations and sizes as a person reads them."""

from __future__ import annotations

from datetime import datetime, timedelta

__all__ = [
    "format_bytes",
    "format_duration",
    "format_elapsed",
    "format_span",
    "format_time",
    "format_times",
]

_MS = timedelta(milliseconds=1)
_LONGEST_MS = timedelta.max // _MS


def format_duration(span: timedelta) -> str:
    """A span in two units at most: `8 h 17 min`, `4 s`."""
    return format_span(span / _MS)


def format_span(span_ms: float) -> str:
    """As `format_duration`. Between instants of rows, which may be any numbers, there may be more
    milliseconds than a `timedelta` can hold."""
    seconds = max(round(span_ms / 1000), 0)
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    parts = []
    for size, unit in units:
        if seconds >= size:
            parts.append(f"{seconds // size} {unit}")
            seconds %= size
    return " ".join(parts[:2]) or "0 s"


def format_elapsed(duration_ms: float) -> str:
    """A measured time: `23 ms`, `4.2 s`, and from a minute on as `format_duration`.

    A row may hold any number: the longest time is as long as a `timedelta` can be.
    """
    duration_ms = min(duration_ms, _LONGEST_MS)
    if duration_ms < 1000:
        return f"{duration_ms:.0f} ms"
    if duration_ms < 60_000:
        return f"{duration_ms / 1000:.1f} s"
    return format_span(duration_ms)


def format_bytes(size_bytes: int | None) -> str:
    """`640 kB`, `1.2 GB`; nothing where it is not known."""
    if size_bytes is None:
        return ""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_time(at: datetime, now: datetime | None) -> str:
    """A time as a person reads it: without the date if that is today's, without this year.

    Args:
        now: None: with the whole date, as for a program.
    """
    if now is None or at.year != now.year:
        return f"{at:%Y-%m-%d %H:%M:%S}"
    return f"{at:{'%H:%M:%S' if at.date() == now.date() else '%m-%d %H:%M:%S'}}"


def format_times(number: int) -> str:
    """How often: `once`, `3 times`."""
    return "once" if number == 1 else f"{number} times"
