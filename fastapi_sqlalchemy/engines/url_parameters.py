"""Parameters of a database URL, translated from one driver's into another's.

What has a counterpart is translated; what has none stays in the query, and `urls` refuses it by
name: an argument that is dropped in silence is a TLS check that nobody makes.
"""

from __future__ import annotations

import math
import shlex
import ssl
from collections.abc import Callable
from typing import Any

from sqlalchemy import URL

from .mysql_tls import PYMYSQL_SSL_PARAMETERS, mysql_tls, tls_of_option_file

__all__ = [
    "AIOMYSQL_PARAMETERS",
    "ASYNCMY_PARAMETERS",
    "native",
    "refused",
    "translate",
]

Query = dict[str, Any]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


AIOMYSQL_PARAMETERS = _names(
    "charset unix_socket connect_timeout local_infile init_command sql_mode read_default_file "
    "read_default_group use_unicode client_flag program_name autocommit"
)
ASYNCMY_PARAMETERS = AIOMYSQL_PARAMETERS | {"read_timeout", "max_allowed_packet"}
_LIBPQ_SSL_PARAMETERS = _names(
    "sslmode sslcert sslkey sslrootcert sslcrl sslpassword sslnegotiation "
    "ssl_min_protocol_version ssl_max_protocol_version"
)
# The same name with the same meaning in libpq and in asyncpg.connect().
_POSTGRESQL_SHARED_PARAMETERS = _names(
    "host port user password passfile target_session_attrs krbsrvname gsslib"
)
_LIBPQ_PARAMETERS = _LIBPQ_SSL_PARAMETERS | _names(
    "application_name connect_timeout dbname options"
)
_ASYNCPG_CACHES = _names(
    "statement_cache_size prepared_statement_cache_size max_cached_statement_lifetime "
    "max_cacheable_statement_size"
)


# What asyncpg.connect() takes that a URL can say, and SQLAlchemy's own.
_ASYNCPG_PARAMETERS = (
    _POSTGRESQL_SHARED_PARAMETERS
    | _ASYNCPG_CACHES
    | _names("ssl direct_tls database timeout command_timeout dsn async_fallback")
)
_ASYNCPG_NUMBERS: dict[str, Callable[[str], float]] = {
    "timeout": float,
    "command_timeout": float,
    "statement_cache_size": int,
    "max_cached_statement_lifetime": int,
    "max_cacheable_statement_size": int,
}


def translate(query: Query, source: str, target: str) -> tuple[Query, dict[str, Any]]:
    """`query` for the other driver: as its query, and as its connect arguments.

    `source` and `target` name whose parameters they are: `libpq`, `asyncpg`, `pymysql`, ... What
    has no counterpart is left in `query`.
    """
    if source == target:
        taken = dict(query)
        query.clear()
        return taken, {}
    known = _TRANSLATIONS.get((source, target))
    return known(query) if known is not None else ({}, {})


def _take(query: Query, names: frozenset[str]) -> Query:
    return {name: query.pop(name) for name in list(query) if name in names}


def native(query: Query, source: str) -> tuple[Query, dict[str, Any]]:
    """`query` for the driver that it was written for.

    SQLAlchemy hands asyncpg text where it wants numbers, and asyncpg knows libpq's names from a DSN
    only: a URL in which somebody has changed nothing but the driver is full of them. It hands
    aiomysql PyMySQL's dictionary of TLS parameters, where that wants a context.
    """
    connect_args: dict[str, Any] = {}
    if source == "libpq" and "prepare_threshold" in query:
        threshold = str(query.pop("prepare_threshold"))
        never = threshold.lower() in ("none", "null", "")
        connect_args["prepare_threshold"] = None if never else int(threshold)
    if source == "aiomysql":
        tls = {**tls_of_option_file(query), **_take(query, PYMYSQL_SSL_PARAMETERS)}
        return query, {"ssl": mysql_tls(tls)} if tls else {}
    if source != "asyncpg":
        return query, connect_args
    for name, number in _ASYNCPG_NUMBERS.items():
        if name in query:
            connect_args[name] = number(query.pop(name))
    translated, from_libpq = _libpq_to_asyncpg(query)
    return {**query, **translated}, {**connect_args, **from_libpq}


def refused(query: Query, source: str) -> list[str]:
    """The parameters in a URL of its own with which a driver fails from inside."""
    known = _ASYNCPG_PARAMETERS if source == "asyncpg" else None
    return [] if known is None else sorted(query.keys() - known)


