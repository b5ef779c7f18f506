"""Statements that wait for a lock which their own request or block holds.

`db.session` and `db.async_session` of one request are two transactions, and `with db():` inside it
is a third. Where one waits for another PostgreSQL sees no deadlock, and nothing ends it: that other
one waits in Python. SQLite's time-out ends it, and says no more than "database is locked"; so does
MySQL's `innodb_lock_wait_timeout`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.util import greenlet_spawn

from ..engines import fork_safety
from ..exceptions import ConcurrentUseError
from .activity import Activity, User, user_here
from .connections import server_pid

__all__ = ["watched", "watched_commit"]

logger = logging.getLogger("fastapi_sqlalchemy")
T = TypeVar("T")

#: When it is first asked whom a statement waits for. PostgreSQL's `deadlock_timeout` is as long.
_ASKED_AT_S = 1.0
#: For how long it may wait for what another task or thread of the same scope may still commit.
_OTHERS_S = 5.0
_POLL_S = 0.2
#: How long the thread stays that has nothing to look at.
_IDLE_S = 10.0

# Who stands before it in a queue of those that wait for a row is a blocker too.
_BLOCKERS = """
    WITH RECURSIVE blocker (pid) AS (
        SELECT unnest(pg_blocking_pids({0}))
        UNION SELECT unnest(pg_blocking_pids(pid)) FROM blocker
    ) SELECT pid FROM blocker
"""


def watched(activity: Activity, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call `work`, which executes a statement for the session of `activity`.

    Raises:
        ConcurrentUseError: it waited for a lock that its own request or block holds.
    """
    return _watched(None, activity, work, *args, **kwargs)


def watched_commit(activity: Activity, commit: Callable[[], None]) -> None:
    """As `watched`: a COMMIT looks at deferred foreign keys, and may wait for their rows.

    Whose it is does not matter: a task of our own sends it.
    """
    _watched(activity.first_user, activity, commit)


def _watched(
    user: User, activity: Activity, work: Callable[..., T], *args: Any, **kwargs: Any
) -> T:
    first = next(_around(activity), None)
    if activity.is_watched or first is None:
        return work(*args, **kwargs)
    if first.connection is not None and first.connection.dialect.name == "sqlite":
        return _explained(activity, work, *args, **kwargs)
    waiting = _Waiting(activity, user or user_here())
    activity.is_watched = True
    _watcher.add(waiting)
    try:
        return work(*args, **kwargs)
    except DBAPIError as exc:
        if waiting.refusal is None:
            raise
        activity.failed(exc)
        raise ConcurrentUseError(waiting.refusal) from exc
    finally:
        _watcher.remove(waiting)
        activity.is_watched = False


