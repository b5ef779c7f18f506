"""The history of tasks: the last run of each, and what one task's runs were like."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, func, or_, select

from fsa_cli.ledger.nodes import fired
from fsa_cli.ledger.records import RunStatus
from fsa_cli.ledger.run_search import SAID_LENGTH, head, tail
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run, task

__all__ = ["days", "first_ms", "get", "known", "last_runs", "latest", "nth_before", "sample"]

_INTERRUPTED = 100
# Of a traceback: the line that raised is the last, SQLAlchemy's twenty come after the user's.
_FRAMES_LENGTH = 16_000
_DAY_MS = 24 * 3600 * 1000


def get(ledger: Ledger, name: str) -> Row[Any] | None:
    """A task as the ledger knows it."""
    statement = select(task).where(task.c.namespace == ledger.namespace, task.c.name == name)
    return ledger.read(lambda connection: connection.execute(statement).one_or_none())


def known(ledger: Ledger, now_ms: int, name: str | None = None) -> frozenset[str]:
    """As `nodes.fired`."""
    return ledger.read(lambda connection: fired(connection, ledger, now_ms, name))


def last_runs(ledger: Ledger) -> dict[str, Row[Any]]:
    """The latest run of each task that the ledger knows."""
    rows = ledger.read(lambda connection: connection.execute(latest(ledger)).all())
    return {row.task: row for row in rows}


def latest(ledger: Ledger, statuses: Sequence[str] = (), *, wrong: bool = False) -> Select[Any]:
    """The latest run of each task: one statement, a probe for each.

    Args:
        statuses: Of these; none of them: whatever it is.
        wrong: Only of tasks that have failed since their last success, or whose run was interrupted
            of late.
    """
    return _latest(ledger.namespace, ledger.is_sqlite, tuple(statuses), wrong)


@lru_cache(maxsize=64)  # to build it takes longer than to execute it
def _latest(namespace: str, is_sqlite: bool, statuses: Sequence[str], wrong: bool) -> Select[Any]:
    other = run.alias("latest")
    last_id = (
        select(other.c.id)
        .where(other.c.namespace == task.c.namespace, other.c.task == task.c.name)
        .order_by(other.c.scheduled_ms.desc())
        .limit(1)
        .correlate(task)
    )
    if statuses:
        last_id = last_id.where(other.c.status.in_(statuses))
    ids = select(last_id.scalar_subquery().label("id")).where(task.c.namespace == namespace)
    if wrong:
        interrupted = (
            select(run.c.task)
            .where(run.c.namespace == namespace, run.c.status == RunStatus.INTERRUPTED)
            .order_by(run.c.not_before_ms.desc())
            .limit(_INTERRUPTED)
            .subquery()
        )
        ids = ids.where(
            or_(task.c.consecutive_failures > 0, task.c.name.in_(select(interrupted.c.task)))
        )
    last = ids.subquery()
    return select(
        run.c.id,
        run.c.task,
        run.c.status,
        run.c.scheduled_ms,
        run.c.started_ms,
        run.c.finished_ms,
        run.c.error_type,
        head(run.c.error, SAID_LENGTH).label("error"),
        tail(is_sqlite, run.c.traceback, _FRAMES_LENGTH).label("traceback"),
    ).join(last, last.c.id == run.c.id)


def sample(ledger: Ledger, name: str, limit: int) -> Sequence[Row[Any]]:
    """The latest runs of a task, the newest first: when they came, started, and ended."""
    statement: Select[Any] = (
        select(
            run.c.id,
            run.c.status,
            run.c.kind,
            run.c.scheduled_ms,
            run.c.started_ms,
            run.c.finished_ms,
            run.c.attempt,
        )
        .where(run.c.namespace == ledger.namespace, run.c.task == name)
        .order_by(run.c.scheduled_ms.desc())
        .limit(limit)
    )
    return ledger.read(lambda connection: connection.execute(statement).all())


def days(
    ledger: Ledger, name: str, from_ms: int, before_ms: int | None
) -> dict[int, dict[str, int]]:
    """How many runs of a task are in which status, by the beginning of the day of UTC in ms.

    Args:
        from_ms, before_ms: Their instants are in [from_ms, before_ms); None: whatever comes.
    """
    day_ms = run.c.scheduled_ms - run.c.scheduled_ms % _DAY_MS
    # In a subquery: the parameter of a second modulo may be another one, for all that is known.
    some = select(day_ms.label("day_ms"), run.c.status).where(
        *_of(ledger, name), run.c.scheduled_ms >= from_ms
    )
    if before_ms is not None:
        some = some.where(run.c.scheduled_ms < before_ms)
    each = some.subquery().c
    statement: Select[Any] = select(each.day_ms, each.status, func.count()).group_by(
        each.day_ms, each.status
    )
    rows = ledger.read(lambda connection: connection.execute(statement).all())
    found: dict[int, dict[str, int]] = {}
    for begin_ms, status, number in rows:
        found.setdefault(begin_ms, {})[status] = number
    return found


def nth_before(ledger: Ledger, name: str, before_ms: int, number: int) -> int | None:
    """The instant of the run that is the *number*-th before that; None: there are not so many."""
    statement = (
        select(run.c.scheduled_ms)
        .where(*_of(ledger, name), run.c.scheduled_ms < before_ms)
        .order_by(run.c.scheduled_ms.desc())
        .offset(number - 1)
        .limit(1)
    )
    found: int | None = ledger.read(lambda connection: connection.scalar(statement))
    return found


def first_ms(ledger: Ledger, name: str, since_ms: int) -> int | None:
    """The instant of a task's first run since then."""
    statement = select(func.min(run.c.scheduled_ms)).where(
        *_of(ledger, name), run.c.scheduled_ms >= since_ms
    )
    found: int | None = ledger.read(lambda connection: connection.scalar(statement))
    return found


def _of(ledger: Ledger, name: str) -> tuple[ColumnElement[bool], ...]:
    return run.c.namespace == ledger.namespace, run.c.task == name
