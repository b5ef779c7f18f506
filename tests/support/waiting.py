"""Waiting for a condition, so that no test depends on how fast the machine is."""

import time
from collections.abc import Callable
from typing import TypeVar

DEADLINE_S = 60.0

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T | None], what: str = "the condition", *, within_s: float = DEADLINE_S
) -> T:
    """The first true value of *condition*, asked every 20 ms; AssertionError after *within_s*."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not so within {within_s:g} s (last value: {value!r})")
        time.sleep(0.02)
    return value
