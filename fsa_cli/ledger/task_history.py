"""The history of tasks: the last run of each, and what one task's runs were like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, literal, select, union_all

from fsa_cli.ledger.nodes import fired
from fsa_cli.ledger.run_search import FAILED, SAID_LENGTH, head
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run, task

__all__ = ["days", "get", "known", "last_runs", "sample"]

_DAY_MS = 24 * 3600 * 1000
_UNLIKE_SUCCESS = (*FAILED, "skipped", "cancelled", "discarded")


def get(ledger: Ledger, name: str) -> Row[Any] | None:
    """A task as the ledger knows it."""
    statement = select(task).where(task.c.namespace == ledger.namespace, task.c.name == name)
    return ledger.read(lambda connection: connection.execute(statement).one_or_none())


def known(ledger: Ledger) -> frozenset[str]:
    """The tasks that a live scheduler fires."""
    return ledger.read(
        lambda connection: frozenset(connection.scalars(fired(ledger, ledger.now_ms(connection))))
    )


def last_runs(ledger: Ledger) -> dict[str, Row[Any]]:
    """The latest run of each task that the ledger knows: one statement, a probe for each."""
    latest = run.alias("latest")
    last_id = (
        select(latest.c.id)
        .where(latest.c.namespace == task.c.namespace, latest.c.task == task.c.name)
        .order_by(latest.c.scheduled_ms.desc())
        .limit(1)
        .correlate(task)
        .scalar_subquery()
    )
    last = select(last_id.label("id")).where(task.c.namespace == ledger.namespace).subquery()
    statement: Select[Any] = select(
        run.c.id,
        run.c.task,
        run.c.status,
        run.c.scheduled_ms,
        run.c.started_ms,
        run.c.finished_ms,
        run.c.error_type,
        head(run.c.error, SAID_LENGTH).label("error"),
    ).join(last, last.c.id == run.c.id)
    rows = ledger.read(lambda connection: connection.execute(statement).all())
    return {row.task: row for row in rows}


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
        )
        .where(run.c.namespace == ledger.namespace, run.c.task == name)
        .order_by(run.c.scheduled_ms.desc())
        .limit(limit)
    )
    return ledger.read(lambda connection: connection.execute(statement).all())


def days(
    ledger: Ledger, name: str, starts_ms: Sequence[int], limit: int
) -> dict[int, dict[str, int]]:
    """Of each day: how often its runs ended in each way but well, and one run where all did.

    Args:
        starts_ms: The beginnings of the days, in order.
        limit: So many runs of each status are read, the latest; days before have `unread`.
    """
    found: dict[int, dict[str, int]] = {start_ms: {} for start_ms in starts_ms}
    of_task = run.c.namespace == ledger.namespace, run.c.task == name
    first_ms = starts_ms[0]
    others = [
        # The time it was due last, which the index of statuses has, is never before its instant.
        select(run.c.scheduled_ms, run.c.not_before_ms)
        .where(*of_task, run.c.status == status, run.c.not_before_ms >= first_ms)
        .order_by(run.c.not_before_ms.desc())
        .limit(limit)
        for status in _UNLIKE_SUCCESS
    ]
    probes = union_all(
        *(
            select(
                literal(start_ms).label("day_ms"),
                select(run.c.status)
                .where(
                    *of_task,
                    run.c.scheduled_ms >= start_ms,
                    run.c.scheduled_ms < start_ms + _DAY_MS,
                )
                .limit(1)
                .scalar_subquery()
                .label("status"),
            )
            for start_ms in starts_ms
        )
    )

    def work(connection: Connection) -> None:
        for row in connection.execute(probes):
            if row.status is not None and row.status not in _UNLIKE_SUCCESS:
                found[row.day_ms][row.status] = 1
        for status, statement in zip(_UNLIKE_SUCCESS, others, strict=True):
            rows = connection.execute(statement).all()
            for row in rows:
                day_ms = row.scheduled_ms - (row.scheduled_ms - first_ms) % _DAY_MS
                if day_ms in found:
                    found[day_ms][status] = found[day_ms].get(status, 0) + 1
            if len(rows) == limit:
                for day_ms in found:
                    if day_ms < rows[-1].not_before_ms:
                        found[day_ms]["unread"] = 1

    ledger.read(work)
    return found
