"""One set of engine arguments becomes a sync and an async engine, each made on first use."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import sqlalchemy
import sqlalchemy.ext.asyncio
from sqlalchemy import URL, Engine, event
from sqlalchemy.exc import NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, QueuePool

from ..exceptions import MissingDriverError
from . import aiosqlite_connections, fork_safety, read_only_servers, sqlite_transactions
from .arguments import EngineArguments
from .connect_args import merged, require_tls
from .kept_connections import keep
from .sqlite_memory import MemoryDatabase, is_in_memory
from .transports import cut, parted, transport_of
from .urls import Side, missing_driver

__all__ = ["Engines"]

#: How long an async engine's idle connections may take, all together, to part from their server.
CLOSE_TIMEOUT_S = 2.0


class Engines:
    """The engines of one set of arguments.

    `sync` is made once a process. The async one belongs to the event loop that asks for it, and
    ends with that loop. What was passed in as a custom engine is used and never disposed.
    """

    def __init__(self, arguments: EngineArguments) -> None:
        self.arguments = arguments
        self._lock = threading.RLock()
        self._made: list[Engine] = []
        self._by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopEngine] = (
            weakref.WeakKeyDictionary()
        )
        self._memory: MemoryDatabase | None = None
        self._kept = 0
        #: Called with each engine that is made from now on.
        self.watchers: list[Callable[[Engine | AsyncEngine], None]] = []
        if arguments.custom_engine is not None:
            _guard(arguments.custom_engine)
        if arguments.custom_async_engine is not None:
            _guard_async(arguments.custom_async_engine)
        fork_safety.forget_after_fork(self)
        weakref.finalize(self, _dispose_all, self._made)

    @property
    def in_memory(self) -> bool:
        """Whether the database is SQLite's in-memory one, which lives in this process only."""
        custom = self.arguments.custom_engine or self.arguments.custom_async_engine
        return custom is None and is_in_memory(self.arguments.url)

    @property
    def sync(self) -> Engine:
        """The sync engine.

        Raises:
            ConfigurationError: only an async engine was given, or no sync driver goes with it.
            MissingDriverError: the driver is not installed.
        """
        if self.arguments.custom_engine is not None:
            return self.arguments.custom_engine
        if not self._made:
            with self._lock:
                if not self._made:
                    url, arguments = self._resolve("sync")
                    try:
                        engine = sqlalchemy.create_engine(url, **arguments)
                    except ModuleNotFoundError as exc:
                        raise missing_driver(url, "sync") from exc
                    _guard(engine)
                    self._keep_of(engine, arguments)
                    self._made.append(engine)
                    for watcher in self.watchers:
                        watcher(engine)
        return self._made[0]

    @property
    def asynchronous(self) -> AsyncEngine:
        """The async engine of the running event loop.

        Raises:
            RuntimeError: no event loop is running in this thread.
            ConfigurationError: only a sync engine was given, or no async driver goes with it.
            MissingDriverError: the driver is not installed.
        """
        if self.arguments.custom_async_engine is not None:
            return self.arguments.custom_async_engine
        loop = asyncio._get_running_loop()
        if loop is None:
            raise RuntimeError(
                "db.async_engine belongs to the event loop that runs, and none runs here. Use it "
                "inside a coroutine (a lifespan), or listen to its connections with "
                "db.on_connect(...)."
            )
        held = self._by_loop.get(loop)
        if held is None:
            held = self._make_async(loop)
        return held.engine

    def made(self) -> dict[Side, Engine | AsyncEngine]:
        """The engines that exist already, of this process and of the running event loop."""
        engines: dict[Side, Engine | AsyncEngine] = {}
        if self.arguments.custom_engine is not None:
            engines["sync"] = self.arguments.custom_engine
        elif self._made:
            engines["sync"] = self._made[0]
        if self.arguments.custom_async_engine is not None:
            engines["async"] = self.arguments.custom_async_engine
        else:
            loop = asyncio._get_running_loop()
            held = self._by_loop.get(loop) if loop is not None else None
            if held is not None:
                engines["async"] = held.engine
        return engines

    def all_made(self) -> list[Engine | AsyncEngine]:
        """The engines that exist already, those of other event loops too."""
        engines: list[Engine | AsyncEngine] = list(self._made)
        engines += [held.engine for held in list(self._by_loop.values())]
        custom = (self.arguments.custom_engine, self.arguments.custom_async_engine)
        return engines + [engine for engine in custom if engine is not None]

    def all_sync(self) -> list[Engine]:
        """The same as a session sees them: the sync engine inside each async one."""
        return [
            engine.sync_engine if isinstance(engine, AsyncEngine) else engine
            for engine in self.all_made()
        ]

    def dispose(self) -> None:
        """Close the sync pool's idle connections, and end an in-memory database."""
        self.close_idle()
        if self._memory is not None:
            with self._lock:
                self._memory.close()
                self._memory = None
                # Their URL names the database that has just gone.
                self._made.clear()
                self._by_loop.clear()

    async def adispose(self) -> None:
        """As `dispose`, with the async pool of the running event loop."""
        await self.aclose_idle()
        self.dispose()

    def end(self) -> None:
        """As `dispose`, with all async engines: each on its own loop, when that has time."""
        for loop, held in list(self._by_loop.items()):
            held.end_soon(loop)
        self.dispose()

    def close_idle(self) -> None:
        """Close the idle connections of the sync engine that was made here."""
        _dispose_all(self._made)

    async def aclose_idle(self) -> None:
        """Close the idle connections of the async engine that was made for this event loop."""
        held = self._by_loop.get(asyncio.get_running_loop())
        if held is not None:
            await held.dispose()

    def renew(self) -> None:
        """Have each connection that is open now replaced when its pool hands it out again.

        Custom engines' too. SQLite's are of no network, and may hold a database in memory.
        """
        with self._lock:
            engines = self.all_sync()
        for engine in engines:
            if engine.dialect.name != "sqlite":
                read_only_servers.renew(engine.pool)

    def keep(self, count: int) -> None:
        """Have the pools keep `count` connections open, of those that they may open at most.

        Where the arguments say how many, that holds. An async engine that is made already stays as
        it is.
        """
        with self._lock:
            self._kept = count
            for engine in self._made:
                self._keep_of(engine, self.arguments.engine_args)

    def _keep_of(self, engine: Engine, arguments: Mapping[str, Any]) -> None:
        if not arguments.keys() & {"pool_size", "pool"}:
            keep(engine.pool, self._kept)

    def after_fork(self) -> None:
        """Start anew in a child: the loops that its async engines belong to are the parent's."""
        self._lock = threading.RLock()
        fork_safety.abandon(list(self._by_loop.values()))
        self._by_loop.clear()

    def _resolve(self, side: Side) -> tuple[URL, dict[str, Any]]:
        try:
            url, connect_args = self.arguments.url_of(side)
        except NoSuchModuleError as exc:
            name = self.arguments.url.drivername
            raise MissingDriverError(
                f"SQLAlchemy knows no {name!r} database: is its package installed?"
            ) from exc
        arguments = self.arguments.arguments_of(side, url)
        if connect_args:
            arguments["connect_args"] = merged(connect_args, arguments.get("connect_args", {}))
        if is_in_memory(url):
            if self._memory is None:
                self._memory = MemoryDatabase(url)
            url = self._memory.url(url)
            if "pool" not in arguments:
                queue = QueuePool if side == "sync" else AsyncAdaptedQueuePool
                arguments.setdefault("poolclass", queue)
        return url, arguments

    def _make_async(self, loop: asyncio.AbstractEventLoop) -> _LoopEngine:
        with self._lock:
            for closed in [known for known in self._by_loop if known.is_closed()]:
                self._by_loop.pop(closed).engine.sync_engine.dispose(close=False)
            url, arguments = self._resolve("async")
            try:
                engine = sqlalchemy.ext.asyncio.create_async_engine(url, **arguments)
            except ModuleNotFoundError as exc:
                raise missing_driver(url, "async") from exc
            _guard_async(engine)
            self._keep_of(engine.sync_engine, arguments)
            require_tls(engine.sync_engine, arguments.get("connect_args", {}))
            held = self._by_loop[loop] = _LoopEngine(engine, self._by_loop, loop)
        for watcher in self.watchers:
            watcher(engine)
        return held


