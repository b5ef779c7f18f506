"""The two sides of a scope, its `Session` and its `AsyncSession`: how each of them ends.

Whatever needs the database runs where nothing can interrupt it and nobody else has to wait: in a
thread of our own, or in a task of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IllegalStateChangeError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from .activity import Activity
from .endings import in_default_thread, in_thread, wait_out

__all__ = ["AsyncSide", "SyncSide"]

logger = logging.getLogger("fastapi_sqlalchemy")

#: How long a ROLLBACK or a close may take, in seconds, before the scope ends without it. A COMMIT
#: is never given up: its outcome would be unknown.
ROLLBACK_TIMEOUT_S = 5.0


class SyncSide(Activity):
    """The `Session` of a scope. In messages the scope is called `who`."""

    __slots__ = ("_given_up", "_is_sqlite")

    def __init__(
        self, session: Session, is_sqlite: bool, on_loop_thread: Callable[[], None]
    ) -> None:
        super().__init__(session, on_loop_thread)
        self._is_sqlite = is_sqlite
        self._given_up = False

    async def flush(self) -> None:
        await self._run(self.session.flush)

    async def commit(self) -> None:
        await self._run(self.session.commit)

    async def roll_back(self, who: object) -> None:
        await self._run_bounded(self.session.rollback, who)

    async def close(self, who: object) -> None:
        await self._run_bounded(self.session.close, who)

    def close_here(self, who: object) -> None:
        """As `close`, in this thread, for as long as it takes."""
        self._finish(self.session.close, who)

    async def _run(self, work: Callable[[], None]) -> None:
        flushes = self.pending
        if self.connection is None:
            if not flushes:
                work()
            else:
                await wait_out(in_default_thread(work))
        elif self._is_sqlite and not self.wrote and not flushes:
            work()
        else:
            await wait_out(in_thread(work))

    async def _run_bounded(self, work: Callable[[], None], who: object) -> None:
        if self._given_up:
            return
        connection = self.connection
        if connection is None or (self._is_sqlite and not self.wrote):
            self._finish(work, who)
            return
        future = in_thread(lambda: self._finish(work, who))
        try:
            await wait_out(future, ROLLBACK_TIMEOUT_S)
        finally:
            if not future.done():
                self._given_up = True
                _log_given_up(who)
                _hang_up(connection)

    def _finish(self, work: Callable[[], None], who: object) -> None:
        """Do `work`, a rollback or a close. If it fails, the server ends what was begun."""
        connection = self.connection
        try:
            work()
        except Exception as exc:
            if not self._given_up:
                _log_failure(who, exc)
            _discard(connection)


class AsyncSide(Activity):
    """The `AsyncSession` of a scope."""

    __slots__ = ("_given_up", "async_session")

    def __init__(self, async_session: AsyncSession) -> None:
        super().__init__(async_session.sync_session)
        self.async_session = async_session
        self._given_up = False

    async def flush(self) -> None:
        await self._run(self.async_session.flush)

    async def commit(self) -> None:
        await self._run(self.async_session.commit)

    async def roll_back(self, who: object) -> None:
        await self._run_bounded(self.async_session.rollback, who)

    async def close(self, who: object) -> None:
        await self._run_bounded(self.async_session.close, who)

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self.connection is None and not self.pending:
            await work()
        else:
            await wait_out(asyncio.create_task(work()))

    async def _run_bounded(
        self, work: Callable[[], Coroutine[Any, Any, None]], who: object
    ) -> None:
        if self._given_up:
            return
        connection = self.connection
        if connection is None:
            await self._finish(work, who)
            return
        task = asyncio.create_task(self._finish(work, who))
        try:
            await wait_out(task, ROLLBACK_TIMEOUT_S)
        finally:
            if not task.done():
                self._given_up = True
                _log_given_up(who)
                task.cancel()
                await _adiscard(connection)

    async def _finish(self, work: Callable[[], Coroutine[Any, Any, None]], who: object) -> None:
        connection = self.connection
        try:
            await work()
        except Exception as exc:
            if not self._given_up:
                _log_failure(who, exc)
            await _adiscard(connection)


def _log_failure(who: object, exc: Exception) -> None:
    if isinstance(exc, IllegalStateChangeError):
        logger.error(
            "%s has ended while another task or thread still uses its session: what that one has "
            "not committed is rolled back. Let it open a scope of its own: `with db():`.",
            who,
        )
    else:
        logger.error("%s: ROLLBACK failed; its connection is discarded", who, exc_info=exc)


def _log_given_up(who: object) -> None:
    logger.error(
        "%s: ROLLBACK has not ended after %g s; the scope ends without it", who, ROLLBACK_TIMEOUT_S
    )


def _discard(connection: Connection | None) -> None:
    """Throw `connection` away, so that its place in the pool is free at once."""
    if connection is not None and not connection.closed:
        try:
            connection.invalidate()
        except Exception:
            logger.error("A connection could not be closed", exc_info=True)


async def _adiscard(connection: Connection | None) -> None:
    """As `_discard`, for an async driver, without waiting for the server.

    Outside of a greenlet SQLAlchemy cuts a connection without a goodbye. psycopg's is closed
    without one anyway, but only in a greenlet.
    """
    if connection is None or connection.dialect.has_terminate:
        _discard(connection)
    else:
        await greenlet_spawn(_discard, connection, _require_await=False)


def _hang_up(connection: Connection) -> None:
    """Shut the socket of `connection` down, so that the thread that waits for an answer gets one.

    The thread then throws the connection away itself: drivers are not made for being closed by
    another thread. Where a driver does not show its socket, the thread goes on waiting.
    """
    try:
        driver_connection: Any = connection.connection.driver_connection
        shown = (
            driver_connection if hasattr(driver_connection, "fileno") else driver_connection._sock
        )
        with socket.socket(fileno=os.dup(shown.fileno())) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)
    except Exception:
        logger.debug("The socket could not be shut down", exc_info=True)
