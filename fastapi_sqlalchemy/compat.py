"""fastapi-async-sqlalchemy's names and meanings, so that moving here is one import line.

from fastapi_sqlalchemy.compat import SQLAlchemyMiddleware, db

`db.session` is the `AsyncSession` (SQLModel's, where sqlmodel is installed), and `commit_on_exit`
commits whatever the status of the response, unless an exception is raised. `db` here speaks for
`fastapi_sqlalchemy.db`: both reach the same database, and `fsa` finds it.
"""

from __future__ import annotations

import asyncio
import itertools
import warnings
from collections.abc import Awaitable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import Pool

from .database import Database
from .exceptions import MissingSessionError, SessionNotInitialisedError
from .middleware import DBSessionMiddleware
from .middleware import db as _global_db
from .pool_deadlines import PoolTimeoutError, check_deadline, deadline, status_of
from .sessions.scope import Scope

try:
    from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelSession
except ImportError:
    DefaultAsyncSession: type[AsyncSession] = AsyncSession
else:
    DefaultAsyncSession = SQLModelSession

__all__ = [
    "DBSessionMeta",
    "DBSessionType",
    "DefaultAsyncSession",
    "MissingSessionError",
    "PoolTimeoutError",
    "SQLAlchemyMiddleware",
    "SessionNotInitialisedError",
    "create_middleware_and_session_proxy",
    "db",
]

_numbers = itertools.count(2)


class _SyncSession(DefaultAsyncSession.sync_session_class):  # type: ignore[misc, name-defined]
    """Whose statements take turns, as asyncpg's do: `gather` over one session works there."""

    fsa_takes_turns = True


class _AsyncSession(DefaultAsyncSession):  # type: ignore[misc, valid-type]
    sync_session_class = _SyncSession