def _explained(activity: Activity, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """As `watched`, on SQLite: one writer is let in at a time, and its time-out ends it."""
    try:
        return work(*args, **kwargs)
    except OperationalError as exc:
        holders = [
            each
            for each in _around(activity)
            if (each.has_written or each.has_locked) and _database(each) == _database(activity)
        ]
        if not holders or "locked" not in str(exc.orig):
            raise
        activity.failed(exc)
        raise ConcurrentUseError(_describe(activity, holders[0])) from exc


class _Waiting:
    """A statement that may be waiting; `refusal` says why it was cancelled."""

    __slots__ = ("activity", "began_s", "next_s", "refusal", "user", "warned")

    def __init__(self, activity: Activity, user: User) -> None:
        self.activity = activity
        self.user = user
        self.began_s = monotonic()
        self.next_s = _ASKED_AT_S
        self.refusal: str | None = None
        self.warned = False

    def look(self) -> None:
        """Cancel it if it waits in vain."""
        connection, waited_s = self.activity.connection, monotonic() - self.began_s
        if connection is None or waited_s < self.next_s or self.refusal is not None:
            return
        # A statement that is slow by itself is not to cost a connection each second.
        self.next_s = max(2 * self.next_s, _OTHERS_S)
        pid = _pid(connection)
        holders = {_pid(each.connection): each for each in _around(self.activity)}
        blockers = _ask(connection, _BLOCKERS.format(pid)) if pid is not None else []
        holder = next((holders[each] for each in blockers if each in holders), None)
        if holder is None or not _watcher.has(self):
            return
        text, is_long = _describe(self.activity, holder), waited_s >= _OTHERS_S
        # Who has begun the other transaction would have to end it, and waits here.
        in_vain = self.user is not None and self.user == holder.first_user
        if in_vain or (is_long and holder.owner == self.activity.owner):
            self.refusal = text
            _ask(connection, f"SELECT pg_cancel_backend({pid})")
        elif is_long and not self.warned:
            self.warned = True
            logger.warning("%s", text)


class _Watcher:
    """A thread that looks at the statements that may be waiting, while there are any."""

    def __init__(self) -> None:
        self.after_fork()
        fork_safety.forget_after_fork(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[_Waiting] = set()
        self._runs = False

    def add(self, waiting: _Waiting) -> None:
        with self._lock:
            self._waiting.add(waiting)
            starts, self._runs = not self._runs, True
        if starts:
            thread = threading.Thread(
                target=self._run, name="fastapi_sqlalchemy locks", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # there are too many, or the interpreter ends
                self._runs = False

    def remove(self, waiting: _Waiting) -> None:
        with self._lock:
            self._waiting.discard(waiting)

    def has(self, waiting: _Waiting) -> bool:
        with self._lock:
            return waiting in self._waiting

    def _run(self) -> None:
        used_s = monotonic()
        while True:
            sleep(_POLL_S)
            with self._lock:
                waiting = list(self._waiting)
                if waiting:
                    used_s = monotonic()
                elif monotonic() - used_s > _IDLE_S:
                    self._runs = False
                    return
            for each in waiting:
                try:
                    each.look()
                except Exception:
                    logger.debug("It cannot be seen what a statement waits for", exc_info=True)


_watcher = _Watcher()


def _around(activity: Activity) -> Iterator[Activity]:
    """Those of the same scope and of the scopes around it that are in a transaction."""
    scope: Any = activity.owner() if activity.owner is not None else None
    while scope is not None:
        for handle in scope.handles:
            if handle.activity is not activity and handle.activity.connection is not None:
                yield handle.activity
        scope = scope.outer


def _database(activity: Activity) -> str | None:
    connection = activity.connection
    return None if connection is None else connection.engine.url.database


def _pid(connection: Connection | None) -> int | None:
    if connection is None or connection.closed or connection.invalidated:
        return None
    return server_pid(connection.connection.driver_connection)


def _ask(connection: Connection, sql: str) -> list[Any]:
    """The first column, by a connection of its own: the pool may be empty, and its loop waits."""
    engine = connection.engine

    def ask() -> list[Any]:
        pool = engine.pool.recreate()
        lent = pool.connect()
        try:
            cursor = lent.cursor()
            cursor.execute(sql)
            return [row[0] for row in cursor.fetchall()]
        finally:
            lent.close()
            pool.dispose()

    return asyncio.run(greenlet_spawn(ask)) if engine.dialect.is_async else ask()


def _describe(activity: Activity, holder: Activity) -> str:
    mine, other = _side(activity), _side(holder)
    if holder.owner == activity.owner:
        return (
            f"{mine} waits for a lock that {other} of the same request or block holds, and would "
            "wait for ever. Commit that first, or use one of the two only."
        )
    scope = activity.owner() if activity.owner is not None else None
    around = holder.owner() if holder.owner is not None else None
    return (
        f"{mine} of `{scope}` waits for a lock that {other} of {around} around it holds until that "
        "has ended. Commit there first, or use its session for both."
    )


def _side(activity: Activity) -> str:
    connection = activity.connection
    is_async = connection is not None and connection.dialect.is_async
    return "db.async_session" if is_async else "db.session"
