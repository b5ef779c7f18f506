"""Whether, when and how often a run that failed is executed again: `RetryPolicy`.

What becomes of a run whose process has died or stops (`on_crash`) is decided by
`processes.run_lifecycle` and, for the dead, by `ledger.maintenance`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from fsa_cli.database.connections import error_code
from fsa_cli.exceptions import FsaError, TimedOut
from fsa_cli.runner.outcome import RemoteError
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.outcomes import Retry
from fsa_cli.terminal.user_code import unwrap_error

__all__ = ["RetryPolicy", "asked_again", "asked_pause_s", "is_conflict", "is_retryable"]

# Serialization failures and deadlocks of PostgreSQL; MariaDB's of a row that has changed since the
# transaction began; deadlocks and lock time-outs of both.
_SQLSTATES = {"40001", "40P01"}
_MYSQL_ERRORS = {1020, 1205, 1213}
# 100 years: more than BIGINT holds of milliseconds would be refused, and the run never end.
_LONGEST_S = 100 * 365 * 86400.0


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and how long to wait: *backoff_s*, doubled each time, at most *longest_s*.

    Attributes:
        jitter: By which part of it each pause is longer or shorter, by chance: what has failed
            because something was away should not come back all at once.
    """

    retries: int = 0
    backoff_s: float = 1.0
    longest_s: float = 60.0
    jitter: float = 0.0

    @classmethod
    def of(cls, task: TaskDefinition) -> RetryPolicy:
        """The task's own."""
        return cls(task.retries, task.backoff_s, task.max_backoff_s, task.backoff_jitter)

    def pause_s(self, attempt: int) -> float:
        """How long to wait after *attempt*."""
        pause_s = min(self.backoff_s * 2.0 ** min(attempt - 1, 60), self.longest_s)
        return pause_s * random.uniform(1 - self.jitter, 1 + self.jitter)

    def pause_after_s(self, result: RunResult) -> float | None:
        """How long to wait after *result*; None: it is not followed by another attempt."""
        if (asked := asked_again(result)) is not None:
            pause_s = asked_pause_s(asked)
            return self.pause_s(1) if pause_s is None else pause_s
        if result.attempt <= self.retries and is_retryable(result):
            return min(self.pause_s(result.attempt), _LONGEST_S)
        return None

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
        while self.retries and (pause_s := self.pause_after_s(result)) is not None:
            failed(result, pause_s)
            time.sleep(pause_s)
            more = 0 if asked_again(result) is not None else 1
            result = attempt(replace(run, attempt=result.attempt + more))
        return result


def asked_again(result: RunResult) -> Retry | None:
    """What the task has raised to be executed again; None: something else."""
    if result.error is None or result.at_commit:
        return None
    leaf = unwrap_error(result.error)
    return leaf if isinstance(leaf, Retry) else None


def asked_pause_s(asked: Retry) -> float | None:
    """How long it says to wait, 100 years at most; None: nothing that is a time."""
    in_s = getattr(asked, "in_s", None)  # a subclass may not call `__init__`, or set anything
    if not isinstance(in_s, int | float) or not in_s >= 0:
        return None
    return float(min(in_s, _LONGEST_S))


def is_retryable(result: RunResult) -> bool:
    """Whether another attempt may succeed: not if the task or its use of db is wrong."""
    from fastapi_sqlalchemy.exceptions import DBSessionError

    error = result.error
    if error is None or result.status == "discarded":
        return False
    if isinstance(error, FsaError | DBSessionError) and not isinstance(error, TimedOut):
        return False
    if not isinstance(error, Exception):
        return False
    wanted = result.task.retry_on
    return wanted is None or _is_one_of(error, wanted)


def is_conflict(error: BaseException | None) -> bool:
    """Whether the database has rolled the transaction back in favour of another one."""
    from sqlalchemy.exc import DBAPIError

    if error is None:
        return False
    leaf = unwrap_error(error)
    if not isinstance(leaf, DBAPIError):
        return False
    code = error_code(leaf)
    return code in _SQLSTATES or code in _MYSQL_ERRORS


def _is_one_of(error: Exception, wanted: tuple[type[BaseException], ...]) -> bool:
    leaf = unwrap_error(error)
    if isinstance(leaf, TimedOut):
        return any(issubclass(TimeoutError, each) for each in wanted)
    if isinstance(leaf, RemoteError):  # of another process no more is known than its name
        return type(leaf).__name__ in {name for each in wanted for name in _names(each)}
    return isinstance(leaf, wanted)


def _names(kind: type[BaseException]) -> Iterator[str]:
    yield kind.__name__
    for each in kind.__subclasses__():
        yield from _names(each)
