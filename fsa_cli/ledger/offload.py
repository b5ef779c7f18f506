"""Blocking work, called from code that an event loop may be running."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from sqlalchemy.util.concurrency import await_only, in_greenlet

T = TypeVar("T")

__all__ = ["in_thread", "off_the_loop", "within"]


def off_the_loop(work: Callable[[], T]) -> T:
    """*work*; in another thread, where this is what an event loop runs for an async session."""
    if not in_greenlet():
        return work()
    return await_only(asyncio.get_running_loop().run_in_executor(None, work))


def in_thread(work: Callable[[], T]) -> Future[T]:
    """*work*, begun in a thread that keeps no process from ending."""
    future: Future[T] = Future()

    def fill() -> None:
        try:
            future.set_result(work())
        except BaseException as exc:
            future.set_exception(exc)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(fill,), name="fsa ledger", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # from 3.12 on the interpreter starts none once it ends (atexit)
        fill()
    return future


def within(seconds: float, work: Callable[[], T]) -> T:
    """*work*; in another thread, which is left behind where a server does not answer in time.

    Signals are handled meanwhile, also where the driver waits in C.

    Raises:
        TimeoutError: It goes on.
    """
    return in_thread(work).result(seconds)
