"""`connect_args`, which one driver understands, for the driver of the other side.

They carry TLS, a search path, a character set: what the other driver cannot be told is refused by
name, because what is dropped in silence is a connection in the clear.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import URL, Engine, event, make_url

from ..exceptions import ConfigurationError
from .mysql_tls import PYMYSQL_SSL_PARAMETERS, mysql_tls, tls_of_option_file
from .url_parameters import AIOMYSQL_PARAMETERS, ASYNCMY_PARAMETERS, translate
from .urls import driver_of

__all__ = ["connect_args_for", "merged", "require_tls"]

ConnectArgs = dict[str, Any]

# What each Python driver takes beside libpq's own parameters.
_PSYCOPG_ONLY = {"autocommit", "prepare_threshold", "row_factory", "cursor_factory", "context"}
_PSYCOPG2_ONLY = {"connection_factory", "cursor_factory", "async", "async_"}
_TLS_ONLY = "postgresql://?"
_PYMYSQL_TLS = PYMYSQL_SSL_PARAMETERS | {"ssl_key_password"}
_MYSQL_ADDRESS = {"host", "port", "user", "password", "db", "database", "passwd"}


def connect_args_for(connect_args: Mapping[str, Any], source: URL, target: URL) -> ConnectArgs:
    """`connect_args` of the driver of `source`, for that of `target`.

    Raises:
        ConfigurationError: some of them have no counterpart; it names them.
    """
    one, two = driver_of(source), driver_of(target)
    if one is None or two is None:
        if source.get_driver_name() == target.get_driver_name():
            return dict(connect_args)
        left, translated = dict(connect_args), {}
    elif one.module == two.module or one.parameters == two.parameters == "sqlite":
        return dict(connect_args)
    else:
        left = dict(connect_args)
        function = _TRANSLATIONS.get((one.parameters, two.parameters))
        translated = function(left, two.module) if function is not None else {}
    if left:
        raise ConfigurationError(
            f"connect_args of {source.drivername!r} that {target.drivername!r} cannot be told: "
            f"{', '.join(map(repr, sorted(left)))}. The other side would connect without. Say how "
            "it connects: async_engine_args={'connect_args': {...}} for db.async_session; with "
            "both db_url= and async_db_url=, engine_args is the sync side's."
        )
    return translated


def require_tls(engine: Engine, connect_args: Mapping[str, Any]) -> None:
    """Have `engine` refuse connections in the clear where `connect_args` ask for TLS.

    aiomysql goes on without it if the server says that it has none, which anybody in between can
    say for it; the other drivers refuse by themselves.
    """
    if engine.dialect.driver != "aiomysql" or not connect_args.get("ssl"):
        return

    def check(dbapi_connection: Any, record: Any) -> None:
        connection = dbapi_connection.driver_connection
        if not connection._secure:
            connection.close()
            raise engine.dialect.loaded_dbapi.OperationalError(
                2026, "SSL is required, and the server does not support it"
            )

    event.listen(engine, "connect", check)


def merged(one: ConnectArgs, two: ConnectArgs) -> ConnectArgs:
    """Both, `two` where they disagree; settings and TLS parameters one by one."""
    result = {**one, **two}
    if "server_settings" in one and "server_settings" in two:
        result["server_settings"] = {**one["server_settings"], **two["server_settings"]}
    if "dsn" in one and "dsn" in two:
        urls = make_url(one["dsn"]), make_url(two["dsn"])
        query = {**urls[0].query, **urls[1].query}
        result["dsn"] = urls[0].set(query=query).render_as_string()
    if "options" in one and "options" in two:
        result["options"] = f"{one['options']} {two['options']}"
    return result


def _libpq_to_libpq(left: ConnectArgs, module: str) -> ConnectArgs:
    if left.get("autocommit") is False:
        left.pop("autocommit")
    if module == "psycopg2":
        left.pop("prepare_threshold", None)  # it prepares nothing
    only = _PSYCOPG_ONLY | _PSYCOPG2_ONLY
    return {name: left.pop(name) for name in list(left) if name not in only}


def _libpq_to_asyncpg(left: ConnectArgs, module: str) -> ConnectArgs:
    translated: ConnectArgs = {}
    if left.pop("prepare_threshold", 5) is None:
        translated["statement_cache_size"] = 0
    if left.get("autocommit") is False:
        left.pop("autocommit")
    settings: dict[str, str] = {}
    if "client_encoding" in left:
        settings["client_encoding"] = str(left.pop("client_encoding"))
    names, connect_args = _translate(left, "libpq", "asyncpg")
    for name, kind, default in (("host", str, ""), ("port", int, "5432")):
        if name in names:
            parts = [kind(part or default) for part in str(names[name]).split(",")]
            names[name] = parts if len(parts) > 1 else parts[0]
    if settings:
        connect_args["server_settings"] = {**settings, **connect_args.get("server_settings", {})}
    return {**translated, **names, **connect_args}


def _asyncpg_to_libpq(left: ConnectArgs, module: str) -> ConnectArgs:
    translated: ConnectArgs = _tls_to_libpq(left)
    if str(left.get("dsn", "")).startswith(_TLS_ONLY):  # of a URL's libpq words, by `native`
        translated |= make_url(left.pop("dsn")).query
    for name in ("host", "port"):
        if isinstance(left.get(name), list | tuple):
            left[name] = ",".join(map(str, left[name]))
    options = []
    for name, value in left.pop("server_settings", {}).items():
        if name == "application_name":
            translated["application_name"] = str(value)
        else:
            escaped = str(value).replace("\\", "\\\\").replace(" ", "\\ ")
            options.append(f"-c {name}={escaped}")
    # They name prepared statements for PgBouncer, which their caches' size 0 says too.
    left.pop("prepared_statement_name_func", None)
    names, connect_args = _translate(left, "asyncpg", "libpq")
    if module == "psycopg2":
        connect_args.pop("prepare_threshold", None)
    if "options" in names:
        options.append(names.pop("options"))
    if options:
        translated["options"] = " ".join(options)
    return {**translated, **names, **connect_args}


def _translate(left: ConnectArgs, source: str, target: str) -> tuple[ConnectArgs, ConnectArgs]:
    """As `url_parameters.translate`; what is translated, or says nothing, is taken from `left`."""
    query: ConnectArgs = {
        name: str(value) for name, value in left.items() if isinstance(value, str | int | float)
    }
    given = set(query)
    translated = translate(query, source, target)
    for name in list(left):
        if left[name] is None or (name in given and name not in query):
            left.pop(name)
    return translated


def _tls_to_libpq(left: ConnectArgs) -> ConnectArgs:
    """asyncpg's `ssl`; a context that verifies cannot be said to libpq, which reads files."""
    tls = left.get("ssl")
    if isinstance(tls, ssl.SSLContext):
        if tls.verify_mode is not ssl.CERT_NONE:
            return {}
        mode: ConnectArgs = {"sslmode": "require"}
    elif tls is True:
        mode = {"sslmode": "verify-full", "sslrootcert": "system"}
    elif tls is False:
        mode = {"sslmode": "disable"}
    else:
        return {}
    left.pop("ssl")
    return mode


