"""The tables of a database: all with their sizes, or one in full."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsa_cli.database.dialects import Measured, dialect_of
from fsa_cli.database.models import mapped_classes
from fsa_cli.exceptions import UsageError, did_you_mean

if TYPE_CHECKING:
    from sqlalchemy import Connection, Inspector
    from sqlalchemy.types import TypeEngine

_COUNTED_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class TableSummary:
    """One table of a database. `name` begins with the schema if that is not the default."""

    name: str
    rows: int | None
    rows_are: str
    """`exact`, `estimated` by the server, or `unknown`."""
    size_bytes: int | None
    """With its indexes; None if the server does not say."""
    indexes: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    type: str
    nullable: bool
    default: str | None
    key: str
    """`primary`, and what it refers to: `countries.code`."""
    comment: str | None


@dataclass(frozen=True)
class Table:
    """One table in full. `constraints` and `indexes` are written as their definitions."""

    name: str
    columns: tuple[Column, ...]
    constraints: tuple[dict[str, Any], ...]
    indexes: tuple[dict[str, Any], ...]
    comment: str | None


def tables(connection: Connection, *, exact: bool = False) -> list[TableSummary]:
    """Every table, the largest first.

    Args:
        exact: Count the rows of large tables too, which reads them whole.
    """
    with _inspector(connection) as inspector:
        found = dialect_of(connection.dialect.name).measured(connection, inspector)
        indexes = {
            schema: inspector.get_multi_indexes(schema=schema)
            for schema in {each.schema for each in found}
        }
    summaries = []
    for each in found:
        counted = exact or each.size_bytes is None or each.size_bytes <= _COUNTED_BYTES
        rows = _count(connection, each) if counted else None
        rows_are = "exact" if rows is not None else "unknown"
        if rows is None and each.estimate is not None:
            rows, rows_are = each.estimate, "estimated"
        names = [index["name"] for index in indexes[each.schema].get((each.schema, each.name), [])]
        summaries.append(
            TableSummary(
                each.label, rows, rows_are, each.size_bytes, tuple(sorted(filter(None, names)))
            )
        )
    return sorted(summaries, key=lambda each: (-(each.size_bytes or 0), each.name))


def table(connection: Connection, name: str) -> Table:
    """The table or view *name*: `orders`, `sales.orders`, or the model's name, `Order`.

    Raises:
        UsageError: There is none; with a did-you-mean.
    """
    with _inspector(connection) as inspector:
        schema, found = _find(inspector, name)
        primary = inspector.get_pk_constraint(found, schema)["constrained_columns"]
        foreign = inspector.get_foreign_keys(found, schema)
        columns = tuple(
            Column(
                name=each["name"],
                type=type_name(each["type"], connection),
                nullable=each["nullable"],
                default=_default(each),
                key=_key(each["name"], primary, foreign),
                comment=each.get("comment"),
            )
            for each in inspector.get_columns(found, schema)
        )
        return Table(
            name=_label(schema, found),
            columns=columns,
            constraints=tuple(_constraints(inspector, found, schema)),
            indexes=tuple(
                {
                    "name": each["name"],
                    "columns": each.get("expressions") or each["column_names"],
                    "unique": bool(each["unique"]),
                }
                for each in inspector.get_indexes(found, schema)
            ),
            comment=_comment(inspector, found, schema),
        )


def sample(connection: Connection, described: Table, limit: int) -> list[dict[str, Any]]:
    """The first *limit* rows that the database gives of a table, in no order."""
    import sqlalchemy

    schema, _, name = described.name.rpartition(".")
    columns: list[Any] = [sqlalchemy.column(each.name) for each in described.columns]
    source = sqlalchemy.table(name, *columns, schema=schema or None)
    rows = connection.execute(sqlalchemy.select(*columns).select_from(source).limit(limit))
    return [dict(row._mapping) for row in rows]


def type_name(kind: TypeEngine[Any], connection: Connection) -> str:
    """A column's type as the database writes it."""
    from sqlalchemy.exc import CompileError

    try:
        return kind.compile(connection.dialect).lower()
    except CompileError:  # SQLAlchemy does not know it
        return "?"


