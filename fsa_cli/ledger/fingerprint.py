"""Whether anything has changed that a page shows, in one statement."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CompoundSelect,
    Select,
    bindparam,
    case,
    func,
    literal_column,
    select,
    union_all,
)
from sqlalchemy.sql import ColumnElement

from fsa_cli.ledger.records import OPEN_STATES
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import activity, audit, node, progress, run, task

__all__ = ["Fingerprint", "fingerprint"]

_MOST = 1000
_PRIME = 1_000_000_007
_WIDTH = 6


@dataclass(frozen=True)
class Fingerprint:
    """The database's clock, and a text that is another one after a change.

    Of more than a thousand runs that wait or run it sees the first thousand of each.
    """

    now_ms: int
    text: str


def fingerprint(ledger: Ledger) -> Fingerprint:
    """The ledger's at this moment: one statement, whatever the number of runs.

    What no index serves it leaves out: a run that ends is seen by what it leaves, the runs that
    are open, and by what it changes, its task's counters.
    """
    statement = _statement(ledger.sql.now_ms)
    given = {"of_namespace": ledger.namespace}
    rows = ledger.read(lambda connection: connection.execute(statement, given).all())
    (_, now_ms, *first), *others = sorted(rows, key=lambda row: int(row[0]))
    values = itertools.chain(first, *(row[1:] for row in others))
    return Fingerprint(int(now_ms), " ".join(str(value or 0) for value in values))


@lru_cache
def _statement(clock: str) -> CompoundSelect[Any]:
    """Rows of six numbers, the first of which says what it is about. As a join of subqueries
    PostgreSQL plans it for twice as long, and to plan takes longer than to execute."""
    namespace: ColumnElement[str] = bindparam("of_namespace", type_=run.c.namespace.type)
    now_ms: ColumnElement[int] = literal_column(clock)
    last = select(func.max(run.c.scheduled_ms)).where(run.c.namespace == namespace)
    acted = select(func.max(audit.c.at_ms)).where(audit.c.namespace == namespace)
    tasks = select(
        func.count(),
        _sum(task.c.watermark_ms),
        _sum(task.c.last_success_ms),
        _sum(task.c.consecutive_failures),
        _sum(task.c.paused_ms),
    ).where(task.c.namespace == namespace)
    lives = case((node.c.lease_until_ms >= now_ms, 1), else_=0)
    nodes = select(
        func.count(),
        _sum(node.c.started_ms),
        func.sum(lives),
        func.sum(case((node.c.state == OPEN_STATES[0], 1), else_=0)),
    ).where(node.c.namespace == namespace, node.c.state.in_(OPEN_STATES))
    going = (
        select(run.c.id)
        .where(run.c.namespace == namespace, run.c.status == "running")
        .scalar_subquery()
    )
    advanced = select(_sum(progress.c.done), _sum(progress.c.updated_ms)).where(
        progress.c.run.in_(going)
    )
    does = select(_sum(activity.c.updated_ms)).where(activity.c.run.in_(going))
    parts = [
        select(now_ms, last.scalar_subquery(), acted.scalar_subquery()),
        _opened(namespace, ("running",)),
        _opened(namespace, ("queued", "handed_off")),
        tasks,
        nodes,
        advanced,
        does,
    ]
    return union_all(*(_row(number, each) for number, each in enumerate(parts)))


def _row(number: int, part: Select[Any]) -> Select[Any]:
    """*part*, one row, as wide as the others."""
    columns = [literal_column(str(number)), *part.selected_columns]
    return part.with_only_columns(*columns, *[literal_column("0")] * (_WIDTH - len(columns)))


def _sum(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Of the rests by a prime: a row may hold any number, and SQLite's sums overflow."""
    return func.sum(func.coalesce(column, 0) % _PRIME)


def _opened(namespace: ColumnElement[str], statuses: tuple[str, ...]) -> Select[Any]:
    some = (
        select(
            run.c.started_ms,
            run.c.not_before_ms,
            run.c.attempt,
            run.c.cancel_requested_ms,
        )
        .where(run.c.namespace == namespace, run.c.status.in_(statuses))
        .limit(_MOST)
        .subquery()
    )
    return select(
        func.count(),
        _sum(some.c.started_ms),
        _sum(some.c.not_before_ms),
        _sum(some.c.attempt),
        _sum(some.c.cancel_requested_ms),
    )
