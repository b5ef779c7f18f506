"""The alarm clock: APScheduler, its memory job store, and an executor that knows the instant."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from apscheduler.executors.base import BaseExecutor  # type: ignore[import-untyped]
from apscheduler.job import Job  # type: ignore[import-untyped]
from apscheduler.jobstores.memory import MemoryJobStore  # type: ignore[import-untyped]
from apscheduler.schedulers.background import (  # type: ignore[import-untyped]
    BackgroundScheduler,
)
from apscheduler.triggers.base import BaseTrigger  # type: ignore[import-untyped]

from fsa_cli.schedules import Schedule

__all__ = ["Timer"]

Fire = Callable[[str, list[datetime]], None]


class Timer:
    """Calls *fire* with a name and its instants when they come, in a thread of its own.

    Several instants come at once where the process stood still meanwhile.
    """

    def __init__(self, fire: Fire) -> None:
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            jobstores={"default": MemoryJobStore()},
            executors={"default": _Handover(fire)},
            job_defaults={"coalesce": False, "misfire_grace_time": None},
        )

    def add(self, name: str, schedule: Schedule) -> None:
        self._scheduler.add_job(_nothing, _Trigger(schedule), id=name, name=name)

    def start(self) -> None:
        self._scheduler.start()

    def stop(self) -> None:
        """Fire nothing more."""
        self._scheduler.shutdown(wait=False)

    def wake(self) -> None:
        """Look at the clock: it may have jumped, or the machine may have slept."""
        self._scheduler.wakeup()

    @property
    def alive(self) -> bool:
        """Whether APScheduler's thread is there; it dies where a trigger raises."""
        thread = self._scheduler._thread
        return thread is not None and thread.is_alive()


class _Handover(BaseExecutor):  # type: ignore[misc]
    """Hands a job's instants on; APScheduler's own executors keep them to themselves."""

    def __init__(self, fire: Fire) -> None:
        super().__init__()
        self._fire = fire

    def _do_submit_job(self, job: Job, run_times: list[datetime]) -> None:
        self._fire(job.id, [instant.astimezone(UTC) for instant in run_times])
        # For APScheduler the job is over: how many runs go on at a time is the host's business.
        self._run_job_success(job.id, [])


class _Trigger(BaseTrigger):  # type: ignore[misc]
    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        return self._schedule.next_after(previous or now)

    def __str__(self) -> str:
        return self._schedule.text


def _nothing(*args: Any) -> None:
    """A job must be callable; ours are never called."""
