"""The ledger cannot be reached: said once when it begins, and once when it is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from fsa_cli.connections import driver_says

__all__ = ["Trouble"]

T = TypeVar("T")


class Trouble:
    """Several threads meet it; one of them says so.

    Args:
        warn: Puts a line in front of a person.
    """

    def __init__(self, warn: Callable[[str], None], where: str) -> None:
        self._warn = warn
        self._where = where
        self._lock = threading.Lock()
        self._since_s: float | None = None

    @property
    def over(self) -> bool:
        return self._since_s is None

    def met(self, work: Callable[[], T]) -> T | None:
        """What *work* returns; None if the ledger could not be reached."""
        try:
            value = work()
        except SQLAlchemyError as exc:
            with self._lock:
                first, self._since_s = self._since_s is None, self._since_s or time.monotonic()
            if first:
                self._warn(f"the ledger cannot be reached: {driver_says(exc)} ({self._where})")
            return None
        if self._since_s is not None:
            with self._lock:
                since_s, self._since_s = self._since_s, None
            if since_s is not None:
                self._warn(f"the ledger is back after {time.monotonic() - since_s:.1f} s")
        return value
