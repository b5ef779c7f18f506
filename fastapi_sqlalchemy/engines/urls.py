"""A database URL for the other side: which driver serves it, and with which parameters.

One URL configures a sync and an async engine. Some drivers serve both (psycopg); the others have a
counterpart (sqlite and aiosqlite, psycopg2 and asyncpg), which may use other names for the same
parameters: see `url_parameters`.
"""

from __future__ import annotations

import os
import re
import shlex
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

from sqlalchemy import URL, make_url
from sqlalchemy.dialects import registry
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from ..exceptions import ConfigurationError, MissingDriverError
from .url_parameters import native, refused, translate

__all__ = [
    "Side",
    "installation",
    "is_secret",
    "masked",
    "missing_driver",
    "parse",
    "serves",
    "url_for",
]

Side = Literal["sync", "async"]
_A = {"sync": "a sync", "async": "an async"}

_SECRET = re.compile(
    r"pass|pwd|secret|token|credential|signature|odbc_connect|"
    r"(api|access|auth|private|account|shared|secret|encryption|signing|sas)[-_.]?key|^key$|^sig$",
    re.I,
)


class Driver(NamedTuple):
    """A driver that SQLAlchemy knows: the module it needs and the package that brings it."""

    module: str
    package: str
    sides: tuple[Side, ...]
    parameters: str


_DRIVERS: dict[str, dict[str, Driver]] = {
    "postgresql": {
        "psycopg": Driver("psycopg", "psycopg[binary]", ("sync", "async"), "libpq"),
        "psycopg_async": Driver("psycopg", "psycopg[binary]", ("async",), "libpq"),
        "asyncpg": Driver("asyncpg", "asyncpg", ("async",), "asyncpg"),
        "psycopg2": Driver("psycopg2", "psycopg2-binary", ("sync",), "libpq"),
        "pg8000": Driver("pg8000", "pg8000", ("sync",), "pg8000"),
    },
    "mysql": {
        "pymysql": Driver("pymysql", "pymysql", ("sync",), "pymysql"),
        "aiomysql": Driver("aiomysql", "aiomysql", ("async",), "aiomysql"),
        "asyncmy": Driver("asyncmy", "asyncmy", ("async",), "asyncmy"),
        "mysqldb": Driver("MySQLdb", "mysqlclient", ("sync",), "pymysql"),
        "mysqlconnector": Driver(
            "mysql.connector", "mysql-connector-python", ("sync",), "connector"
        ),
        "mariadbconnector": Driver("mariadb", "mariadb", ("sync",), "connector"),
    },
    "sqlite": {
        "pysqlite": Driver("sqlite3", "", ("sync",), "sqlite"),
        "aiosqlite": Driver("aiosqlite", "aiosqlite", ("async",), "sqlite"),
    },
    "mssql": {
        "pyodbc": Driver("pyodbc", "pyodbc", ("sync",), "odbc"),
        "aioodbc": Driver("aioodbc", "aioodbc", ("async",), "odbc"),
    },
    "oracle": {
        "oracledb": Driver("oracledb", "oracledb", ("sync", "async"), "oracledb"),
        "oracledb_async": Driver("oracledb", "oracledb", ("async",), "oracledb"),
    },
}
_DRIVERS["mariadb"] = _DRIVERS["mysql"]

_NEAR = 0.75


def parse(url: str | URL) -> URL:
    """`url` as a URL.

    Raises:
        ConfigurationError: it cannot be one. The message does not repeat it: it may hold a
            password.
    """
    if not isinstance(url, str | URL):
        kind = type(url).__name__
        raise ConfigurationError(
            f"The database URL is a {kind}, not a str: give db_url str(url) of a DSN or a path, "
            "and url.get_secret_value() of a SecretStr."
        )
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "The database URL cannot be read: it is not of the form "
            "postgresql://user:password@host:5432/database, where special characters of a user "
            "name or password are percent-encoded: urllib.parse.quote(password, safe=''). Several "
            "hosts of PostgreSQL are postgresql:///database?host=one:5432&host=two:5432."
        ) from None
    if _is_cut(parsed, url):
        raise ConfigurationError(
            "The database URL cannot be read: an @ in its user name or password is not "
            "percent-encoded (%40), and what comes after it would be taken for the host. "
            "urllib.parse.quote(password, safe='') encodes a password."
        )
    meant = _meant(parsed.drivername)
    if meant is not None:
        raise ConfigurationError(
            f"SQLAlchemy knows no {parsed.drivername!r} database: write {meant}:// for "
            f"{parsed.drivername}://."
        )
    return parsed


def _is_cut(parsed: URL, given: str | URL) -> bool:
    """Whether an "@" in the middle of a password was taken for its end.

    The rest of it would be tried as a host, by name, and stand in every message about that.
    """
    if "@" in (parsed.host or ""):
        return True
    if parsed.host and "/" in (parsed.database or "").partition("@")[2]:  # it had a "/" too
        return True
    rest = given.rpartition(f"@{parsed.host or ''}")[2] if isinstance(given, str) else ""
    return "@" in rest.partition("?")[2].partition("=")[0]  # or a "?"


