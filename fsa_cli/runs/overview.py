"""The scheduler at this moment: what runs, waits, has failed and comes, and whether all is well."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row

from fsa_cli.ledger import nodes, queries, run_search, task_history
from fsa_cli.ledger.records import OPEN_STATES
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.time import instant_of
from fsa_cli.ledger.values import options_in
from fsa_cli.runs import lanes
from fsa_cli.runs.coming import ComingInstants, schedules
from fsa_cli.runs.lanes import Lanes, Scale
from fsa_cli.runs.run_pages import RunLine, run_line
from fsa_cli.runs.status_view import node_state
from fsa_cli.tasks.registry import registry
from fsa_cli.terminal.formatting import format_duration, format_times
from fsa_cli.terminal.masking import mask_head

__all__ = [
    "Failures",
    "NodeLine",
    "Overview",
    "Problem",
    "QueueLine",
    "node_lines",
    "overview",
    "queue_lines",
]

_DAY_MS = 24 * 3600 * 1000
_RUNNING = 50
_FAILED = 500
_GROUPS = 20
_WAITING = 10_000
_NODES = 50
_LATE_S = 120
_ERROR_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a person has to look at: in words, and where it is shown.

    Attributes:
        page: `task`, `runs`, `queues`, `nodes`.
        about: The task's name; empty: all of them.
    """

    text: str
    page: str
    about: str = ""


@dataclass(frozen=True, slots=True)
class QueueLine:
    """What waits in one queue.

    Attributes:
        name: The broker's queue, or the executor where there is none.
        more: Whether there are more of them than were counted.
        later: How many of them wait for a time that has not come.
    """

    name: str
    executor: str
    status: str
    number: int
    more: bool
    later: int
    oldest: datetime


@dataclass(frozen=True, slots=True)
class Failures:
    """Runs of one task that ended alike. `more`: there are others that were not counted."""

    task: str
    status: str
    error_type: str | None
    error: str
    number: int
    more: bool
    last_id: str
    last_at: datetime


@dataclass(frozen=True, slots=True)
class NodeLine:
    """A process that fires the schedule or executes runs.

    Attributes:
        state: `dead` as soon as its lease is over, whether or not another one has noticed.
        running: How many runs it has, of those that are listed.
    """

    id: str
    role: str
    state: str
    host: str
    pid: int
    version: str
    started_at: datetime
    lease_until: datetime
    running: int

    @property
    def lives(self) -> bool:
        return self.state in OPEN_STATES


@dataclass(frozen=True, slots=True)
class Overview:
    """All of it at one moment of the database's clock."""

    now: datetime
    problems: Sequence[Problem]
    lanes: Lanes
    running: Sequence[RunLine]
    running_more: bool
    waiting: Sequence[QueueLine]
    failures: Sequence[Failures]
    nodes: Sequence[NodeLine]
    tasks: int


def overview(
    ledger: Ledger,
    coming: ComingInstants,
    now_ms: int,
    *,
    zone: str | None,
    span: str = "1h",
    most_lanes: int = 30,
) -> Overview:
    """The ledger at a moment.

    Args:
        now_ms: The database's clock.
        zone: The zone of schedules that name none.
        span: Of `lanes.SPANS`.
    """
    scale = Scale.around(now_ms, span)
    tasks = queries.tasks(ledger)
    running_rows = run_search.running(ledger, _RUNNING + 1)
    # Where not all have a lane, those that do something have one.
    going = {row.task for row in running_rows}
    busy = going | {row.name for row in tasks if (row.last_success_ms or 0) >= scale.start_ms}
    named = _named(tasks, busy if len(tasks) > most_lanes else set())
    shown = named[:most_lanes]
    names = {name for name, _, _ in shown}
    drawn = run_search.drawn(
        ledger,
        scale.start_ms,
        cell_ms=scale.cell_ms(len(shown)),
        least_ms=scale.least_ms,
        names=names if len(shown) < len(named) else None,
        limit=lanes.MOST_RUNS,
    )
    waiting = queue_lines(ledger, now_ms)
    listed = node_lines(ledger, now_ms, running_rows)
    now = instant_of(now_ms)
    return Overview(
        now=now,
        problems=_problems(tasks, waiting, listed, task_history.known(ledger, now_ms), now),
        lanes=lanes.draw(
            [(name, note) for name, note, _ in shown],
            drawn,
            [row for row in running_rows if row.task in names],
            schedules([(name, options) for name, _, options in shown], zone),
            coming,
            scale,
            hidden=len(named) - len(shown),
            paused={each.name for each in tasks if each.paused_ms is not None},
        ),
        running=[run_line(row, now) for row in running_rows[:_RUNNING]],
        running_more=len(running_rows) > _RUNNING,
        waiting=waiting,
        failures=_failures(run_search.failed(ledger, now_ms - _DAY_MS, _FAILED, _GROUPS)),
        nodes=listed,
        tasks=len(named),
    )


