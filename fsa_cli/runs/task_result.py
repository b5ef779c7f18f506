"""`TaskResult`: a run that was asked for, as its row says it now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import Row

from fsa_cli.exceptions import RunNotFound, TaskFailed, UsageError
from fsa_cli.ledger import queries
from fsa_cli.ledger.access import reached
from fsa_cli.ledger.records import RunStatus, status_word
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.time import instant_of
from fsa_cli.ledger.values import has_ended, value_in
from fsa_cli.tasks.task_context import Progress

__all__ = ["HeldResult", "TaskError", "TaskResult"]

R_co = TypeVar("R_co", covariant=True)

_FIRST_S = 0.02
_LONGEST_S = 0.5


@dataclass(frozen=True, slots=True)
class TaskError:
    """Why an attempt did not succeed; passwords are masked.

    Attributes:
        type: The name of the exception's class.
    """

    type: str
    message: str
    traceback: str | None


class TaskResult(Generic[R_co]):
    """A run that was asked for.

    What it says is what its row said when it was last read: `refresh` reads it again, `wait` waits
    for its end. Within the transaction that asks for the run nobody sees the row yet.
    """

    def __init__(self, run_id: str, task: str, ledger: Callable[[], Ledger]) -> None:
        self._id = run_id
        self._task = task
        self._ledger = ledger
        self._asked_at = datetime.now(UTC)
        self._row: Any = None

    @classmethod
    def of(cls, row: Row[Any], ledger: Callable[[], Ledger]) -> TaskResult[R_co]:
        """The result of a run whose row was read."""
        result = cls(row.id, row.task, ledger)
        result._row = row
        return result

    def __repr__(self) -> str:
        return f"<TaskResult {self._id} of {self._task}: {self.status}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskResult) and other._id == self._id

    def __hash__(self) -> int:
        return hash(self._id)

    @property
    def id(self) -> str:
        """The run's id, as in `fsa runs`."""
        return self._id

    @property
    def task(self) -> str:
        """The task's name."""
        return self._task

    @property
    def status(self) -> RunStatus | str:
        """`queued` until it is read for the first time."""
        if self._row is None:
            return RunStatus.QUEUED
        status: str = self._row.status
        return RunStatus(status) if status in set(RunStatus) else status

    @property
    def enqueued_at(self) -> datetime:
        return self._asked_at if self._row is None else instant_of(self._row.scheduled_ms)

    @property
    def run_after(self) -> datetime | None:
        """When it may start, while it waits."""
        if self._row is None or self._row.status != RunStatus.QUEUED:
            return None
        return instant_of(self._row.not_before_ms)

    @property
    def started_at(self) -> datetime | None:
        """When its last attempt started."""
        return self._instant("started_ms")

    @property
    def finished_at(self) -> datetime | None:
        """When it ended; None while another attempt is to come."""
        return self._instant("finished_ms") if self.is_finished else None

    @property
    def attempts(self) -> int:
        """How many attempts have started."""
        if self._row is None:
            return 0
        waits = self._row.status in (RunStatus.QUEUED, RunStatus.DISPATCHED)
        return int(self._row.attempt) - (1 if waits else 0)

    @property
    def errors(self) -> list[TaskError]:
        """The error of the last attempt that did not succeed; the ledger keeps no more."""
        row = self._row
        if row is None or not (row.error_type or row.error):
            return []
        return [TaskError(row.error_type or "", row.error or "", row.traceback)]

    @property
    def progress(self) -> Progress | None:
        """How far it has come, as the task says it; None where it says nothing."""
        if self._row is None or self._row.done is None:
            return None
        row = self._row
        return Progress(total=row.total, text=row.text, done=row.done, finished=self.is_finished)

    @property
    def is_finished(self) -> bool:
        """Whether it has ended for good, however it did."""
        return self._row is not None and has_ended(self._row.status, self._row.finished_ms)

    @property
    def succeeded(self) -> bool:
        return self.status == RunStatus.SUCCEEDED

    @property
    def return_value(self) -> R_co:
        """The value that the task returned, as JSON keeps it: a tuple is a list, a date a text.

        Raises:
            ValueError: It has not ended, as far as this result has read.
            TaskFailed: It ended without success.
        """
        if not self.is_finished:
            raise ValueError(f"the run {self._id[:8]} of {self._task} has not finished")
        if not self.succeeded:
            raise self._failure()
        return cast(R_co, value_in(None if self._row is None else self._row.result))

    def refresh(self) -> None:
        """Read its row again.

        Raises:
            DatabaseUnreachable: The ledger's database is away.
        """
        ledger = self._ledger()
        with reached(ledger):
            row = queries.get(ledger, self._id)
        if row is not None:
            self._row = row
        elif self._row is not None:
            raise RunNotFound(f"the run {self._id[:8]} of {self._task} is no longer kept")

    async def arefresh(self) -> None:
        """As `refresh`, without blocking the event loop."""
        await asyncio.to_thread(self.refresh)

    def wait(self, timeout_s: float | None = None) -> R_co:
        """Wait for its end; the value that the task returned.

        Args:
            timeout_s: For how long; None: until it ends.

        Raises:
            TimeoutError: It has not ended by then. It goes on.
            TaskFailed: It ended without success.
        """
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = _FIRST_S
        while not self._has_ended(until_s):
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_S)
        return self.return_value

    def __await__(self) -> Generator[Any, None, R_co]:
        """As `wait`, in a coroutine: `await asyncio.wait_for(result, 10)` bounds it."""
        return self._ended().__await__()

    async def _ended(self) -> R_co:
        pause_s = _FIRST_S
        while not await asyncio.to_thread(self._has_ended, None):
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_S)
        return self.return_value

    def _has_ended(self, until_s: float | None) -> bool:
        if not self.is_finished:
            self.refresh()
        if self.is_finished:
            return True
        if until_s is not None and time.monotonic() >= until_s:
            raise TimeoutError(
                f"the run {self._id[:8]} of {self._task} is {status_word(self.status)}"
            )
        return False

    def _failure(self) -> TaskFailed:
        said = "; ".join(f"{e.type}: {e.message}".strip(": ") for e in self.errors)
        return TaskFailed(
            f"the run {self._id[:8]} of {self._task} is {self.status}{f': {said}' if said else ''}",
            hint=f"fsa runs show {self._id[:8]}",
        )

    def _instant(self, column: str) -> datetime | None:
        ms = None if self._row is None else getattr(self._row, column)
        return None if ms is None else instant_of(ms)

    def is_of(self, run_id: str) -> None:
        """Make it that of another run, which has the unique key."""
        self._id = run_id


class HeldResult(TaskResult[Any]):
    """The result of a run that is in no ledger: a dry run has counted it, or a test has kept it."""

    def __init__(self, run_id: str, task: str) -> None:
        super().__init__(run_id, task, _no_ledger)

    def refresh(self) -> None:
        """Nothing changes it but `tell`."""

    def tell(self, row: Any) -> None:
        """Say how it fares: *row* has the attributes of a row of the ledger."""
        self._row = row


def _no_ledger() -> Ledger:
    raise UsageError("the run is in no ledger")
