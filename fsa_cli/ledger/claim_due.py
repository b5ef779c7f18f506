"""Claim instants that have come: of all replicas exactly one gets an instant.

The claim of what is due is one statement, however much is due. A UNIQUE key on (task, instant)
decides who has it, and one on `lock_key` whether the task may run now.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, TextClause, select
from sqlalchemy.exc import DBAPIError

from fsa_cli.ledger.dialects import DialectSQL, is_lock_wait, joining, typed
from fsa_cli.ledger.instants import instants_with_row, with_row
from fsa_cli.ledger.records import (
    EARLY_MS,
    SCHEDULED,
    SENT_AGAIN_MS,
    ClaimedRun,
    ClaimResult,
    Due,
    RunStatus,
)
from fsa_cli.ledger.run_rows import insert_runs
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run

__all__ = ["claim_due"]


def claim_due(
    ledger: Ledger,
    node: str,
    due: Sequence[Due],
    *,
    window_ms: int,
    dispatch: str | None = None,
    token: str | None = None,
) -> ClaimResult:
    """Claim the *due* instants that no other replica has.

    Each statement is a transaction of its own: nobody waits for a row that a process which is
    frozen or cut off has claimed and not committed.

    Args:
        token: That of the claim; None: a new one.
        window_ms: How old an instant may be.
        dispatch: Given for a broker: the runs become `handed_off` instead of `running`. SQL that is
            part of the statement, as `Executor.joined`; may be empty.
    """
    outcome = ClaimResult()
    if renamed := [each for each in due if each.before]:
        known = ledger.read(lambda connection: with_row(ledger, connection, renamed))
        outcome.others = [each for each in due if each.key in known]
        due = [each for each in due if each.key not in known]
        if not due:
            return outcome
    # In one order for all replicas: in several they deadlock.
    ordered = sorted(due, key=lambda each: (each.lock_key or "", each.task, each.scheduled_ms))
    ids = {uuid.uuid4().hex: each for each in ordered}
    token = token or uuid.uuid4().hex
    given: dict[str, Any] = {
        "namespace": ledger.namespace,
        "claim": token,
        "early_ms": EARLY_MS,
        "window_ms": window_ms,
        "rows": _json(ids, locked=True),
    }
    if dispatch is None:
        statement = _insert(ledger.sql, RunStatus.RUNNING, "")
        given["node"] = node
    else:
        statement = _insert(ledger.sql, RunStatus.DISPATCHED, dispatch)

    def insert(connection: Connection) -> set[str]:
        inserted = connection.execute(statement, given)
        return set(inserted.scalars()) if inserted.returns_rows else set()

    try:
        inserted = ledger.at_once(insert, waits_s=0)
    except DBAPIError as exc:
        if not is_lock_wait(exc):
            raise
        # The row of one of them is in a transaction that does not end: the others do not wait.
        if len(ordered) == 1:
            outcome.left += ordered
            return outcome
        for each in ordered:
            outcome.add(
                claim_due(
                    *(ledger, node, [each]), window_ms=window_ms, dispatch=dispatch, token=token
                )
            )
        return outcome
    if len(inserted) < len(ids):
        rest = {run_id: each for run_id, each in ids.items() if run_id not in inserted}
        outcome.add(_contested(ledger, rest, given))
    outcome.mine += [_claimed(run_id, token, ids[run_id]) for run_id in ids if run_id in inserted]
    return outcome


def _contested(ledger: Ledger, rest: Mapping[str, Due], given: Mapping[str, Any]) -> ClaimResult:
    """The result for instants that the first statement did not return."""

    def look(connection: Connection) -> tuple[set[str], set[tuple[str, int]], int]:
        # A COMMIT whose answer was lost may have happened: what carries the token is ours.
        claimed = select(run.c.id).where(run.c.id.in_(list(rest)), run.c.claim == given["claim"])
        mine = set(connection.scalars(claimed))
        others = [each.key for run_id, each in rest.items() if run_id not in mine]
        if not others:
            return mine, set(), 0
        known = instants_with_row(ledger, connection, others)
        return mine, known, ledger.now_ms(connection) if len(known) < len(others) else 0

    outcome = ClaimResult()
    mine, known, now_ms = ledger.read(look)
    outcome.mine = [_claimed(i, given["claim"], each) for i, each in rest.items() if i in mine]
    rest = {run_id: each for run_id, each in rest.items() if run_id not in mine}
    outcome.others = [each for each in rest.values() if each.key in known]
    rest = {run_id: each for run_id, each in rest.items() if each.key not in known}
    outcome.early = [e for e in rest.values() if e.scheduled_ms > now_ms + EARLY_MS // 2]
    rest = {i: e for i, e in rest.items() if e not in outcome.early}
    for status, into in (
        (RunStatus.SKIPPED, outcome.skipped),
        (RunStatus.QUEUED, outcome.queued),
    ):
        chosen = {i: e for i, e in rest.items() if e.waits is (status == RunStatus.QUEUED)}
        if chosen:
            ours, known = _insert_unclaimed(ledger, status, chosen, given)
            into += [e for i, e in chosen.items() if i in ours]
            theirs = [e for i, e in chosen.items() if i not in ours]
            outcome.others += [e for e in theirs if e.key in known]
            outcome.left += [e for e in theirs if e.key not in known]
    return outcome


def _insert_unclaimed(
    ledger: Ledger, status: RunStatus, chosen: Mapping[str, Due], given: Mapping[str, Any]
) -> tuple[set[str], set[tuple[str, int]]]:
    """Insert rows of instants whose lock is held; the rows that are there, and the instants that
    have one, be it another's: a replica has made up for them meanwhile."""
    values = {key: given[key] for key in ("namespace", "early_ms", "window_ms")}
    values["rows"] = _json(chosen, locked=False)
    statement = _insert(ledger.sql, status, "")
    ledger.at_once(lambda connection: connection.execute(statement, values) and None)
    keys = [each.key for each in chosen.values()]
    ours = select(run.c.id).where(run.c.id.in_(list(chosen)))
    return ledger.read(
        lambda connection: (
            set(connection.scalars(ours)),
            instants_with_row(ledger, connection, keys),
        )
    )


