"""One process at a time migrates a database, and none waits long for a lock of the site's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from fsa_cli.database.identity import sqlite_file
from fsa_cli.exceptions import UsageError

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

    from fastapi_sqlalchemy import Database

__all__ = ["LockTimeout", "alone", "lock_was_not_free", "seconds_of"]

_POLL_S = 0.2
#: A transaction, since a pooler in transaction mode lends no session for longer. It is asked again
#: instead of waiting: a statement that waits has a snapshot, for which the holder's CREATE INDEX
#: CONCURRENTLY would wait.
_POSTGRESQL = (
    "SELECT pg_try_advisory_xact_lock(hashtext('fsa db'), hashtext('migrations'))",
    # Also takes the place of the SELECT's portal, and drops the snapshot that asyncpg leaves in it.
    "SET LOCAL idle_in_transaction_session_timeout = 0",
)
_POSTGRESQL_17 = "SET LOCAL transaction_timeout = 0"
# The server ends an idle session after `wait_timeout`, which may be seconds, and its lock with it.
_MYSQL = (
    "SET SESSION wait_timeout = 604800",
    "SELECT GET_LOCK(concat('fsa.migrations.', md5(database())), 0)",
)


@contextlib.contextmanager
def alone(database: Database, waits: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of *database*'s migrations, once whoever has it has ended.

    PostgreSQL, MySQL and MariaDB keep it themselves, for a connection of its own; beside a SQLite
    file it is a file. Other databases have none.

    Args:
        waits: Called once if somebody else has it.
    """
    url = database.url
    kind = url.get_backend_name() if url is not None else ""
    holder: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if url is not None and kind == "sqlite":
        holder = _file(url, waits)
    elif kind in ("postgresql", "mysql", "mariadb"):
        holder = _connection(database, waits)
    with holder:
        yield


@contextlib.contextmanager
def _file(url: URL, waits: Callable[[], None]) -> Iterator[None]:
    """Not the database's own file: to close it anywhere in a process ends SQLite's locks on it."""
    import fcntl

    path = sqlite_file(url)
    if path is None or not os.access(Path(path).parent, os.W_OK):  # nothing is written there
        yield
        return
    lock = Path(f"{path}-fsa-migrations.lock")
    opened: list[int] = []

    def taken() -> bool:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), lock.stat()):  # its holder has not removed it
                opened.append(descriptor)
                return True
        os.close(descriptor)
        return False

    _wait_until(taken, waits)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(opened[0])


def _connection(
    database: Database, waits: Callable[[], None]
) -> contextlib.AbstractContextManager[None]:
    from fastapi_sqlalchemy.exceptions import ConfigurationError as NoSuchSide

    try:
        engine = database.engine
    except NoSuchSide:
        return _by_async_driver(database, waits)
    return _by_sync_driver(engine, waits)


@contextlib.contextmanager
def _by_sync_driver(theirs: Engine, waits: Callable[[], None]) -> Iterator[None]:
    engine = create_engine(theirs.url, **_arguments(theirs))
    with engine.connect() as connection:
        _wait_until(lambda: _taken(connection), waits)
        try:
            yield
        finally:
            with contextlib.suppress(SQLAlchemyError):  # it was cut: the lock is gone as well
                connection.rollback()


@contextlib.contextmanager
def _by_async_driver(database: Database, waits: Callable[[], None]) -> Iterator[None]:
    """In a thread: an env.py runs a loop of its own in this one."""
    from sqlalchemy.ext.asyncio import create_async_engine

    held, done = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    async def hold() -> None:
        theirs = database.async_engine.sync_engine  # it belongs to the loop
        engine = create_async_engine(theirs.url, **_arguments(theirs))
        async with engine.connect() as connection:
            first = True
            while not await connection.run_sync(_taken):
                if done.is_set():
                    return
                if first:
                    first = False
                    waits()
                await asyncio.sleep(_POLL_S)
            held.set()
            await asyncio.to_thread(done.wait)
            with contextlib.suppress(SQLAlchemyError):
                await connection.rollback()

    def run() -> None:
        try:
            asyncio.run(hold())
        except BaseException as exc:
            failed.append(exc)
        finally:
            held.set()

    thread = threading.Thread(target=run, name="fsa-migrations-lock", daemon=True)
    thread.start()
    try:
        held.wait()
        if failed:
            raise failed[0]
        yield
    finally:
        done.set()
        thread.join()


def _arguments(theirs: Engine) -> dict[str, Any]:
    """An engine that connects as *theirs* does, beside its pool, which may have one place."""
    return {
        "creator": lambda: theirs.pool._creator(),  # type: ignore[call-arg]
        "poolclass": NullPool,
        "isolation_level": "READ COMMITTED",
    }


def _taken(connection: Connection) -> bool:
    if connection.dialect.name != "postgresql":
        limit, take = _MYSQL
        connection.execute(text(limit))
        return bool(connection.scalar(text(take)))
    if connection.dialect.driver == "psycopg":  # no pooler keeps a prepared statement for it
        setattr(connection.connection.driver_connection, "prepare_threshold", None)  # noqa: B010
    take, limit = _POSTGRESQL
    if not connection.scalar(text(take)):
        connection.rollback()
        return False
    connection.execute(text(limit))
    if (connection.dialect.server_version_info or ()) >= (17,):
        connection.execute(text(_POSTGRESQL_17))
    return True


