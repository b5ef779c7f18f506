"""The ledger cannot be reached: reported once when it begins, and once when it is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from fsa_cli.database.connections import driver_message

__all__ = ["Outage"]

T = TypeVar("T")

_TRIED_AGAIN_S = 10.0


class Outage:
    """Guards the ledger calls of several threads; one of them reports an outage.

    Args:
        warn: Shows a line to a person.
    """

    def __init__(self, warn: Callable[[str], None], where: str) -> None:
        self._warn = warn
        self._where = where
        self._lock = threading.Lock()
        self._failing: dict[str, float] = {}
        self._since_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether something has failed lately that has not succeeded since."""
        return bool(self._failing)

    def guard(self, work: Callable[[], T]) -> T | None:
        """The value of *work*; None if the ledger could not be reached."""
        name = getattr(work, "__qualname__", repr(work))
        try:
            value = work()
        except SQLAlchemyError as exc:
            now_s = time.monotonic()
            with self._lock:
                first = not self._failing
                self._failing[name] = now_s
                self._since_s = now_s if first else self._since_s
            if first:
                self._warn(f"the ledger cannot be reached: {driver_message(exc)} ({self._where})")
            return None
        if self._failing:
            self._note_success(name)
        return value

    def _note_success(self, name: str) -> None:
        """End the outage once all that had failed has succeeded, or is not tried any more."""
        now_s = time.monotonic()
        with self._lock:
            left = {
                each: at_s
                for each, at_s in self._failing.items()
                if each != name and now_s - at_s < _TRIED_AGAIN_S
            }
            back = bool(self._failing) and not left
            self._failing = left
        if back:
            self._warn(f"the ledger is back after {now_s - self._since_s:.1f} s")
