"""Is the database there? For health routes, probes and `fsa health`."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from contextvars import copy_context

from sqlalchemy import select

from .database import Database
from .exceptions import ConfigurationError

__all__ = ["aping", "ping"]


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
    outcome: Future[float] = Future()
    context = copy_context()  # the binding of an enclosing scope

    def work() -> None:
        try:
            outcome.set_result(context.run(_measure, db))
        except BaseException as exc:
            outcome.set_exception(exc)

    threading.Thread(target=work, name=f"ping {db.name}", daemon=True).start()
    try:
        return outcome.result(timeout_s)
    except TimeoutError:
        if outcome.done():  # the driver's own
            raise
        raise TimeoutError(f"no answer within {timeout_s:g} s") from None


async def aping(db: Database, *, timeout_s: float = 5.0) -> float:
    """As `ping`, without holding up the event loop; on the async engine where there is one."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _ameasure(db)
    except ConfigurationError:
        return await asyncio.to_thread(ping, db, timeout_s=timeout_s)


def _measure(db: Database) -> float:
    started = time.perf_counter()
    try:
        engine = db.engine
    except ConfigurationError:
        return asyncio.run(_ameasure(db))
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
