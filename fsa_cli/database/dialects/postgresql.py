"""What PostgreSQL does differently: libpq's parameters and variables, psql, pg_class."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
from collections.abc import Iterator, Sequence
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

__all__ = ["HOST_AND_PORT", "PostgreSQL", "psql_environment"]

# As SQLAlchemy reads `?host=name:port`; an IPv6 address and a socket are all host.
HOST_AND_PORT = re.compile(r"(?P<host>[A-Za-z0-9.\-]*):(?P<port>\d*)")

# https://www.postgresql.org/docs/current/libpq-envars.html; asyncpg's `ssl` is `sslmode`.
_VARIABLES = {
    "application_name": "PGAPPNAME",
    "channel_binding": "PGCHANNELBINDING",
    "client_encoding": "PGCLIENTENCODING",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "dbname": "PGDATABASE",
    "gssencmode": "PGGSSENCMODE",
    "gsslib": "PGGSSLIB",
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "krbsrvname": "PGKRBSRVNAME",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
    "options": "PGOPTIONS",
    "passfile": "PGPASSFILE",
    "password": "PGPASSWORD",
    "port": "PGPORT",
    "require_auth": "PGREQUIREAUTH",
    "requirepeer": "PGREQUIREPEER",
    "service": "PGSERVICE",
    "ssl": "PGSSLMODE",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "sslcert": "PGSSLCERT",
    "sslcertmode": "PGSSLCERTMODE",
    "sslcompression": "PGSSLCOMPRESSION",
    "sslcrl": "PGSSLCRL",
    "sslcrldir": "PGSSLCRLDIR",
    "sslkey": "PGSSLKEY",
    "sslmode": "PGSSLMODE",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslrootcert": "PGSSLROOTCERT",
    "sslsni": "PGSSLSNI",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "user": "PGUSER",
}
_TABLES = """
    SELECT n.nspname, c.relname,
        CASE WHEN c.relkind = 'r' THEN c.reltuples::bigint END,
        CASE WHEN c.relkind = 'r' THEN pg_total_relation_size(c.oid)
             ELSE (SELECT sum(pg_total_relation_size(p.relid)) FROM pg_partition_tree(c.oid) p)
        END::bigint,
        n.nspname = current_schema()
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
        AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
"""
_SESSIONS = """
    SELECT a.pid, a.query, extract(epoch FROM clock_timestamp() - a.query_start),
        b.pid, b.application_name, b.usename, host(b.client_addr), b.state,
        extract(epoch FROM clock_timestamp() - b.state_change), b.query
    FROM pg_stat_activity a LEFT JOIN pg_stat_activity b ON b.pid = ANY(pg_blocking_pids(a.pid))
    WHERE a.state = 'active' AND a.pid IN ({ids}) ORDER BY a.pid, b.pid
"""


class PostgreSQL(DatabaseDialect):
    name = "postgresql"
    usual_port = "5432"
    client_driver = "psycopg"
    end_session = '-c "select pg_terminate_backend({id})"'

    def servers(self, url: URL) -> list[Server]:
        """Hosts may stand in the query, and libpq's variables stand in for what is missing.

        `?host=a,b&port=1,2`, `?host=a:1&host=b:2`, `?host=/cloudsql/project:region:instance`.
        https://docs.sqlalchemy.org/en/20/dialects/postgresql.html#specifying-multiple-fallback-hosts
        """
        if url.host and not url.query and "," not in url.host:  # the fence asks at each COMMIT
            return [Server(url.host, str(url.port) if url.port else os.environ.get("PGPORT"))]
        stated = texts(url, "hostaddr") or texts(url, "host")
        matches = [HOST_AND_PORT.fullmatch(text) for text in stated]
        hosts = [m["host"] if m else text for m, text in zip(matches, stated, strict=True)]
        ports = [m["port"] if m else "" for m in matches]
        if not hosts:
            variables = os.environ.get("PGHOSTADDR") or os.environ.get("PGHOST", "")
            hosts = (url.host or variables).split(",")
        if not any(ports):
            port = str(url.port) if url.port else os.environ.get("PGPORT", "")
            ports = texts(url, "port") or port.split(",")
        if len(ports) == 1:  # for all of them
            ports *= len(hosts)
        return [
            Server(host or None, port or None) for host, port in zip(hosts, ports, strict=False)
        ]

    def database_name(self, url: URL) -> str | None:
        """libpq takes the user's name where none is given."""
        if name := super().database_name(url):
            return name
        user = parameter(url, "user") or url.username or os.environ.get("PGUSER")
        if name := os.environ.get("PGDATABASE") or user:
            return name
        with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
            return getpass.getuser()
        return None

    def address(self, url: URL) -> str:
        """A service of libpq's says where it is, where the URL names no host."""
        service = parameter(url, "service")
        if service is None or url.host or "host" in url.query:
            return super().address(url)
        user = f" as {url.username}" if url.username else ""
        return f"postgresql service {service}{user}"

    def place(self, server: Server) -> str:
        port = server.port or self.usual_port
        if server.host is None:
            usual = port == self.usual_port
            return "local socket" if usual else f"local socket .s.PGSQL.{port}"
        return (
            f"socket {server.host}/.s.PGSQL.{port}" if server.is_socket else super().place(server)
        )

    @contextlib.contextmanager
    def client(self, url: URL, argv: Sequence[str]) -> Iterator[Client]:
        psql = program("psql", package="postgresql-client")
        yield Client([psql, *argv], psql_environment(url))

    def schemas(self, inspector: Inspector) -> list[str | None]:
        default = inspector.default_schema_name
        own = [name for name in inspector.get_schema_names() if name != "information_schema"]
        return [None, *(name for name in own if name != default)]

    def sessions(self, connection: Connection, ids: Sequence[int]) -> list[ServerSession]:
        return sessions_of(rows(connection, _SESSIONS.format(ids=", ".join(map(str, ids)))))

    def measured(self, connection: Connection, inspector: Inspector) -> list[Measured]:
        return [
            Measured(
                None if default else schema,
                name,
                estimate if estimate is not None and estimate >= 0 else None,
                size or 0,
            )
            for schema, name, estimate, size, default in rows(connection, _TABLES)
        ]

    def total_bytes(self, connection: Connection) -> int | None:
        return scalar_int(connection, "SELECT pg_database_size(current_database())")


def psql_environment(url: URL) -> dict[str, str]:
    """The connection of *url* as libpq's variables: the password is in no argument."""
    servers = PostgreSQL().servers(url)
    parameters = {
        "user": url.username,
        "password": str(url.password) if url.password else None,
        "dbname": url.database,
        **{name: ",".join(texts(url, name)) for name in url.query},
        "port": ",".join(each.port or "" for each in servers).strip(","),
    }
    if "hostaddr" not in parameters:
        parameters["host"] = ",".join(each.host or "" for each in servers)
    return {
        _VARIABLES[name]: value
        for name, value in parameters.items()
        if value and name in _VARIABLES
    }