def _claimed(run_id: str, token: str, due: Due) -> ClaimedRun:
    return ClaimedRun(
        *(run_id, token, due.task, due.scheduled_ms, "schedule", 1, due.arguments, due.lock_key),
        due.queue,
    )


def _json(ids: Mapping[str, Due], *, locked: bool) -> str:
    return json.dumps(
        [
            {
                "id": run_id,
                "task": each.task,
                "at": each.scheduled_ms,
                "lock_name": each.lock_key if locked else None,
                "arguments": each.arguments,
                "executor": each.executor,
                "queue": each.queue,
            }
            for run_id, each in ids.items()
        ]
    )


_COLUMNS = {
    "id": "text",
    "task": "text",
    "at": "bigint",
    "lock_name": "text",
    "arguments": "text",
    "executor": "text",
    "queue": "text",
}


@lru_cache
def _insert(sql: DialectSQL, status: RunStatus, joined: str) -> TextClause:
    """INSERT of the rows whose instant has come, is not too old, and whose task is not paused.

    A subquery for each and no join: its plan must not depend on the statistics of new tables.
    """
    is_claim = status in (RunStatus.RUNNING, RunStatus.DISPATCHED)
    values = {
        "id": "v.id",
        "namespace": ":namespace",
        "task": "v.task",
        "scheduled_ms": "v.at",
        "slot": f"'{SCHEDULED}'",
        "kind": "'schedule'",
        "status": f"'{status}'",
        "arguments": "v.arguments",
        "executor": "v.executor",
        "queue": "v.queue",
        "not_before_ms": "v.at",
        "lock_key": "v.lock_name",
    }
    if is_claim:
        values["claim"] = ":claim"
    if status == RunStatus.RUNNING:
        values |= {"node": ":node", "started_ms": sql.now_ms}
    elif status == RunStatus.DISPATCHED:
        values["not_before_ms"] = f"{sql.now_ms} + {SENT_AGAIN_MS}"
    elif status == RunStatus.SKIPPED:
        values |= {"finished_ms": sql.now_ms, "error": "'the run before it has not ended'"}
    source = f"""
        FROM {sql.from_rows(_COLUMNS)}{sql.bounded_locks if is_claim else ""}
        WHERE v.at <= {sql.now_ms} + :early_ms AND v.at >= {sql.now_ms} - :window_ms
            AND (
                SELECT t.paused_ms FROM fsa_task t
                WHERE t.namespace = :namespace AND t.name = v.task
            ) IS NULL
        ORDER BY v.lock_name, v.task, v.at
        {sql.ignore} {"RETURNING id, queue" if is_claim and sql.returns else ""}
        """
    insert = insert_runs(sql, values, source=source)
    return typed(joining(insert, joined))
