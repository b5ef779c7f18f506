"""What `fsa` asks of a database, and the answers for one that it does not know."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from fsa_cli.exceptions import ConfigurationError
from fsa_cli.terminal.masking import mask_head

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Inspector

__all__ = ["Blocker", "Client", "DatabaseDialect", "Measured", "Server", "ServerSession"]

# What PostgreSQL says in place of a statement that only its user may see.
_HIDDEN = "<insufficient privilege>"
_STATEMENT = 1000
_LOCAL = frozenset(("127.0.0.1", "::1", "localhost"))


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


@dataclass(frozen=True)
class Measured:
    """A table with its server's own figures."""

    schema: str | None
    """None is the default schema."""
    name: str
    estimate: int | None
    size_bytes: int | None

    @property
    def label(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


@dataclass(frozen=True)
class Blocker:
    """A session that holds a lock which another one waits for.

    Attributes:
        who: Its program, user and host, as far as they are known.
        state: As the server calls it: `idle in transaction`, `active`.
        for_s: For how long it has been in that state.
        statement: What it executes, or has executed last; "" where the server does not say it.
    """

    id: int
    who: str
    state: str
    for_s: float
    statement: str = ""


@dataclass(frozen=True)
class ServerSession:
    """A session that executes a statement, and for how long it has; those that it waits for."""

    id: int
    statement: str
    for_s: float
    blockers: tuple[Blocker, ...] = ()


@dataclass(frozen=True)
class Client:
    """A database's own command-line client, ready to be started."""

    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict, repr=False)


class DatabaseDialect:
    """One kind of database. A method that is not overridden needs nothing of the database."""

    name = ""
    """Of all of its names in SQLAlchemy the first; "" is an unknown one."""
    usual_port = ""
    end_session = ""
    """The arguments of its client that end the session {id}; "" if there is no way."""

    # -- where it is -------------------------------------------------------------------------------

    def servers(self, url: URL) -> list[Server]:
        """The servers that *url* names, in its order."""
        return [Server(url.host, str(url.port) if url.port else None)] if url.host else []

    def identity(self, url: URL) -> tuple[object, ...] | None:
        """What tells the database from every other of its kind; None if nothing names it."""
        # Files of the driver's say the rest, the server too where the URL has none.
        file = url.query.get("service") or url.query.get("read_default_file")
        return *self.places(url), self.database_name(url), file

    def places(self, url: URL) -> tuple[str, frozenset[tuple[str, str]]]:
        """What tells its servers from all others: the kind of database, and where they are."""
        places = [(normalized(each), each.port or self.usual_port) for each in self.servers(url)]
        return self.name or url.get_backend_name(), frozenset(places)

    def database_name(self, url: URL) -> str | None:
        """The name that *url* gives it, in the query or before it."""
        return parameter(url, "dbname") or parameter(url, "database") or url.database

    def address(self, url: URL) -> str:
        """For a person, without the password."""
        where = ",".join(self.place(each) for each in self.servers(url)) or "local"
        user = f" as {url.username}" if url.username else ""
        name = DatabaseDialect.database_name(self, url)
        return f"{url.get_backend_name()} {where}, database {name or 'not named'}{user}"

    def place(self, server: Server) -> str:
        """A server in an address."""
        if server.is_socket:
            return f"socket {server.host}"
        port = server.port or self.usual_port
        return ":".join(part for part in (server.host or "localhost", port) if part)

    # -- its transactions --------------------------------------------------------------------------

    def has_savepoints(self, url: URL) -> bool:
        """Whether sandboxes and dry runs work: they are savepoints that are rolled back."""
        return True

    # -- its own client ----------------------------------------------------------------------------

    client_driver = ""
    """The driver in whose words its client is told how to connect; "" has nothing to be told."""

    def with_connect_args(self, url: URL, connect_args: Mapping[str, Any]) -> URL:
        """*url* for its client, with what an engine's `connect_args` say beside it.

        Raises:
            ConfigurationError: The client cannot be told of a TLS that verifies.
        """
        texts = (str, int, float)
        given = {name: str(value) for name, value in connect_args.items() if type(value) in texts}
        return url.update_query_dict(given)

    def client(self, url: URL, argv: Sequence[str]) -> AbstractContextManager[Client]:
        """Its command-line client on *url*, while inside.

        Raises:
            ConfigurationError: It is not installed, or none is known.
            UsageError: The database is in the memory of a process.
        """
        raise ConfigurationError(
            f"fsa knows no command-line client for {url.get_backend_name()}",
            hint="fsa db query SQL",
        )

    # -- its sessions ------------------------------------------------------------------------------

    def sessions(self, connection: Connection, ids: Sequence[int]) -> list[ServerSession]:
        """What these sessions of the server execute now, and who keeps them waiting."""
        return []

    # -- its tables --------------------------------------------------------------------------------

    def schemas(self, inspector: Inspector) -> list[str | None]:
        """The schemas that may hold the user's tables; None is the default one."""
        return [None]

    def measured(self, connection: Connection, inspector: Inspector) -> list[Measured]:
        """Every table, with the figures that the server has without reading it."""
        return [Measured(None, name, None, None) for name in inspector.get_table_names()]

    def total_bytes(self, connection: Connection) -> int | None:
        """The size of the database; None if nobody knows."""
        return None


