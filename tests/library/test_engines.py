"""Both engines of one set of arguments, used on real databases."""

import asyncio
import gc
import sqlite3
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    AsyncAdaptedQueuePool,
    NullPool,
    QueuePool,
    StaticPool,
    create_engine,
    event,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from fastapi_sqlalchemy import Database
from fastapi_sqlalchemy.exceptions import ConfigurationError
from support.backends import Backend
from support.models import Base, User

PAIRS = [
    ("postgresql", "psycopg", "psycopg", "psycopg"),
    ("postgresql", "psycopg2", "psycopg2", "psycopg"),
    ("postgresql", "asyncpg", "psycopg", "asyncpg"),
    ("mariadb", "pymysql", "pymysql", "aiomysql"),
    ("mariadb", "aiomysql", "pymysql", "aiomysql"),
    ("mariadb", "asyncmy", "pymysql", "asyncmy"),
    ("sqlite", "pysqlite", "pysqlite", "aiosqlite"),
    ("sqlite", "aiosqlite", "pysqlite", "aiosqlite"),
]


def backend_named(name: str, request: pytest.FixtureRequest) -> Backend:
    backend = request.getfixturevalue(name)
    assert isinstance(backend, Backend)
    return backend


@pytest.mark.parametrize(("name", "given", "sync", "asynchronous"), PAIRS)
async def test_both_engines_follow_from_one_url_each_on_first_use(
    name: str,
    given: str,
    sync: str,
    asynchronous: str,
    request: pytest.FixtureRequest,
    tables: Callable[[Backend], Backend],
    db: Database,
) -> None:
    backend = tables(backend_named(name, request))
    db.configure(backend.with_driver(given))
    assert db._binding().engines.made() == {}

    async with db(commit_on_exit=True):
        db.async_session.add(User(name="async"))
    assert list(db._binding().engines.made()) == ["async"]

    with db(commit_on_exit=True):
        db.session.add(User(name="sync"))
    assert sorted(backend.rows("SELECT name FROM users")) == [("async",), ("sync",)]
    assert (db.engine.driver, db.async_engine.driver) == (sync, asynchronous)
    assert db._binding().engines.made() == {"sync": db.engine, "async": db.async_engine}
    await db.adispose()
    backend.assert_released()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
async def test_application_name_and_options_reach_postgresql_from_both_sides(
    driver: str, postgresql: Backend, db: Database
) -> None:
    db.configure(
        postgresql.with_driver(driver) + "?application_name=shop%20front&connect_timeout=9"
        "&sslmode=prefer&options=-c%20statement_timeout%3D4321"
    )
    seen = text(
        "SELECT application_name, current_setting('statement_timeout') FROM pg_stat_activity"
        " WHERE pid = pg_backend_pid()"
    )
    with db():
        assert db.session.execute(seen).one() == ("shop front", "4321ms")
    async with db():
        assert (await db.async_session.execute(seen)).one() == ("shop front", "4321ms")
    assert (driver == "asyncpg") == (db.async_engine.driver == "asyncpg")
    await db.adispose()


async def test_numbers_in_an_asyncpg_url_reach_both_sides(
    postgresql: Backend, db: Database
) -> None:
    db.configure(
        postgresql.with_driver("asyncpg")
        + "?timeout=30&command_timeout=4.5&statement_cache_size=0&ssl=prefer"
    )
    async with db():
        connection: Any = await db.async_session.connection()
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver._config.command_timeout == 4.5
        assert driver._config.statement_cache_size == 0
    with db():
        assert db.session.scalar(text("SHOW statement_timeout")) == "4500ms"
    await db.adispose()


