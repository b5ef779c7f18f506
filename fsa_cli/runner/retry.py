"""Execute a run again that did not succeed, as often as asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from fsa_cli.exceptions import FsaError, TimedOut
from fsa_cli.runner.run import Run, RunResult

__all__ = ["RetryPolicy", "is_retryable"]


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and how long to wait: *backoff_s*, doubled each time, at most *longest_s*."""

    retries: int = 0
    backoff_s: float = 1.0
    longest_s: float = 60.0

    def pause_s(self, attempt: int) -> float:
        """How long to wait after *attempt*."""
        return min(self.backoff_s * 2.0 ** min(attempt - 1, 60), self.longest_s)

    def execute(
        self,
        run: Run,
        attempt: Callable[[Run], RunResult],
        failed: Callable[[RunResult, float], None],
    ) -> RunResult:
        """The result of *run*: its first success, or its last failure.

        Args:
            attempt: Executes the run once.
            failed: Called with each attempt that is followed by another, and the pause.
        """
        result = attempt(run)
        while result.attempt <= self.retries and is_retryable(result):
            pause_s = self.pause_s(result.attempt)
            failed(result, pause_s)
            time.sleep(pause_s)
            result = attempt(replace(run, attempt=result.attempt + 1))
        return result


def is_retryable(result: RunResult) -> bool:
    """Whether another attempt may succeed: not if the task or its use of db is wrong."""
    from fastapi_sqlalchemy.exceptions import DBSessionError

    error = result.error
    if isinstance(error, FsaError | DBSessionError):
        return isinstance(error, TimedOut)
    return isinstance(error, Exception)
