"""The statements by which queued and delivered runs become somebody's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

from sqlalchemy import ColumnElement, Connection, TextClause, select
from sqlalchemy.exc import DBAPIError

from fsa_cli.ledger.candidates import CLAIMED_COLUMNS, RETURNED, QueuedRow
from fsa_cli.ledger.dialects import (
    DialectSQL,
    execute_rows,
    is_lock_wait,
    is_taken,
    refuses_row,
    typed,
)
from fsa_cli.ledger.records import SENT_AGAIN_MS, ClaimedRun, RefusedClaim
from fsa_cli.ledger.refusals import end_refused
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run

__all__ = ["ARRAY", "LISTED", "starting", "take", "take_at_once", "takes_at_once"]

#: The texts in an array of JSON, as PostgreSQL's array; and one of them.
ARRAY = "ARRAY(SELECT json_array_elements_text(CAST({} AS JSON)))"
LISTED = f"ANY({ARRAY})"


def take(
    ledger: Ledger,
    node: str | None,
    wanted: Sequence[ClaimedRun],
    *,
    since: str = "queued",
    to: str = "running",
    joined: str = "",
    locked: list[ClaimedRun] | None = None,
    refused: list[RefusedClaim] | None = None,
) -> list[ClaimedRun]:
    """Claim *wanted* in one statement; those of them that are ours now.

    A run of which the database refuses that it starts is failed, and the others are claimed.

    Args:
        since, to: The status before and after.
        joined: SQL that is part of the statement, as in `dialects.joining`.
        locked: Filled with those whose lock is held.
        refused: Filled with those that the database does not let start.
    """
    ordered = sorted(wanted, key=lambda each: each.run_id)
    values = [
        {"run_id": each.run_id, "token": each.token, "by_node": node, "lock_name": each.lock_key}
        for each in ordered
    ]
    statement = _taking(ledger.sql, since, to, joined)

    def work(connection: Connection) -> bool:
        return execute_rows(connection, ledger.sql, statement, values) == len(ordered)

    if not ordered:
        return []
    try:
        if ledger.at_once(work, waits_s=0):
            return ordered
    except DBAPIError as exc:  # a lock is held, or in a transaction that does not end
        is_refused = refuses_row(exc)
        if not (is_refused or is_taken(exc) or is_lock_wait(exc)):
            raise
        if len(ordered) == 1:
            if is_refused:
                told = end_refused(ledger, ordered[0], since, exc)
                if refused is not None:
                    refused.append(told)
            elif locked is not None:
                locked += ordered
            return []
        one_by_one = partial(take, ledger, node, since=since, to=to, joined=joined)
        return [
            each for one in ordered for each in one_by_one([one], locked=locked, refused=refused)
        ]
    # By the token, because a COMMIT whose outcome was unknown may have happened.
    ids = [each.run_id for each in ordered]
    rows = ledger.read(
        lambda connection: connection.execute(
            select(run.c.id, run.c.claim).where(run.c.id.in_(ids))
        ).all()
    )
    tokens = {row.id: row.claim for row in rows}
    return [each for each in ordered if tokens.get(each.run_id) == each.token]


@lru_cache
def _taking(sql: DialectSQL, since: str, to: str, joined: str) -> TextClause:
    dispatched = to == "handed_off"
    times = (
        f"not_before_ms = {sql.now_ms} + {SENT_AGAIN_MS}, queued_ms = {sql.now_ms}"
        if dispatched
        else f"started_ms = {sql.now_ms}"
    )
    return sql.update_from_rows(
        "fsa_run",
        {"run_id": "text", "token": "text", "by_node": "text", "lock_name": "text"},
        ("id", "run_id"),
        f"status = '{to}', node = v.by_node, claim = v.token, lock_key = v.lock_name, {times}",
        # By `IS TRUE` each is looked up by its key, not in the index of all that is queued.
        f"(t.status = '{since}') IS TRUE",
        joined=joined,
        bounds_locks=True,
    )


def takes_at_once(sql: DialectSQL) -> bool:
    """Whether one statement can find and claim runs, and say which: PostgreSQL's."""
    return sql.update is not None and sql.returns


def take_at_once(
    ledger: Ledger,
    node: str,
    locks: Mapping[str, str | None],
    claiming: Callable[[DialectSQL], TextClause],
    *mine: ColumnElement[bool],
    token: str,
    refusals: list[DBAPIError] | None = None,
    **given: object,
) -> list[ClaimedRun]:
    """Claim runs without a lock in the one statement that finds them.

    Where no statement can (`takes_at_once`) nothing is claimed, nor where the database refuses one
    of them: `take` finds which it is.

    Args:
        claiming: Makes that statement, by `starting`; *given* are its own parameters, beside
            `:namespace` and `:tasks`, an array of JSON.
        mine: Conditions that find, with the token, what it has claimed already.
        refusals: Filled with what the database said.
    """
    if not takes_at_once(ledger.sql):
        return []
    tasks = json.dumps([name for name, lock in locks.items() if lock is None])
    given |= {"namespace": ledger.namespace, "node": node, "claim": token, "tasks": tasks}
    tried = False

    def work(connection: Connection) -> list[QueuedRow]:
        nonlocal tried
        taken: list[QueuedRow] = []
        if tried:  # a COMMIT whose outcome was unknown may have happened
            ours = select(*CLAIMED_COLUMNS, run.c.priority).where(*mine, run.c.claim == token)
            taken = QueuedRow.each_of(connection.execute(ours))
        tried = True
        return taken or QueuedRow.each_of(connection.execute(claiming(ledger.sql), given))

    try:
        rows = ledger.at_once(work)
    except DBAPIError as exc:
        if not refuses_row(exc):
            raise
        if refusals is not None:
            refusals.append(exc)
        return []
    return [row.claimed(token) for row in sorted(rows, key=_urgency)]


def _urgency(row: QueuedRow) -> tuple[int, int]:
    return -row.priority, row.scheduled_ms


def starting(sql: DialectSQL, which: str) -> TextClause:
    """UPDATE of runs without a lock that are this node's from now on."""
    return typed(
        "UPDATE fsa_run AS t SET status = 'running', node = :node, claim = :claim, "
        f"lock_key = NULL, started_ms = {sql.now_ms} {which} RETURNING {RETURNED}"
    )