class DBSessionMeta:
    """What `db` is there, over a `Database`, which stays within reach as `db.database`."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._tasks: ContextVar[_TaskSessions | None] = ContextVar("tasks", default=None)

    def __call__(
        self,
        session_args: Mapping[str, Any] | None = None,
        commit_on_exit: bool = False,
        multi_sessions: bool = False,
        max_concurrent: int | None = None,
        pool_timeout: float | None = None,
    ) -> AbstractAsyncContextManager[DBSessionMeta]:
        """A context for `async with`, with a session, or with one for each task inside.

        Args:
            multi_sessions: `db.session` is another session in each task, ended with the task.
            max_concurrent: how many of these tasks have a session at a time, by `db.connection()`
                and `db.gather()`.
            pool_timeout: how long to wait for a connection, in seconds, which is taken at once;
                with `multi_sessions`, by each `db.connection()` and each coroutine of
                `db.gather()`.

        Raises:
            ValueError: `max_concurrent` is less than 1, or `pool_timeout` not above 0.
            PoolTimeoutError: on entering: no connection was free in time.
        """
        check_deadline(pool_timeout)
        if max_concurrent is not None and max_concurrent < 1:
            raise ValueError("`max_concurrent` must be greater than 0.")
        if multi_sessions:
            return _Tasks(self, session_args, commit_on_exit, max_concurrent, pool_timeout)
        return _Block(self, session_args, commit_on_exit, pool_timeout)

    @property
    def session(self) -> AsyncSession:
        """The `AsyncSession` of the current scope, or of this task.

        Raises:
            SessionNotInitialisedError: nothing is configured.
            MissingSessionError: no scope is open here.
            RuntimeError: a task inside `max_concurrent` has not waited for its turn.
        """
        tasks = self._tasks.get()
        return self.database.async_session if tasks is None else tasks.session()

    def connection(self, timeout: float | None = None) -> AbstractAsyncContextManager[AsyncSession]:
        """`async with db.connection() as session:`, once fewer than `max_concurrent` are at it.

        Args:
            timeout: how long to wait for that and for a connection, in seconds.

        Raises:
            ValueError: `timeout` is not above 0.
            PoolTimeoutError: on entering: it took longer.
        """
        check_deadline(timeout)
        return _Turn(self, timeout)

    def pool_status(self) -> dict[str, Any]:
        """What the async pool holds, flat and in that package's words; `size` and so on.

        Raises:
            SessionNotInitialisedError: nothing is configured.
        """
        return status_of(self._pool)

    @property
    def _pool(self) -> Pool:
        return self.database.async_engine.sync_engine.pool

    async def gather(self, *coroutines: Awaitable[Any], return_exceptions: bool = False) -> Any:
        """As `asyncio.gather`, at most `max_concurrent` at a time.

        Without that number and `pool_timeout` all of them share what `asyncio.gather` would make
        them share; use `db.database.gather` for a session each.

        Raises:
            TypeError: with one of the two, something is no coroutine: it may run already.
        """
        tasks = self._tasks.get()
        if tasks is not None and (tasks.turns is not None or tasks.pool_timeout is not None):
            managed_by = "pool_timeout" if tasks.turns is None else "max_concurrent"
            if not all(map(asyncio.iscoroutine, coroutines)):
                for coroutine in filter(asyncio.iscoroutine, coroutines):
                    coroutine.close()
                raise TypeError(
                    f"When `{managed_by}` is set, db.gather() accepts coroutine objects only: a "
                    "Task or a Future may run already. Use db.connection() inside it."
                )

            async def in_turn(coroutine: Any) -> Any:
                try:
                    async with self.connection():
                        return await coroutine
                finally:
                    coroutine.close()  # if there was no turn for it

            coroutines = tuple(in_turn(coroutine) for coroutine in coroutines)
        return await asyncio.gather(*coroutines, return_exceptions=return_exceptions)


class _Block:
    def __init__(
        self,
        proxy: DBSessionMeta,
        session_args: Mapping[str, Any] | None,
        commit_on_exit: bool,
        pool_timeout: float | None,
    ) -> None:
        self._proxy = proxy
        self._pool_timeout = pool_timeout
        self._context = proxy.database(session_args, commit_on_exit)
        self._outside: list[_TaskSessions | None] = []

    async def __aenter__(self) -> DBSessionMeta:
        await self._context.__aenter__()
        if self._pool_timeout is not None:
            try:
                async with deadline(self._proxy._pool, self._pool_timeout):
                    await self._proxy.database.async_session.connection()
            except BaseException as exc:
                await self._context.__aexit__(type(exc), exc, exc.__traceback__)
                raise
        self._outside.append(self._proxy._tasks.get())
        self._proxy._tasks.set(None)
        return self._proxy

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._proxy._tasks.set(self._outside.pop())
        await self._context.__aexit__(exc_type, exc, traceback)


class _Tasks:
    """`async with db(multi_sessions=True):`."""

    def __init__(
        self,
        proxy: DBSessionMeta,
        session_args: Mapping[str, Any] | None,
        commit_on_exit: bool,
        max_concurrent: int | None,
        pool_timeout: float | None,
    ) -> None:
        self._proxy = proxy
        self._arguments = (session_args, commit_on_exit, max_concurrent, pool_timeout)
        self._open: list[tuple[_TaskSessions, _TaskSessions | None]] = []

    async def __aenter__(self) -> DBSessionMeta:
        proxy = self._proxy
        tasks = _TaskSessions(proxy.database, *self._arguments)
        self._open.append((tasks, proxy._tasks.get()))
        proxy._tasks.set(tasks)
        return proxy

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tasks, outside = self._open.pop()
        self._proxy._tasks.set(outside)
        errors = await tasks.end(failed=exc_type is not None)
        if errors and exc is None:
            if len(errors) == 1:
                raise errors[0]
            details = "; ".join(f"{type(error).__name__}: {error}" for error in errors)
            raise RuntimeError(f"Session cleanup failed with {len(errors)} errors: {details}")
        for error in errors:
            warnings.warn(
                "Suppressed session cleanup error because another exception is already being "
                f"raised: {error!r}",
                stacklevel=2,
            )


class _TaskSessions:
    """The scopes of the tasks inside one `multi_sessions` block."""

    def __init__(
        self,
        database: Database,
        session_args: Mapping[str, Any] | None,
        commit_on_exit: bool,
        max_concurrent: int | None,
        pool_timeout: float | None,
    ) -> None:
        self.pool_timeout = pool_timeout
        self._binding = database._binding()
        self._session_args = session_args
        self._commit_on_exit = commit_on_exit
        self._parent = asyncio.current_task()
        self._scopes: dict[asyncio.Task[Any] | None, Scope] = {}
        self._endings: list[asyncio.Task[None]] = []
        self._in_turn: set[asyncio.Task[Any] | None] = set()
        self.turns = asyncio.Semaphore(max_concurrent) if max_concurrent is not None else None

    def session(self) -> AsyncSession:
        task = asyncio.current_task()
        scope = self._scopes.get(task)
        if scope is None:
            if self.turns is not None and task is not self._parent and task not in self._in_turn:
                raise RuntimeError(
                    "When `max_concurrent` is set, child tasks must access DB via "
                    "`db.connection()` or `db.gather()`; direct `db.session` access "
                    "from child tasks is not throttled."
                )
            scope = self._open(task)
            if task is not None and task is not self._parent:
                task.add_done_callback(self._end_with_task)
        return scope.async_session

    async def enter(self) -> tuple[AsyncSession, bool]:
        """This task's session, when it is its turn; and whether it is a new one."""
        task = asyncio.current_task()
        if task in self._scopes:
            return self._scopes[task].async_session, False
        if self.turns is not None:
            await self.turns.acquire()
        self._in_turn.add(task)
        try:
            return self._open(task).async_session, True
        except BaseException:
            self._leave(task)
            raise

    async def leave(self, *, failed: bool) -> None:
        """End the session that `enter` has opened, and let the next task in."""
        task = asyncio.current_task()
        try:
            scope = self._scopes.pop(task, None)
            if scope is not None:
                await self._end(scope, failed=failed)
        finally:
            self._leave(task)

    async def end(self, *, failed: bool) -> list[BaseException]:
        """End what is left. Returns the errors of all sessions that were ended by themselves."""
        ended = await asyncio.gather(*self._endings, return_exceptions=True)
        errors = [error for error in ended if isinstance(error, BaseException)]
        for task in list(self._scopes):
            try:
                await self._end(self._scopes.pop(task), failed=failed)
            except Exception as exc:
                errors.append(exc)
        return errors

    async def _end(self, scope: Scope, *, failed: bool) -> None:
        """End it as there: `commit()` or `rollback()` whatever was begun; each error is raised."""
        commit = self._commit_on_exit and not failed
        if commit and not scope.async_session.in_transaction():
            scope.async_session.sync_session.begin()  # for those who listen to `before_commit`
        try:
            if failed:
                await scope.aroll_back()
        finally:
            await scope.aend(commit=commit)
        if scope.failure is not None:
            raise scope.failure

    def _open(self, task: asyncio.Task[Any] | None) -> Scope:
        scope = Scope(self._binding, asynchronous=True, session_args=self._session_args)
        self._scopes[task] = scope
        return scope

    def _leave(self, task: asyncio.Task[Any] | None) -> None:
        self._in_turn.discard(task)
        if self.turns is not None:
            self.turns.release()

    def _end_with_task(self, task: asyncio.Task[Any]) -> None:
        scope = self._scopes.pop(task, None)
        if scope is not None:
            failed = task.cancelled() or task.exception() is not None
            self._endings.append(task.get_loop().create_task(self._end(scope, failed=failed)))


