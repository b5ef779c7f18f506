"""A database URL, said for the other side: which driver serves it, and in which words.

One URL configures a sync and an async engine. Some drivers serve both (psycopg); the others have a
counterpart (sqlite and aiosqlite, psycopg2 and asyncpg), which may use other names for the same
query arguments: what has a counterpart is translated, what has none is refused by name, because an
argument that is dropped in silence is a TLS check that nobody makes.
"""

from __future__ import annotations

import math
import shlex
import ssl
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

from sqlalchemy import URL

from .exceptions import ConfigurationError, MissingDriverError

Side = Literal["sync", "async"]
Query = dict[str, Any]


class Driver(NamedTuple):
    """A driver that SQLAlchemy knows: the module it needs and the package that brings it."""

    module: str
    package: str
    sides: tuple[Side, ...]
    words: str


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


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_AIOMYSQL_WORDS = _words(
    "charset unix_socket connect_timeout local_infile init_command sql_mode read_default_file "
    "read_default_group use_unicode client_flag program_name autocommit"
)
_ASYNCMY_WORDS = _AIOMYSQL_WORDS | {"read_timeout", "max_allowed_packet"}
_PYMYSQL_SSL_WORDS = _words("ssl_ca ssl_capath ssl_cert ssl_key ssl_cipher ssl_check_hostname")
_LIBPQ_SSL_WORDS = _words(
    "sslmode sslcert sslkey sslrootcert sslcrl sslpassword sslnegotiation "
    "ssl_min_protocol_version ssl_max_protocol_version"
)
# The same word with the same meaning in libpq and in asyncpg.connect().
_POSTGRESQL_SHARED_WORDS = _words("host port passfile target_session_attrs krbsrvname gsslib")
_ASYNCPG_CACHES = _words(
    "statement_cache_size prepared_statement_cache_size max_cached_statement_lifetime "
    "max_cacheable_statement_size"
)


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
            counterpart in its words.
        MissingDriverError: none of the drivers that could serve it is installed.
    """
    if serves(url, side):
        return url, {}
    source = driver_of(url)
    family = _DRIVERS.get(url.get_backend_name(), {})
    candidates = {name: driver for name, driver in family.items() if side in driver.sides}
    if source is None or not candidates:
        argument, attribute = (
            ("db_url", "db.session") if side == "sync" else ("async_db_url", "db.async_session")
        )
        raise ConfigurationError(
            f"{attribute} needs a {side} driver, and none is known that goes with "
            f"{url.drivername!r}. Name one: {argument}=..."
        )
    for name, driver in candidates.items():
        if _is_installed(driver.module):
            query, connect_args = _translate(dict(url.query), source, driver)
            return (
                url.set(drivername=f"{url.get_backend_name()}+{name}", query=query),
                connect_args,
            )
    raise missing_driver(url, side)


def missing_driver(url: URL, side: Side) -> MissingDriverError:
    """The error that names the package to install so that `url` is served on `side`."""
    family = _DRIVERS.get(url.get_backend_name(), {})
    named = driver_of(url)
    if named is None or side not in named.sides:
        named = next((driver for driver in family.values() if side in driver.sides), None)
    package = named.package if named else url.get_driver_name()
    attribute = "db.session" if side == "sync" else "db.async_session"
    return MissingDriverError(
        f"{attribute} needs a {side} driver for {url.drivername!r} that is not installed. "
        f"Install it:\n\n    pip install {shlex.quote(package)}"
    )


def same_words(url: URL, other: URL) -> bool:
    """Whether connect arguments meant for the driver of `url` are understood by that of `other`."""
    one, two = driver_of(url), driver_of(other)
    if one is None or two is None:
        return url.get_driver_name() == other.get_driver_name()
    return one.module == two.module or one.words == two.words == "sqlite"


def _driver_name(url: URL) -> str:
    return url.get_driver_name() if "+" not in url.drivername else url.drivername.split("+")[1]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _translate(query: Query, source: Driver, target: Driver) -> tuple[Query, dict[str, Any]]:
    if source.words == target.words or not query:
        return query, {}
    translate = _TRANSLATIONS.get((source.words, target.words), _refuse_all)
    translated, connect_args = translate(query)
    if query:
        words = ", ".join(sorted(query))
        raise ConfigurationError(
            f"The URL's query arguments mean nothing to {target.module}: {words}. Give the "
            f"{'async' if 'async' in target.sides else 'sync'} side a URL of its own: "
            f"{'async_db_url' if 'async' in target.sides else 'db_url'}=..."
        )
    return translated, connect_args


def _refuse_all(query: Query) -> tuple[Query, dict[str, Any]]:
    return {}, {}


def _take(query: Query, words: frozenset[str]) -> Query:
    return {word: query.pop(word) for word in list(query) if word in words}


def _libpq_to_asyncpg(query: Query) -> tuple[Query, dict[str, Any]]:
    """https://magicstack.github.io/asyncpg/current/api/index.html#connection"""
    translated = _take(query, _POSTGRESQL_SHARED_WORDS)
    connect_args: dict[str, Any] = {}
    settings = _settings_of_options(query)
    if "application_name" in query:
        settings["application_name"] = query.pop("application_name")
    if settings:
        connect_args["server_settings"] = settings
    if "connect_timeout" in query:
        connect_args["timeout"] = float(query.pop("connect_timeout"))
    if tls := _take(query, _LIBPQ_SSL_WORDS):
        # asyncpg reads libpq's TLS words, with libpq's meaning, from a DSN and nowhere else;
        # what SQLAlchemy passes beside it (host, user, password) goes before the DSN.
        connect_args["dsn"] = URL.create("postgresql", query=tls).render_as_string()
    return translated, connect_args


