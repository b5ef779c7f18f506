"""Coroutines side by side, each in a scope of its own: what `Database.gather` does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from .shielding import wait_shielded

__all__ = ["gather"]

T = TypeVar("T")


async def gather(
    coroutines: tuple[Coroutine[Any, Any, T], ...],
    open_scope: Callable[[], AbstractAsyncContextManager[Any]],
    limit: int,
) -> list[T]:
    """Run `coroutines`, at most `limit` at a time; whatever happens, all have ended afterwards.

    Raises:
        TypeError: one is no coroutine: a task runs in the scope that it was made in.
    """
    wrong = [each for each in coroutines if not asyncio.iscoroutine(each)]
    try:
        if wrong:
            kind = type(wrong[0]).__name__
            raise TypeError(f"db.gather takes coroutines, f() each, and was given a {kind}")
        if limit < 1:
            raise ValueError(f"limit must be 1 or more, not {limit}")
        running = asyncio.Semaphore(limit)

        async def run(coroutine: Coroutine[Any, Any, T]) -> T:
            async with running, open_scope():
                return await coroutine

        tasks = [asyncio.create_task(run(coroutine)) for coroutine in coroutines]
        try:
            if tasks:
                # Not asyncio.gather: cancelled twice, it cancels what is rolling back.
                await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
            return [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await wait_shielded(asyncio.gather(*tasks, return_exceptions=True))
    finally:
        for coroutine in coroutines:
            if asyncio.iscoroutine(coroutine):
                coroutine.close()
