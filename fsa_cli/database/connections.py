"""Connections, and errors that mean that a database cannot be reached."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from fsa_cli.database.dialects import dialect_of
from fsa_cli.database.identity import address, same_database
from fsa_cli.database.listening import listen_once
from fsa_cli.database.next_step import next_step
from fsa_cli.exceptions import DatabaseUnreachable, DriverMissing, FsaError, Refused
from fsa_cli.terminal.user_code import chain_of, summarize_error, user_frame

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine
    from sqlalchemy.engine import ExceptionContext

    from fastapi_sqlalchemy import Database

T = TypeVar("T")

_DRIVERS = {"asyncpg", "psycopg", "psycopg2", "pymysql", "aiomysql", "asyncmy", "sqlite3"}
_MARK = "_fsa_could_not_connect"
_PING_TIMEOUT_S = 5.0


def connected(db: Database, work: Callable[[Connection], T]) -> T:
    """The value of *work* on a connection; what it does not commit is rolled back.

    The connection is the sync engine's, or the async one's if only that has a driver.
    """
    from fastapi_sqlalchemy.exceptions import ConfigurationError

    try:
        engine = db.engine
    except ConfigurationError as exc:
        missing = exc
    else:
        with engine.connect() as connection:
            return work(connection)
    # Not while the other is handled: an error of *work* would seem to come from a missing driver.
    return asyncio.run(_aconnected(db, work, missing))


def autocommits(db: Database) -> bool:
    """Whether an engine of *db* is in AUTOCOMMIT: each statement stays, whatever comes after it."""
    from fastapi_sqlalchemy.exceptions import DBSessionError

    for side in ("engine", "async_engine"):
        try:
            found = getattr(db, side)
            engine = getattr(found, "sync_engine", found)
        except (DBSessionError, RuntimeError):  # no driver for this side, or no loop runs
            continue
        at_connect = getattr(engine.dialect, "_on_connect_isolation_level", None)
        level = engine.get_execution_options().get("isolation_level", at_connect)
        if str(level).upper() == "AUTOCOMMIT":
            return True
    return False


def check_savepoints(databases: Iterable[Database]) -> None:
    """Check that what is done in them can be undone.

    Raises:
        Refused: One has no savepoints.
    """
    for db in databases:
        if db.url is not None and not dialect_of(db.url.get_backend_name()).has_savepoints(db.url):
            raise Refused(
                f"{address(db.url)}: nothing that is done there can be undone in the end, because "
                f"{db.url.drivername} has no savepoints",
                hint="run it on a copy of the database",
            )


def watch(engine: Engine | type[Engine]) -> None:
    """Mark, from now on, each exception of a connection that could not be opened, on *engine*.

    Args:
        engine: The class: any engine.
    """
    listen_once(engine, "handle_error", _mark)


def is_away(error: BaseException) -> bool:
    """Whether a connection could not be opened, or was lost. If not, the database has answered."""
    return any(
        getattr(each, _MARK, None) is not None or getattr(each, "connection_invalidated", False)
        for each in chain_of(error)
    )


def unreachable(
    error: BaseException,
    databases: Mapping[str, Database],
    url_sources: Mapping[str, str] | None = None,
) -> FsaError | None:
    """The error to raise if *error* means that a database cannot be reached; None if not.

    It is a DriverMissing or a DatabaseUnreachable.

    Some drivers' connection errors do not pass through an engine's events, and a
    `ConnectionRefusedError` may be about something else: then the databases are asked.

    Args:
        url_sources: The source of each database's URL.
    """
    from fastapi_sqlalchemy.exceptions import MissingDriverError

    chain = list(chain_of(error))
    for each in chain:
        if isinstance(each, MissingDriverError):
            return _without_driver(each)
        if (url := getattr(each, _MARK, None)) is not None:
            name = next((n for n, db in databases.items() if same_database(db.url, url)), None)
            return _unreachable(each, name, url, url_sources or {})
    if not any(_may_mean_it(each) for each in chain):
        return None
    from fastapi_sqlalchemy.health import ping

    for name, db in databases.items():
        try:
            ping(db, timeout_s=_PING_TIMEOUT_S)
        except Exception as exc:
            return _unreachable(exc, name, db.url, url_sources or {})
    return None


def driver_message(error: BaseException) -> str:
    """The driver's own message, without SQLAlchemy's wrapping and link."""
    return summarize_error(getattr(error, "orig", None) or error)


def error_code(error: BaseException) -> str | int | None:
    """MySQL's and MariaDB's number of an error, PostgreSQL's SQLSTATE; None: it has neither."""
    from fastapi_sqlalchemy.engines.driver_errors import driver_code

    return driver_code(getattr(error, "orig", None))


async def _aconnected(db: Database, work: Callable[[Connection], T], missing: Exception) -> T:
    from fastapi_sqlalchemy.exceptions import ConfigurationError

    try:
        engine = db.async_engine
    except ConfigurationError:  # neither driver: the one that the URL names is asked for
        raise missing from None
    async with engine.connect() as connection:
        return await connection.run_sync(work)


def _mark(context: ExceptionContext) -> None:
    if context.connection is None and context.engine is not None:
        for error in (context.sqlalchemy_exception, context.original_exception):
            if error is not None:
                setattr(error, _MARK, context.engine.url)


def _unreachable(
    error: BaseException, name: str | None, url: URL | None, sources: Mapping[str, str]
) -> DatabaseUnreachable:
    details = [address(url), driver_message(error)]
    if name is not None and name in sources:
        details.append(f"its URL is from {sources[name]}")
    failure = DatabaseUnreachable(
        f"the database {name!r} cannot be reached" if name else "a database cannot be reached",
        details=details,
        hint=next_step(error)
        or "is the server running, and are the host, the port, the user and the name right?",
    )
    failure.__cause__ = error
    return failure


def _without_driver(error: BaseException) -> DriverMissing:
    where = user_frame(error)
    failure = DriverMissing(
        str(error),
        details=where.lines() if where else [],
        hint="fsa config says where the URL is from",
    )
    failure.__cause__ = error
    return failure


def _may_mean_it(error: BaseException) -> bool:
    from sqlalchemy.exc import InterfaceError, OperationalError

    if isinstance(error, OperationalError | InterfaceError | OSError):
        return True
    return type(error).__module__.partition(".")[0] in _DRIVERS
