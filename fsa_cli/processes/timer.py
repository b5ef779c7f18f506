"""One heap of the next instants, and one APScheduler job that wakes up for the first.

One job for all tasks: with one for each, ten thousand schedules cost a fifth of a core when idle.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.executors.base import BaseExecutor  # type: ignore[import-untyped]
from apscheduler.job import Job  # type: ignore[import-untyped]
from apscheduler.jobstores.memory import MemoryJobStore  # type: ignore[import-untyped]
from apscheduler.schedulers.background import (  # type: ignore[import-untyped]
    BackgroundScheduler,
)
from apscheduler.triggers.base import BaseTrigger  # type: ignore[import-untyped]

from fsa_cli.exceptions import SchedulerStuck
from fsa_cli.processes.clock import Clock
from fsa_cli.processes.schedule_plan import Scheduled
from fsa_cli.terminal.log_levels import quieten
from fsa_cli.terminal.user_code import summarize_error

__all__ = ["Timer"]

Fire = Callable[[list[tuple[Scheduled, int]]], None]

_LEAST = timedelta(milliseconds=1)
# It looks at the clock at least so often: a machine may have slept, the database's clock jumped.
_LONGEST_S = 5.0
_JOB = "fsa"


class Timer:
    """Calls *fire* with the tasks whose instant has come, in a thread of its own.

    Args:
        clock: The database's, which decides whether an instant has come.
        fire: Called with each task and its instant, in milliseconds. It must not take long.
    """

    def __init__(self, clock: Clock, fire: Fire) -> None:
        self.name = "APScheduler"
        self._clock = clock
        self._fire = fire
        # (when it starts, how manieth, instant, task); the number keeps tasks from being compared.
        self._heap: list[tuple[int, int, int, Scheduled]] = []
        self._lock = threading.Lock()
        self.failure: SchedulerStuck | None = None
        """A schedule raised: its task would never run again."""
        self._reading_ms: int | None = None
        quieten("apscheduler")
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            jobstores={"default": MemoryJobStore()},
            executors={"default": _Handover(self._wake)},
            job_defaults={"coalesce": True, "misfire_grace_time": None},
        )

    def expect(self, planned: Iterable[Scheduled], after_ms: int) -> None:
        """Note every start later than *after_ms*; `start` begins to wake up for them."""
        for number, scheduled in enumerate(planned):
            instant = scheduled.next_ms(after_ms - scheduled.jitter_ms)
            while instant is not None and scheduled.start_ms(instant) <= after_ms:
                instant = scheduled.next_ms(instant)
            if instant is not None:
                self._heap.append((scheduled.start_ms(instant), number, instant, scheduled))
        heapq.heapify(self._heap)

    def start(self) -> None:
        self._scheduler.add_job(_nothing, _Trigger(self._delay), id=_JOB, name=_JOB)
        self._scheduler.start()

    def quiesce(self) -> None:
        """Fire nothing more."""
        if self.alive:
            self._scheduler.shutdown(wait=False)

    def stop(self) -> None:
        self.quiesce()

    def wake(self) -> None:
        """Look at the clock: it may have jumped, or the machine may have slept."""
        if self.alive:
            self._scheduler.modify_job(_JOB, next_run_time=datetime.now(UTC) + self._delay())

    @property
    def alive(self) -> bool:
        """Whether APScheduler's thread lives."""
        thread = self._scheduler._thread
        return thread is not None and thread.is_alive()

    @property
    def late_ms(self) -> int:
        """How long the next instant is overdue; 0 if its time has not come."""
        with self._lock:
            top = self._heap[0][0] if self._heap else None
        return 0 if top is None else max(self._clock.now_ms - top, 0)

    @property
    def fired_until_ms(self) -> int:
        """Every start up to then was fired."""
        with self._lock:
            unfired = [entry[0] for entry in self._heap[:1]]
            if self._reading_ms is not None:
                unfired.append(self._reading_ms)
        return min([self._clock.now_ms, *(at - 1 for at in unfired)])

    def _delay(self) -> timedelta:
        with self._lock:
            top = self._heap[0][0] if self._heap else None
        wait_s = _LONGEST_S if top is None else (top - self._clock.now_ms) / 1000
        return max(timedelta(seconds=min(wait_s, _LONGEST_S)), _LEAST)

    def _wake(self) -> None:
        """Fire everything that is due; of a schedule that has stood still, every instant.

        Nothing counts as fired before all of it is: the backfill sees none or all.
        """
        while due := self._due():
            # First what is due, then what comes after it: a thousand schedules take a while to
            # read.
            self._fire([(scheduled, instant) for _, _, instant, scheduled in due])
            for _, number, instant, scheduled in due:
                self._expect_next(number, instant, scheduled)
        with self._lock:
            self._reading_ms = None

    def _due(self) -> list[tuple[int, int, int, Scheduled]]:
        now_ms = self._clock.now_ms
        due: list[tuple[int, int, int, Scheduled]] = []
        with self._lock:
            while self._heap and self._heap[0][0] <= now_ms:
                due.append(heapq.heappop(self._heap))
            if due and self._reading_ms is None:
                self._reading_ms = due[0][0]
        return due

    def _expect_next(self, number: int, instant: int, scheduled: Scheduled) -> None:
        try:
            after = scheduled.next_ms(instant)
        except Exception as exc:
            self.failure = SchedulerStuck(
                f"the schedule of {scheduled.task.name!r} raised "
                f"{summarize_error(exc.__cause__ or exc)}",
                details=[scheduled.task.place],
            )
            self.failure.__cause__ = exc
            return
        if after is not None:
            with self._lock:
                entry = (scheduled.start_ms(after), number, after, scheduled)
                heapq.heappush(self._heap, entry)


class _Handover(BaseExecutor):  # type: ignore[misc]
    """Runs no job: it calls *wake* when APScheduler submits one."""

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__()
        self._wake = wake

    def _do_submit_job(self, job: Job, run_times: list[datetime]) -> None:
        self._wake()
        # For APScheduler the job is over: how many runs go on at a time is the executor's business.
        self._run_job_success(job.id, [])


class _Trigger(BaseTrigger):  # type: ignore[misc]
    """The next start of all. APScheduler asks before it submits the job and once more after."""

    def __init__(self, delay: Callable[[], timedelta]) -> None:
        self._delay = delay

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        return now + self._delay()

    def __str__(self) -> str:
        return "what comes next"


def _nothing(*args: Any) -> None:
    """A job must be callable; ours is never called."""
