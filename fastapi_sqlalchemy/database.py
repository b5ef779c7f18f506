"""`Database`, the class of `db`: configuring it, and opening sessions with it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar, Unpack

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from .asgi.pending_middleware import find_pending
from .configuration import UNSET, Configuration, Options, Unset, refuse_unknown
from .engines import fork_safety
from .engines.urls import masked
from .exceptions import MissingSessionError, SandboxError, SessionNotInitialisedError
from .sandbox.sandbox import Sandbox
from .sessions.binding import Binding, OpenSandbox
from .sessions.gather import gather
from .sessions.request_scope import RequestScope
from .sessions.scope import Scope, refuse_other_loops

__all__ = ["Database", "DatabaseContext"]

T = TypeVar("T")


class Database:
    """Sessions for whatever code is running: a request, a task, a thread, a script.

    Inside a request of an app with `DBSessionMiddleware`, and inside `with db():` or
    `async with db():`, `db.session` and `db.async_session` are that scope's sessions.

    Args:
        name: what `fsa --database` and messages call it. The global `db` is named `default`.
    """

    def __init__(self, name: str = "default") -> None:
        self.name = name
        self._scope: ContextVar[Scope | None] = ContextVar(
            f"fastapi_sqlalchemy:{name}", default=None
        )
        self._lock = threading.RLock()
        fork_safety.forget_after_fork(self)
        self._bindings: weakref.WeakSet[Binding] = weakref.WeakSet()
        self._in_memory: list[Binding] = []
        self._current: Binding | None = None
        self._configured: Binding | None = None
        self._configuration: Configuration | None = None
        self._sandbox: Sandbox[Any] | None = None
        self._connect_listeners: list[Callable[[Any, Any], None]] = []

    def __repr__(self) -> str:
        url = masked(self.url) if self.url else "not configured"
        return f"<Database {self.name!r}: {url}>"

    # -- configuring ---------------------------------------------------------------------------

    def configure(
        self,
        db_url: str | URL | None = None,
        custom_engine: Engine | AsyncEngine | None = None,
        engine_args: Mapping[str, Any] | None = None,
        session_args: Mapping[str, Any] | None = None,
        commit_on_exit: bool | Unset = UNSET,
        **options: Unpack[Options],
    ) -> None:
        """Say which database to use, without an app. Nothing connects before it is used.

        From one URL both sides follow, where the pair of drivers is known. Configuring again
        disposes the engines that an earlier call made, unless a middleware uses them.

        Args:
            db_url: the database; for the async side too, unless `async_db_url` says otherwise.
            custom_engine: an engine of your own (`Engine` or `AsyncEngine`), never disposed here.
            engine_args: for `create_engine()`, and for `create_async_engine()` as far as they suit.
            session_args: for `Session` and `AsyncSession`; `class_` goes to the side it subclasses.
            commit_on_exit: what a `DBSessionMiddleware` without arguments of its own does. A
                `db()` block has its own.
            async_db_url: the async side's URL, where it is another.
            custom_async_engine: an `AsyncEngine` of your own, never disposed here.
            async_engine_args: for `create_async_engine()` only; where the URL is an async driver's
                and `engine_args` has no `connect_args`, those of these reach the sync side.
            async_session_args: for `AsyncSession` only.
            rollback_from_status: with `commit_on_exit`, the lowest status that rolls back; None:
                only an exception does.

        Raises:
            ValueError: neither a URL nor an engine was given.
        """
        refuse_unknown(options, "Database.configure")
        configuration = Configuration.of(
            db_url, custom_engine, engine_args, session_args, commit_on_exit, **options
        )
        with self._lock:
            earlier, binding = self._configured, self._bind(configuration)
            self._configured = self._current = binding
            self._configuration = configuration
        if earlier is not None and earlier is not binding and not earlier.holders:
            self._forget(earlier)

    @property
    def is_configured(self) -> bool:
        """Whether it knows its database: from `configure()` or from a middleware."""
        return self._current is not None

    @property
    def url(self) -> URL | None:
        """The database's URL as it was given; None if nothing is configured."""
        try:
            return self._binding().url
        except SessionNotInitialisedError:
            return None

    @property
    def engine(self) -> Engine:
        """The sync engine, made on first use.

        Raises:
            SessionNotInitialisedError: nothing is configured.
            ConfigurationError: there is no sync side; `MissingDriverError`: it cannot be imported.
        """
        return self._binding().engines.sync

    @property
    def async_engine(self) -> AsyncEngine:
        """The async engine of the running event loop, made on first use; it ends with the loop.

        Raises: as `engine`, and RuntimeError where no event loop runs.
        """
        return self._binding().engines.asynchronous

    def on_connect(self, listener: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        """Call `listener` with each new connection of either side, as SQLAlchemy's "connect" does.

        Also a decorator. The engines of the async side come and go with event loops: this listens
        to those that are made later, and after a later `configure()`, too.

        Args:
            listener: takes the driver's connection (`cursor()` and `execute()` work on both sides)
                and the pool's record of it.
        """
        with self._lock:
            self._connect_listeners.append(listener)
            for binding in self._bindings:
                for engine in binding.engines.all_made():
                    self._listen_on(engine)
        return listener

    def _listen_on(self, engine: Engine | AsyncEngine) -> None:
        target = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        for listener in self._connect_listeners:
            if not event.contains(target, "connect", listener):
                event.listen(target, "connect", listener)

    def dispose(self) -> None:
        """Close the idle sync connections of every binding, and end in-memory databases.

        Engines stay usable. Custom engines are left alone.
        """
        for binding in self._all_bindings():
            binding.engines.dispose()
        self._in_memory.clear()

    async def adispose(self) -> None:
        """As `dispose`, with the async connections of the running event loop."""
        for binding in self._all_bindings():
            await binding.engines.adispose()
        self._in_memory.clear()

    def renew_connections(self) -> None:
        """Have each pooled connection that is open now replaced before its next use.

        For after an outage of the database, where the idle ones are lost and do not know it. What
        is in use goes on, and is replaced once it has come back; custom engines stay as they are
        beside that, SQLite's connections altogether. From any thread: nothing is sent.
        """
        for binding in self._all_bindings():
            binding.engines.renew()

    def keep_connections(self, count: int) -> None:
        """Have the pools keep `count` connections open, and open no more in all than before.

        For a process that works on so many things at a time: SQLAlchemy's pools keep five, and
        close what is given back beyond that, to open it anew for the next one. Where `engine_args`
        has a `pool_size`, that holds; custom engines stay as they are, and so does an async engine
        that exists.
        """
        for binding in self._all_bindings():
            binding.engines.keep(count)

    def pool_status(self) -> dict[str, dict[str, int]]:
        """How many connections the pools hold now, by side (`sync`, `async`).

        For each engine that exists: `size` (kept open at most), `checked_in` (idle), `checked_out`
        (in use) and `overflow` (open beyond `size`). Pools that do not queue are left out.
        """
        status: dict[str, dict[str, int]] = {}
        for side, engine in self._binding().engines.made().items():
            pool = engine.pool
            if isinstance(pool, QueuePool):
                status[side] = {
                    "size": pool.size(),
                    "checked_in": pool.checkedin(),
                    "checked_out": pool.checkedout(),
                    "overflow": max(pool.overflow(), 0),
                }
        return status

    # -- sessions ------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """The `Session` of the current scope.

        Raises:
            SessionNotInitialisedError: nothing is configured.
            MissingSessionError: no scope is open here.
        """
        scope = self._scope.get()
        if scope is None:
            raise self._missing()
        return scope.session

    @property
    def async_session(self) -> AsyncSession:
        """The `AsyncSession` of the current scope; otherwise as `session`."""
        scope = self._scope.get()
        if scope is None:
            raise self._missing()
        return scope.async_session

    @property
    def uncommitted(self) -> bool:
        """Whether the current scope holds changes that its end, without a commit, rolls back."""
        scope = self._scope.get()
        return scope is not None and scope.uncommitted

    def __call__(
        self, session_args: Mapping[str, Any] | None = None, commit_on_exit: bool = False
    ) -> DatabaseContext:
        """A context manager that opens sessions, for `with` and `async with`; both give `db`.

        A block inside a block, or inside a request, has sessions of its own.

        Args:
            session_args: for this block's sessions, over the configured ones.
            commit_on_exit: commit when the block ends normally. Else what is not committed is
                rolled back.
        """
        return DatabaseContext(self, session_args, commit_on_exit)

    async def gather(
        self, *coroutines: Coroutine[Any, Any, T], limit: int = 5, commit_on_exit: bool = False
    ) -> list[T]:
        """Run `coroutines` side by side, each in a scope of its own, and return their results.

        One `AsyncSession` serves one task at a time, so `asyncio.gather` over a shared one fails.
        The first failure cancels the others, is raised when all have ended, and each scope that had
        not ended by then is rolled back.

        Args:
            limit: how many run at a time. With the caller's, that takes `limit` + 1 connections.
                Inside a sandbox it is 1.
            commit_on_exit: commit each scope when its coroutine returns.
        """
        return await gather(
            coroutines,
            lambda: self(commit_on_exit=commit_on_exit),
            1 if self._sandbox is not None else limit,
        )

    def sandbox(self, opened: Callable[[Connection], None] | None = None) -> Sandbox[Database]:
        """A context manager: everything inside, commits included, is rolled back at its end.

        Args:
            opened: called with each connection that serves the sandbox, before it is used: listen
                there to see every statement.
        """
        return Sandbox(self, opened)

    # -- used by the middleware ----------------------------------------------------------------

    def _bind(self, configuration: Configuration) -> Binding:
        """The binding of `configuration`: one that exists and means the same, or a new one."""
        with self._lock:
            for binding in self._bindings:
                if binding.configuration.means_database_of(configuration):
                    return binding
            binding = Binding(configuration)
            binding.sandbox = self._sandbox
            self._bindings.add(binding)
            binding.engines.watchers.append(self._listen_on)
            for engine in binding.engines.all_made():
                self._listen_on(engine)
            if binding.engines.in_memory:
                # Its tables live as long as it does, and somebody may come back to them.
                self._in_memory.append(binding)
            return binding

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock, and is not there to give it back."""
        self._lock = threading.RLock()

    async def _close_idle(self) -> None:
        """At the end of a lifespan: mounted apps' engines too, which no lifespan reaches."""
        for binding in self._all_bindings():
            binding.engines.close_idle()
            await binding.engines.aclose_idle()

    def _all_bindings(self) -> list[Binding]:
        with self._lock:
            return list(self._bindings)

    def _forget(self, binding: Binding) -> None:
        with self._lock:
            self._bindings.discard(binding)
            if binding in self._in_memory:
                self._in_memory.remove(binding)
        binding.engines.end()

    def _adopt(self, configuration: Configuration) -> Binding:
        """The binding of `configuration`, which from now on serves outside requests.

        Not where a request is being served: the middleware of a mounted sub-app is built by its
        first request, and must not move the tasks of the app around it to another database.
        """
        binding = self._bind(configuration)
        if self._scope.get() is None:
            self._current = binding
        return binding

    def _here(self) -> Binding | None:
        """The binding that serves this code: the enclosing scope's, else the last configured one.

        A scope's also after it has ended: a background task goes on in its request's database.
        """
        scope = self._scope.get()
        return scope.binding if scope is not None else self._current

    def _binding(self) -> Binding:
        binding = self._here()
        if binding is not None:
            return binding
        return self._adopt(find_pending(self))

    def _set_sandbox(self, sandbox: Sandbox[Any] | None) -> None:
        with self._lock:
            if sandbox is not None and self._sandbox is not None:
                raise SandboxError("A sandbox is open already, and they do not nest.")
            if sandbox is not None and (scope := self._scope.get()) is not None and scope.used:
                raise SandboxError(
                    f"{scope} has opened its sessions already, which a sandbox cannot hold. Open "
                    "the sandbox first, and `with db():` inside."
                )
            self._sandbox = sandbox
            for binding in self._bindings:
                binding.sandbox = sandbox

    def _missing(self) -> Exception:
        self._binding()
        return MissingSessionError()

    def _enter(self, scope: Scope) -> None:
        self._scope.set(scope)

    def _leave(self, scope: Scope) -> None:
        """Make the scope around `scope` the current one again.

        Without a token: this may be another context than the one that entered (a sync `yield`
        dependency is left in another one), and blocks may end in another order than they began.
        """
        if self._scope.get() is not scope:
            return
        self._scope.set(scope.around)


class DatabaseContext:
    """What `db()` returns. May be entered again, also while it is open."""

    __slots__ = ("_commit_on_exit", "_database", "_entered", "_session_args")

    def __init__(
        self, database: Database, session_args: Mapping[str, Any] | None, commit_on_exit: bool
    ) -> None:
        self._database = database
        self._session_args = session_args
        self._commit_on_exit = commit_on_exit
        self._entered: list[tuple[Scope, OpenSandbox | None]] = []

    def __enter__(self) -> Database:
        scope, sandbox = self._new_scope(asynchronous=False)
        if sandbox is not None:
            sandbox.acquire(str(scope.outer))
        return self._enter(scope, sandbox)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        entry = self._take(asynchronous=False)
        if entry is None:
            return
        scope, sandbox = entry
        try:
            scope.end(commit=self._commit_on_exit and exc_type is None)
        finally:
            self._leave(scope, sandbox)

    async def __aenter__(self) -> Database:
        scope, sandbox = self._new_scope(asynchronous=True)
        if sandbox is not None:
            await sandbox.aacquire(str(scope.outer))
        return self._enter(scope, sandbox)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        entry = self._take(asynchronous=True)
        if entry is None:
            return
        scope, sandbox = entry
        try:
            await scope.aend(commit=self._commit_on_exit and exc_type is None)
        finally:
            self._leave(scope, sandbox)

    def _new_scope(self, *, asynchronous: bool) -> tuple[Scope, OpenSandbox | None]:
        """A scope inside the current one, and the sandbox in which it has to wait for its turn."""
        if asynchronous:
            refuse_other_loops()
        database = self._database
        outer = database._scope.get()
        scope = Scope(
            database._binding(), outer, asynchronous=asynchronous, session_args=self._session_args
        )
        # A WebSocket holds no turn of its own, or an idle one would keep every request waiting.
        in_websocket = isinstance(outer, RequestScope) and outer.is_websocket
        return scope, scope.binding.sandbox if in_websocket else None

    def _enter(self, scope: Scope, sandbox: OpenSandbox | None) -> Database:
        self._entered.append((scope, sandbox))
        self._database._enter(scope)
        return self._database

    def _take(self, *, asynchronous: bool) -> tuple[Scope, OpenSandbox | None] | None:
        """What was entered here: other threads and tasks may have entered the same object since.

        A sync `yield` dependency is left in another context than it was entered in, where the scope
        around it is the current one.
        """
        entries = [each for each in list(self._entered) if each[0].asynchronous is asynchronous]
        if not entries:
            return None
        current, entry = self._database._scope.get(), entries[-1]
        if entry[0] is not current:
            inside = (each for each in reversed(entries) if each[0].outer is current)
            mine = (each for each in reversed(entries) if each[0] is current)
            entry = next(mine, None) or next(inside, entry)
        self._entered.remove(entry)
        return entry

    def _leave(self, scope: Scope, sandbox: OpenSandbox | None) -> None:
        self._database._leave(scope)
        if sandbox is not None:
            sandbox.release()
