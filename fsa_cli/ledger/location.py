"""Where the ledger is: in the app's own database, beside it, or where `ledger_url` says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy import URL, Dialect, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from fastapi_sqlalchemy.engines import urls
from fastapi_sqlalchemy.engines.connect_args import connect_args_for
from fastapi_sqlalchemy.exceptions import DBSessionError, MissingDriverError
from fsa_cli.database.engine_arguments import connect_args_of, engine_of, known_to_creator
from fsa_cli.database.identity import (
    address,
    identity,
    same_server,
    sqlite_file,
)
from fsa_cli.exceptions import ConfigurationError, LedgerUnusable
from fsa_cli.ledger import dialects
from fsa_cli.ledger.store import POOL_SIZE, SINGLE_POOL_SIZE, Ledger
from fsa_cli.project.settings import Settings

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

__all__ = ["Access", "access_of", "cannot_hold", "ledger_of", "shares"]

Access = tuple[object, str | None]

#: How long a server may take to greet, and by which argument a driver takes that.
CONNECT_S = 10
_GREETING_LIMITS = {
    "psycopg": "connect_timeout",
    "psycopg2": "connect_timeout",
    "pymysql": "read_timeout",
}


def ledger_of(databases: Mapping[str, Database], settings: Settings) -> Ledger:
    """The ledger of an app with these databases; nothing is connected or created yet.

    PostgreSQL, MySQL and MariaDB hold it in the app's own database. A SQLite app has it in a file
    beside its own, because a task that writes holds the whole file. An app without a database, or
    with one in memory, has it in a file in the project's folder for state.

    Raises:
        ConfigurationError: `ledger_url` cannot be one.
        LedgerUnusable: There is no driver for it, or the app's database cannot hold it.
    """
    url, creator = _place(databases, settings)
    try:
        url, connect_args = urls.url_for(url, "sync")
        connect_args = {**_connect_args(databases, url), **connect_args}
        arguments: dict[str, Any] = {"creator": creator} if creator else {}
        if url.get_backend_name() == "sqlite":
            connect_args = {**connect_args, "check_same_thread": False, "timeout": 10}
        engine_with = partial(
            sqlalchemy.create_engine,
            url,
            connect_args={} if creator else connect_args,
            poolclass=QueuePool,
            max_overflow=2,
            pool_timeout=dialects.STATEMENT_S,
            hide_parameters=True,
            **arguments,
        )
        if url.get_backend_name() == "sqlite":
            engine, single = engine_with(pool_size=SINGLE_POOL_SIZE), None
        else:
            engine = engine_with(pool_size=POOL_SIZE, isolation_level="READ COMMITTED")
            single = engine_with(
                pool_size=SINGLE_POOL_SIZE, isolation_level="AUTOCOMMIT", pool_reset_on_return=None
            )
            for each in (engine, single):
                event.listen(each, "do_connect", _connect)
    except (ImportError, MissingDriverError) as exc:
        raise LedgerUnusable(
            f"the ledger needs a driver that is not installed: {urls.installation(url, 'sync')}",
            details=[address(url)],
            hint="fsa config says where the URL is from",
        ) from exc
    except (DBSessionError, SQLAlchemyError) as exc:
        raise LedgerUnusable(
            "the ledger's database cannot be opened",
            details=[address(url), str(exc)],
            hint="ledger_url in [tool.fsa], or FSA_LEDGER_URL, says how the ledger connects; TLS "
            "by sslmode and sslrootcert (ssl_ca)",
        ) from exc
    in_state_dir = (url.database or "").startswith(f"{settings.state_dir}{os.sep}")
    return Ledger(
        engine,
        settings.namespace,
        address(url),
        single,
        project=str(settings.directory) if in_state_dir else None,
        connect_args=connect_args,
    )


def shares(ledger: Ledger, url: URL | None) -> bool:
    """Whether a commit at *url* and the ledger's rows can be one transaction."""
    if ledger.is_sqlite or url is None:
        return False
    access, (mine, _) = access_of(url), access_of(ledger.engine.url)
    return mine is not None and access[0] == mine and access not in ledger.apart


def access_of(url: URL) -> Access:
    """The database that *url* names, and the user: what the user may do there is the same."""
    known = _accesses.get(id(url))
    if known is None or known[0] is not url:
        if len(_accesses) >= _MOST_ACCESSES:
            _accesses.clear()
        known = _accesses[id(url)] = url, (identity(url), url.username)
    return known[1]


# Each run asks, of the few URLs that its engines have; to compare two URLs takes as long as this.
_accesses: dict[int, tuple[URL, Access]] = {}
_MOST_ACCESSES = 100


