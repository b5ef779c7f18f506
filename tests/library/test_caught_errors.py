"""A route that catches a database error and goes on: what the database has given up is no 200."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    UpdateBase,
    create_engine,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from fastapi_sqlalchemy import Database
from support.backends import Backend, SQLite, connect_mariadb
from support.databases import skip
from support.mariadb_server import private_server
from support.models import Membership, User, create_tables
from support.stores import DRIVERS, Store, opened
from support.web import Serve, client_of

WRONG = text("SELECT * FROM nowhere")


@pytest.fixture(params=["psycopg", "asyncpg", "psycopg2"])
def postgresql_stores(
    request: pytest.FixtureRequest, db: Database, emptied: Callable[[str], Backend]
) -> Iterator[Store]:
    """PostgreSQL by each driver; psycopg2 and asyncpg go together."""
    backend = emptied("postgresql")
    with opened(db, backend, backend.with_driver(request.param)) as store:
        yield store


@pytest.fixture(params=[driver for driver, name in DRIVERS.items() if name == "mariadb"])
def mariadb_stores(
    request: pytest.FixtureRequest, db: Database, emptied: Callable[[str], Backend]
) -> Iterator[Store]:
    """MariaDB by each async driver, and pymysql beside it."""
    backend = emptied("mariadb")
    with opened(db, backend, backend.with_driver(request.param)) as store:
        yield store


@pytest.fixture(params=["sync", "async", "connection", "async_connection"])
def fails(request: pytest.FixtureRequest) -> str:
    """By which session the statement goes that fails."""
    return str(request.param)


def routes(store: Store, fails: str, statement: Any = WRONG) -> FastAPI:
    """`/caught` goes on after an error, `/rolled_back` and `/savepoint` do what ends it first."""
    app, db = store.app(commit_on_exit=True), store.db

    def sync_write(how: str, on_connection: bool) -> None:
        db.session.add(User(name="before"))
        db.session.flush()

        def fail() -> None:
            target = db.session.connection() if on_connection else db.session
            target.execute(statement)

        if how == "savepoint":
            with pytest.raises(DBAPIError), db.session.begin_nested():
                fail()
            return
        with pytest.raises(DBAPIError):
            fail()
        if how == "rolled_back":
            db.session.rollback()
            db.session.add(User(name="after"))

    async def async_write(how: str, on_connection: bool) -> None:
        session = db.async_session
        session.add(User(name="before"))
        await session.flush()

        async def fail() -> None:
            target = await session.connection() if on_connection else session
            await target.execute(statement)

        if how == "savepoint":
            with pytest.raises(DBAPIError):
                async with session.begin_nested():
                    await fail()
            return
        with pytest.raises(DBAPIError):
            await fail()
        if how == "rolled_back":
            await session.rollback()
            session.add(User(name="after"))

    on_connection = fails.endswith("connection")
    if fails.startswith("async"):

        @app.post("/{how}")
        async def async_route(how: str) -> int:
            await async_write(how, on_connection)
            return 1

    else:

        @app.post("/{how}")
        def route(how: str) -> int:
            sync_write(how, on_connection)
            return 1

    return app


def test_what_postgresql_would_roll_back_is_answered_500(
    serve: Serve, postgresql_stores: Store, fails: str
) -> None:
    with client_of(serve, routes(postgresql_stores, fails)) as client:
        assert client.post("/caught").status_code == 500
        assert postgresql_stores.users() == []
        assert client.post("/savepoint").status_code == 200
        assert client.post("/rolled_back").status_code == 200
    assert postgresql_stores.users() == ["before", "after"]


def test_where_one_statement_failed_alone_the_others_are_committed(
    serve: Serve, store: Store, fails: str
) -> None:
    if store.backend.name == "postgresql":
        pytest.skip("there, no statement fails alone")
    with client_of(serve, routes(store, fails)) as client:
        assert client.post("/caught").status_code == 200
    assert store.users() == ["before"]


@pytest.mark.parametrize("comment", ["", "/* route='/caught' */ ", "-- from a listener\n"])
def test_what_sqlite_has_rolled_back_is_answered_500(
    serve: Serve, sqlite_store: Store, fails: str, comment: str
) -> None:
    sqlite_store.backend.execute("INSERT INTO users VALUES (100, 'there')")
    or_rollback = text(f"{comment}INSERT OR ROLLBACK INTO users VALUES (100, 'twice')")
    with client_of(serve, routes(sqlite_store, fails, or_rollback)) as client:
        assert client.post("/caught").status_code == 500
        assert client.post("/rolled_back").status_code == 200
    assert sqlite_store.users() == ["there", "after"]


def rename(user_id: int) -> Any:
    return update(User).where(User.id == user_id).values(name="renamed")


def winner(engine: Engine) -> tuple[Connection, threading.Thread]:
    """Who has renamed 101 and 102, and the thread in which it will rename 103.

    The one that has changed fewer rows is the victim.
    """
    other = engine.connect()
    other.execute(rename(101))
    other.execute(rename(102))
    return other, threading.Thread(target=lambda: other.execute(rename(103)))


def test_the_victim_of_a_deadlock_is_answered_500(
    serve: Serve, mariadb_stores: Store, fails: str
) -> None:
    backend, db = mariadb_stores.backend, mariadb_stores.db
    app = mariadb_stores.app(commit_on_exit=True)
    backend.execute("INSERT INTO users VALUES (101, 'a'), (102, 'b'), (103, 'c')")
    engine = create_engine(backend.url)

    other, thread = winner(engine)
    on_connection = fails.endswith("connection")

    @app.post("/sync")
    def sync_route() -> int:
        db.session.execute(rename(103))
        thread.start()  # whichever of the two waits first
        with pytest.raises(DBAPIError, match="1213"):
            (db.session.connection() if on_connection else db.session).execute(rename(101))
        db.session.add(User(name="after"))
        return 1

    @app.post("/async")
    async def async_route() -> int:
        session = db.async_session
        await session.execute(rename(103))
        thread.start()  # whichever of the two waits first
        with pytest.raises(DBAPIError, match="1213"):
            await (await session.connection() if on_connection else session).execute(rename(101))
        db.async_session.add(User(name="after"))
        return 1

    with client_of(serve, app) as client:
        path = "/async" if fails.startswith("async") else "/sync"
        assert client.post(path).status_code == 500
    thread.join()
    other.close()
    engine.dispose()
    assert mariadb_stores.users() == ["a", "b", "c"]


@pytest.mark.parametrize("yield_per", [2, 5])
@pytest.mark.parametrize("commits", [False, True], ids=["request", "route"])
@pytest.mark.parametrize("side", ["sync", "async"])
def test_an_error_while_rows_are_fetched_is_answered_500(
    serve: Serve, postgresql_stores: Store, side: str, commits: bool, yield_per: int
) -> None:
    app, db = postgresql_stores.app(commit_on_exit=True), postgresql_stores.db
    rows = text("SELECT 1 / (5 - i) FROM generate_series(1, 100) AS i").execution_options(
        yield_per=yield_per
    )

    @app.post("/sync")
    def sync_route() -> int:
        db.session.add(User(name="before"))
        db.session.flush()
        with pytest.raises(DBAPIError):
            db.session.execute(rows).all()
        if commits:
            db.session.commit()
        return 1

    @app.post("/async")
    async def async_route() -> int:
        session = db.async_session
        session.add(User(name="before"))
        await session.flush()
        with pytest.raises(Exception, match="division by zero"):  # asyncpg's own
            await (await session.stream(rows)).all()
        if commits:
            await session.commit()
        return 1

    with client_of(serve, app) as client:
        assert client.post(f"/{side}").status_code == 500
    assert postgresql_stores.users() == []


@pytest.fixture(scope="module")
def giving_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    """A server that rolls the whole transaction back which could not have a lock in time."""
    options = ("--innodb-rollback-on-timeout=1", "--innodb-lock-wait-timeout=1")
    try:
        with private_server(tmp_path_factory.mktemp("mariadb"), *options) as url:
            with closing(connect_mariadb(url)) as connection, connection.cursor() as cursor:
                cursor.execute("CREATE DATABASE shop CHARACTER SET utf8mb4")
            yield url.set(database="shop")
    except FileNotFoundError as exc:
        skip("mariadb", str(exc))


@pytest.mark.parametrize("driver", ["pymysql", "aiomysql", "asyncmy"])
@pytest.mark.parametrize("in_savepoint", [False, True], ids=["plain", "savepoint"])
async def test_a_lock_that_was_not_got_in_time_may_have_ended_all_of_it(
    giving_up: URL, db: Database, driver: str, in_savepoint: bool
) -> None:
    url = giving_up.set(drivername="mysql+pymysql")
    engine = create_engine(url)
    User.__table__.drop(engine, checkfirst=True)
    User.__table__.create(engine)
    with engine.begin() as connection:
        connection.execute(insert(User).values(id=101, name="locked"))
    db.configure(db_url=giving_up.set(drivername=f"mysql+{driver}"))
    with engine.connect() as holder:
        holder.execute(rename(101))
        with pytest.raises(PendingRollbackError, match="1205"):
            if driver == "pymysql":
                with db(commit_on_exit=True):
                    db.session.execute(insert(User).values(name="before"))
                    with pytest.raises(DBAPIError, match=r"1205|1305"):
                        with db.session.begin_nested() if in_savepoint else nullcontext():
                            db.session.execute(rename(101))
            else:
                async with db(commit_on_exit=True):
                    session = db.async_session
                    await session.execute(insert(User).values(name="before"))
                    with pytest.raises(DBAPIError, match=r"1205|1305"):
                        async with session.begin_nested() if in_savepoint else nullcontext():
                            await session.execute(rename(101))
    with Session(engine) as session:
        assert session.scalars(select(User.name)).all() == ["locked"]
    engine.dispose()
    await db.adispose()


@pytest.mark.parametrize("how", ["execute", "flush"])
@pytest.mark.parametrize("side", ["sync", "async"])
def test_the_victim_of_a_deadlock_that_has_read_from_a_replica_is_answered_500(
    serve: Serve, mariadb_stores: Store, side: str, how: str
) -> None:
    backend, db = mariadb_stores.backend, mariadb_stores.db
    backend.execute("INSERT INTO users VALUES (101, 'a'), (102, 'b'), (103, 'c')")
    engine = create_engine(backend.url)
    replica = create_engine(backend.url, isolation_level="AUTOCOMMIT")
    async_replica = create_async_engine(mariadb_stores.url, isolation_level="AUTOCOMMIT")

    class Routed(Session):
        def get_bind(self, *args: Any, clause: Any = None, **kwargs: Any) -> Any:
            if self._flushing or isinstance(clause, UpdateBase):
                return super().get_bind(*args, clause=clause, **kwargs)
            return replica if side == "sync" else async_replica.sync_engine

    app = mariadb_stores.app(
        commit_on_exit=True,
        session_args={"class_": Routed},
        async_session_args={"sync_session_class": Routed},
    )

    other, thread = winner(engine)

    def work(session: Session) -> None:
        session.execute(rename(103))
        user = session.get_one(User, 101)
        thread.start()  # whichever of the two waits first
        if how == "execute":
            with pytest.raises(DBAPIError, match="1213"):
                session.execute(rename(101))
        else:  # which the server has forgotten by then
            with pytest.raises(DBAPIError, match=r"1213|1305"), session.begin_nested():
                session.scalars(select(User).limit(1)).all()
                user.name = "flushed"
                session.flush()
        session.expire_all()
        session.execute(insert(User).values(name="after"))

    @app.post("/sync")
    def sync_route() -> int:
        work(db.session)
        return 1

    @app.post("/async")
    async def async_route() -> int:
        await db.async_session.run_sync(work)
        return 1

    @app.post("/close")
    async def close() -> None:
        await async_replica.dispose()

    with client_of(serve, app) as client:
        assert client.post(f"/{side}").status_code == 500
        client.post("/close")
    thread.join()
    other.close()
    engine.dispose()
    replica.dispose()
    assert mariadb_stores.users() == ["a", "b", "c"]


@pytest.mark.parametrize("reads", [False, True], ids=["alone", "beside a read"])
@pytest.mark.parametrize("side", ["sync", "async"])
def test_a_statement_that_failed_alone_on_one_of_two_databases_keeps_the_others(
    serve: Serve, sqlite_store: Store, tmp_path: Path, side: str, reads: bool
) -> None:
    """SQLite's other file has only been read: Python has begun no transaction there."""
    store, db = sqlite_store, sqlite_store.db
    create_tables(SQLite(URL.create("sqlite", database=str(tmp_path / "other.db"))))
    other = create_engine(f"sqlite:///{tmp_path}/other.db")
    async_other = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/other.db")
    app = store.app(
        commit_on_exit=True,
        session_args={"binds": {Membership: other}},
        async_session_args={"binds": {Membership: async_other}},
    )

    def work(session: Session) -> None:
        session.execute(insert(User).values(id=1, name="ann"))
        if reads:
            session.scalars(select(Membership)).all()
        with pytest.raises(DBAPIError, match="UNIQUE"):
            session.execute(insert(User).values(id=1, name="twice"))

    @app.post("/sync")
    def sync_route() -> None:
        work(db.session)

    @app.post("/async")
    async def async_route() -> None:
        await db.async_session.run_sync(work)

    @app.post("/close")
    async def close() -> None:
        await async_other.dispose()

    with client_of(serve, app) as client:
        assert client.post(f"/{side}").status_code == 200
        client.post("/close")
    other.dispose()
    assert store.users() == ["ann"]