def total_bytes(connection: Connection) -> int | None:
    """The size of the database; None if it does not tell."""
    return dialect_of(connection.dialect.name).total_bytes(connection)


def _count(connection: Connection, table: Measured) -> int | None:
    """How many rows a table has; None if they may not be read."""
    import sqlalchemy
    from sqlalchemy.exc import DBAPIError

    source = sqlalchemy.table(table.name, schema=table.schema)
    counting = sqlalchemy.select(sqlalchemy.func.count()).select_from(source)
    with suppress(DBAPIError), connection.begin_nested():
        return connection.scalar(counting)
    return None


@contextmanager
def _inspector(connection: Connection) -> Iterator[Inspector]:
    from sqlalchemy import inspect
    from sqlalchemy.exc import SAWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAWarning)  # types and indexes that it does not know
        yield inspect(connection)


def _find(inspector: Inspector, name: str) -> tuple[str | None, str]:
    """The schema and the name of a table, a view, or a model's table."""
    known: dict[str, tuple[str | None, str]] = {}
    for schema in dialect_of(inspector.dialect.name).schemas(inspector):
        for each in (*inspector.get_table_names(schema), *inspector.get_view_names(schema)):
            known[_label(schema, each)] = (schema, each)
    if name in known:
        return known[name]
    models = {each.__name__: _table_of(each) for each in mapped_classes()}
    if models.get(name) in known:
        return known[models[name]]
    folded = {label.lower(): where for label, where in known.items()}
    if name.lower() in folded:
        return folded[name.lower()]
    if models.get(name):
        hint = f"the model {name} is not there yet: fsa db create, or fsa db upgrade"
    else:
        otherwise = "fsa db show lists them" if known else "the database is empty"
        hint = did_you_mean(name, [*known, *models]) or otherwise
    raise UsageError(f"there is no table {name!r}", hint=hint)


def _table_of(model: type[Any]) -> str:
    return str(getattr(getattr(model, "__table__", None), "fullname", ""))


def _label(schema: str | None, name: str) -> str:
    return f"{schema}.{name}" if schema else name


def _default(column: Any) -> str | None:
    if column.get("identity"):
        return "identity"
    if column.get("computed"):
        return f"computed: {column['computed']['sqltext']}"
    if column.get("autoincrement") is True:
        return "auto increment"
    return None if column["default"] is None else str(column["default"])


def _key(name: str, primary: Sequence[str], foreign: Sequence[Any]) -> str:
    parts = ["primary"] if name in primary else []
    for each in foreign:
        pairs = zip(each["constrained_columns"], each["referred_columns"], strict=False)
        target = _label(each["referred_schema"], each["referred_table"])
        parts += [f"{target}.{there}" for here, there in pairs if here == name]
    return ", ".join(parts)


def _constraints(inspector: Inspector, name: str, schema: str | None) -> Iterator[dict[str, Any]]:
    primary = inspector.get_pk_constraint(name, schema)
    if primary["constrained_columns"]:
        yield {"kind": "primary", "name": primary["name"], "on": primary["constrained_columns"]}
    for foreign in inspector.get_foreign_keys(name, schema):
        target = _label(foreign["referred_schema"], foreign["referred_table"])
        yield {
            "kind": "foreign",
            "name": foreign["name"],
            "on": foreign["constrained_columns"],
            "refers_to": [f"{target}.{column}" for column in foreign["referred_columns"]],
        }
    for unique in inspector.get_unique_constraints(name, schema):
        yield {"kind": "unique", "name": unique["name"], "on": unique["column_names"]}
    try:
        checks = inspector.get_check_constraints(name, schema)
    except NotImplementedError:
        return
    for check in checks:
        yield {"kind": "check", "name": check["name"], "on": [check["sqltext"]]}


def _comment(inspector: Inspector, name: str, schema: str | None) -> str | None:
    try:
        return inspector.get_table_comment(name, schema)["text"]
    except NotImplementedError:  # SQLite has none
        return None
