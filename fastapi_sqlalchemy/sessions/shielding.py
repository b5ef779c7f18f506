"""Work that must be waited for, whatever is cancelled meanwhile: COMMIT, ROLLBACK, close."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import sys
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import anyio
import anyio.to_thread

from ..engines import fork_safety
from .deadlines import Deadlines

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
    return _Ending(work, loop=asyncio.get_running_loop(), **_EAGER)


async def wait_shielded(future: asyncio.Future[Any], timeout_s: float | None = None) -> bool:
    """Wait until `future` is done, at most `timeout_s`; True if it is. Its exception is raised.

    anyio's shield does not stop `Task.cancel()` (asyncio.timeout, TaskGroup), and without it anyio
    cancels again and again. So both: a cancellation that arrives meanwhile is raised afterwards.
    """
    if future.done():
        future.result()
        return True
    ending = future if isinstance(future, _Ending) else _Ending(_result_of(future))
    task = ending.waiting = asyncio.current_task()
    assert task is not None
    ending.cancels = task.cancelling()
    loop, expire = ending.get_loop(), ending.expire
    if timeout_s is not None:
        Deadlines.of(loop).add(timeout_s, expire, loop)
    cancelled: asyncio.CancelledError | None = None
    try:
        await ending
        return True
    except asyncio.CancelledError as exc:
        if not ending.cancelled() and (ending.let_go or not ending.expired):
            cancelled = exc
            if ending.expired:
                # It came with the end of the time; by the text anyio knows its own cancellation.
                exc.args = () if ending.message is None else (ending.message,)
        ending.waiting = None
        if not ending.expired and not ending.done():
            cancelled = await _outlast(ending, cancelled)
    finally:
        if timeout_s is not None:
            Deadlines.of(loop).remove(expire)
    if not ending.done():
        # The loop keeps weak references to its tasks only.
        _unfinished.add(ending)
        ending.add_done_callback(_forget)
    elif cancelled is not None and not ending.cancelled() and (error := ending.exception()):
        logger.error("Failed while the request was being cancelled", exc_info=error)
    if cancelled is not None:
        raise cancelled
    if not ending.done():
        return False
    ending.result()
    return True


async def _result_of(future: asyncio.Future[T]) -> T:
    return await future


async def _outlast(
    ending: _Ending[Any], cancelled: asyncio.CancelledError | None
) -> asyncio.CancelledError | None:
    """Wait for `ending`, or its time, in a task that is cancelled; return what is to be raised.

    Of several cancellations that is anyio's, whose scopes know it by its text: one that another has
    replaced would pass by all of them. To asyncio one is like another.
    """
    ending.outlasted = over = asyncio.get_running_loop().create_future()
    # Once for however many cancellations come; asyncio.wait() would do it each time.
    ending.add_done_callback(ending.end_wait)
    with anyio.CancelScope(shield=True):
        while not over.done():
            try:
                await asyncio.shield(over)
            except asyncio.CancelledError as again:
                if cancelled is None or "cancel scope" not in str(cancelled):
                    cancelled = again
    return cancelled


class _Ending(asyncio.Task[T]):
    """A task that goes on when the one that waits for it is cancelled: only that one is let go.

    What `asyncio.shield` does takes a future and a turn of the loop more.
    """

    #: The task that waits for it, and how often that had been cancelled before.
    waiting: asyncio.Task[Any] | None = None
    cancels = 0
    #: Whether that one was cancelled meanwhile, and whether its time to wait is over.
    let_go = False
    expired = False
    message: object = None
    outlasted: asyncio.Future[None] | None = None

    def cancel(self, msg: object = None) -> bool:
        """Cancel it; where its waiting task is cancelled and passes that on, let that one go on."""
        task = self.waiting
        if task is None or (
            task.cancelling() <= self.cancels and asyncio.current_task() is not task
        ):
            return super().cancel(msg)
        if not self.let_go:
            self.let_go, self.message = True, msg
        return self._leave(msg)

    def expire(self) -> None:
        """Have its waiting task go on without it."""
        self.expired = True
        if self.outlasted is not None:
            self.end_wait()
        else:
            self._leave(None)

    def end_wait(self, _: object = None) -> None:
        if self.outlasted is not None and not self.outlasted.done():
            self.outlasted.set_result(None)

    def _leave(self, msg: object) -> bool:
        """Have the waiting task go on with a CancelledError, if it does not go on anyway."""
        loop = self.get_loop()
        resumes = list(self._callbacks or ())
        for resume, context in resumes:
            self.remove_done_callback(resume)
            answer = loop.create_future()
            answer.cancel(msg)
            loop.call_soon(cast(Any, resume), answer, context=context)
        return bool(resumes)


def collect_abandoned() -> None:
    """Soon, have the garbage collector close what a request that was cut off has left.

    Starlette does not close a stream's generators when a client hangs up. They sit in the cycle of
    the exception that ended the stream, and a `with db():` inside them holds its connection for as
    long; so does a statement of SQLite's its lock.
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
