"""One URL, said for the other side."""

import re
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import PostgresDsn, SecretStr
from sqlalchemy import create_engine, make_url

from fastapi_sqlalchemy import Database, DBSessionMiddleware, SessionNotInitialisedError
from fastapi_sqlalchemy.engines.urls import Side, masked, parse, url_for
from fastapi_sqlalchemy.exceptions import ConfigurationError, MissingDriverError
from support.processes import Run
from support.tls import KEY_PASSWORD, Certificates


def other_side(url: str, side: Side) -> tuple[str, dict[str, Any]]:
    translated, connect_args = url_for(make_url(url), side)
    return translated.render_as_string(hide_password=False), connect_args


@pytest.mark.parametrize(
    ("url", "side", "expected"),
    [
        ("postgresql+psycopg://u:p@h:1/d", "async", "postgresql+psycopg://u:p@h:1/d"),
        ("postgresql+psycopg2://u:p@h:1/d", "async", "postgresql+psycopg://u:p@h:1/d"),
        ("postgresql+asyncpg://u:p@h:1/d", "sync", "postgresql+psycopg://u:p@h:1/d"),
        ("mysql+pymysql://u:p@h/d", "async", "mysql+aiomysql://u:p@h/d"),
        ("mysql+aiomysql://u:p@h/d", "sync", "mysql+pymysql://u:p@h/d"),
        ("mysql+asyncmy://u:p@h/d", "sync", "mysql+pymysql://u:p@h/d"),
        ("mariadb+pymysql://u:p@h/d", "async", "mariadb+aiomysql://u:p@h/d"),
        ("sqlite:///shop.db", "async", "sqlite+aiosqlite:///shop.db"),
        ("sqlite+aiosqlite:///shop.db", "sync", "sqlite+pysqlite:///shop.db"),
        ("sqlite:///shop.db?timeout=9", "async", "sqlite+aiosqlite:///shop.db?timeout=9"),
    ],
)
def test_the_other_side_is_served_by_the_driver_of_the_pair(
    url: str, side: Side, expected: str
) -> None:
    assert other_side(url, side) == (expected, {})


def test_user_password_and_database_mean_the_same_in_the_query_of_each_driver() -> None:
    translated, connect_args = url_for(
        make_url("postgresql+asyncpg://h/?user=me&password=sesame&database=shop"), "sync"
    )
    assert dict(translated.query) == {"user": "me", "password": "sesame", "dbname": "shop"}
    assert connect_args == {}
    with_dbname = make_url("postgresql+asyncpg://h/?user=me&dbname=shop")
    for side, name in (("async", "database"), ("sync", "dbname")):
        translated, connect_args = url_for(with_dbname, side)  # type: ignore[arg-type]
        assert (dict(translated.query), connect_args) == ({"user": "me", name: "shop"}, {})


