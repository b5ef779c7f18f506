"""The ground that the other tests stand on."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pymysql
import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from support.backends import Backend, connect_mariadb
from support.databases import MariaDBServer
from support.mariadb_server import private_server, program
from support.processes import OpenTerminal, Run, Start
from support.web import Served, ServedProcess


def test_a_backend_is_empty_and_counts_the_sessions_of_others(backend: Backend) -> None:
    backend.execute("CREATE TABLE t (n integer)")
    backend.execute("INSERT INTO t VALUES (7)")
    assert backend.rows("SELECT n FROM t") == [(7,)]
    backend.assert_released()

    engine = create_engine(backend.url)
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO t VALUES (8)"))
        assert backend.connections() == 1
        assert backend.idle_in_transaction() == 1
        assert backend.rows("SELECT n FROM t") == [(7,)]
        connection.rollback()
        connection.execute(text("SELECT n FROM t"))
        assert backend.idle_in_transaction() == (backend.name != "sqlite")
    backend.assert_no_transaction()
    with pytest.raises(AssertionError, match="sessions left on"):
        backend.assert_released(within_s=0.1)
    engine.dispose()
    backend.assert_released()


async def test_the_async_url_reaches_the_same_database(backend: Backend) -> None:
    backend.execute("CREATE TABLE t (n integer)")
    engine = create_async_engine(backend.async_url)
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO t VALUES (1)"))
    await engine.dispose()
    assert backend.rows("SELECT n FROM t") == [(1,)]


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_a_database_is_dropped_although_a_session_is_open_in_it(
    name: str, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue(f"{name}_server")
    with server.database() as backend:
        engine = create_engine(backend.url)
        connection = engine.connect()
        connection.execute(text("CREATE TABLE t (n integer)"))
        connection.execute(text("INSERT INTO t VALUES (1)"))
    assert backend.connections() == 0
    connection.invalidate()
    connection.close()
    engine.dispose()


@pytest.mark.slow
def test_a_mariadb_of_ones_own_answers_and_ends(tmp_path: Path) -> None:
    try:
        program("mariadbd")
    except FileNotFoundError as exc:
        pytest.skip(str(exc))
    with private_server(tmp_path) as url:
        server = MariaDBServer(url)
        with server.database() as backend:
            assert backend.rows("SELECT @@tmpdir") == [(str(tmp_path / "tmp"),)]
        server.close()
    with pytest.raises(pymysql.err.OperationalError):
        connect_mariadb(url)


def test_an_app_object_is_served(serve: Callable[..., AbstractContextManager[Served]]) -> None:
    app = FastAPI()

    @app.get("/")
    def root() -> str:
        return "here"

    with serve(app) as served:
        assert httpx.get(served.base_url).json() == "here"
    with pytest.raises(httpx.ConnectError):
        httpx.get(served.base_url)


def test_an_app_is_served_by_a_process(
    serve_process: Callable[..., AbstractContextManager[ServedProcess]],
    write_app: Callable[..., Path],
    tmp_path: Path,
) -> None:
    write_app(
        tmp_path,
        main="""
        from fastapi import FastAPI

        app = FastAPI()

        @app.get("/")
        def root() -> str:
            return "here"
        """,
    )
    with serve_process("main:app", cwd=tmp_path) as served:
        assert httpx.get(served.base_url).json() == "here"
    assert served.process.returncode is not None


def test_a_process_is_read_while_it_runs_and_ends_with_its_code(start: Start) -> None:
    process = start("sh", "-c", "echo ready; exec sleep 600")
    process.wait_for("ready")
    assert process.returncode is None
    assert process.stop().returncode == -15


def test_a_terminal_is_a_terminal_of_a_hundred_columns(terminal: OpenTerminal) -> None:
    child = terminal("stty", "size")
    child.expect("40 100")


def test_a_child_does_not_inherit_what_would_change_it(
    python: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSA_APP", "other:app")
    done = python("-c", "import os; print([k for k in os.environ if k.startswith('FSA_')])")
    assert done.stdout == "[]\n"
