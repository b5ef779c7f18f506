"""Errors that do not pass by the session whose transaction they end.

Those of statements on `session.connection()`, and of rows that are fetched from a server-side
cursor. An engine tells of them; it is asked to where a session first does such a thing, since each
statement of an engine that listens takes longer.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, Protocol

from sqlalchemy import Connection, Dialect, event

__all__ = ["hear_errors"]

#: Where a connection keeps who wants to hear of its errors.
_LISTENERS = "fsa_listeners"

_heard: weakref.WeakSet[Dialect] = weakref.WeakSet()
_lock = threading.Lock()


class Listener(Protocol):
    """An `Activity`."""

    def failed(self, error: Exception, connection: Connection | None = None) -> None: ...


def hear_errors(connection: Connection, listener: Listener) -> None:
    """Tell `listener` of the errors of `connection`, from now on."""
    listeners = vars(connection).get(_LISTENERS)
    if listeners is None:
        listeners = vars(connection)[_LISTENERS] = weakref.WeakSet()
    listeners.add(listener)
    if connection.dialect not in _heard:
        with _lock:
            if connection.dialect not in _heard:
                event.listen(connection.engine, "handle_error", _tell)
                _heard.add(connection.dialect)


def _tell(context: Any) -> None:
    connection = context.connection
    # asyncpg's cursor raises its driver's own errors.
    error = context.sqlalchemy_exception or context.original_exception
    if connection is not None and isinstance(error, Exception):
        for listener in list(vars(connection).get(_LISTENERS, ())):
            listener.failed(error, connection)
