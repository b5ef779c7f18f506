"""The handles of a scope's `Session` and `AsyncSession`: how each of them ends.

Whatever needs the database runs where nothing can interrupt it and nobody else has to wait: in a
thread of our own, or in a task of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IllegalStateChangeError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.orm.session import SessionTransactionState
from sqlalchemy.util import greenlet_spawn

from ..engines.aiosqlite_connections import after_reads
from .activity import Activity, task_or_thread
from .connections import HANGS_UP, adiscard, discard, hang_up, in_autocommit, is_busy
from .deadlines import Deadlines
from .shielding import in_default_thread, in_thread, start, wait_shielded
from .tracking import TrackedSession

__all__ = ["AsyncSessionHandle", "SessionHandle", "SyncSessionHandle"]

logger = logging.getLogger("fastapi_sqlalchemy")

#: How long a ROLLBACK or a close may take, in seconds, before the scope ends without it. A COMMIT
#: is never given up: its outcome would be unknown.
ROLLBACK_TIMEOUT_S = 5.0
#: How long whoever still uses a session has, in seconds, to notice that its connection is gone.
LEAVE_TIMEOUT_S = 1.0
_POLL_S = 0.002


class SessionHandle:
    """A session and its `activity`. In messages the scope is called `who`."""

    __slots__ = ("_given_up", "activity", "failure", "session")

    def __init__(self, session: Session, activity: Activity) -> None:
        assert isinstance(session, TrackedSession)
        early: Activity | None = vars(session).get("fsa_activity")
        if early is not None:  # its class has executed something when it was made
            early.owner, early.on_loop_thread = activity.owner, activity.on_loop_thread
            activity = early
        session.fsa_activity = activity
        self.session: Session = session
        self.activity = activity
        self.failure: Exception | None = None  # the first of a rollback or a close: it was logged
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
        if self.activity.has_written and (self.in_sandbox or not in_autocommit(self.connection)):
            return True
        if not (self.session.in_transaction() and self.pending):
            return False
        session = self.session
        if session._new or session._deleted:
            return True
        try:
            # An object counts as dirty also where it was given the values that it has.
            return any(map(session.is_modified, session.dirty))
        except Exception:
            return True  # a value that cannot be compared, or another thread changes objects

    @property
    def user(self) -> str | None:
        """Who has a statement under way on it at this moment, other than this task or thread."""
        connection, user = self.activity.connection, self.activity.user
        if connection is None:
            return None
        if user is not None and not self._is_mine(user):
            return _describe(user)
        if is_busy(connection):
            return "another task or thread"
        return None

    @property
    def is_in_use(self) -> bool:
        """Whether another task or thread has a statement under way, or waits for a connection."""
        user = self.activity.user
        return self.user is not None or (user is not None and not self._is_mine(user))

    def _is_mine(self, user: asyncio.Task[Any] | int) -> bool:
        if isinstance(user, asyncio.Task):
            return user.done() or user is _current_task()
        return user == threading.get_ident()

    @property
    def in_sandbox(self) -> bool:
        """Whether its connection is a sandbox's, which outlives it."""
        return isinstance(self.session.bind, Connection)

    async def abandon(self, who: object) -> None:
        """End it while its `user` is at it: nothing more is sent, and its place is free soon."""
        _log_still_used(who, self.user or "another task or thread")
        await wait_shielded(start(self._abandon()))

    async def _abandon(self) -> None:
        for connection in self._connections():
            hang_up(connection)
        await self._until_left()
        for connection in self._connections():
            await adiscard(connection)
        await self._let_go()

    async def _until_left(self) -> None:
        """Wait until the one that has lost its connection has noticed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (ROLLBACK_TIMEOUT_S if self.in_sandbox else LEAVE_TIMEOUT_S)
        while self.user is not None and loop.time() < deadline:
            await asyncio.sleep(_POLL_S)

    async def _let_go(self) -> None:
        """Close the session, whose connections are gone."""
        raise NotImplementedError

    def _connections(self) -> list[Connection]:
        """Those that its transaction holds, but for a sandbox's."""
        transaction = self.session.get_transaction()
        if transaction is None:
            return []
        held = list(transaction._connections.values())
        own = {id(each[0]): each[0] for each in held if each[0] is not self.session.bind}
        return list(own.values())

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

    async def undo(self, who: object) -> None:
        """Roll back what was written; objects that were only read stay loaded.

        A rollback would expire them, and an async session cannot load them again by itself: the
        background task of an error response still reads them. Nor is it a COMMIT: what listens to
        one may write.
        """
        if self.pending or self.activity.may_have_written or self.user is not None:
            await self.roll_back(who)
        else:
            await self._run_unused(self._end_transactions, who)

    async def end_reads(self, who: object) -> None:
        """End a transaction that has only read; its objects stay loaded, no event says COMMIT.

        The connection goes back to the pool, and the next statement takes one again.
        """
        activity = self.activity
        if (
            activity.user is None  # whom the driver would show reads a result, or is `unsure`
            and activity.connection is not None
            and activity.only_reads
            and self.session._is_clean()
            and not self.in_own_block
            and not self.in_sandbox
        ):
            activity.user = asyncio.current_task()
            activity.takes_turns = True  # a task of the request's may be at it next
            try:
                await self._end_reads(who)
            finally:
                activity.takes_turns = False
                activity.leave()

    async def _end_reads(self, who: object) -> None:
        await self._run_unused(self._end_transactions, who)

    async def _run_unused(self, work: Callable[[], Any], who: object) -> None:
        """Do `work`, a rollback or a close, in bounded time; an error is logged."""
        raise NotImplementedError

    def _end_transactions(self) -> Any:
        """End its transaction and the savepoints in it, as `Session.close()` does.

        That rolls back twice: what it ends itself is reset by the pool once more.
        """
        session = self.session
        while (transaction := session._transaction) is not None:
            if transaction._parent is None:
                for connection, _, _, is_lent in set(transaction._connections.values()):
                    if is_lent:
                        connection.close()
            transaction.close()

    @property
    def is_committed(self) -> bool:
        """Whether it is committed, and what listens to that has failed: no ROLLBACK is possible."""
        transaction = self.session.get_transaction()
        return transaction is not None and transaction._state is SessionTransactionState.COMMITTED

    @property
    def in_own_block(self) -> bool:
        """Whether a `with session.begin():` that is still open owns the transaction.

        An open savepoint owns nothing. Never read off `transaction.origin`, which says BEGIN also
        after a finished `begin_nested()`.
        """
        block = self.session._trans_context_manager
        if block is None:
            return False
        root = self.session.get_transaction()
        while block is not None and block is not root:
            block = block._outer_trans_ctx
        return block is not None