def _meant(name: str) -> str | None:
    """The dialect that `name` is a slip of the pen for; None: it is one, or near to none."""
    family, plus, driver = name.partition("+")
    if family in _DRIVERS and (not plus or driver in _DRIVERS[family]):
        return None
    from difflib import get_close_matches

    families = get_close_matches(family, _DRIVERS, n=1, cutoff=_NEAR)
    if not families:
        return None
    drivers = get_close_matches(driver, _DRIVERS[families[0]], n=1, cutoff=_NEAR)
    meant = "".join([*families, plus, *drivers])
    if meant == name or (driver and not drivers):
        return None
    try:
        registry.load(name.replace("+", "."))
    except NoSuchModuleError:
        return meant
    return None  # another package's


def masked(url: URL) -> str:
    """`url` as text for people and logs: no password, in the query arguments neither."""
    query = {name: "***" if is_secret(name) else url.query[name] for name in url.query}
    database = url.database
    if database is not None:  # the file's name may be no UTF-8
        database = database.encode(errors="backslashreplace").decode()
    shown = url.set(query=query, database=database)
    return shown.render_as_string().replace("%2A%2A%2A", "***")


def is_secret(parameter: str) -> bool:
    """Whether a URL parameter of this name holds what nobody may read in a log."""
    return _SECRET.search(parameter) is not None


def driver_of(url: URL) -> Driver | None:
    """The driver that `url` names, or that SQLAlchemy takes for it; None if it is not known here.

    What `postgresql://` means is SQLAlchemy's to say: psycopg2 in 2.0, psycopg in 2.1.
    """
    family = _DRIVERS.get(url.get_backend_name(), {})
    return family.get(_driver_name(url))


def serves(url: URL, side: Side) -> bool:
    """Whether the driver that `url` names can serve `side`."""
    driver = driver_of(url)
    if driver is not None:
        return side in driver.sides
    return side == ("async" if url.get_dialect().is_async else "sync")


def url_for(url: URL, side: Side) -> tuple[URL, dict[str, Any]]:
    """`url` for the driver that serves `side`, with the connect arguments that no URL can say.

    Raises:
        ConfigurationError: no driver of that side is known, or a query argument has no
            counterpart in that driver.
        MissingDriverError: none of the drivers that could serve it is installed.
    """
    source = driver_of(url)
    if serves(url, side):
        _refuse_service(url, source)
        query, connect_args = native(dict(url.query), source.parameters if source else "")
        if source is not None and (unheard_of := refused(query, source.parameters)):
            raise ConfigurationError(
                f"The URL's query arguments mean nothing to {source.module}: "
                f"{', '.join(unheard_of)}. Leave them out."
            )
        return url.set(query=query), connect_args
    family = _DRIVERS.get(url.get_backend_name(), {})
    candidates = {name: driver for name, driver in family.items() if side in driver.sides}
    if source is None or not candidates:
        argument, attribute = (
            ("db_url", "db.session") if side == "sync" else ("async_db_url", "db.async_session")
        )
        raise ConfigurationError(
            f"{attribute} needs {_A[side]} driver, and none is known that goes with "
            f"{url.drivername!r}. Name one: {argument}=..."
        )
    for name, driver in candidates.items():
        if _is_installed(driver.module):
            _refuse_service(url, driver)
            unknown = dict(url.query)
            query, connect_args = translate(unknown, source.parameters, driver.parameters)
            if unknown:
                raise ConfigurationError(
                    f"The URL's query arguments mean nothing to {driver.module}: "
                    f"{', '.join(sorted(unknown))}. Give the {side} side a URL of its own: "
                    f"{'db_url' if side == 'sync' else 'async_db_url'}=..."
                )
            translated = url.set(drivername=f"{url.get_backend_name()}+{name}", query=query)
            return translated, connect_args
    raise missing_driver(url, side)


def _refuse_service(url: URL, driver: Driver | None) -> None:
    """Refuse what asyncpg would have to take from libpq's `PGSERVICE`, which it does not read.

    It would connect to the machine's own socket, and psycopg to the service's host.
    """
    if driver is None or driver.module != "asyncpg" or url.host or "host" in url.query:
        return
    if os.environ.get("PGSERVICE"):
        raise ConfigurationError(
            "The URL names no host, and asyncpg does not read PGSERVICE: name host and database in "
            "the URL, or serve both sides with postgresql+psycopg://."
        )


def missing_driver(url: URL, side: Side) -> MissingDriverError:
    """The error that names the package to install so that `url` is served on `side`."""
    attribute = "db.session" if side == "sync" else "db.async_session"
    return MissingDriverError(
        f"{attribute} needs {_A[side]} driver for {url.drivername!r} that is not installed. "
        f"Install it: {installation(url, side)}"
    )


def installation(url: URL, side: Side) -> str:
    """What to do so that `url` is served on `side`: `pip install pymysql`."""
    family = _DRIVERS.get(url.get_backend_name(), {})
    named = driver_of(url)
    if named is None or side not in named.sides:
        named = next((driver for driver in family.values() if side in driver.sides), None)
    package = named.package if named else url.get_driver_name()
    installed = next(
        (
            name
            for name, driver in family.items()
            if side in driver.sides and driver is not named and _is_installed(driver.module)
        ),
        None,
    )
    instead = "" if installed is None else f", or write {url.get_backend_name()}+{installed}://"
    return f"pip install {shlex.quote(package)}{instead}"


def _driver_name(url: URL) -> str:
    return url.get_driver_name() if "+" not in url.drivername else url.drivername.split("+")[1]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
