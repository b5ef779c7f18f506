"""What a transaction of the app's may do with the ledger's tables.

A session that has the ledger in its database may still be unable to use it: after `SET LOCAL ROLE`,
in a transaction that is read-only, with a ledger that belongs to another user.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, CursorResult, Dialect, TextClause
from sqlalchemy.exc import DBAPIError

from fsa_cli.ledger.dialects import typed
from fsa_cli.ledger.location import access_of
from fsa_cli.ledger.store import Ledger

__all__ = ["Reach", "execute", "probe", "refused"]

# MySQL's errors for a table that is not there or not for this user, and for a read-only transaction
# (1792; 1290: the server is). A statement that fails so leaves the transaction as it was.
_REFUSED = {1044, 1045, 1049, 1142, 1143, 1146, 1227, 1290, 1792, 1836}


class Reach(NamedTuple):
    """What a transaction may do.

    Attributes:
        writes: Whether it may read, insert and update rows of `fsa_run`.
        marks: Whether it may insert into `fsa_effect` of its own database.
        wrote: Whether it has written anything, as far as the database says.
        user, search_path: Its own at this moment.
    """

    writes: bool
    marks: bool
    wrote: bool
    user: str
    search_path: str


def probe(ledger: Ledger, connection: Connection, *, has_key: bool = False) -> Reach | None:
    """Ask PostgreSQL, where a statement that is refused would end the transaction; None elsewhere.

    Args:
        has_key: Whether it has to write unique keys too.

    https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-ACCESS
    """
    if connection.dialect.name != "postgresql":
        return None
    given = {
        "run_schema": ledger.schema or "",
        "effect_schema": ledger.effect_schemas.get(access_of(connection.engine.url), ""),
    }
    answer = execute(connection, _probing(has_key), given).scalar_one()
    return Reach(*json.loads(answer))


def refused(error: DBAPIError) -> bool:
    """Whether MySQL or MariaDB says that the transaction may not write this table."""
    arguments: Any = getattr(error.orig, "args", ())
    return bool(arguments) and arguments[0] in _REFUSED


def execute(
    connection: Connection, statement: TextClause, given: Mapping[str, str | None]
) -> CursorResult[Any]:
    """Execute a statement of `typed` on a connection of the app's, compiled once."""
    sql, order = _compiled(statement, connection.dialect)
    return connection.exec_driver_sql(sql, tuple(given[n] for n in order) if order else given)


@lru_cache
def _compiled(statement: TextClause, dialect: Dialect) -> tuple[str, Sequence[str]]:
    """The driver's own text, and the order of its parameters where they have no names."""
    compiled = statement.compile(dialect=dialect)
    return str(compiled), compiled.positiontup or ()


# By the catalog, which every role may read, and without a name that is looked up on the search
# path. Row level security would make an UPDATE miss the row without an error.
_PRIVILEGE = "pg_catalog.has_table_privilege(c.oid, '{}')"
_TABLE = """
    SELECT 1 FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = '{table}' AND {place}
        AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
        AND NOT pg_catalog.row_security_active(c.oid) AND {privileges}
    """
_RUN = _TABLE.format(
    table="fsa_run",
    place="n.nspname = :run_schema",
    privileges=" AND ".join(_PRIVILEGE.format(each) for each in ("SELECT", "INSERT", "UPDATE")),
)
_EFFECT = _TABLE.format(
    table="fsa_effect",
    # Where no one in this process has looked for it, as in an isolated run's: by the search path.
    place="(n.nspname = :effect_schema"
    " OR :effect_schema = '' AND c.oid = pg_catalog.to_regclass('fsa_effect'))",
    privileges=_PRIVILEGE.format("INSERT"),
)
_KEY = _TABLE.format(
    table="fsa_key",
    place="n.nspname = :run_schema",
    privileges=" AND ".join(_PRIVILEGE.format(each) for each in ("SELECT", "INSERT", "UPDATE")),
)


@lru_cache
def _probing(has_key: bool) -> TextClause:
    """One value, a `Reach` as JSON: to read a row of several costs more than to ask for it."""
    return typed(
        f"""
        SELECT CAST(pg_catalog.json_build_array(
            w.is_writable AND EXISTS ({_RUN}) {f"AND EXISTS ({_KEY})" if has_key else ""},
            w.is_writable AND EXISTS ({_EFFECT}),
            pg_catalog.txid_current_if_assigned() IS NOT NULL,
            current_user,
            pg_catalog.current_setting('search_path')
        ) AS TEXT)
        FROM (SELECT pg_catalog.current_setting('transaction_read_only') = 'off') AS w (is_writable)
        """
    )
