"""Connections to a server that takes no writes, which a pool would otherwise keep for ever.

Behind a name or an address that moves with the primary, whoever connects while it moves reaches the
old server. That has come back as a standby: its connections live, and each write on them fails.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import Pool

from .driver_errors import driver_code

__all__ = ["refuses_writes", "renew", "renew_after"]

_POSTGRESQL_READ_ONLY = "25006"
_MYSQL_OPTION = 1290
# PostgreSQL 14 and later tell a client of them, also when they change.
_REPORTED = ("in_hot_standby", "default_transaction_read_only")


def renew_after(error: DBAPIError, connection: Connection) -> None:
    """Have a pool's connections replaced once its server has refused a write as read-only.

    What has met that fails. A transaction that was itself begun as READ ONLY changes nothing.
    """
    if refuses_writes(error.orig) and (
        connection.dialect.name != "postgresql" or _is_read_only(connection)
    ):
        renew(connection.engine.pool)


def renew(pool: Pool) -> None:
    """Have each connection that is open now replaced when `pool` hands it out again.

    That is what SQLAlchemy itself does to a pool one of whose connections turns out to be lost, and
    has no public name. Nothing is closed that is in use.
    """
    pool._invalidate_time = time.time()


def refuses_writes(error: Any) -> bool:
    """Whether a driver's `error` says that the server or the transaction is read-only."""
    code = driver_code(error)
    # 1290 is said of other options too.
    return code == _POSTGRESQL_READ_ONLY or (code == _MYSQL_OPTION and "read-only" in str(error))


def _is_read_only(connection: Connection) -> bool:
    """Whether PostgreSQL has said that the server is a standby, or a new transaction read-only."""
    if connection.closed or connection.invalidated:
        return False
    driver_connection: Any = connection.connection.driver_connection
    if hasattr(driver_connection, "get_settings"):  # asyncpg
        settings = driver_connection.get_settings()
        return any(getattr(settings, name, None) == "on" for name in _REPORTED)
    info = getattr(driver_connection, "info", None)  # psycopg's and psycopg2's
    return info is not None and any(info.parameter_status(name) == "on" for name in _REPORTED)
