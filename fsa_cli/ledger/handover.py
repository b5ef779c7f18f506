"""Runs that an engine carries: asked for, handed off, and sent again where a message was lost."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    TextClause,
    case,
    func,
    literal_column,
    select,
    update,
)

from fsa_cli.ledger.claims import SENT_AGAIN_MS
from fsa_cli.ledger.dialects import Words, typed
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run

__all__ = ["Wanted", "doubt", "enqueue", "late", "put", "resend", "unsent"]

_LONGEST_MS = 3600 * 1000


@dataclass(frozen=True, slots=True)
class Wanted:
    """A run that somebody asks for.

    Attributes:
        arguments: JSON.
        handed_off: Whether an engine's message says so at once; else it is `queued`.
        by: Who asks.
    """

    run_id: str
    task: str
    arguments: str
    executor: str
    queue: str | None
    handed_off: bool
    by: str | None = None

    @classmethod
    def of(cls, task: str, arguments: str, **more: Any) -> Wanted:
        return cls(uuid.uuid4().hex, task, arguments, **more)


def put(
    connection: Connection, words: Words, namespace: str, wanted: Wanted, enlisting: str = ""
) -> None:
    """Write the row of a run, in whatever transaction *connection* is in.

    Args:
        enlisting: A SELECT that is part of the same statement.
    """
    connection.execute(
        _putting(words, enlisting),
        {
            "id": wanted.run_id,
            "namespace": namespace,
            "task": wanted.task,
            "arguments": wanted.arguments,
            "executor": wanted.executor,
            "queue": wanted.queue,
            "status": "handed_off" if wanted.handed_off else "queued",
            "wait_ms": SENT_AGAIN_MS if wanted.handed_off else 0,
            "requested_by": wanted.by,
        },
    )


def enqueue(
    ledger: Ledger,
    wanted: Wanted,
    enlist: Callable[[Connection], None] | None = None,
    enlisting: str = "",
) -> None:
    """Write the row of a run.

    Args:
        enlist: Called in the transaction.
        enlisting: As in `put`.
    """
    tried = False

    def work(connection: Connection) -> None:
        nonlocal tried
        if tried and _is_there(connection, wanted.run_id):
            return
        tried = True
        put(connection, ledger.words, ledger.namespace, wanted, enlisting)
        if enlist is not None:
            enlist(connection)

    if enlist is None:
        ledger.at_once(work)
    else:
        ledger.write(work)


def _is_there(connection: Connection, run_id: str) -> bool:
    """Whether the run has a row: a COMMIT whose answer was lost may have happened."""
    return connection.scalar(select(run.c.id).where(run.c.id == run_id)) is not None


def late(ledger: Ledger, executor: str) -> dict[str, tuple[int, int]]:
    """Of each queue of *executor* with late messages: how many runs are handed off, and late."""
    is_late = run.c.not_before_ms <= literal_column(ledger.words.now_ms)
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
    """Runs whose messages are to be sent again: late, the oldest first, and ours to send.

    The next time is after 30 s, 1, 2, 4 ... minutes since they were handed off, at most an hour.

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


def unsent(ledger: Ledger, run_ids: Sequence[str], after_ms: int) -> None:
    """Their messages could not be sent: they are late after so long."""
    at_ms = literal_column(ledger.words.now_ms, BigInteger()) + after_ms
    _make_late(ledger, at_ms, run.c.id.in_(sorted(run_ids)))


def doubt(ledger: Ledger, executor: str) -> None:
    """The engine was away, and may have lost what it held: all its messages are late."""
    now_ms = literal_column(ledger.words.now_ms, BigInteger())
    theirs = run.c.namespace == ledger.namespace, run.c.executor == executor
    _make_late(ledger, now_ms, *theirs, run.c.not_before_ms > now_ms)


def _make_late(ledger: Ledger, at_ms: ColumnElement[int], *which: ColumnElement[bool]) -> None:
    statement = update(run).where(run.c.status == "handed_off", *which).values(not_before_ms=at_ms)
    ledger.write(lambda connection: connection.execute(statement))


@lru_cache
def _putting(words: Words, enlisting: str) -> TextClause:
    insert = f"""
        INSERT INTO fsa_run (id, namespace, task, scheduled_ms, slot, kind, status, arguments,
            executor, queue, attempt, not_before_ms, commits, queued_ms, requested_by)
        VALUES (:id, :namespace, :task, {words.now_ms}, :id, 'manual', :status, :arguments,
            :executor, :queue, 1, {words.now_ms} + :wait_ms, 0, {words.now_ms}, :requested_by)
        """
    return typed(f"WITH put AS ({insert}) {enlisting}" if enlisting else insert)
