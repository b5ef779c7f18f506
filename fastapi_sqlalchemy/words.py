"""Query arguments of a database URL, from one driver's words into another's.

What has a counterpart is translated; what has none stays in the query, and `urls` refuses it by
name: an argument that is dropped in silence is a TLS check that nobody makes.
"""

from __future__ import annotations

import math
import shlex
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import URL

__all__ = ["native", "translate"]

Query = dict[str, Any]


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
_LIBPQ_WORDS = _LIBPQ_SSL_WORDS | {"application_name", "connect_timeout", "options"}
_ASYNCPG_CACHES = _words(
    "statement_cache_size prepared_statement_cache_size max_cached_statement_lifetime "
    "max_cacheable_statement_size"
)


_ASYNCPG_NUMBERS: dict[str, Callable[[str], float]] = {
    "timeout": float,
    "command_timeout": float,
    "statement_cache_size": int,
    "max_cached_statement_lifetime": int,
    "max_cacheable_statement_size": int,
}


def translate(query: Query, source: str, target: str) -> tuple[Query, dict[str, Any]]:
    """What `query` says, in words of the other driver: as a query, and as connect arguments.

    `source` and `target` name the words: `libpq`, `asyncpg`, `pymysql`, ... What has no counterpart
    is left in `query`.
    """
    if source == target:
        taken = dict(query)
        query.clear()
        return taken, {}
    known = _TRANSLATIONS.get((source, target))
    return known(query) if known is not None else ({}, {})


def _take(query: Query, words: frozenset[str]) -> Query:
    return {word: query.pop(word) for word in list(query) if word in words}


def native(query: Query, words: str) -> tuple[Query, dict[str, Any]]:
    """`query` for the driver that it was written for.

    SQLAlchemy hands asyncpg text where it wants numbers, and asyncpg knows libpq's words from a DSN
    only: a URL in which somebody has changed nothing but the driver is full of them.
    """
    if words != "asyncpg":
        return query, {}
    connect_args: dict[str, Any] = {}
    for word, number in _ASYNCPG_NUMBERS.items():
        if word in query:
            connect_args[word] = number(query.pop(word))
    translated, from_libpq = _libpq_to_asyncpg(query)
    return {**query, **translated}, {**connect_args, **from_libpq}


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
        # libpq waits for ever at zero and below.
        connect_args["timeout"] = max(float(query.pop("connect_timeout")), 0.0) or None
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
    # A URL in which only the driver was changed.
    translated |= _take(query, _LIBPQ_WORDS)
    caches = _take(query, _ASYNCPG_CACHES)
    if any(str(size) == "0" for size in caches.values()):
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
