"""Session classes that note what their sessions do, seen from inside the session."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from threading import get_ident
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import await_only

from ..exceptions import ConcurrentUseError, MissingSessionError, SandboxError
from .activity import Activity, log_holders
from .connections import is_aborted, rolls_back_on_timeout
from .heard_errors import hear_errors
from .lock_waiting import watched, watched_commit
from .pool_waiting import one_more_thread, with_spare_thread
from .writes import reads_only

if TYPE_CHECKING:
    from sqlalchemy.orm import UOWTransaction

__all__ = ["ENDED", "TrackedSession", "options_inside", "shares_bind", "tracked"]

T = TypeVar("T")
# What connections can be told only before they begin.
_OF_TRANSACTION = {"isolation_level", "postgresql_readonly", "postgresql_deferrable"}
_POLL_S = 0.002

ENDED = (
    "This session's scope has ended: its request, `with db():` or `async with db():` is over, and "
    "this code has outlived it (a background task or a thread that was started inside?).\n"
    "Open a scope of its own:\n\n    with db():\n        db.session ...\n\n"
    "or, in async code, `async with db():`."
)


class TrackedSession(Session):
    """What is mixed into a session class so that its sessions keep an `Activity`.

    Its methods are the ones through which every statement and every connection goes, in SQLAlchemy
    2.0 and 2.1 (a flush takes its connection by itself). A session event for each statement would
    cost four times as much.
    """

    fsa_activity: Activity
    #: Whether its class has no `flush` of its own.
    fsa_flushes_alike = False
    #: Whether its class has no `commit`, `rollback` or `close` of its own: those may execute more.
    fsa_ends_alike = False

    def connection(
        self,
        bind_arguments: Any = None,
        execution_options: Mapping[str, Any] | None = None,
    ) -> Connection:
        """Its connection; what is executed there, or on the driver's, does not pass by here."""
        activity = self.fsa_activity
        if activity.awaitable is not None and bind_arguments:
            bind_arguments = {"bind": self.get_bind(**bind_arguments)}  # the sandbox's
        if activity.awaitable is not None and execution_options:
            execution_options = self._fsa_lend_options(bind_arguments, execution_options)
        connection = super().connection(bind_arguments, execution_options)
        activity.unsure = True
        hear_errors(connection, activity)
        if activity.forget is None:
            activity.forget = _listen(connection, activity)
        return connection

    def _fsa_lend_options(
        self, bind_arguments: Any, options: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """`options` for a sandbox's connection, which has them until this transaction has ended."""
        activity, connection = self.fsa_activity, self.get_bind(**(bind_arguments or {}))
        if activity.restore is None and isinstance(connection, Connection):
            activity.restore = partial(
                setattr, connection, "_execution_options", connection._execution_options
            )
        return options_inside(options)

    def _bulk_save_mappings(self, *args: Any, **kwargs: Any) -> None:
        self.fsa_activity.wrote = True
        self._fsa_run(super()._bulk_save_mappings, *args, **kwargs)

    def _execute_internal(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        activity = self.fsa_activity
        if activity.beside is not None:
            activity.refuse_if_locked_out(statement)
        is_inner = self.fsa_begin()
        activity.notice(statement)
        try:
            execute = super()._execute_internal
            result = (  # as `_fsa_run`, with one call less for each statement
                watched(activity, execute, statement, *args, **kwargs)
                if activity.has_others
                else execute(statement, *args, **kwargs)
            )
            activity.executed(statement, result)
            return result if activity.awaitable is None else self.fsa_result(result)
        except Exception as exc:  # asyncpg's cursor raises its driver's own errors
            activity.failed(exc)
            raise
        finally:
            if not is_inner:
                activity.leave()

    def fsa_begin(self) -> bool:
        """Serve this task or thread; True if it does so already."""
        raise NotImplementedError

    def fsa_result(self, result: Any) -> Any:
        """The result of a statement in a sandbox, as whoever has executed it takes it."""
        return result

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        if self.fsa_flushes_alike and not self._flushing and self._is_clean():
            return  # as it would, and it is asked before each statement
        activity = self.fsa_activity
        is_inner = self.fsa_begin()
        try:
            super().flush(objects)
        except DBAPIError as exc:
            activity.failed(exc)
            raise
        finally:
            if not is_inner:
                activity.leave()

    def commit(self) -> None:
        activity = self.fsa_activity
        is_inner = self.fsa_begin()
        try:
            # A stream has begun to read while this waited for its turn: it is committed at its end.
            if not (activity.takes_turns and activity.has_cursor):
                if activity.has_others:
                    watched_commit(activity, super().commit)
                else:
                    super().commit()
        finally:
            if not is_inner:
                activity.leave()

    def begin_nested(self) -> SessionTransaction:
        transaction = super().begin_nested()
        vars(transaction)["fsa_mark"] = self.fsa_activity.mark()
        return transaction

    def invalidate(self) -> None:
        if self.fsa_activity.awaitable is None:
            super().invalidate()
        else:
            self.close()  # the connection is the sandbox's

    def _connection_for_bind(self, engine: Any, *args: Any, **kwargs: Any) -> Connection:
        return self._fsa_connect(engine, super()._connection_for_bind, engine, *args, **kwargs)

    def _flush(self, objects: Sequence[Any] | None = None) -> None:
        if self.fsa_activity.beside is not None:
            self.fsa_activity.refuse_if_locked_out()
        self._fsa_run(self._fsa_connect, self.bind, super()._flush, objects)

    def _fsa_run(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call `work`, which executes a statement."""
        activity = self.fsa_activity
        return (
            watched(activity, work, *args, **kwargs)
            if activity.has_others
            else work(*args, **kwargs)
        )

    def _fsa_connect(self, bind: Any, connect: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call `connect`, which takes a connection from the pool of `bind` if it has none."""
        activity = self.fsa_activity
        if activity.ended and activity.is_shut:
            raise MissingSessionError(ENDED)
        try:
            if activity.connection is not None:
                return connect(*args, **kwargs)
            return with_spare_thread(bind, connect, *args, **kwargs)
        except PoolTimeout:
            log_holders(bind)
            raise


class _TrackedInThread(TrackedSession):
    """A `Session`, which serves one thread at a time."""

    def fsa_begin(self) -> bool:
        activity, thread = self.fsa_activity, get_ident()
        if activity.user is None:
            activity.user = thread
            return False
        if activity.user == thread:
            return True
        # Whom an event loop would wait for may need that loop.
        if not activity.takes_turns or asyncio._get_running_loop() is not None:
            raise ConcurrentUseError(
                "Another thread is using this Session, which serves one thread at a time. Open a "
                "scope in each:\n\n    with db():\n        db.session ..."
            )
        with one_more_thread():  # whom it waits for may need one
            while activity.user is not None:
                sleep(_POLL_S)
        activity.user = thread
        return False


class _TrackedInTask(TrackedSession):
    """The `Session` inside an `AsyncSession`, which serves one task at a time.

    The drivers do not say so: once connected, they let two tasks take turns between the statements
    of each other's unit of work. Where its class has `fsa_takes_turns` set, the second task waits.
    """

    def fsa_begin(self) -> bool:
        activity, task = self.fsa_activity, asyncio.current_task()
        if activity.user is None:
            activity.user = task
            return False
        if activity.user is task:
            return True
        if not (activity.takes_turns or getattr(self, "fsa_takes_turns", False)):
            raise ConcurrentUseError
        while activity.user is not None:
            if activity.left is None:
                activity.left = asyncio.Event()
            await_only(activity.left.wait())
        activity.user = task
        return False

    def _fsa_connect(self, bind: Any, connect: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        # As above, without the threads: no thread waits for an async pool.
        activity = self.fsa_activity
        if activity.ended and activity.is_shut:
            raise MissingSessionError(ENDED)
        try:
            return connect(*args, **kwargs)
        except PoolTimeout:
            log_holders(bind)
            raise

    def fsa_result(self, result: Any) -> Any:
        awaitable = self.fsa_activity.awaitable
        assert awaitable is not None
        return awaitable(result)


def options_inside(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` for a connection in a sandbox, whose own transaction has begun already.

    Raises:
        SandboxError: with them it would commit each statement.
    """
    if str(options.get("isolation_level")).upper() == "AUTOCOMMIT":
        raise SandboxError("A sandbox cannot roll back what AUTOCOMMIT has committed.")
    return {name: options[name] for name in options if name not in _OF_TRANSACTION}


def tracked(session_class: type[Session], *, in_task: bool = False) -> type[Session]:
    """A subclass of `session_class` whose sessions keep an `Activity`, which is set after making.

    `in_task`: they are the inner ones of an `AsyncSession`.
    """
    base = _TrackedInTask if in_task else _TrackedInThread
    own: dict[str, Any] = {
        "fsa_flushes_alike": session_class.flush is Session.flush,
        "fsa_ends_alike": all(
            getattr(session_class, name) is getattr(Session, name)
            for name in ("commit", "rollback", "close")
        ),
    }
    if session_class.__init__ is not Session.__init__:  # it may execute something already
        own["fsa_activity"] = cached_property(lambda session: Activity())
    made: type[Session] = type(session_class.__name__, (base, session_class), own)
    event.listen(made, "after_flush", _on_flush)
    event.listen(made, "after_begin", _on_begin)
    event.listen(made, "after_transaction_end", _on_end)
    event.listen(made, "after_soft_rollback", _on_rollback)
    event.listen(made, "before_commit", _on_commit)
    return made


def shares_bind(first: Session, second: Session) -> bool:
    """Whether both are bound to databases of one name, as the two of a binding are."""
    binds = [getattr(session.bind, "engine", None) for session in (first, second)]
    databases = {getattr(getattr(bind, "url", None), "database", None) for bind in binds}
    return (
        len(databases) == 1
        and None not in databases
        and not any(
            type(session).get_bind is not Session.get_bind or vars(session).get("_Session__binds")
            for session in (first, second)
        )
    )


def _on_flush(session: TrackedSession, context: UOWTransaction) -> None:
    session.fsa_activity.wrote = True


def _on_begin(
    session: TrackedSession, transaction: SessionTransaction, connection: Connection
) -> None:
    activity = session.fsa_activity
    if activity.ended and activity.is_shut:
        # The scope ended while this connection was being opened: nobody else would give it back.
        if connection is not session.bind:  # a sandbox's
            transaction._connections.clear()
            connection.close()
        raise MissingSessionError(ENDED)
    if activity.connection is not None and activity.connection is not connection:
        activity.has_several = True
    activity.connection = connection
    if activity.has_several:
        _follow(session._transaction, activity)
    activity.left_s = monotonic()
    on_loop_thread = activity.on_loop_thread  # another thread may be ending the scope
    if on_loop_thread is not None and asyncio._get_running_loop() is not None:
        on_loop_thread()


def _follow(transaction: SessionTransaction | None, activity: Activity) -> None:
    """Have `activity.connection` be the one of several that is used: an error is of that one.

    A flush asks its transaction for it, and a savepoint keeps those that it has asked for. A
    session with one engine pays nothing for it.
    """
    while transaction is not None and "_connection_for_bind" not in vars(transaction):
        note = partial(_connect_noted, weakref.ref(transaction), activity)
        vars(transaction)["_connection_for_bind"] = note
        transaction = transaction._parent


def _connect_noted(
    transaction: weakref.ref[SessionTransaction], activity: Activity, *args: Any, **kwargs: Any
) -> Connection:
    asked: Any = transaction()
    connection = SessionTransaction._connection_for_bind(asked, *args, **kwargs)
    activity.connection = connection
    return connection


def _on_end(session: TrackedSession, transaction: SessionTransaction) -> None:
    if transaction._parent is None:
        session.fsa_activity.reset()


def _on_rollback(session: TrackedSession, transaction: SessionTransaction) -> None:
    mark = vars(transaction).get("fsa_mark")
    if mark is not None:  # of a savepoint
        session.fsa_activity.take_back(mark)


def _on_commit(session: TrackedSession) -> None:
    """Refuse what the database would answer as if it had committed.

    PostgreSQL takes the COMMIT of a transaction one of whose statements has failed, and rolls back.
    https://www.postgresql.org/docs/current/sql-commit.html

    Raises:
        PendingRollbackError: it has been rolled back, or would be.
    """
    activity, transaction = session.fsa_activity, session._transaction
    if activity.failure is None and not activity.unsure:
        return
    if transaction is not None and transaction.nested:
        return  # the database refuses to release the savepoint
    root = session.get_transaction()
    held = root._connections.values() if root is not None else ()
    connections = [connection for connection, *_ in held]
    if (
        activity.lost
        or (activity.lost is None and any(map(rolls_back_on_timeout, connections)))
        or any(map(is_aborted, connections))
    ):
        raise PendingRollbackError(
            "Nothing is committed: a statement has failed "
            f"({activity.failure or 'on db.session.connection()'}), and with it the database has "
            "given up the whole transaction, although the exception was caught. Execute what may "
            "fail in a savepoint, `with db.session.begin_nested():`, or call db.session.rollback() "
            "and begin again."
        )


def _listen(connection: Connection, activity: Activity) -> Callable[[], None]:
    """Note what is executed on `connection`; returns what ends that."""

    def note(
        _: Connection, cursor: Any, statement: str, given: Any, context: Any, *rest: Any
    ) -> None:
        activity.wrote = activity.wrote or not reads_only(statement)
        if getattr(context, "_is_server_side", False):
            activity.results.append(weakref.ref(context))

    event.listen(connection, "before_cursor_execute", note)
    return lambda: event.remove(connection, "before_cursor_execute", note)
