"""The connections of aiosqlite, each a thread: opened whole or not at all, and ended in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import sqlalchemy
from sqlalchemy import Connection, Dialect
from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["close", "open_whole"]

logger = logging.getLogger("fastapi_sqlalchemy")

CLOSE_TIMEOUT_S = 1.0
"""How long a connection may take to close before it is only stopped."""


def open_whole(
    dialect: Dialect, record: ConnectionPoolEntry, args: Any, arguments: dict[str, Any]
) -> None:
    arguments.setdefault("async_creator_fn", partial(_open, dialect.loaded_dbapi.aiosqlite.connect))


async def _open(connect: Callable[..., Any], *args: Any, **arguments: Any) -> Any:
    """Open a connection; if that is cancelled, wait until it is open, and close it.

    A cancelled `aiosqlite.connect()` never closes what its thread opens (a ResourceWarning from
    Python 3.13 on). The wait lasts as long as opening a file. No driver of a server waits like
    this: one that does not answer would keep the cancelled task for minutes.
    """
    connection = connect(*args, **arguments)
    connection._tx = _Questions(connection._tx)
    if sqlalchemy.__version__.startswith("2.0."):
        connection.lock = _UnderWay(connection)
    # As in SQLAlchemy's own connect(). Before aiosqlite 0.22 the connection is the thread.
    getattr(connection, "_thread", connection).daemon = True
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


class _Questions:
    """What a connection's thread is asked, so that it outlasts a loop that ends before it answers.

    A statement that cannot be interrupted, or `stop()`, which nobody awaits, may be answered when
    the loop is closed. aiosqlite's thread would end there with "Event loop is closed", and leave
    its connection open.
    """

    __slots__ = ("_queue", "get")

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self.get = queue.get  # before aiosqlite 0.22 the thread reads here

    def put_nowait(self, question: Any) -> None:
        if isinstance(question, tuple) and question[0] is not None:
            question = (_Answer(question[0]), question[1])
        self._queue.put_nowait(question)


class _Answer:
    """Stands for a future, and for its loop."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self._future = future

    def get_loop(self) -> _Answer:
        return self

    def call_soon_threadsafe(self, give: Callable[..., None], _: object, answer: Any) -> None:
        loop = self._future.get_loop()
        try:
            loop.call_soon_threadsafe(give, self._future, answer)
        except RuntimeError:
            if not loop.is_closed():
                raise


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
