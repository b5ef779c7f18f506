"""The plan: each scheduled task with its schedule and the arguments of its runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fsa_cli.exceptions import ConfigurationError, FsaError
from fsa_cli.ledger.records import Due, ExpectedInstant, RegisteredTask
from fsa_cli.runs.coming import next_ms
from fsa_cli.runs.executor import LOCAL
from fsa_cli.runs.executor_registry import executor_name, queue_name
from fsa_cli.schedules.durations import kept_ms
from fsa_cli.schedules.schedule import Schedule, parse_schedule
from fsa_cli.schedules.timezones import zone_name
from fsa_cli.tasks import arguments
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.kept_arguments import as_shown
from fsa_cli.tasks.locks import lock_of
from fsa_cli.tasks.signature import signature_of

__all__ = ["Scheduled", "catch_up", "plan", "plan_and_faults", "registered"]

#: Of the instants that are older than its catch-up window a task has one row; so many are counted.
_COUNTED = 1000


@dataclass(frozen=True)
class Scheduled:
    """A task that runs on a schedule."""

    task: TaskDefinition
    schedule: Schedule
    arguments: Mapping[str, Any]
    executor: str = LOCAL

    @cached_property
    def schedule_hash(self) -> str:
        """Of its name and schedule: the same on every replica that has the same of both."""
        return self.hash_of(self.task.name)

    def hash_of(self, name: str) -> str:
        """The hash where *name* is the task's: that which it had before it was renamed."""
        return _hash([name, self.schedule.text, zone_name(self.schedule.timezone)])

    @cached_property
    def jitter_ms(self) -> int:
        """How late its runs may start, by design."""
        return round(self.task.jitter_s * 1000)

    @property
    def window_ms(self) -> int:
        """How far back missed instants are caught up."""
        return round(self.task.catch_up_window_s * 1000)

    def start_ms(self, instant_ms: int) -> int:
        """When the run for an instant starts: with jitter later, by as much on each replica."""
        if not self.jitter_ms:
            return instant_ms
        seed = hashlib.sha256(f"{self.task.name}:{instant_ms}".encode()).digest()
        return instant_ms + int.from_bytes(seed[:8], "big") % self.jitter_ms

    def due(self, instant_ms: int, namespace: str) -> Due:
        return Due(
            self.task.name,
            instant_ms,
            lock_of(self.task, namespace),
            self.task.overlap == "queue",
            self._arguments,
            self.executor,
            self.task.queue if self.executor == LOCAL else queue_name(self.task, namespace),
            self.task.aliases,
        )

    def expected(self, instant_ms: int, namespace: str, passed: int = 0) -> ExpectedInstant:
        return ExpectedInstant(self.due(instant_ms, namespace), self.task.catch_up, passed)

    def next_ms(self, after_ms: int) -> int | None:
        """The first instant later than *after_ms*; None if there is none."""
        return next_ms(self.schedule, after_ms)

    @cached_property
    def _arguments(self) -> str:
        return json.dumps(as_shown(signature_of(self.task.function), self.arguments))


def plan(
    tasks: Iterable[TaskDefinition], zone: str | None = None, executor: str | None = None
) -> list[Scheduled]:
    """Read the schedule and the `args` of each task that has a schedule.

    Args:
        zone: The time zone of schedules that name none; None is UTC.
        executor: That of tasks that name none; None is `local`.

    Raises:
        ConfigurationError: it names every task that could not run, and why.
    """
    planned, wrong = plan_and_faults(tasks, zone, executor)
    if wrong:
        task, first = wrong[0]
        names = f"task {task.name!r}" if len(wrong) == 1 else f"{len(wrong)} tasks"
        raise ConfigurationError(
            f"{names} cannot be scheduled",
            details=[f"{task.name} ({task.place}): {exc.message}" for task, exc in wrong],
            hint=first.hint or _hint(first),
        )
    return planned


def plan_and_faults(
    tasks: Iterable[TaskDefinition], zone: str | None = None, executor: str | None = None
) -> tuple[list[Scheduled], list[tuple[TaskDefinition, FsaError]]]:
    """As `plan`; the tasks that could not run, and why, beside it."""
    planned: list[Scheduled] = []
    wrong: list[tuple[TaskDefinition, FsaError]] = []
    for task in tasks:
        if task.schedule is None:
            continue
        try:
            schedule = parse_schedule(task.schedule, task.timezone or zone)
            values = arguments.bind(signature_of(task.function), task.args)
        except FsaError as exc:
            wrong.append((task, exc))
        else:
            planned.append(Scheduled(task, schedule, values, executor_name(task, executor)))
    return planned, wrong


def registered(
    tasks: Iterable[TaskDefinition], planned: Iterable[Scheduled]
) -> list[RegisteredTask]:
    """Each task as the ledger registers it."""
    by_name = {each.task.name: each for each in planned}
    return [_registered(task, by_name.get(task.name)) for task in tasks]


def _registered(task: TaskDefinition, scheduled: Scheduled | None) -> RegisteredTask:
    options: dict[str, object] = {
        "on_crash": task.on_crash,
        "overlap": task.overlap,
        "catch_up": task.catch_up,
        "retries": task.retries,
        "timeout_s": task.timeout_s,
        "tags": sorted(task.tags),
    }
    if task.keep is not None:
        options["keep_ms"] = kept_ms(task.keep)
    if scheduled is None:
        return RegisteredTask(task.name, json.dumps(options), before=dict.fromkeys(task.aliases))
    options["schedule"] = scheduled.schedule.text
    options["timezone"] = zone_name(scheduled.schedule.timezone)
    before = {name: scheduled.hash_of(name) for name in task.aliases}
    return RegisteredTask(task.name, json.dumps(options), scheduled.schedule_hash, before)


def _hash(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _hint(error: FsaError) -> str | None:
    return (
        "args={...} of the task gives its scheduled runs their arguments"
        if (error.message.startswith("missing"))
        else None
    )


def catch_up(
    planned: Iterable[Scheduled],
    watermarks: dict[str, int],
    until_ms: int,
    namespace: str,
) -> list[ExpectedInstant]:
    """The instants after each task's watermark that have come due, also while no scheduler ran.

    Those older than a task's catch-up window are one instant that stands for the others.
    """
    expected: list[ExpectedInstant] = []
    for scheduled in planned:
        last_ms = until_ms - scheduled.jitter_ms
        mark_ms = watermarks.get(scheduled.task.name, until_ms)
        first_ms = max(mark_ms, until_ms - scheduled.window_ms)
        if mark_ms < first_ms:
            older, instant = 0, scheduled.next_ms(mark_ms)
            first = instant
            while instant is not None and instant <= first_ms and older < _COUNTED:
                older, instant = older + 1, scheduled.next_ms(instant)
            if first is not None and older:
                expected.append(scheduled.expected(first, namespace, passed=older))
        instant = scheduled.next_ms(first_ms)
        while instant is not None and instant <= last_ms:
            expected.append(scheduled.expected(instant, namespace))
            instant = scheduled.next_ms(instant)
    return expected