def test_the_systems_authorities_are_asyncpgs_context(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    client = {
        "sslcert": certificates.client,
        "sslkey": certificates.client_key,
        "sslpassword": KEY_PASSWORD,
    }
    url = make_url("postgresql+asyncpg://h/d?sslmode=verify-full&sslrootcert=system")
    for each in (url, url.update_query_dict(client)):
        translated, connect_args = url_for(each, "async")
        context = connect_args.pop("ssl")
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
        assert (dict(translated.query), connect_args) == ({}, {})


def test_a_host_that_only_pgservice_names_is_refused_for_asyncpg(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would connect to the machine's own server, and psycopg to the service's."""
    monkeypatch.setenv("PGSERVICE", "shop")
    with pytest.raises(ConfigurationError, match="PGSERVICE"):
        url_for(make_url("postgresql+asyncpg:///shop"), "async")
    url_for(make_url("postgresql+asyncpg:///shop"), "sync")
    url_for(make_url("postgresql+asyncpg://h/shop"), "async")
    url_for(make_url("postgresql+asyncpg:///shop?host=h"), "async")


def test_libpq_words_become_asyncpg_arguments() -> None:
    from fastapi_sqlalchemy.engines.url_parameters import translate

    query: dict[str, Any] = {
        "sslmode": "verify-full",
        "sslrootcert": "/ca.pem",
        "application_name": "shop",
        "connect_timeout": "7",
        "options": "-c search_path=shop,public --statement-timeout=5000 -clock_timeout=1s",
        "target_session_attrs": "read-write",
    }
    translated, connect_args = translate(query, "libpq", "asyncpg")
    assert not query
    assert translated == {"target_session_attrs": "read-write"}
    assert connect_args == {
        "dsn": "postgresql://?sslmode=verify-full&sslrootcert=%2Fca.pem",
        "timeout": 7.0,
        "server_settings": {
            "search_path": "shop,public",
            "statement_timeout": "5000",
            "lock_timeout": "1s",
            "application_name": "shop",
        },
    }


@pytest.mark.parametrize("text", ["0", "-1"])
def test_a_connect_timeout_of_zero_waits_for_ever_as_in_libpq(text: str) -> None:
    from fastapi_sqlalchemy.engines.url_parameters import translate

    assert translate({"connect_timeout": text}, "libpq", "asyncpg") == ({}, {"timeout": None})


def test_asyncpg_words_become_libpq_words() -> None:
    url = (
        "postgresql+asyncpg://u@h/d?ssl=verify-ca&timeout=2.5&command_timeout=1.5"
        "&statement_cache_size=0&target_session_attrs=any"
    )
    translated, connect_args = url_for(make_url(url), "sync")
    assert dict(translated.query) == {
        "target_session_attrs": "any",
        "sslmode": "verify-ca",
        "connect_timeout": "3",
        "options": "-c statement_timeout=1500",
    }
    assert connect_args == {"prepare_threshold": None}


def test_a_statement_cache_that_is_not_zero_keeps_prepared_statements() -> None:
    _, connect_args = url_for(make_url("postgresql+asyncpg://h/d?statement_cache_size=50"), "sync")
    assert connect_args == {}


@pytest.mark.parametrize(
    ("url", "side", "words", "cure"),
    [
        ("postgresql+asyncpg://h/d?ssl=require&colour=red&b=1", "sync", "b, colour", "db_url="),
        ("mysql+pymysql://h/d?charset=utf8mb4&shade=1", "async", "shade", "async_db_url="),
        ("mysql+aiomysql://h/d?shade=1", "sync", "shade", "db_url="),
    ],
)
def test_unknown_query_arguments_are_refused_by_name(
    url: str, side: Side, words: str, cure: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        other_side(url, side)
    assert f": {words}." in str(caught.value)
    assert cure in str(caught.value)


def test_options_that_are_no_settings_are_refused_by_name() -> None:
    from fastapi_sqlalchemy.engines.url_parameters import translate

    query: dict[str, Any] = {"options": "-c search_path=shop -E"}
    assert translate(query, "libpq", "asyncpg") == ({}, {})
    assert list(query) == ["options"]


#: Of nobody, who has thrown its key away.
AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBeTCCAR+gAwIBAgIUTzQD0N5XgVjZOGihJ4DvEqP44VYwCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGbm9ib2R5MCAXDTI2MTEzMDA1MDQzMloYDzIxMjYxMTA2MDUw
NDMyWjARMQ8wDQYDVQQDDAZub2JvZHkwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AAQVwgvx2nIDk1YZPq/NldCX3dcev+9ciJnqAlfB7f7Y9UwCYmIDFgay0z/UWlWo
YE98cAII4zAiXw22XhIxEByio1MwUTAdBgNVHQ4EFgQUC3VuOy7NqVtJQmXVJQIh
HfFFZHYwHwYDVR0jBBgwFoAUC3VuOy7NqVtJQmXVJQIhHfFFZHYwDwYDVR0TAQH/
BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiBA4BfCP5LWUmQlZsrpyLStQb/i2xJm
V2sfoTY2xC/bvQIhAPbQaDxzYpnZUuy9OTzy8UmStdk2PU5JXig2b1vuLQkl
-----END CERTIFICATE-----
"""


def test_pymysql_tls_words_become_a_context_that_checks_what_they_say(tmp_path: Path) -> None:
    authority = tmp_path / "authority.pem"
    authority.write_text(AUTHORITY)
    url, connect_args = url_for(
        make_url(f"mysql+pymysql://h/d?charset=utf8mb4&ssl_ca={quote(str(authority))}"), "async"
    )
    context = connect_args["ssl"]
    assert dict(url.query) == {"charset": "utf8mb4"}
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    _, connect_args = url_for(
        make_url(f"mysql+pymysql://h/d?ssl_ca={quote(str(authority))}&ssl_check_hostname=false"),
        "async",
    )
    context = connect_args["ssl"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, False)


def test_a_url_without_a_known_counterpart_says_which_argument_to_pass() -> None:
    with pytest.raises(ConfigurationError, match=r"async_db_url=\.\.\."):
        other_side("duckdb:///shop" if _knows("duckdb") else "mssql+pymssql://h/d", "async")


def _knows(dialect: str) -> bool:
    try:
        make_url(f"{dialect}://").get_dialect()
    except Exception:
        return False
    return True


@pytest.mark.parametrize(
    ("url", "side", "package"),
    [
        ("mssql+pyodbc://h/d", "async", "aioodbc"),
        ("oracle+oracledb://h/d", "async", "oracledb"),
        ("mysql+mysqldb://h/d", "sync", "mysqlclient"),
    ],
)
async def test_a_driver_that_is_not_installed_is_named_with_the_line_to_install_it(
    url: str, side: Side, package: str
) -> None:
    database = Database("test")
    database.configure(url)
    with pytest.raises(MissingDriverError) as caught:
        _ = database.engine if side == "sync" else database.async_engine
    assert f"pip install {package}" in str(caught.value)
    assert isinstance(caught.value, ValueError)


BLOCKED = """
    import asyncio, sys
    from importlib.abc import MetaPathFinder

    class Block(MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name.partition(".")[0] in {blocked!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    sys.meta_path.insert(0, Block())
    from fastapi_sqlalchemy import db
    from fastapi_sqlalchemy.exceptions import MissingDriverError

    db.configure({url!r})

    async def asynchronous():
        async with db():
            await db.async_session.connection()

    def sync():
        with db():
            db.session.connection()

    try:
        {call}
    except MissingDriverError as exc:
        print(exc)
"""


@pytest.mark.parametrize(
    ("url", "blocked", "call", "line"),
    [
        ("sqlite://", ["aiosqlite"], "asyncio.run(asynchronous())", "pip install aiosqlite"),
        (
            "postgresql+psycopg2://h/d",
            ["psycopg", "asyncpg"],
            "asyncio.run(asynchronous())",
            "pip install 'psycopg[binary]'",
        ),
        ("postgresql+psycopg://h/d", ["psycopg"], "sync()", "pip install 'psycopg[binary]'"),
        ("postgresql+asyncpg://h/d", ["asyncpg"], "asyncio.run(asynchronous())", "asyncpg"),
        (
            "postgresql+asyncpg://h/d",
            ["psycopg", "psycopg2", "pg8000"],
            "sync()",
            "pip install 'psycopg[binary]'",
        ),
        (
            "mysql+pymysql://h/d",
            ["aiomysql", "asyncmy"],
            "asyncio.run(asynchronous())",
            "pip install aiomysql",
        ),
        ("mysql+aiomysql://h/d", ["pymysql", "MySQLdb"], "sync()", "pip install pymysql"),
    ],
)
def test_a_missing_driver_is_named_where_its_import_fails(
    python: Run, url: str, blocked: list[str], call: str, line: str
) -> None:
    from textwrap import dedent

    done = python("-c", dedent(BLOCKED).format(url=url, blocked=blocked, call=call))
    assert done.returncode == 0, done.stderr
    assert line in done.stdout
    assert "not installed" in done.stdout


@pytest.mark.parametrize(
    ("blocked", "expected"),
    [([], "mysql+aiomysql"), (["aiomysql"], "mysql+asyncmy")],
)
def test_asyncmy_serves_where_aiomysql_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, blocked: list[str], expected: str
) -> None:
    import sys

    for module in blocked:
        monkeypatch.setitem(sys.modules, module, None)
    url, _ = url_for(make_url("mysql+pymysql://h/d"), "async")
    assert url.drivername == expected


@pytest.mark.parametrize(
    "url",
    ["secret", "postgresql:/u:secret@h/d", "postgresql://u:s@secret@h:x/d", "://secret", ""],
)
def test_a_url_that_cannot_be_read_is_not_repeated_in_the_error(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(url)
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(caught.value.__cause__)
    assert "postgresql://user:password@host:5432/database" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://ann:s3@cret@db:5432/shop",
        "postgresql+psycopg://ann:s3cret@@db/shop",
        "postgresql+psycopg://ann:s3@x/cret@db:5432/shop",
        "postgresql+psycopg://ann:s3@x?cret@db/shop?sslmode=require",
        "mysql+pymysql://ann:s3@cret@/shop",
    ],
    ids=["in the middle", "at the end", "with a slash", "with a question mark", "no host"],
)
def test_a_password_that_would_be_taken_for_a_host_is_refused_and_not_repeated(url: str) -> None:
    url_object = make_url(url)
    given: list[dict[str, Any]] = [{"db_url": url}]
    if "?" not in url:  # which only the text tells from a URL's own
        given += [{"db_url": url_object}, {"custom_engine": create_engine(url_object)}]
    for each in given:
        with pytest.raises(ConfigurationError, match="%40") as caught:
            Database().configure(**each)
        assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "mysql+pymysql://ann@server:s3cret@db/shop",
        "postgresql+psycopg://ann:s3?cret@db/shop?host=@socket",
        "postgresql+psycopg://ann:s3/cret@db/sh@p",
        "postgresql+psycopg://ann:s3%40cret@[::1]:5432/shop?options=-ca@b",
        "sqlite:////srv/a@b/shop.db",
        "sqlite:///file:a@b/shop.db?mode=ro&uri=true",
    ],
)
def test_an_at_sign_elsewhere_is_none_of_a_password(url: str) -> None:
    assert parse(url) == make_url(url)


