"""Is the database there? For probes: routes of an app, and `fsa health`.

app.include_router(health.router())        # /livez and /readyz
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import nullcontext
from contextvars import copy_context
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import select
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse

from .database import Database
from .exceptions import ConfigurationError
from .sessions.request_scope import RequestScope

if TYPE_CHECKING:
    from fastapi import APIRouter

__all__ = ["Check", "aping", "ping", "router", "run"]

logger = logging.getLogger("fastapi_sqlalchemy")
T = TypeVar("T")

# Attempts that were given up, until their driver has ended them.
_left_behind: set[asyncio.Future[Any]] = set()

#: A check of the app's own: it fails if it raises or returns False; text is its detail.
OwnCheck = Callable[[], object]


@dataclass(frozen=True)
class Check:
    """One check and its outcome. `latency_ms` is None where nothing was measured."""

    check: str
    ok: bool
    latency_ms: float | None
    detail: str


def router(
    *databases: Database,
    checks: Mapping[str, OwnCheck] | None = None,
    timeout_s: float = 2.0,
    live: str = "/livez",
    ready: str = "/readyz",
) -> APIRouter:
    """Routes for probes, in JSON: `/livez` says that the process answers, `/readyz` that it can
    serve: 200, or 503 if a check fails. They tell anyone who asks, so no addresses and no errors'
    texts: those are logged when a check begins to fail.

    Any number of probes at a time costs one connection of each pool.

    Args:
        databases: Those that have to be there; every one that the app's middleware serves if none
            is given.
        checks: The app's own, by name. A sync one runs in a thread, in `with db():`, an async one
            in `async with db():`.
        timeout_s: How long each check may take. Keep it below the probe's.
    """
    from fastapi import APIRouter

    probes = _Probes(databases, dict(checks or {}), timeout_s)

    async def alive() -> JSONResponse:
        return _answer(True)

    async def is_ready(request: Request) -> JSONResponse:
        done = await probes.run(request.app)
        return _answer(all(check.ok for check in done), checks=[asdict(check) for check in done])

    routes = APIRouter(include_in_schema=False)
    routes.add_api_route(live, alive, methods=["GET", "HEAD"])
    routes.add_api_route(ready, is_ready, methods=["GET", "HEAD"])
    return routes


def ping(db: Database, *, timeout_s: float = 5.0) -> float:
    """Take a connection from the pool, run `SELECT 1`, and give it back.

    On the sync engine, or on the async one where only that has a driver.

    Returns:
        How long it took, in milliseconds, the opening of the connection included.

    Raises:
        TimeoutError: there was no answer in time. The attempt itself cannot be interrupted: it
            goes on in a daemon thread until its driver gives up.
        Exception: whatever the driver says, mostly as a sqlalchemy.exc.OperationalError.
    """
    return _within(timeout_s, lambda: _measure(db), f"ping {db.name}")


def run(check: OwnCheck, db: Database | None = None, *, timeout_s: float = 5.0) -> str:
    """Run a check of the app's own, in a scope of *db*. Returns its detail.

    Raises:
        TimeoutError: As `ping` does.
        Exception: What it raised; `RuntimeError` where it returned False.
    """

    def work() -> object:
        if _is_async(check):
            return asyncio.run(_arun(check, db))
        with db() if db is not None else nullcontext():
            found = check()
        return asyncio.run(_arun(lambda: found, db)) if inspect.isawaitable(found) else found

    return _detail(_within(timeout_s, work, getattr(check, "__name__", "check")))


async def aping(db: Database, *, timeout_s: float = 5.0) -> float:
    """As `ping`, without holding up the event loop; on the async engine where there is one."""
    try:
        return await _awithin(timeout_s, _ameasure(db))
    except ConfigurationError:
        return await asyncio.to_thread(ping, db, timeout_s=timeout_s)


class _Probes:
    """What `/readyz` runs. Probes that come while a check is under way wait for that one."""

    def __init__(
        self, databases: tuple[Database, ...], checks: Mapping[str, OwnCheck], timeout_s: float
    ) -> None:
        self._databases = databases
        self._checks = checks
        self._timeout_s = timeout_s
        self._running: dict[tuple[str, object], asyncio.Task[Check]] = {}
        self._failing: set[str] = set()

    async def run(self, app: Starlette) -> list[Check]:
        databases = self._databases or _served(app)
        own = next((db for db in databases if db.name == "default"), None)
        tasks = [
            # A mounted app may have another database by the same name than the app around it.
            self._joined(f"database {db.name}", db._binding(), partial(self._ping, db))
            for db in databases
        ]
        here = own and own._binding()
        for name, check in self._checks.items():
            tasks.append(self._joined(name, here, partial(self._own, check, own)))
        # Shielded: a client that hangs up must not end what others wait for.
        return list(await asyncio.gather(*(asyncio.shield(task) for task in tasks)))

    def _joined(
        self, name: str, binding: object, work: Callable[[], Awaitable[str]]
    ) -> asyncio.Task[Check]:
        task = self._running.get((name, binding))
        # A loop that has ended has left its tasks as they were.
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            task = self._running[name, binding] = asyncio.create_task(self._check(name, work))
        return task

    async def _check(self, name: str, work: Callable[[], Awaitable[str]]) -> Check:
        started = time.perf_counter()
        try:
            detail = await _awithin(self._timeout_s, work())
        except Exception as exc:
            if name not in self._failing:
                self._failing.add(name)
                logger.warning("not ready: %s: %s: %s", name, type(exc).__name__, exc)
            late = isinstance(exc, TimeoutError)
            said = f"no answer within {self._timeout_s:g} s" if late else type(exc).__name__
            return Check(name, False, None, said)
        if name in self._failing:
            self._failing.discard(name)
            logger.info("ready again: %s", name)
        return Check(name, True, round(_ms_since(started), 2), detail)

    async def _ping(self, db: Database) -> str:
        sides = set(db._binding().engines.made())
        if not sides and db.url is not None:
            sides = {"async" if db.url.get_dialect().is_async else "sync"}
        if "async" in sides:
            await aping(db, timeout_s=self._timeout_s)
        if "sync" in sides:
            await asyncio.to_thread(ping, db, timeout_s=self._timeout_s)
        return ""

    async def _own(self, check: OwnCheck, db: Database | None) -> str:
        if _is_async(check):
            return _detail(await _arun(check, db))
        return await asyncio.to_thread(run, check, db, timeout_s=self._timeout_s)


def _served(app: Starlette) -> tuple[Database, ...]:
    """Every database that serves its requests, and the global one if it is configured.

    Those of the apps around a mounted one have opened their scopes for this request.
    """
    import fastapi_sqlalchemy

    found = [fastapi_sqlalchemy.db] if fastapi_sqlalchemy.db.is_configured else []
    for entry in app.user_middleware:
        if (configures := getattr(entry.cls, "configures", None)) is not None:
            found.append(configures(entry.args, entry.kwargs)[0])
    for scope in copy_context().values():
        if isinstance(scope, RequestScope) and not scope.ended:
            found += (holder.db for holder in scope.binding.holders)
    return tuple(dict.fromkeys(found))


def _answer(ok: bool, **more: object) -> JSONResponse:
    status = 200 if ok else 503
    return JSONResponse({"ok": ok, **more}, status, headers={"cache-control": "no-store"})


def _is_async(check: OwnCheck) -> bool:
    return inspect.iscoroutinefunction(check) or inspect.iscoroutinefunction(
        getattr(check, "__call__", None)  # noqa: B004 - an object whose __call__ is async
    )


async def _arun(check: OwnCheck, db: Database | None) -> object:
    async with db() if db is not None else nullcontext():
        found = check()
        return await found if inspect.isawaitable(found) else found


def _detail(returned: object) -> str:
    if returned is False:
        raise RuntimeError("it returned False")
    return returned if isinstance(returned, str) else ""


async def _awithin(timeout_s: float, work: Awaitable[T]) -> T:
    """What *work* gives, in a task that is cancelled and left behind at the time-out.

    A driver that is cancelled may wait for the silent server once more: psycopg for 10 s, to have
    it end the statement.
    """
    task = asyncio.ensure_future(work)
    _left_behind.add(task)
    task.add_done_callback(_let_go)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not done:
        task.cancel()
        raise TimeoutError
    return task.result()


def _let_go(task: asyncio.Future[Any]) -> None:
    _left_behind.discard(task)
    if not task.cancelled():
        task.exception()  # seen: asyncio says nothing of it


def _within(timeout_s: float, work: Callable[[], T], name: str) -> T:
    """What *work* returns or raises, in a daemon thread that is left behind at the time-out."""
    outcome: Future[T] = Future()
    context = copy_context()  # the binding of an enclosing scope

    def target() -> None:
        try:
            outcome.set_result(context.run(work))
        except BaseException as exc:
            outcome.set_exception(exc)

    threading.Thread(target=target, name=name, daemon=True).start()
    try:
        return outcome.result(timeout_s)
    except TimeoutError:
        if outcome.done():  # its own
            raise
        raise TimeoutError(f"no answer within {timeout_s:g} s") from None


def _measure(db: Database) -> float:
    started = time.perf_counter()
    try:
        engine = db.engine
    except ConfigurationError as no_sync_side:
        try:
            return asyncio.run(_ameasure(db))
        except ConfigurationError:
            raise no_sync_side from None
    with engine.connect() as connection:
        connection.execute(select(1))
    return _ms_since(started)


async def _ameasure(db: Database) -> float:
    started = time.perf_counter()
    async with db.async_engine.connect() as connection:
        await connection.execute(select(1))
    return _ms_since(started)


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
