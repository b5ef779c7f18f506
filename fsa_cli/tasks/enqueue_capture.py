"""Runs that a dry run would enqueue are counted, and none is enqueued; a test keeps them.

A ContextVar, so that a dry run holds back its own task's and no other thread's. What a test keeps
comes from every thread: the app that it calls has its own.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

__all__ = ["capture", "captured", "diversion", "divert"]

#: Keeps runs that are asked for: the task, the JSON of the arguments of each, the options. What it
#: returns is what `enqueue` does.
Keep = Callable[[Any, list[str], Any], list[Any]]

_keep: Keep | None = None

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
def divert(keep: Keep) -> Iterator[None]:
    """While inside, whatever this process asks for is given to *keep*, and not enqueued."""
    global _keep
    before, _keep = _keep, keep
    try:
        yield
    finally:
        _keep = before


def diversion() -> Keep | None:
    """What keeps the runs that this process asks for; None: they are enqueued."""
    return _keep
