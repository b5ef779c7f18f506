"""Unique keys: which run has one. The primary key of `fsa_key` decides, on every database.

A run has its key while it waits or runs, and for `kept_ms` after its end. Nobody frees a key: who
asks for it looks at the run that has it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, TextClause
from sqlalchemy.sql.selectable import TextualSelect

from fsa_cli.ledger.dialects import DialectSQL, typed
from fsa_cli.ledger.offload import off_the_loop
from fsa_cli.ledger.records import NewRun
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import key, run
from fsa_cli.ledger.values import has_ended

__all__ = ["take_key"]

_TRIES = 20


def take_key(ledger: Ledger, connection: Connection, new_run: NewRun, *, is_own: bool) -> str:
    """Take the key of *new_run*, or find the run that has it: the id of the one or the other.

    Another transaction that has taken the key and has not ended is waited for.

    Args:
        is_own: Whether the connection is the ledger's: it sees what is committed at each moment. In
            a transaction of the app's that may be as old as its first statement.
    """
    names = ledger.qualified(key.name), ledger.qualified(run.name)
    given = {
        "namespace": ledger.namespace,
        "task": new_run.key_task or new_run.task,
        "name": new_run.unique,
        "run": new_run.run_id,
        "kept_ms": new_run.kept_ms,
    }
    asked = {name: given[name] for name in ("namespace", "task", "name")}
    for _ in range(_TRIES):
        inserted = connection.execute(_inserting(ledger.sql, names[0]), given)
        if inserted.returns_rows and inserted.first() is not None:
            return new_run.run_id
        held = connection.execute(_holding(ledger.sql, names[0]), asked).one_or_none()
        if held is None:
            continue  # it was pruned just now
        if held.run == new_run.run_id:
            return new_run.run_id
        if _is_kept(ledger, connection, names[1], held, is_own=is_own):
            return str(held.run)
        connection.execute(_taking_over(ledger.sql, names[0]), {**given, "before": held.run})
    raise RuntimeError(f"the key {new_run.unique!r} changes hands all the time")


def _is_kept(
    ledger: Ledger, connection: Connection, table: str, held: Any, *, is_own: bool
) -> bool:
    """Whether the run that has the key waits, runs, or keeps it after its end."""
    given = {"id": held.run}

    def look(on: Connection, name: str) -> Any:
        return on.execute(_run(ledger.sql, name), given).one_or_none()

    row: Any = look(connection, table)
    if not is_own and (row is None or not _is_final(row)):
        committed = off_the_loop(lambda: ledger.read(lambda each: look(each, run.name)))
        row = committed or row  # one of this very transaction's is not committed yet
    if row is None:
        return False
    if not _is_final(row):
        return True
    return bool(row.finished_ms + (held.kept_ms or 0) > row.now_ms)


def _is_final(row: Any) -> bool:
    return row.finished_ms is not None and has_ended(row.status, row.finished_ms)


@lru_cache
def _inserting(sql: DialectSQL, table: str) -> TextClause:
    # MySQL's IGNORE would also swallow a name that is too long.
    plain = "ON DUPLICATE KEY UPDATE run = run"
    ignore = sql.ignore if sql.ignore.startswith("ON CONFLICT") else plain
    return typed(
        f"INSERT INTO {table} (namespace, task, name, run, kept_ms) "
        f"VALUES (:namespace, :task, :name, :run, :kept_ms) {ignore}"
        f"{' RETURNING run' if sql.returns else ''}"
    )


@lru_cache
def _holding(sql: DialectSQL, table: str) -> TextualSelect:
    # What its transaction began with may be long gone; its row is locked by the INSERT already.
    latest = "" if sql.ignore.startswith("ON CONFLICT") else "FOR UPDATE"
    return typed(
        f"SELECT t.run, t.kept_ms FROM {table} t "
        f"WHERE t.namespace = :namespace AND t.task = :task AND t.name = :name {latest}"
    ).columns(key.c.run, key.c.kept_ms)


@lru_cache
def _taking_over(sql: DialectSQL, table: str) -> TextClause:
    return typed(
        f"UPDATE {table} SET run = :run, kept_ms = :kept_ms WHERE namespace = :namespace "
        "AND task = :task AND name = :name AND run = :before"
    )


@lru_cache
def _run(sql: DialectSQL, table: str) -> TextualSelect:
    return typed(
        f"SELECT t.status, t.finished_ms, {sql.now_ms} AS now_ms FROM {table} t WHERE t.id = :id"
    ).columns(run.c.status, run.c.finished_ms, Column("now_ms", BigInteger))
