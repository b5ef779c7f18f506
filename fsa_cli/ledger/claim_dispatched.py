"""Claim runs whose message a broker has delivered, and queue them again."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping
from functools import lru_cache

from sqlalchemy import BigInteger, TextClause, literal_column, select, update

from fsa_cli.ledger.candidates import CLAIMED_COLUMNS, QueuedRow
from fsa_cli.ledger.dialects import DialectSQL
from fsa_cli.ledger.records import ClaimedRun
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run
from fsa_cli.ledger.taking import LISTED, starting, take, take_at_once

__all__ = ["claim_dispatched", "requeue_dispatched"]

_LOCKED_AGAIN_MS = 200


def claim_dispatched(
    ledger: Ledger,
    node: str,
    locks: Mapping[str, str | None],
    run_ids: Collection[str],
    *,
    token: str | None = None,
) -> list[ClaimedRun]:
    """Claim delivered runs for *node*; those of them that are its own now.

    One whose lock is held goes back to the queue. One of a task that is not among *locks* is left
    for a process that knows it.

    Args:
        token: That of the claim; None: a new one.
    """
    token = token or uuid.uuid4().hex
    asked, mine = json.dumps(sorted(run_ids)), run.c.id.in_(list(run_ids))
    taken = take_at_once(ledger, node, locks, _taking_free, mine, token=token, ids=asked)
    left = set(run_ids) - {each.run_id for each in taken}
    return [*taken, *_take_with_locks(ledger, node, token, locks, left)] if left else taken


def _take_with_locks(
    ledger: Ledger,
    node: str,
    token: str,
    locks: Mapping[str, str | None],
    run_ids: Collection[str],
) -> list[ClaimedRun]:
    rows = ledger.read(
        lambda connection: connection.execute(
            select(*CLAIMED_COLUMNS, run.c.lock_key).where(
                run.c.namespace == ledger.namespace,
                run.c.id.in_(list(run_ids)),
                run.c.status == "handed_off",
            )
        ).all()
    )
    held: set[str] = set()
    wanted: list[ClaimedRun] = []
    locked: list[ClaimedRun] = []
    # A run that holds its lock goes first.
    for *columns, _ in sorted(rows, key=lambda each: each.lock_key is None):
        row = QueuedRow(*columns)
        if row.task not in locks:
            continue
        lock = locks[row.task]
        (locked if lock in held else wanted).append(row.claimed(token, lock))
        if lock is not None:
            held.add(lock)
    taken = take(ledger, node, wanted, since="handed_off", locked=locked)
    if locked:
        requeue_dispatched(ledger, [each.run_id for each in locked], _LOCKED_AGAIN_MS)
    return taken


def requeue_dispatched(ledger: Ledger, run_ids: Collection[str], after_ms: int = 0) -> None:
    """Queue delivered runs again that have not started, for *after_ms* later."""
    later = literal_column(ledger.sql.now_ms, BigInteger()) + after_ms
    statement = (
        update(run)
        .where(run.c.id.in_(sorted(run_ids)), run.c.status == "handed_off")
        .values(status="queued", claim=None, lock_key=None, not_before_ms=later)
    )
    ledger.at_once(lambda connection: connection.execute(statement))


@lru_cache
def _taking_free(sql: DialectSQL) -> TextClause:
    """UPDATE of the runs in `:ids` whose task is in `:tasks`, both arrays of JSON."""
    return starting(
        sql,
        f"""
        WHERE t.id = {LISTED.format(":ids")} AND t.status = 'handed_off'
            AND t.namespace = :namespace AND t.task = {LISTED.format(":tasks")}
        """,
    )