def test_what_is_no_text_is_said_by_its_kind() -> None:
    for url in (SecretStr("sqlite://"), PostgresDsn("postgresql://u:hunter2@h/d"), b"sqlite://"):
        with pytest.raises(ConfigurationError, match="not a str: give db_url str") as caught:
            parse(url)  # type: ignore[arg-type]
        assert type(url).__name__ in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_postgres_urls_are_told_the_name_that_sqlalchemy_knows() -> None:
    with pytest.raises(ConfigurationError, match="write postgresql://"):
        Database("test").configure("postgres://u:p@h/d")
    for wrong, right in (("postgrs", "postgresql"), ("postgresql+psycpg", "postgresql+psycopg")):
        with pytest.raises(ConfigurationError, match=re.escape(f"write {right}:// for {wrong}")):
            Database("test").configure(f"{wrong}://u:p@h/d")


@pytest.mark.parametrize("name", ["zzzz", "sqlite+libsql"])
def test_a_database_of_another_package_is_one_until_its_engine_is_made(name: str) -> None:
    db = Database("test")
    db.configure(f"{name}://u:p@h/d")
    with pytest.raises(MissingDriverError, match="is its package installed"):
        _ = db.engine


# "=" + a word that occurs nowhere else in what is printed
passwords = st.text(min_size=1, max_size=20).map(lambda text: f"§{text}§")
secret_words = st.sampled_from(
    ["password", "passwd", "sslpassword", "ssl_key_password", "auth_token", "odbc_connect"]
)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(password=passwords, word=secret_words, in_query=passwords, as_object=st.booleans())
def test_no_password_is_printed(password: str, word: str, in_query: str, as_object: bool) -> None:
    text = (
        f"postgresql+psycopg://user:{quote(password, safe='')}@host:5432/shop"
        f"?{urlencode({word: in_query, 'sslmode': 'require', 'application_name': 'shop'})}"
    )
    url = make_url(text)
    assert url.password == password
    database = Database("test")
    database.configure(url if as_object else text)
    binding = database._binding()
    printed = [
        repr(database),
        masked(url),
        repr(binding),
        repr(binding.configuration),
        repr(binding.configuration.engine),
        _message(database, lambda: database.engine.url.get_dialect),
        _message(database, lambda: database.session),
    ]
    assert all("§" not in each and "%C2%A7" not in each for each in printed), printed
    assert "sslmode=require" in printed[0]
    assert "application_name=shop" in printed[0]


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(password=passwords, word=secret_words, in_query=passwords)
def test_no_password_is_in_a_configuration_error(password: str, word: str, in_query: str) -> None:
    query = urlencode({word: in_query, "unknown": in_query})
    for drivername, side in (
        ("postgresql+asyncpg", "sync"),
        ("postgresql+psycopg2", "async"),
        ("mysql+pymysql", "async"),
        ("mssql+pyodbc", "async"),
    ):
        url = f"{drivername}://user:{quote(password, safe='')}@host/shop?{query}"
        message = _message(None, lambda: url_for(make_url(url), side))  # type: ignore[arg-type]  # noqa: B023
        assert "§" not in message
        assert "%C2%A7" not in message


def _message(database: Database | None, call: Any) -> str:
    try:
        call()
    except Exception as exc:
        return f"{exc!r} {exc} {exc.__cause__!r}"
    return ""


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(one=passwords, other=passwords)
def test_no_password_is_in_the_listing_of_several_apps(one: str, other: str) -> None:
    from starlette.middleware import Middleware

    database = Database("test")
    entries = [
        Middleware(
            DBSessionMiddleware,
            db_url=f"postgresql://u:{quote(password, safe='')}@{host}/d?password={quote(password)}",
            db=database,
        )
        for password, host in ((one, "one"), (other, "other"))
    ]
    with pytest.raises(SessionNotInitialisedError) as caught:
        _ = database.session
    assert "§" not in str(caught.value)
    assert "%C2%A7" not in str(caught.value)
    assert "@one/d" in str(caught.value)
    assert "@other/d" in str(caught.value)
    del entries
