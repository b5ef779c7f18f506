"""Runs that a dry run would enqueue are counted, and none is enqueued.

A ContextVar, so that a dry run holds back its own task's and no other thread's.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar

__all__ = ["capture", "captured"]

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


def captured(task: str) -> bool:
    """Count a run of *task* that is asked for; False where it is to be enqueued."""
    counts = _counts.get()
    if counts is None:
        return False
    counts[task] += 1
    return True
