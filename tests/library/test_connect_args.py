"""`connect_args` of one driver reach the other side of its pair, or are refused by name."""

import socket
import ssl
from typing import Any

import pytest
from sqlalchemy import make_url, text

from fastapi_sqlalchemy import Database
from fastapi_sqlalchemy.engines.connect_args import connect_args_for
from fastapi_sqlalchemy.engines.urls import url_for
from fastapi_sqlalchemy.exceptions import ConfigurationError
from support.backends import Backend


def unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize(
    ("source", "given", "target", "expected"),
    [
        (
            "postgresql+psycopg2",
            {"sslmode": "verify-full", "sslrootcert": "/ca"},
            "postgresql+asyncpg",
            {"dsn": "postgresql://?sslmode=verify-full&sslrootcert=%2Fca"},
        ),
        (
            "postgresql+psycopg",
            {"options": "-c search_path=shop", "connect_timeout": 3, "prepare_threshold": None},
            "postgresql+asyncpg",
            {"server_settings": {"search_path": "shop"}, "timeout": 3.0, "statement_cache_size": 0},
        ),
        (
            "postgresql+psycopg2",
            {"sslmode": "require", "keepalives": 1},
            "postgresql+psycopg",
            {"sslmode": "require", "keepalives": 1},
        ),
        ("postgresql+asyncpg", {"ssl": unverified()}, "postgresql+psycopg", {"sslmode": "require"}),
        (
            "postgresql+asyncpg",
            {"ssl": "verify-ca"},
            "postgresql+psycopg2",
            {"sslmode": "verify-ca"},
        ),
        (
            "postgresql+asyncpg",
            {"ssl": True},
            "postgresql+psycopg",
            {"sslmode": "verify-full", "sslrootcert": "system"},
        ),
        (
            "postgresql+asyncpg",
            {
                "server_settings": {"search_path": "a, b", "application_name": "shop"},
                "command_timeout": 2,
                "statement_cache_size": 0,
                "prepared_statement_name_func": str,
                "timeout": None,
            },
            "postgresql+psycopg",
            {
                "application_name": "shop",
                "options": "-c search_path=a,\\ b -c statement_timeout=2000",
                "prepare_threshold": None,
            },
        ),
        (
            "postgresql+asyncpg",
            {"dsn": "postgresql://?sslmode=verify-ca&sslrootcert=%2Fca.pem"},
            "postgresql+psycopg",
            {"sslmode": "verify-ca", "sslrootcert": "/ca.pem"},
        ),
        (
            "postgresql+psycopg",
            {"host": "one,two", "port": ",5433"},
            "postgresql+asyncpg",
            {"host": ["one", "two"], "port": [5432, 5433]},
        ),
        (
            "mysql+pymysql",
            {"init_command": "SET @a = 1", "charset": "latin1", "port": 3307},
            "mysql+aiomysql",
            {"init_command": "SET @a = 1", "charset": "latin1", "port": 3307},
        ),
        (
            "mysql+pymysql",
            {"ssl": {"ca": "/ca"}, "ssl_disabled": True},
            "mysql+asyncmy",
            {},
        ),
        ("sqlite", {"check_same_thread": False}, "sqlite+aiosqlite", {"check_same_thread": False}),
    ],
)
def test_what_has_a_counterpart_is_translated(
    source: str, given: dict[str, Any], target: str, expected: dict[str, Any]
) -> None:
    translated = connect_args_for(given, make_url(f"{source}://h/d"), make_url(f"{target}://h/d"))
    assert translated == expected


