"""New rows of runs that somebody asks for: queued, dispatched, or running here and now."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from sqlalchemy import BigInteger, Connection, TextClause, TwoPhaseTransaction, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from fsa_cli.ledger.dialects import WAIT_S, DialectSQL, joining, typed
from fsa_cli.ledger.keys import take_keys
from fsa_cli.ledger.offload import off_the_loop
from fsa_cli.ledger.reach import Asking, execute, is_untouched, probe, refused
from fsa_cli.ledger.records import SENT_AGAIN_MS, ClaimedRun, NewRun, RunStatus
from fsa_cli.ledger.run_rows import insert_runs
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run
from fsa_cli.ledger.wake import notifying

__all__ = [
    "Inserted",
    "insert_run",
    "insert_running",
    "insert_runs_of",
    "write_run",
    "write_runs",
]

_LOCK_TRIES = 3
_LENGTH = 4_000_000
_ID_AND_QUOTES = 70


class Inserted(NamedTuple):
    """What became of a run in a transaction of the app's.

    Attributes:
        how: Whether its row was inserted, and whether what was joined to it was done too.
        run_id: The run's; that of the run which has its unique key, if another one has.
    """

    how: Literal["not", "alone", "with its message"]
    run_id: str


def insert_run(
    ledger: Ledger, connection: Connection, new_run: NewRun, joined: str = ""
) -> Inserted:
    """Insert the row of a run in a transaction of the app's.

    Args:
        joined: As in `write_run`; left out where the session is not as the ledger's own are, since
            it names things of the database by the search path.
    """
    (inserted,) = insert_runs_of(ledger, connection, [new_run], joined)
    return inserted


def insert_runs_of(
    ledger: Ledger, connection: Connection, new_runs: Sequence[NewRun], joined: str = ""
) -> list[Inserted]:
    """As `insert_run`, for any number of runs that differ in id, arguments and key only."""
    first = new_runs[0]
    nothing = [Inserted("not", each.run_id) for each in new_runs]
    if not ledger.is_located:
        off_the_loop(lambda: ledger.schema)
    joined = joined if first.dispatched else ""
    # To ask first takes as long as to insert.
    has_key = first.unique is not None
    is_tried = not (joined or has_key or ledger.was_refused) and is_untouched(connection)
    with closing(Asking(connection)) as asking:
        reach = None if is_tried else probe(ledger, asking, has_key=has_key)
    if reach is not None and not reach.writes:
        return nothing
    if reach is None or [reach.user, reach.search_path] != ledger.session:
        joined = ""
    how: Literal["alone", "with its message"] = "with its message" if joined else "alone"
    try:
        run_ids = _ids(ledger, connection, new_runs, is_own=False)
        own = _own(new_runs, run_ids)
        if own:
            _insert(ledger, connection, own, joined, ledger.qualified(run.name))
    except DBAPIError as exc:
        if reach is not None or not refused(exc):
            raise
        if is_tried:
            ledger.was_refused = True
            connection.connection.rollback()
        return nothing
    return [Inserted(how, run_id) for run_id in run_ids]


def write_run(ledger: Ledger, new_run: NewRun, joined: str = "") -> str:
    """Insert the row of a run, in a transaction of its own.

    Args:
        joined: SQL that is part of the statement, as in `dialects.joining`.

    Returns:
        Its id; that of the run which has its unique key, if another one has.
    """
    if new_run.unique is None:
        statement = _inserting(ledger.sql, joined, _waking(ledger, new_run, None), run.name)
        values = _values(ledger, new_run)
        ledger.write_once(
            new_run.run_id, lambda connection: execute(connection, statement, values).close()
        )
        return new_run.run_id
    (run_id,) = write_runs(ledger, [new_run], joined)
    return run_id


def write_runs(ledger: Ledger, new_runs: Sequence[NewRun], joined: str = "") -> list[str]:
    """As `write_run`, for any number of runs that differ in id, arguments and key only."""

    def work(connection: Connection) -> list[str]:
        run_ids = _ids(ledger, connection, new_runs, is_own=True)
        if own := _own(new_runs, run_ids):
            # Of a COMMIT whose outcome was unknown they are there already.
            there = select(run.c.id).where(run.c.id == own[0].run_id)
            if connection.scalar(there) is None:
                _insert(ledger, connection, own, joined, run.name)
        return run_ids

    # A transaction of this very request's, which has taken a key, ends only after this.
    return ledger.write(work, waits_s=WAIT_S)


def _ids(
    ledger: Ledger, connection: Connection, new_runs: Sequence[NewRun], *, is_own: bool
) -> list[str]:
    """The id of each of *new_runs*, or of the run that has its unique key."""
    if new_runs[0].unique is None:
        return [each.run_id for each in new_runs]
    return take_keys(ledger, connection, new_runs, is_own=is_own)


def _own(new_runs: Sequence[NewRun], run_ids: Sequence[str]) -> list[NewRun]:
    """Those of *new_runs* that are to be inserted."""
    return [each for each, run_id in zip(new_runs, run_ids, strict=True) if each.run_id == run_id]


def _insert(
    ledger: Ledger,
    connection: Connection,
    new_runs: Sequence[NewRun],
    joined: str,
    table: str,
) -> None:
    """Insert runs: one statement, but that MySQL takes no more than 16 MB in one."""
    waking = _waking(ledger, new_runs[0], connection)
    if len(new_runs) == 1:
        inserting = _inserting(ledger.sql, joined, waking, table)
        execute(connection, inserting, _values(ledger, new_runs[0])).close()
        return
    statement = _inserting_many(ledger.sql, joined or (waking and f"SELECT {waking}"), table)
    given = _values(ledger, new_runs[0])
    for name in ("id", "arguments"):
        del given[name]
    for part in _parts(new_runs):
        rows = json.dumps([{"id": each.run_id, "arguments": each.arguments} for each in part])
        connection.execute(statement, {**given, "rows": rows}).close()


def _waking(ledger: Ledger, new_run: NewRun, connection: Connection | None) -> str:
    """What wakes the processes that could start the run now."""
    waits = new_run.dispatched or new_run.wait_ms or new_run.at_ms is not None
    # PostgreSQL prepares no transaction that has notified somebody.
    is_prepared = connection is not None and isinstance(
        connection.get_transaction(), TwoPhaseTransaction
    )
    return "" if waits or is_prepared else notifying(ledger)


def _parts(new_runs: Sequence[NewRun]) -> Iterator[Sequence[NewRun]]:
    start = length = 0
    for end, each in enumerate(new_runs, 1):
        length += len(each.arguments) + _ID_AND_QUOTES
        if length > _LENGTH or end == len(new_runs):
            yield new_runs[start:end]
            start, length = end, 0


def _values(ledger: Ledger, new_run: NewRun) -> dict[str, Any]:
    return {
        "id": new_run.run_id,
        "namespace": ledger.namespace,
        "task": new_run.task,
        "arguments": new_run.arguments,
        "executor": new_run.executor,
        "queue": new_run.queue,
        "status": (RunStatus.DISPATCHED if new_run.dispatched else RunStatus.QUEUED).value,
        "at_ms": new_run.at_ms,
        "wait_ms": SENT_AGAIN_MS if new_run.dispatched else new_run.wait_ms,
        "priority": new_run.priority,
        "requested_by": new_run.by,
    }


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


def _asked(sql: DialectSQL) -> Mapping[str, str]:
    return {
        **_MANUAL,
        "scheduled_ms": sql.now_ms,
        "status": ":status",
        "executor": ":executor",
        "queue": ":queue",
        "not_before_ms": f"COALESCE(:at_ms, {sql.now_ms} + :wait_ms)",
        "priority": ":priority",
    }


@lru_cache
def _inserting(sql: DialectSQL, joined: str, waking: str, table: str) -> TextClause:
    insert = insert_runs(sql, _asked(sql), table=table)
    if joined:
        insert = joining(f"{insert} RETURNING id, queue", joined)
    elif waking:  # of one row it is cheaper so than beside it
        insert = f"{insert} RETURNING {waking}"
    return typed(insert, priority=BigInteger)


@lru_cache
def _inserting_many(sql: DialectSQL, joined: str, table: str) -> TextClause:
    values = {**_asked(sql), "id": "v.id", "slot": "v.id", "arguments": "v.arguments"}
    source = f"FROM {sql.from_rows({'id': 'text', 'arguments': 'text'})}"
    insert = insert_runs(sql, values, source=source, table=table)
    joining_in = joining(f"{insert} RETURNING id, queue" if joined else insert, joined)
    return typed(joining_in, priority=BigInteger)


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
