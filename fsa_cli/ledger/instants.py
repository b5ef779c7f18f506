"""Which instants of a schedule have a row."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import lru_cache

from sqlalchemy import Connection, TextClause

from fsa_cli.ledger.dialects import DialectSQL, typed
from fsa_cli.ledger.records import SCHEDULED, Due
from fsa_cli.ledger.store import Ledger

__all__ = ["instants_with_row", "with_row"]


def instants_with_row(
    ledger: Ledger, connection: Connection, keys: Collection[tuple[str, int]]
) -> set[tuple[str, int]]:
    """Which of these instants, each a task and its milliseconds, have a row."""
    asked = json.dumps([{"task": task, "at": scheduled_ms} for task, scheduled_ms in keys])
    given = {"namespace": ledger.namespace, "rows": asked}
    rows = connection.execute(_looking(ledger.sql), given)
    return {(row.task, row.scheduled_ms) for row in rows}


def with_row(ledger: Ledger, connection: Connection, due: Collection[Due]) -> set[tuple[str, int]]:
    """Which of these instants have a row, be it under a name that the task had before."""
    found = instants_with_row(ledger, connection, [each.key for each in due])
    before = {(name, each.scheduled_ms): each.key for each in due for name in each.before}
    if before:
        found |= {before[each] for each in instants_with_row(ledger, connection, before)}
    return found


@lru_cache
def _looking(sql: DialectSQL) -> TextClause:
    # A subquery that counts, and no join: each is looked up in the UNIQUE key, whatever the
    # database believes of the table. On a new one PostgreSQL and SQLite chose to read all of it.
    return typed(
        f"""
        SELECT v.task AS task, v.at AS scheduled_ms
        FROM {sql.from_rows({"task": "text", "at": "bigint"})}
        WHERE (
            SELECT COUNT(*) FROM fsa_run t
            WHERE t.namespace = :namespace AND t.task = v.task AND t.scheduled_ms = v.at
                AND t.slot = '{SCHEDULED}'
        ) > 0
        """
    )