@pytest.mark.parametrize(
    ("source", "given", "target", "named"),
    [
        ("postgresql+psycopg2", {"keepalives": 1}, "postgresql+asyncpg", "'keepalives'"),
        ("postgresql+psycopg2", {"cursor_factory": str}, "postgresql+psycopg", "'cursor_factory'"),
        ("postgresql+psycopg", {"autocommit": True}, "postgresql+asyncpg", "'autocommit'"),
        (
            "postgresql+psycopg",
            {"channel_binding": "require"},
            "postgresql+asyncpg",
            "channel_bind",
        ),
        (
            "postgresql+asyncpg",
            {"ssl": ssl.create_default_context()},
            "postgresql+psycopg",
            "'ssl'",
        ),
        ("postgresql+asyncpg", {"record_class": str}, "postgresql+psycopg", "'record_class'"),
        ("mysql+pymysql", {"cursorclass": str, "charset": "utf8"}, "mysql+aiomysql", "cursorclass"),
        ("mysql+aiomysql", {"auth_plugin": "x"}, "mysql+pymysql", "'auth_plugin'"),
        ("mssql+pyodbc", {"timeout": 3}, "mssql+pymssql", "'timeout'"),
    ],
)
def test_what_has_none_is_refused_by_name(
    source: str, given: dict[str, Any], target: str, named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named) as refusal:
        connect_args_for(given, make_url(f"{source}://h/d"), make_url(f"{target}://h/d"))
    assert "async_engine_args={'connect_args'" in str(refusal.value)


def test_a_context_that_pymysql_would_make_is_the_other_drivers_too() -> None:
    translated = connect_args_for(
        {"ssl": {"verify_mode": False}},
        make_url("mysql+pymysql://h/d"),
        make_url("mysql+asyncmy://h"),
    )
    assert isinstance(translated["ssl"], ssl.SSLContext)
    assert translated["ssl"].verify_mode is ssl.CERT_NONE


PAIRS = [
    ("psycopg2", {"options": "-c search_path=other"}),
    ("psycopg", {"options": "-c search_path=other"}),
    ("asyncpg", {"server_settings": {"search_path": "other"}}),
]


@pytest.mark.parametrize(("driver", "connect_args"), PAIRS, ids=[pair[0] for pair in PAIRS])
async def test_a_search_path_holds_on_both_sides(
    postgresql: Backend, db: Database, driver: str, connect_args: dict[str, Any]
) -> None:
    db.configure(postgresql.with_driver(driver), engine_args={"connect_args": connect_args})
    async with db():
        assert await db.async_session.scalar(text("SHOW search_path")) == "other"
    with db():
        assert db.session.scalar(text("SHOW search_path")) == "other"
    await db.adispose()


@pytest.mark.parametrize(
    ("driver", "several"), [("psycopg", ",".join), ("psycopg2", ",".join), ("asyncpg", list)]
)
async def test_several_hosts_of_which_the_first_is_dead_are_known_to_both_sides(
    postgresql: Backend, db: Database, driver: str, several: Any
) -> None:
    url = make_url(postgresql.url)
    with socket.socket() as dead:  # bound, and nobody listens there
        dead.bind(("127.0.0.1", 0))
        hosts = several(["127.0.0.1", str(url.host)])
        ports = several([str(dead.getsockname()[1]), str(url.port or 5432)])
        url = url.set(host=None, port=None, drivername=f"postgresql+{driver}")
        connect_args = {"host": hosts, "port": ports}
        other = url.set(drivername="postgresql+asyncpg")
        db.configure(url, async_db_url=other, engine_args={"connect_args": connect_args})
        with db():
            assert db.session.scalar(text("SELECT 1")) == 1
        async with db():
            assert await db.async_session.scalar(text("SELECT 1")) == 1
    await db.adispose()


@pytest.mark.parametrize("driver", ["pymysql", "aiomysql", "asyncmy"])
async def test_an_init_command_and_a_charset_hold_on_both_sides(
    mariadb: Backend, db: Database, driver: str
) -> None:
    connect_args = {"init_command": "SET @told = 'yes'", "charset": "latin1"}
    db.configure(mariadb.with_driver(driver), engine_args={"connect_args": connect_args})
    asked = text("SELECT concat(@told, ' ', @@character_set_client)")
    async with db():
        assert await db.async_session.scalar(asked) == "yes latin1"
    with db():
        assert db.session.scalar(asked) == "yes latin1"
    await db.adispose()


TLS = [
    ("postgresql", "psycopg2", {"sslmode": "require"}),
    ("postgresql", "asyncpg", {"ssl": unverified()}),
    ("mariadb", "pymysql", {"ssl": {"verify_mode": False}}),
    ("mariadb", "aiomysql", {"ssl": unverified()}),
]


