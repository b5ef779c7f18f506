"""The differences between the models' tables and those of a database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsa_cli.database.catalog import type_name
from fsa_cli.database.models import mapped_classes

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData, Table

    Columns = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """Something that the database lacks, or that stops the models from inserting."""

    what: str
    """`missing table`, `missing column`, or `unknown column` that an insert has to fill."""
    table: str
    column: str | None
    detail: str
    """The column's type, the model."""


def differences(connection: Connection, wanted: Sequence[MetaData]) -> list[Difference]:
    """The differences for which the database cannot serve the models: missing tables, columns.

    A table without a model, or a column that may be left out, is none.
    """
    models = {
        each.__table__: f"{each.__module__}.{each.__qualname__}"
        for each in mapped_classes()
        if getattr(each, "__table__", None) is not None
    }
    there = _columns(connection, wanted)
    found: list[Difference] = []
    for table in _tables(wanted):
        columns = there.get(_key(table))
        if columns is None:
            found.append(Difference("missing table", table.fullname, None, models.get(table, "")))
            continue
        expected = {column.name.lower(): column for column in table.columns}
        for name, column in expected.items():
            if name not in columns:
                detail = type_name(column.type, connection)
                found.append(Difference("missing column", table.fullname, column.name, detail))
        for name, reflected in columns.items():
            if name not in expected and _must_be_given(reflected):
                detail = f"{type_name(reflected['type'], connection)}, not null, no default"
                found.append(
                    Difference("unknown column", table.fullname, reflected["name"], detail)
                )
    return found


def missing(connection: Connection, wanted: Sequence[MetaData]) -> list[Table]:
    """The models' tables that the database lacks, in an order in which they can be created."""
    there = _columns(connection, wanted)
    return [table for table in _tables(wanted) if _key(table) not in there]


def create(connection: Connection, tables: Sequence[Table]) -> None:
    """Create *tables*, with their indexes and types, and commit."""
    for metadata in dict.fromkeys(table.metadata for table in tables):
        own = [table for table in tables if table.metadata is metadata]
        metadata.create_all(connection, tables=own)
    connection.commit()


def _tables(wanted: Sequence[MetaData]) -> Iterator[Table]:
    import warnings

    from sqlalchemy.exc import SAWarning

    for metadata in wanted:
        with warnings.catch_warnings():
            # Of tables in a cycle of foreign keys: they are created without, and altered then.
            warnings.simplefilter("ignore", SAWarning)
            tables = metadata.sorted_tables
        yield from tables


def _key(table: Table) -> tuple[str | None, str]:
    return table.schema, table.name.lower()


def _columns(
    connection: Connection, wanted: Sequence[MetaData]
) -> dict[tuple[str | None, str], Columns]:
    """The columns of each table and view, by lower-case names: servers differ in how they fold."""
    import warnings

    from sqlalchemy import inspect
    from sqlalchemy.engine.reflection import ObjectKind
    from sqlalchemy.exc import SAWarning

    inspector = inspect(connection)
    found: dict[tuple[str | None, str], Columns] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAWarning)  # types that it does not know
        for schema in {table.schema for table in _tables(wanted)}:
            for (_, name), columns in inspector.get_multi_columns(
                schema=schema, kind=ObjectKind.ANY
            ).items():
                found[schema, name.lower()] = {each["name"].lower(): each for each in columns}
    return found


def _must_be_given(column: Any) -> bool:
    fills_itself = (
        column["default"] is not None
        or column.get("identity")
        or column.get("computed")
        or column.get("autoincrement") is True
    )
    return not column["nullable"] and not fills_itself
