"""Event loops whose end is not kept waiting by what a task has left in them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fsa_cli.terminal.escaping import escape_record

__all__ = ["Runner", "run_async"]

logger = logging.getLogger("fsa.runner")
logger.addFilter(escape_record)

# So long threads may take to return, and tasks to end when they are cancelled.
_LEFT_S = 1.0

# A loop that is collected while tasks are in it complains of each.
_left: list[asyncio.AbstractEventLoop] = []


class Runner:
    """As asyncio's, whose end waits for as long as a thread of `asyncio.to_thread` works, and for
    as long as a task swallows its cancellation."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def __enter__(self) -> Runner:
        self.get_loop().set_default_executor(_Threads(thread_name_prefix="asyncio"))
        return self

    def __exit__(self, *error: object) -> None:
        loop = self.get_loop()
        going_on = loop.run_until_complete(_cancel_others())
        if not going_on:
            self._runner.close()
            return
        names = ", ".join(sorted(_name_of(each) for each in going_on))
        logger.warning("left behind, as it does not end when it is cancelled: %s", names)
        _left.append(loop)
        asyncio.set_event_loop(None)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._runner.get_loop()

    def run(
        self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context | None = None
    ) -> Any:
        return self._runner.run(coroutine, context=context)


class _Threads(ThreadPoolExecutor):
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        until_s = time.monotonic() + _LEFT_S
        for thread in self._threads if wait else ():
            thread.join(max(until_s - time.monotonic(), 0))


def run_async(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """As `asyncio.run`, with a `Runner`."""
    with Runner() as runner:
        return runner.run(coroutine)


def _name_of(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", None) or task.get_name()


async def _cancel_others() -> set[asyncio.Task[Any]]:
    """Cancel every other task of the loop; those that go on."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for each in others:
        each.cancel()
    return (await asyncio.wait(others, timeout=_LEFT_S))[1] if others else set()
