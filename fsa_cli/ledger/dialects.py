"""The SQL and the connection settings of the ledger in which PostgreSQL, MySQL, MariaDB and SQLite
differ. What differs in the database of an app is in `fsa_cli.database.dialects`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, Dialect, TextClause, bindparam, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.types import String, TypeEngine

from fsa_cli.database.connections import error_code

__all__ = [
    "IDLE_S",
    "LOCK_S",
    "STATEMENT_S",
    "SUPPORTED",
    "WAIT_S",
    "DialectSQL",
    "begin",
    "dialect_sql",
    "execute_rows",
    "holds_ledger",
    "insert_rows",
    "is_lock_wait",
    "is_taken",
    "joining",
    "prepare",
    "refuses_row",
    "transient",
    "typed",
]

#: How long a statement of the ledger's may take. A claim takes a millisecond.
STATEMENT_S = 15
#: How long one of several statements waits for another transaction's row. Less than that, or
#: PostgreSQL would say that it took too long, and not why.
WAIT_S = STATEMENT_S - 1
#: How long a transaction of the ledger's may wait for its next statement before the server ends it:
#: its process is frozen or cut off, and what it has locked others wait for.
IDLE_S = 4
#: How long a claim waits for another transaction's row, and any statement on MySQL and MariaDB.
LOCK_S = 2
_ROWS = 1000

_POSTGRESQL_AGAIN = {
    "25P03",
    "40001",
    "40P01",
    "55P03",
    "57014",
    "57P01",
    "57P02",
    "57P03",
    "53300",
}
_POSTGRESQL_TAKEN = "23505"
# Data, constraints, WITH CHECK OPTION, what a trigger raises.
_POSTGRESQL_ROW = ("22", "23", "44", "P0")
_MYSQL_TAKEN = 1062
_MYSQL_ROW = {1048, 1264, 1265, 1292, 1364, 1366, 1406, 1452, 1644, 3819, 4025}
_MYSQL_LOCK_WAIT = 1205
_MYSQL_AGAIN = {1020, 1040, 1053, 1205, 1213, 1317, 1927, 1969, 2006, 2013, 3024}


@dataclass(frozen=True, eq=False)  # of each kind there is one, by which statements are cached
class DialectSQL:
    """The SQL of one kind of database.

    Attributes:
        now_ms: The database's clock, as it is at this moment and not at the transaction's begin.
        rows: The FROM item of the JSON array in `:rows`.
        cell: The SELECT item of one column of such a row, with `{name}`, `{kind}` or `{long}`.
        update: An UPDATE of many rows, from the JSON array in `:rows`; None: row by row.
        ignore: The clause with which an INSERT leaves an existing row alone.
        returns: Whether an INSERT can return the rows that it inserts.
        skips: Whether a recursive query finds the next value of an index without reading the rows
            between, which MySQL and MariaDB do for a constant only.
        limits: A SELECT that bounds the transaction in time, as its first statement; None: the
            connection is bounded.
        bounded_locks: What is joined to the rows of a statement so that it waits no longer than
            `LOCK_S` for another transaction's row: a single statement has no SET LOCAL before it.
        readable: The condition that a run's id is what we would write: a row that no UPDATE finds
            again would be tried each time in the place of one that can start.
        brief_waits: Statements after which a transaction of the app's waits for another's row for
            `LOCK_S`; MySQL's and MariaDB's hold for the connection.
        bound: An expression after which the transaction may be idle for `IDLE_S`; empty: the
            connection is bounded.
        share_lock: The end of a SELECT whose rows nobody may change until the transaction's end.
        frees_locks_apart: Whether a run's lock is freed after its transaction and not in it. An
            INSERT with the same lock holds the entry of `fsa_run_lock` and waits for the row; the
            task's transaction would hold the row and wait for the entry, and be rolled back.
        schema_of_runs, schema_of_effects: A SELECT of the schema in which the table is.
    """

    now_ms: str
    rows: str
    cell: str
    update: str | None
    ignore: str
    returns: bool
    skips: bool = True
    limits: str | None = None
    bounded_locks: str = ""
    brief_waits: tuple[str, ...] = ()
    readable: str = ""
    bound: str = ""
    share_lock: str = "LOCK IN SHARE MODE"
    frees_locks_apart: bool = False
    schema_of_runs: str = "SELECT NULL"
    schema_of_effects: str = "SELECT NULL"

    def from_rows(self, columns: Mapping[str, str]) -> str:
        """FROM of a SELECT over the JSON array of objects in `:rows`; each row is called `v`.

        Args:
            columns: Each column's name, and `text` or `bigint`.
        """
        kinds = {"text": "TEXT", "bigint": "BIGINT"}
        # Else those of the database, which may hold no such text, or compare it with no column.
        utf8 = "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
        long = {"text": f"LONGTEXT {utf8}", "bigint": "BIGINT"}
        cells = ", ".join(
            self.cell.format(name=name, kind=kinds[kind], long=long[kind])
            for name, kind in columns.items()
        )
        return self.rows.format(cells=cells)

    def update_from_rows(
        self,
        table: str,
        columns: Mapping[str, str],
        key: tuple[str, str],
        values: str,
        where: str,
        *,
        joined: str = "",
        bounds_locks: bool = False,
    ) -> TextClause:
        """An UPDATE for `execute_rows`: `t` is a row of *table*, `v.name` is given for it.

        Args:
            key: A column of *table* that has an index, and the name of its value.
            values: `name = ...` for each column.
            where: A further condition.
            joined: As in `joining`.
            bounds_locks: Whether it waits for other transactions' rows no longer than `LOCK_S`.
        """
        where = f"t.{key[0]} = v.{key[1]} AND {where}"
        if self.update is not None:
            rows = self.from_rows(columns) + (self.bounded_locks if bounds_locks else "")
            update = self.update.format(
                table=table, rows=rows, values=values, where=where, column=key[0], given=key[1]
            )
            if joined:
                update += " RETURNING t.id, t.queue"
            return typed(joining(update, joined))
        return text(re.sub(r"\bv\.", ":", f"UPDATE {table} AS t SET {values} WHERE {where}"))


def insert_rows(
    connection: Connection,
    sql: DialectSQL,
    table: str,
    columns: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """INSERT of many rows, a thousand in a statement: ten thousand one by one take seconds.

    Args:
        columns: As in `DialectSQL.from_rows`.
    """
    names = ", ".join(columns)
    values = ", ".join(f"v.{name}" for name in columns)
    statement = typed(
        f"INSERT INTO {table} ({names}) SELECT {values} FROM {sql.from_rows(columns)}"
    )
    for start in range(0, len(rows), _ROWS):
        connection.execute(statement, {"rows": json.dumps(rows[start : start + _ROWS])})


def execute_rows(
    connection: Connection,
    sql: DialectSQL,
    statement: TextClause,
    rows: Sequence[Mapping[str, Any]],
) -> int:
    """How many rows a statement of `DialectSQL.update_from_rows` has changed."""
    if sql.update is not None:
        return connection.execute(statement, {"rows": json.dumps(rows)}).rowcount
    return connection.execute(statement, rows).rowcount


_SCHEMA_OF = (
    "SELECT CAST(n.nspname AS TEXT), CAST(current_user AS TEXT), "
    "pg_catalog.current_setting('search_path') FROM pg_catalog.pg_class c "
    "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
    "WHERE c.oid = pg_catalog.to_regclass('{}')"
)

SUPPORTED: Mapping[str, DialectSQL] = {
    "postgresql": DialectSQL(
        now_ms="CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        rows="json_to_recordset(CAST(:rows AS JSON)) AS v({cells})",
        cell="{name} {kind}",
        # The rows are named in two ways: by the join alone it reads all of a new table.
        update="UPDATE {table} AS t SET {values} FROM {rows} WHERE {where} AND t.{column} = ANY("
        "ARRAY(SELECT value ->> '{given}' FROM json_array_elements(CAST(:rows AS JSON)) AS value))",
        ignore="ON CONFLICT DO NOTHING",
        returns=True,
        limits=f"SELECT set_config('statement_timeout', '{STATEMENT_S}s', true), "
        f"set_config('lock_timeout', '{WAIT_S}s', true), "
        f"set_config('idle_in_transaction_session_timeout', '{IDLE_S}s', true)",
        bounded_locks=(
            f" CROSS JOIN (SELECT set_config('lock_timeout', '{LOCK_S}s', true)) AS bound"
        ),
        brief_waits=(f"SET LOCAL lock_timeout = '{LOCK_S}s'",),
        share_lock="FOR SHARE",
        bound=f"pg_catalog.set_config('idle_in_transaction_session_timeout', '{IDLE_S}s', true)",
        schema_of_runs=_SCHEMA_OF.format("fsa_run"),
        schema_of_effects=_SCHEMA_OF.format("fsa_effect"),
    ),
    "mysql": DialectSQL(
        # Ledger connections are in UTC: in another zone an hour comes twice in autumn.
        now_ms="CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000 AS SIGNED)",
        rows="JSON_TABLE(:rows, '$[*]' COLUMNS ({cells})) AS v",
        cell="{name} {long} PATH '$.{name}'",
        # Of a small table it would read, and so wait for, rows that are not named.
        update="UPDATE {rows} STRAIGHT_JOIN {table} AS t FORCE INDEX (PRIMARY) "
        "SET {values} WHERE {where}",
        # IGNORE would also swallow NULLs and names that are too long.
        ignore="ON DUPLICATE KEY UPDATE fsa_run.id = fsa_run.id",
        returns=False,
        skips=False,
        brief_waits=(f"SET SESSION innodb_lock_wait_timeout = {LOCK_S}",),
        frees_locks_apart=True,
        schema_of_runs="SELECT DATABASE()",
        schema_of_effects="SELECT DATABASE()",
    ),
    "sqlite": DialectSQL(
        now_ms="CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)",
        rows="(SELECT {cells} FROM json_each(:rows)) AS v",
        cell="json_extract(value, '$.{name}') AS {name}",
        readable="AND typeof(t.id) = 'text' AND t.id NOT GLOB '*[^ -~]*'",
        update=None,  # old ones have no UPDATE ... FROM, and there is no way to and fro to save
        ignore="ON CONFLICT DO NOTHING",
        returns=sqlite3.sqlite_version_info >= (3, 35),
    ),
}


def holds_ledger(backend: str) -> bool:
    """Whether the ledger, and the marks of its runs, can be in a database of that kind."""
    return backend == "mariadb" or backend in SUPPORTED


def dialect_sql(dialect: Dialect) -> DialectSQL:
    """The SQL of *dialect*; KeyError if the ledger cannot be on it."""
    return SUPPORTED["mysql" if dialect.name == "mariadb" else dialect.name]


def typed(sql: str, **types: TypeEngine[Any] | type[TypeEngine[Any]]) -> TextClause:
    """`text(sql)`, with BIGINT for parameters whose names end in `_ms`, and text for the others.

    psycopg refuses a parameter without a type that is used twice.
    """
    clause = text(sql)
    for name in clause._bindparams:
        default = BigInteger if name.endswith("_ms") or name == "number" else String
        clause = clause.bindparams(bindparam(name, type_=types.get(name, default)))
    return clause


def joining(statement: str, joined: str) -> str:
    """*statement*, which returns the id and the queue of each of its rows, with SQL beside it.

    Args:
        joined: PostgreSQL's: a SELECT from `put (id, queue)`; empty: there is none.
    """
    if not joined:
        return statement
    return f"WITH put AS ({statement}), sent AS ({joined}) SELECT put.id, put.queue FROM put, sent"


def prepare(dialect: str, connection: Any) -> None:
    """Set up a new DBAPI connection of the ledger; PostgreSQL's limits are `DialectSQL.limits`."""
    cursor = connection.cursor()
    if dialect == "sqlite":
        connection.isolation_level = None  # `begin` begins
        connection.text_factory = _read_text
        for pragma in ("busy_timeout = 10000", "journal_mode = WAL", "synchronous = NORMAL"):
            cursor.execute(f"PRAGMA {pragma}").fetchall()
        cursor.close()
        return
    if dialect == "postgresql":
        # Behind a pooler (PgBouncer's transaction mode) a session is lent to others between two
        # transactions: what is set or prepared in it would be theirs, or missing.
        if hasattr(connection, "prepare_threshold"):  # psycopg
            connection.prepare_threshold = None
    else:
        cursor.execute("SET time_zone = '+00:00'")
        # Also where each statement is its own transaction: in another level an INSERT locks what
        # its subqueries read, and the gaps around it.
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute(f"SET innodb_lock_wait_timeout = {LOCK_S}")
        for name, limit_s in (
            ("max_statement_time", STATEMENT_S),
            ("idle_transaction_timeout", IDLE_S),
        ):
            with contextlib.suppress(Exception):  # MariaDB has them, MySQL has not
                cursor.execute(f"SET {name} = {limit_s}")
    cursor.close()
    _bound_silence(connection)


