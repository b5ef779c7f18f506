"""What a database does differently: one file for each, and `dialect_of`."""

from fsa_cli.database.dialects.dialect import (
    Blocker,
    Client,
    DatabaseDialect,
    Measured,
    Server,
    ServerSession,
)
from fsa_cli.database.dialects.duckdb import DuckDB
from fsa_cli.database.dialects.mysql import MySQL
from fsa_cli.database.dialects.postgresql import PostgreSQL
from fsa_cli.database.dialects.sqlite import SQLite

__all__ = [
    "Blocker",
    "Client",
    "DatabaseDialect",
    "Measured",
    "Server",
    "ServerSession",
    "dialect_of",
]

_MYSQL = MySQL()
_KNOWN = {
    "postgresql": PostgreSQL(),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "sqlite": SQLite(),
    "duckdb": DuckDB(),
}
_OTHER = DatabaseDialect()


def dialect_of(name: str) -> DatabaseDialect:
    """The dialect of that name in SQLAlchemy; for an unknown one what holds for all."""
    return _KNOWN.get(name, _OTHER)
