"""Epoch milliseconds and datetimes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["instant_of", "ms_of"]


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant_of(ms: int) -> datetime:
    """The instant of *ms* since 1970, in UTC; the nearest that there is, of years beyond 1 to 9999.

    A row may hold any number: it must not end the process that reads it.
    """
    try:
        return _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        return (datetime.max if ms > 0 else datetime.min).replace(tzinfo=UTC)


def ms_of(instant: datetime) -> int:
    """Milliseconds since 1970."""
    return (instant - _EPOCH) // timedelta(milliseconds=1)