def _wait_until(taken: Callable[[], bool], waits: Callable[[], None]) -> None:
    if taken():
        return
    waits()
    while not taken():
        time.sleep(_POLL_S)


class LockTimeout:
    """How long a statement of a migration waits for a lock, and what is tried again.

    A statement that waits for a table's lock has everybody else wait who comes after it. So it
    gives up soon, lets go of all that it has, and comes back later.
    https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-LOCK-TIMEOUT
    """

    #: Seconds between the tries.
    PAUSES_S = (1, 2, 4, 8, 8, 8, 8)

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self.seconds = seconds
        self._say = say
        self._stepped = False
        self._half_done = False

    def repeat(self, work: Callable[[], Any]) -> Any:
        """The value of *work*, done again while a lock was not free in time.

        Not if a part of a migration was committed before (an autocommit block): a second time
        that part would fail.
        """
        for number, pause_s in enumerate(self.PAUSES_S, start=1):
            self._stepped = self._half_done = False
            try:
                return work()
            except DBAPIError as exc:
                if not _postgresql_gave_up(exc) or self._half_done:
                    raise
            self._pause(number, pause_s, "was rolled back, and comes again")
        return work()

    def apply_to(self, connection: Connection) -> None:
        """Have *connection*, which a migration will use, give up so."""
        kind, ms = connection.dialect.name, max(1, round(self.seconds * 1000))
        if kind == "postgresql":
            limit = f"SET LOCAL lock_timeout = {ms}"
            if connection.in_transaction():
                connection.exec_driver_sql(limit)
            event.listen(connection, "begin", lambda conn: self._limit(conn, limit))
            event.listen(connection, "commit", lambda conn: self._committed())
        elif kind in ("mysql", "mariadb"):
            seconds = max(1, round(self.seconds))
            for name in ("lock_wait_timeout", "innodb_lock_wait_timeout"):
                _set(connection, f"SET SESSION {name} = {seconds}")
            # Each statement that changes a table commits: none but the one that waited is repeated.
            event.listen(connection.engine, "do_execute", self._execute_again)
        elif kind == "sqlite":
            _set(connection, f"PRAGMA busy_timeout = {ms}")

    def stepped(self) -> None:
        """A migration has run, and its revision is written in the open transaction."""
        self._stepped = True

    def _limit(self, connection: Connection, statement: str) -> None:
        # CREATE INDEX CONCURRENTLY in an autocommit block waits without holding anybody up.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql(statement)

    def _committed(self) -> None:
        self._half_done, self._stepped = not self._stepped, False

    def _execute_again(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        for number, pause_s in enumerate(self.PAUSES_S, start=1):
            try:
                cursor.execute(statement, parameters)
            except Exception as exc:
                if _error_number(exc) != _LOCK_WAIT_TIMEOUT:
                    raise
            else:
                return True
            self._pause(number, pause_s, "comes again")
        return False

    def _pause(self, number: int, pause_s: float, what: str) -> None:
        self._say(
            f"a lock was not free within {self.seconds:g} s: the migration {what}"
            f" in {pause_s} s ({number} of {len(self.PAUSES_S)})"
        )
        time.sleep(pause_s)


_LOCK_WAIT_TIMEOUT = 1205


def lock_was_not_free(error: BaseException) -> bool:
    """Whether *error* is that of a statement that gave up waiting for a lock."""
    if not isinstance(error, DBAPIError):
        return False
    return _postgresql_gave_up(error) or _error_number(error.orig) == _LOCK_WAIT_TIMEOUT


def seconds_of(written: str, option: str) -> float:
    """The seconds of `2s`, `500ms` or `0`.

    Raises:
        UsageError: It is no duration.
    """
    number, unit = written.strip().lower(), 1.0
    for suffix, factor in (("ms", 0.001), ("min", 60.0), ("s", 1.0), ("m", 60.0)):
        if number.endswith(suffix):
            number, unit = number.removesuffix(suffix).strip(), factor
            break
    if not number.replace(".", "", 1).isdecimal():
        raise UsageError(f"{option} {written} is no duration", hint="2s, 500ms, or 0 for no limit")
    return float(number) * unit


def _set(connection: Connection, statement: str) -> None:
    """Change a setting of the session, and leave no transaction begun: Alembic would join it."""
    began = not connection.in_transaction()
    connection.exec_driver_sql(statement)
    if began:
        connection.rollback()


def _postgresql_gave_up(error: DBAPIError) -> bool:
    orig = error.orig
    return "55P03" in (getattr(orig, "sqlstate", None), getattr(orig, "pgcode", None)) or (
        # pg8000 has the codes of the protocol.
        bool(getattr(orig, "args", ()))
        and isinstance(orig.args[0], dict)  # type: ignore[union-attr]
        and orig.args[0].get("C") == "55P03"  # type: ignore[union-attr]
    )


def _error_number(error: object) -> object:
    arguments: Any = getattr(error, "args", ())
    return arguments[0] if arguments else None