class _LoopEngine:
    """An async engine that is disposed when its event loop ends.

    asyncio.run() and anyio's portals (TestClient) finish a loop's async generators before they
    close it, and no other hook of theirs is open to a library: a started generator waits for that.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        known: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopEngine],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.engine = engine
        self._end = self._at_end_of_loop(known, loop)
        with contextlib.suppress(StopIteration):
            self._end.asend(None).send(None)

    async def dispose(self) -> None:
        """Close its idle connections now, and the others when they are given back.

        asyncpg waits for the server at each goodbye, and TLS under asyncmy and aiomysql, however
        long it takes: what is left after CLOSE_TIMEOUT_S is cut.
        """
        pool = self.engine.sync_engine.pool
        loop = asyncio.get_running_loop()
        closing: Any = None
        transports: list[asyncio.Transport] = []

        def note(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
            nonlocal closing
            closing = record.driver_connection
            if (transport := transport_of(closing)) is not None:
                transports.append(transport)
            if loop.time() >= timer.when():
                cut(closing)

        timer = loop.call_later(CLOSE_TIMEOUT_S, lambda: cut(closing))
        event.listen(pool, "close", note)
        try:
            await self.engine.dispose()
            await parted(transports, timer.when())
        finally:
            timer.cancel()
            event.remove(pool, "close", note)
        event.listen(pool, "checkin", _close_returned)

    def end_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have it disposed on `loop`, which may be another thread's."""
        end = self._end
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(lambda: loop.create_task(end.aclose()))

    async def _at_end_of_loop(
        self,
        known: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopEngine],
        loop: asyncio.AbstractEventLoop,
    ) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            known.pop(loop, None)
            await self.dispose()


def _guard(engine: Engine) -> None:
    fork_safety.guard(engine)
    sqlite_transactions.begin_in_time(engine.dialect)


def _guard_async(engine: AsyncEngine) -> None:
    _guard(engine.sync_engine)
    if engine.dialect.driver == "aiosqlite":
        aiosqlite_connections.adapt(engine.dialect)


def _dispose_all(engines: list[Engine]) -> None:
    for engine in engines:
        pool = engine.pool
        engine.dispose()
        event.listen(pool, "checkin", _close_returned)


def _close_returned(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    """Close what comes back to a pool that was disposed: nobody else would."""
    if dbapi_connection is not None:
        record.invalidate()
