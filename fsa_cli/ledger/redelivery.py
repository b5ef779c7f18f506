"""Messages that are late or lost: which to send again, and when."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import lru_cache

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    TextClause,
    case,
    func,
    literal_column,
    select,
    update,
)

from fsa_cli.ledger.dialects import DialectSQL, execute_rows
from fsa_cli.ledger.records import SENT_AGAIN_MS
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run

__all__ = ["late_messages", "mark_all_late", "mark_unsent", "resend"]

_LONGEST_MS = 3600 * 1000


def late_messages(ledger: Ledger, executor: str) -> dict[str, tuple[int, int]]:
    """For each queue of *executor* with late messages: how many runs are dispatched, and late."""
    is_late = run.c.not_before_ms <= literal_column(ledger.sql.now_ms)
    statement = (
        select(
            run.c.queue,
            func.count().label("number"),
            func.sum(case((is_late, 1), else_=0)).label("late"),
        )
        .where(
            run.c.namespace == ledger.namespace,
            run.c.status == "handed_off",
            run.c.executor == executor,
        )
        .group_by(run.c.queue)
    )
    rows = ledger.read(lambda connection: connection.execute(statement).all())
    return {row.queue: (row.number, int(row.late)) for row in rows if row.late}


def resend(ledger: Ledger, executor: str, queue: str, most: int) -> list[str]:
    """Late runs whose messages this process is to send again, the oldest first.

    They are late again 30 s, 1, 2, 4 ... minutes after they were dispatched, at most an hour.
    """
    statement = (
        select(run.c.id, run.c.not_before_ms, run.c.queued_ms)
        .where(
            run.c.namespace == ledger.namespace,
            run.c.status == "handed_off",
            run.c.executor == executor,
            run.c.queue == queue,
            run.c.not_before_ms <= literal_column(ledger.sql.now_ms),
        )
        .order_by(run.c.not_before_ms, run.c.id)
        .limit(most)
    )
    late, now_ms = ledger.read(
        lambda connection: (connection.execute(statement).all(), ledger.now_ms(connection))
    )
    token = uuid.uuid4().hex
    rows = [
        {
            "run_id": row.id,
            "token": token,
            "seen_ms": row.not_before_ms,
            "next_ms": now_ms + min(max(now_ms - row.queued_ms, SENT_AGAIN_MS), _LONGEST_MS),
        }
        for row in sorted(late, key=lambda each: str(each.id))
    ]
    if not rows:
        return []
    ledger.at_once(lambda c: execute_rows(c, ledger.sql, _postponing(ledger.sql), rows))
    ours = select(run.c.id).where(
        run.c.id.in_([row["run_id"] for row in rows]),
        run.c.claim == token,
        run.c.status == "handed_off",
    )
    return ledger.read(lambda connection: list(connection.scalars(ours.order_by(run.c.id))))


@lru_cache
def _postponing(sql: DialectSQL) -> TextClause:
    """Of several processes the one that finds `not_before_ms` as it was has the run."""
    return sql.update_from_rows(
        "fsa_run",
        {"run_id": "text", "token": "text", "seen_ms": "bigint", "next_ms": "bigint"},
        ("id", "run_id"),
        "not_before_ms = v.next_ms, claim = v.token",
        "t.status = 'handed_off' AND t.not_before_ms = v.seen_ms",
    )


def mark_unsent(ledger: Ledger, run_ids: Sequence[str], after_ms: int) -> None:
    """Make runs late after *after_ms*: their messages could not be sent."""
    at_ms = literal_column(ledger.sql.now_ms, BigInteger()) + after_ms
    _make_late(ledger, at_ms, run.c.id.in_(sorted(run_ids)))


def mark_all_late(ledger: Ledger, executor: str) -> None:
    """Make all runs of a broker late: it was away, and may have lost its messages."""
    now_ms = literal_column(ledger.sql.now_ms, BigInteger())
    theirs = run.c.namespace == ledger.namespace, run.c.executor == executor
    _make_late(ledger, now_ms, *theirs, run.c.not_before_ms > now_ms)


def _make_late(ledger: Ledger, at_ms: ColumnElement[int], *which: ColumnElement[bool]) -> None:
    statement = update(run).where(run.c.status == "handed_off", *which).values(not_before_ms=at_ms)
    ledger.at_once(lambda connection: connection.execute(statement))
