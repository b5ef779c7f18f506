"""Whether two URLs mean one database, where a database is, and whether it is a file."""

import sqlite3
from contextlib import closing
from itertools import combinations

import pytest
from sqlalchemy import make_url

from fsa_cli.database.dialects.mysql import mariadb_options
from fsa_cli.database.dialects.postgresql import psql_environment
from fsa_cli.database.identity import address, hosts, same_database, sqlite_file
from support.backends import connect_postgresql
from support.postgresql_server import postgresql_server

SAME = [
    ("postgresql://u@db1/shop", "postgresql+asyncpg://other:pw@DB1.:5432/shop?ssl=require"),
    ("postgresql://u@db1:5433/shop", "postgresql+psycopg://u@/shop?host=db1&port=5433"),
    ("postgresql://u@db1:5433/shop", "postgresql+psycopg://u@/shop?host=db1:5433"),
    ("postgresql://u@elsewhere/shop", "postgresql://u@elsewhere/x?dbname=shop"),
    ("postgresql://u@127.0.0.1/shop", "postgresql://u@[::1]/shop"),
    ("postgresql:///shop", "postgresql://localhost/shop"),
    ("postgresql://u@x/shop?host=db1", "postgresql://u@db1/shop"),
    ("postgresql://u@/shop?host=a:1&host=b:2", "postgresql://u@/shop?host=b,a&port=2,1"),
    ("postgresql://shop@db1", "postgresql://db1/shop"),
    ("mysql+pymysql://r@db1/shop", "mariadb+asyncmy://u@db1:3306/shop"),
    ("mysql+pymysql://r@/shop?unix_socket=/run/m", "mysql+asyncmy://r@db1/shop?unix_socket=/run/m"),
    ("sqlite:///shop.db", "sqlite+aiosqlite:///./shop.db"),
    ("sqlite:///file:shop.db?uri=true", "sqlite:///shop.db"),
    (
        "sqlite:///file:shop?mode=memory&cache=shared&uri=true",
        "sqlite+aiosqlite:///file:shop?mode=memory&cache=shared&uri=true",
    ),
]
#: None of these is another one.
DIFFERENT = [
    "postgresql://u@db1/shop",
    "postgresql://u@db1/shop2",
    "postgresql://u@db1:5433/shop",
    "postgresql+psycopg://u@/shop?host=db2",
    "postgresql+psycopg://u@/shop?host=db2&port=5433",
    "postgresql+psycopg://u@db1/shop?port=5434",
    "postgresql+psycopg://u@/shop?host=db1,db2",
    "postgresql+psycopg://u@/shop?host=db1:1&host=db2:2",
    "postgresql+psycopg://u@/shop?host=/cloudsql/p:r:one",
    "postgresql+psycopg://u@/shop?host=/cloudsql/p:r:two",
    "postgresql+psycopg://u@/shop?host=/cloudsql/p:r:two&port=5433",
    "postgresql+psycopg://u@/shop?service=one",
    "postgresql://u@localhost/shop",
    "mysql+pymysql://r@db1/shop",
    "mysql+pymysql://r@db1:3307/shop",
    "mysql+pymysql://r@/shop?unix_socket=/cloudsql/p:r:one",
    "mysql+pymysql://r@/shop?unix_socket=/cloudsql/p:r:two",
    "sqlite://",
    "sqlite+aiosqlite:///:memory:",
    "sqlite:///file:shop?vfs=memdb&uri=true",
    "sqlite:///file:/shop?vfs=memdb&uri=true",
    "sqlite:///file:shop?uri=true",
    "sqlite:///file:shop",
    "duckdb:///shop.db",
    "libsql:///shop.db",
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_urls_of_one_database_are_recognized(one, other) -> None:
    assert same_database(make_url(one), make_url(other))


def test_urls_of_two_databases_are_told_apart() -> None:
    for one, other in combinations(DIFFERENT, 2):
        assert not same_database(make_url(one), make_url(other)), (one, other)


def test_libpqs_variables_stand_in_for_what_a_url_leaves_out(monkeypatch) -> None:
    bare, full = make_url("postgresql://u@/shop"), make_url("postgresql://u@db1:5433/shop")
    assert not same_database(bare, full)
    monkeypatch.setenv("PGHOST", "db1")
    monkeypatch.setenv("PGPORT", "5433")

    assert same_database(bare, full)
    assert address(bare) == "postgresql db1:5433, database shop as u"


def test_two_private_in_memory_databases_are_never_one() -> None:
    assert not same_database(make_url("sqlite://"), make_url("sqlite://"))


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("postgresql://u:pw@db1/shop", "postgresql db1:5432, database shop as u"),
        ("postgresql:///shop", "postgresql local socket, database shop"),
        ("postgresql://u@/shop?host=db1&port=5433", "postgresql db1:5433, database shop as u"),
        ("postgresql:///shop?host=a:1&host=b:2", "postgresql a:1,b:2, database shop"),
        (
            "postgresql:///shop?host=/cloudsql/p:r:i",
            "postgresql socket /cloudsql/p:r:i/.s.PGSQL.5432, database shop",
        ),
        (
            "mysql+pymysql:///shop?unix_socket=/run/m.sock",
            "mysql socket /run/m.sock, database shop",
        ),
        ("postgresql://me@/?service=shop", "postgresql service shop as me"),
        ("mariadb+pymysql:///shop", "mariadb localhost:3306, database shop"),
        ("sqlite://", "sqlite in memory"),
        ("sqlite:///file:shop?vfs=memdb&uri=true", "sqlite in memory"),
        ("sqlite:///file:shop.db?uri=true", "sqlite shop.db"),
    ],
)
def test_an_address_says_where_a_database_is(url, text) -> None:
    assert address(make_url(url)) == text


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///file:my%20shop.db?uri=true&mode=rw", "my shop.db"),
        ("sqlite:///file:///srv/shop.db?uri=true", "/srv/shop.db"),
        ("sqlite:///file:shop.db", "file:shop.db"),
        ("sqlite:////srv/shop.db", "/srv/shop.db"),
        ("sqlite:///file:shop?mode=memory&uri=true", None),
        ("sqlite:///file::memory:?uri=true", None),
        ("sqlite:///:memory:", None),
    ],
)
def test_a_sqlite_file_has_the_path_that_sqlite_opens(url, path) -> None:
    assert sqlite_file(make_url(url)) == path


