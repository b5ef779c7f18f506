"""Work that must be waited for, whatever is cancelled meanwhile: COMMIT, ROLLBACK, close."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import sys
import weakref
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from ..engines import fork_safety

__all__ = ["collect_abandoned", "in_default_thread", "in_thread", "start", "wait_shielded"]

logger = logging.getLogger("fastapi_sqlalchemy")

T = TypeVar("T")
_EAGER: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}

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


def start(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run `work` in a task of its own, up to where it has to wait before this returns (3.12 on)."""
    if _EAGER:
        return asyncio.Task(work, loop=asyncio.get_running_loop(), **_EAGER)
    return asyncio.create_task(work)


async def wait_shielded(future: asyncio.Future[Any], timeout_s: float | None = None) -> bool:
    """Wait until `future` is done, at most `timeout_s`; True if it is. Its exception is raised.

    anyio's shield does not stop `Task.cancel()` (asyncio.timeout, TaskGroup), and without it anyio
    cancels again and again. So both: a cancellation that arrives meanwhile is raised afterwards.
    """
    if future.done():
        future.result()
        return True
    loop = asyncio.get_running_loop()
    shielded = _Shielded(future, loop)
    waiter: asyncio.Future[None] | None = None
    over = False

    def wake(_: object = None) -> None:
        nonlocal over
        over = True
        if waiter is None:
            shielded.leave(None)
        elif not waiter.done():
            waiter.set_result(None)

    timer = None if timeout_s is None else loop.call_later(timeout_s, wake)
    cancelled: asyncio.CancelledError | None = None
    try:
        await shielded
    except asyncio.CancelledError as exc:
        if not future.cancelled():
            cancelled = exc
        if not over and not future.done():
            waiter = loop.create_future()
            # Once for however many cancellations come; asyncio.wait() would do it each time.
            future.add_done_callback(wake)
            with anyio.CancelScope(shield=True):
                while not waiter.done():
                    try:
                        await asyncio.shield(waiter)
                    except asyncio.CancelledError as again:
                        cancelled = again
    except Exception:  # the future's, which is raised below
        pass
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


class _Shielded:
    """A future as the task sees it that waits for it; cancelled, it only lets the task go.

    What `asyncio.shield` does takes a future and a turn of the loop more.
    """

    __slots__ = ("_asyncio_future_blocking", "_context", "_future", "_loop", "_resume")

    def __init__(self, future: asyncio.Future[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False
        self._future = future
        self._loop = loop

    def __await__(self) -> Generator[Any, None, None]:
        self._asyncio_future_blocking = True
        yield self

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, resume: Callable[..., None], *, context: Context) -> None:
        self._resume = resume
        self._context = context
        self._future.add_done_callback(resume, context=context)

    def cancel(self, msg: object = None) -> bool:
        """Have its task go on with a CancelledError, if it does not go on anyway."""
        return self.leave(msg, cancel=True)

    def leave(self, msg: object, *, cancel: bool = False) -> bool:
        """Have its task go on before the future is done."""
        if not self._future.remove_done_callback(self._resume):
            return False
        answer = self._loop.create_future()
        if cancel:
            answer.cancel(msg)
        else:
            answer.set_result(None)
        self._loop.call_soon(self._resume, answer, context=self._context)
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
