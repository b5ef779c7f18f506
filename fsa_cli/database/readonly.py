"""Read-only, enforced by the database: whatever the SQL says, a write is the server's error.

Each connection is told when it leaves its pool, and again when it begins a transaction: a session
that was talked out of it is read-only again in its next one. What would lead out of a transaction
or around it is not sent at all (`read_statements`), and no COMMIT is sent for one that has become
READ WRITE, or has written all the same (PostgreSQL's `lo_create`). SQLite opens its file read-only,
and its authorizer refuses ATTACH and the PRAGMAs that write. A driver's own connection in Python's
hands, and functions of the server's that reach outside (dblink, lo_export, UDFs), cannot be held:
that takes a user of the database who may only read.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi_sqlalchemy.sessions.connections import server_pid
from fsa_cli.database.listening import listen_once
from fsa_cli.database.read_statements import check_reads
from fsa_cli.exceptions import ConfigurationError, StatementFailed

if TYPE_CHECKING:
    from sqlalchemy import Connection

_ALONE = "fsa_alone"
_OWN = "fsa_own_statement"
# Only what writes has a number; some functions do, whatever the transaction's mode.
_MODE = """
    SELECT CASE WHEN txid_current_if_assigned() IS NULL
        THEN current_setting('transaction_read_only') ELSE 'written' END
"""

# What tells about the database, whatever its argument; and what changes the connection's own ways.
_SQLITE_PRAGMAS = {
    *("table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo"),
    *("foreign_key_list", "foreign_key_check", "integrity_check", "quick_check", "database_list"),
    *("collation_list", "compile_options", "function_list", "module_list", "pragma_list"),
    *("foreign_keys", "busy_timeout", "cache_size", "case_sensitive_like", "recursive_triggers"),
    *("read_uncommitted", "temp_store", "synchronous", "data_version"),
}
# Without an argument these only tell.
_SQLITE_ASKING_PRAGMAS = {
    *("journal_mode", "user_version", "application_id", "schema_version", "encoding", "page_size"),
    *("page_count", "freelist_count", "auto_vacuum", "query_only", "journal_size_limit"),
    *("wal_autocheckpoint", "locking_mode", "secure_delete", "mmap_size", "max_page_count"),
}


def enforce() -> None:
    """Make every connection of every engine in this process read-only, from now on.

    Raises, when a connection is used: `ConfigurationError`, if the database is none of
    PostgreSQL, MySQL, MariaDB and SQLite.
    """
    from sqlalchemy import Engine
    from sqlalchemy.pool import Pool

    listen_once(Pool, "checkout", _on_checkout)
    listen_once(Engine, "begin", _on_begin)
    listen_once(Engine, "before_cursor_execute", _on_execute)
    listen_once(Engine, "commit", _on_commit)
    listen_once(Engine, "do_connect", _on_connect)


def own(connection: Connection) -> Connection:
    """*connection*, for statements of fsa's that are sent as they are."""
    return connection.execution_options(**{_OWN: True})


