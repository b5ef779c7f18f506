"""What a session has done in its current transaction.

The end of a scope asks: is there a connection to give back (then it is the work of a thread), was
anything written (then a rollback is worth a warning), and has the session outlived its scope?
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from operator import call
from threading import get_ident
from time import monotonic
from typing import Any

from sqlalchemy import Connection, Result
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import Pool

from ..engines.read_only_servers import renew_after
from ..exceptions import ConcurrentUseError
from .connections import lost_by
from .heard_errors import hear_errors
from .writes import locks_rows, looks_like_read, surely_reads

__all__ = ["Activity", "User", "log_holders", "task_or_thread", "user_here"]

logger = logging.getLogger("fastapi_sqlalchemy")

#: Of those that hold a pool's connections, in a log line.
_MOST_NAMED = 10

#: How often they are looked for, in seconds, of one pool.
LOOK_EVERY_S = 10.0

#: When the holders of a pool's connections were looked for; `Pool` stands for those not known.
_looked_s: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

#: Of the text of an error.
_MOST_SHOWN = 200

#: Of so many statements of one transaction it is found out later whether they write, if at all.
_MOST_UNCHECKED = 100

#: Who executes something: a task, or where no event loop runs a call in a thread.
User = weakref.ref[asyncio.Task[Any]] | tuple[int, object] | None

#: What a call has that somebody else's, later, in the same thread has not.
_call: ContextVar[object] = ContextVar("fastapi_sqlalchemy_call")


def user_here() -> User:
    """This task, or this call in a thread."""
    if asyncio._get_running_loop() is not None:
        task = asyncio.current_task()
        return None if task is None else weakref.ref(task)
    call = _call.get(None)
    if call is None:
        call = object()
        _call.set(call)
    return get_ident(), call


def task_or_thread() -> asyncio.Task[Any] | int | None:
    """This task, or the identifier of a thread where no event loop runs."""
    return asyncio.current_task() if asyncio._get_running_loop() is not None else get_ident()


class Activity:
    """One session's record: `connection` and `wrote` are its current transaction's.

    Where it `has_several` connections, of several engines, `connection` is the one used last.

    `wrote` says what was plainly seen; `has_written` looks at the statements more closely, and
    `may_have_written` is True unless all of them are surely reads; `unfinished` is the last one
    until it has returned: it is under way, has failed, or was cancelled; `has_locked` says that
    something was written in a savepoint that is rolled back. `failure` says why a statement of it
    has failed, the first one, and `lost` whether one has rolled back all of it: None where the
    server has to be asked.

    `owner` is its scope. `left_s` is when its last statement ended, in seconds of `monotonic()`;
    `left` is what another task waits for until then.
    Once `ended` is set, the session gets no connection any more, but for `ender`, who ends it: its
    class may have a `close` of its own. `on_loop_thread` is called when it
    begins in a thread that runs an event loop. `user` is who has a statement under way: a task, or
    the identifier of a thread; whoever comes meanwhile is refused, or waits if `takes_turns`. In a
    sandbox, `awaitable` makes a sync driver's result an
    `AsyncSession`'s. `beside` is its scope's other session where both use one SQLite database.
    `has_others` says that it may wait for a lock of another session of its request's or block's, as
    `lock_waiting` watches it; `first_user` is who has asked for the session first.
    """

    # Nothing here leads back to the session: a cycle would keep what it has loaded, and everything
    # around it, until the garbage collector comes.
    __slots__ = (
        "__weakref__",
        "awaitable",
        "beside",
        "connection",
        "ended",
        "ender",
        "failure",
        "first_user",
        "forget",
        "has_locked",
        "has_others",
        "has_several",
        "is_watched",
        "left",
        "left_s",
        "lost",
        "on_loop_thread",
        "owner",
        "restore",
        "results",
        "takes_turns",
        "unchecked",
        "unfinished",
        "unread",
        "unsure",
        "user",
        "wrote",
    )

    def __init__(
        self, owner: object = None, on_loop_thread: Callable[[], None] | None = None
    ) -> None:
        self.owner = None if owner is None else weakref.ref(owner)
        self.connection: Connection | None = None
        self.wrote = False
        self.unsure = False
        self.unfinished: Any = None
        self.has_locked = self.has_several = False
        self.failure: str | None = None
        self.lost: bool | None = False
        #: Those whose SQL did not show that they read.
        self.unread: list[Any] = []
        #: SELECTs that read, and may call what writes, or lock rows.
        self.unchecked: list[Any] = []
        self.results: list[weakref.ref[Any]] = []
        self.left_s = 0.0
        self.left: asyncio.Event | None = None
        self.forget: Callable[[], None] | None = None
        self.restore: Callable[[], None] | None = None
        self.ended = False
        self.ender: asyncio.Task[Any] | int | None = None
        self.on_loop_thread = on_loop_thread
        self.user: asyncio.Task[Any] | int | None = None
        self.takes_turns = False
        self.awaitable: Callable[[Any], Any] | None = None
        self.beside: weakref.ref[Activity] | None = None
        self.first_user: User = None
        self.has_others = self.is_watched = False

    @property
    def is_shut(self) -> bool:
        """Whether the session gets no connection here."""
        return self.ended and (self.ender is None or self.ender != task_or_thread())

    @property
    def has_written(self) -> bool:
        """Whether it looks as if something was written."""
        if self.wrote:
            return True
        return not all(map(looks_like_read, self._unread_now()))

    @property
    def may_have_written(self) -> bool:
        """Whether it cannot be excluded that something was written."""
        if self.wrote or self.unsure:
            return True
        return not all(map(surely_reads, self._unchecked_now()))

    @property
    def only_reads(self) -> bool:
        """Whether its transaction can end at once, and nothing is lost by it.

        Nothing was written, no row is locked, and nobody is in the middle of a result.
        """
        if self.wrote or self.unsure:
            return False
        if self.unchecked or self.unread or self.unfinished is not None:
            unchecked = self._unchecked_now()
            if not all(map(surely_reads, unchecked)) or any(map(locks_rows, unchecked)):
                return False
        return not any(map(call, self.results))

    @property
    def has_cursor(self) -> bool:
        """Whether somebody may still read from a server-side cursor."""
        return any(getattr(ref(), "_is_server_side", False) for ref in self.results)

    def _unread_now(self) -> list[Any]:
        unfinished = self.unfinished
        return self.unread if unfinished is None else [*self.unread, unfinished]

    def _unchecked_now(self) -> list[Any]:
        return [*self.unchecked, *self._unread_now()] if self.unchecked else self._unread_now()

    def uses(self, pool: object) -> bool:
        """Whether it holds a connection of `pool`."""
        connection = self.connection
        return connection is not None and connection.engine.pool is pool

    def refuse_if_locked_out(self, statement: Any = None) -> None:
        """Refuse what would wait for the scope's other session, whose end comes after this.

        SQLite has one writer at a time; one in memory that we name (memdb) lets nobody read beside
        it either. `statement` is None for a flush.
        https://www.sqlite.org/lockingv3.html https://www.sqlite.org/src/file?name=src/memdb.c

        Raises:
            ConcurrentUseError: the other session has written and not committed.
        """
        other = self.beside() if self.beside is not None else None
        connection = other.connection if other is not None else None
        if other is None or connection is None or connection.closed or connection.invalidated:
            return
        # Where Python has begun no transaction (DDL), what was written is committed.
        if not getattr(connection.connection.driver_connection, "in_transaction", True):
            return
        in_memdb = connection.engine.url.query.get("vfs") == "memdb"
        if not in_memdb and statement is not None and looks_like_read(statement):
            return
        if other.has_written or other.has_locked:
            names = ["db.session", "db.async_session"]
            if connection.dialect.is_async:
                names.reverse()
            raise ConcurrentUseError(
                f"{names[0]} has written to this SQLite database and not committed, and "
                f"{names[1]} of the same request or block would wait for it in vain. Commit that "
                "first, or use one of the two only."
            )

    def notice(self, statement: Any) -> None:
        """Remember that `statement` is about to be executed."""
        if self.unfinished is not None:
            self._keep(self.unread, self.unfinished)
        self.unfinished = statement
        if not (self.wrote or getattr(statement, "is_select", False) or looks_like_read(statement)):
            self.wrote = True

    def executed(self, statement: Any, result: Any) -> None:
        """Let the SQL of a SELECT without a CTE answer for it: to look through it takes longer.

        And what SQLAlchemy has compiled once, for each time that it is executed.
        """
        if self.unfinished is statement:
            self.unfinished = None
        elif self.unread and self.unread[-1] is statement:  # others were executed inside of it
            self.unread.pop()
        compiled: Any = None
        if isinstance(result, Result):  # else a value, which may have any attribute
            context = getattr(getattr(result, "raw", result), "context", None)
            if context is not None:
                # A result itself cannot be referred to weakly; nobody but it keeps its context.
                self.results.append(weakref.ref(context))
                compiled = context.compiled
                if context._is_server_side and self.connection is not None:
                    hear_errors(self.connection, self)
        if compiled is None or not compiled.statement.is_select or compiled.ctes:
            self._keep(self.unread, statement)
            return
        # Noted at what SQLAlchemy keeps: whether it surely reads and locks nothing.
        harmless = getattr(compiled, "fsa_harmless", None)
        if harmless is None:
            select = compiled.statement
            harmless = surely_reads(select) and not locks_rows(select)
            compiled.fsa_harmless = harmless
        if not harmless:
            self._keep(self.unchecked, statement)

    def _keep(self, statements: list[Any], statement: Any) -> None:
        """Keep a statement to look through it, if somebody asks."""
        if self.wrote:
            return
        if len(statements) < _MOST_UNCHECKED:
            statements.append(statement)
        else:
            self.unsure = True

    def failed(self, error: Exception, connection: Connection | None = None) -> None:
        """Remember that a statement has failed, for a commit in spite of it."""
        connection = connection or self.connection
        if connection is None or self.connection is None:
            return
        original = error.orig if isinstance(error, DBAPIError) else error
        if self.failure is None:
            # Its text alone: the exception would keep whoever has caught it.
            text = (str(original).splitlines() or [""])[0]
            self.failure = f"{type(original).__name__}: {text[:_MOST_SHOWN]}"
        if not isinstance(error, DBAPIError):
            return
        lost = lost_by(error, connection)
        if lost or self.lost is False:
            self.lost = lost
        renew_after(error, connection)

    def mark(self) -> tuple[bool, int]:
        """What was written up to here, for `take_back`."""
        return self.wrote, len(self._unread_now())

    def take_back(self, mark: tuple[bool, int]) -> None:
        """What was written since `mark` is rolled back, and its locks may stay.

        For a fence it counts all the same: a sequence, or another server, keeps what it was told.
        """
        wrote, unread = mark
        if not wrote and self.has_written:
            self.unsure = self.has_locked = True
            self.wrote = False
            self.unfinished = None
            del self.unread[unread:]

    def leave(self) -> None:
        """Its `user` has ended a statement."""
        self.user = None
        self.left_s = monotonic()
        if self.left is not None:
            self.left.set()
            self.left = None

    def reset(self) -> None:
        """Its transaction has ended."""
        self.connection = None
        self.wrote = self.unsure = self.has_locked = self.has_several = self.lost = False
        self.unfinished = self.failure = None
        if self.unread:
            self.unread.clear()
        if self.unchecked:
            self.unchecked.clear()
        if self.results:
            self.results.clear()
        if self.forget is not None:
            self.forget()
            self.forget = None
        if self.restore is not None:
            self.restore()
            self.restore = None

    def end(self) -> None:
        """Let the session begin nothing any more; what it has begun can still be ended."""
        self.ended = True
        self.on_loop_thread = None


def log_holders(bind: Any) -> None:
    """Log who holds the connections of the pool of `bind`, an engine, the longest idle first.

    A crowd's time-outs come at once, and the event loop stands still while they are looked for:
    they are named once in `LOOK_EVERY_S`.
    """
    pool = getattr(bind, "pool", None)
    key, now_s = Pool if pool is None else pool, monotonic()
    status = bind if pool is None else pool.status()
    if now_s - _looked_s.get(key, -math.inf) < LOOK_EVERY_S:
        logger.error(
            "No connection was free in time: %s. Who holds them was logged within the last %g s",
            status,
            LOOK_EVERY_S,
        )
        return
    _looked_s[key] = now_s
    # To keep a list of them would cost each transaction; this happens when nothing works any more.
    activities = (each for each in gc.get_objects() if type(each) is Activity)
    held = [each for each in activities if each.uses(pool)]
    texts = []
    for each in sorted(held, key=lambda each: (each.user is not None, each.left_s)):
        scope = each.owner() if each.owner is not None else None
        use = "executes" if each.user is not None else f"idle for {now_s - each.left_s:.1f} s"
        texts.append(f"{scope or 'an abandoned scope'} ({use}{getattr(scope, 'stage', '')})")
    more = f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    logger.error(
        "No connection was free in time: %s. They are held by %s%s",
        status,
        "; ".join(texts[:_MOST_NAMED]) or "nobody's scope: by connections of the app's own",
        more,
    )
