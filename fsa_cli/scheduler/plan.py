"""What is scheduled: each task with its schedule and the arguments of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fsa_cli import arguments, schedules
from fsa_cli.exceptions import ConfigurationError, FsaError
from fsa_cli.schedules import Schedule
from fsa_cli.signatures import signature_of
from fsa_cli.tasks import Task

__all__ = ["Scheduled", "plan"]


@dataclass(frozen=True)
class Scheduled:
    """A task that runs on a schedule."""

    task: Task
    schedule: Schedule
    arguments: Mapping[str, Any]


def plan(tasks: Iterable[Task], zone: str | None = None) -> list[Scheduled]:
    """Read the schedule and the `args` of each task that has a schedule.

    Args:
        zone: The time zone of schedules that name none; None is UTC.

    Raises:
        ConfigurationError: it names every task that could not run, and why.
    """
    planned: list[Scheduled] = []
    wrong: list[tuple[Task, FsaError]] = []
    for task in tasks:
        if task.schedule is None:
            continue
        try:
            schedule = schedules.parse(task.schedule, task.timezone or zone)
            values = arguments.bind(signature_of(task.function), task.args)
        except FsaError as exc:
            wrong.append((task, exc))
        else:
            planned.append(Scheduled(task, schedule, values))
    if wrong:
        task, first = wrong[0]
        names = f"task {task.name!r}" if len(wrong) == 1 else f"{len(wrong)} tasks"
        raise ConfigurationError(
            f"{names} cannot be scheduled",
            details=[f"{task.name} ({task.place}): {exc.message}" for task, exc in wrong],
            hint=first.hint or _hint(first),
        )
    return planned


def _hint(error: FsaError) -> str | None:
    return (
        "args={...} of the task gives its scheduled runs their arguments"
        if (error.message.startswith("missing"))
        else None
    )