def normalized(server: Server) -> str:
    """The host as it is compared."""
    if server.host is None:
        return "localhost"
    if server.host.startswith(("/", "@")):
        from os.path import realpath

        return realpath(server.host) if server.host.startswith("/") else server.host
    host = server.host.lower().rstrip(".")
    return "localhost" if host in _LOCAL else host


def texts(url: URL, name: str) -> list[str]:
    """The values of a parameter of *url*, those between commas each for itself."""
    value = url.query.get(name, ())
    values: Sequence[str] = (value,) if isinstance(value, str) else value
    return [part for text in values for part in text.split(",")]


def parameter(url: URL, name: str) -> str | None:
    """The first value of a parameter of *url*; None if it has none."""
    return (next(iter(texts(url, name)), None) or None) if url.query else None


def program(name: str, *others: str, package: str) -> str:
    """The path of a client.

    Args:
        package: What brings it, for a person who has to install it.

    Raises:
        ConfigurationError: It is not installed.
    """
    for each in (name, *others):
        if path := shutil.which(each):
            return path
    raise ConfigurationError(
        f"{name} is not installed",
        hint=f"install it (the package is often called {package}), or use fsa db query SQL",
    )


def rows(connection: Connection, statement: str) -> Sequence[Any]:
    return connection.execution_options(no_parameters=True).exec_driver_sql(statement).all()


def scalar_int(connection: Connection, statement: str) -> int | None:
    value = connection.exec_driver_sql(statement).scalar()
    return None if value is None else int(value)


def sessions_of(found: Sequence[Any]) -> list[ServerSession]:
    """Sessions out of rows: id, statement, seconds; of a blocker id, program, user, host, state,
    seconds, statement, or NULL."""
    sessions: dict[int, ServerSession] = {}
    for number, statement, for_s, blocker, program_, user, host, state, since_s, sent in found:
        known = sessions.get(int(number)) or ServerSession(
            int(number), str(statement or ""), float(for_s or 0)
        )
        if blocker is not None:
            parts = (program_, f"user {user}" if user else "", f"from {host}" if host else "")
            who = " ".join(str(part) for part in parts if part)
            sent = "" if not sent or sent == _HIDDEN else mask_head(str(sent), _STATEMENT)
            one = Blocker(int(blocker), who, str(state or "unknown"), float(since_s or 0), sent)
            known = replace(known, blockers=(*known.blockers, one))
        sessions[known.id] = known
    return list(sessions.values())
