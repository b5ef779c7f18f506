"""The attempts of a run that others followed: the run's own row keeps the last one only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Row, TextClause, or_, select

from fsa_cli.ledger.dialects import DialectSQL, typed
from fsa_cli.ledger.records import RunOutcome
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import attempt, node, run

__all__ = ["attempts_of", "write_attempts", "write_lost_attempt"]

# Of one run. A task that raises `Retry` until something is there may do so for days.
_MOST = 100
_ERROR_LENGTH = 1000


def write_attempts(ledger: Ledger, outcomes: Sequence[RunOutcome]) -> None:
    """Write attempts before their runs are queued again, each only while the run is still ours.

    Done twice it leaves one row: the answer to a COMMIT may be lost.
    """
    rows = [
        {
            "run_id": each.run_id,
            "token": each.token,
            "status": each.of_attempt,
            "began_ms": each.started_ms,
            "ended_ms": each.finished_ms,
            "error_type": each.error_type,
            "error": _first_line(each.error),
        }
        for each in sorted(outcomes, key=lambda one: one.run_id)
    ]
    if rows:
        ledger.write(lambda connection: connection.execute(_writing(ledger.sql), rows))


def write_lost_attempt(
    connection: Connection, sql: DialectSQL, running: Row[Any], now_ms: int
) -> None:
    """Write, before the run is queued again, the attempt that ended with its process.

    Args:
        running: Its id and its claim.
    """
    given = {
        "run_id": running.id,
        "token": running.claim,
        "status": "interrupted",
        "began_ms": None,
        "ended_ms": now_ms,
        "error_type": "Interrupted",
        "error": "the process that ran it has died",
    }
    connection.execute(_writing(sql), given)


def attempts_of(ledger: Ledger, run_id: str) -> Sequence[Row[Any]]:
    """The attempts of a run before its last, the first one first, each with the host, pid and role
    of its node, which are None where that is forgotten."""
    statement = (
        select(attempt, node.c.host, node.c.pid, node.c.role)
        .join(run, run.c.id == attempt.c.run)
        .outerjoin(node, node.c.id == attempt.c.node)
        .where(
            attempt.c.run == run_id,
            # Of one that was written and then went on, as its lease was renewed, or ended well.
            or_(
                run.c.claim.is_(None),
                attempt.c.claim != run.c.claim,
                attempt.c.number != run.c.attempt,
            ),
        )
        .order_by(attempt.c.finished_ms, attempt.c.number)
    )
    return ledger.read(lambda connection: connection.execute(statement).all())


def _first_line(error: str | None) -> str | None:
    return error and (error.splitlines() or [""])[0][:_ERROR_LENGTH]


@lru_cache
def _writing(sql: DialectSQL) -> TextClause:
    ignore = sql.ignore.replace("fsa_run.id", "fsa_attempt.run")
    return typed(
        f"""
        INSERT INTO fsa_attempt
            (run, claim, number, status, node, started_ms, finished_ms, error_type, error)
        SELECT t.id, t.claim, t.attempt, :status, t.node, COALESCE(:began_ms, t.started_ms),
            :ended_ms, :error_type, :error
        FROM fsa_run t
        WHERE t.id = :run_id AND t.claim = :token AND t.status = 'running'
            AND (SELECT COUNT(*) FROM fsa_attempt a WHERE a.run = :run_id) < {_MOST}
        {ignore}
        """
    )
