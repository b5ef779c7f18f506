"""What DuckDB does differently: no savepoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsa_cli.database.dialects.dialect import DatabaseDialect

if TYPE_CHECKING:
    from sqlalchemy import URL

__all__ = ["DuckDB"]


class DuckDB(DatabaseDialect):
    """https://duckdb.org/docs/stable/sql/statements/transactions: BEGIN, COMMIT and ROLLBACK."""

    name = "duckdb"

    def has_savepoints(self, url: URL) -> bool:
        return False