def _read_text(raw: bytes) -> str:
    """One row with other bytes than UTF-8 must not keep the others from being read."""
    return raw.decode("utf-8", "backslashreplace")


def is_lock_wait(error: BaseException) -> bool:
    """Whether a statement has waited for another transaction's row, in vain."""
    return error_code(error) in ("55P03", _MYSQL_LOCK_WAIT)


def is_taken(error: BaseException) -> bool:
    """Whether a UNIQUE key has refused a row: another has what this one asks for."""
    code = error_code(error)
    if isinstance(code, str):
        return code == _POSTGRESQL_TAKEN
    if isinstance(code, int):
        return code == _MYSQL_TAKEN
    return isinstance(error, IntegrityError) and str(error.orig).startswith("UNIQUE")


def refuses_row(error: BaseException) -> bool:
    """Whether the database has refused what one row would be, and may take another's.

    Not where it refuses the statement (a missing column, a revoked privilege), whatever the row.
    """
    if not isinstance(error, DBAPIError) or is_taken(error):
        return False
    code = error_code(error)
    if isinstance(code, str):
        return code[:2] in _POSTGRESQL_ROW
    if isinstance(code, int):
        return code in _MYSQL_ROW
    return isinstance(error, IntegrityError)


def transient(error: BaseException) -> bool:
    """Whether the transaction may succeed when it is tried again, on a new connection too."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    code = error_code(error)
    if isinstance(code, str):
        return code in _POSTGRESQL_AGAIN or code[:2] == "08"
    if code is not None:
        return code in _MYSQL_AGAIN
    if isinstance(error, IntegrityError | DataError):
        return False  # it may hold anybody's words: a trigger's, a value's
    said = str(error.orig).lower()
    return "locked" in said or "connect" in said or "closed" in said


def _bound_silence(connection: Any) -> None:
    """Notice within seconds that the other end is gone: by itself TCP takes two hours."""
    try:
        shown = connection if hasattr(connection, "fileno") else connection._sock
        blocks = os.get_blocking(shown.fileno())
        with socket.socket(fileno=os.dup(shown.fileno())) as duplicate:
            # A default time-out (Celery sets one while it stops) would make both non-blocking.
            os.set_blocking(duplicate.fileno(), blocks)
            if duplicate.family not in (socket.AF_INET, socket.AF_INET6):
                return
            for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 2)):
                if hasattr(socket, name):
                    duplicate.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                duplicate.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STATEMENT_S * 1000
                )
    except (AttributeError, OSError):  # a driver that does not show its socket
        return


def begin(connection: Connection) -> None:
    """Begin a transaction of SQLite's. One that will write takes its lock now, or waits for it.

    A transaction that begins by reading cannot wait for a writer: it fails.
    """
    reading = connection.get_execution_options().get("fsa_reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
