"""Connections that cannot be ended in order: seen in use, cut, and thrown away."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.util import greenlet_spawn

from ..engines import aiosqlite_connections

__all__ = ["adiscard", "discard", "hang_up", "is_busy"]

logger = logging.getLogger("fastapi_sqlalchemy")


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


def discard(connection: Connection | None) -> None:
    """Throw `connection` away, so that its place in the pool is free at once."""
    if connection is not None and not connection.closed:
        try:
            connection.invalidate()
        except Exception:
            logger.error("A connection could not be closed", exc_info=True)


async def adiscard(connection: Connection | None) -> None:
    """As `discard`, for an async driver, without waiting for the server.

    Outside of a greenlet SQLAlchemy cuts a connection without a goodbye. psycopg's is closed
    without one anyway, but only in a greenlet.
    """
    if connection is not None and connection.dialect.driver == "aiosqlite":
        await aiosqlite_connections.close(connection)
    if connection is None or connection.dialect.has_terminate:
        discard(connection)
    else:
        await greenlet_spawn(discard, connection, _require_await=False)


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
    transport = getattr(driver_connection, "_transport", None)
    if transport is None:
        transport = driver_connection._writer.transport
    return int(transport.get_extra_info("socket").fileno())