def queue_lines(ledger: Ledger, now_ms: int) -> list[QueueLine]:
    """What waits, by queue; the one with the oldest run first."""
    rows = run_search.waiting(ledger, now_ms, _WAITING)
    counted: dict[str, int] = {}
    for row in rows:
        counted[row.status] = counted.get(row.status, 0) + int(row.number)
    lines = [
        QueueLine(
            name=row.queue or row.executor,
            executor=row.executor,
            status=row.status,
            number=int(row.number),
            more=counted[row.status] >= _WAITING,
            later=int(row.later or 0),
            oldest=instant_of(row.oldest_ms),
        )
        for row in rows
    ]
    return sorted(lines, key=lambda line: line.oldest)


def node_lines(
    ledger: Ledger, now_ms: int, running_rows: Sequence[Row[Any]] = ()
) -> list[NodeLine]:
    """The nodes that live, and those that have gone since yesterday."""
    has: dict[str, int] = {}
    for row in running_rows:
        has[row.node] = has.get(row.node, 0) + 1
    return [
        NodeLine(
            id=row.id,
            role=row.role,
            state=node_state(row, now_ms),
            host=row.host,
            pid=row.pid,
            version=row.version,
            started_at=instant_of(row.started_ms),
            lease_until=instant_of(row.lease_until_ms),
            running=has.get(row.id, 0),
        )
        for row in nodes.listed(ledger, now_ms - _DAY_MS, _NODES)
    ]


def _named(
    tasks: Sequence[Row[Any]], busy: Container[str]
) -> list[tuple[str, str, dict[str, Any]]]:
    """Each task, a note, and its options.

    Args:
        busy: Those that come before others, after the ones that fail.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {task.name: ("", {}) for task in registry}
    failing = set()
    for row in tasks:
        note = ""
        if row.paused_ms is not None:
            note = "paused"
        elif row.consecutive_failures:
            note = f"failed {format_times(row.consecutive_failures)}"
            failing.add(row.name)
        found[row.name] = (note, dict(options_in(row.options)))
    ordered = sorted(found, key=lambda name: (name not in failing, name not in busy, name))
    return [(name, *found[name]) for name in ordered]


def _failures(rows: Sequence[Row[Any]]) -> list[Failures]:
    return [
        Failures(
            task=row.task,
            status=row.status,
            error_type=row.error_type,
            error=" ".join(mask_head(row.error or "", _ERROR_LENGTH).split()),
            number=row.number,
            more=row.of_status >= _FAILED,
            last_id=row.id,
            last_at=instant_of(row.place_ms),
        )
        for row in rows
    ]


def _problems(
    tasks: Sequence[Row[Any]],
    waiting: Sequence[QueueLine],
    listed: Sequence[NodeLine],
    known: frozenset[str],
    now: datetime,
) -> list[Problem]:
    found = []
    roles = {node.role for node in listed if node.lives}
    scheduled = [each for each in tasks if each.schedule_hash is not None]
    ticks = any(node.role == "tick" for node in listed)
    if scheduled and not ticks and "scheduler" not in roles:
        found.append(Problem("no scheduler is alive: fsa scheduler start", "nodes"))
    for each in tasks:
        if each.consecutive_failures and each.paused_ms is None:
            times = format_times(each.consecutive_failures)
            text = f"{each.name} failed {times} since its last success"
            found.append(Problem(text, "task", each.name))
        elif (
            each.schedule_hash is not None
            and "scheduler" in roles
            and each.name not in known
            and each.paused_ms is None
        ):
            found.append(Problem(f"{each.name}: no live scheduler knows it", "task", each.name))
    for line in waiting:
        late = now - line.oldest
        if line.number > line.later and late > timedelta(seconds=_LATE_S):
            found.append(
                Problem(
                    f"{line.number - line.later} wait in {line.name}, the oldest for "
                    f"{format_duration(late)}",
                    "queues",
                )
            )
    found += [
        Problem(f"{node.role} {node.host}:{node.pid} died", "nodes")
        for node in listed
        if node.state == "dead" and now - node.lease_until < timedelta(hours=1)
    ]
    return found
