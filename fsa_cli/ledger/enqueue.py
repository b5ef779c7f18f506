"""New rows of runs that somebody asks for: queued, dispatched, or running here and now."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from sqlalchemy import Connection, TextClause, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from fsa_cli.ledger.dialects import DialectSQL, joining, typed
from fsa_cli.ledger.offload import off_the_loop
from fsa_cli.ledger.reach import probe, refused
from fsa_cli.ledger.records import SENT_AGAIN_MS, ClaimedRun, NewRun, RunStatus
from fsa_cli.ledger.run_rows import insert_runs
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run

__all__ = ["Inserted", "insert_run", "insert_running", "write_run"]

_LOCK_TRIES = 3


#: Whether a row was inserted, and whether what was joined to it was done too.
Inserted = Literal["not", "alone", "with its message"]


def insert_run(
    ledger: Ledger, connection: Connection, new_run: NewRun, joined: str = ""
) -> Inserted:
    """Insert the row of a run in a transaction of the app's.

    Args:
        joined: As in `write_run`; left out where the session is not as the ledger's own are, since
            it names things of the database by the search path.
    """
    if not ledger.is_located:
        off_the_loop(lambda: ledger.schema)
    reach = probe(ledger, connection)
    if reach is not None and not reach.writes:
        return "not"
    if reach is None or [reach.user, reach.search_path] != ledger.session:
        joined = ""
    inserting = _inserting(ledger.sql, joined, ledger.qualified(run.name))
    try:
        connection.execute(inserting, _values(ledger, new_run))
    except DBAPIError as exc:
        if reach is not None or not refused(exc):
            raise
        return "not"
    return "with its message" if joined else "alone"


def _values(ledger: Ledger, new_run: NewRun) -> dict[str, Any]:
    return {
        "id": new_run.run_id,
        "namespace": ledger.namespace,
        "task": new_run.task,
        "arguments": new_run.arguments,
        "executor": new_run.executor,
        "queue": new_run.queue,
        "status": RunStatus.DISPATCHED if new_run.dispatched else RunStatus.QUEUED,
        "wait_ms": SENT_AGAIN_MS if new_run.dispatched else 0,
        "requested_by": new_run.by,
    }


def write_run(ledger: Ledger, new_run: NewRun, joined: str = "") -> None:
    """Insert the row of a run, in a transaction of its own.

    Args:
        joined: SQL that is part of the statement, as in `dialects.joining`.
    """
    statement = _inserting(ledger.sql, joined, run.name)
    values = _values(ledger, new_run)
    ledger.write_once(new_run.run_id, lambda connection: connection.execute(statement, values))


def insert_running(
    ledger: Ledger,
    node_id: str,
    name: str,
    arguments: str,
    *,
    lock_key: str | None = None,
    by: str | None = None,
    attempt: int = 1,
) -> ClaimedRun | None:
    """Insert a run that a person starts here and now; None if its lock is held.

    Raises:
        IntegrityError: A constraint that is not the ledger's own has refused.
    """
    run_id, token = uuid.uuid4().hex, uuid.uuid4().hex
    now_ms = ledger.read(ledger.now_ms)
    values = {
        "id": run_id,
        "namespace": ledger.namespace,
        "task": name,
        "arguments": arguments,
        "now_ms": now_ms,
        "node": node_id,
        "claim": token,
        "lock_name": lock_key,
        "requested_by": by,
    }
    statement = _inserting_running(ledger.sql)

    def is_held(connection: Connection) -> bool:
        return connection.scalar(select(run.c.id).where(run.c.lock_key == lock_key)) is not None

    for left in reversed(range(_LOCK_TRIES)):
        try:
            ledger.write_once(run_id, lambda connection: connection.execute(statement, values))
            break
        except IntegrityError:
            if lock_key is not None and ledger.read(is_held):
                return None
            if lock_key is None or not left:  # otherwise it was freed just now
                raise
    return ClaimedRun(run_id, token, name, now_ms, "manual", attempt, arguments, lock_key)


_MANUAL: Mapping[str, str] = {
    "id": ":id",
    "namespace": ":namespace",
    "task": ":task",
    "slot": ":id",
    "kind": "'manual'",
    "arguments": ":arguments",
    "requested_by": ":requested_by",
}


@lru_cache
def _inserting(sql: DialectSQL, joined: str, table: str) -> TextClause:
    values = {
        **_MANUAL,
        "scheduled_ms": sql.now_ms,
        "status": ":status",
        "executor": ":executor",
        "queue": ":queue",
        "not_before_ms": f"{sql.now_ms} + :wait_ms",
    }
    insert = insert_runs(sql, values, table=table)
    return typed(joining(f"{insert} RETURNING id, queue" if joined else insert, joined))


@lru_cache
def _inserting_running(sql: DialectSQL) -> TextClause:
    times = dict.fromkeys(("scheduled_ms", "not_before_ms", "queued_ms", "started_ms"), ":now_ms")
    values = {
        **_MANUAL,
        **times,
        "status": f"'{RunStatus.RUNNING}'",
        "executor": "'local'",
        "node": ":node",
        "claim": ":claim",
        "lock_key": ":lock_name",
    }
    return typed(insert_runs(sql, values))
