"""The sizes of a database's tables, as each server tells them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Connection, Inspector

_POSTGRESQL = """
    SELECT n.nspname, c.relname,
        CASE WHEN c.relkind = 'r' THEN c.reltuples::bigint END,
        CASE WHEN c.relkind = 'r' THEN pg_total_relation_size(c.oid)
             ELSE (SELECT sum(pg_total_relation_size(p.relid)) FROM pg_partition_tree(c.oid) p)
        END::bigint,
        n.nspname = current_schema()
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
        AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
"""
_MYSQL = """
    SELECT table_name, table_rows, data_length + index_length
    FROM information_schema.tables
    WHERE table_schema = database() AND table_type NOT IN ('VIEW', 'SYSTEM VIEW', 'SEQUENCE')
"""
_SQLITE = (
    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
)
_SQLITE_SIZES = """
    SELECT m.tbl_name, sum(s.pgsize) FROM dbstat s JOIN sqlite_master m ON m.name = s.name
    GROUP BY m.tbl_name
"""
_TOTALS = {
    "postgresql": "SELECT pg_database_size(current_database())",
    "mysql": "SELECT sum(data_length + index_length) FROM information_schema.tables"
    " WHERE table_schema = database()",
    "sqlite": "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
}
# SQLite reads the whole file to say how much of it each table has.
_SQLITE_MEASURED_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Measured:
    """A table with its server's own figures."""

    schema: str | None
    """None is the default schema."""
    name: str
    estimate: int | None
    size_bytes: int | None

    @property
    def label(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


def measured(connection: Connection, inspector: Inspector) -> list[Measured]:
    """Every table, with the figures that its server has without reading it."""
    match kind(connection):
        case "postgresql":
            return [
                Measured(
                    None if default else schema,
                    name,
                    estimate if estimate is not None and estimate >= 0 else None,
                    size or 0,
                )
                for schema, name, estimate, size, default in _rows(connection, _POSTGRESQL)
            ]
        case "mysql":
            return [
                Measured(None, name, estimate, None if size is None else int(size))
                for name, estimate, size in _rows(connection, _MYSQL)
            ]
        case "sqlite":
            by_table = _sqlite_sizes(connection)
            return [
                Measured(None, name, None, by_table.get(name))
                for (name,) in _rows(connection, _SQLITE)
            ]
    return [Measured(None, name, None, None) for name in inspector.get_table_names()]


def total_bytes(connection: Connection) -> int | None:
    """The size of the database; None for a dialect that is not known."""
    statement = _TOTALS.get(kind(connection))
    value = connection.exec_driver_sql(statement).scalar() if statement else None
    return None if value is None else int(value)


def count(connection: Connection, table: Measured) -> int | None:
    """How many rows a table has; None if they may not be read."""
    import sqlalchemy
    from sqlalchemy.exc import DBAPIError

    source = sqlalchemy.table(table.name, schema=table.schema)
    counting = sqlalchemy.select(sqlalchemy.func.count()).select_from(source)
    with contextlib.suppress(DBAPIError), connection.begin_nested():
        return connection.scalar(counting)
    return None


def schemas(inspector: Inspector) -> list[str | None]:
    """The schemas that may hold the user's tables; None is the default one."""
    if inspector.dialect.name != "postgresql":
        return [None]
    default = inspector.default_schema_name
    own = [name for name in inspector.get_schema_names() if name != "information_schema"]
    return [None, *(name for name in own if name != default)]


def kind(connection: Connection) -> str:
    """`postgresql`, `mysql` (MariaDB too), `sqlite`, or another dialect's name."""
    name = connection.dialect.name
    return "mysql" if name == "mariadb" else name


def _rows(connection: Connection, statement: str) -> Sequence[Any]:
    return connection.execution_options(no_parameters=True).exec_driver_sql(statement).all()


def _sqlite_sizes(connection: Connection) -> dict[str, int]:
    from sqlalchemy.exc import OperationalError

    if (total_bytes(connection) or 0) <= _SQLITE_MEASURED_BYTES:
        with contextlib.suppress(OperationalError):  # built without dbstat
            return dict(_rows(connection, _SQLITE_SIZES))
    return {}