class _Turn:
    """What `db.connection()` returns."""

    def __init__(self, proxy: DBSessionMeta, timeout_s: float | None) -> None:
        self._proxy = proxy
        self._timeout_s = timeout_s
        self._entered: _TaskSessions | None = None

    async def __aenter__(self) -> AsyncSession:
        tasks = self._proxy._tasks.get()
        timeout_s = self._timeout_s
        if timeout_s is None and tasks is not None:
            timeout_s = tasks.pool_timeout
        if timeout_s is None:
            return await self._enter(tasks)
        try:
            async with deadline(self._proxy._pool, timeout_s):
                session = await self._enter(tasks)
                await session.connection()
        except BaseException as exc:
            await self.__aexit__(type(exc), exc, exc.__traceback__)
            raise
        return session

    async def _enter(self, tasks: _TaskSessions | None) -> AsyncSession:
        if tasks is None:
            return self._proxy.database.async_session
        session, is_new = await tasks.enter()
        self._entered = tasks if is_new else None
        return session

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._entered is not None:
            await self._entered.leave(failed=exc_type is not None)


def _middleware_for(database: Database) -> type[DBSessionMiddleware]:
    class SQLAlchemyMiddleware(DBSessionMiddleware):
        """`DBSessionMiddleware` with that package's defaults."""

        defaults = {  # noqa: RUF012
            "async_session_args": {"class_": _AsyncSession},
            "rollback_from_status": None,
        }

        @classmethod
        def default_database(cls) -> Database:
            return database

    return SQLAlchemyMiddleware


def create_middleware_and_session_proxy() -> tuple[type[DBSessionMiddleware], DBSessionMeta]:
    """A middleware class and its `db`, for one more database."""
    database = Database(f"database{next(_numbers)}")
    return _middleware_for(database), DBSessionMeta(database)


SQLAlchemyMiddleware = _middleware_for(_global_db)
db = DBSessionMeta(_global_db)
DBSessionType = DBSessionMeta