@pytest.mark.parametrize(("name", "driver", "connect_args"), TLS, ids=[each[1] for each in TLS])
async def test_no_side_connects_without_the_tls_that_was_asked_for(
    name: str,
    driver: str,
    connect_args: dict[str, Any],
    db: Database,
    request: pytest.FixtureRequest,
) -> None:
    """A server without TLS refuses both; one that has it is asked whether it is used."""
    backend: Backend = request.getfixturevalue(name)
    if name == "postgresql":
        has_tls = backend.rows("SHOW ssl") == [("on",)]
        used = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    else:
        has_tls = backend.rows("SHOW VARIABLES LIKE 'have_ssl'") == [("have_ssl", "YES")]
        used = (
            "SELECT if(variable_value = '', '', 'true') FROM information_schema.session_status"
            " WHERE variable_name = 'Ssl_cipher'"
        )
    db.configure(backend.with_driver(driver), engine_args={"connect_args": connect_args})
    if has_tls:
        async with db():
            assert await db.async_session.scalar(text(used)) == "true"
        with db():
            assert db.session.scalar(text(used)) == "true"
    else:
        async with db():
            with pytest.raises(Exception, match=r"(?i)ssl"):
                await db.async_session.execute(text("SELECT 1"))
        with db():
            with pytest.raises(Exception, match=r"(?i)ssl"):
                db.session.execute(text("SELECT 1"))
    await db.adispose()


async def test_the_async_sides_own_connect_args_are_taken_as_they_are(
    postgresql: Backend, db: Database
) -> None:
    db.configure(
        postgresql.with_driver("psycopg2"),
        async_db_url=postgresql.with_driver("asyncpg"),
        engine_args={"connect_args": {"keepalives": 1}},
        async_engine_args={"connect_args": {"server_settings": {"search_path": "other"}}},
    )
    async with db():
        assert await db.async_session.scalar(text("SHOW search_path")) == "other"
    await db.adispose()


@pytest.mark.parametrize("argument", ["db_url", "async_db_url"])
async def test_a_sync_side_that_follows_from_the_async_one_connects_as_that_does(
    postgresql: Backend, db: Database, argument: str
) -> None:
    given: dict[str, Any] = {argument: postgresql.with_driver("asyncpg")}
    told = {"server_settings": {"search_path": "other"}}
    db.configure(**given, async_engine_args={"connect_args": told})
    with db():
        assert db.session.scalar(text("SHOW search_path")) == "other"
    db.configure(
        **given, engine_args={"connect_args": {}}, async_engine_args={"connect_args": told}
    )
    with db():
        assert db.session.scalar(text("SHOW search_path")) != "other"
    db.configure(
        postgresql.with_driver("asyncpg"),
        async_db_url=postgresql.with_driver("asyncpg"),
        async_engine_args={"connect_args": told},
    )
    with db():  # that of another server is not its own
        assert db.session.scalar(text("SHOW search_path")) != "other"
    tls = {"ssl": ssl.create_default_context()}
    db.configure(**given, async_engine_args={"connect_args": tls})
    with pytest.raises(ConfigurationError, match="'ssl'"):
        _ = db.engine
    await db.adispose()


@pytest.mark.parametrize(
    ("url", "connect_args"),
    [
        ("postgresql+psycopg://h/d?prepare_threshold=0", {"prepare_threshold": 0}),
        ("postgresql+psycopg://h/d?prepare_threshold=none", {"prepare_threshold": None}),
        ("postgresql+asyncpg://h/d?sslmode=require&channel_binding=prefer", None),
    ],
)
def test_parameters_that_drivers_want_in_another_type_are_converted(
    url: str, connect_args: dict[str, Any] | None
) -> None:
    side = "async" if "asyncpg" in url else "sync"
    translated, found = url_for(make_url(url), side)  # type: ignore[arg-type]
    assert connect_args is None or found == connect_args
    assert not translated.query


@pytest.mark.parametrize("parameter", ["channel_binding=require", "gssencmode=disable", "colour=1"])
def test_a_parameter_that_asyncpg_does_not_know_is_refused_by_name(parameter: str) -> None:
    url = make_url(f"postgresql+asyncpg://h/d?sslmode=require&{parameter}")
    with pytest.raises(ConfigurationError, match=f"mean nothing to asyncpg: {parameter[:6]}"):
        url_for(url, "async")
