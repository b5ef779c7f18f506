"""One scope: the sessions of one request or one `with db():` block, and how they end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from . import forks
from .activity import ENDED, Activity
from .binding import Binding
from .endings import in_default_thread, in_thread, wait_out
from .exceptions import MissingSessionError

__all__ = ["Scope"]

logger = logging.getLogger("fastapi_sqlalchemy")

#: How long a ROLLBACK or a close may take, in seconds, before the scope ends without it. A COMMIT
#: is never given up: its outcome would be unknown.
ROLLBACK_TIMEOUT_S = 5.0


class Scope:
    """The sessions of one request or block, made when they are first asked for.

    One object, set once in a ContextVar, is seen by every thread and task that starts inside.
    `outer` is the scope that was open before it; `asynchronous` says whether an `AsyncSession` can
    be ended here.
    """

    __slots__ = (
        "_activity",
        "_async_activity",
        "_async_session",
        "_ended",
        "_lock",
        "_process",
        "_session",
        "_session_args",
        "asynchronous",
        "binding",
        "outer",
    )

    def __init__(
        self,
        binding: Binding,
        outer: Scope | None = None,
        *,
        asynchronous: bool,
        session_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.binding = binding
        self.outer = outer
        self.asynchronous = asynchronous
        self._session_args = session_args or {}
        self._session: Session | None = None
        self._async_session: AsyncSession | None = None
        self._activity: Activity | None = None
        self._async_activity: Activity | None = None
        self._lock = threading.Lock()
        self._process = forks.process()
        self._ended = False

    def __str__(self) -> str:
        return "async with db():" if self.asynchronous else "with db():"

    @property
    def ended(self) -> bool:
        """Whether its request or block is over, or was another process's."""
        return self._ended or self._process is not forks.process()

    @property
    def session(self) -> Session:
        """Its `Session`, the same one for every thread and task.

        Raises:
            MissingSessionError: the scope has ended, or was opened before this process forked.
        """
        session = self._session
        if session is None or self.ended:
            with self._open():
                session = self._session
                if session is None:
                    session = self.binding.open_session(self._session_args)
                    self._activity = Activity(session, self._on_loop_thread)
                    self._session = session
        return session

    @property
    def async_session(self) -> AsyncSession:
        """Its `AsyncSession`.

        Raises:
            MissingSessionError: as for `session`, or the scope is a plain `with db():`, which
                could not await the end of an `AsyncSession`.
        """
        session = self._async_session
        if session is None or self.ended:
            if not self.asynchronous:
                raise MissingSessionError(
                    "db.async_session is not available inside a plain `with db():`, which cannot "
                    "await its end. Write `async with db():`."
                )
            with self._open():
                session = self._async_session
                if session is None:
                    session = self.binding.open_async_session(self._session_args)
                    self._async_activity = Activity(session.sync_session)
                    self._async_session = session
        return session

    @property
    def used(self) -> bool:
        """Whether a session was asked for."""
        return self._session is not None or self._async_session is not None

    @property
    def uncommitted(self) -> bool:
        """Whether something was written, or is waiting to be, that the end would roll back."""
        return any(activity.uncommitted for activity in self._activities())

    def end(self, *, commit: bool) -> None:
        """End a plain `with db():`: commit if asked to, and close the session.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the flush or the COMMIT failed; all is rolled back.
        """
        if self._begin_end() and self._activity is not None:
            session = self._activity.session
            try:
                if commit and session.in_transaction():
                    session.commit()
            finally:
                self._activity.ended = True
                _close(session)

    async def aend(self, *, commit: bool) -> None:
        """As `end`, for both sessions; all of it is done whatever is cancelled meanwhile.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: a flush or a COMMIT failed.
            asyncio.CancelledError: this task was cancelled while the sessions were ended.
        """
        if not self._begin_end():
            return
        try:
            if commit:
                await self._commit(
                    [each for each in self._activities() if each.session.in_transaction()]
                )
        finally:
            await self._close()

    async def settle(self, *, commit: bool) -> None:
        """Commit or roll back what the sessions have begun, and keep them usable.

        A transaction whose own `with session.begin():` block is still open is left to that block.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: a flush or a COMMIT failed.
            asyncio.CancelledError: this task was cancelled meanwhile; the work was done.
        """
        begun = [
            activity
            for activity in self._activities()
            if activity.session.in_transaction() and not activity.in_own_block
        ]
        if not begun:
            return
        if commit:
            await self._commit(begun)
            return
        for activity in begun:
            if activity is self._activity:
                await self._run_sync(activity, partial(_roll_back, activity.session), "ROLLBACK")
            else:
                assert self._async_session is not None
                await self._run_async(activity, self._async_session.rollback, "ROLLBACK")

    # -- how it is done ------------------------------------------------------------------------

    def _on_loop_thread(self) -> None:
        """The sync session begins in a thread that runs an event loop: a request says so."""

    def _activities(self) -> list[Activity]:
        return [each for each in (self._activity, self._async_activity) if each is not None]

    def _open(self) -> threading.Lock:
        """The lock under which sessions are made, if any may still be made here."""
        if self._ended:
            raise MissingSessionError(ENDED)
        if self._process is not forks.process():
            raise MissingSessionError(
                "This scope was opened before the process forked, and its connection belongs to "
                "the parent. Open one in the child: `with db():`."
            )
        return self._lock

    def _begin_end(self) -> bool:
        """Let nobody begin anything here any more; False if there is nothing to end."""
        if self._process is not forks.process():
            forks.abandon((self._session, self._async_session))
            self._session = self._async_session = None
            self._activity = self._async_activity = None
            self._ended = True
            return False
        with self._lock:
            if self._ended:
                return False
            self._ended = True
        return True

    async def _commit(self, begun: list[Activity]) -> None:
        """Commit what `begun` holds: flush both first, so that what can fail early does."""
        both = len(begun) == 2
        if both:
            sync, other = begun
            await self._run_sync(sync, sync.session.flush)
            assert self._async_session is not None
            await self._run_async(other, self._async_session.flush)
        first_is_committed = False
        for activity in begun:
            if activity is self._activity:
                first_is_committed = both and activity.wrote
                await self._run_sync(activity, activity.session.commit)
                continue
            assert self._async_session is not None
            try:
                await self._run_async(activity, self._async_session.commit)
            except Exception:
                if first_is_committed:
                    logger.error(
                        "%s wrote through db.session and db.async_session: what db.session wrote "
                        "is committed, the commit of db.async_session failed",
                        self,
                    )
                raise

    async def _close(self) -> None:
        for activity in self._activities():
            activity.ended = True
        try:
            if self._activity is not None:
                close = partial(_close, self._activity.session)
                await self._run_sync(self._activity, close, "ROLLBACK")
        finally:
            if self._async_session is not None and self._async_activity is not None:
                await self._run_async(self._async_activity, self._async_session.close, "ROLLBACK")

    async def _run_sync(
        self, activity: Activity, work: Callable[[], None], bounded: str = ""
    ) -> None:
        """Run `work` of the sync session: in place if it needs no I/O, else in a thread."""
        flushes = not bounded and activity.pending
        if activity.connection is not None:
            if self.binding.is_sqlite and not activity.wrote and not flushes:
                work()
                return
            future = in_thread(work)
        elif flushes:
            future = in_default_thread(work)
        else:
            work()
            return
        try:
            await wait_out(future, ROLLBACK_TIMEOUT_S if bounded else None)
        finally:
            if not future.done():
                self._gave_up(bounded)

    async def _run_async(
        self, activity: Activity, work: Callable[[], Coroutine[Any, Any, None]], bounded: str = ""
    ) -> None:
        """Run `work` of the async session in a task of its own."""
        connection = activity.connection
        if connection is None and (bounded or not activity.pending):
            await work()
            return
        task = asyncio.create_task(work())
        if not bounded:
            await wait_out(task)
            return
        try:
            await wait_out(task, ROLLBACK_TIMEOUT_S)
        except Exception:
            logger.error("%s: %s failed; its connection is discarded", self, bounded, exc_info=True)
            _discard(connection)
        finally:
            if not task.done():
                self._gave_up(bounded)
                task.cancel()
                _discard(connection)

    def _gave_up(self, what: str) -> None:
        logger.error(
            "%s: %s has not ended after %g s; the scope ends without it",
            self,
            what,
            ROLLBACK_TIMEOUT_S,
        )


def _roll_back(session: Session) -> None:
    """Roll `session` back. If that fails nothing is lost: the server does it when it notices."""
    try:
        session.rollback()
    except Exception:
        logger.error("ROLLBACK failed; the connection is discarded", exc_info=True)
        session.invalidate()


def _close(session: Session) -> None:
    """Roll `session` back and close it, as `_roll_back`."""
    try:
        session.close()
    except Exception:
        logger.error("ROLLBACK failed; the connection is discarded", exc_info=True)
        session.invalidate()


def _discard(connection: Connection | None) -> None:
    """Throw `connection` away, so that its place in the pool is free at once."""
    if connection is not None and not connection.closed:
        connection.invalidate()
