"""Which database a URL means: one answer for the ledger, the guard of migrations, and messages."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from sqlalchemy import URL

__all__ = [
    "Server",
    "address",
    "backend_name",
    "hosts",
    "identity",
    "same_database",
    "same_server",
    "servers",
    "sqlite_file",
]

_PORTS = {"postgresql": 5432, "mysql": 3306}
_LOCAL = frozenset(("127.0.0.1", "::1", "localhost"))
# As SQLAlchemy reads `?host=name:port`; an IPv6 address and a socket are all host.
_HOST_AND_PORT = re.compile(r"(?P<host>[A-Za-z0-9.\-]*):(?P<port>\d*)")


class Server(NamedTuple):
    """One server that a URL names.

    Attributes:
        host: A name, an address, or a path: the folder of PostgreSQL's socket, or MySQL's socket.
            None is the driver's own choice: PostgreSQL's local socket, MySQL's localhost.
        port: None is the database's usual one.
    """

    host: str | None
    port: str | None

    @property
    def is_socket(self) -> bool:
        return self.host is not None and self.host.startswith(("/", "@"))


def backend_name(url: URL) -> str:
    """`postgresql`, `mysql` (MariaDB too), `sqlite`, or another backend's name."""
    name = url.get_backend_name()
    return "mysql" if name == "mariadb" else name


def same_database(one: URL | None, other: URL | None) -> bool:
    """Whether two URLs mean one database, whatever their drivers, users and parameters.

    "No" where it cannot be known: a socket and a host name, a private in-memory database and any.
    """
    if one is None or other is None or backend_name(one) != backend_name(other):
        return False
    mine = identity(one)
    return mine is not None and mine == identity(other)


def same_server(one: URL | None, other: URL | None) -> bool:
    """Whether two URLs mean databases of one server; SQLite has none."""
    if one is None or other is None or backend_name(one) != backend_name(other):
        return False
    places = _places(one)
    return bool(places) and places == _places(other)


def servers(url: URL) -> list[Server]:
    """The servers of a URL, in its order; SQLite has none.

    PostgreSQL's may stand in the query (`?host=a,b&port=1,2`, `?host=a:1&host=b:2`,
    `?host=/cloudsql/project:region:instance`), and libpq's variables stand in for what is missing.
    https://docs.sqlalchemy.org/en/20/dialects/postgresql.html#specifying-multiple-fallback-hosts
    """
    kind = backend_name(url)
    if kind == "postgresql":
        return _postgresql_servers(url)
    port = _first(url, "port") or (str(url.port) if url.port else None)
    if kind == "mysql":
        if socket := _first(url, "unix_socket"):
            return [Server(socket, None)]
        return [Server(_first(url, "host") or url.host, port)]
    return [Server(url.host, port)] if url.host else []


def hosts(url: URL) -> list[str]:
    """Every host that a URL names, also one that another parameter overrides."""
    named = [each.host for each in servers(url)]
    named += [url.host, *(_HOST_AND_PORT.sub(r"\g<host>", text) for text in _texts(url, "host"))]
    return [host for host in dict.fromkeys(named) if host]


def sqlite_file(url: URL) -> str | None:
    """The path of a SQLite database's file, as the URL has it; None if it is in memory."""
    from fastapi_sqlalchemy.engines.sqlite_memory import is_in_memory, is_uri_filename

    if is_in_memory(url):
        return None
    database = url.database or ""
    if is_uri_filename(url) and database.startswith("file:"):
        return unquote(urlsplit(database).path)  # https://www.sqlite.org/uri.html
    return database


def address(url: URL | None) -> str:
    """The address of a database for a person, without its password."""
    if url is None:
        return "not configured"
    kind = url.get_backend_name()
    if kind == "sqlite":
        return f"sqlite {sqlite_file(url) or 'in memory'}"
    where = ",".join(_spelled(url, server) for server in servers(url)) or "local"
    user = f" as {url.username}" if url.username else ""
    return f"{kind} {where}, database {url.database or 'not named'}{user}"


def _spelled(url: URL, server: Server) -> str:
    kind = backend_name(url)
    usual = _PORTS.get(kind)
    port = server.port or (str(usual) if usual else "")
    if kind == "postgresql" and server.host is None:
        return "local socket" if port == str(usual) else f"local socket .s.PGSQL.{port}"
    if server.is_socket:
        name = f"/.s.PGSQL.{port}" if kind == "postgresql" else ""
        return f"socket {server.host}{name}"
    return ":".join(part for part in (server.host or "localhost", port) if part)


def identity(url: URL) -> tuple[object, ...] | None:
    """What distinguishes a database from every other of its kind; None if nothing names it."""
    kind = backend_name(url)
    if kind == "sqlite":
        if (path := sqlite_file(url)) is not None:
            return ("file", os.path.realpath(path))
        shared = url.query.get("cache") == "shared" or url.query.get("vfs") == "memdb"
        return ("memory", url.database) if shared else None
    # Files of the driver's say the rest, the server too where the URL has none.
    file = url.query.get("service") or url.query.get("read_default_file")
    return (_places(url), _database(url, kind), file)


def _places(url: URL) -> frozenset[tuple[str, str]]:
    usual = str(_PORTS.get(backend_name(url), ""))
    return frozenset([(_normalized(each), each.port or usual) for each in servers(url)])


def _normalized(server: Server) -> str:
    if server.host is None:
        return "localhost"
    if server.host.startswith(("/", "@")):
        return os.path.realpath(server.host) if server.host.startswith("/") else server.host
    host = server.host.lower().rstrip(".")
    return "localhost" if host in _LOCAL else host


def _database(url: URL, kind: str) -> str | None:
    """Its name: libpq takes the user's name where none is given."""
    name = url.database
    if url.query:
        name = _first(url, "dbname") or _first(url, "database") or name
    if name or kind != "postgresql":
        return name
    user = _first(url, "user") or url.username or os.environ.get("PGUSER")
    return os.environ.get("PGDATABASE") or user or getpass.getuser()


def _postgresql_servers(url: URL) -> list[Server]:
    if url.host and not url.query and "," not in url.host:  # the fence asks at each COMMIT
        port = str(url.port) if url.port else os.environ.get("PGPORT")
        return [Server(url.host, port)]
    stated = _texts(url, "hostaddr") or _texts(url, "host")
    matches = [_HOST_AND_PORT.fullmatch(text) for text in stated]
    hosts = [m["host"] if m else text for m, text in zip(matches, stated, strict=True)]
    ports = [m["port"] if m else "" for m in matches]
    if not hosts:
        variables = os.environ.get("PGHOSTADDR") or os.environ.get("PGHOST", "")
        hosts = (url.host or variables).split(",")
    if not any(ports):
        port = str(url.port) if url.port else os.environ.get("PGPORT", "")
        ports = _texts(url, "port") or port.split(",")
    if len(ports) == 1:  # for all of them
        ports *= len(hosts)
    return [Server(host or None, port or None) for host, port in zip(hosts, ports, strict=False)]


def _texts(url: URL, parameter: str) -> list[str]:
    value = url.query.get(parameter, ())
    values: Sequence[str] = (value,) if isinstance(value, str) else value
    return [part for text in values for part in text.split(",")]


def _first(url: URL, parameter: str) -> str | None:
    if not url.query:
        return None
    return next(iter(_texts(url, parameter)), None) or None
