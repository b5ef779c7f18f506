"""One fresh database for one test, and questions to its server from outside the test."""

import contextlib
import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pymysql
from pymysql.constants import CLIENT
from sqlalchemy import URL, make_url

from support.waiting import wait_until

Row = tuple[Any, ...]

# The askers' own sessions carry this name, so that `connections()` can leave them out.
ASKER = "fsa-test-asker"

ACTIVE_TRANSACTION = re.compile(
    r"^---TRANSACTION [^\n]*, ACTIVE [^\n]*\n(?:(?!---TRANSACTION)[^\n]*\n)*?"
    r"(?:MariaDB|MySQL) thread id (\d+)",
    re.MULTILINE,
)


class Backend(ABC):
    """An empty database of one test's own.

    Its questions are put on connections of their own and are never counted in the answers.
    """

    name: ClassVar[str]
    driver: ClassVar[str]
    async_driver: ClassVar[str]

    def __init__(self, location: URL) -> None:
        self.location = location
        """The database's URL without a driver."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.location.render_as_string()}>"

    def with_driver(self, driver: str) -> str:
        """The database's URL for *driver*, for instance `asyncpg` or `asyncmy`."""
        url = self.location.set(drivername=f"{self.location.drivername}+{driver}")
        return url.render_as_string(hide_password=False)

    @property
    def url(self) -> str:
        return self.with_driver(self.driver)

    @property
    def async_url(self) -> str:
        return self.with_driver(self.async_driver)

    def connections(self) -> int:
        """How many sessions the server has on this database at this moment.

        A client that has closed its connection can be counted for some milliseconds more: use
        `assert_released()` where the test says that nothing is left.
        """
        return len(self._sessions())

    def idle_in_transaction(self) -> int:
        """How many of them do nothing inside an open transaction."""
        return sum(1 for session in self._sessions() if session["in_transaction"])

    def assert_released(self, within_s: float = 20.0) -> None:
        """Wait until no session is left on this database; AssertionError lists those that stay."""
        try:
            wait_until(lambda: not self._sessions(), within_s=within_s)
        except AssertionError:
            left = "\n".join(str(session) for session in self._sessions())
            raise AssertionError(f"sessions left on {self.name}:\n{left}") from None

    def assert_no_transaction(self, within_s: float = 20.0) -> None:
        """Wait until no session, pooled ones included, is idle in a transaction."""
        try:
            wait_until(lambda: not self.idle_in_transaction(), within_s=within_s)
        except AssertionError:
            left = "\n".join(str(s) for s in self._sessions() if s["in_transaction"])
            raise AssertionError(f"transactions left on {self.name}:\n{left}") from None

    @abstractmethod
    def execute(self, sql: str) -> None:
        """Run one or more statements, committed, on a connection of their own."""

    @abstractmethod
    def rows(self, sql: str) -> list[Row]:
        """What a query sees from outside: committed rows only."""

    @abstractmethod
    def end_statements(self) -> None:
        """End the sessions that have a statement under way."""

    @abstractmethod
    def _sessions(self) -> list[dict[str, Any]]:
        """The sessions on this database, each with `in_transaction`."""


class PostgreSQL(Backend):
    name = "postgresql"
    driver = async_driver = "psycopg"

    def __init__(self, location: URL, maintenance: URL) -> None:
        super().__init__(location)
        self._maintenance = maintenance

    def execute(self, sql: str) -> None:
        with connect_postgresql(self.location) as connection:
            connection.execute(sql.encode())

    def rows(self, sql: str) -> list[Row]:
        with connect_postgresql(self.location) as connection:
            return connection.execute(sql.encode()).fetchall()

    def end_statements(self) -> None:
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'active'"
            " AND datname = current_database() AND pid <> pg_backend_pid()"
        )

    def _sessions(self) -> list[dict[str, Any]]:
        with connect_postgresql(self._maintenance) as connection:
            cursor = connection.execute(
                "SELECT pid, application_name, state, query FROM pg_stat_activity"
                " WHERE datname = %s AND backend_type = 'client backend'"
                " AND application_name <> %s",
                [self.location.database, ASKER],
            )
            return [
                {
                    "pid": pid,
                    "application": application,
                    "state": state,
                    "query": query,
                    "in_transaction": (state or "").startswith("idle in transaction"),
                }
                for pid, application, state, query in cursor
            ]


