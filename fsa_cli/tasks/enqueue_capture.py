"""Runs that a dry run would enqueue are counted, and none is enqueued; a test keeps them.

A ContextVar, so that a dry run holds back its own task's and no other thread's. What a test keeps
comes from every thread: the app that it calls has its own.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Protocol

__all__ = ["Diversion", "capture", "captured", "diversion", "divert"]


class Diversion(Protocol):
    """What has the runs that this process asks for, in place of the ledger."""

    def keep(self, task: Any, texts: list[str], options: Any) -> list[Any]:
        """Keep a run for each one's arguments as JSON; what it returns is what `enqueue` does."""

    def find(self, run_id: str) -> Any:
        """The result of a run that is kept; None: it is not."""


_diversion: Diversion | None = None

_counts: ContextVar[Counter[str] | None] = ContextVar("fsa_enqueue_capture", default=None)


@contextlib.contextmanager
def capture() -> Iterator[Counter[str]]:
    """While inside, nothing is enqueued in this context; how often each task was asked for."""
    counts: Counter[str] = Counter()
    token = _counts.set(counts)
    try:
        yield counts
    finally:
        _counts.reset(token)


def captured(task: str, number: int = 1) -> bool:
    """Count runs of *task* that are asked for; False where they are to be enqueued."""
    counts = _counts.get()
    if counts is None:
        return False
    counts[task] += number
    return True


@contextlib.contextmanager
def divert(to: Diversion) -> Iterator[None]:
    """While inside, whatever this process asks for is kept by *to*, and looked for there."""
    global _diversion
    before, _diversion = _diversion, to
    try:
        yield
    finally:
        _diversion = before


def diversion() -> Diversion | None:
    """What keeps the runs that this process asks for; None: they are enqueued."""
    return _diversion
