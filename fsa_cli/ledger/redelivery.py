"""Messages that are late or lost: which to send again, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    case,
    func,
    literal_column,
    select,
    update,
)

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


def resend(
    ledger: Ledger,
    executor: str,
    queue: str,
    most: int,
    then: Callable[[Connection, Sequence[str]], None],
) -> list[str]:
    """Late runs whose messages this process is to send again, the oldest first.

    They are late again 30 s, 1, 2, 4 ... minutes after they were dispatched, at most an hour.

    Args:
        then: Called with them in the transaction.
    """

    def work(connection: Connection) -> list[str]:
        now_ms = ledger.now_ms(connection)
        rows = connection.execute(
            select(run.c.id, run.c.not_before_ms, run.c.queued_ms)
            .where(
                run.c.namespace == ledger.namespace,
                run.c.status == "handed_off",
                run.c.executor == executor,
                run.c.queue == queue,
                run.c.not_before_ms <= now_ms,
            )
            .order_by(run.c.not_before_ms, run.c.id)
            .limit(most)
        ).all()
        ours = []
        for row in sorted(rows, key=lambda each: str(each.id)):
            pause_ms = min(max(now_ms - row.queued_ms, SENT_AGAIN_MS), _LONGEST_MS)
            won = connection.execute(
                update(run)
                .where(
                    run.c.id == row.id,
                    run.c.status == "handed_off",
                    run.c.not_before_ms == row.not_before_ms,
                )
                .values(not_before_ms=now_ms + pause_ms)
            )
            if won.rowcount:
                ours.append(str(row.id))
        if ours:
            then(connection, ours)
        return ours

    return ledger.write(work)


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
    ledger.write(lambda connection: connection.execute(statement))
