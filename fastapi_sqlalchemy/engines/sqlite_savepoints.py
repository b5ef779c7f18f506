"""SQLite's savepoints inside a transaction, also where one is the first statement of it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import Dialect

__all__ = ["begin_before"]


def begin_before(dialect: Dialect) -> None:
    """Have a transaction begin before the first savepoint of a connection, if it is SQLite's.

    Python's sqlite3 begins one before it writes, not before SAVEPOINT, which is then the outermost
    transaction itself: its RELEASE commits, and no ROLLBACK undoes it. No event listens for it: one
    would cost each statement 10 microseconds.
    https://docs.sqlalchemy.org/en/21/dialects/sqlite.html#serializable-isolation-savepoints-transactional-ddl
    """
    if dialect.name != "sqlite" or "do_savepoint" in vars(dialect):
        return
    do_savepoint = dialect.do_savepoint

    def begin_and_do(connection: Connection, name: str) -> None:
        driver_connection: Any = connection.connection.driver_connection
        if _begins_by_itself(getattr(driver_connection, "_conn", driver_connection)):
            connection.exec_driver_sql("BEGIN")
        do_savepoint(connection, name)

    vars(dialect)["do_savepoint"] = begin_and_do


def _begins_by_itself(sqlite3_connection: Any) -> bool:
    """Whether sqlite3 would begin a transaction, and has not.

    Without a level it is in autocommit, and whoever wants a transaction begins it; so it is where
    its `autocommit` (Python 3.12) says so.
    """
    return (
        getattr(sqlite3_connection, "isolation_level", None) is not None
        and getattr(sqlite3_connection, "autocommit", -1) == -1
        and not sqlite3_connection.in_transaction
    )
