"""Claim queued runs, and queue them again."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

from sqlalchemy import TextClause
from sqlalchemy.exc import DBAPIError

from fsa_cli.ledger.candidates import candidates
from fsa_cli.ledger.dialects import DialectSQL, execute_rows
from fsa_cli.ledger.records import ClaimedRun, QueueClaim, RefusedClaim
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run
from fsa_cli.ledger.taking import ARRAY, LISTED, starting, take, take_at_once, takes_at_once

__all__ = ["claim_next", "claim_queued", "requeue_claimed"]

# What others have claimed since the first look is not there at the second.
_LOOKS = 2


def claim_queued(
    ledger: Ledger,
    node: str,
    locks: Mapping[str, str | None],
    *,
    most: int,
    executor: str = "local",
    dispatch: str | None = None,
    token: str | None = None,
    without: Collection[str] = (),
) -> QueueClaim:
    """Claim up to *most* queued runs whose time has come and whose lock is free.

    Args:
        token: That of the claim; None: a new one.
        locks: The tasks that this process can run, and the lock of each.
        dispatch: As in `claim_due`.
        without: Runs that are not tried, by their ids.
    """
    token = token or uuid.uuid4().hex
    spare = dispatch is None and takes_at_once(ledger.sql)
    refused: list[RefusedClaim] = []
    for _ in range(_LOOKS):
        seen = ledger.read(
            lambda connection: candidates(
                ledger, connection, token, locks, most, executor, without, spare=spare
            )
        )
        if dispatch is not None:
            taken = take(ledger, None, seen.runs, to="handed_off", joined=dispatch, refused=refused)
            break
        if len(seen.runs) <= most:
            taken = take(ledger, node, seen.runs, refused=refused)
            break
        if taken := _take_first(ledger, node, locks, seen.runs, most, token, refused):
            break
    else:
        # Other processes were quicker, or the first are in a transaction that does not end.
        taken = claim_next(ledger, node, locks, most=most, token=token)
    more = seen.more or len(seen.runs) > len(taken)
    return seen._replace(runs=taken, more=more, refused=refused)


def _take_first(
    ledger: Ledger,
    node: str,
    locks: Mapping[str, str | None],
    wanted: Sequence[ClaimedRun],
    most: int,
    token: str,
    refused: list[RefusedClaim],
) -> list[ClaimedRun]:
    """Claim the first *most* of *wanted* that nobody else is claiming; none has a lock."""
    ids = [each.run_id for each in wanted]
    refusals: list[DBAPIError] = []
    taken = take_at_once(
        *(ledger, node, locks, _taking_first, run.c.id.in_(ids)),
        token=token,
        refusals=refusals,
        number=most,
        ids=json.dumps(ids),
    )
    return take(ledger, node, wanted[:most], refused=refused) if refusals else taken


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
    """Queue claimed runs again that have not started, for any node.

    One whose cancellation was requested meanwhile is cancelled.
    """
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
    return _starting_first(
        sql,
        f"""
        q.namespace = :namespace AND q.status = 'queued'
            AND q.not_before_ms <= (SELECT {sql.now_ms}) AND q.executor = 'local'
            AND (q.task = {LISTED.format(":tasks")}) IS TRUE
        ORDER BY q.priority DESC, q.not_before_ms
        """,
    )


@lru_cache
def _taking_first(sql: DialectSQL) -> TextClause:
    """UPDATE of the first of those in `:ids` that nobody else is claiming."""
    # By `IS TRUE` each is looked up by its key, not in the index of all that is queued.
    return _starting_first(
        sql,
        f"""
        q.id = {LISTED.format(":ids")} AND (q.status = 'queued') IS TRUE
        ORDER BY array_position({ARRAY.format(":ids")}, CAST(q.id AS TEXT))
        """,
    )


def _starting_first(sql: DialectSQL, which: str) -> TextClause:
    # An array and no join: PostgreSQL may read one side of a join again for each row of the other,
    # and find others each time.
    return starting(
        sql,
        f"""
        WHERE t.id = ANY(ARRAY(
            SELECT q.id FROM fsa_run q WHERE {which} LIMIT :number FOR UPDATE SKIP LOCKED
        ))
        """,
    )


@lru_cache
def _requeuing(sql: DialectSQL) -> TextClause:
    return sql.update_from_rows(
        "fsa_run",
        {"run_id": "text", "token": "text"},
        ("id", "run_id"),
        "status = CASE WHEN t.cancel_requested_ms IS NULL THEN 'queued' ELSE 'cancelled' END, "
        "finished_ms = CASE WHEN t.cancel_requested_ms IS NULL THEN t.finished_ms "
        f"ELSE {sql.now_ms} END, node = NULL, claim = NULL, lock_key = NULL, started_ms = NULL",
        "t.claim = v.token AND t.status = 'running'",
    )
