"""Blocking work, called from code that an event loop may be running."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.util.concurrency import await_only, in_greenlet

T = TypeVar("T")

__all__ = ["off_the_loop"]


def off_the_loop(work: Callable[[], T]) -> T:
    """*work*; in another thread, where this is what an event loop runs for an async session."""
    if not in_greenlet():
        return work()
    return await_only(asyncio.get_running_loop().run_in_executor(None, work))
