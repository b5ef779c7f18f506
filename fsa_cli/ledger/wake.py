"""PostgreSQL's NOTIFY: the COMMIT of a run that is asked for wakes the processes that could run it.

It may wake; polling decides. Behind a pooler in transaction mode there is no LISTEN.
"""

from __future__ import annotations

import contextlib
import hashlib
import select
from collections.abc import Iterator
from typing import Any

from sqlalchemy import text

from fsa_cli.ledger.store import Ledger

__all__ = ["Listening", "can_listen", "listening", "notify", "notifying"]

_DRIVERS = ("psycopg", "psycopg2")


def notifying(ledger: Ledger) -> str:
    """The SQL that wakes them when its transaction commits; empty where there is none."""
    if ledger.engine.dialect.name != "postgresql":
        return ""
    return f"pg_catalog.pg_notify('{_channel(ledger)}', '')"


def can_listen(ledger: Ledger) -> bool:
    """Whether the database and its driver can wake a process."""
    return ledger.engine.dialect.name == "postgresql" and ledger.engine.driver in _DRIVERS


def notify(ledger: Ledger) -> None:
    """Wake whoever listens, now."""
    ledger.at_once(
        lambda connection: connection.execute(text(f"SELECT {notifying(ledger)}")).close()
    )


class Listening:
    """A connection that hears of new runs."""

    def __init__(self, connection: Any, session: int) -> None:
        self._connection = connection
        self._session = session

    def wait(self, within_s: float, or_readable: int | None = None) -> bool:
        """Whether something was heard, *within_s* at most.

        Args:
            or_readable: A descriptor; it is waited no longer once that can be read.

        Raises:
            Exception: The driver's own: the connection is lost.
        """
        poll = select.poll()  # `select` takes no descriptor above 1023, as a web process has
        poll.register(self._connection.fileno(), select.POLLIN)
        if or_readable is not None:
            poll.register(or_readable, select.POLLIN)
        if not poll.poll(within_s * 1000):
            return False
        if hasattr(self._connection, "pgconn"):  # psycopg
            self._connection.pgconn.consume_input()
            heard = False
            while self._connection.pgconn.notifies() is not None:
                heard = True
            return heard
        self._connection.poll()
        heard = bool(self._connection.notifies)
        self._connection.notifies.clear()
        return heard

    def forget(self) -> bool:
        """Hear no more. A pooler would keep the session that listens for its other clients.

        Returns:
            False: the pooler has lent another session for it; ask again.
        """
        cursor = self._connection.cursor()
        cursor.execute("BEGIN")
        is_same = _session_of(cursor) == self._session
        if is_same:
            cursor.execute("UNLISTEN *")
        cursor.execute("COMMIT")
        cursor.close()
        return is_same


@contextlib.contextmanager
def listening(ledger: Ledger) -> Iterator[Listening]:
    """A connection of its own that listens, while inside."""
    pooled = ledger.new_connection()
    try:
        driver_connection = pooled.driver_connection
        pooled.detach()
        driver_connection.autocommit = True  # type: ignore[union-attr]
        cursor = pooled.cursor()
        cursor.execute("BEGIN")
        cursor.execute(f"LISTEN {_channel(ledger)}")
        session = _session_of(cursor)
        cursor.execute("COMMIT")
        cursor.close()
        yield Listening(driver_connection, session)
    finally:
        pooled.close()


def _session_of(cursor: Any) -> int:
    """The server's session that a pooler has lent for this transaction."""
    cursor.execute("SELECT pg_catalog.pg_backend_pid()")
    return int(cursor.fetchone()[0])


def _channel(ledger: Ledger) -> str:
    """Of its namespace; a name of PostgreSQL's has at most 63 bytes."""
    return f"fsa_{hashlib.sha256(ledger.namespace.encode()).hexdigest()[:24]}"
