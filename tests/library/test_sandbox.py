"""`db.sandbox()`: on every database, nothing that happens inside is there afterwards."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from sqlalchemy import Connection, create_engine, event, insert, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from fastapi_sqlalchemy import Database, DBSessionMiddleware
from fastapi_sqlalchemy.exceptions import SandboxError
from support.backends import Backend
from support.models import User

Tables = Callable[[Backend], Backend]


@pytest.fixture
def stored(backend: Backend, tables: Tables, db: Database) -> Backend:
    """A configured database that holds one user, ann."""
    tables(backend).execute("INSERT INTO users (name) VALUES ('ann')")
    db.configure(backend.url)
    return backend


def names(stored: Backend) -> list[str]:
    return [name for (name,) in stored.rows("SELECT name FROM users ORDER BY id")]


def users_app(db: Database) -> FastAPI:
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db=db, commit_on_exit=True)

    @app.post("/users/{name}")
    def add(name: str) -> None:
        db.session.add(User(name=name))

    @app.get("/users")
    def listed() -> list[str]:
        return list(db.session.scalars(select(User.name).order_by(User.id)))

    @app.post("/async-users/{name}")
    async def add_async(name: str) -> None:
        db.async_session.add(User(name=name))

    @app.get("/async-users")
    async def listed_async() -> list[str]:
        return list(await db.async_session.scalars(select(User.name).order_by(User.id)))

    return app


def test_commits_inside_are_seen_inside_and_gone_afterwards(stored: Backend, db: Database) -> None:
    with db.sandbox():
        with db(commit_on_exit=True):
            db.session.add(User(name="bob"))
        with db():
            db.session.add(User(name="cid"))
            db.session.commit()
            db.session.execute(insert(User), [{"name": "dan"}, {"name": "eve"}])
            db.session.commit()
        with db():
            assert len(db.session.scalars(select(User)).all()) == 5
        assert names(stored) == ["ann"]
    assert names(stored) == ["ann"]
    with db():
        assert db.session.scalars(select(User.name)).all() == ["ann"]


def test_a_rollback_inside_undoes_its_own_block_only(stored: Backend, db: Database) -> None:
    with db.sandbox():
        with db(commit_on_exit=True):
            db.session.add(User(name="kept"))
        with db():
            db.session.add(User(name="undone"))
            db.session.flush()
            db.session.rollback()
            assert db.session.scalars(select(User.name).order_by(User.id)).all() == ["ann", "kept"]
        with db(commit_on_exit=True):
            with pytest.raises(ZeroDivisionError), db.session.begin_nested():
                db.session.add(User(name="in a savepoint"))
                db.session.flush()
                raise ZeroDivisionError
            db.session.add(User(name="after it"))
        with db():
            found = db.session.scalars(select(User.name).order_by(User.id)).all()
            assert found == ["ann", "kept", "after it"]
    assert names(stored) == ["ann"]


def test_requests_and_the_test_share_the_sandbox_sync_and_async(
    stored: Backend, db: Database
) -> None:
    client = TestClient(users_app(db))
    with db.sandbox():
        with db():
            db.session.add(User(name="from the test"))
            db.session.commit()
            assert client.post("/users/sync").status_code == 200
            assert client.post("/async-users/async").status_code == 200
            expected = ["ann", "from the test", "sync", "async"]
            assert client.get("/users").json() == expected
            assert client.get("/async-users").json() == expected
            assert db.session.scalars(select(User.name).order_by(User.id)).all() == expected
    assert names(stored) == ["ann"]
    stored.assert_no_transaction()


def test_the_connection_is_usable_outside_afterwards(stored: Backend, db: Database) -> None:
    with db.sandbox(), db():
        db.session.add(User(name="gone"))
        db.session.commit()
    with db(commit_on_exit=True):
        db.session.add(User(name="stays"))
    with db():
        db.session.add(User(name="rolled back"))
        db.session.flush()
    assert names(stored) == ["ann", "stays"]
    assert db.pool_status()["sync"]["checked_out"] == 0


async def test_both_sessions_work_on_one_connection(stored: Backend, db: Database) -> None:
    async with db.sandbox():
        async with db(commit_on_exit=True):
            db.async_session.add(User(name="bob"))
            await db.async_session.flush()
        async with db():
            assert (await db.async_session.scalars(select(User.name))).all() == ["ann", "bob"]
            assert db.session.scalars(select(User.name)).all() == ["ann", "bob"]
            streamed = await db.async_session.stream_scalars(select(User.name))
            assert await streamed.all() == ["ann", "bob"]
        assert db.pool_status()["sync"]["checked_out"] == 1
    assert names(stored) == ["ann"]


async def test_sessions_of_two_phases_are_rolled_back_too(stored: Backend, db: Database) -> None:
    db.configure(stored.url, async_db_url=stored.async_url, session_args={"twophase": True})
    async with db.sandbox():
        async with db(commit_on_exit=True):
            db.session.add(User(name="bob"))
            db.session.commit()
            db.async_session.add(User(name="cid"))
        async with db():
            found = await db.async_session.scalars(select(User.name))
            assert found.all() == ["ann", "bob", "cid"]
    assert names(stored) == ["ann"]


async def test_a_session_that_gives_up_its_connection_leaves_the_sandbox_usable(
    stored: Backend, db: Database
) -> None:
    async with db.sandbox():
        async with db(commit_on_exit=True):
            db.session.add(User(name="lost"))
            db.session.flush()
            db.session.invalidate()
            db.session.add(User(name="bob"))
            db.session.commit()
            db.async_session.add(User(name="lost"))
            await db.async_session.flush()
            await db.async_session.invalidate()
            db.async_session.add(User(name="cid"))
        async with db():
            found = await db.async_session.scalars(select(User.name))
            assert found.all() == ["ann", "bob", "cid"]
    assert names(stored) == ["ann"]


async def test_gather_runs_one_at_a_time(stored: Backend, db: Database) -> None:
    running = most = 0

    async def add(name: str) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        db.async_session.add(User(name=name))
        await db.async_session.commit()
        await asyncio.sleep(0)
        running -= 1
        return len((await db.async_session.scalars(select(User))).all())

    async with db.sandbox():
        counts = await db.gather(*(add(f"user {n}") for n in range(4)), limit=4)
    assert counts == [2, 3, 4, 5]
    assert most == 1
    assert names(stored) == ["ann"]


@pytest.mark.parametrize("drivername", ["aiosqlite", "asyncpg", "aiomysql"])
async def test_a_database_with_only_an_async_engine_is_sandboxed_on_its_loop(
    request: pytest.FixtureRequest, tables: Tables, db: Database, drivername: str
) -> None:
    fixture = {"aiosqlite": "sqlite", "asyncpg": "postgresql", "aiomysql": "mariadb"}[drivername]
    stored = tables(request.getfixturevalue(fixture))
    stored.execute("INSERT INTO users (name) VALUES ('ann')")
    engine = create_async_engine(stored.with_driver(drivername))
    db.configure(custom_async_engine=engine)
    async with db.sandbox():
        async with db(commit_on_exit=True):
            db.async_session.add(User(name="bob"))
        async with db():
            assert (await db.async_session.scalars(select(User.name))).all() == ["ann", "bob"]
        with pytest.raises(SandboxError, match="event loop"):
            await asyncio.to_thread(asyncio.run, _read(db))
    assert names(stored) == ["ann"]
    async with db(commit_on_exit=True):
        db.async_session.add(User(name="stays"))
    assert names(stored) == ["ann", "stays"]
    await engine.dispose()


def test_a_sandbox_whose_connection_is_lost_says_so(
    postgresql: Backend, tables: Tables, db: Database
) -> None:
    stored = tables(postgresql)
    db.configure(stored.url)
    with db.sandbox():
        with pytest.raises(OperationalError), db(commit_on_exit=True):
            db.session.add(User(name="lost"))
            db.session.flush()
            db.session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        with pytest.raises(SandboxError, match="has lost its connection"), db():
            db.session.execute(text("SELECT 1"))
        with pytest.raises(SandboxError, match="has lost its connection"), db.engine.connect():
            pass
    with db(commit_on_exit=True):
        db.session.add(User(name="stays"))
    assert names(stored) == ["stays"]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_sandbox_on_an_async_connection_is_lost_with_a_statement_that_is_cancelled(
    postgresql: Backend, tables: Tables, db: Database, driver: str
) -> None:
    stored = tables(postgresql)
    engine = create_async_engine(stored.with_driver(driver))
    db.configure(custom_async_engine=engine)
    async with db.sandbox():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), db():
                db.async_session.add(User(name="lost"))
                await db.async_session.flush()
                await db.async_session.execute(text("SELECT pg_sleep(60)"))
        async with db():
            with pytest.raises(SandboxError, match="has lost its connection"):
                await db.async_session.execute(text("SELECT 1"))
    async with db(commit_on_exit=True):
        db.async_session.add(User(name="stays"))
    assert names(stored) == ["stays"]
    await engine.dispose()


async def _read(db: Database) -> None:
    async with db():
        await db.async_session.scalars(select(User))


async def test_a_plain_with_over_an_async_engine_says_how_to_open_it(
    sqlite: Backend, db: Database
) -> None:
    engine = create_async_engine(sqlite.async_url)
    db.configure(custom_async_engine=engine)
    with db.sandbox():
        async with db():
            with pytest.raises(SandboxError, match=r"async with db\.sandbox\(\)"):
                _ = db.async_session
    await engine.dispose()


@pytest.mark.parametrize("backend_name", ["postgresql", "sqlite"])
def test_ddl_inside_is_undone_where_the_database_can(
    request: pytest.FixtureRequest, db: Database, tables: Tables, backend_name: str
) -> None:
    stored = tables(request.getfixturevalue(backend_name))
    db.configure(stored.url)
    with db.sandbox(), db():
        db.session.execute(text("CREATE TABLE made_inside (id INTEGER PRIMARY KEY)"))
        db.session.execute(text("ALTER TABLE users ADD COLUMN age INTEGER"))
        db.session.commit()
        db.session.execute(text("INSERT INTO made_inside VALUES (1)"))
    with db():
        with pytest.raises(Exception, match="made_inside"):
            db.session.execute(text("SELECT * FROM made_inside"))
        db.session.rollback()
        with pytest.raises(Exception, match="age"):
            db.session.execute(text("SELECT age FROM users"))


def test_mariadb_refuses_what_would_commit(mariadb: Backend, tables: Tables, db: Database) -> None:
    db.configure(tables(mariadb).url)
    with db.sandbox(), db():
        db.session.add(User(name="gone"))
        db.session.commit()
        with pytest.raises(SandboxError, match="CREATE TABLE made_inside"):
            db.session.execute(text("CREATE TABLE made_inside (id INTEGER)"))
        db.session.rollback()
        db.session.execute(text("CREATE TEMPORARY TABLE scratch (id INTEGER)"))
    assert names(mariadb) == []
    with db(commit_on_exit=True):  # the connection is out of the sandbox and may do it again
        db.session.execute(text("CREATE TABLE made_outside (id INTEGER)"))
    assert mariadb.rows("SELECT * FROM made_outside") == []


@pytest.mark.parametrize(
    "end",
    [
        lambda session: session.execute(text("COMMIT")),
        lambda session: session.execute(text("/* now */ commit")),
        lambda session: session.execute(text("ROLLBACK")),
        lambda session: session.connection().commit(),
        lambda session: session.connection().rollback(),
    ],
    ids=["COMMIT", "a comment before it", "ROLLBACK", "connection.commit", "connection.rollback"],
)
def test_what_would_end_the_connections_transaction_is_refused(
    stored: Backend, db: Database, end: Callable[[Session], object]
) -> None:
    with db.sandbox():
        with pytest.raises(SandboxError, match="would end the transaction"), db():
            db.session.add(User(name="gone"))
            db.session.flush()
            end(db.session)
        with db():
            assert db.session.scalars(select(User.name)).all() == ["ann"]
            db.session.execute(text("SAVEPOINT mine"))
            db.session.add(User(name="gone too"))
            db.session.flush()
            db.session.execute(text("ROLLBACK TO SAVEPOINT mine"))
            db.session.commit()
    assert names(stored) == ["ann"]
    stored.assert_no_transaction()


@pytest.mark.parametrize("way", ["driver", "cursor"])
def test_a_transaction_that_was_ended_behind_its_back_is_said_to_be(
    stored: Backend, db: Database, way: str
) -> None:
    """Never "rolled back" of what was not."""

    def end(session: Session) -> None:
        driver: Any = session.connection().connection.driver_connection
        if way == "driver":
            driver.commit()
        else:
            driver.cursor().execute("COMMIT")

    with pytest.raises(SandboxError, match="own transaction is over"), db.sandbox(), db():
        db.session.add(User(name="kept"))
        db.session.flush()
        end(db.session)
        with pytest.raises(SandboxError, match="own transaction is over"):
            db.session.scalars(select(User)).all()
    assert names(stored) == ["ann", "kept"]
    stored.assert_no_transaction()


def test_a_procedure_that_commits_is_said_to_have_done_so(
    mariadb: Backend, tables: Tables, db: Database
) -> None:
    tables(mariadb)
    mariadb.execute("CREATE PROCEDURE commits() COMMIT")
    db.configure(mariadb.url)
    try:
        with pytest.raises(SandboxError, match="own transaction is over"), db.sandbox(), db():
            db.session.add(User(name="kept"))
            db.session.flush()
            db.session.execute(text("CALL commits()"))
    finally:
        mariadb.execute("DROP PROCEDURE commits")


@pytest.mark.parametrize(
    "statement",
    [
        "LOCK TABLE users WRITE",
        "/*!40000 ALTER TABLE users DISABLE KEYS */",
        "/*M! TRUNCATE TABLE users */",
        "SET STATEMENT max_statement_time = 10 FOR TRUNCATE TABLE users",
        "SET NAMES utf8, autocommit = 1",
        "SET PASSWORD = ''",
        "CHECK TABLE users",
        "FLUSH TABLES",
    ],
)
def test_what_mariadb_commits_on_is_refused_however_it_is_written(
    mariadb: Backend, db: Database, statement: str
) -> None:
    db.configure(mariadb.url)
    with db.sandbox(), db(), pytest.raises(SandboxError, match="commit when they run this"):
        db.session.execute(text(statement))


def test_an_engine_with_an_autocommit_option_gives_no_guest(stored: Backend, db: Database) -> None:
    db.configure(stored.url, engine_args={"execution_options": {"isolation_level": "AUTOCOMMIT"}})
    with db.sandbox():
        for connect in (db.engine.connect, lambda: Session(db.engine).connection()):
            with pytest.raises(SandboxError, match="AUTOCOMMIT"):
                connect()
        with db(commit_on_exit=True):
            db.session.add(User(name="gone"))
    assert names(stored) == ["ann"]


def test_an_engine_in_autocommit_is_rolled_back_too(stored: Backend, db: Database) -> None:
    db.configure(stored.url, engine_args={"isolation_level": "AUTOCOMMIT"})
    with db.sandbox(), db(commit_on_exit=True):
        db.session.add(User(name="gone"))
    assert names(stored) == ["ann"]
    with db():
        db.session.execute(insert(User), {"name": "stays"})
    assert names(stored) == ["ann", "stays"]


def test_an_engine_whose_own_listener_begins_is_rolled_back_too(
    sqlite: Backend, tables: Tables, db: Database
) -> None:
    engine = create_engine(tables(sqlite).url)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    db.configure(custom_engine=engine)
    with db.sandbox(), db(commit_on_exit=True):
        db.session.add(User(name="gone"))
    assert names(sqlite) == []
    engine.dispose()


def test_who_opens_a_sandbox_is_told_of_its_connections(stored: Backend, db: Database) -> None:
    seen: list[str] = []

    def listen(connection: Connection) -> None:
        event.listen(
            connection, "before_cursor_execute", lambda *args: seen.append(args[2].split()[0])
        )

    with db.sandbox(listen):
        with db(commit_on_exit=True):
            db.session.add(User(name="gone"))
        with db():
            db.session.scalars(select(User)).all()
    assert seen == ["SAVEPOINT", "INSERT", "RELEASE", "SAVEPOINT", "SELECT", "ROLLBACK"]
    with db():
        db.session.scalars(select(User)).all()
    assert len(seen) == 6


def test_a_failed_statement_leaves_the_sandbox_usable(stored: Backend, db: Database) -> None:
    with db.sandbox():
        with pytest.raises(Exception, match="nothing_of_this_name"), db():
            db.session.execute(text("SELECT * FROM nothing_of_this_name"))
        with db():
            assert db.session.scalars(select(User.name)).all() == ["ann"]


def test_the_options_of_a_sessions_connection_end_with_its_transaction(
    stored: Backend, db: Database
) -> None:
    """As outside: a tenant's schema is none of the next session's."""
    tenant = {"schema_translate_map": {None: "tenant"}, "isolation_level": "SERIALIZABLE"}
    with db.sandbox():
        with db():
            assert db.session.connection(execution_options=tenant).get_execution_options()[
                "schema_translate_map"
            ]
        with db():
            assert db.session.scalars(select(User.name)).all() == ["ann"]
        with db(), pytest.raises(SandboxError, match="AUTOCOMMIT"):
            db.session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})


def test_sandboxes_do_not_nest(stored: Backend, db: Database) -> None:
    with db.sandbox():
        with pytest.raises(SandboxError, match="open already"), db.sandbox():
            pass
        with db():
            assert db.session.scalars(select(User.name)).all() == ["ann"]


def test_an_exception_inside_ends_the_sandbox(stored: Backend, db: Database) -> None:
    with pytest.raises(ZeroDivisionError), db.sandbox(), db(commit_on_exit=True):
        db.session.add(User(name="gone"))
        db.session.flush()
        raise ZeroDivisionError
    with db(commit_on_exit=True):
        db.session.add(User(name="stays"))
    assert names(stored) == ["ann", "stays"]


def test_requests_inside_run_one_at_a_time(stored: Backend, db: Database) -> None:
    app = users_app(db)
    running = most = 0
    lock = threading.Lock()

    @app.post("/slow/{name}")
    def slow(name: str) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        db.session.add(User(name=name))
        db.session.flush()
        db.session.execute(select(User)).all()
        with lock:
            running -= 1

    with db.sandbox():
        threads = [
            threading.Thread(target=TestClient(app).post, args=(f"/slow/{n}",)) for n in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(TestClient(app).get("/users").json()) == 7
    assert most == 1
    assert names(stored) == ["ann"]


def test_a_mounted_app_and_a_route_that_calls_its_own_app_wait_for_nobody(
    stored: Backend, db: Database
) -> None:
    app = users_app(db)
    app.mount("/mounted", users_app(db))

    @app.get("/own")
    async def own() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://own") as client:
            assert (await client.post("/users/by-the-app")).status_code == 200

    client = TestClient(app)
    with db.sandbox():
        assert client.post("/mounted/users/in-the-mounted").status_code == 200
        assert client.get("/own").status_code == 200
        assert client.get("/mounted/users").json() == ["ann", "in-the-mounted", "by-the-app"]
    assert names(stored) == ["ann"]


def test_a_request_that_waits_too_long_names_the_one_it_waited_for(
    sqlite: Backend, tables: Tables, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastapi_sqlalchemy.sandbox.sandbox.ACQUIRE_TIMEOUT_S", 0.2)
    db.configure(tables(sqlite).url)
    app = users_app(db)
    entered, leave = threading.Event(), threading.Event()

    @app.get("/held/{n}")
    def held(n: int) -> None:
        entered.set()
        leave.wait(60)

    with db.sandbox():
        holder = threading.Thread(target=TestClient(app).get, args=("/held/1",))
        holder.start()
        assert entered.wait(60)
        with pytest.raises(SandboxError, match=r"GET /users waited 0\.2 s for GET /held"):
            TestClient(app).get("/users")
        leave.set()
        holder.join()
        assert TestClient(app).get("/users").status_code == 200


def test_an_idle_websocket_holds_nobody_up(stored: Backend, db: Database) -> None:
    app = users_app(db)

    @app.websocket("/chat")
    async def chat(websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            name = await websocket.receive_text()
            if name == "bye":
                break
            async with db(commit_on_exit=True):
                db.async_session.add(User(name=name))
            await websocket.send_text("stored")

    client = TestClient(app)
    with db.sandbox():
        with client.websocket_connect("/chat") as websocket:
            assert client.get("/users").json() == ["ann"]
            websocket.send_text("by websocket")
            assert websocket.receive_text() == "stored"
            assert client.post("/users/by-request").status_code == 200
            assert client.get("/users").json() == ["ann", "by websocket", "by-request"]
            websocket.send_text("bye")
    assert names(stored) == ["ann"]


def test_two_databases_are_both_rolled_back(
    postgresql: Backend, sqlite: Backend, tables: Tables, db: Database
) -> None:
    """Whatever binding a Database has, its sandbox covers."""
    for stored in (postgresql, sqlite):
        tables(stored)
    first, second = FastAPI(), FastAPI()
    first.add_middleware(DBSessionMiddleware, postgresql.url, db=db, commit_on_exit=True)
    second.add_middleware(DBSessionMiddleware, sqlite.url, db=db, commit_on_exit=True)
    for app in (first, second):

        @app.post("/users/{name}")
        def add(name: str) -> None:
            db.session.add(User(name=name))

    with db.sandbox():
        assert TestClient(first).post("/users/one").status_code == 200
        assert TestClient(second).post("/users/two").status_code == 200
    assert names(postgresql) == names(sqlite) == []
    db.dispose()


def test_a_custom_engine_is_sandboxed_and_kept(sqlite: Backend, tables: Tables) -> None:
    engine = create_engine(tables(sqlite).url)
    db = Database("custom")
    db.configure(custom_engine=engine)
    with db.sandbox(), db(commit_on_exit=True):
        db.session.add(User(name="gone"))
    with db(commit_on_exit=True):
        db.session.add(User(name="stays"))
    assert names(sqlite) == ["stays"]
    engine.dispose()