def _libpq_to_asyncpg(query: Query) -> tuple[Query, dict[str, Any]]:
    """https://magicstack.github.io/asyncpg/current/api/index.html#connection"""
    translated = _take(query, _POSTGRESQL_SHARED_PARAMETERS)
    connect_args: dict[str, Any] = {}
    settings = _settings_of_options(query)
    if "application_name" in query:
        settings["application_name"] = query.pop("application_name")
    if settings:
        connect_args["server_settings"] = settings
    if query.get("channel_binding") in ("prefer", "disable"):
        query.pop("channel_binding")  # asyncpg has none, and these are content with that
    if "prepare_threshold" in query:
        threshold = str(query.pop("prepare_threshold"))
        if threshold.lower() in ("none", "null", ""):
            connect_args["statement_cache_size"] = 0
    if "connect_timeout" in query:
        # libpq waits for ever at zero and below.
        connect_args["timeout"] = max(float(query.pop("connect_timeout")), 0.0) or None
    if "dbname" in query:
        translated["database"] = query.pop("dbname")
    if (
        query.get("sslrootcert") == "system"
        and query.get("sslmode", "verify-full") == "verify-full"
    ):
        # libpq's word for the system's authorities; asyncpg would look for a file of that name.
        tls = _take(query, _names("sslmode sslrootcert sslcert sslkey sslpassword"))
        context = connect_args["ssl"] = ssl.create_default_context()
        if "sslcert" in tls:
            context.load_cert_chain(tls["sslcert"], tls.get("sslkey"), tls.get("sslpassword"))
    elif tls := _take(query, _LIBPQ_SSL_PARAMETERS):
        # asyncpg reads libpq's TLS parameters, with libpq's meaning, from a DSN and nowhere else;
        # what SQLAlchemy passes beside it (host, user, password) goes before the DSN.
        connect_args["dsn"] = URL.create("postgresql", query=tls).render_as_string()
    return translated, connect_args


def _settings_of_options(query: Query) -> dict[str, str]:
    """libpq's `options=-c name=value --name=value`, taken from `query` if all of it is settings."""
    options = shlex.split(str(query.get("options", "")))
    settings: dict[str, str] = {}
    while options:
        option = options.pop(0)
        text = options.pop(0) if option == "-c" and options else option.removeprefix("-c")
        name, equals, value = text.removeprefix("--").partition("=")
        if not equals or name.startswith("-"):
            return {}
        settings[name.replace("-", "_")] = value
    query.pop("options", None)
    return settings


def _asyncpg_to_libpq(query: Query) -> tuple[Query, dict[str, Any]]:
    """https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS"""
    translated = _take(query, _POSTGRESQL_SHARED_PARAMETERS)
    connect_args: dict[str, Any] = {}
    if "database" in query:
        translated["dbname"] = query.pop("database")
    if "ssl" in query:
        mode = str(query.pop("ssl"))
        translated["sslmode"] = "require" if mode.lower() in ("true", "1") else mode
    if "timeout" in query:
        translated["connect_timeout"] = str(math.ceil(float(query.pop("timeout"))))
    if "command_timeout" in query:
        timeout_ms = math.ceil(float(query.pop("command_timeout")) * 1000)
        translated["options"] = f"-c statement_timeout={timeout_ms}"
    # A URL in which only the driver was changed.
    translated |= _take(query, _LIBPQ_PARAMETERS)
    caches = _take(query, _ASYNCPG_CACHES)
    if any(str(size) == "0" for size in caches.values()):
        # What asyncpg's users write for PgBouncer: no prepared statements.
        connect_args["prepare_threshold"] = None
    return translated, connect_args


def _pymysql_to(names: frozenset[str]) -> Callable[[Query], tuple[Query, dict[str, Any]]]:
    def translate(query: Query) -> tuple[Query, dict[str, Any]]:
        translated = _take(query, names)
        tls = _take(query, PYMYSQL_SSL_PARAMETERS)
        if names is AIOMYSQL_PARAMETERS:
            tls = {**tls_of_option_file(translated), **tls}
        return translated, {"ssl": mysql_tls(tls)} if tls else {}

    return translate


def _to_pymysql(query: Query) -> tuple[Query, dict[str, Any]]:
    names = ASYNCMY_PARAMETERS | PYMYSQL_SSL_PARAMETERS | {"write_timeout"}
    return _take(query, names), {}


_TRANSLATIONS: dict[tuple[str, str], Callable[[Query], tuple[Query, dict[str, Any]]]] = {
    ("libpq", "asyncpg"): _libpq_to_asyncpg,
    ("asyncpg", "libpq"): _asyncpg_to_libpq,
    ("pymysql", "aiomysql"): _pymysql_to(AIOMYSQL_PARAMETERS),
    ("pymysql", "asyncmy"): _pymysql_to(ASYNCMY_PARAMETERS),
    ("aiomysql", "pymysql"): _to_pymysql,
    ("asyncmy", "pymysql"): _to_pymysql,
}
