"""Work that must be waited for, whatever is cancelled meanwhile: COMMIT, ROLLBACK, close."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.to_thread

from ..engines import fork_safety

__all__ = ["collect_abandoned", "in_default_thread", "in_thread", "wait_shielded"]

logger = logging.getLogger("fastapi_sqlalchemy")

#: Threads of our own. In the default limiter the endings would queue behind endpoints that wait for
#: the very connections that the endings give back (https://github.com/fastapi/fastapi/issues/3205).
MAX_THREADS = 128

#: Until then the exception has reached the server. One collection serves all that come meanwhile.
_COLLECT_AFTER_S = 0.1


class _Threads:
    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        fork_safety.forget_after_fork(self)

    def submit(self, work: Callable[[], None]) -> asyncio.Future[None]:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(MAX_THREADS, "fastapi_sqlalchemy")
        context = contextvars.copy_context()
        return asyncio.get_running_loop().run_in_executor(self._executor, context.run, work)

    def after_fork(self) -> None:
        fork_safety.abandon(self._executor)
        self._executor = None


_threads = _Threads()
_collecting: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
_unfinished: set[asyncio.Future[Any]] = set()


def in_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """Run `work`, which holds a connection, in a thread that no endpoint can be holding."""
    return _threads.submit(work)


def in_default_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """Run `work`, which holds no connection yet and may wait for one, where endpoints wait too.

    In threads of our own it could keep those that hold a connection from giving it back.
    """
    return asyncio.create_task(anyio.to_thread.run_sync(work))


async def wait_shielded(future: asyncio.Future[Any], timeout_s: float | None = None) -> bool:
    """Wait until `future` is done, at most `timeout_s`; True if it is. Its exception is raised.

    anyio's shield does not stop `Task.cancel()` (asyncio.timeout, TaskGroup), and without it anyio
    cancels again and again. So both: a cancellation that arrives meanwhile is raised afterwards.
    """
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    woken = False

    def wake(_: object = None) -> None:
        nonlocal woken
        woken = True
        if not waiter.done():
            waiter.set_result(None)

    # Once for however many cancellations come; asyncio.wait() would do it each time, more slowly.
    future.add_done_callback(wake)
    timer = None if timeout_s is None else loop.call_later(timeout_s, wake)
    cancelled: asyncio.CancelledError | None = None
    try:
        await waiter
    except asyncio.CancelledError as exc:
        cancelled = exc
        if not woken:
            waiter = loop.create_future()
            with anyio.CancelScope(shield=True):
                while not waiter.done():
                    try:
                        await asyncio.shield(waiter)
                    except asyncio.CancelledError as again:
                        cancelled = again
    if timer is not None:
        timer.cancel()
    if not future.done():
        # The loop keeps weak references to its tasks only.
        _unfinished.add(future)
        future.add_done_callback(_forget)
    elif cancelled is not None and not future.cancelled() and (error := future.exception()):
        logger.error("Failed while the request was being cancelled", exc_info=error)
    if cancelled is not None:
        raise cancelled
    if not future.done():
        return False
    future.result()
    return True


def collect_abandoned() -> None:
    """Soon, have the garbage collector close the generators that a cut-off stream has left.

    Starlette does not close them when a client hangs up. They sit in the cycle of the exception
    that ended the stream, and a `with db():` inside them holds its connection for as long.
    """
    loop = asyncio.get_running_loop()
    if loop not in _collecting:
        _collecting.add(loop)
        loop.call_later(_COLLECT_AFTER_S, _collect, loop)


def _collect(loop: asyncio.AbstractEventLoop) -> None:
    _collecting.discard(loop)
    gc.collect()


def _forget(future: asyncio.Future[Any]) -> None:
    _unfinished.discard(future)
    if not future.cancelled():
        future.exception()
