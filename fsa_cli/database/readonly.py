"""Read-only, enforced by the database: whatever the SQL says, a write is the server's error.

Nothing here reads SQL. Each connection is set when it leaves its pool, and again when it begins a
transaction: a session that was made writable is read-only again in its next one. SQLite's
`PRAGMA query_only = OFF` holds for that long; on the others the transaction itself stays read-only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fsa_cli.exceptions import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Connection

_ALONE = "fsa_alone"


def enforce() -> None:
    """Make every connection of every engine in this process read-only, from now on.

    Raises, when a connection is used: `ConfigurationError`, if the database is none of
    PostgreSQL, MySQL, MariaDB and SQLite.
    """
    from sqlalchemy import Engine, event
    from sqlalchemy.pool import Pool

    if not event.contains(Pool, "checkout", _on_checkout):
        event.listen(Pool, "checkout", _on_checkout)
        event.listen(Engine, "begin", _on_begin)


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
            _run(proxy, "PRAGMA query_only = ON")
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
        driver_connection = proxy.driver_connection
        if hasattr(driver_connection, "get_server_pid"):  # asyncpg
            shown = driver_connection.get_server_pid()
        else:
            shown = getattr(getattr(driver_connection, "info", None), "backend_pid", None)
        proxy.info[_ALONE] = _run(proxy, "SELECT pg_backend_pid()") == shown
    return bool(proxy.info[_ALONE])


def _run(proxy: Any, statement: str) -> Any:
    """The first value of the answer; None if there is none."""
    cursor = proxy.dbapi_connection.cursor()
    try:
        cursor.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None
    finally:
        cursor.close()
