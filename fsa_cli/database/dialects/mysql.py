"""What MySQL and MariaDB do differently: Unix sockets, option files, information_schema."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from fsa_cli.exceptions import ConfigurationError

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
_TOLD = _OPTIONS.keys() | {
    *("host", "port", "ssl", "ssl_check_hostname", "ssl_verify_cert", "ssl_verify_identity")
}
_LOCAL = ("localhost", None)
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
    client_driver = "pymysql"
    end_session = '-e "KILL {id}"'

    def servers(self, url: URL) -> list[Server]:
        if socket := parameter(url, "unix_socket"):
            return [Server(socket, None)]
        port = parameter(url, "port") or (str(url.port) if url.port else None)
        return [Server(parameter(url, "host") or url.host, port)]

    @contextlib.contextmanager
    def client(self, url: URL, argv: Sequence[str]) -> Iterator[Client]:
        mariadb = program("mariadb", "mysql", package="mariadb-client")
        with _options_file(url, is_mariadb=_is_mariadb(mariadb)) as path:
            database = [url.database] if url.database else []
            yield Client([mariadb, f"--defaults-extra-file={path}", *argv, *database])

    def with_connect_args(self, url: URL, connect_args: Mapping[str, Any]) -> URL:
        connect_args, tls = dict(connect_args), connect_args.get("ssl")
        if connect_args.get("ssl_disabled"):
            connect_args = {n: connect_args[n] for n in connect_args if not n.startswith("ssl")}
        elif isinstance(tls, Mapping) and tls:
            connect_args |= {"ssl": "1", **{f"ssl_{name}": tls[name] for name in tls}}
            if "verify_mode" in tls:
                connect_args["ssl_verify_cert"] = tls["verify_mode"]
        elif not tls:
            connect_args.pop("ssl", None)
        else:
            if getattr(tls, "verify_mode", None):  # an ssl.SSLContext; CERT_NONE is 0
                raise ConfigurationError(
                    "an ssl.SSLContext of connect_args cannot be told to the client of MySQL",
                    hint="connect_args with ssl_ca, ssl_cert and ssl_key, or fsa db query SQL",
                )
            connect_args["ssl"] = "1"
        named = {name: connect_args[name] for name in connect_args if name in _TOLD}
        return super().with_connect_args(url, {name: str(named[name]) for name in named})

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


def mariadb_options(url: URL, *, is_mariadb: bool = True) -> str:
    """The connection of *url* as the text of an options file.

    Args:
        is_mariadb: Whether the client is MariaDB's: MySQL's has other words for TLS.
    """
    (server,) = MySQL().servers(url)
    options = {
        "host": None if server.is_socket else server.host,  # it would go before the socket
        "port": server.port,
        # At `localhost` the clients take the socket of the machine, and Python's drivers do not.
        "protocol": "tcp" if server.host in _LOCAL and _is_by_tcp(url) else None,
        "user": url.username,
        "password": str(url.password) if url.password else None,
        **_tls(url, is_mariadb=is_mariadb),
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


def _is_by_tcp(url: URL) -> bool:
    """An options file may name a socket, which Python's drivers take from there too."""
    if "read_default_file" in url.query:
        return False
    return url.get_driver_name() in ("pymysql", "aiomysql", "asyncmy")


def _tls(url: URL, *, is_mariadb: bool) -> dict[str, str]:
    """How the server is verified. Of an authority that it is told a client asks by itself."""

    def said(name: str) -> bool | None:
        word = parameter(url, name)
        return None if word is None else word.lower() not in ("false", "0", "no", "off", "none")

    has_authority = any(name in url.query for name in ("ssl_ca", "ssl_capath"))
    identified, verified = said("ssl_verify_identity"), said("ssl_verify_cert")
    if identified is None:
        by_default = verified is None and said("ssl_check_hostname") is not False
        identified = by_default if has_authority else verified
    if identified:
        return {"ssl-verify-server-cert": "1"} if is_mariadb else {"ssl-mode": "VERIFY_IDENTITY"}
    if "ssl" in url.query:
        return {"ssl": "1"} if is_mariadb else {"ssl-mode": "REQUIRED"}
    return {}


def _is_mariadb(path: str) -> bool:
    if Path(path).name == "mariadb":
        return True
    told = subprocess.run([path, "--version"], stdout=subprocess.PIPE, text=True).stdout
    return "MariaDB" in told


@contextlib.contextmanager
def _options_file(url: URL, *, is_mariadb: bool) -> Iterator[Path]:
    """A file that only this user can read; it is gone when the client has ended."""
    with tempfile.TemporaryDirectory(prefix="fsa-") as directory:  # made with mode 700
        path = Path(directory, "client.cnf")
        path.touch(mode=0o600)
        path.write_text(mariadb_options(url, is_mariadb=is_mariadb), encoding="utf-8")
        yield path


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
