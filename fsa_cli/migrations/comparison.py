"""Alembic's comparison of the models with a database, as `fsa db check` shows it."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from alembic.autogenerate import produce_migrations
from alembic.operations import Operations, ops
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import CompileError, SAWarning

from fsa_cli.database.schema_diff import Difference
from fsa_cli.migrations.own_tables import is_own

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData

__all__ = ["differences", "options", "repair", "unwarned"]

_INDEXES = (ops.CreateIndexOp, ops.DropIndexOp)
_IN_ORDER = re.compile(r"\s+(?:ASC|DESC)?(?:\s+NULLS\s+(?:FIRST|LAST))?\s*\Z", re.IGNORECASE)


def differences(connection: Connection, wanted: Sequence[MetaData]) -> list[Difference]:
    """Types, nullability, indexes and constraints that differ, in tables that are on both sides.

    Not what keeps no model from working: tables, columns and indexes that only the database has,
    defaults, comments.
    """
    operations = list(_operations(connection, wanted))
    missing = {_table(each) for each in operations if isinstance(each, ops.CreateTableOp)}
    return [
        found
        for each in operations
        if _table(each) not in missing  # which has its indexes with it
        for found in _differences(each, connection)
    ]


def repair(connection: Connection, wanted: Sequence[MetaData]) -> str:
    """The SQL that would give the database what the models have. It drops no table or column."""
    written = StringIO()
    context = MigrationContext.configure(
        dialect=connection.dialect, opts={"as_sql": True, "output_buffer": written}
    )
    operations = Operations(context)
    for each in _operations(connection, wanted):
        try:
            if isinstance(each, ops.AlterColumnOp) and connection.dialect.name == "sqlite":
                raise NotImplementedError  # Alembic writes what SQLite does not understand
            operations.invoke(each)
        except (NotImplementedError, CompileError):
            for found in _differences(each, connection):
                place = ".".join(filter(None, (found.table, found.column)))
                written.write(
                    f"-- {place}: {found.what}, {found.detail}: {connection.dialect.name} makes the"
                    " table anew for it, as a migration does with op.batch_alter_table\n\n"
                )
    return written.getvalue()


def options(wanted: Sequence[MetaData], connection: Connection) -> dict[str, Any]:
    """What `context.configure` is given where fsa decides what is compared: the models' schemas.

    `fsa db check` and a migration that `--autogenerate` writes without an env.py of the project's
    see the same.
    """
    schemas = {table.schema for metadata in wanted for table in metadata.tables.values()}
    if connection.dialect.default_schema_name in schemas:
        schemas.add(None)  # as it is reflected

    def include_name(name: str | None, kind: str, parents: Any) -> bool:
        if kind == "schema":
            return name in schemas
        return kind != "table" or not is_own(name)

    def include_object(
        found: Any, name: str | None, kind: str, reflected: bool, other: Any
    ) -> bool:
        # PostgreSQL says itself in which order an index has its columns.
        is_told = kind != "index" or reflected or connection.dialect.name == "postgresql"
        return is_told or other is None or not _has_same_columns(found, other)

    return {
        "compare_type": _compare_type,
        "include_schemas": not schemas <= {None},
        "include_name": include_name,
        "include_object": include_object,
    }


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Without what SQLAlchemy and Alembic warn of: types and indexes that they do not compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAWarning)
        warnings.filterwarnings("ignore", module="alembic|sqlalchemy")
        yield


def _compare_type(
    context: MigrationContext,
    inspected_column: Any,
    metadata_column: Any,
    inspected_type: Any,
    metadata_type: Any,
) -> bool | None:
    """For Alembic: False where a type is what the database makes of the model's; None: it looks."""
    dialect = context.dialect
    if dialect.name not in _made_of:
        return None
    try:
        there = str(inspected_type.compile(dialect=dialect)).upper()
        here = str(metadata_type.compile(dialect=dialect)).upper()
    except (CompileError, NotImplementedError):
        return None
    made = _made_of[dialect.name](here, dialect)
    return False if there in (here, made) else None


def _has_same_columns(model: Any, inspected: Any) -> bool:
    """Whether an index has the columns of the model's, where some of these are SQL: `desc("at")`.

    The database says nothing of their order.
    """
    columns = [_IN_ORDER.sub("", str(each)) for each in model.expressions]
    names = [each.rpartition(".")[2].strip('"`').lower() for each in columns]
    there = [column.name.lower() for column in inspected.columns]
    return names == there and bool(model.unique) == bool(inspected.unique)


def _made_by_mysql(written: str, dialect: Any) -> str:
    """`FLOAT(p)` and texts and blobs of a length are names for others.

    https://dev.mysql.com/doc/refman/8.4/en/floating-point-types.html
    https://dev.mysql.com/doc/refman/8.4/en/string-type-syntax.html
    """
    found = re.fullmatch(r"(FLOAT|TEXT|BLOB)\((\d+)\)(.*)", written)
    if found is None:
        return written
    kind, size, rest = found[1], int(found[2]), found[3]
    if kind == "FLOAT":
        return f"{'FLOAT' if size <= 24 else 'DOUBLE'}{rest}"
    needed = size * (4 if kind == "TEXT" else 1)  # bytes, of characters of utf8mb4
    return next(name for most, name in _LENGTHS if needed <= most) + kind + rest


