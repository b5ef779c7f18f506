"""The scheduler at this moment: what runs, waits, has failed and comes, and whether all is well."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from fsa_cli.ledger import nodes, run_search
from fsa_cli.ledger.glance import MOST_RUNNING, Waiting, glance, waiting
from fsa_cli.ledger.records import OPEN_STATES
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.time import instant_of
from fsa_cli.ledger.values import options_in
from fsa_cli.runs import lanes
from fsa_cli.runs.coming import ComingInstants, schedules
from fsa_cli.runs.failures import Failures, failures
from fsa_cli.runs.lanes import Lanes, Scale
from fsa_cli.runs.node_states import node_state
from fsa_cli.runs.problem import Problem
from fsa_cli.runs.run_pages import RunLine, run_line
from fsa_cli.runs.task_problems import problems
from fsa_cli.tasks.registry import registry
from fsa_cli.terminal.formatting import format_times

__all__ = [
    "NodeLine",
    "Overview",
    "QueueLine",
    "node_lines",
    "overview",
    "queue_lines",
]


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
    at_glance = glance(ledger, now_ms)
    tasks, running_rows = at_glance.tasks, at_glance.running
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
    now = instant_of(now_ms)
    return Overview(
        now=now,
        problems=problems(at_glance),
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
        running=[run_line(row, now) for row in running_rows[:MOST_RUNNING]],
        running_more=len(running_rows) > MOST_RUNNING,
        waiting=_queue_lines(at_glance.waiting),
        failures=failures(ledger, now_ms, tasks),
        nodes=_node_lines(at_glance.nodes, now_ms, running_rows),
        tasks=len(named),
    )


def queue_lines(ledger: Ledger, now_ms: int) -> list[QueueLine]:
    """What waits, by queue; the one with the oldest run first."""
    return _queue_lines(waiting(ledger, now_ms))


def node_lines(ledger: Ledger, now_ms: int) -> list[NodeLine]:
    """The nodes that live, and those that have gone since yesterday."""
    rows = run_search.running(ledger, MOST_RUNNING)
    listed = ledger.read(lambda connection: nodes.listed(connection, ledger, now_ms))
    return _node_lines(listed, now_ms, rows)


def _queue_lines(rows: Sequence[Waiting]) -> list[QueueLine]:
    grouped: dict[tuple[str, str, str], list[Waiting]] = {}
    for row in rows:
        grouped.setdefault((row.queue or row.executor, row.executor, row.status), []).append(row)
    lines = [
        QueueLine(
            name=name,
            executor=executor,
            status=status,
            number=sum(row.number for row in same),
            more=same[0].more,
            later=sum(row.later for row in same),
            oldest=instant_of(min(row.oldest_ms for row in same)),
        )
        for (name, executor, status), same in grouped.items()
    ]
    return sorted(lines, key=lambda line: line.oldest)


def _node_lines(
    rows: Sequence[Row[Any]], now_ms: int, running_rows: Sequence[Row[Any]]
) -> list[NodeLine]:
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
        for row in rows
    ]


def _named(
    tasks: Sequence[Row[Any]], busy: Container[str]
) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Each task, a note, and its options.

    Args:
        busy: Those that come before others, after the ones that fail.
    """
    found: dict[str, tuple[str, Mapping[str, Any]]] = {task.name: ("", {}) for task in registry}
    failing = set()
    for row in tasks:
        note = ""
        if row.paused_ms is not None:
            note = "paused"
        elif row.consecutive_failures:
            note = f"failed {format_times(row.consecutive_failures)}"
            failing.add(row.name)
        found[row.name] = (note, options_in(row.options))
    ordered = sorted(found, key=lambda name: (name not in failing, name not in busy, name))
    return [(name, *found[name]) for name in ordered]
