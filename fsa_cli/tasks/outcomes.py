"""What a task raises to say how its run goes on: `Retry` and `Discard`."""

from __future__ import annotations

__all__ = ["Discard", "Retry"]


class Retry(Exception):
    """Raised by a task: roll this attempt back, and execute the run again later.

    It is no failure, and costs none of the task's retries.

    Args:
        reason: For people, in `fsa runs`.
        in_s: How long to wait; None: as after the task's first failure.
    """

    def __init__(self, reason: str = "", *, in_s: float | None = None) -> None:
        if in_s is not None and not 0 <= in_s < float("inf"):
            raise ValueError(f"in_s={in_s!r}: expected seconds, 0 or more")
        super().__init__(reason)
        self.in_s = in_s


class Discard(Exception):
    """Raised by a task: roll this attempt back, and end the run, as there is nothing to do.

    It is `discarded` then: no success, not executed again, and `on_failure` is not called.
    """