class MariaDB(Backend):
    name = "mariadb"
    driver = "pymysql"
    async_driver = "aiomysql"

    def __init__(self, location: URL, maintenance: URL) -> None:
        super().__init__(location)
        self._maintenance = maintenance

    def execute(self, sql: str) -> None:
        self.rows(sql)

    def rows(self, sql: str) -> list[Row]:
        with connect_mariadb(self.location) as connection:
            try:
                with connection.cursor() as cursor:
                    cursor.execute(sql)
                    rows = list(cursor.fetchall())
                    while cursor.nextset():
                        pass
                    return rows
            finally:
                # A closed connection stays listed for a moment: let it not be on this database.
                connection.select_db("information_schema")

    def end_statements(self) -> None:
        for (number,) in self.rows(
            "SELECT id FROM information_schema.processlist WHERE command = 'Query'"
            " AND db = DATABASE() AND id <> CONNECTION_ID()"
        ):
            with contextlib.suppress(pymysql.err.OperationalError):  # it has ended
                self.execute(f"KILL {number}")

    def _sessions(self) -> list[dict[str, Any]]:
        with (
            connect_mariadb(self._maintenance) as connection,
            connection.cursor(pymysql.cursors.DictCursor) as cursor,
        ):
            # information_schema.innodb_trx is a copy that is not renewed while it is being asked
            # more often than every 100 ms: the monitor's text is always new.
            cursor.execute("SHOW ENGINE INNODB STATUS")
            (status,) = cursor.fetchall()
            active = {int(match[1]) for match in ACTIVE_TRANSACTION.finditer(status["Status"])}
            cursor.execute(
                "SELECT id, command, info AS query FROM information_schema.processlist"
                " WHERE db = %s",
                [self.location.database],
            )
            return [
                {
                    **session,
                    "in_transaction": session["command"] == "Sleep" and session["id"] in active,
                }
                for session in cursor.fetchall()
            ]


class SQLite(Backend):
    name = "sqlite"
    driver = "pysqlite"
    async_driver = "aiosqlite"

    @property
    def path(self) -> Path:
        assert self.location.database
        return Path(self.location.database)

    def execute(self, sql: str) -> None:
        connection = sqlite3.connect(self.path, timeout=30)
        try:
            connection.executescript(sql)
        finally:
            connection.close()

    def rows(self, sql: str) -> list[Row]:
        connection = sqlite3.connect(self.path, timeout=30)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def idle_in_transaction(self) -> int:
        """1 while any connection holds a lock on the file (busy or idle: SQLite does not say)."""
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return 1
        finally:
            connection.close()
        return 0

    def end_statements(self) -> None:
        pass  # nobody waits for a file of another test

    def _sessions(self) -> list[dict[str, Any]]:
        """The open file descriptors on the database's file, in all processes (Linux only)."""
        target = str(self.path.resolve())
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                descriptors = list((process / "fd").iterdir())
            except OSError:  # ended meanwhile, or another user's
                continue
            for descriptor in descriptors:
                with contextlib.suppress(OSError):  # closed meanwhile
                    if str(descriptor.readlink()) == target:
                        found.append({"descriptor": str(descriptor), "in_transaction": False})
        return found


@contextlib.contextmanager
def read_only(postgresql: Backend) -> Iterator[None]:
    """Whoever connects while inside may only read, and later on, too: as with a standby."""
    alter = f'ALTER DATABASE "{postgresql.location.database}"'
    postgresql.execute(f"{alter} SET default_transaction_read_only = on")
    yield
    postgresql.execute(f"BEGIN READ WRITE; {alter} RESET ALL; COMMIT")


def connect_postgresql(url: URL) -> psycopg.Connection[Row]:
    text = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(text, autocommit=True, application_name=ASKER, connect_timeout=10)


def connect_mariadb(url: URL) -> "pymysql.Connection[Any]":
    return pymysql.connect(
        host=url.host or "127.0.0.1",
        port=url.port or 3306,
        user=url.username or "root",
        password=url.password or "",
        database=url.database,
        autocommit=True,
        connect_timeout=10,
        client_flag=CLIENT.MULTI_STATEMENTS,
    )


def plain_url(text: str) -> URL:
    """*text* as a URL without a driver."""
    url = make_url(text)
    return url.set(drivername=url.get_backend_name())
