"""A sandbox: one connection per binding, everything on it rolled back at the end."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import Connection, Engine, event
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
)
from sqlalchemy.util import greenlet_spawn

from ..exceptions import ConfigurationError, SandboxError
from ..sessions.binding import Binding
from ..sessions.connections import has_transaction
from .guests import (
    Guest,
    KeptConnection,
    asynchronous,
    awaitable,
    capture,
    capture_async,
    give_back,
    give_back_async,
    open_main,
)
from .savepoints import forgive
from .sql_statements import statements

__all__ = ["Sandbox", "Sandboxed"]


class Sandboxed(Protocol):
    """A database that can be put into a sandbox."""

    def _binding(self) -> Binding:
        """What serves this code."""
        raise NotImplementedError

    def _set_sandbox(self, sandbox: Sandbox[Any] | None) -> None:
        """Have every binding use `sandbox`."""


D = TypeVar("D", bound=Sandboxed)

#: How long a request waits for the one before it, in seconds.
ACQUIRE_TIMEOUT_S = 10.0
_POLL_S = 0.002
_LEVEL = "fastapi_sqlalchemy_isolation_level"

# Most statements need no closer look.
_MAY_END = re.compile(
    r"\b(commit|end|abort|prepare|rollback|create|alter|drop|truncate|rename|grant|revoke|lock|"
    r"optimize|analyze|check|repair|flush|reset|cache|install|uninstall|backup|password|begin|start|"
    r"autocommit)\b",
    re.I,
)
_ENDS = re.compile(
    r"(commit|end|abort|prepare\s+transaction|rollback(?!\s+((work|transaction)\s+)?to\b))\b", re.I
)
_MYSQL_COMMITS_ON = re.compile(
    r"(?!create\s+temporary|drop\s+temporary)"
    r"(set\s+statement\b.*?\bfor\s+)?"
    r"(create|alter|drop|truncate|rename|grant|revoke|lock\s+tables?|optimize|analyze|check|repair|"
    r"flush|reset|cache\s+index|load\s+index|install|uninstall|backup|begin|start\s+transaction|"
    r"set\s+password|set\b.*\bautocommit)\b",
    re.I,
)


_WAS_OPEN = "fsa_was_open"
_HAS_ENDED = "fsa_has_ended"
_ENDED = (
    "The sandbox's own transaction is over: a procedure, a statement that commits by itself, the "
    "driver's commit() or a deadlock has ended it. What was committed so stays."
)


class Sandbox(Generic[D]):
    """Everything inside, commits included, happens on one connection and is rolled back at its end.

    Each session joins the connection's transaction with a savepoint of its own: its `commit()`
    releases it, its `rollback()` goes back to it. One *sync* connection serves `db.session` and
    `db.async_session` alike, so it works on every event loop, and blocks the one it works on. A
    database with only an async driver is served by one async connection: enter with `async with`,
    and use it on that event loop.

    Savepoints end in the reverse order of their beginning, so requests inside a sandbox run one at
    a time; one that waits longer than 10 s fails and names the one that it waited for.

    MySQL and MariaDB commit at CREATE TABLE and its like: in a sandbox these are refused. So is,
    everywhere, what would end the connection's own transaction: a COMMIT in SQL, or
    `session.connection().commit()`.

    `db.engine.connect()`, `Session(db.engine)` and the like are inside too: their transactions are
    savepoints of that connection. A session class that chooses its engines (`get_bind`, `binds`)
    gets one connection for each. What goes past `connect()`, as `engine.raw_connection()` does, is
    refused.

    Args:
        opened: Called with each connection that serves the sandbox, before it is used.

    https://docs.sqlalchemy.org/en/21/orm/session_transaction.html#joining-a-session-into-an-external-transaction-such-as-for-test-suites
    """

    def __init__(self, database: D, opened: Callable[[Connection], None] | None = None) -> None:
        self._database = database
        self._opened = opened
        self._lock = threading.Lock()
        self._mains: dict[Engine, Connection] = {}
        self._async_mains: dict[Engine, AsyncConnection] = {}
        self._proxies: list[AsyncConnection] = []
        self._watchers: list[tuple[Binding, Callable[[Engine | AsyncEngine], None]]] = []
        self._captured: list[Engine | AsyncEngine] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = threading.Lock()
        self._holder = ""

    def __enter__(self) -> D:
        self._database._set_sandbox(self)
        return self._database

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._database._set_sandbox(None)
        self._let_engines_go()
        for connection in self._mains.values():
            try:
                _roll_back(connection)
            finally:
                connection.close()
        self._mains.clear()
        self._proxies.clear()

    async def __aenter__(self) -> D:
        self._loop = asyncio.get_running_loop()
        self._database._set_sandbox(self)
        binding = self._database._binding()
        if not _has_sync_side(binding):
            try:
                await greenlet_spawn(self._async_main, binding.engines.asynchronous.sync_engine)
            except BaseException:
                self._database._set_sandbox(None)
                self._let_engines_go()
                raise
        return self._database

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)
        for connection in self._async_mains.values():
            try:
                await connection.run_sync(_roll_back)
            finally:
                await connection.close()
        self._async_mains.clear()

    # -- what bindings ask for -----------------------------------------------------------------

    def hold(self, binding: Binding) -> None:
        """Capture the engines of `binding`, those too that are made while the sandbox is open."""
        watcher = partial(self._capture, binding)
        self._watchers.append((binding, watcher))
        binding.engines.watchers.append(watcher)
        for engine in binding.engines.all_made():
            self._capture(binding, engine)

    def session_args(self, binding: Binding) -> dict[str, Any]:
        """What a `Session` of `binding` is made with, inside."""
        return {
            "bind": self._main(binding.engines.sync),
            "join_transaction_mode": "create_savepoint",
        }

    def open_async_session(
        self, binding: Binding, maker: async_sessionmaker[AsyncSession], own: dict[str, Any]
    ) -> AsyncSession:
        """An `AsyncSession` of `binding`, inside: on the sync connection where there is one."""
        own["join_transaction_mode"] = "create_savepoint"
        session = maker(**{**own, "bind": None})
        main = self._main_of(binding)
        opened = (*self._proxies, *self._async_mains.values())
        session.bind = next(each for each in opened if each.sync_connection is main)
        session.sync_session.bind = main  # as the line above does from SQLAlchemy 2.1 on
        return session

    def main_for(self, binding: Binding, bind: Any) -> Connection:
        """The sandbox's connection for what a session of `binding` has chosen to connect with.

        Raises:
            SandboxError: it is a connection of somebody else's, or an async engine that cannot be
                held from here.
        """
        if isinstance(bind, Connection):
            if bind in self._mains.values() or isinstance(bind, Guest) or self._is_async_main(bind):
                return bind
            raise SandboxError(
                "This session chose a connection of its own, whose transaction the sandbox does "
                "not roll back. Have its get_bind() return an engine."
            )
        if bind in binding.engines.all_sync():
            return self._main_of(binding)
        # A replica, a tenant: an engine that only the session class knows.
        return self._async_main(bind) if bind.dialect.is_async else self._main(bind)

    def awaitable(self, result: Any) -> Any:
        """`result` as an `AsyncSession` of this sandbox returns it."""
        return awaitable(result)

    def _capture(self, binding: Binding, engine: Engine | AsyncEngine) -> None:
        if isinstance(engine, AsyncEngine):
            if _has_sync_side(binding):
                capture_async(engine)
            capture(engine.sync_engine, lambda: self._main_of(binding))
        else:
            capture(engine, lambda: self._main_of(binding))
        self._captured.append(engine)

    def _let_engines_go(self) -> None:
        for binding, watcher in self._watchers:
            binding.engines.watchers.remove(watcher)
        for engine in self._captured:
            if isinstance(engine, AsyncEngine):
                give_back_async(engine)
                give_back(engine.sync_engine)
            else:
                give_back(engine)
        self._watchers.clear()
        self._captured.clear()

    def _main_of(self, binding: Binding) -> Connection:
        if _has_sync_side(binding):
            return self._main(binding.engines.sync)
        return self._async_main(binding.engines.asynchronous.sync_engine)

    def _main(self, engine: Engine) -> Connection:
        with self._lock:
            connection = self._mains.get(engine)
            if connection is None:
                connection = open_main(engine)
                self._begin(connection)
                self._mains[engine] = connection
                # AsyncSession.connection() and AsyncSession.bind look for it.
                self._proxies.append(asynchronous(connection))
                if engine not in self._captured:
                    capture(engine, lambda: self._main(engine))
                    self._captured.append(engine)
            return _not_lost(connection)

    def _async_main(self, engine: Engine) -> Connection:
        """As `_main`, for an async engine; opened in a greenlet of its event loop."""
        opened = self._async_mains.get(engine)
        if opened is None:
            if self._loop is None:
                raise SandboxError(
                    "This database has only an async driver: open its sandbox with\n\n"
                    "    async with db.sandbox():\n\n"
                    "after it was configured."
                )
            self._check_loop()
            connection = open_main(engine)
            self._begin(connection)
            opened = AsyncConnection(AsyncEngine(engine), connection)
            self._async_mains[engine] = opened
            if engine not in self._captured:
                capture(engine, lambda: self._async_main(engine))
                self._captured.append(engine)
        self._check_loop()
        assert opened.sync_connection is not None
        return _not_lost(opened.sync_connection)

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise SandboxError(
                "This database has only an async driver, and its sandbox belongs to the event "
                "loop that opened it; this code runs on another one (TestClient starts its own: "
                "use httpx.AsyncClient with ASGITransport, or install a sync driver)."
            )

    def _is_async_main(self, connection: Connection) -> bool:
        return any(main.sync_connection is connection for main in self._async_mains.values())

    def _begin(self, connection: Connection) -> None:
        _begin(connection)
        if self._opened is not None:
            self._opened(connection)

    # -- one at a time ---------------------------------------------------------------------------

    def acquire(self, label: str) -> None:
        """Wait until nobody else is at it, at most 10 s; for code in a thread.

        Raises:
            SandboxError: it took longer. The message names `label` and the one it waited for.
        """
        if not self._turn.acquire(timeout=ACQUIRE_TIMEOUT_S):
            raise self._busy(label)
        self._holder = label

    async def aacquire(self, label: str) -> None:
        """As `acquire`, on an event loop: the one it waits for may run on the same loop."""
        deadline = time.monotonic() + ACQUIRE_TIMEOUT_S
        while not self._turn.acquire(blocking=False):
            if time.monotonic() > deadline:
                raise self._busy(label)
            await asyncio.sleep(_POLL_S)
        self._holder = label

    def release(self) -> None:
        """Let the next one in."""
        self._turn.release()

    def _busy(self, label: str) -> SandboxError:
        return SandboxError(
            f"{label} waited {ACQUIRE_TIMEOUT_S:g} s for {self._holder}, which still runs in this "
            "sandbox: requests there run one at a time."
        )


def _has_sync_side(binding: Binding) -> bool:
    try:
        return bool(binding.engines.sync)
    except ConfigurationError:
        return False


def _not_lost(connection: Connection) -> Connection:
    """`connection`; what was done inside has gone with one that is lost.

    Raises:
        SandboxError: it is lost.
    """
    if connection.invalidated:
        raise SandboxError(
            "The sandbox has lost its connection, and what was done inside with it: the server has "
            "ended it, or an async statement on it was cancelled. Open another sandbox."
        )
    return connection


def _begin(connection: Connection) -> None:
    if connection.dialect.name != "sqlite":
        # The same level again, but never autocommit, which leaves nothing to roll back.
        connection.execution_options(isolation_level=connection.get_isolation_level())
    connection.begin()
    if connection.dialect.name == "sqlite":
        # In its legacy mode sqlite3 begins at the first write only, and then a SAVEPOINT before it
        # is the outermost transaction: RELEASE commits.
        connection.info[_LEVEL] = _set_isolation_level(connection, None)
        driver_connection: Any = connection.connection.driver_connection
        if not driver_connection.in_transaction:  # the engine's own listener may have begun
            connection.exec_driver_sql("BEGIN")
    event.listen(connection, "before_cursor_execute", _refuse_end)
    event.listen(connection, "after_cursor_execute", _check_not_ended)
    forgive(connection)
    for end in ("commit", "rollback"):
        # The event comes when SQLAlchemy takes the transaction for ended; the method is in time.
        event.listen(connection, end, _refuse_end_of_connection)
        setattr(connection, end, partial(_refuse_end_of_connection, connection))
    vars(connection)["_dbapi_connection"] = KeptConnection(connection.connection)


def _roll_back(connection: Connection) -> None:
    event.remove(connection, "rollback", _refuse_end_of_connection)
    kept = vars(connection)["_dbapi_connection"]
    if isinstance(kept, KeptConnection):
        vars(connection)["_dbapi_connection"] = kept.fairy
    has_ended = _has_ended(connection)
    Connection.rollback(connection)
    if connection.dialect.name == "sqlite" and not connection.invalidated:
        _set_isolation_level(connection, connection.info.pop(_LEVEL))
    if has_ended:
        raise SandboxError(_ENDED)


def _has_ended(connection: Connection) -> bool:
    """Whether the transaction, which was open once, is over: a procedure or a driver ended it."""
    seen = vars(connection)
    if not (seen.get(_HAS_ENDED) or connection.closed or connection.invalidated):
        is_open = has_transaction(connection)
        seen[_HAS_ENDED] = is_open is False and seen.get(_WAS_OPEN, False)
        seen[_WAS_OPEN] = is_open
    return bool(seen.get(_HAS_ENDED))


def _check_not_ended(connection: Connection, *_: Any) -> None:
    if _has_ended(connection):
        raise SandboxError(_ENDED)


def _set_isolation_level(connection: Connection, level: str | None) -> str | None:
    """Set sqlite3's; the one that it had."""
    dbapi_connection: Any = connection.connection.dbapi_connection
    before: str | None = dbapi_connection.isolation_level
    dbapi_connection.isolation_level = level
    return before


def _refuse_end_of_connection(connection: Connection) -> None:
    raise SandboxError(
        "This would end the transaction that the sandbox rolls back. Call the session's commit() "
        "or rollback(), not its connection's."
    )


def _refuse_end(
    connection: Connection,
    cursor: Any,
    statement: str,
    parameters: Any,
    context: Any,
    executemany: bool,
) -> None:
    _check_not_ended(connection)
    if not _MAY_END.search(statement):
        return
    dialect = connection.dialect.name
    for each in statements(statement, dialect):
        if _ENDS.match(each):
            raise SandboxError(
                "This would end the transaction that the sandbox rolls back. Call the session's "
                f"commit() or rollback() instead of the statement: {each[:60]}"
            )
        if dialect in ("mysql", "mariadb") and _MYSQL_COMMITS_ON.match(each):
            raise SandboxError(
                "MySQL and MariaDB commit when they run this, and a sandbox could not undo it: "
                f"{each[:60]}"
            )
