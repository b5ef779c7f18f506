"""`Ledger`: the database in which the runs are, and transactions that are tried again."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Table, UniqueConstraint, event, select, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.sql import literal_column

from fastapi_sqlalchemy.engines.read_only_servers import refuses_writes, renew
from fsa_cli.database import connections
from fsa_cli.database.identity import file_trouble, sqlite_file
from fsa_cli.database.next_step import next_step
from fsa_cli.exceptions import LedgerUnusable
from fsa_cli.ledger import dialects, tables, upgrade
from fsa_cli.project.state_dir import make_private_file, make_state_dir
from fsa_cli.terminal.masking import mask

__all__ = ["POOL_SIZE", "SINGLE_POOL_SIZE", "Ledger"]

T = TypeVar("T")

_ATTEMPTS = 6
_PAUSE_S = 0.02
_SILENT_S = 2.0
# Of one process, for transactions of several statements: a session's run, a broker's messages.
POOL_SIZE = 2
# For single statements. Six threads keep one: they claim here, claim for a broker, take messages,
# maintain, record ends, and count them. The lease and a run's own questions come beside.
SINGLE_POOL_SIZE = 8


class Ledger:
    """The runs of one namespace.

    Args:
        engine: From `fsa_cli.ledger.location`; used for nothing else.
        namespace: Services that share a database do not claim each other's runs.
        where: Its name in messages; no password.
        project: The project in whose folder for state it is a file.
        single: An engine for single statements, whose connections are in AUTOCOMMIT from the first.
            A connection of *engine* can be set to it, but that the server has closed it meanwhile
            shows then as the driver's own error.
    """

    def __init__(
        self,
        engine: Engine,
        namespace: str,
        where: str,
        single: Engine | None = None,
        *,
        project: str | None = None,
        connect_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.engine = engine
        self.namespace = namespace
        self.where = where
        self.connect_args = dict(connect_args or {})
        """What its driver needs beside the URL: for a connection that is not its engine's."""
        self._project = project
        self.sql = dialects.dialect_sql(engine.dialect)
        self.is_sqlite = engine.dialect.name == "sqlite"
        # SQLite's own waiting sleeps up to 100 ms at a time: threads of a process take turns.
        self._turn = threading.Lock() if self.is_sqlite else contextlib.nullcontext()
        self._single = single or engine.execution_options(isolation_level="AUTOCOMMIT")
        self._kept = threading.local()
        self._renewals = 0
        self._schema: str | None = None
        self.session: list[str] = []
        """PostgreSQL: the user and the search path of its own sessions, once `schema` is known."""
        self.was_refused = False
        """Whether a transaction of the app's could not write its tables: each is asked first."""
        self.apart: set[tuple[object, str | None]] = set()
        """The accesses (`location.access_of`) to its own database that may not write its tables."""
        self.effect_schemas: dict[tuple[object, str | None], str] = {}
        """The schema of `fsa_effect`, by access to a database."""
        for each in {engine, single or engine}:
            event.listen(each, "connect", self._on_connect)
            event.listen(each, "handle_error", self._on_error)
            connections.watch(each)  # in a web process nobody else does
        if self.is_sqlite:
            event.listen(engine, "begin", dialects.begin)

    def __repr__(self) -> str:
        return f"<Ledger {self.namespace!r}: {self.where}>"

    def dispose(self) -> None:
        """Close the connections that are not in use."""
        self.engine.dispose()
        self._single.dispose()

    def write(
        self,
        work: Callable[[Connection], T],
        *,
        attempts: int = _ATTEMPTS,
        waits_s: float = math.inf,
    ) -> T:
        """The value of *work*, committed.

        It is done again after a deadlock, and on a new connection where one was lost. Whether a
        COMMIT that was sent has happened is then unknown: *work* must give the same when it is done
        twice.

        Args:
            waits_s: For how long it is tried again where it waits in vain for another's row.

        Raises:
            SQLAlchemyError: The database refused, or was away each time.
        """
        return _persistently(self._writing, work, attempts, waits_s=waits_s)

    def at_once(
        self,
        work: Callable[[Connection], T],
        *,
        attempts: int = _ATTEMPTS,
        waits_s: float = math.inf,
    ) -> T:
        """As `write`, for a single statement: that is a transaction of its own."""
        if self.is_sqlite:  # its driver does not go back from AUTOCOMMIT to what `begin` needs
            return self.write(work, attempts=attempts, waits_s=waits_s)
        return _persistently(self._own_connection, work, attempts, waits_s=waits_s)

    def write_once(self, run_id: str, insert: Callable[[Connection], object]) -> None:
        """As `at_once`, for a statement that inserts the run *run_id*: it is inserted once, also
        where the answer to the first COMMIT was lost."""
        tried = False

        def work(connection: Connection) -> None:
            nonlocal tried
            if tried:
                there = select(tables.run.c.id).where(tables.run.c.id == run_id)
                if connection.scalar(there) is not None:
                    return
            tried = True
            insert(connection)

        self.at_once(work)

    def read(self, work: Callable[[Connection], T], *, attempts: int = _ATTEMPTS) -> T:
        """As `write`, without a commit."""
        return _persistently(self._reading, work, attempts)

    def now_ms(self, connection: Connection) -> int:
        """The database's clock."""
        return int(connection.scalar(select(literal_column(self.sql.now_ms))) or 0)

    @property
    def is_located(self) -> bool:
        """Whether `schema` is known, so that asking for it sends nothing."""
        return self.is_sqlite or self._schema is not None

    @property
    def schema(self) -> str | None:
        """The schema of its tables (MySQL: the database); None on SQLite, and before they exist."""
        if self._schema is None and not self.is_sqlite:
            found = self.read(
                lambda connection: connection.execute(text(self.sql.schema_of_runs)).one_or_none()
            )
            if found is not None:
                self._schema, *self.session = found
        return self._schema

    def qualified(self, table: str) -> str:
        """*table* as a statement names it whose search path or database may be another one."""
        if self.schema is None:
            return table
        quoted = self.engine.dialect.identifier_preparer.quote(self.schema)
        return f"{quoted}.{table}".replace(":", "\\:")

    # -- the tables ----------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether all tables exist.

        Raises:
            LedgerUnusable: A table has not the columns of this version.
        """
        if self.is_sqlite:
            if not self._has_file():
                return False
            self._keep_private()
        found, newest = self.read(upgrade.found_in)
        upgrade.check(found, newest, self.where)
        for table, missing in upgrade.missing_columns(found):
            raise LedgerUnusable(
                f"the ledger's table {table.name} has no column {', '.join(sorted(missing))}",
                details=[self.where, "another version of fsa created it"],
                hint="fsa scheduler init adds what this version needs; --sql prints it",
            )
        return upgrade.is_whole(found, newest)

    def lost_tables(self) -> list[str]:
        """The tables that do not exist although others do: dropped, or of a later version."""
        if self.is_sqlite and not self._has_file():
            return []
        found = self.read(upgrade.columns_in)
        every = [table.name for table in tables.metadata.sorted_tables]
        return [name for name in every if name not in found] if found else []

    def check_keys(self) -> None:
        """Check that the UNIQUE keys exist: they, and nothing else, say who has an instant.

        Raises:
            LedgerUnusable: One is missing.
        """
        found = self.read(self._keys)
        for table in tables.metadata.sorted_tables:
            for name, columns in _keys_of(table).items():
                if columns not in found[table.name]:
                    raise LedgerUnusable(
                        f"the ledger's table {table.name} has lost its key {name} "
                        f"({', '.join(sorted(columns))})",
                        details=[self.where, "without it runs start twice"],
                        hint="fsa scheduler init --sql shows the tables with their keys",
                    )

    def create(self) -> bool:
        """Create what the tables lack, also while other processes do; False if all existed.

        Raises:
            LedgerUnusable: It cannot be created here.
        """
        if self.is_sqlite and not self._has_file():
            self._keep_private()
        else:
            found, newest = self.read(upgrade.found_in)
            upgrade.check(found, newest, self.where)  # before any is created beside another's
            if upgrade.is_whole(found, newest):
                return not self.exists()
        try:
            self._create()
        except SQLAlchemyError as exc:
            step = next_step(exc)
            if step is None or "GRANT" in step:
                step = "fsa scheduler init --sql prints them for a person who may"
            said = mask(str(getattr(exc, "orig", exc)).splitlines()[0])
            trouble = file_trouble(self.engine.url) if self.is_sqlite else None
            raise LedgerUnusable(
                "the ledger's tables cannot be created",
                details=[self.where, said, *([mask(trouble)] if trouble else [])],
                hint=step,
            ) from exc
        return self.exists()

    def _create(self) -> None:
        for attempt in range(1, 11):
            try:
                # One at a time: SQLAlchemy looks, then creates; ten processes may look at once.
                with self._turn, self.engine.connect() as connection:
                    for table in tables.metadata.sorted_tables:
                        table.create(connection, checkfirst=True)
                        connection.commit()
                    upgrade.add_missing(connection, upgrade.columns_in(connection))
                    upgrade.mark(connection)
                return
            except DBAPIError:
                if attempt == 10:
                    raise
                time.sleep(0.05 * attempt)

    def _keys(self, connection: Connection) -> dict[str, set[frozenset[str]]]:
        from sqlalchemy import inspect

        inspector = inspect(connection)
        found = {}
        for table in tables.metadata.sorted_tables:
            primary = inspector.get_pk_constraint(table.name)["constrained_columns"]
            keys = [each["column_names"] for each in inspector.get_unique_constraints(table.name)]
            keys += [
                [name for name in each["column_names"] if name is not None]
                for each in inspector.get_indexes(table.name)
                if each["unique"] and not each.get("dialect_options", {}).get("postgresql_where")
            ]
            found[table.name] = {frozenset(each) for each in [primary, *keys]}
        return found

    @property
    def file(self) -> Path | None:
        """SQLite's file; None: it is in no file, or on another database."""
        return None if not self.is_sqlite or sqlite_file(self.engine.url) is None else self._file

    @property
    def _file(self) -> Path:
        return Path((self.engine.url.database or "").removeprefix("file:"))

    def _has_file(self) -> bool:
        try:
            return self._file.is_file()
        except PermissionError as exc:
            raise LedgerUnusable(
                "the ledger's file cannot be looked for",
                details=[mask(str(exc))],
                hint="may this user enter its directory?",
            ) from exc

    def _keep_private(self) -> None:
        """Make its file and folder, or see to it that they are this user's own."""
        if sqlite_file(self.engine.url) is None:
            return
        try:
            if self._project is not None:
                make_state_dir(self._project)
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for suffix in ("", "-wal", "-shm"):
                path = f"{self._file}{suffix}"
                if not suffix or Path(path).exists():
                    make_private_file(path)
        except OSError as exc:
            raise LedgerUnusable(
                "there is no place for the ledger",
                details=[mask(file_trouble(self.engine.url) or str(exc))],
                hint="ledger_url in [tool.fsa], FSA_LEDGER_URL, or FSA_STATE_DIR",
            ) from exc

    # -- connections ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._turn, self.engine.begin() as connection:
            if self.sql.limits is not None:
                connection.exec_driver_sql(self.sql.limits)
            yield connection

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        if not self.is_sqlite:  # READ COMMITTED: each statement sees what is committed then anyway
            with self._own_connection() as connection:
                yield connection
            return
        # SQLite's readers wait for nobody, and must not begin as writers do.
        with self.engine.connect() as connection:
            yield connection.execution_options(fsa_reading=True)

    @contextlib.contextmanager
    def keeping_a_connection(self) -> Iterator[None]:
        """While inside, this thread keeps the connection of `at_once` and `read`: to take one from
        the pool and to give it back takes as long as a statement."""
        self._kept.connection = None
        try:
            yield
        finally:
            self._drop_kept()
            del self._kept.connection

    @contextlib.contextmanager
    def _own_connection(self) -> Iterator[Connection]:
        if not hasattr(self._kept, "connection"):
            with self._single.connect() as connection:
                yield connection
            return
        if self._kept.connection is None or self._kept.renewals != self._renewals:
            self._drop_kept()
            self._kept.renewals = self._renewals
            self._kept.connection = self._single.connect()
        try:
            yield self._kept.connection
        except BaseException:
            self._drop_kept()
            raise

    def _drop_kept(self) -> None:
        connection, self._kept.connection = self._kept.connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # it was lost
                connection.close()

    def on_lost(self, listener: Callable[[], None]) -> None:
        """Call *listener* for each connection of these that turns out to be lost, before it is
        opened again, in the thread that has met that."""
        for pool in {self.engine.pool, self._single.pool}:
            event.listen(pool, "invalidate", lambda *_: listener())

    def new_connection(self) -> PoolProxiedConnection:
        """A connection for the caller's own use, set up as the others are."""
        return self._single.raw_connection()

    def _on_connect(self, connection: Any, record: object) -> None:
        dialects.prepare(self.engine.dialect.name, connection)

    def _on_error(self, context: ExceptionContext) -> None:
        """A server that has become a standby: what only reads there would not notice."""
        if refuses_writes(context.original_exception):
            for pool in {self.engine.pool, self._single.pool}:
                renew(pool)
            self._renewals += 1


def _keys_of(table: Table) -> dict[str, frozenset[str]]:
    """The primary key and the UNIQUE keys of a table of ours: name and columns."""
    found = {"PRIMARY KEY": frozenset(column.name for column in table.primary_key)}
    for each in table.constraints:
        if isinstance(each, UniqueConstraint):
            found[str(each.name)] = frozenset(column.name for column in each.columns)
    return found


def _persistently(
    connected: Callable[[], AbstractContextManager[Connection]],
    work: Callable[[Connection], T],
    attempts: int,
    *,
    waits_s: float = math.inf,
) -> T:
    first_s = time.monotonic()
    for attempt in range(1, attempts + 1):
        begun_s, is_connected = time.monotonic(), False
        try:
            with connected() as connection:
                is_connected = True
                return work(connection)
        except DBAPIError as exc:
            if attempt == attempts or not dialects.transient(exc):
                raise
            # A server that says nothing says nothing the next time either.
            if not is_connected and time.monotonic() - begun_s > _SILENT_S:
                raise
            if dialects.is_lock_wait(exc) and time.monotonic() - first_s >= waits_s:
                raise
            time.sleep(_PAUSE_S * (attempt - 1))
    raise AssertionError("unreachable")