async def test_libpq_words_reach_postgresql_through_asyncpg(
    postgresql: Backend, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psycopg serves both sides of psycopg2's URLs here; asyncpg does where it is not installed."""
    from fastapi_sqlalchemy.engines import urls

    monkeypatch.setattr(urls, "_is_installed", lambda module: module == "asyncpg")
    db.configure(
        postgresql.with_driver("psycopg2")
        + "?application_name=shop&connect_timeout=9&sslmode=disable"
        + "&options=-c%20statement_timeout%3D4321&target_session_attrs=read-write"
    )
    async with db():
        seen = await db.async_session.execute(
            text(
                "SELECT application_name, current_setting('statement_timeout')"
                " FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            )
        )
        assert seen.one() == ("shop", "4321ms")
    assert db.async_engine.driver == "asyncpg"
    await db.adispose()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_sslmode_require_is_kept_on_both_sides(
    driver: str, postgresql: Backend, db: Database
) -> None:
    """A server without TLS refuses both, one with it accepts both: neither falls back."""
    word = "ssl" if driver == "asyncpg" else "sslmode"
    db.configure(f"{postgresql.with_driver(driver)}?{word}=require")
    encrypted = text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    if postgresql.rows("SHOW ssl") == [("on",)]:
        with db():
            assert db.session.scalar(encrypted) is True
        async with db():
            assert await db.async_session.scalar(encrypted) is True
    else:
        with db(), pytest.raises(OperationalError, match="SSL"):
            db.session.connection()
        async with db():
            with pytest.raises((OperationalError, ConnectionError), match="SSL"):
                await db.async_session.connection()
    await db.adispose()


async def test_a_zero_statement_cache_means_no_prepared_statements_on_the_sync_side_too(
    postgresql: Backend, db: Database
) -> None:
    db.configure(
        postgresql.with_driver("asyncpg")
        + "?statement_cache_size=0&prepared_statement_cache_size=0"
    )
    with db():
        connection: Any = db.session.connection().connection.driver_connection
        assert connection.prepare_threshold is None
        for _ in range(10):
            db.session.execute(text("SELECT 1"))
        prepared = db.session.scalar(text("SELECT count(*) FROM pg_prepared_statements"))
        assert prepared == 0
    async with db():
        assert await db.async_session.scalar(text("SELECT 1")) == 1
    await db.adispose()


@pytest.mark.parametrize("driver", ["pymysql", "aiomysql", "asyncmy"])
async def test_the_charset_reaches_mariadb_from_both_sides(
    driver: str, mariadb: Backend, db: Database
) -> None:
    db.configure(mariadb.with_driver(driver) + "?charset=latin1")
    charset = text("SELECT @@character_set_client")
    with db():
        assert db.session.scalar(charset) == "latin1"
    async with db():
        assert await db.async_session.scalar(charset) == "latin1"
    await db.adispose()


async def test_engine_args_go_to_both_sides_without_a_pool_that_serves_one(
    backend: Backend, db: Database
) -> None:
    db.configure(
        backend.url, engine_args={"poolclass": QueuePool, "pool_size": 3, "pool_pre_ping": True}
    )
    assert isinstance(db.engine.pool, QueuePool)
    assert isinstance(db.async_engine.pool, AsyncAdaptedQueuePool)
    for pool in (db.engine.pool, db.async_engine.pool):
        assert pool.size() == 3
        assert pool._pre_ping is True
    async with db():
        assert await db.async_session.scalar(select(1)) == 1
    await db.adispose()


async def test_a_pool_that_serves_both_sides_goes_to_both(backend: Backend, db: Database) -> None:
    db.configure(backend.async_url, engine_args={"poolclass": NullPool})
    assert isinstance(db.engine.pool, NullPool)
    assert isinstance(db.async_engine.pool, NullPool)


async def test_a_pool_of_async_connections_stays_on_the_async_side(
    postgresql: Backend, db: Database
) -> None:
    db.configure(
        postgresql.with_driver("asyncpg"), engine_args={"poolclass": AsyncAdaptedQueuePool}
    )
    with db():
        assert db.session.scalar(select(1)) == 1
    assert type(db.engine.pool) is QueuePool


async def test_connect_args_go_to_both_sides(postgresql: Backend, db: Database) -> None:
    seen = text("SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()")
    db.configure(
        postgresql.with_driver("psycopg"),
        engine_args={"connect_args": {"application_name": "shop"}},
    )
    with db():
        assert db.session.scalar(seen) == "shop"
    async with db():
        assert await db.async_session.scalar(seen) == "shop"
    await db.adispose()

    db.configure(
        postgresql.with_driver("asyncpg"),
        engine_args={"connect_args": {"server_settings": {"application_name": "shop"}}},
    )
    with db():
        assert db.session.scalar(seen) == "shop"
    async with db():
        assert await db.async_session.scalar(seen) == "shop"
    await db.adispose()


async def test_connect_args_of_the_sync_url_do_not_go_to_another_async_url(
    postgresql: Backend, db: Database
) -> None:
    db.configure(
        postgresql.with_driver("psycopg"),
        async_db_url=postgresql.with_driver("asyncpg"),
        engine_args={"connect_args": {"application_name": "shop"}},
        async_engine_args={"connect_args": {"timeout": 20}},
    )
    async with db():
        assert await db.async_session.scalar(select(1)) == 1
    assert db.async_engine.driver == "asyncpg"
    await db.adispose()


async def test_words_of_one_dialect_stay_on_its_side(
    postgresql: Backend, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastapi_sqlalchemy.engines import urls

    monkeypatch.setattr(urls, "_is_installed", lambda module: module == "asyncpg")
    db.configure(
        postgresql.with_driver("psycopg2"),
        engine_args={"executemany_mode": "values_plus_batch", "json_serializer": str},
    )
    with db():
        assert db.session.scalar(select(1)) == 1
    async with db():
        assert await db.async_session.scalar(select(1)) == 1
    assert db.async_engine.dialect._json_serializer is str
    await db.adispose()


async def test_a_creator_is_not_replaced_by_the_url_on_the_other_side(
    tmp_path: Path, db: Database
) -> None:
    """Dropped, it would send db.async_session to whatever database the URL happens to name."""
    arguments = {"creator": lambda: sqlite3.connect(tmp_path / "real.db")}
    db.configure("sqlite:///elsewhere.db", engine_args=arguments)
    with db():
        assert db.session.scalar(select(1)) == 1
    async with db():
        with pytest.raises(ConfigurationError, match="'creator'"):
            await db.async_session.connection()
    db.configure(
        "sqlite:///elsewhere.db",
        engine_args=arguments,
        async_db_url=f"sqlite+aiosqlite:///{tmp_path / 'real.db'}",
    )
    async with db():
        assert await db.async_session.scalar(select(1)) == 1
    await db.adispose()


# -- custom engines -----------------------------------------------------------------------------


async def test_custom_engines_are_used_and_never_disposed(
    backend: Backend, tables: Callable[[Backend], Backend], db: Database
) -> None:
    tables(backend)
    sync, asynchronous = create_engine(backend.url), create_async_engine(backend.async_url)
    disposed: list[str] = []
    event.listen(sync, "engine_disposed", lambda engine: disposed.append("sync"))
    event.listen(
        asynchronous.sync_engine, "engine_disposed", lambda engine: disposed.append("async")
    )
    db.configure(custom_engine=sync, custom_async_engine=asynchronous)
    assert (db.engine, db.async_engine) == (sync, asynchronous)
    async with db(commit_on_exit=True):
        db.session.add(User(name="sync"))
        await asyncio.to_thread(db.session.commit)
        db.async_session.add(User(name="async"))
    await db.adispose()
    db.dispose()
    db.configure("sqlite://")
    assert disposed == []
    assert sorted(backend.rows("SELECT name FROM users")) == [("async",), ("sync",)]
    sync.dispose()
    await asynchronous.dispose()


async def test_an_async_engine_may_be_the_custom_engine(postgresql: Backend, db: Database) -> None:
    engine = create_async_engine(postgresql.with_driver("asyncpg"))
    db.configure(custom_engine=engine)
    async with db():
        assert await db.async_session.scalar(select(1)) == 1
    assert db.async_engine is engine
    assert db.url == engine.url
    with db(), pytest.raises(ConfigurationError, match="db_url= or custom_engine="):
        _ = db.session.connection()
    await engine.dispose()


async def test_a_sync_engine_alone_says_what_the_async_side_needs(db: Database) -> None:
    engine = create_engine("sqlite://")
    db.configure(custom_engine=engine)
    async with db():
        with pytest.raises(ConfigurationError, match="custom_async_engine="):
            await db.async_session.connection()
    engine.dispose()


# -- in-memory SQLite ---------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite+aiosqlite://"])
def test_an_in_memory_database_is_one_for_threads_engines_and_loops(url: str, db: Database) -> None:
    db.configure(url)
    Base.metadata.create_all(db.engine)

    def in_thread() -> None:
        with db(commit_on_exit=True):
            db.session.add(User(name="thread"))

    async def on_loop() -> None:
        async with db(commit_on_exit=True):
            db.async_session.add(User(name="loop"))

    for target in (in_thread, lambda: asyncio.run(on_loop()), lambda: asyncio.run(on_loop())):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    with db():
        names = db.session.scalars(select(User.name).order_by(User.id)).all()
    assert names == ["thread", "loop", "loop"]


def test_each_session_on_an_in_memory_database_has_its_own_transaction(db: Database) -> None:
    db.configure("sqlite://")
    Base.metadata.create_all(db.engine)
    with db():
        db.session.add(User(name="kept"))
        db.session.commit()
        with db():
            db.session.add(User(name="lost"))
            db.session.flush()
            db.session.rollback()
        with db():
            assert db.session.scalars(select(User.name)).all() == ["kept"]
            mine = db.session.connection().connection.driver_connection
            with db():
                assert db.session.connection().connection.driver_connection is not mine


async def test_only_dispose_ends_an_in_memory_database(db: Database) -> None:
    db.configure("sqlite://")
    Base.metadata.create_all(db.engine)
    engines = db._binding().engines
    engines.close_idle()
    await engines.aclose_idle()
    gc.collect()
    with db():
        assert db.session.scalars(select(User.name)).all() == []
    db.dispose()
    with db(), pytest.raises(OperationalError, match="no such table"):
        db.session.scalars(select(User.name)).all()


def test_a_named_in_memory_database_is_held_open_too(db: Database) -> None:
    db.configure("sqlite:///file:shop?mode=memory&cache=shared&uri=true")
    Base.metadata.create_all(db.engine)
    db._binding().engines.close_idle()
    with db():
        assert db.session.scalars(select(User.name)).all() == []
    outside = sqlite3.connect("file:shop?mode=memory&cache=shared", uri=True)
    assert outside.execute("SELECT count(*) FROM users").fetchone() == (0,)
    outside.close()
    db.dispose()


def test_a_file_of_that_name_is_no_in_memory_database(tmp_path: Path, db: Database) -> None:
    db.configure(f"sqlite:///{tmp_path / 'memory.db'}?mode=memory")
    assert not db._binding().engines.in_memory


def test_in_memory_with_a_static_pool_as_users_of_0_2_1_wrote_it(db: Database) -> None:
    db.configure(
        "sqlite://",
        engine_args={"connect_args": {"check_same_thread": False}, "poolclass": StaticPool},
    )
    Base.metadata.create_all(db.engine)

    async def on_loop() -> None:
        async with db(commit_on_exit=True):
            db.async_session.add(User(name="loop"))

    asyncio.run(on_loop())
    with db():
        assert db.session.scalars(select(User.name)).all() == ["loop"]


# -- event loops --------------------------------------------------------------------------------

ASYNC_DRIVERS = [
    ("postgresql", "psycopg"),
    ("postgresql", "asyncpg"),
    ("mariadb", "aiomysql"),
    ("mariadb", "asyncmy"),
    ("sqlite", "aiosqlite"),
]


@pytest.mark.parametrize(("name", "driver"), ASYNC_DRIVERS)
def test_two_runs_in_a_row_work_and_leave_no_connection_and_no_loop(
    name: str, driver: str, request: pytest.FixtureRequest, db: Database
) -> None:
    backend = backend_named(name, request)
    db.configure(backend.with_driver(driver))
    loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()

    async def run() -> object:
        loops.add(asyncio.get_running_loop())
        async with db():
            assert await db.async_session.scalar(select(1)) == 1
            assert backend.connections() >= 1
        return db.async_engine

    first, second = asyncio.run(run()), asyncio.run(run())
    assert first is not second
    backend.assert_released()
    del first, second
    gc.collect()
    assert not list(loops)


def test_a_loop_that_fails_leaves_no_connection(postgresql: Backend, db: Database) -> None:
    db.configure(postgresql.with_driver("asyncpg"))

    async def run() -> None:
        async with db():
            await db.async_session.scalar(select(1))
            raise RuntimeError("the app's own")

    with pytest.raises(RuntimeError, match="the app's own"):
        asyncio.run(run())
    postgresql.assert_released()


def test_two_loops_at_once_have_an_engine_each(postgresql: Backend, db: Database) -> None:
    db.configure(postgresql.url)
    both = threading.Barrier(2, timeout=60)
    engines: list[object] = []

    async def run() -> None:
        async with db():
            await db.async_session.scalar(select(1))
            both.wait()
            engines.append(db.async_engine)
            await db.async_session.scalar(select(1))

    threads = [threading.Thread(target=lambda: asyncio.run(run())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(engine) for engine in engines}) == 2
    postgresql.assert_released()


def test_a_loop_closed_without_its_shutdown_does_not_disturb_the_next(
    postgresql: Backend, db: Database
) -> None:
    """Nobody told us that it ended: its connections end with the collector."""
    db.configure(postgresql.url)

    async def run() -> None:
        async with db():
            assert await db.async_session.scalar(select(1)) == 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # psycopg's, on connections left open
        loop = asyncio.new_event_loop()
        loop.run_until_complete(run())
        loop.close()
        asyncio.run(run())
        gc.collect()
    postgresql.assert_released()


def test_the_async_engine_needs_a_running_loop(db: Database) -> None:
    db.configure("sqlite://")
    with pytest.raises(RuntimeError, match="none runs here"):
        _ = db.async_engine


async def test_a_statement_passes_by_no_event_of_the_librarys_own(
    backend: Backend, db: Database
) -> None:
    """An engine, or a dialect, with any event takes 10 microseconds longer for each statement."""
    db.configure(db_url=backend.url)
    async with db():
        await db.async_session.execute(text("SELECT 1"))
        db.session.execute(text("SELECT 1"))
    for engine in (db.engine, db.async_engine.sync_engine):
        assert not engine._has_events
        assert not engine.dialect._has_events
    await db.adispose()


async def test_a_custom_async_engine_may_be_configured_again(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/own.db")
    Database().configure(custom_engine=engine)
    connect = engine.dialect.connect
    db = Database()
    db.configure(custom_engine=engine)
    assert engine.dialect.connect is connect
    async with db():
        assert await db.async_session.scalar(text("SELECT 1")) == 1
    await engine.dispose()


def test_an_engine_is_made_once_however_many_threads_ask(sqlite: Backend, db: Database) -> None:
    db.configure(sqlite.url)
    all_at_once = threading.Barrier(8, timeout=60)
    engines: list[object] = []

    def ask() -> None:
        all_at_once.wait()
        engines.append(db.engine)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(engines) == 8
    assert len({id(engine) for engine in engines}) == 1


def test_a_database_that_nobody_holds_closes_its_connections(postgresql: Backend) -> None:
    database = Database("gone")
    database.configure(postgresql.url)
    with database():
        database.session.scalar(select(1))
    assert postgresql.connections() == 1
    del database
    gc.collect()
    postgresql.assert_released()


def test_the_url_of_the_database_is_as_it_was_given(db: Database) -> None:
    assert db.url is None
    db.configure(async_db_url="postgresql+asyncpg://u:p@h/d")
    assert db.url == make_url("postgresql+asyncpg://u:p@h/d")
    db.configure("sqlite://", async_db_url="sqlite+aiosqlite://")
    assert db.url == make_url("sqlite://")
