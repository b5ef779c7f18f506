"""One set of engine arguments becomes a sync and an async engine, each made on first use."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import uuid
import weakref
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy
import sqlalchemy.ext.asyncio
from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool, QueuePool, SingletonThreadPool

from . import forks
from .exceptions import ConfigurationError
from .urls import Side, missing_driver, same_words, serves, url_for

# Arguments of create_engine() that hold connections or make them: never the other side's.
_OWN_SIDE_ONLY = ("creator", "async_creator", "pool", "module", "dialect")


@dataclass(frozen=True, eq=False)
class EngineArguments:
    """What the user gave to say which database, and how to connect to it."""

    db_url: URL | None = None
    custom_engine: Engine | None = None
    engine_args: dict[str, Any] = field(default_factory=dict)
    async_db_url: URL | None = None
    custom_async_engine: AsyncEngine | None = None
    async_engine_args: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> URL:
        """The database that these arguments mean, as the user said it."""
        if self.custom_engine is not None:
            return self.custom_engine.url
        if self.db_url is not None:
            return self.db_url
        if self.custom_async_engine is not None:
            return self.custom_async_engine.url
        assert self.async_db_url is not None
        return self.async_db_url

    def url_of(self, side: Side) -> tuple[URL, dict[str, Any]]:
        """The URL that serves `side`, and the connect arguments that its translation needs."""
        given = (self.db_url, self.async_db_url)
        own, other = given if side == "sync" else given[::-1]
        url = own or other
        if url is None:
            argument, attribute = (
                ("db_url= or custom_engine=", "db.session")
                if side == "sync"
                else ("async_db_url= or custom_async_engine=", "db.async_session")
            )
            raise ConfigurationError(
                f"{attribute} needs {'a sync' if side == 'sync' else 'an async'} engine, and only "
                f"a custom engine of the other kind was given. Pass {argument} too."
            )
        return url_for(url, side)

    def arguments_of(self, side: Side, url: URL) -> dict[str, Any]:
        """`engine_args` as far as they suit `side`, then what was given for that side alone."""
        arguments = dict(self.engine_args)
        native = self.db_url or self.async_db_url
        if native is not None and not serves(native, side):
            for name in _OWN_SIDE_ONLY:
                arguments.pop(name, None)
            if not same_words(native, url):
                arguments.pop("connect_args", None)
        poolclass = arguments.get("poolclass")
        if poolclass is not None and not _suits(poolclass, side):
            del arguments["poolclass"]
        if side == "async":
            arguments.update(self.async_engine_args)
        return arguments


class Engines:
    """The engines of one set of arguments.

    `sync` is made once a process. The async one belongs to the event loop that asks for it, and
    ends with that loop. What was passed in as a custom engine is used and never disposed.
    """

    def __init__(self, arguments: EngineArguments) -> None:
        self.arguments = arguments
        self._lock = threading.Lock()
        self._made: list[Engine] = []
        self._by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopEngine] = (
            weakref.WeakKeyDictionary()
        )
        self._memory: _MemoryDatabase | None = None
        forks.forget_after_fork(self)
        weakref.finalize(self, _dispose_all, self._made)

    @property
    def in_memory(self) -> bool:
        """Whether the database is SQLite's in-memory one, which lives in this process only."""
        custom = self.arguments.custom_engine or self.arguments.custom_async_engine
        return custom is None and _is_memory(self.arguments.url)

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
                        self._made.append(sqlalchemy.create_engine(url, **arguments))
                    except ModuleNotFoundError as exc:
                        raise missing_driver(url, "sync") from exc
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
        loop = asyncio.get_running_loop()
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

    def close_idle(self) -> None:
        """Close the idle connections of the sync engine that was made here."""
        _dispose_all(self._made)

    async def aclose_idle(self) -> None:
        """Close the idle connections of the async engine that was made for this event loop."""
        held = self._by_loop.get(asyncio.get_running_loop())
        if held is not None:
            await held.engine.dispose()

    def after_fork(self) -> None:
        """Drop the inherited connections, custom engines' too, without a word to the server."""
        self._lock = threading.Lock()
        custom_async = self.arguments.custom_async_engine
        of_loops = list(self._by_loop.values())
        forks.abandon(of_loops)
        engines = [*self._made, *(held.engine.sync_engine for held in of_loops)]
        if self.arguments.custom_engine is not None:
            engines.append(self.arguments.custom_engine)
        if custom_async is not None:
            engines.append(custom_async.sync_engine)
        for engine in engines:
            forks.abandon(engine.pool)
            engine.dispose(close=False)
        self._by_loop.clear()

    def _resolve(self, side: Side) -> tuple[URL, dict[str, Any]]:
        url, connect_args = self.arguments.url_of(side)
        arguments = self.arguments.arguments_of(side, url)
        if connect_args:
            arguments["connect_args"] = {**connect_args, **arguments.get("connect_args", {})}
        if _is_memory(url):
            if self._memory is None:
                self._memory = _MemoryDatabase()
            url = self._memory.url(url)
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
            held = self._by_loop[loop] = _LoopEngine(engine, self._by_loop, loop)
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

    async def _at_end_of_loop(
        self,
        known: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopEngine],
        loop: asyncio.AbstractEventLoop,
    ) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            known.pop(loop, None)
            await self.engine.dispose()


class _MemoryDatabase:
    """A named in-memory SQLite database, which lives as long as its one anchor connection.

    Every other connection of the process, sync or async, sees the same tables and has its own
    transaction; plain `:memory:` is another database in every connection.
    https://www.sqlite.org/src/file?name=src/memdb.c
    """

    def __init__(self) -> None:
        if sqlite3.sqlite_version_info < (3, 36):
            raise ConfigurationError(
                "An in-memory SQLite database that threads share needs SQLite 3.36; this Python "
                f"has {sqlite3.sqlite_version}. Use a file: sqlite:///app.db"
            )
        self._name = f"file:/fsa-{uuid.uuid4().hex}"
        self._anchor = sqlite3.connect(f"{self._name}?vfs=memdb", uri=True, check_same_thread=False)

    def url(self, url: URL) -> URL:
        return url.set(database=self._name, query={**url.query, "vfs": "memdb", "uri": "true"})

    def close(self) -> None:
        self._anchor.close()


def _is_memory(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def _suits(poolclass: type[Pool], side: Side) -> bool:
    if issubclass(poolclass, AsyncAdaptedQueuePool):
        return side == "async"
    return side == "sync" or not issubclass(poolclass, (QueuePool, SingletonThreadPool))


def _dispose_all(engines: list[Engine]) -> None:
    for engine in engines:
        engine.dispose()
