"""Tasks as a page shows them: a list of all, and one task with what its runs were like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row

from fsa_cli.exceptions import FsaError
from fsa_cli.ledger import queries, task_history
from fsa_cli.ledger.run_search import FAILED
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.time import instant_of
from fsa_cli.ledger.values import options_in
from fsa_cli.runs.calendar import Calendar, DayCounts
from fsa_cli.runs.coming import ComingInstants, schedule_of
from fsa_cli.schedules.preview import FireTime, upcoming_fire_times
from fsa_cli.schedules.schedule import Schedule
from fsa_cli.schedules.timezones import zone_name
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.registry import registry
from fsa_cli.tasks.signature import Parameter, signature_of

__all__ = ["Durations", "TaskDetail", "TaskLine", "task_detail", "task_lines"]

_SAMPLE = 500
_FAR = timedelta(days=366)
_NEXT = 5
_BINS = 24
_LATENESS = 120
_ENDED = frozenset((*FAILED, "succeeded"))


@dataclass(frozen=True, slots=True)
class TaskLine:
    """One task as a line of a list.

    Attributes:
        schedule: As a person writes it; None: it has none.
        next_at: Its next instant; None: it is paused, or never comes.
        is_here: Whether this process has its function.
        is_known: Whether a live scheduler fires it.
        problem: Why it cannot be run, if it cannot.
    """

    name: str
    summary: str
    schedule: str | None
    zone: str | None
    next_at: datetime | None
    paused_at: datetime | None
    paused_by: str | None
    failures: int
    last_success_at: datetime | None
    last_id: str | None
    last_status: str | None
    last_at: datetime | None
    is_here: bool
    is_known: bool
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Durations:
    """What the latest runs of a task were like.

    Attributes:
        runs: How many runs were looked at, the latest.
        since: The instant of the first of them.
        ended, succeeded: How many of them ended, and how many well.
        bins: A histogram of the durations: the upper end of each, in ms, and how many.
        lateness: Of the latest runs without a retry the instant, and by how many ms each started
            late; the oldest first.
    """

    runs: int
    since: datetime | None
    ended: int
    succeeded: int
    p50_ms: int | None
    p95_ms: int | None
    bins: Sequence[tuple[float, int]]
    lateness: Sequence[tuple[datetime, int]]

    @property
    def success_rate(self) -> float | None:
        return self.succeeded / self.ended if self.ended else None


@dataclass(frozen=True, slots=True)
class TaskDetail:
    """One task in full.

    Attributes:
        definition: None: its function is in other processes alone.
        parameters: None: they cannot be read, or are not here.
        options: What the ledger knows of its policies.
        coming: Its next instants, with the changes of clocks.
    """

    line: TaskLine
    definition: TaskDefinition | None
    description: str
    place: str
    parameters: Sequence[Parameter] | None
    options: Mapping[str, Any]
    coming: Sequence[FireTime]
    calendar: Calendar
    durations: Durations


def task_lines(
    ledger: Ledger, coming: ComingInstants, now_ms: int, zone: str | None
) -> list[TaskLine]:
    """The tasks that this process or the ledger knows; those that fail first, then by name."""
    rows = {row.name: row for row in queries.tasks(ledger)}
    known, last = task_history.known(ledger, now_ms), task_history.last_runs(ledger)
    names = {*rows, *(task.name for task in registry)}
    lines = [
        _line(name, rows.get(name), last.get(name), name in known, coming, now_ms, zone)
        for name in names
    ]
    return sorted(lines, key=lambda line: (line.failures == 0, line.name))


def task_detail(
    ledger: Ledger,
    name: str,
    coming: ComingInstants,
    counts: DayCounts,
    now_ms: int,
    zone: str | None,
) -> TaskDetail | None:
    """One task in full; None if this process does not know it, and it has never run."""
    row, definition = task_history.get(ledger, name), registry.get(name)
    sample = task_history.sample(ledger, name, _SAMPLE)
    if row is None and definition is None and not sample:
        return None
    line = _line(
        name,
        row,
        sample[0] if sample else None,
        name in task_history.known(ledger, now_ms, name),
        coming,
        now_ms,
        zone,
    )
    options = options_in(row.options) if row is not None else {}
    schedule = schedule_of(name, options, zone)
    parameters: Sequence[Parameter] | None = None
    if definition is not None:
        try:
            parameters = signature_of(definition.function).parameters
        except FsaError:
            parameters = None
    return TaskDetail(
        line=line,
        definition=definition,
        description=definition.description if definition is not None else "",
        place=definition.place if definition is not None else "",
        parameters=parameters,
        options=options,
        coming=_coming(name, schedule, now_ms),
        calendar=counts.calendar(ledger, name, now_ms),
        durations=_durations(sample),
    )


def _line(
    name: str,
    row: Row[Any] | None,
    last: Row[Any] | None,
    is_known: bool,
    coming: ComingInstants,
    now_ms: int,
    zone: str | None,
) -> TaskLine:
    definition = registry.get(name)
    schedule = schedule_of(name, options_in(row.options) if row is not None else {}, zone)
    is_paused = row is not None and row.paused_ms is not None
    next_ms: Sequence[int] = ()
    if schedule is not None and not is_paused:
        until_ms = now_ms + _FAR // timedelta(milliseconds=1)
        next_ms = coming.of(name, schedule, now_ms, until_ms, 1)
    summary, problem = "", None
    if definition is not None:
        summary = definition.summary
        try:
            signature_of(definition.function)
        except FsaError as exc:
            problem = exc.message
    return TaskLine(
        name=name,
        summary=summary,
        schedule=schedule.text if schedule is not None else None,
        zone=zone_name(schedule.timezone) if schedule is not None else None,
        next_at=instant_of(next_ms[0]) if next_ms else None,
        paused_at=instant_of(row.paused_ms) if row is not None and is_paused else None,
        paused_by=row.paused_by if row is not None else None,
        failures=row.consecutive_failures if row is not None else 0,
        last_success_at=instant_of(row.last_success_ms)
        if row is not None and row.last_success_ms
        else None,
        last_id=last.id if last is not None else None,
        last_status=last.status if last is not None else None,
        last_at=instant_of(last.started_ms or last.scheduled_ms) if last is not None else None,
        is_here=definition is not None,
        is_known=is_known,
        problem=problem,
    )


def _coming(name: str, schedule: Schedule | None, now_ms: int) -> Sequence[FireTime]:
    if schedule is None:
        return ()
    try:
        return upcoming_fire_times([(name, schedule)], instant_of(now_ms), _NEXT)
    except FsaError:
        return ()


def _durations(rows: Sequence[Row[Any]]) -> Durations:
    took: list[int] = []
    ended: list[str] = []
    late: list[tuple[datetime, int]] = []
    # To ask a row for a column by its name takes as long as all the rest.
    for _, status, kind, scheduled_ms, started_ms, finished_ms, attempt in map(tuple, rows):
        if status in _ENDED:
            ended.append(status)
        if started_ms is None:
            continue
        if finished_ms is not None:
            took.append(max(int(finished_ms - started_ms), 0))
        # A retry starts after its pause, and when the first attempt did is not known any more.
        if kind == "schedule" and attempt == 1 and len(late) < _LATENESS:
            late.append((instant_of(scheduled_ms), max(int(started_ms - scheduled_ms), 0)))
    took.sort()
    return Durations(
        runs=len(rows),
        since=instant_of(rows[-1].scheduled_ms) if rows else None,
        ended=len(ended),
        succeeded=ended.count("succeeded"),
        p50_ms=_percentile(took, 0.5),
        p95_ms=_percentile(took, 0.95),
        bins=_bins(took),
        lateness=late[::-1],
    )


def _percentile(ordered: Sequence[int], part: float) -> int | None:
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)] if ordered else None


def _bins(ordered: Sequence[int]) -> list[tuple[float, int]]:
    """Equal steps from 0 to the longest; fewer where there is little to tell apart."""
    if not ordered:
        return []
    number = min(_BINS, max(len(ordered) // 4, 1), ordered[-1] + 1)
    width = max(ordered[-1], 1) / number
    counts = [0] * number
    for each in ordered:
        counts[min(int(each / width), number - 1)] += 1
    return [(width * (place + 1), count) for place, count in enumerate(counts)]