def test_every_host_that_a_url_names_can_protect_it() -> None:
    url = make_url("postgresql://u@one/shop?host=two:1&host=/run/three&hostaddr=10.0.0.1")

    assert hosts(url) == ["10.0.0.1", "one", "two", "/run/three"]


def test_psql_is_given_hosts_and_ports_apart() -> None:
    environment = psql_environment(make_url("postgresql:///shop?host=a:1&host=b:2"))

    assert (environment["PGHOST"], environment["PGPORT"]) == ("a,b", "1,2")


def test_mariadbs_client_uses_the_socket_that_the_driver_uses() -> None:
    options = mariadb_options(make_url("mysql+pymysql://me@db1:3307/shop?unix_socket=/run/m.sock"))

    assert 'socket="/run/m.sock"' in options
    assert "host=" not in options


APP = """
    from fastapi import FastAPI
    from sqlalchemy import text
    from fastapi_sqlalchemy import DBSessionMiddleware, db
    from fsa_cli import task

    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url={url!r})

    @task
    def write() -> None:
        db.session.execute(text("CREATE TABLE IF NOT EXISTS written (n integer)"))
        db.session.execute(text("INSERT INTO written VALUES (1)"))
"""


def test_a_ledger_on_another_server_named_in_the_query_is_another_database(
    fsa, write_app, tmp_path, postgresql
) -> None:
    """Both have the same database name, and their hosts in the query."""
    place = postgresql.location
    url = (
        f"postgresql+psycopg://{place.username}@/{place.database}"
        f"?host={place.host or '/var/run/postgresql'}&port={place.port or 5432}"
    )
    write_app(tmp_path, main=APP.format(url=url))
    with postgresql_server() as server:
        with connect_postgresql(server.url) as connection:
            connection.execute(f'CREATE DATABASE "{place.database}"')
        ledger = (
            f"postgresql+psycopg://postgres@/{place.database}?host=127.0.0.1&port={server.port}"
        )
        env = {"FSA_LEDGER_URL": ledger, "PGPASSWORD": place.password or ""}
        created = fsa("scheduler", "init", env=env)
        done = fsa("run-task", "write", env=env)
        runs = fsa("runs", env=env)

    assert created.returncode == 0, created.stderr
    assert (done.returncode, done.stderr.count("does not exist")) == (0, 0), done.stderr
    assert "succeeded" in runs.stdout
    assert postgresql.rows("SELECT n FROM written") == [(1,)]
    # The run's mark, and its claim's.
    assert postgresql.rows("SELECT count(*) FROM fsa_effect") == [(2,)]


def test_a_sqlite_file_named_by_a_uri_has_its_ledger_beside_it(fsa, write_app, tmp_path) -> None:
    write_app(tmp_path, main=APP.format(url="sqlite:///file:shop.db?uri=true"))

    created = fsa("scheduler", "init")
    done = fsa("run-task", "write")
    runs = fsa("runs")

    assert [each.returncode for each in (created, done, runs)] == [0, 0, 0], runs.stderr
    assert "succeeded" in runs.stdout
    assert sorted(path.name for path in tmp_path.glob("*shop*")) == ["shop-ledger.db", "shop.db"]
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        assert connection.execute("SELECT n FROM written").fetchall() == [(1,)]


def test_the_database_of_a_uri_in_memory_is_no_file(fsa, write_app, tmp_path) -> None:
    write_app(tmp_path, main=APP.format(url="sqlite:///file:shop?vfs=memdb&uri=true"))

    assert fsa("scheduler", "init").returncode == 0
    done = fsa("db", "shell")

    assert not list(tmp_path.glob("*shop*"))
    assert (done.returncode, "in-memory database" in done.stderr) == (2, True)
