"""Whose database it is: equal arguments, two apps, a mounted app, two databases."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine, event, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from fastapi_sqlalchemy import Database, DBSessionMiddleware
from fastapi_sqlalchemy.configuration import Configuration
from fastapi_sqlalchemy.exceptions import ConfigurationError, DBSessionError
from support.backends import Backend
from support.models import Base, User


def users_app(db: Database, **arguments: Any) -> FastAPI:
    """An app that stores and lists users, on `db`."""
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db=db, **arguments)

    @app.post("/users/{name}")
    def add(name: str) -> None:
        db.session.add(User(name=name))

    @app.get("/users")
    def names() -> list[str]:
        return list(db.session.scalars(select(User.name).order_by(User.id)))

    @app.get("/async-users")
    async def async_names() -> list[str]:
        return list(await db.async_session.scalars(select(User.name).order_by(User.id)))

    return app


def sqlite_url(path: Path) -> str:
    """A database file with the tables."""
    url = f"sqlite:///{path}"
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    engine.dispose()
    return url


# -- the same binding ---------------------------------------------------------------------------


def test_equal_arguments_give_the_same_binding(db: Database) -> None:
    engine = create_engine("sqlite://")
    for arguments in (
        {"db_url": "sqlite:///a.db"},
        {"db_url": "sqlite://", "engine_args": {"echo": False}},
        {"db_url": "sqlite://", "session_args": {"autoflush": False}},
        {"custom_engine": engine},
    ):
        assert db._bind(Configuration.of(**arguments)) is db._bind(Configuration.of(**arguments))
    engine.dispose()


def test_other_arguments_give_another_binding(db: Database) -> None:
    engines = [create_engine("sqlite://"), create_engine("sqlite://")]
    several: list[dict[str, Any]] = [
        {"db_url": "sqlite:///a.db"},
        {"db_url": "sqlite:///b.db"},
        {"db_url": "sqlite:///a.db", "engine_args": {"pool_size": 3}},
        {"db_url": "sqlite:///a.db", "session_args": {"autoflush": False}},
        {"db_url": "sqlite:///a.db", "async_session_args": {"autoflush": False}},
        {"db_url": "sqlite:///a.db", "async_db_url": "sqlite+aiosqlite:///b.db"},
        {"db_url": "sqlite:///a.db", "async_engine_args": {"pool_size": 3}},
        {"custom_engine": engines[0]},
        {"custom_engine": engines[1]},  # equal to the other, but not the same
    ]
    bindings = [db._bind(Configuration.of(**arguments)) for arguments in several]
    assert len(set(bindings)) == len(bindings)
    for engine in engines:
        engine.dispose()


def test_equal_arguments_share_their_pool_between_configure_and_a_middleware(
    postgresql: Backend, tables: Callable[[Backend], Backend], db: Database
) -> None:
    url = tables(postgresql).url
    db.configure(url)
    engine = db.engine
    client = TestClient(users_app(db, db_url=url, commit_on_exit=True))
    assert client.post("/users/ann").status_code == 200
    assert db.engine is engine
    assert postgresql.connections() == 1


def test_the_same_in_memory_url_is_shared_and_a_rollback_undoes_nobody_elses_rows(
    db: Database,
) -> None:
    db.configure("sqlite://")
    Base.metadata.create_all(db.engine)
    app = users_app(db, db_url="sqlite://", commit_on_exit=True)
    begun, go_on = threading.Event(), threading.Event()

    @app.post("/fails")
    def fails() -> None:
        begun.set()
        assert go_on.wait(60)
        db.session.add(User(name="lost"))
        db.session.flush()
        raise RuntimeError("after a write")

    client = TestClient(app, raise_server_exceptions=False)
    statuses: list[int] = []
    failing = threading.Thread(target=lambda: statuses.append(client.post("/fails").status_code))
    failing.start()
    assert begun.wait(60)
    with db(commit_on_exit=True):
        db.session.add(User(name="outside"))
    assert client.post("/users/inside").status_code == 200
    go_on.set()
    failing.join(60)
    assert statuses == [500]
    assert client.get("/users").json() == ["outside", "inside"]
    assert client.get("/async-users").json() == ["outside", "inside"]
    assert TestClient(app).get("/users").json() == ["outside", "inside"]


# -- a middleware without a URL -----------------------------------------------------------------


def test_a_middleware_without_url_takes_what_was_configured(tmp_path: Path, db: Database) -> None:
    db.configure(sqlite_url(tmp_path / "a.db"), commit_on_exit=True)
    client = TestClient(users_app(db))
    assert client.post("/users/ann").status_code == 200
    with db():
        assert db.session.scalars(select(User.name)).all() == ["ann"]


def test_a_middleware_without_url_where_nothing_is_configured_says_0_2_1s_words(
    db: Database,
) -> None:
    with pytest.raises(ValueError, match=r"^You need to pass a db_url or a custom_engine param"):
        DBSessionMiddleware(FastAPI(), db=db)
    with pytest.raises(ValueError, match=r"^You need to pass a db_url or a custom_engine param"):
        db.configure()


# -- several databases --------------------------------------------------------------------------


def test_two_apps_keep_their_own_data_in_interleaved_requests(
    backend: Backend, tables: Callable[[Backend], Backend], tmp_path: Path, db: Database
) -> None:
    tables(backend)
    one = TestClient(users_app(db, db_url=backend.url, commit_on_exit=True))
    other = TestClient(users_app(db, db_url=sqlite_url(tmp_path / "other.db"), commit_on_exit=True))
    for number in range(5):
        assert one.post(f"/users/one{number}").status_code == 200
        assert other.post(f"/users/other{number}").status_code == 200
    for path in ("/users", "/async-users"):
        assert one.get(path).json() == [f"one{number}" for number in range(5)]
        assert other.get(path).json() == [f"other{number}" for number in range(5)]


async def test_requests_of_two_apps_at_once_on_one_loop_keep_their_own_data(
    tmp_path: Path, db: Database
) -> None:
    import httpx

    gate = {"one": asyncio.Event(), "other": asyncio.Event()}

    def app_of(name: str) -> FastAPI:
        app = users_app(db, db_url=sqlite_url(tmp_path / f"{name}.db"), commit_on_exit=True)

        @app.post("/slow")
        async def slow() -> None:
            db.async_session.add(User(name=f"first of {name}"))
            await db.async_session.flush()
            gate[name].set()
            await asyncio.wait_for(gate["other" if name == "one" else "one"].wait(), 60)
            db.async_session.add(User(name=f"second of {name}"))

        return app

    clients = {
        name: httpx.AsyncClient(
            transport=httpx.ASGITransport(app_of(name)),
            base_url="http://app",
        )
        for name in gate
    }
    await asyncio.gather(*(client.post("/slow") for client in clients.values()))
    for name, client in clients.items():
        answer = await client.get("/async-users")
        assert answer.json() == [f"first of {name}", f"second of {name}"]
        await client.aclose()
    await db.adispose()


def test_outside_requests_the_last_configured_binding_serves(tmp_path: Path, db: Database) -> None:
    urls = [sqlite_url(tmp_path / f"{name}.db") for name in "abc"]
    db.configure(urls[0])
    db.configure(urls[1])
    assert str(db.url) == urls[1]
    client = TestClient(users_app(db, db_url=urls[2]))
    assert str(db.url) == urls[1]  # nothing is built yet
    client.get("/users")
    assert str(db.url) == urls[2]
    db.configure(urls[0])
    assert str(db.url) == urls[0]


@pytest.mark.parametrize("kind", ["in a route", "in the lifespan"])
def test_a_mounted_apps_first_request_does_not_move_what_serves_outside(
    kind: str, tmp_path: Path, db: Database
) -> None:
    own, mounted = sqlite_url(tmp_path / "own.db"), sqlite_url(tmp_path / "mounted.db")
    app = users_app(db, db_url=own, commit_on_exit=True)
    app.mount("/mounted", users_app(db, db_url=mounted, commit_on_exit=True))
    client = TestClient(app)
    if kind == "in the lifespan":
        client.__enter__()
    assert client.post("/users/ann").status_code == 200
    assert client.post("/mounted/users/bob").status_code == 200
    assert str(db.url) == own
    with db():
        assert db.session.scalars(select(User.name)).all() == ["ann"]
    assert client.get("/users").json() == ["ann"]
    assert client.get("/mounted/users").json() == ["bob"]
    if kind == "in the lifespan":
        client.__exit__(None, None, None)


def test_a_request_of_a_mounted_app_leaves_its_parents_session_alone(
    tmp_path: Path, db: Database
) -> None:
    own, mounted = sqlite_url(tmp_path / "own.db"), sqlite_url(tmp_path / "mounted.db")
    app = users_app(db, db_url=own, commit_on_exit=True)
    app.mount("/mounted", users_app(db, db_url=mounted, commit_on_exit=True))

    @app.middleware("http")
    async def count_in_own(request: Any, call_next: Any) -> Any:
        before = await db.async_session.scalar(select(func.count()).select_from(User))
        response = await call_next(request)
        response.headers["own-users"] = (
            f"{before} {await db.async_session.scalar(select(func.count()).select_from(User))}"
        )
        return response

    # Ours is to be around theirs.
    app.user_middleware.reverse()
    client = TestClient(app)
    assert client.post("/users/ann").headers["own-users"] == "0 0"  # not committed yet
    assert client.post("/mounted/users/bob").headers["own-users"] == "1 1"
    assert client.get("/mounted/users").json() == ["bob"]


def test_two_databases_in_one_request_keep_their_own_data(
    postgresql: Backend, tables: Callable[[Backend], Backend], tmp_path: Path, db: Database
) -> None:
    reports = Database(name="reports")
    app = users_app(db, db_url=tables(postgresql).url, commit_on_exit=True)
    app.add_middleware(
        DBSessionMiddleware,
        db_url=sqlite_url(tmp_path / "reports.db"),
        commit_on_exit=True,
        db=reports,
    )

    @app.post("/both/{name}")
    def both(name: str) -> None:
        reports.session.add(User(name=f"report on {name}"))
        db.session.add(User(name=name))
        with reports(commit_on_exit=True):
            reports.session.add(User(name="in a block"))

    @app.get("/reports")
    async def names() -> list[str]:
        found = await reports.async_session.scalars(select(User.name).order_by(User.name))
        return list(found)

    client = TestClient(app)
    assert client.post("/both/ann").status_code == 200
    assert client.get("/users").json() == ["ann"]
    assert client.get("/reports").json() == ["in a block", "report on ann"]
    assert (db.name, reports.name, Database().name) == ("test", "reports", "default")
    with db(), pytest.raises(DBSessionError):
        _ = reports.session
    reports.dispose()


# -- configuring again --------------------------------------------------------------------------


def test_configure_again_disposes_what_an_earlier_configure_made(
    backend: Backend, db: Database
) -> None:
    db.configure(backend.url)
    with db():
        db.session.execute(select(1))
    assert backend.connections() >= 1
    db.configure("sqlite://")
    backend.assert_released()


async def test_configure_again_disposes_the_async_engine_too(
    postgresql: Backend, db: Database
) -> None:
    for driver in ("asyncpg", "psycopg"):
        db.configure(postgresql.with_driver(driver))
        async with db():
            await db.async_session.execute(select(1))
        assert postgresql.connections() == 1
        db.configure("sqlite://")
        await _until_released(postgresql)


async def _until_released(backend: Backend) -> None:
    for _ in range(600):
        if not await asyncio.to_thread(backend.connections):
            return
        await asyncio.sleep(0.05)
    backend.assert_released(within_s=0)


def test_configure_again_leaves_what_a_middleware_holds(
    postgresql: Backend, tables: Callable[[Backend], Backend], db: Database
) -> None:
    url = tables(postgresql).url
    db.configure(url, commit_on_exit=True)
    client = TestClient(users_app(db))
    client.post("/users/ann")
    disposed: list[Any] = []
    event.listen(db.engine, "engine_disposed", disposed.append)
    db.configure("sqlite://")
    assert disposed == []
    assert client.get("/users").json() == ["ann"]


def test_configure_again_with_equal_arguments_disposes_nothing(
    postgresql: Backend, db: Database
) -> None:
    db.configure(postgresql.url)
    engine = db.engine
    with db():
        pid = db.session.scalar(text("SELECT pg_backend_pid()"))
    db.configure(postgresql.url, commit_on_exit=True)
    assert db.engine is engine
    with db():
        assert db.session.scalar(text("SELECT pg_backend_pid()")) == pid


def test_configure_again_inside_a_block_lets_the_block_end_on_its_own_database(
    postgresql: Backend, tables: Callable[[Backend], Backend], db: Database
) -> None:
    db.configure(tables(postgresql).url)
    with db(commit_on_exit=True):
        db.session.add(User(name="ann"))
        db.session.flush()
        db.configure("sqlite://")
        db.session.add(User(name="bob"))
    assert postgresql.rows("SELECT name FROM users ORDER BY id") == [("ann",), ("bob",)]
    gc.collect()
    postgresql.assert_released()


# -- the ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_hundred_test_clients_without_with_leave_no_connection(
    driver: str, postgresql: Backend, tables: Callable[[Backend], Backend], db: Database
) -> None:
    app = users_app(db, db_url=tables(postgresql).with_driver(driver))
    for _ in range(100):
        assert TestClient(app).get("/async-users").status_code == 200
    postgresql.assert_released()


def test_the_engines_are_disposed_when_the_lifespan_ends(
    backend: Backend, tables: Callable[[Backend], Backend], db: Database
) -> None:
    app = users_app(db, db_url=tables(backend).url, commit_on_exit=True)
    for name in ("ann", "bob"):  # a second start uses the same engines
        with TestClient(app) as client:
            client.post(f"/users/{name}")
            assert "ann" in client.get("/async-users").json()
            assert backend.connections() >= 1
        backend.assert_released()
    assert backend.rows("SELECT name FROM users ORDER BY id") == [("ann",), ("bob",)]


def test_a_mounted_apps_engines_are_disposed_when_its_parents_lifespan_ends(
    postgresql: Backend, tables: Callable[[Backend], Backend], db: Database
) -> None:
    app = users_app(db, db_url="sqlite://")
    app.mount("/mounted", users_app(db, db_url=tables(postgresql).url))
    with TestClient(app) as client:
        assert client.get("/mounted/users").json() == []
        assert client.get("/mounted/async-users").json() == []
        assert postgresql.connections() == 2
    postgresql.assert_released()


def test_a_request_in_flight_keeps_its_connection_while_another_apps_lifespan_ends(
    postgresql: Backend, tables: Callable[[Backend], Backend], db: Database
) -> None:
    url = tables(postgresql).url
    app = users_app(db, db_url=url, commit_on_exit=True)
    begun, go_on = threading.Event(), threading.Event()

    @app.post("/slow")
    def slow() -> None:
        db.session.add(User(name="slow"))
        db.session.flush()
        begun.set()
        assert go_on.wait(60)

    statuses: list[int] = []
    client = TestClient(app)
    thread = threading.Thread(target=lambda: statuses.append(client.post("/slow").status_code))
    thread.start()
    assert begun.wait(60)
    with TestClient(users_app(db, db_url=url)) as other:
        assert other.get("/users").json() == []
    go_on.set()
    thread.join(60)
    assert statuses == [200]
    assert postgresql.rows("SELECT name FROM users") == [("slow",)]
    postgresql.assert_released()


def test_an_in_memory_database_outlives_the_lifespan(db: Database) -> None:
    app = users_app(db, db_url="sqlite://", commit_on_exit=True)
    with TestClient(app) as client:
        Base.metadata.create_all(db.engine)
        client.post("/users/ann")
    with TestClient(app) as client:
        assert client.get("/users").json() == ["ann"]


def test_custom_engines_outlive_the_lifespan(
    postgresql: Backend, tables: Callable[[Backend], Backend], db: Database
) -> None:
    engine = create_engine(tables(postgresql).url)
    disposed: list[Any] = []
    event.listen(engine, "engine_disposed", disposed.append)
    with TestClient(users_app(db, custom_engine=engine)) as client:
        client.get("/users")
    assert disposed == []
    assert postgresql.connections() == 1
    engine.dispose()


@pytest.mark.parametrize("when", ["start-up", "shutdown"])
def test_a_lifespan_that_fails_leaves_no_connection(
    when: str, postgresql: Backend, tables: Callable[[Backend], Backend], db: Database
) -> None:
    tables(postgresql)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with db():
            await db.async_session.execute(select(1))
            await asyncio.to_thread(lambda: db.session.execute(select(1)))
            assert postgresql.connections() == 2
            if when == "start-up":
                raise RuntimeError("at start-up")
        yield
        async with db():
            await db.async_session.execute(select(1))
            raise RuntimeError("at shutdown")

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(DBSessionMiddleware, db=db, db_url=postgresql.url)
    with pytest.raises(RuntimeError, match=f"at {when}"), TestClient(app):
        pass
    postgresql.assert_released()
    with db():
        assert db.session.scalar(select(1)) == 1


# -- session_args -------------------------------------------------------------------------------


class OwnSession(Session):
    pass


class OwnAsyncSession(AsyncSession):
    pass


@pytest.mark.parametrize(
    ("session_args", "async_session_args", "sync", "asynchronous"),
    [
        ({"class_": OwnSession}, {}, OwnSession, AsyncSession),
        ({"class_": OwnAsyncSession}, {}, Session, OwnAsyncSession),
        ({"class_": OwnSession}, {"class_": OwnAsyncSession}, OwnSession, OwnAsyncSession),
    ],
)
async def test_a_session_class_goes_to_the_side_that_it_subclasses(
    session_args: dict[str, Any],
    async_session_args: dict[str, Any],
    sync: type[Session],
    asynchronous: type[AsyncSession],
    db: Database,
) -> None:
    db.configure("sqlite://", session_args=session_args, async_session_args=async_session_args)
    async with db():
        assert isinstance(db.session, sync)
        assert isinstance(db.async_session, asynchronous)
        assert await db.async_session.scalar(select(1)) == 1
    async with db(session_args=session_args):
        assert isinstance(db.session, sync)
        assert isinstance(db.async_session, asynchronous)
    await db.adispose()


async def test_the_sync_class_of_an_async_session_is_kept(db: Database) -> None:
    db.configure("sqlite://", async_session_args={"sync_session_class": OwnSession})
    async with db():
        assert isinstance(db.async_session.sync_session, OwnSession)
        assert not isinstance(db.session, OwnSession)
    db.configure("sqlite://")
    async with db({"sync_session_class": OwnSession}):
        assert isinstance(db.async_session.sync_session, OwnSession)
        assert await db.async_session.scalar(select(1)) == 1
    await db.adispose()


async def test_expire_on_commit_is_true_for_sessions_and_false_for_async_ones(
    db: Database,
) -> None:
    db.configure("sqlite://")
    Base.metadata.create_all(db.engine)
    async with db():
        one, other = User(name="sync"), User(name="async")
        db.session.add(one)
        db.session.commit()
        assert "name" not in one.__dict__
        db.async_session.add(other)
        await db.async_session.commit()
        assert other.name == "async"
    await db.adispose()


@pytest.mark.parametrize("expire", [True, False])
async def test_expire_on_commit_that_was_given_holds_for_both(expire: bool, db: Database) -> None:
    db.configure("sqlite://", session_args={"expire_on_commit": expire})
    async with db():
        assert db.session.expire_on_commit is expire
        assert db.async_session.sync_session.expire_on_commit is expire
    async with db({"expire_on_commit": not expire}):
        assert db.session.expire_on_commit is not expire
        assert db.async_session.sync_session.expire_on_commit is not expire
    await db.adispose()


async def test_binds_go_to_the_side_whose_engines_they_are(tmp_path: Path, db: Database) -> None:
    path = tmp_path / "users.db"
    sync, asynchronous = (
        create_engine(sqlite_url(path)),
        create_async_engine(f"sqlite+aiosqlite:///{path}"),
    )
    db.configure(
        "sqlite://",
        session_args={"binds": {User: sync}},
        async_session_args={"binds": {User: asynchronous}},
    )
    async with db(commit_on_exit=True):
        db.async_session.add(User(name="ann"))
    async with db():
        assert db.session.scalars(select(User.name)).all() == ["ann"]
        assert (await db.async_session.scalars(select(User.name))).all() == ["ann"]
    sync.dispose()
    await asynchronous.dispose()
    await db.adispose()


def test_arguments_that_no_engine_takes_are_an_error_on_first_use(db: Database) -> None:
    db.configure("sqlite://", engine_args={"colour": "red"})
    with db(), pytest.raises(TypeError, match="colour"):
        db.session.connection()


def test_a_url_that_replaces_the_apps_own_is_not_overruled_by_its_other_arguments(
    tmp_path: Path, db: Database
) -> None:
    engine = create_engine("sqlite:///elsewhere.db")
    options = Configuration.of(
        "postgresql://u@h/d",
        engine_args={"connect_args": {"application_name": "x"}, "creator": print, "echo": False},
        session_args={"bind": engine, "autoflush": False},
    )
    replaced = options.with_url(f"sqlite:///{tmp_path / 'a.db'}")
    assert replaced.engine.engine_args == {"echo": False}
    assert replaced.session_args == {"autoflush": False}
    assert replaced.engine.async_db_url is None
    engine.dispose()


def test_a_url_that_cannot_be_read_is_a_configuration_error(db: Database) -> None:
    with pytest.raises(ConfigurationError):
        db.configure("no url")
    assert not db.is_configured
