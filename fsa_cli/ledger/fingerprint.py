"""Whether anything has changed that a page shows, in one statement."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import FromClause, Select, bindparam, case, func, literal, literal_column, select
from sqlalchemy.sql import ColumnElement

from fsa_cli.ledger.records import OPEN_STATES
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import activity, audit, node, progress, run, task

__all__ = ["Fingerprint", "fingerprint"]

_MOST = 1000
_PRIME = 1_000_000_007
_ONE = literal(1).label("one")


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
    row = ledger.read(lambda connection: connection.execute(statement, given).one())
    return Fingerprint(int(row[0]), " ".join(str(value or 0) for value in row[1:]))


@lru_cache
def _statement(clock: str) -> Select[Any]:
    namespace: ColumnElement[str] = bindparam("of_namespace", type_=run.c.namespace.type)
    now_ms: ColumnElement[int] = literal_column(clock)
    runs = _opened(namespace, ("running",)).subquery("runs")
    waiting = _opened(namespace, ("queued", "handed_off")).subquery("waiting")
    last = select(func.max(run.c.scheduled_ms)).where(run.c.namespace == namespace)
    tasks = (
        select(
            _ONE,
            func.count(),
            _sum(task.c.watermark_ms),
            _sum(task.c.last_success_ms),
            _sum(task.c.consecutive_failures),
            _sum(task.c.paused_ms),
        )
        .where(task.c.namespace == namespace)
        .subquery("tasks")
    )
    lives = case((node.c.lease_until_ms >= now_ms, 1), else_=0)
    nodes = (
        select(
            _ONE,
            func.count(),
            _sum(node.c.started_ms),
            func.sum(lives),
            func.sum(case((node.c.state == OPEN_STATES[0], 1), else_=0)),
        )
        .where(node.c.namespace == namespace, node.c.state.in_(OPEN_STATES))
        .subquery("nodes")
    )
    going = (
        select(run.c.id)
        .where(run.c.namespace == namespace, run.c.status == "running")
        .scalar_subquery()
    )
    advanced = (
        select(_ONE, _sum(progress.c.done), _sum(progress.c.updated_ms))
        .where(progress.c.run.in_(going))
        .subquery("advanced")
    )
    does = (
        select(_ONE, _sum(activity.c.updated_ms)).where(activity.c.run.in_(going)).subquery("does")
    )
    acted = select(func.max(audit.c.at_ms)).where(audit.c.namespace == namespace)
    source: FromClause = runs
    for each in (waiting, tasks, nodes, advanced, does):  # of each there is one row
        source = source.join(each, each.c.one == runs.c.one)
    return select(
        now_ms, last.scalar_subquery(), acted.scalar_subquery(), *source.columns.values()
    ).select_from(source)


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
        _ONE,
        func.count(),
        _sum(some.c.started_ms),
        _sum(some.c.not_before_ms),
        _sum(some.c.attempt),
        _sum(some.c.cancel_requested_ms),
    )