def _pymysql_to(names: frozenset[str]) -> Callable[[ConnectArgs, str], ConnectArgs]:
    def translated(left: ConnectArgs, module: str) -> ConnectArgs:
        taken = {
            name: left.pop(name) for name in list(left) if name in names or name in _MYSQL_ADDRESS
        }
        if left.get("ssl_disabled"):
            left.pop("ssl_disabled")
            for name in ("ssl", *_PYMYSQL_TLS):
                left.pop(name, None)
            return taken
        left.pop("ssl_disabled", None)
        tls: ConnectArgs = {
            name: left.pop(name)
            for name in list(left)
            if name in _PYMYSQL_TLS or name.startswith("ssl_verify_")
        }
        if names is AIOMYSQL_PARAMETERS:
            tls = {**tls_of_option_file(taken), **tls}
        given = left.pop("ssl", None)
        if isinstance(given, Mapping):
            tls |= {f"ssl_{name}": value for name, value in given.items()}
        elif given is not None:
            taken["ssl"] = given
        if tls:
            taken["ssl"] = mysql_tls(tls)
        return taken

    return translated


def _to_pymysql(left: ConnectArgs, module: str) -> ConnectArgs:
    if left.get("ssl") is True:  # asyncmy's: TLS without a look at the certificate
        left["ssl"] = mysql_tls({})
    names = ASYNCMY_PARAMETERS | PYMYSQL_SSL_PARAMETERS | _MYSQL_ADDRESS | {"write_timeout", "ssl"}
    return {name: left.pop(name) for name in list(left) if name in names}


_TRANSLATIONS: dict[tuple[str, str], Callable[[ConnectArgs, str], ConnectArgs]] = {
    ("libpq", "libpq"): _libpq_to_libpq,
    ("libpq", "asyncpg"): _libpq_to_asyncpg,
    ("asyncpg", "libpq"): _asyncpg_to_libpq,
    ("pymysql", "aiomysql"): _pymysql_to(AIOMYSQL_PARAMETERS),
    ("pymysql", "asyncmy"): _pymysql_to(ASYNCMY_PARAMETERS),
    ("aiomysql", "pymysql"): _to_pymysql,
    ("asyncmy", "pymysql"): _to_pymysql,
}