@pytest.mark.parametrize("reads", [False, True], ids=["alone", "beside a read"])
def test_what_is_not_committed_is_warned_of_beside_an_engine_in_autocommit(
    serve: Serve, postgresql_store: Store, caplog: pytest.LogCaptureFixture, reads: bool
) -> None:
    store, db = postgresql_store, postgresql_store.db
    replica = create_engine(store.url, isolation_level="AUTOCOMMIT")
    app = store.app(session_args={"binds": {Membership: replica}})

    @app.post("/")
    def route() -> None:
        db.session.add(User(name="lost"))
        db.session.flush()
        if reads:
            db.session.scalars(select(Membership)).all()

    with client_of(serve, app) as client:
        client.post("/")
    replica.dispose()
    assert "POST / wrote to the database without a commit" in caplog.text
    assert store.users() == []


def test_a_record_that_has_changed_since_the_snapshot_is_answered_500(
    serve: Serve, db: Database, emptied: Callable[[str], Backend]
) -> None:
    backend = emptied("mariadb")
    if not backend.rows("SHOW VARIABLES LIKE 'innodb_snapshot_isolation'"):
        pytest.skip("this server knows no snapshot isolation")
    backend.execute("INSERT INTO users VALUES (101, 'a')")
    with opened(db, backend, backend.url) as store:
        app = store.app(commit_on_exit=True)

        @app.post("/")
        def route() -> int:
            db.session.execute(text("SET SESSION innodb_snapshot_isolation = 1"))
            db.session.get(User, 101)
            db.session.add(User(name="before"))
            db.session.flush()
            backend.execute("UPDATE users SET name = 'changed' WHERE id = 101")
            with pytest.raises(DBAPIError, match="1020"):
                db.session.execute(update(User).where(User.id == 101).values(name="mine"))
            return 1

        with client_of(serve, app) as client:
            assert client.post("/").status_code == 500
        assert store.users() == ["changed"]


def test_whoever_commits_a_transaction_that_is_lost_is_told_what_failed(
    postgresql_stores: Store,
) -> None:
    db = postgresql_stores.configure()

    def fail() -> None:
        db.session.add(User(name="lost"))
        db.session.flush()
        with pytest.raises(DBAPIError):
            db.session.execute(WRONG)

    told = pytest.raises(PendingRollbackError, match='UndefinedTable: relation "nowhere" does not')
    with told, db(commit_on_exit=True):
        fail()
    with db():
        fail()
        with told:
            db.session.commit()
        db.session.rollback()
        db.session.add(User(name="again"))
        db.session.commit()
    with db(), told, db.session.begin():
        fail()
    assert postgresql_stores.users() == ["again"]


def test_an_error_in_autocommit_ends_nothing(postgresql_stores: Store) -> None:
    db = postgresql_stores.configure(engine_args={"isolation_level": "AUTOCOMMIT"})
    with db(commit_on_exit=True):
        db.session.add(User(name="kept"))
        db.session.flush()
        with pytest.raises(DBAPIError):
            db.session.execute(WRONG)
    assert postgresql_stores.users() == ["kept"]