class SyncSessionHandle(SessionHandle):
    """The `Session` of a scope."""

    __slots__ = ("_is_sqlite",)

    def __init__(
        self, session: Session, owner: object, is_sqlite: bool, on_loop_thread: Callable[[], None]
    ) -> None:
        super().__init__(session, Activity(owner, on_loop_thread))
        self._is_sqlite = is_sqlite

    async def flush(self) -> None:
        await self._run(self.session.flush)

    async def commit(self) -> None:
        await self._run(self.session.commit)

    async def roll_back(self, who: object) -> None:
        work = self._end_transactions if self.is_committed else self.session.rollback
        await self._run_bounded(work, who)

    async def close(self, who: object) -> None:
        await self._run_bounded(self.session.close, who)

    def _abandon_here(self, who: object) -> None:
        """As `abandon`, in this thread."""
        _log_still_used(who, self.user or "another task or thread")
        for connection in self._connections():
            hang_up(connection)
        deadline = time.monotonic() + (ROLLBACK_TIMEOUT_S if self.in_sandbox else LEAVE_TIMEOUT_S)
        while self.user is not None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        self._close_hard()

    async def _let_go(self) -> None:
        await wait_shielded(in_thread(self._close_hard))

    def _close_hard(self) -> None:
        for connection in self._connections():
            discard(connection)
        try:
            self.session.close()
        except Exception:
            logger.debug("The session could not be closed", exc_info=True)

    def close_here(self, who: object) -> None:
        """As `close`, in this thread, for as long as it takes."""
        if self.user is not None:
            self._abandon_here(who)
            return
        self._finish(self.session.close, who)

    async def _run(self, work: Callable[[], None]) -> None:
        waits = self.pending or self.activity.user is not None or not self._ends_alike
        if self.connection is None:
            if not waits:
                work()
            else:
                await wait_shielded(in_default_thread(work))
        elif self._is_sqlite and not self.activity.wrote and not waits:
            work()
        else:
            await wait_shielded(in_thread(work))

    async def _run_bounded(self, work: Callable[[], None], who: object) -> None:
        if self._given_up:
            return
        if self.user is not None:
            await self.abandon(who)
            return
        await self._run_unused(work, who)

    async def _run_unused(self, work: Callable[[], None], who: object) -> None:
        connection = self.connection
        if self._ends_alike and (
            connection is None or (self._is_sqlite and not self.activity.wrote)
        ):
            self._finish(work, who)
            return
        run = in_thread if connection is not None else in_default_thread
        future = run(lambda: self._finish(work, who))
        try:
            await wait_shielded(future, ROLLBACK_TIMEOUT_S)
        finally:
            if not future.done():
                self._given_up = True
                _log_given_up(who)
                if connection is not None:
                    hang_up(connection)

    def _finish(self, work: Callable[[], None], who: object) -> None:
        """Do `work`, a rollback or a close. If it fails, the server ends what was begun."""
        connection = self.connection
        self.activity.ender = task_or_thread()
        try:
            work()
            if self.activity.ended and self.connection is not None:
                self._end_transactions()  # a close() of its class has executed something after all
        except Exception as exc:
            if not self._given_up:
                _log_failure(who, exc)
            discard(connection)
        finally:
            self.activity.ender = None

    @property
    def _ends_alike(self) -> bool:
        return isinstance(self.session, TrackedSession) and self.session.fsa_ends_alike