def _made_by_postgresql(written: str, dialect: Any) -> str:
    """https://www.postgresql.org/docs/current/datatype-numeric.html#DATATYPE-FLOAT"""
    found = re.fullmatch(r"FLOAT\((\d+)\)(.*)", written)
    if found is None:
        return written
    return f"{'REAL' if int(found[1]) <= 24 else 'DOUBLE PRECISION'}{found[2]}"


def _made_by_sqlite(written: str, dialect: Any) -> str:
    """A type that it has no name for is read back as its affinity's."""
    return str(dialect._resolve_type_affinity(written).compile(dialect=dialect)).upper()


_LENGTHS = (2**8 - 1, "TINY"), (2**16 - 1, ""), (2**24 - 1, "MEDIUM"), (2**64, "LONG")
_made_of: dict[str, Callable[[str, Any], str]] = {
    "mysql": _made_by_mysql,
    "mariadb": _made_by_mysql,
    "postgresql": _made_by_postgresql,
    "sqlite": _made_by_sqlite,
}


def _operations(
    connection: Connection, wanted: Sequence[MetaData]
) -> Iterator[ops.MigrateOperation]:
    """Alembic's operations from the database to the models, without those that are not needed."""
    context = MigrationContext.configure(
        connection, opts={**options(wanted, connection), "compare_server_default": False}
    )
    with unwarned():
        script = produce_migrations(context, list(wanted))  # type: ignore[arg-type]
    assert script.upgrade_ops is not None
    for each in _flat(script.upgrade_ops.ops):
        if _is_needed(each):
            yield each


def _flat(operations: Iterable[Any]) -> Iterator[Any]:
    for each in operations:
        if isinstance(each, ops.OpContainer):
            yield from _flat(each.ops)
        else:
            yield each


def _is_needed(each: Any) -> bool:
    if isinstance(each, ops.AlterColumnOp):
        each.modify_comment = each.modify_server_default = False
        each.kw = {name: value for name, value in each.kw.items() if name[:7] != "modify_"}
        return each.modify_type is not None or each.modify_nullable is not None
    if isinstance(each, ops.DropIndexOp):
        return bool(getattr(each.reverse(), "unique", False))
    return isinstance(
        each,
        ops.CreateTableOp
        | ops.AddColumnOp
        | ops.CreateIndexOp
        | ops.AddConstraintOp
        | ops.DropConstraintOp,
    )


def _differences(each: Any, connection: Connection) -> Iterator[Difference]:
    """None for a table or a column: `schema_diff` tells of these."""
    if isinstance(each, ops.AlterColumnOp):
        table = _name(each.table_name, each.schema)
        if each.modify_type is not None:
            there, here = (
                _type(kind, connection) for kind in (each.existing_type, each.modify_type)
            )
            yield Difference("other type", table, each.column_name, f"{there}, not {here}")
        if each.modify_nullable is not None:
            in_order = ("model", "database") if each.modify_nullable else ("database", "model")
            detail = "may be null in the {}, not in the {}".format(*in_order)
            yield Difference("other nullability", table, each.column_name, detail)
    if isinstance(each, _INDEXES):
        is_missing = isinstance(each, ops.CreateIndexOp)
        index = each.to_index()
        columns = ", ".join(str(getattr(part, "name", part)) for part in index.expressions)
        kind = "unique index" if index.unique else "index"
        yield Difference(
            f"{'missing' if is_missing else 'unknown'} {kind}",
            _name(each.table_name, each.schema),
            None,
            f"{each.index_name} ({columns})",
        )
    if isinstance(each, ops.AddConstraintOp | ops.DropConstraintOp):
        constraint = each.to_constraint()
        columns = ", ".join(column.name for column in getattr(constraint, "columns", ()))
        kind = type(constraint).__name__.removesuffix("Constraint")
        words = {"ForeignKey": "foreign key", "PrimaryKey": "primary key"}
        named = f"{constraint.name} ({columns})" if constraint.name else f"({columns})"
        yield Difference(
            f"{'missing' if isinstance(each, ops.AddConstraintOp) else 'unknown'}"
            f" {words.get(kind, kind.lower())}",
            constraint.table.fullname,
            None,
            named,
        )


def _type(kind: Any, connection: Connection) -> str:
    try:
        return str(kind.compile(dialect=connection.dialect)).lower()
    except CompileError:
        return str(kind).lower()


def _table(each: Any) -> str:
    table = getattr(each, "table_name", None) or getattr(each, "source_table", None)
    schema = getattr(each, "schema", None) or getattr(each, "kw", {}).get("source_schema")
    return _name(table, schema)


def _name(table: str | None, schema: str | None) -> str:
    return f"{schema}.{table}" if schema else str(table)
