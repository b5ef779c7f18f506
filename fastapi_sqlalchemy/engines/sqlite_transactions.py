"""SQLite's transactions begin before what Python's sqlite3 takes for no write, and end whole.

It begins one before INSERT, UPDATE, DELETE and REPLACE. A SAVEPOINT that comes first is then the
outermost transaction itself, and its RELEASE commits; `WITH ... INSERT` is committed at once. No
ROLLBACK undoes either. CREATE TABLE and its like stay as they are: committed by themselves.
https://docs.sqlalchemy.org/en/21/dialects/sqlite.html#serializable-isolation-savepoints-transactional-ddl
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import Dialect

__all__ = ["begin_in_time", "python_begins"]

# What SELECT, INSERT and the like begin with is none of these.
_MAY_BE_WITH = frozenset("Ww/- \t\r\n")
# Comments may stand before a statement: listeners to `before_cursor_execute` put a trace there.
_BEFORE = r"(?:\s|--[^\n]*+\n|/\*(?>.*?\*/))*+"
_WRITING = r"\b(?:insert|update|delete|replace)\b"
_WRITES = re.compile(rf"{_BEFORE}with\b.*{_WRITING}", re.I | re.S)
_BEGINS = re.compile(rf"{_BEFORE}{_WRITING}", re.I | re.S)


def python_begins(statement: str) -> bool:
    """Whether Python begins a transaction before `statement`."""
    return _BEGINS.match(statement) is not None


def begin_in_time(dialect: Dialect) -> None:
    """Have a transaction begin before a savepoint and before `WITH ... INSERT`, if it is SQLite's.

    No event listens for them: one would cost each statement 10 microseconds.
    """
    if dialect.name != "sqlite" or "do_savepoint" in vars(dialect):
        return
    do_savepoint = dialect.do_savepoint

    def begin_and_save(connection: Connection, name: str) -> None:
        if _begins_by_itself(connection):
            connection.exec_driver_sql("BEGIN")
        do_savepoint(connection, name)

    vars(dialect).update(
        do_savepoint=begin_and_save,
        do_execute=_begin_and(dialect.do_execute),
        do_executemany=_begin_and(dialect.do_executemany),
        do_commit=_whole(dialect),
    )


def _whole(dialect: Dialect) -> Callable[[Any], None]:
    """A COMMIT after which no transaction is open, whether or not it has failed.

    SQLite keeps one whose COMMIT was refused ("database is locked": somebody reads), and SQLAlchemy
    gives its connection back to the pool as it is: whoever has it next would commit that too.
    https://www.sqlite.org/lang_transaction.html
    """
    commit, roll_back = dialect.do_commit, dialect.do_rollback

    def commit_or_roll_back(dbapi_connection: Any) -> None:
        try:
            commit(dbapi_connection)
        except Exception:
            with contextlib.suppress(Exception):
                roll_back(dbapi_connection)
            raise

    return commit_or_roll_back


def _begin_and(execute: Callable[..., None]) -> Callable[..., None]:
    def begin_and_execute(
        cursor: Any, statement: str, parameters: Any, context: Any = None
    ) -> None:
        if (
            statement[:1] in _MAY_BE_WITH
            and _WRITES.match(statement)
            and context is not None
            and _begins_by_itself(context.root_connection)
        ):
            cursor.execute("BEGIN")
        execute(cursor, statement, parameters, context)

    return begin_and_execute


def _begins_by_itself(connection: Connection) -> bool:
    """Whether sqlite3 would begin a transaction, and has not.

    Without a level it is in autocommit, and whoever wants a transaction begins it; so it is where
    its `autocommit` (Python 3.12) says so.
    """
    driver_connection: Any = connection.connection.driver_connection
    sqlite3_connection = getattr(driver_connection, "_conn", driver_connection)
    return (
        getattr(sqlite3_connection, "isolation_level", None) is not None
        and getattr(sqlite3_connection, "autocommit", -1) == -1
        and not sqlite3_connection.in_transaction
    )