def _on_connect(dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
    """Have SQLite open its file read-only; a file that is not there is not made."""
    if dialect.name != "sqlite" or not arguments or not isinstance(arguments[0], str):
        return
    name = arguments[0]
    if not options.get("uri"):
        if name in ("", ":memory:"):
            return
        name = f"file:{quote(os.fsencode(name))}"
    path, _, query = name.partition("?")
    words = [word for word in query.split("&") if word and not word.startswith("mode=")]
    if path == "file::memory:" or "vfs=memdb" in words or "mode=memory" in query.split("&"):
        return
    arguments[0] = f"{path}?{'&'.join([*words, 'mode=ro'])}"
    options["uri"] = True


def _on_execute(
    connection: Connection, cursor: Any, sql: str, parameters: Any, context: Any, many: bool
) -> None:
    if connection.dialect.name == "sqlite" or connection.get_execution_options().get(_OWN):
        return
    check_reads(sql, connection.dialect.name)


def _on_commit(connection: Connection) -> None:
    if connection.dialect.name != "postgresql":
        return
    proxy: Any = connection.connection
    found = "on"  # also of a transaction that has failed: its COMMIT is a ROLLBACK
    with contextlib.suppress(Exception):
        found = _run(proxy, _MODE)
    if found != "on":
        proxy.dbapi_connection.rollback()
        what = "was made READ WRITE" if found == "off" else "has written"
        raise StatementFailed(f"the transaction {what}: rolled back")


def _on_checkout(dbapi_connection: Any, record: Any, proxy: Any) -> None:
    # A raw connection has no other way to its dialect; a test holds these two private names.
    _set_session(proxy._pool._dialect.name, proxy)


def _on_begin(connection: Connection) -> None:
    # Nothing here goes through the Connection: `--echo` shows what the person's own code sends.
    proxy: Any = connection.connection
    name = connection.dialect.name
    _set_session(name, proxy)
    if name == "postgresql":
        if not _set_transaction(proxy):
            # In AUTOCOMMIT a statement could begin a transaction of its own, READ WRITE.
            level = connection.default_isolation_level or "READ COMMITTED"
            connection.dialect.set_isolation_level(proxy.dbapi_connection, level)
            _set_transaction(proxy)
    elif name != "sqlite":
        _run(proxy, "START TRANSACTION READ ONLY")


def _set_session(name: str, proxy: Any) -> None:
    match name:
        case "postgresql":
            if _is_alone(proxy):
                _run(proxy, "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
            proxy.dbapi_connection.commit()  # a rollback would take it back
        case "mysql" | "mariadb":
            _run(proxy, "SET SESSION TRANSACTION READ ONLY")
        case "sqlite":
            _set_authorizer(proxy, None)
            _run(proxy, "PRAGMA query_only = ON")
            _set_authorizer(proxy, _authorize)
        case _:
            raise ConfigurationError(
                f"fsa cannot make {name} read-only",
                hint="use a database user that may only read, without --read-only",
            )


def _set_transaction(proxy: Any) -> bool:
    """Make PostgreSQL's transaction read-only; False if none is open.

    A SELECT takes the transaction's snapshot, after which nothing makes it READ WRITE.
    """
    _run(
        proxy,
        "SELECT set_config('transaction_read_only', 'on', true), set_config('fsa.ro', '1', true)",
    )
    return bool(_run(proxy, "SELECT current_setting('fsa.ro', true) = '1'"))


def _is_alone(proxy: Any) -> bool:
    """Whether no pooler (pgbouncer) gives the server's session to other clients too.

    The settings of such a session outlive this client, and an app's own writes would then fail. A
    pooler shows its clients a process number of its own.
    """
    if _ALONE not in proxy.info:
        shown = server_pid(proxy.driver_connection)
        proxy.info[_ALONE] = _run(proxy, "SELECT pg_backend_pid()") == shown
    return bool(proxy.info[_ALONE])


def _set_authorizer(proxy: Any, authorizer: Any) -> None:
    connection = proxy.dbapi_connection
    if hasattr(connection, "run_async"):  # aiosqlite
        connection.run_async(lambda inner: inner.set_authorizer(authorizer))
    else:
        connection.set_authorizer(authorizer)


def _authorize(action: int, first: str | None, second: str | None, *more: Any) -> int:
    """What leads around `query_only`; the rest is refused by that.

    https://www.sqlite.org/c3ref/c_alter_table.html
    """
    import sqlite3

    if action == sqlite3.SQLITE_PRAGMA:
        name = (first or "").lower()
        known = _SQLITE_PRAGMAS if second else _SQLITE_PRAGMAS | _SQLITE_ASKING_PRAGMAS
        return sqlite3.SQLITE_OK if name in known else sqlite3.SQLITE_DENY
    is_extension = action == sqlite3.SQLITE_FUNCTION and (second or "").lower() == "load_extension"
    if is_extension or action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _run(proxy: Any, statement: str) -> Any:
    """The first value of the answer; None if there is none."""
    cursor = proxy.dbapi_connection.cursor()
    try:
        cursor.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None
    finally:
        cursor.close()
