"""The handles of a scope's `Session` and `AsyncSession`: how each of them ends.

Whatever needs the database runs where nothing can interrupt it and nobody else has to wait: in a
thread of our own, or in a task of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IllegalStateChangeError
from sqlalchemy.orm import Session
from sqlalchemy.orm.session import SessionTransactionState

from .activity import Activity
from .connections import adiscard, hang_up, in_autocommit, is_busy
from .shielding import start, wait_shielded
from .tracking import TrackedSession

__all__ = [
    "POLL_S",
    "ROLLBACK_TIMEOUT_S",
    "SessionHandle",
    "log_failure",
    "log_given_up",
    "log_still_used",
]

logger = logging.getLogger("fastapi_sqlalchemy")

#: How long a ROLLBACK or a close may take, in seconds, before the scope ends without it. A COMMIT
#: is never given up: its outcome would be unknown.
ROLLBACK_TIMEOUT_S = 5.0
#: How long whoever still uses a session has, in seconds, to notice that its connection is gone.
LEAVE_TIMEOUT_S = 1.0
POLL_S = 0.002


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
        if self.activity.has_written and (
            self.in_sandbox or not all(map(in_autocommit, self._connections()))
        ):
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
        log_still_used(who, self.user or "another task or thread")
        await wait_shielded(start(self._abandon()))

    async def _abandon(self) -> None:
        for connection in self._connections():
            hang_up(connection)
        await self._until_left()
        for connection in self._connections():
            await adiscard(connection)
        await self._let_go()

    @property
    def _leave_timeout_s(self) -> float:
        """How long its `user` has to notice: a sandbox's connection is not cut."""
        return ROLLBACK_TIMEOUT_S if self.in_sandbox else LEAVE_TIMEOUT_S

    async def _until_left(self) -> None:
        """Wait until the one that has lost its connection has noticed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._leave_timeout_s
        while self.user is not None and loop.time() < deadline:
            await asyncio.sleep(POLL_S)

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

    @property
    def _front(self) -> Any:
        """The session as the app has it."""
        return self.session

    async def flush(self) -> None:
        """Write what is pending."""
        await self._run(self._front.flush)

    async def commit(self) -> None:
        """Commit; its error is raised."""
        await self._run(self._front.commit)

    async def roll_back(self, who: object) -> None:
        """Roll back, in bounded time; an error is logged."""
        work = self._end_transactions if self.is_committed else self._front.rollback
        await self._run_bounded(work, who)

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

    async def _run(self, work: Callable[[], Any]) -> None:
        """Do `work`, a flush or a COMMIT, whatever is cancelled meanwhile; its error is raised."""
        raise NotImplementedError

    async def _run_bounded(self, work: Callable[[], Any], who: object) -> None:
        """Do `work`, a rollback or a close, unless somebody uses it still or it was given up."""
        if self._given_up:
            return
        if self.user is not None:
            await self.abandon(who)
            return
        await self._run_unused(work, who)

    async def _run_unused(self, work: Callable[[], Any], who: object) -> None:
        """Do `work`, a rollback or a close, in bounded time; an error is logged."""
        raise NotImplementedError

    def _give_up(self, who: object, connection: Connection | None) -> None:
        """End without it: whoever waits for its server gets an answer."""
        self._given_up = True
        log_given_up(who)
        if connection is not None:
            hang_up(connection)

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


def log_failure(who: object, exc: Exception) -> None:
    if isinstance(exc, IllegalStateChangeError):
        log_still_used(who, "another task or thread")
    else:
        logger.error("%s: ROLLBACK failed; its connection is discarded", who, exc_info=exc)


def log_still_used(who: object, user: str) -> None:
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


def log_given_up(who: object) -> None:
    logger.error(
        "%s: ROLLBACK has not ended after %g s; the scope ends without it", who, ROLLBACK_TIMEOUT_S
    )


def _current_task() -> asyncio.Task[Any] | None:
    return asyncio.current_task() if asyncio._get_running_loop() is not None else None