def cannot_hold(databases: Mapping[str, Database], settings: Settings) -> str | None:
    """The kind of the app's database, if that cannot hold the ledger and nothing else is named."""
    database = _first(databases)
    if settings.ledger_url or database is None or database.url is None:
        return None
    backend = database.url.get_backend_name()
    return None if dialects.holds_ledger(backend) else backend


def _first(databases: Mapping[str, Database]) -> Database | None:
    return databases.get("default", next(iter(databases.values()), None))


def _place(
    databases: Mapping[str, Database], settings: Settings
) -> tuple[URL, Callable[..., Any] | None]:
    """Its URL, and the function that opens a connection, if the app has one of its own."""
    if settings.ledger_url:
        try:
            url = urls.parse(settings.ledger_url)
        except DBSessionError as exc:
            raise ConfigurationError(
                str(exc), details=[f"ledger_url, from {settings.sources['ledger_url']}"]
            ) from exc
        if not dialects.holds_ledger(url.get_backend_name()):
            raise ConfigurationError(
                f"the ledger cannot be on {url.get_backend_name()}",
                details=[f"ledger_url, from {settings.sources['ledger_url']}"],
                hint="PostgreSQL, MySQL, MariaDB or SQLite",
            )
        return url, None
    if (backend := cannot_hold(databases, settings)) is not None:
        # A file on each machine would have each of them run every instant.
        raise LedgerUnusable(
            f"the app's database cannot hold the ledger of runs: it is {backend}",
            details=["PostgreSQL, MySQL, MariaDB, SQLite can; all machines need the same"],
            hint='[tool.fsa] ledger_url = "postgresql://...", or FSA_LEDGER_URL',
        )
    database = _first(databases)
    if database is not None and database.url is not None:
        url = database.url
        kind = url.get_backend_name()
        if kind in ("postgresql", "mysql", "mariadb"):
            return url, _creator(database)
        if kind == "sqlite" and (path := sqlite_file(url)):
            file = Path(path)
            beside = file.with_name(f"{file.stem}-ledger{file.suffix or '.db'}")
            return URL.create("sqlite", database=str(beside)), None
    return URL.create("sqlite", database=str(Path(settings.state_dir, "ledger.db"))), None


def _creator(database: Database) -> Callable[..., Any] | None:
    """How the app's own engine connects: its `connect_args`, its `creator`, its `do_connect`."""
    try:
        engine = database.engine
    except DBSessionError:  # `_connect_args` has the async side's, or says what has no counterpart
        return None

    def connect() -> Any:
        known = known_to_creator(engine)
        dialect, cparams = known.get("dialect"), known.get("cparams")
        cargs = known.get("cargs_tup", known.get("cargs"))  # older SQLAlchemy's
        if dialect is None or cargs is None or cparams is None or dialect.dispatch.do_connect:
            return engine.pool._creator()  # type: ignore[call-arg]  # the app's own way
        return _connect(dialect, None, cargs, cparams)

    return connect


def _connect(
    dialect: Dialect, record: object, cargs: Sequence[Any], cparams: Mapping[str, Any]
) -> Any:
    """A connection to a server that greets within `CONNECT_S`, unless the app gives a time.

    Where one says nothing psycopg waits 130 s, and psycopg2 for ever; so does pymysql, whose
    `connect_timeout` is over before the greeting.
    """
    name = _GREETING_LIMITS.get(dialect.driver)
    is_of_libpq = name == "connect_timeout"
    if name is None or name in cparams or (is_of_libpq and os.environ.get("PGCONNECT_TIMEOUT")):
        return dialect.connect(*cargs, **cparams)
    connection: Any = dialect.connect(*cargs, **cparams, **{name: CONNECT_S})
    if not is_of_libpq:
        connection._read_timeout = None  # statements may take longer
    return connection


def _connect_args(databases: Mapping[str, Database], url: URL) -> dict[str, Any]:
    """The `connect_args` of an app's engine on the server of *url*, as far as that has not its own.

    They are what a connection to that server needs (TLS, a time limit), for the driver of *url*.

    Raises:
        ConfigurationError: That driver cannot be told, and *url* says nothing of TLS itself.
    """
    for database in databases.values():
        if not same_server(database.url, url):
            continue
        try:
            engine = engine_of(database)
            told = connect_args_for(connect_args_of(engine), engine.url, url)
        except MissingDriverError:
            continue
        except DBSessionError:
            if any(name.startswith("ssl") for name in url.query):
                continue
            raise
        of_url = url.get_dialect()().create_connect_args(url)[1]
        return {name: value for name, value in told.items() if name not in of_url}
    return {}
