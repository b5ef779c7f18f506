"""Session classes that note what their sessions do, seen from inside the session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, event
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, SessionTransaction

from ..exceptions import ConcurrentUseError, MissingSessionError
from .activity import Activity, log_holders
from .pool_waiting import with_spare_thread
from .writes import reads_only

if TYPE_CHECKING:
    from sqlalchemy.orm import UOWTransaction

__all__ = ["ENDED", "TrackedSession", "tracked"]

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

    def connection(self, *args: Any, **kwargs: Any) -> Connection:
        """Its connection; what is executed there, or on the driver's, does not pass by here."""
        connection = super().connection(*args, **kwargs)
        activity = self.fsa_activity
        activity.unsure = True
        if activity.forget is None and not activity.wrote:
            activity.forget = _listen(connection, activity)
        return connection

    def _bulk_save_mappings(self, *args: Any, **kwargs: Any) -> None:
        self.fsa_activity.wrote = True
        super()._bulk_save_mappings(*args, **kwargs)


class _TrackedInThread(TrackedSession):
    """A `Session` whose threads may have to wait for a connection."""

    def _execute_internal(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        activity = self.fsa_activity
        is_inner = _begin_in_thread(activity)
        activity.notice(statement)
        try:
            result = super()._execute_internal(statement, *args, **kwargs)
            activity.executed(statement, result)
            return result
        finally:
            if not is_inner:
                activity.user = None
                activity.left_s = monotonic()

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        activity = self.fsa_activity
        is_inner = _begin_in_thread(activity)
        try:
            super().flush(objects)
        finally:
            if not is_inner:
                activity.user = None
                activity.left_s = monotonic()

    def _connection_for_bind(self, engine: Any, *args: Any, **kwargs: Any) -> Connection:
        if self.fsa_activity.ended:
            raise MissingSessionError(ENDED)
        if self.fsa_activity.connection is not None:
            return super()._connection_for_bind(engine, *args, **kwargs)
        try:
            return with_spare_thread(engine, super()._connection_for_bind, engine, *args, **kwargs)
        except PoolTimeout:
            log_holders(engine)
            raise

    def _flush(self, objects: Sequence[Any] | None = None) -> None:
        if self.fsa_activity.ended:
            raise MissingSessionError(ENDED)
        if self.fsa_activity.connection is not None:
            super()._flush(objects)
        else:
            try:
                with_spare_thread(self.bind, super()._flush, objects)
            except PoolTimeout:
                log_holders(self.bind)
                raise


class _TrackedInTask(TrackedSession):
    """The `Session` inside an `AsyncSession`, which serves one task at a time.

    The drivers do not say so: once connected, they let two tasks take turns between the statements
    of each other's unit of work.
    """

    def _execute_internal(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        activity = self.fsa_activity
        is_inner = _begin_in_task(activity)
        activity.notice(statement)
        try:
            result = super()._execute_internal(statement, *args, **kwargs)
            activity.executed(statement, result)
            return result if activity.awaitable is None else activity.awaitable(result)
        finally:
            if not is_inner:
                activity.user = None
                activity.left_s = monotonic()

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        activity = self.fsa_activity
        is_inner = _begin_in_task(activity)
        try:
            super().flush(objects)
        finally:
            if not is_inner:
                activity.user = None
                activity.left_s = monotonic()

    def commit(self) -> None:
        activity = self.fsa_activity
        is_inner = _begin_in_task(activity)
        try:
            super().commit()
        finally:
            if not is_inner:
                activity.user = None
                activity.left_s = monotonic()

    def _connection_for_bind(self, engine: Any, *args: Any, **kwargs: Any) -> Connection:
        if self.fsa_activity.ended:
            raise MissingSessionError(ENDED)
        try:
            return super()._connection_for_bind(engine, *args, **kwargs)
        except PoolTimeout:
            log_holders(engine)
            raise

    def _flush(self, objects: Sequence[Any] | None = None) -> None:
        if self.fsa_activity.ended:
            raise MissingSessionError(ENDED)
        try:
            super()._flush(objects)
        except PoolTimeout:
            log_holders(self.bind)
            raise


def tracked(session_class: type[Session], *, in_task: bool = False) -> type[Session]:
    """A subclass of `session_class` whose sessions keep an `Activity`, which is set after making.

    `in_task`: they are the inner ones of an `AsyncSession`.
    """
    base = _TrackedInTask if in_task else _TrackedInThread
    made: type[Session] = type(session_class.__name__, (base, session_class), {})
    event.listen(made, "after_flush", _on_flush)
    event.listen(made, "after_begin", _on_begin)
    event.listen(made, "after_transaction_end", _on_end)
    return made


def _begin_in_task(activity: Activity) -> bool:
    """Have the session serve this task; True if it does so already."""
    task = asyncio.current_task()
    if activity.user is None:
        activity.user = task
        return False
    if activity.user is not task:
        raise ConcurrentUseError
    return True


def _begin_in_thread(activity: Activity) -> bool:
    """As `_begin_in_task`, for a thread."""
    thread = get_ident()
    if activity.user is None:
        activity.user = thread
        return False
    if activity.user != thread:
        raise ConcurrentUseError(
            "Another thread is using this Session, which serves one thread at a time. Open a scope "
            "in each:\n\n    with db():\n        db.session ..."
        )
    return True


def _on_flush(session: TrackedSession, context: UOWTransaction) -> None:
    session.fsa_activity.wrote = True


def _on_begin(
    session: TrackedSession, transaction: SessionTransaction, connection: Connection
) -> None:
    activity = session.fsa_activity
    if activity.ended:
        # The scope ended while this connection was being opened: nobody else would give it back.
        if connection is not session.bind:  # a sandbox's
            transaction._connections.clear()
            connection.close()
        raise MissingSessionError(ENDED)
    activity.begin(connection)
    on_loop_thread = activity.on_loop_thread  # another thread may be ending the scope
    if on_loop_thread is not None and asyncio._get_running_loop() is not None:
        on_loop_thread()


def _on_end(session: TrackedSession, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.fsa_activity.reset()


def _listen(connection: Connection, activity: Activity) -> Callable[[], None]:
    """Note what is executed on `connection`; returns what ends that."""

    def note(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        activity.wrote = activity.wrote or not reads_only(statement)

    event.listen(connection, "before_cursor_execute", note)
    return lambda: event.remove(connection, "before_cursor_execute", note)
