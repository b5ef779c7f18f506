"""Backfill: an instant without a row gets one, so that nothing disappears.

Every instant up to a task's watermark has a row. One that came due while a live node knew the
task is queued; one that came due while none did is missed, and `catch_up` decides which of them
still run.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar

from sqlalchemy import Connection, TextClause, select
from sqlalchemy.exc import DBAPIError

from fsa_cli.ledger import control
from fsa_cli.ledger.dialects import (
    DialectSQL,
    execute_rows,
    insert_rows,
    is_taken,
    refuses_row,
    typed,
)
from fsa_cli.ledger.instants import with_row
from fsa_cli.ledger.records import SCHEDULED, ExpectedInstant, RegisteredTask, RunStatus
from fsa_cli.ledger.run_rows import insert_runs
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import node, node_task, task

__all__ = ["backfill", "register_tasks"]
T = TypeVar("T")

# Of bound parameters; SQLite takes 32,766 in all, MySQL a packet of 16 MB.
_BATCH = 1000
# A task that was renamed goes on with these.
_CARRIED = (task.c.paused_ms, task.c.paused_by, task.c.consecutive_failures)
# No replica raises a watermark further beyond the database's now.
_AHEAD_MS = 24 * 3600 * 1000


def register_tasks(ledger: Ledger, known: Sequence[RegisteredTask]) -> dict[str, int]:
    """Register these tasks in the ledger; the watermark of each.

    A task that is new, or whose schedule has changed, begins at the database's now.
    """
    while True:
        try:
            return _register(ledger, known)
        except DBAPIError as exc:
            if not is_taken(exc):  # by another replica, which registered it at this moment
                raise


def backfill(
    ledger: Ledger,
    node_id: str,
    expected: Sequence[ExpectedInstant],
    cut_ms: int,
    hashes: Mapping[str, str],
    refused: dict[tuple[str, int], Exception] | None = None,
) -> dict[str, int]:
    """Give every expected instant a row and raise the watermarks to *cut_ms*.

    Each statement is a transaction of its own: other replicas write the same rows, and one that is
    frozen or cut off between two statements must keep none of them waiting.

    Args:
        hashes: The tasks, each with the hash of its schedule, of which every instant up to *cut_ms*
            is among *expected*, or has a row.
        refused: Filled with the instants whose rows the database refuses: the watermarks of their
            tasks stay. None: that is raised.

    Returns:
        How many rows were written with each status.
    """
    missing: list[ExpectedInstant] = []
    for part in _parts(sorted(expected, key=lambda one: one.due.key)):
        missing += ledger.read(partial(_without_row, ledger, expected=part))
    counts: dict[str, int] = defaultdict(int)
    if missing:
        decided = ledger.read(
            lambda connection: _decided(connection, ledger.namespace, node_id, missing)
        )
        for status, chosen in decided.items():
            for some in _parts(chosen):
                counts[status] += _write(ledger, status, some, refused)
    # Only now that the rows are there.
    without = {name for name, _ in refused or ()}
    for names in _parts(sorted(hashes.keys() - without)):
        marks = [
            {
                "in_namespace": ledger.namespace,
                "task_name": name,
                "to_hash": hashes[name],
                "cut_ms": cut_ms,
            }
            for name in names
        ]
        ledger.at_once(partial(_execute_rows, ledger, _raising(ledger.sql), marks))
    return dict(counts)


def _write(
    ledger: Ledger,
    status: RunStatus,
    rows: Sequence[tuple[ExpectedInstant, str, str | None]],
    refused: dict[tuple[str, int], Exception] | None,
) -> int:
    """Insert these rows; how many, without those that the database refuses."""
    given = {"namespace": ledger.namespace, "rows": _json(rows)}
    try:
        ledger.at_once(partial(_execute, _insert(ledger.sql, status), given))
    except DBAPIError as exc:
        if refused is None or not refuses_row(exc):
            raise
        if len(rows) == 1:
            refused[rows[0][0].due.key] = exc
            return 0
        half = len(rows) // 2
        return sum(_write(ledger, status, e, refused) for e in (rows[:half], rows[half:]))
    return len(rows)


def _execute(statement: TextClause, given: Mapping[str, object], connection: Connection) -> None:
    connection.execute(statement, given)


def _execute_rows(
    ledger: Ledger,
    statement: TextClause,
    rows: Sequence[Mapping[str, object]],
    connection: Connection,
) -> None:
    execute_rows(connection, ledger.sql, statement, rows)


def _register(ledger: Ledger, known: Sequence[RegisteredTask]) -> dict[str, int]:
    statement = select(
        task.c.name, task.c.options, task.c.schedule_hash, task.c.watermark_ms, *_CARRIED
    ).where(task.c.namespace == ledger.namespace)
    rows, now_ms = ledger.read(
        lambda connection: (connection.execute(statement).all(), ledger.now_ms(connection))
    )
    there = {row.name: row for row in rows}
    limit_ms = now_ms + _AHEAD_MS
    added: list[dict[str, Any]] = []
    changed: list[dict[str, Any]] = []
    watermarks = {}
    for each in known:
        row = there.get(each.name)
        is_new = row is None or row.schedule_hash != each.schedule_hash
        # A row that says what cannot be would keep the task from ever being run.
        if row is not None and not is_new and 0 <= row.watermark_ms <= limit_ms:
            watermarks[each.name] = row.watermark_ms
        else:
            watermarks[each.name] = now_ms
        if row is None:
            before = next((there[name] for name in each.before if name in there), None)
            if (
                before is not None
                and each.schedule_hash is not None
                and before.schedule_hash == each.before[before.name]
                and 0 <= before.watermark_ms <= limit_ms
            ):
                watermarks[each.name] = before.watermark_ms
            added.append(
                {
                    "namespace": ledger.namespace,
                    "name": each.name,
                    "options": each.options,
                    "schedule_hash": each.schedule_hash,
                    "watermark_ms": watermarks[each.name],
                    "consecutive_failures": 0 if before is None else before.consecutive_failures,
                    "paused_ms": None if before is None else before.paused_ms,
                    "paused_by": None if before is None else before.paused_by,
                }
            )
        elif is_new or row.options != each.options:
            changed.append(
                {
                    "in_namespace": ledger.namespace,
                    "task_name": each.name,
                    "to_options": each.options,
                    "to_hash": each.schedule_hash,
                    "to_ms": now_ms if is_new else None,
                }
            )
    for some in _parts(added):
        ledger.at_once(partial(_add, ledger, some))
    for some in _parts(changed):
        ledger.at_once(partial(_execute_rows, ledger, _changing(ledger.sql), some))
    return watermarks


def _add(ledger: Ledger, rows: Sequence[Mapping[str, Any]], connection: Connection) -> None:
    insert_rows(connection, ledger.sql, "fsa_task", _TASK, rows)


_TASK = {
    "namespace": "text",
    "name": "text",
    "options": "text",
    "schedule_hash": "text",
    "watermark_ms": "bigint",
    "consecutive_failures": "bigint",
    "paused_ms": "bigint",
    "paused_by": "text",
}


def _without_row(
    ledger: Ledger, connection: Connection, *, expected: Sequence[ExpectedInstant]
) -> list[ExpectedInstant]:
    known = with_row(ledger, connection, [each.due for each in expected])
    return [each for each in expected if each.due.key not in known]


def _decided(
    connection: Connection, namespace: str, node_id: str, missing: Sequence[ExpectedInstant]
) -> dict[RunStatus, list[tuple[ExpectedInstant, str, str | None]]]:
    """The rows to write: by their status, each with its kind and its reason."""
    paused = control.paused(connection, namespace)
    covered = _covered(connection, namespace, node_id, missing)
    decided: dict[RunStatus, list[tuple[ExpectedInstant, str, str | None]]] = defaultdict(list)
    passed: dict[str, list[ExpectedInstant]] = defaultdict(list)
    for each in missing:
        name = each.due.task
        if name in paused:
            decided[RunStatus.SKIPPED].append((each, "schedule", "the task is paused"))
        elif each.due.key in covered and not each.passed:
            decided[RunStatus.QUEUED].append((each, "schedule", None))
        else:
            passed[name].append(each)
    for instants in passed.values():
        *older, latest = sorted(instants, key=lambda one: one.due.scheduled_ms)
        for each in older:
            _decide_missed(decided, each, runs=each.catch_up == "all")
        _decide_missed(decided, latest, runs=latest.catch_up != "none")
    return decided


def _decide_missed(
    decided: dict[RunStatus, list[tuple[ExpectedInstant, str, str | None]]],
    each: ExpectedInstant,
    *,
    runs: bool,
) -> None:
    if runs and not each.passed:
        decided[RunStatus.QUEUED].append((each, "catch_up", None))
        return
    reason = "no scheduler was running and in touch with the ledger"
    if each.passed > 1:
        reason += f", for this and {each.passed - 1} more instants"
    decided[RunStatus.MISSED].append((each, "schedule", reason))


def _covered(
    connection: Connection, namespace: str, node_id: str, missing: Sequence[ExpectedInstant]
) -> set[tuple[str, int]]:
    """The instants at which a live node knew the task."""
    instants = [each.due.scheduled_ms for each in missing]
    first, last = min(instants), max(instants)
    nodes = connection.execute(
        select(node.c.id, node.c.covered_from_ms, node.c.lease_until_ms).where(
            node.c.namespace == namespace,
            node.c.role == "scheduler",
            node.c.lease_until_ms >= first,
            node.c.covered_from_ms <= last,
        )
    ).all()
    mine = next((row for row in nodes if row.id == node_id), None)
    if mine is not None and mine.covered_from_ms <= first and last <= mine.lease_until_ms:
        return {each.due.key for each in missing}
    by_task: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for each in missing:
        for name in (each.due.task, *each.due.before):
            by_task[name].append(each.due.key)
    covered: set[tuple[str, int]] = set()
    for names in _parts(sorted(by_task)):
        knew = connection.execute(
            select(node_task.c.node, node_task.c.task).where(
                node_task.c.node.in_([row.id for row in nodes]), node_task.c.task.in_(names)
            )
        ).all()
        leases = {row.id: (row.covered_from_ms, row.lease_until_ms) for row in nodes}
        for row in knew:
            since, until = leases[row.node]
            covered |= {key for key in by_task[row.task] if since <= key[1] <= until}
    return covered


_COLUMNS: Mapping[str, str] = {
    "id": "text",
    "task": "text",
    "at": "bigint",
    "kind": "text",
    "arguments": "text",
    "executor": "text",
    "queue": "text",
    "error": "text",
}


@lru_cache
def _insert(sql: DialectSQL, status: RunStatus) -> TextClause:
    values = {
        "id": "v.id",
        "namespace": ":namespace",
        "task": "v.task",
        "scheduled_ms": "v.at",
        "slot": f"'{SCHEDULED}'",
        "kind": "v.kind",
        "status": f"'{status}'",
        "arguments": "v.arguments",
        "executor": "v.executor",
        "queue": "v.queue",
        "not_before_ms": "v.at",
        "error": "v.error",
    }
    if status.is_final:
        values["finished_ms"] = sql.now_ms
    source = f"FROM {sql.from_rows(_COLUMNS)} WHERE 1 = 1 ORDER BY v.task, v.at {sql.ignore}"
    return typed(insert_runs(sql, values, source=source))


@lru_cache
def _changing(sql: DialectSQL) -> TextClause:
    return sql.update_from_rows(
        "fsa_task",
        {
            "in_namespace": "text",
            "task_name": "text",
            "to_options": "text",
            "to_hash": "text",
            "to_ms": "bigint",
        },
        ("name", "task_name"),
        "options = v.to_options, schedule_hash = v.to_hash, "
        "watermark_ms = COALESCE(v.to_ms, t.watermark_ms)",
        "t.namespace = v.in_namespace",
    )


@lru_cache
def _raising(sql: DialectSQL) -> TextClause:
    return sql.update_from_rows(
        "fsa_task",
        {"in_namespace": "text", "task_name": "text", "to_hash": "text", "cut_ms": "bigint"},
        ("name", "task_name"),
        "watermark_ms = v.cut_ms",
        "t.namespace = v.in_namespace AND t.schedule_hash = v.to_hash "
        "AND t.watermark_ms < v.cut_ms",
    )


def _json(rows: Iterable[tuple[ExpectedInstant, str, str | None]]) -> str:
    return json.dumps(
        [
            {
                "id": uuid.uuid4().hex,
                "task": each.due.task,
                "at": each.due.scheduled_ms,
                "kind": kind,
                "arguments": each.due.arguments,
                "executor": each.due.executor,
                "queue": each.due.queue,
                "error": reason,
            }
            for each, kind, reason in rows
        ]
    )


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]
