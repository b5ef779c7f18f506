"""Connections inside a sandbox that its own sessions did not ask for: guests of its connection.

`db.engine.connect()`, `Session(db.engine)`, `async with db.async_engine.begin()` and an admin all
end in `Engine.connect()`. Inside a sandbox that gives a guest: it runs its statements on the
sandbox's connection, and its transactions are savepoints there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn
from uuid import uuid4

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import CursorResult
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncResult
from sqlalchemy.ext.asyncio.base import asyncstartablecontext
from sqlalchemy.util import greenlet_spawn

from ..exceptions import SandboxError
from ..sessions.tracking import options_inside

__all__ = [
    "Guest",
    "KeptConnection",
    "asynchronous",
    "awaitable",
    "capture",
    "capture_async",
    "give_back",
    "give_back_async",
    "open_main",
]

_OUTSIDE = (
    "This takes a connection past the sandbox, which could not roll back what is written on it. "
    "Use engine.connect(), engine.begin() or db.session."
)


def capture(engine: Engine, main: Callable[[], Connection]) -> None:
    """Have `engine.connect()` give guests of `main()`, and whatever goes past that refused."""
    if "connect" in vars(engine):
        return
    vars(engine)["connect"] = lambda: Guest(main())
    vars(engine)["raw_connection"] = _refuse
    _refuse_pool(engine)
    event.listen(engine, "engine_disposed", _refuse_pool)


def capture_async(engine: AsyncEngine) -> None:
    """Have the connections of `engine`, which is captured, run on a sync one."""
    if type(engine) is AsyncEngine:
        engine.__class__ = _CapturedAsyncEngine


def give_back(engine: Engine) -> None:
    """Undo `capture`."""
    if "connect" in vars(engine):
        event.remove(engine, "engine_disposed", _refuse_pool)
    for name in ("connect", "raw_connection"):
        vars(engine).pop(name, None)
    vars(engine.pool).pop("connect", None)


def give_back_async(engine: AsyncEngine) -> None:
    """Undo `capture_async`."""
    if type(engine) is _CapturedAsyncEngine:
        engine.__class__ = AsyncEngine  # type: ignore[assignment]


def open_main(engine: Engine) -> Connection:
    """A connection of `engine`, captured or not.

    Raises:
        sqlalchemy.exc.DBAPIError: as `engine.connect()` does.
    """
    try:
        return Connection(engine, type(engine.pool).connect(engine.pool))
    except engine.dialect.loaded_dbapi.Error as exc:
        Connection._handle_dbapi_exception_noconnection(exc, engine.dialect, engine)
        raise


class KeptConnection:
    """A pool's connection that whoever holds this can neither end nor give back."""

    def __init__(self, fairy: Any) -> None:
        self.fairy = fairy

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fairy, name)

    def close(self) -> None:
        """Nothing: the sandbox gives it back."""

    def _close_special(self, transaction_reset: bool = False) -> None: ...

    def commit(self) -> NoReturn:
        """Refused, as `rollback` and `detach` are."""
        raise SandboxError(
            "This would end the transaction that the sandbox rolls back. Call the session's "
            "commit() or rollback(), not its driver's."
        )

    rollback = detach = commit


class _LentConnection(KeptConnection):
    """As a guest holds it."""

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        """Nothing: the sandbox's own connection notices by itself."""


class Guest(Connection):
    """A connection whose root transaction is a savepoint of `main`."""

    def __init__(self, main: Connection) -> None:
        options_inside(main.engine.get_execution_options())  # which every connection of it sets
        self._main = main
        self._outer: Any = None
        lent: Any = _LentConnection(main.connection)
        super().__init__(main.engine, lent)

    def execution_options(self, **opt: Any) -> Connection:
        return super().execution_options(**options_inside(opt))

    def _execute_context(self, *args: Any, **kwargs: Any) -> CursorResult[Any]:
        for transaction in (self._transaction, self._nested_transaction):
            if transaction is not None and not transaction.is_active:
                self._invalid_transaction()
        if self._transaction is None:
            self._autobegin()
        return self._main._execute_context(*args, **kwargs)

    def _begin_impl(self, transaction: Any) -> None:
        self._outer = self._main.begin_nested()

    def _commit_impl(self) -> None:
        self._outer.commit()

    def _rollback_impl(self) -> None:
        if self._outer.is_active:
            self._outer.rollback()

    def _savepoint_impl(self, name: str | None = None) -> str:
        return super()._savepoint_impl(name or f"fsa_{uuid4().hex}")

    def _begin_twophase_impl(self, transaction: Any) -> None:
        self._begin_impl(transaction)

    def _prepare_twophase_impl(self, xid: Any) -> None:
        """Nothing: a savepoint cannot fail to be released."""

    def _commit_twophase_impl(self, xid: Any, is_prepared: bool) -> None:
        self._commit_impl()

    def _rollback_twophase_impl(self, xid: Any, is_prepared: bool) -> None:
        self._rollback_impl()


class _SandboxAsyncConnection(AsyncConnection):
    """An `AsyncConnection` over a sync one: nothing in it has to be awaited."""

    __slots__ = ()

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        return await greenlet_spawn(self._proxied.execute, *args, **kwargs)

    async def exec_driver_sql(self, *args: Any, **kwargs: Any) -> Any:
        return await greenlet_spawn(self._proxied.exec_driver_sql, *args, **kwargs)

    @asyncstartablecontext
    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[AsyncResult[Any]]:
        result = AsyncResult(await greenlet_spawn(self._proxied.execute, *args, **kwargs))
        try:
            yield result
        except GeneratorExit:  # it was awaited, not entered: whoever reads it closes it
            return
        await result.close()


class _CapturedAsyncEngine(AsyncEngine):
    __slots__ = ()

    def connect(self) -> AsyncConnection:
        return _SandboxAsyncConnection(self)


def asynchronous(connection: Connection) -> AsyncConnection:
    """What `AsyncSession.connection()` finds for `connection`, a sync one, while it is referenced.

    Its engine is a stand-in: there may be no async driver.
    """
    engine = object.__new__(_CapturedAsyncEngine)
    engine.sync_engine = connection.engine
    return _SandboxAsyncConnection(engine, connection)


def awaitable(result: Any) -> Any:
    """`result` of a sync driver, as an `AsyncSession` returns it: it asks cursors to close."""
    cursor = getattr(result, "cursor", None)
    is_sync = cursor is not None and not hasattr(cursor, "_async_soft_close")
    if is_sync and isinstance(result, CursorResult):
        guest: Any = _Cursor(cursor)
        result.cursor = guest
    return result


class _Cursor:
    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def __iter__(self) -> Any:
        return iter(self._cursor)

    async def _async_soft_close(self) -> None: ...


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise SandboxError(_OUTSIDE)


def _refuse_pool(engine: Engine) -> None:
    """Also of the pool that `dispose()` has made: engines with options of their own go there."""
    vars(engine.pool)["connect"] = _refuse
