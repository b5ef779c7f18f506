"""Threads that wait for a connection from a full pool, and those that would give one back.

Starlette runs `def` routes, sync dependencies and the validation of their responses in 40 threads.
When all of them wait for a connection, the requests that hold the connections wait for a thread,
and nobody moves until the pool's timeout: https://github.com/fastapi/fastapi/issues/3205. So for as
long as a thread waits for a connection, there is one thread more.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio.from_thread
import anyio.to_thread
from sqlalchemy import Engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool, QueuePool

__all__ = ["one_more_thread", "with_spare_thread"]

T = TypeVar("T")


class _Queue:
    """How many threads are at the pool, those that are being served included."""

    __slots__ = ("length", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.length = 0


_queues: weakref.WeakKeyDictionary[Pool, _Queue] = weakref.WeakKeyDictionary()


def with_spare_thread(bind: Any, connect: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call `connect`, which takes a connection from the pool of `bind` if that is an engine."""
    pool = bind.pool if isinstance(bind, Engine) else None
    if not isinstance(pool, QueuePool) or isinstance(pool, AsyncAdaptedQueuePool):
        return connect(*args, **kwargs)
    if pool._max_overflow < 0 or not pool.size():  # it has no end
        return connect(*args, **kwargs)
    queue = _queues.get(pool)
    if queue is None:
        queue = _queues.setdefault(pool, _Queue())
    with queue.lock:
        queue.length += 1
        # Too high while somebody is served, and counted twice; never too low.
        full = pool.checkedout() + queue.length > pool.size() + pool._max_overflow
    try:
        if not full:
            return connect(*args, **kwargs)
        with one_more_thread():
            return connect(*args, **kwargs)
    finally:
        with queue.lock:
            queue.length -= 1


@contextmanager
def one_more_thread() -> Iterator[None]:
    """Let the event loop run one thread more than it may, if this is one of its threads."""
    try:
        anyio.from_thread.run_sync(_change_limit, 1)
    except RuntimeError:  # a thread of somebody else's, which keeps no request from ending
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            anyio.from_thread.run_sync(_change_limit, -1)


def _change_limit(by: int) -> None:
    anyio.to_thread.current_default_thread_limiter().total_tokens += by