class AsyncSessionHandle(SessionHandle):
    """The `AsyncSession` of a scope."""

    __slots__ = ("async_session",)

    def __init__(self, async_session: AsyncSession, owner: object) -> None:
        super().__init__(async_session.sync_session, Activity(owner))
        self.async_session = async_session

    async def flush(self) -> None:
        await self._run(self.async_session.flush)

    async def commit(self) -> None:
        await self._run(self.async_session.commit)

    async def roll_back(self, who: object) -> None:
        work = self._end_transactions if self.is_committed else self.async_session.rollback
        await self._run_bounded(work, who)

    def _end_transactions(self) -> Coroutine[Any, Any, None]:
        return greenlet_spawn(super()._end_transactions)

    async def close(self, who: object) -> None:
        if self.closes_at_once:
            self.close_at_once(who)
        else:
            await self._run_bounded(self.async_session.close, who)

    @property
    def closes_at_once(self) -> bool:
        """Whether closing it only lets its objects go: a greenlet would take longer than that."""
        return (
            self.session._transaction is None
            and not self._given_up
            and type(self.async_session).close is AsyncSession.close
            and type(self.session).close is Session.close
        )

    @property
    def closes_alike(self) -> bool:
        """Whether no `close` or `rollback` of its classes executes something."""
        async_class = type(self.async_session)
        return (
            async_class.close is AsyncSession.close
            and async_class.rollback is AsyncSession.rollback
            and isinstance(self.session, TrackedSession)
            and self.session.fsa_ends_alike
        )

    def close_at_once(self, who: object) -> None:
        """As `close`, where it `closes_at_once`."""
        try:
            self.session.close()
        except Exception as exc:
            _log_failure(who, exc)

    async def _let_go(self) -> None:
        try:
            await self.async_session.close()
        except Exception:
            logger.debug("The session could not be closed", exc_info=True)

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self.connection is None and not self.pending and self.activity.user is None:
            await work()
        else:
            await wait_shielded(start(work()))

    async def _run_bounded(
        self, work: Callable[[], Coroutine[Any, Any, None]], who: object
    ) -> None:
        if self._given_up:
            return
        if self.user is not None:
            await self.abandon(who)
            return
        await self._run_unused(work, who)

    async def _run_unused(self, work: Callable[[], Coroutine[Any, Any, None]], who: object) -> None:
        connection = self.activity.connection
        if connection is None and self.closes_alike:
            await self._finish(work, who)
            return
        if connection is not None and self._needs_no_rollback(connection):
            with after_reads(connection):
                await wait_shielded(start(self._finish(work, who)))
            return
        task = start(self._finish(work, who))
        try:
            await wait_shielded(task, ROLLBACK_TIMEOUT_S)
        finally:
            if not task.done():
                self._given_up = True
                _log_given_up(who)
                task.cancel()
                await adiscard(connection)

    async def _end_reads(self, who: object) -> None:
        connection = self.activity.connection
        if connection is None or connection.dialect.driver not in HANGS_UP:
            await super()._end_reads(who)
            return
        # In this very task: another one, and the turns of the loop until this one goes on, took 4 %
        # of a request. A cancellation meanwhile throws the connection away (SQLAlchemy does), and
        # the end of the scope closes the session.
        deadlines = Deadlines.of(loop := asyncio.get_running_loop())
        expire = partial(self._give_up, who, connection)
        deadlines.add(ROLLBACK_TIMEOUT_S, expire, loop)
        try:
            await self._finish(self._end_transactions, who)
        finally:
            deadlines.remove(expire)

    def _give_up(self, who: object, connection: Connection) -> None:
        self._given_up = True
        _log_given_up(who)
        hang_up(connection)

    def _needs_no_rollback(self, connection: Connection) -> bool:
        """Whether it is a file's, which has only been read."""
        return (
            connection.dialect.driver == "aiosqlite"
            and not self.activity.may_have_written
            and not (connection.closed or connection.invalidated)
        )

    async def _finish(self, work: Callable[[], Coroutine[Any, Any, None]], who: object) -> None:
        connection = self.activity.connection
        self.activity.ender = task_or_thread()
        try:
            await work()
            if self.activity.ended and self.activity.connection is not None:
                await self._end_transactions()
        except Exception as exc:
            self.failure = self.failure or exc
            if not self._given_up:
                _log_failure(who, exc)
            await adiscard(connection)
        finally:
            self.activity.ender = None


def _log_failure(who: object, exc: Exception) -> None:
    if isinstance(exc, IllegalStateChangeError):
        _log_still_used(who, "another task or thread")
    else:
        logger.error("%s: ROLLBACK failed; its connection is discarded", who, exc_info=exc)


def _log_still_used(who: object, user: str) -> None:
    logger.error(
        "%s has ended while %s still uses its session: nothing of it is committed, and its "
        "connection is closed. Let that one open a scope of its own: `with db():` or "
        "`async with db():`.",
        who,
        user,
    )


def _describe(user: asyncio.Task[Any] | int | None) -> str:
    """A task or a thread as its author knows it."""
    if isinstance(user, asyncio.Task):
        name = getattr(user.get_coro(), "__qualname__", "")
        return f"the task {user.get_name()!r} ({name})"
    for thread in threading.enumerate():
        if thread.ident == user:
            return f"the thread {thread.name!r}"
    return "another task or thread"


def _log_given_up(who: object) -> None:
    logger.error(
        "%s: ROLLBACK has not ended after %g s; the scope ends without it", who, ROLLBACK_TIMEOUT_S
    )


def _current_task() -> asyncio.Task[Any] | None:
    return asyncio.current_task() if asyncio._get_running_loop() is not None else None
