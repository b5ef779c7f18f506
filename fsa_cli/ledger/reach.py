"""What a transaction of the app's may do with the ledger's tables.

A session that has the ledger in its database may still be unable to use it: after `SET LOCAL ROLE`,
in a transaction that is read-only, with a ledger that belongs to another user.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, CursorResult, Dialect, TextClause
from sqlalchemy.exc import DBAPIError

from fastapi_sqlalchemy.sessions.connections import libpq_status
from fsa_cli.database.connections import error_code
from fsa_cli.ledger.dialects import typed
from fsa_cli.ledger.location import access_of
from fsa_cli.ledger.store import Ledger

__all__ = ["Asking", "Reach", "execute", "is_untouched", "keeps_snapshot", "probe", "refused"]

T = TypeVar("T")

# The errors for a table that is not there or not for this user, and for a read-only transaction:
# MySQL's (1792; 1290: the server is), where a statement that fails so leaves the transaction as it
# was, and PostgreSQL's, where it ends it.
_REFUSED: set[object] = {1044, 1045, 1049, 1142, 1143, 1146, 1227, 1290, 1792, 1836}
_REFUSED |= {"25006", "3F000", "42501", "42P01"}
_LIBPQ_IDLE = 0
# MariaDB's, by default ON since 11.6; its name in `Connection.info` too.
_SNAPSHOT = "innodb_snapshot_isolation"


class Reach(NamedTuple):
    """What a transaction may do.

    Attributes:
        writes: Whether it may read, insert and update rows of `fsa_run`.
        marks: Whether it may insert into `fsa_effect` of its own database.
        wrote: Whether it has written anything, as far as the database says.
        user, search_path: Its own at this moment.
        keeps_snapshot: Whether it fails where it meets a row that has changed since it began.
    """

    writes: bool
    marks: bool
    wrote: bool
    user: str
    search_path: str
    keeps_snapshot: bool


def probe(ledger: Ledger, asking: Asking, *, has_key: bool = False) -> Reach | None:
    """Ask PostgreSQL, where a statement that is refused would end the transaction; None elsewhere.

    Args:
        has_key: Whether it has to write unique keys too.

    https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-ACCESS
    """
    connection = asking.connection
    if connection.dialect.name != "postgresql":
        return None
    given = {
        "run_schema": ledger.schema or "",
        "effect_schema": ledger.effect_schemas.get(access_of(connection.engine.url), ""),
    }
    return Reach(*json.loads(asking(_probing(has_key), given, _first_value)))


def keeps_snapshot(connection: Connection, reach: Reach | None) -> bool:
    """As the `Reach` says; MariaDB is asked once for each connection.

    https://mariadb.com/docs/server/server-usage/storage-engines/innodb/innodb-system-variables
    """
    if reach is not None:
        return reach.keeps_snapshot
    if connection.dialect.name not in ("mysql", "mariadb"):
        return False
    if _SNAPSHOT not in connection.info:
        asked = connection.exec_driver_sql(f"SHOW VARIABLES LIKE '{_SNAPSHOT}'").first()
        connection.info[_SNAPSHOT] = asked is not None and asked[1] == "ON"
    return bool(connection.info[_SNAPSHOT])


def is_untouched(connection: Connection) -> bool:
    """Whether PostgreSQL was sent nothing yet of its transaction, as its driver has heard.

    What is refused there ends nothing: the driver's rollback leaves it as it was.
    """
    if connection.dialect.name != "postgresql":
        return False
    driver: Any = connection.connection.driver_connection
    if hasattr(driver, "is_in_transaction"):  # asyncpg
        return not driver.is_in_transaction()
    return libpq_status(connection) == _LIBPQ_IDLE


def refused(error: DBAPIError) -> bool:
    """Whether the database says that the transaction may not write this table."""
    return error_code(error) in _REFUSED


def execute(
    connection: Connection, statement: TextClause, given: Mapping[str, Any]
) -> CursorResult[Any]:
    """Execute a statement of `typed` on a connection of the app's, compiled once."""
    return connection.exec_driver_sql(*_for_driver(statement, connection.dialect, given))


