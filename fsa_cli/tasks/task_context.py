"""TaskContext: a task's view of its run, and its way to report progress."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType

__all__ = ["Progress", "TaskContext"]


@dataclass
class Progress:
    """How far a run has come; `with ctx.progress(total) as progress: ... progress.advance()`."""

    total: int | None
    text: str
    done: int = 0
    finished: bool = False
    _report: Callable[[Progress], None] | None = field(default=None, repr=False)

    def advance(self, by: int = 1) -> None:
        self.done += by
        self._tell()

    def say(self, text: str) -> None:
        self.text = text
        self._tell()

    def _tell(self) -> None:
        if self._report is not None:
            self._report(self)

    def __enter__(self) -> Progress:
        self._tell()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finished = True
        self._tell()


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """Given to a task that has a parameter annotated `TaskContext`.

    Attributes:
        task: The task's name.
        run_id: Of this run; an attempt that is repeated keeps it.
        attempt: 1 for the first.
        scheduled_at: The instant that this run is for, in UTC; None if a person started it.
        idempotency_key: The same for each attempt of this run: an outside service that gets it
            acts once.
        dry_run: Whether everything is rolled back at the end.
        deadline: When the run's time is over, in UTC; None without a time limit.
    """

    task: str
    run_id: str
    attempt: int = 1
    scheduled_at: datetime | None = None
    dry_run: bool = False
    deadline: datetime | None = None
    _deadline_s: float | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _report: Callable[[Progress], None] | None = None

    @property
    def logger(self) -> logging.Logger:
        """`fsa.task.NAME`; the app's logging configuration decides where it goes."""
        return logging.getLogger(f"fsa.task.{self.task}")

    @property
    def idempotency_key(self) -> str:
        if self.scheduled_at is None:
            return f"{self.task}:{self.run_id}"
        return f"{self.task}:{round(self.scheduled_at.timestamp() * 1000)}"

    @property
    def cancelled(self) -> bool:
        """Whether the task should end now: its time is over, or the process is stopping.

        A sync task cannot be interrupted in its thread; one that runs for long asks now and then.
        """
        over = self._deadline_s is not None and time.monotonic() >= self._deadline_s
        return over or self._stop.is_set()

    def progress(self, total: int | None = None, text: str = "") -> Progress:
        """A counter; a progress bar on the terminal of `fsa run-task`."""
        return Progress(total=total, text=text, _report=self._report)
