"""What a version of the ledger's tables adds to the one before: columns, indexes, tables.

Nothing is ever changed or taken away, and each column has a default. So the processes of a version
and of the one before work side by side while a deploy rolls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect, Table, TextClause, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateColumn, CreateIndex

from fsa_cli.exceptions import LedgerUnusable
from fsa_cli.ledger import tables

__all__ = [
    "VERSION",
    "add_missing",
    "by_hand",
    "check",
    "columns_in",
    "found_in",
    "is_whole",
    "mark",
    "missing_columns",
    "missing_statements",
    "note",
]

#: The version of the tables of this code.
VERSION = 2
#: The oldest version whose processes can work with them.
OLDEST = 1


class Addition(NamedTuple):
    """What a version adds to a table of the version before."""

    version: int
    table: Table
    columns: tuple[str, ...]
    indexes: tuple[str, ...]


_LOCK_LIMITS = {
    "postgresql": "SET LOCAL lock_timeout = '2s'",
    "mysql": "SET SESSION lock_wait_timeout = 2",
    "mariadb": "SET SESSION lock_wait_timeout = 2",
}
_ADDITIONS = (Addition(2, tables.run, ("priority",), ("fsa_run_priority",)),)


def found_in(connection: Connection) -> tuple[dict[str, set[str]], Any]:
    """The columns of each table that exists, and the row that says their version."""
    found = columns_in(connection)
    if not found.get(tables.schema.name, set()).issuperset(tables.schema.columns.keys()):
        return found, None
    return found, connection.execute(select(tables.schema)).one_or_none()


def columns_in(connection: Connection) -> dict[str, set[str]]:
    """The columns of each table that exists."""
    from sqlalchemy import inspect

    inspector = inspect(connection)
    names = [table.name for table in tables.metadata.sorted_tables]
    present = set(inspector.get_table_names()) & set(names)
    return {name: {column["name"] for column in inspector.get_columns(name)} for name in present}


def missing_columns(found: Mapping[str, Set[str]]) -> Iterator[tuple[Table, list[str]]]:
    """The tables that have not all columns, and which they lack.

    Args:
        found: The columns of each table that exists.
    """
    for table in tables.metadata.sorted_tables:
        if table.name not in found:
            continue  # another process may be creating it at this moment
        lacking = [each.name for each in table.columns if each.name not in found[table.name]]
        if lacking:
            yield table, lacking


def is_whole(found: Mapping[str, Set[str]], newest: Any) -> bool:
    """Whether nothing has to be created; the arguments as in `missing_columns` and `check`."""
    if newest is None or newest.version < VERSION:
        return False
    every = {table.name for table in tables.metadata.sorted_tables}
    return every <= found.keys() and not any(missing_columns(found))


def check(found: Mapping[str, Set[str]], newest: Any, where: str) -> None:
    """Check that this version can work with the tables, or add to them what they lack.

    Args:
        found: The columns of each table that exists.
        newest: The row of `fsa_schema`; None: there is none yet.

    Raises:
        LedgerUnusable: They are of a version that this code does not know, or of none.
    """
    if newest is not None and newest.oldest > VERSION:
        raise LedgerUnusable(
            f"the ledger's tables are of version {newest.version}, and this fsa knows {VERSION}",
            details=[where],
            hint="install here the version of fsa that the other processes have",
        )
    for table, lacking in missing_columns(found):
        added = {name for each in _ADDITIONS if each.table is table for name in each.columns}
        if not added.issuperset(lacking):
            raise LedgerUnusable(
                f"the ledger's table {table.name} has no column {', '.join(sorted(lacking))}",
                details=[where, "it is another application's, or was changed: no fsa made it so"],
                hint='[tool.fsa] ledger_url = "postgresql://...?options=-csearch_path%3Dops", with '
                "a schema or a database for the ledger alone",
            )


def add_missing(connection: Connection, found: Mapping[str, Set[str]]) -> None:
    """Add to the tables what versions after theirs have added, in one transaction for each.

    Where it waits for a transaction of the app's, others must not wait behind it for long.
    """
    for statements in missing_statements(found, connection.dialect):
        if (limit := _LOCK_LIMITS.get(connection.dialect.name)) is not None:
            connection.exec_driver_sql(limit)
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def missing_statements(
    found: Mapping[str, Set[str]], dialect: Dialect
) -> Iterator[list[TextClause]]:
    """For each table what adds to it what versions after its own have added; *found* as above."""
    for table, lacking in missing_columns(found):
        for each in _ADDITIONS:
            if each.table is table and set(each.columns) <= set(lacking):
                yield list(_statements(each, dialect))


def by_hand(dialect: Dialect) -> Iterator[str]:
    """The SQL that follows that of the tables, for a person who may: the row of their version, and
    as comments what tables of an older version lack."""
    yield f"INSERT INTO {tables.schema.name} (id, version, oldest) VALUES (1, {VERSION}, {OLDEST});"
    for each in _ADDITIONS:
        yield f"-- where {each.table.name} is of version {each.version - 1}, in place of its own:"
        for statement in _statements(each, dialect):
            yield f"-- {statement.text};"


def mark(connection: Connection) -> None:
    """Write the version of the tables, unless a newer one is there, and commit."""
    try:
        note(connection)
    except IntegrityError:  # another process has written it at this moment
        connection.rollback()
    else:
        connection.commit()


def note(connection: Connection) -> None:
    """As `mark`, in the caller's transaction."""
    row = connection.execute(select(tables.schema.c.version)).one_or_none()
    if row is None:
        connection.execute(insert(tables.schema).values(id=1, version=VERSION, oldest=OLDEST))
    elif row.version < VERSION:
        older = tables.schema.c.version < VERSION
        connection.execute(
            update(tables.schema).where(older).values(version=VERSION, oldest=OLDEST)
        )


def _statements(addition: Addition, dialect: Dialect) -> Iterator[TextClause]:
    table = addition.table
    changes = [
        f"ADD COLUMN {str(CreateColumn(table.c[each]).compile(dialect=dialect)).strip()}"
        for each in addition.columns
    ]
    indexes = [e for e in tables.indexes_of(table, dialect) if e.name in addition.indexes]
    if dialect.name in ("mysql", "mariadb"):
        # There each statement is a transaction of its own: both or neither.
        for each in indexes:
            changes.append(f"ADD INDEX {each.name} ({', '.join(c.name for c in each.columns)})")
        yield text(f"ALTER TABLE {table.name} {', '.join(changes)}")
        return
    for change in changes:
        yield text(f"ALTER TABLE {table.name} {change}")
    for each in indexes:
        yield text(str(CreateIndex(each).compile(dialect=dialect)))
