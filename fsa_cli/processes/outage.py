"""A circuit breaker for the ledger: what happened to the connection, and what a statement did."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import exc
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from fsa_cli.database.connections import driver_message, error_code, is_away
from fsa_cli.database.next_step import disk_is_full
from fsa_cli.ledger.dialects import transient
from fsa_cli.terminal.masking import mask

__all__ = ["Outage", "is_outage"]

logger = logging.getLogger("fsa.scheduler")

T = TypeVar("T")

_TRIED_AGAIN_S = 10.0
_SAID_AGAIN_S = 60.0
# Disk, memory, connections, a server that stops or is read-only after a failover.
_POSTGRESQL_CLASSES = ("08", "53", "57", "58")
_POSTGRESQL_READ_ONLY = "25006"
_MYSQL_AWAY = {3, 28, 1021, 1030, 1037, 1038, 1041, 1114, 1129, 1290, 1792, 1836}
_SQLITE_REFUSES = ("no such", "has no column", "syntax error", "no column")


def is_outage(error: BaseException) -> bool:
    """Whether the database is away, or can serve no statement now. If not, it has refused one.

    A refusal belongs to what was sent: sent again, it is refused again.
    """
    if isinstance(error, exc.TimeoutError) or is_away(error) or transient(error):
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = error_code(error)
    if isinstance(code, str):
        return code[:2] in _POSTGRESQL_CLASSES or code == _POSTGRESQL_READ_ONLY
    if code is not None:
        return code in _MYSQL_AWAY
    original: Any = error.orig
    kind = type(original).__name__
    if type(original).__module__.partition(".")[0] == "sqlite3":
        said = str(original).lower()
        return kind == "OperationalError" and not any(each in said for each in _SQLITE_REFUSES)
    return kind in ("OperationalError", "InterfaceError")


class Outage:
    """Guards the ledger calls of several threads; each outage and each refusal is reported once.

    Args:
        warn: Shows a line to a person.
    """

    def __init__(self, warn: Callable[[str], None], where: str) -> None:
        self._warn = warn
        self._where = where
        self._lock = threading.Lock()
        self._failing: dict[str, float] = {}
        self._refused: dict[str, str] = {}
        self._said_s: dict[str, float] = {}
        self._since_s = 0.0
        self._what = ""

    @property
    def is_open(self) -> bool:
        """Whether something could not reach the ledger lately and has not reached it since."""
        return bool(self._failing)

    @property
    def reason(self) -> str | None:
        """Why the ledger does not serve this process; None if it does."""
        if self._failing:
            return self._what
        return next(iter(self._refused.copy().values()), None)

    def guard(
        self, work: Callable[[], T], refused: Callable[[Exception], T] | None = None
    ) -> T | None:
        """The value of *work*; None if the ledger could not be reached, or has refused.

        Args:
            refused: Decides about an error that belongs to what *work* sent.
        """
        name = _name_of(work)
        try:
            value = work()
        except Exception as error:  # one row must not end the thread for the others
            if is_outage(error):
                self._note_failure(name, error)
                return None
            if refused is not None:
                return refused(error)
            self.note_refusal(work, error)
            return None
        if self._failing or self._refused:
            self._note_success(name)
        return value

    def reached(self, work: Callable[[], bool]) -> bool:
        """As `guard`, for *work* that is not tried again once it was refused.

        False as long as the ledger cannot be reached.
        """

        def refused(error: Exception) -> bool:
            self.note_refusal(work, error)
            return True

        return bool(self.guard(work, refused))

    def note_refusal(self, work: Callable[[], object], error: BaseException) -> None:
        """Report that the database has refused *work*, or that something else failed in it.

        It holds until *work* succeeds; the same is said once a minute at most.
        """
        is_answer = isinstance(error, SQLAlchemyError)
        head = "the ledger's database refuses" if is_answer else "a step failed"
        message = f"{head}: {mask(driver_message(error))}"
        now_s = time.monotonic()
        with self._lock:
            self._refused[_name_of(work)] = message
            said_s = self._said_s.get(message)
            is_new = said_s is None or now_s - said_s > _SAID_AGAIN_S
            if is_new:
                self._said_s[message] = now_s
        if is_new:
            self._warn(f"{message} ({self._where})")
            if not is_answer:
                logger.error("a step of this node failed", exc_info=error)

    def _note_failure(self, name: str, error: BaseException) -> None:
        now_s = time.monotonic()
        with self._lock:
            first = not self._failing
            self._failing[name] = now_s
            if first:
                self._since_s = now_s
                self._what = (
                    "the disk of the ledger's database is full"
                    if disk_is_full(error)
                    else "the ledger cannot be reached"
                )
        if first:
            self._warn(f"{self._what}: {driver_message(error)} ({self._where})")

    def _note_success(self, name: str) -> None:
        """End the outage once all that had failed has succeeded, or is not tried any more."""
        now_s = time.monotonic()
        with self._lock:
            self._refused.pop(name, None)
            left = {
                each: at_s
                for each, at_s in self._failing.items()
                if each != name and now_s - at_s < _TRIED_AGAIN_S
            }
            back = bool(self._failing) and not left
            self._failing = left
        if back:
            self._warn(f"the ledger is back after {now_s - self._since_s:.1f} s")


def _name_of(work: Callable[[], object]) -> str:
    named = work.func if isinstance(work, partial) else work
    return str(getattr(named, "__qualname__", repr(named)))
