"""The handles of a scope's `Session` and `AsyncSession`: how each of them ends.

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

from .shielding import in_default_thread, in_thread, wait_shielded
from .tracking import Activity, TrackedSession

__all__ = ["AsyncSessionHandle", "SessionHandle", "SyncSessionHandle"]

logger = logging.getLogger("fastapi_sqlalchemy")

#: How long a ROLLBACK or a close may take, in seconds, before the scope ends without it. A COMMIT
#: is never given up: its outcome would be unknown.
ROLLBACK_TIMEOUT_S = 5.0


class SessionHandle:
    """A session and its `activity`. In messages the scope is called `who`."""

    __slots__ = ("_given_up", "activity", "session")

    def __init__(self, session: Session, activity: Activity) -> None:
        assert isinstance(session, TrackedSession)
        session.fsa_activity = activity
        self.session: Session = session
        self.activity = activity
        self._given_up = False

    @property
    def connection(self) -> Connection | None:
        """What its transaction holds, until that has ended."""
        return self.activity.connection

    @property
    def pending(self) -> bool:
        """Whether a commit would flush something."""
        # `new`, `dirty` and `deleted` would each build a set.
        return not self.session._is_clean()

    @property
    def uncommitted(self) -> bool:
        """Whether something was written, or is waiting to be, that a rollback would lose."""
        return self.activity.wrote or (self.session.in_transaction() and self.pending)

    async def flush(self) -> None:
        """Write what is pending."""
        raise NotImplementedError

    async def commit(self) -> None:
        """Commit; its error is raised."""
        raise NotImplementedError

    async def roll_back(self, who: object) -> None:
        """Roll back, in bounded time; an error is logged."""
        raise NotImplementedError

    async def close(self, who: object) -> None:
        """Close, in bounded time; an error is logged."""
        raise NotImplementedError

    @property
    def in_own_block(self) -> bool:
        """Whether a `with session.begin():` that is still open owns the transaction.

        An open savepoint owns nothing. Never read off `transaction.origin`, which says BEGIN also
        after a finished `begin_nested()`.
        """
        root = self.session.get_transaction()
        block = self.session._trans_context_manager
        while block is not None and block is not root:
            block = block._outer_trans_ctx
        return block is not None


class SyncSessionHandle(SessionHandle):
    """The `Session` of a scope."""

    __slots__ = ("_is_sqlite",)

    def __init__(
        self, session: Session, is_sqlite: bool, on_loop_thread: Callable[[], None]
    ) -> None:
        super().__init__(session, Activity(on_loop_thread))
        self._is_sqlite = is_sqlite

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
                await wait_shielded(in_default_thread(work))
        elif self._is_sqlite and not self.activity.wrote and not flushes:
            work()
        else:
            await wait_shielded(in_thread(work))

    async def _run_bounded(self, work: Callable[[], None], who: object) -> None:
        if self._given_up:
            return
        connection = self.connection
        if connection is None or (self._is_sqlite and not self.activity.wrote):
            self._finish(work, who)
            return
        future = in_thread(lambda: self._finish(work, who))
        try:
            await wait_shielded(future, ROLLBACK_TIMEOUT_S)
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


class AsyncSessionHandle(SessionHandle):
    """The `AsyncSession` of a scope."""

    __slots__ = ("async_session",)

    def __init__(self, async_session: AsyncSession) -> None:
        super().__init__(async_session.sync_session, Activity())
        self.async_session = async_session

    async def flush(self) -> None:
        await self._run(self.async_session.flush)

    async def commit(self) -> None:
        await self._run(self.async_session.commit)

    async def roll_back(self, who: object) -> None:
        await self._run_bounded(self.async_session.rollback, who)

    async def close(self, who: object) -> None:
        if self.session.in_transaction() or self._given_up or not self._closes_alike:
            await self._run_bounded(self.async_session.close, who)
            return
        # It only lets its objects go: a greenlet would take longer than that.
        try:
            self.session.close()
        except Exception as exc:
            _log_failure(who, exc)

    @property
    def _closes_alike(self) -> bool:
        """Whether closing the one session is no more than closing the other."""
        return (
            type(self.async_session).close is AsyncSession.close
            and type(self.session).close is Session.close
        )

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self.connection is None and not self.pending:
            await work()
        else:
            await wait_shielded(asyncio.create_task(work()))

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
            await wait_shielded(task, ROLLBACK_TIMEOUT_S)
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
