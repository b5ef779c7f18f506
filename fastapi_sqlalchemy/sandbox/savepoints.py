"""Savepoints that end in another order than they began, on a sandbox's one connection."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, event

__all__ = ["forgive"]


def forgive(connection: Connection) -> None:
    """Let a savepoint of `connection` end although one around it has ended, and it with that.

    The two sessions of one scope are two savepoints here. Whichever ends first takes along what the
    other one began after it; the database then knows nothing of the other's savepoint any more.
    """
    gone: set[str] = set()
    passed_over = False

    def end(connection: Connection, name: str, context: None) -> None:
        nonlocal passed_over
        passed_over = name in gone
        gone.update(_put_last(connection, name))

    def pass_over(
        connection: Connection,
        cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        executemany: bool,
    ) -> tuple[str, Any]:
        nonlocal passed_over
        if passed_over:
            statement, passed_over = "SELECT 1", False
        return statement, parameters

    event.listen(connection, "rollback_savepoint", end)
    event.listen(connection, "release_savepoint", end)
    event.listen(connection, "before_cursor_execute", pass_over, retval=True)


def _put_last(connection: Connection, name: str) -> list[str]:
    """Make a savepoint the last of SQLAlchemy's chain, which ends from there.

    Private, as the chain is: a test holds it.

    Returns:
        The names of those that began after it.
    """
    last: Any = connection._nested_transaction
    later, each = [], last
    while each is not None and each._savepoint != name:
        later.append(each)
        each = each._previous_nested
    if each is None or not later:
        return []
    later[-1]._previous_nested = each._previous_nested
    each._previous_nested = last
    connection._nested_transaction = each
    return [savepoint._savepoint for savepoint in later]
