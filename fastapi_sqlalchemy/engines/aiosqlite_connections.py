"""The connections of aiosqlite, each a thread: opened whole or not at all, and ended in order."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import anyio
import sqlalchemy
from sqlalchemy import Connection, Dialect

__all__ = ["adapt", "after_reads", "close"]

logger = logging.getLogger("fastapi_sqlalchemy")

_READS = "fsa_has_only_read"

CLOSE_TIMEOUT_S = 1.0
"""How long a connection may take to close before it is only stopped."""


def adapt(dialect: Dialect) -> None:
    """Have connections of `dialect` opened whole or not at all, and none ended that has not begun.

    Not by its event "do_connect": a dialect with an event takes longer for each statement.
    """
    if "connect" in vars(dialect):
        return  # an engine of the user's own, configured again
    connect = dialect.connect

    def connect_whole(*args: Any, **arguments: Any) -> Any:
        opening = partial(_open, dialect.loaded_dbapi.aiosqlite.connect)
        return connect(*args, **{"async_creator_fn": opening, **arguments})

    vars(dialect).update(
        connect=connect_whole,
        do_commit=_unless_idle(dialect.do_commit),
        do_rollback=_unless_idle(dialect.do_rollback),
    )


def _unless_idle(end: Callable[[Any], None]) -> Callable[[Any], None]:
    def end_begun(dbapi_connection: Any) -> None:
        if not _is_idle(dbapi_connection.driver_connection):
            end(dbapi_connection)

    return end_begun


def _is_idle(driver_connection: Any) -> bool:
    """Whether its transaction has only read, and Python has begun none for that."""
    try:
        return getattr(driver_connection, _READS, False) and not driver_connection.in_transaction
    except ValueError:  # closed
        return False


@contextmanager
def after_reads(connection: Connection) -> Iterator[None]:
    """End a transaction of `connection` that has only read, and has no statement under way.

    Python begins one for what writes; a COMMIT or a ROLLBACK where none was begun does nothing, and
    to have the connection's thread do that nothing costs a request a tenth of its time.
    https://docs.python.org/3/library/sqlite3.html#sqlite3.Connection.in_transaction
    """
    driver_connection = connection.connection.driver_connection
    setattr(driver_connection, _READS, True)
    try:
        yield
    finally:
        setattr(driver_connection, _READS, False)


async def _open(connect: Callable[..., Any], *args: Any, **arguments: Any) -> Any:
    """Open a connection; if that is cancelled, wait until it is open, and close it.

    A cancelled `aiosqlite.connect()` never closes what its thread opens (a ResourceWarning from
    Python 3.13 on). The wait lasts as long as opening a file. No driver of a server waits like
    this: one that does not answer would keep the cancelled task for minutes.
    """
    connection = connect(*args, **arguments)
    if sqlalchemy.__version__.startswith("2.0."):
        connection.lock = _UnderWay(connection)
    if hasattr(connection, "stop"):  # since aiosqlite 0.22
        kind: Any = type(connection)
        connection.__class__ = _stopped_once(kind)
    _outlast_loop(connection)
    cancelled = await _wait(opening := asyncio.ensure_future(connection))
    if cancelled is None:
        return opening.result()
    if not opening.cancelled() and opening.exception() is None:
        await _wait(asyncio.ensure_future(connection.close()))
    raise cancelled


async def close(connection: Connection) -> None:
    """Roll back and close it in order, if its statement ends in time.

    Only stopped, it keeps its transaction and locks for as long as somebody keeps the exception of
    a statement of its own (SQLite lets a connection go with its last statement), and its thread
    answers a loop that may be closed by then.
    """
    try:
        driver_connection: Any = connection.connection.driver_connection
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await driver_connection.rollback()
            await driver_connection.close()
    except Exception:
        logger.debug("The connection could not be closed in order", exc_info=True)


def _outlast_loop(connection: Any) -> None:
    """Have its thread go on where the loop that it answers is closed.

    A statement that cannot be interrupted, or `stop()`, which nobody awaits, may be answered that
    late. The thread would end with "Event loop is closed", and leave its connection open.
    """
    # Before aiosqlite 0.22 the connection is the thread.
    thread: Any = getattr(connection, "_thread", connection)
    answer = thread.run if thread is connection else partial(thread._target, *thread._args)
    questions, known = connection._tx, weakref.ref(connection)

    def is_over() -> bool:
        connection = known()
        return questions.empty() and (connection is None or connection._connection is None)

    def run() -> None:
        while True:
            try:
                answer()
                break
            except RuntimeError:
                if is_over():
                    break

    thread.run = run
    thread.daemon = True  # as in SQLAlchemy's own connect()


@cache
def _stopped_once(kind: type) -> type:
    """Connections whose second `stop()` waits for nothing: their thread may have ended by then.

    SQLAlchemy stops a connection whose shielded `close()` was cancelled. `close()` stops it too,
    and would wait for good where the end of the loop cancels it.
    """

    def stop(self: Any) -> Any:
        return kind.stop(self) if self._running else None  # type: ignore[attr-defined]

    return type(kind.__name__, (kind,), {"stop": stop})


class _UnderWay:
    """Whether aiosqlite works for somebody: the adapter of SQLAlchemy 2.0 has no lock to ask."""

    def __init__(self, connection: Any) -> None:
        self._execute = connection._execute
        self._asked = 0
        connection._execute = self

    async def __call__(self, *args: Any, **arguments: Any) -> Any:
        self._asked += 1
        try:
            return await self._execute(*args, **arguments)
        finally:
            self._asked -= 1

    def locked(self) -> bool:
        return self._asked > 0


async def _wait(future: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait until `future` is done; return the cancellation that arrived meanwhile, if any."""
    cancelled = None
    with anyio.CancelScope(shield=True):
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as exc:
                cancelled = exc
    return cancelled
