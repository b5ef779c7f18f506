"""The one INSERT of rows of `fsa_run`, whoever asks for them."""

from __future__ import annotations

from collections.abc import Mapping

from fsa_cli.ledger.dialects import DialectSQL

__all__ = ["insert_runs"]


def insert_runs(
    sql: DialectSQL, values: Mapping[str, str], *, source: str = "", table: str = "fsa_run"
) -> str:
    """An INSERT of runs.

    Args:
        values: The SQL of each column. What is not given is the first attempt of a run without
            commits, queued now; every other column is NULL.
        source: FROM and what follows it; empty: one row.
        table: Its name, qualified where the session is not the ledger's own.
    """
    columns = {"attempt": "1", "commits": "0", "queued_ms": sql.now_ms, **values}
    given = ", ".join(columns.values())
    rows = f"SELECT {given} {source}" if source else f"VALUES ({given})"
    return f"INSERT INTO {table} ({', '.join(columns)}) {rows}"
