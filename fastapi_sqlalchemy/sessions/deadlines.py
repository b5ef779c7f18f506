"""Deadlines of one event loop that share a timer: most pass by with nothing to do.

A timer for the end of each session, set and taken back, was 2 % of a request on PostgreSQL. This
one stays until it is due, as a server's own do, and looks then for whom it is too late.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import ClassVar

__all__ = ["Deadlines"]


class Deadlines:
    """Calls of functions that are to come later on a loop, if nobody takes them back."""

    _of_loops: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Deadlines]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self) -> None:
        self._due_s: dict[Callable[[], None], float] = {}
        # Not the timer itself: it would keep the loop, and the loop what is kept here.
        self._looks_at_s: float | None = None

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Deadlines:
        """Those of `loop`."""
        found = cls._of_loops.get(loop)
        if found is None:
            found = cls._of_loops[loop] = cls()
        return found

    def add(
        self, timeout_s: float, expire: Callable[[], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        """Have `expire` called in `timeout_s`, unless it is removed before."""
        self._due_s[expire] = due_s = loop.time() + timeout_s
        if self._looks_at_s is None or self._looks_at_s > due_s:
            self._look_at(due_s, loop)

    def remove(self, expire: Callable[[], None]) -> None:
        """Do not call it."""
        self._due_s.pop(expire, None)

    def _look_at(self, due_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._looks_at_s = due_s
        loop.call_at(due_s, self._look, due_s, loop)

    def _look(self, at_s: float, loop: asyncio.AbstractEventLoop) -> None:
        if at_s != self._looks_at_s:
            return  # an earlier one has been set since
        self._looks_at_s = None
        now_s = loop.time()
        for expire in [each for each, due_s in self._due_s.items() if due_s <= now_s]:
            del self._due_s[expire]
            expire()
        if self._due_s:
            self._look_at(min(self._due_s.values()), loop)
