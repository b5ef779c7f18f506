"""Connections that cannot be ended in order: seen in use, cut, thrown away, or not to commit."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import greenlet_spawn

from ..engines import aiosqlite_connections
from ..engines.sqlite_transactions import python_begins
from ..engines.transports import transport_of

__all__ = [
    "HANGS_UP",
    "adiscard",
    "discard",
    "hang_up",
    "has_transaction",
    "in_autocommit",
    "is_aborted",
    "is_busy",
    "libpq_status",
    "lost_by",
    "rolls_back_on_timeout",
    "server_pid",
]

logger = logging.getLogger("fastapi_sqlalchemy")

#: The async drivers of which whoever waits goes on at once after `hang_up()`.
HANGS_UP = frozenset(("asyncpg", "psycopg", "psycopg_async", "asyncmy", "aiomysql"))

#: libpq's PQTRANS_IDLE and PQTRANS_INERROR.
_LIBPQ_IDLE = 0
_LIBPQ_IN_ERROR = 3
#: SERVER_STATUS_IN_TRANS of MySQL's protocol.
_MYSQL_IN_TRANSACTION = 1
#: Changed since the snapshot, no room for locks, deadlock.
_MYSQL_LOST = ((1020,), (1206,), (1213,))
_MYSQL_TIMED_OUT = (1205,)
#: A savepoint or a procedure.
_MYSQL_MISSING = (1305,)


def is_busy(connection: Connection | None) -> bool:
    """Whether its driver has a statement under way, as far as the driver shows it.

    psycopg's connections have a lock, SQLAlchemy's adapters of the other async drivers another.
    """
    if connection is None or connection.closed or connection.invalidated:
        return False
    lent: Any = connection.connection
    mutex = getattr(lent.dbapi_connection, "_execute_mutex", None)
    if mutex is not None and mutex.locked():
        return True
    lock = getattr(lent.driver_connection, "lock", None)
    return lock is not None and hasattr(lock, "locked") and bool(lock.locked())


def in_autocommit(connection: Connection | None) -> bool:
    """Whether each of its statements is committed by itself, and no rollback undoes it."""
    return connection is not None and connection._is_autocommit_isolation()


def libpq_status(connection: Connection) -> int | None:
    """What libpq knows of its transaction (PQTRANS_IDLE is 0); None: the driver has no libpq.

    https://www.postgresql.org/docs/current/libpq-status.html#LIBPQ-PQTRANSACTIONSTATUS
    """
    info = getattr(connection.connection.driver_connection, "info", None)
    status = getattr(info, "transaction_status", None)
    return None if status is None else int(status)


def has_transaction(connection: Connection) -> bool | None:
    """Whether the database has begun a transaction, as its driver has heard; None: it hears not."""
    driver_connection: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        return bool(driver_connection.in_transaction)
    if hasattr(driver_connection, "is_in_transaction"):  # asyncpg's
        return bool(driver_connection.is_in_transaction())
    status = libpq_status(connection)
    if status is not None:
        return status != _LIBPQ_IDLE
    flags = getattr(driver_connection, "server_status", None)  # pymysql's, aiomysql's
    return None if flags is None else bool(flags & _MYSQL_IN_TRANSACTION)


def server_pid(driver_connection: Any) -> int | None:
    """PostgreSQL's process that serves it; behind PgBouncer a number that means nothing."""
    if hasattr(driver_connection, "get_server_pid"):  # asyncpg's
        return int(driver_connection.get_server_pid())
    pid = getattr(getattr(driver_connection, "info", None), "backend_pid", None)
    return None if pid is None else int(pid)


def is_aborted(connection: Connection) -> bool:
    """Whether PostgreSQL would answer a COMMIT with a ROLLBACK, and no error.

    libpq knows; with asyncpg the server is asked.
    """
    if connection.dialect.name != "postgresql" or connection.closed or connection.invalidated:
        return False
    status = libpq_status(connection)
    if status is not None:
        return status == _LIBPQ_IN_ERROR
    try:
        connection.exec_driver_sql("SELECT 1")
    except DBAPIError as exc:
        if exc.connection_invalidated:
            raise
        return True
    return False