def _settings_of_options(query: Query) -> dict[str, str]:
    """libpq's `options=-c name=value --name=value`, taken from `query` if all of it is settings."""
    words = shlex.split(str(query.get("options", "")))
    settings: dict[str, str] = {}
    while words:
        word = words.pop(0)
        text = words.pop(0) if word == "-c" and words else word.removeprefix("-c")
        name, equals, value = text.removeprefix("--").partition("=")
        if not equals or name.startswith("-"):
            return {}
        settings[name.replace("-", "_")] = value
    query.pop("options", None)
    return settings


def _asyncpg_to_libpq(query: Query) -> tuple[Query, dict[str, Any]]:
    """https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS"""
    translated = _take(query, _POSTGRESQL_SHARED_WORDS)
    connect_args: dict[str, Any] = {}
    if "ssl" in query:
        mode = str(query.pop("ssl"))
        translated["sslmode"] = "require" if mode.lower() in ("true", "1") else mode
    if "timeout" in query:
        translated["connect_timeout"] = str(math.ceil(float(query.pop("timeout"))))
    if "command_timeout" in query:
        timeout_ms = math.ceil(float(query.pop("command_timeout")) * 1000)
        translated["options"] = f"-c statement_timeout={timeout_ms}"
    caches = _take(query, _ASYNCPG_CACHES)
    if any(str(size) == "0" for size in caches.values()) and _is_installed("psycopg"):
        # What asyncpg's users write for PgBouncer: no prepared statements.
        connect_args["prepare_threshold"] = None
    return translated, connect_args


def _pymysql_to(words: frozenset[str]) -> Callable[[Query], tuple[Query, dict[str, Any]]]:
    def translate(query: Query) -> tuple[Query, dict[str, Any]]:
        translated = _take(query, words)
        tls = _take(query, _PYMYSQL_SSL_WORDS)
        return translated, {"ssl": _mysql_tls(tls)} if tls else {}

    return translate


def _mysql_tls(words: Mapping[str, str]) -> ssl.SSLContext:
    """The context that PyMySQL makes of the same words (`Connection._create_ssl_ctx`)."""
    context = ssl.create_default_context(cafile=words.get("ssl_ca"), capath=words.get("ssl_capath"))
    verified = "ssl_ca" in words or "ssl_capath" in words
    checked = str(words.get("ssl_check_hostname", "true")).lower() in ("true", "1", "yes", "on")
    context.check_hostname = verified and checked
    context.verify_mode = ssl.CERT_REQUIRED if verified else ssl.CERT_NONE
    if "ssl_cert" in words:
        context.load_cert_chain(words["ssl_cert"], keyfile=words.get("ssl_key"))
    if "ssl_cipher" in words:
        context.set_ciphers(words["ssl_cipher"])
    return context


def _to_pymysql(query: Query) -> tuple[Query, dict[str, Any]]:
    words = _ASYNCMY_WORDS | _PYMYSQL_SSL_WORDS | {"write_timeout"}
    return _take(query, words), {}


_TRANSLATIONS: dict[tuple[str, str], Callable[[Query], tuple[Query, dict[str, Any]]]] = {
    ("libpq", "asyncpg"): _libpq_to_asyncpg,
    ("asyncpg", "libpq"): _asyncpg_to_libpq,
    ("pymysql", "aiomysql"): _pymysql_to(_AIOMYSQL_WORDS),
    ("pymysql", "asyncmy"): _pymysql_to(_ASYNCMY_WORDS),
    ("aiomysql", "pymysql"): _to_pymysql,
    ("asyncmy", "pymysql"): _to_pymysql,
}
