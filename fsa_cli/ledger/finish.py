"""Write the outcomes of runs in batches, each only while the row still carries its claim."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, TextClause, select, update

from fsa_cli.ledger.attempts import write_attempts
from fsa_cli.ledger.control import add_task
from fsa_cli.ledger.dialects import DialectSQL, execute_rows
from fsa_cli.ledger.records import RunOutcome
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run, task

__all__ = ["count_outcomes", "finish", "free", "write_outcomes"]

_ROWS = 1000
_LENGTH = 4_000_000


def finish(ledger: Ledger, outcomes: Sequence[RunOutcome]) -> set[str]:
    """Write *outcomes*, and count them; the ids of those that do not count, as `write_outcomes`."""
    lost = write_outcomes(ledger, outcomes)
    count_outcomes(ledger, [each for each in outcomes if each.run_id not in lost])
    return lost


def write_outcomes(ledger: Ledger, outcomes: Sequence[RunOutcome]) -> set[str]:
    """Write *outcomes*; the ids of those that do not count because the run is no longer ours.

    Each statement is a transaction of its own: a process that is cut off in between keeps no row
    locked.
    """
    ordered = sorted(outcomes, key=lambda each: each.run_id)
    unwritten = [each for each in ordered if not each.recorded]
    final = [each for each in unwritten if each.retry_in_ms is None]
    again = [each for each in unwritten if each.retry_in_ms is not None]
    write_attempts(ledger, again)
    written = 0
    for statement, values in (
        (_finished(ledger.sql, "t.lock_key"), [e for e in final if e.keeps_lock]),
        (_finished(ledger.sql, "NULL"), [e for e in final if not e.keeps_lock]),
        (_requeued(ledger.sql), again),
    ):
        for part in _parts(values):
            rows = [_row(each) for each in part]
            written += _executed(ledger, statement, rows)
    is_all = written == len(unwritten)
    if ledger.sql.frees_locks_apart:
        # Also of what has failed for this process, and was committed all the same.
        _free_recorded(ledger, [each for each in ordered if each.recorded or not is_all])
    return set() if is_all else ledger.read(lambda connection: _lost(connection, unwritten))


def _free_recorded(ledger: Ledger, outcomes: Sequence[RunOutcome]) -> None:
    rows = [{"run_id": each.run_id, "token": each.token} for each in outcomes]
    for start in range(0, len(rows), _ROWS):
        _executed(ledger, _freed(ledger.sql), rows[start : start + _ROWS])


def count_outcomes(ledger: Ledger, outcomes: Sequence[RunOutcome]) -> None:
    """Update each task's last success, and its failures since: one statement.

    A task that only `fsa run-task` runs, from cron, nobody has registered: it gets its row.
    """
    rows = _counts(ledger, outcomes)
    if rows and _executed(ledger, _counted(ledger.sql), rows) < len(rows):
        unknown = _without_row(ledger, rows)
        for each in unknown:
            add_task(ledger, each["task_name"])
        if unknown:
            _executed(ledger, _counted(ledger.sql), unknown)


def _without_row(ledger: Ledger, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    names = [each["task_name"] for each in rows]
    there = select(task.c.name).where(task.c.namespace == ledger.namespace, task.c.name.in_(names))
    known = ledger.read(lambda connection: set(connection.scalars(there)))
    return [each for each in rows if each["task_name"] not in known]


def _executed(ledger: Ledger, statement: TextClause, rows: Sequence[Mapping[str, Any]]) -> int:
    return ledger.at_once(lambda connection: execute_rows(connection, ledger.sql, statement, rows))


def free(ledger: Ledger, run_id: str, token: str) -> None:
    """Free the lock of a run that had timed out and has returned."""

    def work(connection: Connection) -> None:
        connection.execute(
            update(run).where(run.c.id == run_id, run.c.claim == token).values(lock_key=None)
        )

    ledger.at_once(work)


def _lost(connection: Connection, outcomes: Sequence[RunOutcome]) -> set[str]:
    """The runs that are not ours any more. After an unknown COMMIT they may be written."""
    rows = connection.execute(
        select(run.c.id, run.c.claim, run.c.status, run.c.attempt).where(
            run.c.id.in_([each.run_id for each in outcomes])
        )
    )
    now = {row.id: row for row in rows}
    return {
        each.run_id
        for each in outcomes
        if each.run_id not in now
        or not (
            (each.retry_in_ms is not None and now[each.run_id].status == "queued")
            or (now[each.run_id].claim == each.token and now[each.run_id].status == each.status)
        )
    }


def _counts(ledger: Ledger, outcomes: Sequence[RunOutcome]) -> list[dict[str, Any]]:
    successes: dict[str, int] = {}
    failures: dict[str, int] = defaultdict(int)
    for each in outcomes:
        if each.retry_in_ms is not None:
            continue
        if each.status == "succeeded":
            successes[each.task] = max(each.finished_ms, successes.get(each.task, 0))
            failures[each.task] = 0
        elif each.status != "discarded":
            failures[each.task] += 1
    # In one order for all replicas: in several they deadlock.
    return [
        {
            "in_namespace": ledger.namespace,
            "task_name": name,
            "success_ms": successes.get(name),
            "more": failures[name],
        }
        for name in sorted(failures)
    ]


def _row(each: RunOutcome) -> dict[str, Any]:
    return {
        "run_id": each.run_id,
        "token": each.token,
        "to_status": each.status,
        "began_ms": each.started_ms,
        "ended_ms": each.finished_ms,
        "again_ms": each.finished_ms + (each.retry_in_ms or 0),
        "more": 1 if each.counts else 0,
        "to_result": each.result,
        "to_error_type": each.error_type,
        "to_error": each.error,
        "to_traceback": each.traceback,
    }


def _parts(outcomes: Sequence[RunOutcome]) -> Iterator[Sequence[RunOutcome]]:
    """As many at a time as one statement should carry: MySQL takes packets of 16 MB."""
    part: list[RunOutcome] = []
    length = 0
    for each in outcomes:
        length += sum(len(told or "") for told in (each.result, each.error, each.traceback))
        part.append(each)
        if len(part) == _ROWS or length > _LENGTH:
            yield part
            part, length = [], 0
    if part:
        yield part


_COLUMNS = {
    "run_id": "text",
    "token": "text",
    "to_status": "text",
    "began_ms": "bigint",
    "ended_ms": "bigint",
    "again_ms": "bigint",
    "more": "bigint",
    "to_result": "text",
    "to_error_type": "text",
    "to_error": "text",
    "to_traceback": "text",
}
_KEY = "id", "run_id"
_MINE = "t.claim = v.token AND t.status = 'running'"
_SAID = "error_type = v.to_error_type, error = v.to_error, traceback = v.to_traceback"


@lru_cache
def _finished(sql: DialectSQL, lock: str) -> TextClause:
    values = (
        "status = v.to_status, started_ms = COALESCE(v.began_ms, t.started_ms), "
        f"finished_ms = v.ended_ms, result = v.to_result, lock_key = {lock}, {_SAID}"
    )
    return sql.update_from_rows("fsa_run", _COLUMNS, _KEY, values, _MINE)


@lru_cache
def _freed(sql: DialectSQL) -> TextClause:
    columns = {"run_id": "text", "token": "text"}
    where = "t.claim = v.token AND t.status = 'succeeded'"
    return sql.update_from_rows("fsa_run", columns, _KEY, "lock_key = NULL", where)


@lru_cache
def _requeued(sql: DialectSQL) -> TextClause:
    values = (
        "status = 'queued', node = NULL, claim = NULL, lock_key = NULL, "
        "attempt = t.attempt + v.more, "
        f"not_before_ms = v.again_ms, finished_ms = v.ended_ms, {_SAID}"
    )
    return sql.update_from_rows("fsa_run", _COLUMNS, _KEY, values, _MINE)


@lru_cache
def _counted(sql: DialectSQL) -> TextClause:
    return sql.update_from_rows(
        "fsa_task",
        {"in_namespace": "text", "task_name": "text", "success_ms": "bigint", "more": "bigint"},
        ("name", "task_name"),
        "consecutive_failures = v.more + "
        "CASE WHEN v.success_ms IS NULL THEN t.consecutive_failures ELSE 0 END, "
        "last_success_ms = COALESCE(v.success_ms, t.last_success_ms)",
        "t.namespace = v.in_namespace",
    )