class Asking:
    """As `execute`, by one cursor of the driver's, made for the first statement.

    Each commit of a task passes here twice; SQLAlchemy's results take as long as the statements,
    and a cursor half as long. Listeners to `before_cursor_execute` hear nothing of it.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._cursor: Any = None

    def __call__(
        self,
        statement: TextClause,
        given: Mapping[str, Any],
        answer: Callable[[Any], T] = attrgetter("rowcount"),
    ) -> T:
        """What *answer* reads off the cursor.

        Raises:
            DBAPIError: As `execute` does.
        """
        connection = self.connection
        sql, parameters = _for_driver(statement, connection.dialect, given)
        lent = connection.connection
        try:
            if self._cursor is None:
                self._cursor = lent.cursor()
            self._cursor.execute(sql, parameters)
            return answer(self._cursor)
        except BaseException as exc:
            cursor, self._cursor = self._cursor, None
            # As for each statement: a lost connection is noted as one, as is a cancelled task's.
            connection._handle_dbapi_exception(exc, sql, None, cursor, None)

    def close(self) -> None:
        if self._cursor is not None:
            self._cursor.close()


def _first_value(cursor: Any) -> Any:
    return cursor.fetchone()[0]


def _for_driver(
    statement: TextClause, dialect: Dialect, given: Mapping[str, Any]
) -> tuple[str, Any]:
    sql, order = _compiled(statement, dialect)
    return sql, tuple(given[name] for name in order) if order else given


@lru_cache
def _compiled(statement: TextClause, dialect: Dialect) -> tuple[str, Sequence[str]]:
    """The driver's own text, and the order of its parameters where they have no names."""
    compiled = statement.compile(dialect=dialect)
    return str(compiled), compiled.positiontup or ()


# By functions that look into PostgreSQL's caches, and say NULL of what is not there.
# Row level security would make an UPDATE miss the row without an error.
_IN_SCHEMA = """CASE WHEN pg_catalog.has_schema_privilege(
        pg_catalog.to_regnamespace(pg_catalog.quote_ident(:{schema})), 'USAGE')
    THEN pg_catalog.to_regclass(pg_catalog.quote_ident(:{schema}) || '.{table}') END"""
_RUN = _IN_SCHEMA.format(schema="run_schema", table="fsa_run")
_KEY = _IN_SCHEMA.format(schema="run_schema", table="fsa_key")
# Where no one in this process has looked for it, as in an isolated run's: by the search path.
_EFFECT = f"""CASE WHEN :effect_schema = '' THEN pg_catalog.to_regclass('fsa_effect')
    ELSE {_IN_SCHEMA.format(schema="effect_schema", table="fsa_effect")} END"""


def _may(table: str, *privileges: str) -> str:
    each = [f"pg_catalog.has_table_privilege({table}, '{privilege}')" for privilege in privileges]
    return f"COALESCE({' AND '.join(each)} AND NOT pg_catalog.row_security_active({table}), FALSE)"


@lru_cache
def _probing(has_key: bool) -> TextClause:
    """One value, a `Reach` as JSON: to read a row of several costs more than to ask for it."""
    privileges = "SELECT", "INSERT", "UPDATE"
    key = f"AND {_may('key', *privileges)}" if has_key else ""
    return typed(
        f"""
        SELECT CAST(pg_catalog.json_build_array(
            is_writable AND {_may("run", *privileges)} {key},
            is_writable AND {_may("effect", "INSERT")},
            pg_catalog.txid_current_if_assigned() IS NOT NULL,
            current_user,
            pg_catalog.current_setting('search_path'),
            pg_catalog.current_setting('transaction_isolation') ~ '^(repeatable|serializable)'
        ) AS TEXT)
        FROM (
            SELECT pg_catalog.current_setting('transaction_read_only') = 'off',
                {_RUN}, {_EFFECT}{f", {_KEY}" if has_key else ""}
            OFFSET 0 -- otherwise each is looked up wherever it is named
        ) AS t (is_writable, run, effect{", key" if has_key else ""})
        """
    )