def lost_by(error: DBAPIError, connection: Connection) -> bool | None:
    """Whether `error` has ended the whole transaction, and a COMMIT would say nothing of it.

    MySQL does that to the victim of a deadlock, and where it is set up so to who has waited for a
    lock for too long: then it is None, and `rolls_back_on_timeout` says it. SQLite does it by
    `INSERT OR ROLLBACK`, by a trigger's RAISE(ROLLBACK), and where the disk is full.
    """
    if connection.closed or connection.invalidated or in_autocommit(connection):
        return False
    if connection.dialect.name in ("mysql", "mariadb"):
        code = error.orig.args[:1] if error.orig is not None else ()
        if code == _MYSQL_TIMED_OUT:
            return None
        # After a deadlock in a flush, it is the savepoint around that which is missing.
        return code in _MYSQL_LOST or (
            code == _MYSQL_MISSING and "SAVEPOINT" in (error.statement or "")
        )
    if connection.dialect.name != "sqlite" or not python_begins(error.statement or ""):
        return False
    driver_connection: Any = connection.connection.driver_connection
    # Without a level, Python has begun nothing before it.
    return driver_connection.isolation_level is not None and not driver_connection.in_transaction


def rolls_back_on_timeout(connection: Connection) -> bool:
    """Whether InnoDB gives up the whole transaction that could not have a lock in time.

    https://mariadb.com/docs/server/server-usage/storage-engines/innodb/innodb-system-variables#innodb_rollback_on_timeout
    """
    if connection.dialect.name not in ("mysql", "mariadb"):
        return False
    found = connection.exec_driver_sql("SHOW VARIABLES LIKE 'innodb_rollback_on_timeout'").first()
    return found is not None and found[1] == "ON"


def discard(connection: Connection | None) -> None:
    """Throw `connection` away, so that its place in the pool is free at once."""
    if connection is not None and not connection.closed:
        try:
            connection.invalidate()
        except Exception:
            logger.error("A connection could not be closed", exc_info=True)


async def adiscard(connection: Connection | None) -> None:
    """As `discard`, for an async driver, without waiting for the server.

    Outside of a greenlet SQLAlchemy cuts a connection without a goodbye, but for that of TLS.
    psycopg's is closed without one anyway, but only in a greenlet.
    """
    if connection is None or connection.closed or connection.invalidated:
        return
    transport = transport_of(connection.connection.driver_connection)
    if connection.dialect.driver == "aiosqlite":
        await aiosqlite_connections.close(connection)
    if connection.dialect.has_terminate:
        discard(connection)
    else:
        await greenlet_spawn(discard, connection, _require_await=False)
    if transport is not None:
        transport.abort()


def hang_up(connection: Connection) -> None:
    """Shut the socket of `connection` down, so that who waits for an answer gets one.

    It then throws the connection away itself: drivers are not made for being closed by another
    thread or task. SQLite has no socket, and ends its statement. Where a driver shows neither, who
    waits goes on waiting. The pool is told first: another thread may give the connection back at
    this very moment, and nobody must be lent it again.
    """
    try:
        lent: Any = connection.connection
        if lent._connection_record is not None:
            lent._connection_record.invalidate(soft=True)
        driver_connection: Any = lent.driver_connection
        if connection.dialect.name == "sqlite":
            getattr(driver_connection, "_conn", driver_connection).interrupt()
            return
        with socket.socket(fileno=os.dup(_file_descriptor(driver_connection))) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)
    except Exception:
        logger.debug("The socket could not be shut down", exc_info=True)


def _file_descriptor(driver_connection: Any) -> int:
    """That of its socket: psycopg's and psycopg2's own, pymysql's, asyncpg's, aiomysql's."""
    if hasattr(driver_connection, "fileno"):
        return int(driver_connection.fileno())
    if hasattr(driver_connection, "_sock"):
        return int(driver_connection._sock.fileno())
    transport: Any = transport_of(driver_connection)
    return int(transport.get_extra_info("socket").fileno())
