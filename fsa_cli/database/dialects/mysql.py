"""What MySQL and MariaDB do differently: Unix sockets, option files, information_schema."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fsa_cli.database.dialects.dialect import (
    Client,
    DatabaseDialect,
    Measured,
    Server,
    ServerSession,
    parameter,
    program,
    rows,
    scalar_int,
    sessions_of,
    texts,
)

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Inspector

__all__ = ["MySQL", "mariadb_options"]

_OPTIONS = {
    "charset": "default-character-set",
    "read_default_file": "!include",
    "ssl_ca": "ssl-ca",
    "ssl_capath": "ssl-capath",
    "ssl_cert": "ssl-cert",
    "ssl_cipher": "ssl-cipher",
    "ssl_key": "ssl-key",
    "unix_socket": "socket",
}
_TABLES = """
    SELECT table_name, table_rows, data_length + index_length
    FROM information_schema.tables
    WHERE table_schema = database() AND table_type NOT IN ('VIEW', 'SYSTEM VIEW', 'SEQUENCE')
"""
_TOTAL = (
    "SELECT sum(data_length + index_length) FROM information_schema.tables"
    " WHERE table_schema = database()"
)
_SESSIONS = """
    SELECT p.id, p.info, p.time, b.id, NULL, b.user, b.host,
        CASE b.command WHEN 'Sleep' THEN 'idle in transaction' ELSE b.command END, b.time, b.info
    FROM information_schema.processlist p
        LEFT JOIN information_schema.innodb_trx waiting ON waiting.trx_mysql_thread_id = p.id
        LEFT JOIN {waits} ON requesting = waiting.trx_id
        LEFT JOIN information_schema.innodb_trx holding ON holding.trx_id = blocking
        LEFT JOIN information_schema.processlist b ON b.id = holding.trx_mysql_thread_id
    WHERE p.info IS NOT NULL AND p.id IN ({ids}) ORDER BY p.id, b.id
"""
_WAITS_MARIADB = """
    (SELECT requesting_trx_id AS requesting, blocking_trx_id AS blocking
     FROM information_schema.innodb_lock_waits) w"""
_WAITS_MYSQL = """
    (SELECT requesting_engine_transaction_id AS requesting,
        blocking_engine_transaction_id AS blocking
     FROM performance_schema.data_lock_waits) w"""


class MySQL(DatabaseDialect):
    name = "mysql"
    usual_port = "3306"
    end_session = '-e "KILL {id}"'

    def servers(self, url: URL) -> list[Server]:
        if socket := parameter(url, "unix_socket"):
            return [Server(socket, None)]
        port = parameter(url, "port") or (str(url.port) if url.port else None)
        return [Server(parameter(url, "host") or url.host, port)]

    @contextlib.contextmanager
    def client(self, url: URL, argv: Sequence[str]) -> Iterator[Client]:
        mariadb = program("mariadb", "mysql", package="mariadb-client")
        with _options_file(url) as path:
            database = [url.database] if url.database else []
            yield Client([mariadb, f"--defaults-extra-file={path}", *argv, *database])

    def sessions(self, connection: Connection, ids: Sequence[int]) -> list[ServerSession]:
        is_mariadb = getattr(connection.dialect, "is_mariadb", False)
        waits = _WAITS_MARIADB if is_mariadb else _WAITS_MYSQL
        statement = _SESSIONS.format(ids=", ".join(map(str, ids)), waits=waits)
        return sessions_of(rows(connection, statement))

    def measured(self, connection: Connection, inspector: Inspector) -> list[Measured]:
        return [
            Measured(None, name, estimate, None if size is None else int(size))
            for name, estimate, size in rows(connection, _TABLES)
        ]

    def total_bytes(self, connection: Connection) -> int | None:
        return scalar_int(connection, _TOTAL)


def mariadb_options(url: URL) -> str:
    """The connection of *url* as the text of an options file."""
    (server,) = MySQL().servers(url)
    options = {
        "host": None if server.is_socket else server.host,  # it would go before the socket
        "port": server.port,
        "user": url.username,
        "password": str(url.password) if url.password else None,
    }
    included = []
    for name in url.query:
        value, option = ",".join(texts(url, name)), _OPTIONS.get(name)
        if option == "!include":
            included.append(f"!include {value}")
        elif option is not None:
            options[option] = value
    given = [f"{name}={_quoted(value)}" for name, value in options.items() if value]
    return "\n".join([*included, "[client]", *given, ""])


@contextlib.contextmanager
def _options_file(url: URL) -> Iterator[Path]:
    """A file that only this user can read; it is gone when the client has ended."""
    with tempfile.TemporaryDirectory(prefix="fsa-") as directory:  # made with mode 700
        path = Path(directory, "client.cnf")
        path.touch(mode=0o600)
        path.write_text(mariadb_options(url), encoding="utf-8")
        yield path


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
