"""New rows of runs that somebody asks for: queued, dispatched, or running here and now."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from sqlalchemy import (
    Connection,
    TextClause,
    insert,
    select,
)
from sqlalchemy.exc import DBAPIError, IntegrityError

from fsa_cli.ledger.dialects import DialectSQL, joining, typed
from fsa_cli.ledger.offload import off_the_loop
from fsa_cli.ledger.reach import probe, refused
from fsa_cli.ledger.records import SENT_AGAIN_MS, ClaimedRun
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import FINAL, run

__all__ = ["NewRun", "insert_retry", "insert_run", "insert_running", "write_run"]

_LOCK_TRIES = 3


#: Whether a row was inserted, and whether what was joined to it was done too.
Inserted = Literal["not", "alone", "with its message"]


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run that somebody asks for.

    Attributes:
        arguments: JSON.
        dispatched: Whether a broker is sent its message at once; otherwise it is `queued`.
        by: Who asks.
    """

    run_id: str
    task: str
    arguments: str
    executor: str
    queue: str | None
    dispatched: bool
    by: str | None = None

    @classmethod
    def of(cls, task: str, arguments: str, **more: Any) -> NewRun:
        return cls(uuid.uuid4().hex, task, arguments, **more)


def insert_run(
    ledger: Ledger, connection: Connection, new_run: NewRun, joined: str = ""
) -> Inserted:
    """Insert the row of a run in a transaction of the app's.

    Args:
        joined: As in `write_run`; left out where the session is not as the ledger's own are, since
            it names things of the database by the search path.
    """
    off_the_loop(lambda: ledger.schema)  # looked up once, on another connection
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
        "status": "handed_off" if new_run.dispatched else "queued",
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


@lru_cache
def _inserting(sql: DialectSQL, joined: str, table: str) -> TextClause:
    insert = f"""
        INSERT INTO {table} (id, namespace, task, scheduled_ms, slot, kind, status, arguments,
            executor, queue, attempt, not_before_ms, commits, queued_ms, requested_by)
        VALUES (:id, :namespace, :task, {sql.now_ms}, :id, 'manual', :status, :arguments,
            :executor, :queue, 1, {sql.now_ms} + :wait_ms, 0, {sql.now_ms}, :requested_by)
        """
    return typed(joining(f"{insert} RETURNING id, queue" if joined else insert, joined))


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
    statement = insert(run).values(
        **_manual(ledger, run_id, name, arguments, now_ms, by),
        status="running",
        executor="local",
        node=node_id,
        claim=token,
        lock_key=lock_key,
        started_ms=now_ms,
    )

    def is_held(connection: Connection) -> bool:
        return connection.scalar(select(run.c.id).where(run.c.lock_key == lock_key)) is not None

    for left in reversed(range(_LOCK_TRIES)):
        try:
            ledger.write_once(run_id, lambda connection: connection.execute(statement))
            break
        except IntegrityError:
            if lock_key is not None and ledger.read(is_held):
                return None
            if lock_key is None or not left:  # otherwise it was freed just now
                raise
    return ClaimedRun(run_id, token, name, now_ms, "manual", attempt, arguments, lock_key)


def insert_retry(ledger: Ledger, run_id: str, *, by: str | None = None) -> str | None:
    """Queue a new run with the arguments of one that has ended; None if it has not."""
    ended = select(run.c.task, run.c.arguments, run.c.executor, run.c.queue).where(
        run.c.id == run_id, run.c.status.in_(FINAL)
    )
    before, now_ms = ledger.read(
        lambda connection: (
            connection.execute(ended).one_or_none(),
            ledger.now_ms(connection),
        )
    )
    if before is None:
        return None
    new_id = uuid.uuid4().hex
    statement = insert(run).values(
        **_manual(ledger, new_id, before.task, before.arguments, now_ms, by),
        status="queued",
        executor=before.executor,
        queue=before.queue,
    )
    ledger.write_once(new_id, lambda connection: connection.execute(statement))
    return new_id


def _manual(
    ledger: Ledger, run_id: str, name: str, arguments: str, now_ms: int, by: str | None
) -> dict[str, object]:
    return {
        "id": run_id,
        "namespace": ledger.namespace,
        "task": name,
        "scheduled_ms": now_ms,
        "slot": run_id,
        "kind": "manual",
        "arguments": arguments,
        "attempt": 1,
        "not_before_ms": now_ms,
        "commits": 0,
        "queued_ms": now_ms,
        "requested_by": by,
    }
