"""What is scheduled: each task with its schedule and the arguments of its runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

from fsa_cli import arguments, report, schedules
from fsa_cli.exceptions import ConfigurationError, FsaError
from fsa_cli.executors.base import LOCAL
from fsa_cli.executors.choice import name_of, queue_of
from fsa_cli.ledger.claims import Due
from fsa_cli.ledger.sweep import Expected, Registered
from fsa_cli.ledger.tables import NAMESPACE_LENGTH
from fsa_cli.scheduler.clock import instant_of, ms_of
from fsa_cli.schedules import Schedule
from fsa_cli.signatures import signature_of
from fsa_cli.tasks import Task

__all__ = ["LEASE_S", "Scheduled", "lock_of", "plan", "registered"]

#: How long the other nodes take one for alive after it was last heard of.
LEASE_S = 20.0

_REST_OF_MILLISECOND = timedelta(microseconds=999)


@dataclass(frozen=True)
class Scheduled:
    """A task that runs on a schedule."""

    task: Task
    schedule: Schedule
    arguments: Mapping[str, Any]
    executor: str = LOCAL

    @cached_property
    def schedule_hash(self) -> str:
        """Of its name and schedule: the same on every replica that has the same of both."""
        zone = schedules.zone_name(self.schedule.timezone)
        return _hash([self.task.name, self.schedule.text, zone])

    @cached_property
    def jitter_ms(self) -> int:
        """How late its runs may start, by design."""
        return round(self.task.jitter_s * 1000)

    @property
    def window_ms(self) -> int:
        """How far back missed instants are made up for."""
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
            self.task.queue if self.executor == LOCAL else queue_of(self.task, namespace),
        )

    def expected(self, instant_ms: int, namespace: str, passed: int = 0) -> Expected:
        return Expected(self.due(instant_ms, namespace), self.task.catch_up, passed)

    def next_ms(self, after_ms: int) -> int | None:
        """The first instant later than *after_ms*; None if there is none.

        A trigger of the user's may have microseconds: two instants of one millisecond are one.
        """
        instant = self.schedule.next_after(instant_of(after_ms) + _REST_OF_MILLISECOND)
        return None if instant is None else ms_of(instant)

    @cached_property
    def _arguments(self) -> str:
        return json.dumps(report.jsonable(dict(self.task.args)))


def plan(
    tasks: Iterable[Task], zone: str | None = None, executor: str | None = None
) -> list[Scheduled]:
    """Read the schedule and the `args` of each task that has a schedule.

    Args:
        zone: The time zone of schedules that name none; None is UTC.
        executor: That of tasks that name none; None is `local`.

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
            planned.append(Scheduled(task, schedule, values, name_of(task, executor)))
    if wrong:
        task, first = wrong[0]
        names = f"task {task.name!r}" if len(wrong) == 1 else f"{len(wrong)} tasks"
        raise ConfigurationError(
            f"{names} cannot be scheduled",
            details=[f"{task.name} ({task.place}): {exc.message}" for task, exc in wrong],
            hint=first.hint or _hint(first),
        )
    return planned


def lock_of(task: Task, namespace: str) -> str | None:
    """What only one run at a time may hold; None where the task's runs may overlap.

    The default `overlap="skip"` is about instants: runs that are only asked for go on side by side.
    """
    if task.schedule is None and task.overlap == "skip" and task.group is None:
        return None
    if task.group is not None:
        return f"{namespace[:NAMESPACE_LENGTH]}/@{task.group}"
    return None if task.overlap == "allow" else f"{namespace[:NAMESPACE_LENGTH]}/{task.name}"


def registered(tasks: Iterable[Task], planned: Iterable[Scheduled]) -> list[Registered]:
    """What the ledger is told of each task."""
    by_name = {each.task.name: each for each in planned}
    return [_registered(task, by_name.get(task.name)) for task in tasks]


def _registered(task: Task, scheduled: Scheduled | None) -> Registered:
    options: dict[str, object] = {
        "on_crash": task.on_crash,
        "overlap": task.overlap,
        "catch_up": task.catch_up,
        "retries": task.retries,
        "timeout_s": task.timeout_s,
        "tags": sorted(task.tags),
    }
    if scheduled is None:
        return Registered(task.name, json.dumps(options))
    options["schedule"] = scheduled.schedule.text
    options["timezone"] = schedules.zone_name(scheduled.schedule.timezone)
    return Registered(task.name, json.dumps(options), scheduled.schedule_hash)


def _hash(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _hint(error: FsaError) -> str | None:
    return (
        "args={...} of the task gives its scheduled runs their arguments"
        if (error.message.startswith("missing"))
        else None
    )
