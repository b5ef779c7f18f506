"""Claim queued runs, and queue them again."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from functools import lru_cache

from sqlalchemy import TextClause

from fsa_cli.ledger.candidates import candidates
from fsa_cli.ledger.dialects import DialectSQL, execute_rows
from fsa_cli.ledger.records import ClaimedRun, QueueClaim
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run
from fsa_cli.ledger.taking import LISTED, starting, take, take_at_once

__all__ = ["claim_next", "claim_queued", "requeue_claimed"]


def claim_queued(
    ledger: Ledger,
    node: str,
    locks: Mapping[str, str | None],
    *,
    most: int,
    executor: str = "local",
    dispatch: str | None = None,
    token: str | None = None,
) -> QueueClaim:
    """Claim up to *most* queued runs whose time has come and whose lock is free.

    Args:
        token: That of the claim; None: a new one.
        locks: The tasks that this process can run, and the lock of each.
        dispatch: As in `claim_due`.
    """
    token = token or uuid.uuid4().hex
    seen = ledger.read(
        lambda connection: candidates(ledger, connection, token, locks, most, executor)
    )
    if dispatch is None:
        taken = take(ledger, node, seen.runs)
    else:
        taken = take(ledger, None, seen.runs, to="handed_off", joined=dispatch)
    return seen._replace(runs=taken, more=seen.more or len(seen.runs) > len(taken))


def claim_next(
    ledger: Ledger, node: str, locks: Mapping[str, str | None], *, most: int, token: str
) -> list[ClaimedRun]:
    """Claim up to *most* queued runs without a lock, in one statement.

    For a queue that was empty a moment ago: what waits already, and what has a lock, is left to
    `claim_queued`. It is PostgreSQL's; elsewhere nothing is claimed.
    """
    mine = run.c.node == node, run.c.status == "running"
    return take_at_once(ledger, node, locks, _taking_next, *mine, token=token, number=most)


def requeue_claimed(ledger: Ledger, claimed: Collection[ClaimedRun]) -> None:
    """Queue claimed runs again that have not started, for any node."""
    rows = [
        {"run_id": each.run_id, "token": each.token}
        for each in sorted(claimed, key=lambda one: one.run_id)
    ]
    statement = _requeuing(ledger.sql)
    if rows:
        ledger.at_once(lambda connection: execute_rows(connection, ledger.sql, statement, rows))


@lru_cache
def _taking_next(sql: DialectSQL) -> TextClause:
    """UPDATE of the first that nobody else is claiming, of the tasks in `:tasks`."""
    return starting(
        sql,
        f"""
        FROM (
            SELECT q.id FROM fsa_run q
            WHERE q.namespace = :namespace AND q.status = 'queued'
                AND q.not_before_ms <= (SELECT {sql.now_ms}) AND q.executor = 'local'
                AND (q.task = {LISTED.format(":tasks")}) IS TRUE
            ORDER BY q.priority DESC, q.not_before_ms
            LIMIT :number
            FOR UPDATE SKIP LOCKED
        ) AS next
        WHERE t.id = next.id
        """,
    )


@lru_cache
def _requeuing(sql: DialectSQL) -> TextClause:
    return sql.update_from_rows(
        "fsa_run",
        {"run_id": "text", "token": "text"},
        ("id", "run_id"),
        "status = 'queued', node = NULL, claim = NULL, lock_key = NULL, started_ms = NULL",
        "t.claim = v.token AND t.status = 'running'",
    )
