"""A database's own command-line client: psql, mariadb, sqlite3.

The password goes to psql in its environment, to mariadb in a file that only this user can read:
never among the arguments, which every user of the machine can list.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fsa_cli.database.identity import servers, sqlite_file
from fsa_cli.exceptions import ConfigurationError, UsageError

if TYPE_CHECKING:
    from sqlalchemy import URL

#: The packages that bring each client, for a person who has to install one.
_PACKAGES = {
    "psql": "postgresql-client",
    "mariadb": "mariadb-client",
    "sqlite3": "sqlite3",
}
# https://www.postgresql.org/docs/current/libpq-envars.html; asyncpg's `ssl` is `sslmode`.
_PSQL = {
    "application_name": "PGAPPNAME",
    "channel_binding": "PGCHANNELBINDING",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "dbname": "PGDATABASE",
    "gssencmode": "PGGSSENCMODE",
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "options": "PGOPTIONS",
    "passfile": "PGPASSFILE",
    "password": "PGPASSWORD",
    "port": "PGPORT",
    "service": "PGSERVICE",
    "ssl": "PGSSLMODE",
    "sslcert": "PGSSLCERT",
    "sslcrl": "PGSSLCRL",
    "sslkey": "PGSSLKEY",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "user": "PGUSER",
}
_MARIADB = {
    "charset": "default-character-set",
    "read_default_file": "!include",
    "ssl_ca": "ssl-ca",
    "ssl_capath": "ssl-capath",
    "ssl_cert": "ssl-cert",
    "ssl_cipher": "ssl-cipher",
    "ssl_key": "ssl-key",
    "unix_socket": "socket",
}


def run(url: URL, argv: Sequence[str] = ()) -> int:
    """Run the client of *url*'s database on this terminal until it ends; its exit code.

    Args:
        argv: Arguments for the client.

    Raises:
        ConfigurationError: It is not installed, or none is known for this database.
        UsageError: The database is in the memory of a process.
    """
    match url.get_backend_name():
        case "postgresql":
            return _run([_client("psql"), *argv], psql_environment(url))
        case "mysql" | "mariadb":
            client = _client("mariadb", "mysql")
            with _options_file(url) as path:
                database = [url.database] if url.database else []
                return _run([client, f"--defaults-extra-file={path}", *argv, *database])
        case "sqlite":
            return _run([_client("sqlite3"), *_sqlite(url), *argv])
    raise ConfigurationError(
        f"fsa knows no command-line client for {url.get_backend_name()}", hint="fsa db query SQL"
    )


def psql_environment(url: URL) -> dict[str, str]:
    """The connection of *url* as libpq's variables."""
    parameters = {
        "user": url.username,
        "password": str(url.password) if url.password else None,
        "dbname": url.database,
        **{word: _text(value) for word, value in url.query.items()},
        "port": ",".join(each.port or "" for each in servers(url)).strip(","),
    }
    if "hostaddr" not in parameters:
        parameters["host"] = ",".join(each.host or "" for each in servers(url))
    return {_PSQL[word]: value for word, value in parameters.items() if value and word in _PSQL}


def mariadb_options(url: URL) -> str:
    """The connection of *url* as the text of an options file."""
    options = {
        "host": url.host,
        "port": str(url.port) if url.port else None,
        "user": url.username,
        "password": str(url.password) if url.password else None,
    }
    included = []
    for word, value in url.query.items():
        name = _MARIADB.get(word)
        if name == "!include":
            included.append(f"!include {_text(value)}")
        elif name is not None:
            options[name] = _text(value)
    given = [f"{name}={_quoted(value)}" for name, value in options.items() if value]
    return "\n".join([*included, "[client]", *given, ""])


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    # Ctrl-C is for the client, which ends a statement with it and goes on. Not SIG_IGN, which the
    # client would inherit.
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return subprocess.Popen(command, env={**os.environ, **(environment or {})}).wait()
    finally:
        signal.signal(signal.SIGINT, before)


def _client(*names: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    package = _PACKAGES[names[0]]
    raise ConfigurationError(
        f"{names[0]} is not installed",
        hint=f"install it (the package is often called {package}), or use fsa db query SQL",
    )


@contextlib.contextmanager
def _options_file(url: URL) -> Iterator[Path]:
    """A file that only this user can read; it is gone when the client has ended."""
    with tempfile.TemporaryDirectory(prefix="fsa-") as directory:  # made with mode 700
        path = Path(directory, "client.cnf")
        path.touch(mode=0o600)
        path.write_text(mariadb_options(url), encoding="utf-8")
        yield path


def _sqlite(url: URL) -> list[str]:
    path = sqlite_file(url)
    if path is None:
        raise UsageError(
            "an in-memory database lives in the app's process: no client can reach it",
            hint="fsa shell",
        )
    return [path]


def _text(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ",".join(value)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
