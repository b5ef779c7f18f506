"""Unique keys: which run has one. The primary key of `fsa_key` decides, on every database.

A run has its key while it waits or runs, and for `kept_ms` after its end. Nobody frees a key: who
asks for it looks at the run that has it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, TextClause
from sqlalchemy.sql.selectable import TextualSelect

from fsa_cli.ledger.dialects import DialectSQL, execute_rows, typed
from fsa_cli.ledger.offload import off_the_loop
from fsa_cli.ledger.records import NewRun
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import key, run
from fsa_cli.ledger.values import has_ended

__all__ = ["take_keys"]

_TRIES = 20


def take_keys(
    ledger: Ledger, connection: Connection, new_runs: Sequence[NewRun], *, is_own: bool
) -> list[str]:
    """Take the key of each of *new_runs*, of one task, or find the run that has it: their ids.

    Another transaction that has taken a key and has not ended is waited for. Of several with one
    key the first has it.

    Args:
        is_own: Whether the connection is the ledger's: it sees what is committed at each moment. In
            a transaction of the app's that may be as old as its first statement.
    """
    keys, runs = ledger.qualified(key.name), ledger.qualified(run.name)
    first = new_runs[0]
    given = {"namespace": ledger.namespace, "task": first.key_task or first.task}
    asking = {str(each.unique): each for each in reversed(new_runs)}
    had_by: dict[str, str] = {}
    for _ in range(_TRIES):
        # In one order for all who ask: in several they deadlock.
        rows = [
            {"key_name": name, "run_id": each.run_id, "kept_ms": each.kept_ms}
            for name, each in sorted(asking.items())
            if name not in had_by
        ]
        if not rows:
            return [had_by[str(each.unique)] for each in new_runs]
        inserting = _inserting(ledger.sql, keys)
        inserted = connection.execute(inserting, {**given, "rows": json.dumps(rows)})
        if inserted.returns_rows:
            had_by |= {name: asking[name].run_id for name in inserted.scalars()}
            rows = [each for each in rows if each["key_name"] not in had_by]
            if not rows:
                continue
        holding = _holding(ledger.sql, keys)
        held = connection.execute(holding, {**given, "rows": json.dumps(rows)}).all()
        had_by |= {row.name: row.run for row in held if row.run == asking[row.name].run_id}
        others = [row for row in held if row.name not in had_by]
        kept = _kept(ledger, connection, runs, others, is_own=is_own)
        had_by |= {row.name: row.run for row in others if row.run in kept}
        over = [
            {
                "in_namespace": ledger.namespace,
                "of_task": given["task"],
                "key_name": row.name,
                "to_run": asking[row.name].run_id,
                "to_kept_ms": asking[row.name].kept_ms,
                "from_run": row.run,
            }
            for row in others
            if row.run not in kept
        ]
        if over:
            execute_rows(connection, ledger.sql, _taking_over(ledger.sql, keys), over)
    raise RuntimeError(f"the key {first.unique!r} changes hands all the time")


def _kept(
    ledger: Ledger, connection: Connection, table: str, held: Sequence[Any], *, is_own: bool
) -> set[str]:
    """The runs that have keys, and wait, run, or keep them after their end."""
    ids = {row.run for row in held}
    if not ids:
        return set()

    def look(on: Connection, name: str, run_ids: Collection[str]) -> dict[str, Any]:
        rows = json.dumps([{"run_id": each} for each in sorted(run_ids)])
        return {row.id: row for row in on.execute(_runs(ledger.sql, name), {"rows": rows})}

    found = look(connection, table, ids)
    unsure = {each for each in ids if each not in found or not _is_final(found[each])}
    if not is_own and unsure:
        # One of this very transaction's is not committed yet.
        found |= off_the_loop(lambda: ledger.read(lambda each: look(each, run.name, unsure)))
    return {row.run for row in held if row.run in found and _has_key(found[row.run], row.kept_ms)}


def _has_key(row: Any, kept_ms: int | None) -> bool:
    return not _is_final(row) or bool(row.finished_ms + (kept_ms or 0) > row.now_ms)


def _is_final(row: Any) -> bool:
    return row.finished_ms is not None and has_ended(row.status, row.finished_ms)


_NAMES: Mapping[str, str] = {"key_name": "text"}
_GIVEN: Mapping[str, str] = {**_NAMES, "run_id": "text", "kept_ms": "bigint"}


@lru_cache
def _inserting(sql: DialectSQL, table: str) -> TextClause:
    # MySQL's IGNORE would also swallow a name that is too long.
    plain = f"ON DUPLICATE KEY UPDATE run = {table}.run"
    ignore = sql.ignore if sql.ignore.startswith("ON CONFLICT") else plain
    return typed(
        f"INSERT INTO {table} (namespace, task, name, run, kept_ms) "
        f"SELECT :namespace, :task, v.key_name, v.run_id, v.kept_ms FROM {sql.from_rows(_GIVEN)} "
        f"WHERE 1 = 1 ORDER BY v.key_name {ignore}"
        f"{' RETURNING name' if sql.returns else ''}"
    )


@lru_cache
def _holding(sql: DialectSQL, table: str) -> TextualSelect:
    # What its transaction began with may be long gone; its row is locked by the INSERT already.
    names, join, latest = sql.from_rows(_NAMES), "JOIN", ""
    if not sql.ignore.startswith("ON CONFLICT"):
        # MySQL locks no JSON_TABLE, and MariaDB knows no FOR UPDATE OF.
        names = f"(SELECT DISTINCT v.key_name FROM {names}) AS v"
        join, latest = "STRAIGHT_JOIN", "FOR UPDATE"
    return typed(
        f"SELECT t.name, t.run, t.kept_ms FROM {names} {join} {table} t "
        "ON t.namespace = :namespace AND t.task = :task AND t.name = v.key_name "
        f"ORDER BY t.name {latest}"
    ).columns(key.c.name, key.c.run, key.c.kept_ms)


@lru_cache
def _taking_over(sql: DialectSQL, table: str) -> TextClause:
    return sql.update_from_rows(
        table,
        {
            "in_namespace": "text",
            "of_task": "text",
            "key_name": "text",
            "to_run": "text",
            "to_kept_ms": "bigint",
            "from_run": "text",
        },
        ("name", "key_name"),
        "run = v.to_run, kept_ms = v.to_kept_ms",
        "t.namespace = v.in_namespace AND t.task = v.of_task AND t.run = v.from_run",
    )


@lru_cache
def _runs(sql: DialectSQL, table: str) -> TextualSelect:
    join = "JOIN" if sql.ignore.startswith("ON CONFLICT") else "STRAIGHT_JOIN"
    return typed(
        f"SELECT t.id, t.status, t.finished_ms, {sql.now_ms} AS now_ms "
        f"FROM {sql.from_rows({'run_id': 'text'})} {join} {table} t ON t.id = v.run_id"
    ).columns(run.c.id, run.c.status, run.c.finished_ms, Column("now_ms", BigInteger))
