"""What a background task of a response may still do, and which scopes are let go."""

import asyncio
import gc
import inspect
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import fastapi
import pytest
from fastapi import Depends
from fastapi.responses import FileResponse, JSONResponse
from packaging.version import Version
from sqlalchemy import event, func, select, text
from sqlalchemy.pool import PoolResetState
from starlette.background import BackgroundTask

from support.models import User
from support.stores import Store
from support.waiting import wait_until
from support.web import Serve, client_of


@pytest.mark.parametrize("expire_on_commit", [False, True])
def test_a_background_task_of_an_error_reads_what_the_route_has_loaded(
    serve: Serve, async_store: Store, expire_on_commit: bool
) -> None:
    async_store.backend.execute("INSERT INTO users (name) VALUES ('ann')")
    db = async_store.db
    seen: list[str] = []
    app = async_store.app(
        commit_on_exit=True, async_session_args={"expire_on_commit": expire_on_commit}
    )

    @app.get("/{side}")
    async def route(side: str) -> JSONResponse:
        if side == "async":
            user: Any = await db.async_session.get(User, 1)
        else:
            user = await asyncio.to_thread(lambda: db.session.get(User, 1))
        return JSONResponse({}, 403, background=BackgroundTask(lambda: seen.append(user.name)))

    with client_of(serve, app) as client:
        for side in ("async", "sync"):
            assert client.get(f"/{side}").status_code == 403
            async_store.assert_settled()
    assert seen == ["ann", "ann"]


@pytest.mark.anyio
async def test_a_file_that_the_server_sends_by_its_path_is_a_whole_response(
    postgresql_store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, db = postgresql_store, postgresql_store.db
    app = store.app(commit_on_exit=True)
    (tmp_path / "file").write_text("whole")
    held: list[int] = []

    def write() -> None:
        held.append(store.checked_out())
        db.session.add(User(name="lost"))
        db.session.flush()

    @app.get("/")
    def route() -> FileResponse:
        db.session.scalar(select(User.id))
        return FileResponse(tmp_path / "file", background=BackgroundTask(write))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            await asyncio.to_thread(lambda: db.session.scalar(select(User.id)))

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    await app({**scope, "extensions": {"http.response.pathsend": {}}}, receive, send)
    assert held == [0]
    assert "GET / wrote to the database without a commit" in caplog.text


@pytest.mark.parametrize("side", ["sync", "async"])
def test_what_a_dependency_writes_at_its_end_is_committed_with_the_response_or_warned_of(
    serve: Serve, async_store: Store, caplog: pytest.LogCaptureFixture, side: str
) -> None:
    db = async_store.db
    app = async_store.app(commit_on_exit=True)

    def writes(name: str) -> Any:
        def dependency() -> Iterator[None]:
            yield
            db.session.add(User(name=name))
            db.session.flush()

        async def asynchronous() -> AsyncIterator[None]:
            yield
            db.async_session.add(User(name=name))
            await db.async_session.flush()

        return dependency if side == "sync" else asynchronous

    @app.get("/after", dependencies=[Depends(writes("lost"))])
    def after() -> None: ...

    chooses = "scope" in inspect.signature(Depends).parameters  # FastAPI 0.121
    if chooses:

        @app.get("/before", dependencies=[Depends(writes("kept"), scope="function")])
        def before() -> None: ...

    with client_of(serve, app) as client:
        for path in ("/before", "/after"):
            client.get(path)
        async_store.assert_settled()
    warnings = [each.getMessage() for each in caplog.records if "wrote to" in each.getMessage()]
    if Version(fastapi.__version__) < Version("0.118"):  # each is left before the response
        assert (async_store.users(), warnings) == (["lost"], [])
        return
    assert async_store.users() == ["kept"] * chooses
    (warning,) = warnings
    assert warning.startswith("GET /after wrote to the database without a commit, after its resp")
    assert "commit_on_exit" not in warning


@pytest.mark.parametrize("pending", [False, True], ids=["executed", "pending"])
def test_an_error_after_a_write_is_still_rolled_back(
    serve: Serve, store: Store, pending: bool
) -> None:
    db = store.db
    app = store.app(commit_on_exit=True)

    @app.get("/")
    def route() -> JSONResponse:
        db.session.add(User(name="ann"))
        if not pending:
            db.session.flush()
        return JSONResponse({}, 403)

    with client_of(serve, app) as client:
        assert client.get("/").status_code == 403
    store.assert_settled()
    assert store.users() == []


def test_a_function_that_writes_is_rolled_back_with_an_error(
    serve: Serve, postgresql_store: Store
) -> None:
    store = postgresql_store
    store.backend.execute(
        "CREATE OR REPLACE FUNCTION make_user() RETURNS int LANGUAGE sql AS"
        " $$ INSERT INTO users (name) VALUES ('made') RETURNING id $$"
    )
    app = store.app(commit_on_exit=True)

    @app.get("/")
    def route() -> JSONResponse:
        store.db.session.execute(select(func.make_user())).all()
        return JSONResponse({}, 403)

    with client_of(serve, app) as client:
        assert client.get("/").status_code == 403
    store.assert_settled()
    assert store.users() == []
    store.backend.execute("DROP FUNCTION make_user()")


async def test_scopes_that_each_start_the_next_are_let_go(sqlite_store: Store) -> None:
    db = sqlite_store.configure()
    sessions: weakref.WeakSet[Any] = weakref.WeakSet()
    ended = asyncio.Event()

    async def start(left: int) -> None:
        async with db():
            sessions.add(db.session)
            if left:
                tasks[:] = [asyncio.create_task(start(left - 1))]
                await asyncio.sleep(0)
            else:
                ended.set()

    tasks: list[asyncio.Task[None]] = []
    await start(50)
    await ended.wait()
    await tasks[0]
    gc.collect()
    assert len(sessions) <= 2


async def test_an_outer_scope_is_current_again_also_after_the_ones_between_have_ended(
    sqlite_store: Store,
) -> None:
    db = sqlite_store.configure()
    between_ended = asyncio.Event()

    async def inner() -> Any:
        async with db():
            await between_ended.wait()
        return db.session

    async with db():
        outermost = db.session
        async with db():
            task = asyncio.create_task(inner())
            await asyncio.sleep(0)
        between_ended.set()
        assert await task is outermost


@pytest.mark.parametrize("side", ["async", "sync"])
def test_what_was_read_holds_no_connection_once_the_body_is_sent(
    serve: Serve, postgresql_store: Store, side: str
) -> None:
    """A pool of one: a background task that takes long keeps no other request waiting."""
    store, db = postgresql_store, postgresql_store.db
    store.backend.execute("INSERT INTO users (name) VALUES ('ann')")
    app = store.app(engine_args={"pool_size": 1, "max_overflow": 0, "pool_timeout": 5})
    go_on = threading.Event()
    seen: list[Any] = []

    @app.get("/mail")
    async def mail() -> JSONResponse:
        if side == "async":
            user: Any = await db.async_session.get(User, 1)
        else:
            user = await asyncio.to_thread(lambda: db.session.get(User, 1))

        async def send() -> None:
            await asyncio.to_thread(go_on.wait, 30)
            seen.append(user.name)
            session: Any = db.async_session if side == "async" else db.session
            found = session.execute(select(User.name))
            seen.append((await found if side == "async" else found).scalar())

        return JSONResponse({}, background=BackgroundTask(send))

    @app.get("/names")
    async def names() -> Any:
        return (await db.async_session.scalars(select(User.name))).all()

    @app.get("/sync-names")
    def sync_names() -> Any:
        return db.session.scalars(select(User.name)).all()

    with client_of(serve, app) as client:
        assert client.get("/mail").status_code == 200
        other = client.get("/names" if side == "async" else "/sync-names")
        assert (other.status_code, other.json(), seen) == (200, ["ann"], [])
        go_on.set()
        wait_until(lambda: len(seen) == 2, "the mail is sent")
    assert seen == ["ann", "ann"]
    store.assert_settled()


@pytest.mark.parametrize("side", ["sync", "async"])
def test_what_was_read_is_rolled_back_once(serve: Serve, async_store: Store, side: str) -> None:
    db = async_store.db
    app = async_store.app()
    already: list[bool] = []

    @app.get("/")
    async def route() -> None:
        session: Any = db.async_session if side == "async" else db.session
        engine: Any = db.async_engine.sync_engine if side == "async" else db.engine

        @event.listens_for(engine.pool, "reset")
        def note(connection: Any, record: Any, state: PoolResetState) -> None:
            already.append(state.transaction_was_reset)

        found = session.scalars(select(User))
        assert (await found if side == "async" else found).all() == []

    with client_of(serve, app) as client:
        assert client.get("/").status_code == 200
    assert already == [True]


@pytest.mark.anyio
@pytest.mark.parametrize("begins", [False, True], ids=["as Python begins", "begun by an event"])
async def test_what_was_read_of_a_file_costs_no_way_to_its_thread(
    sqlite_store: Store, begins: bool
) -> None:
    """Python has begun no transaction for it, unless somebody has it begin one for each."""
    store, db = sqlite_store, sqlite_store.configure()
    asked: list[str] = []

    @db.on_connect
    def listen(connection: Any, record: Any) -> None:
        def note(name: str) -> None:
            end = getattr(connection.driver_connection, name)
            setattr(connection.driver_connection, name, lambda: asked.append(name) or end())

        note("commit")
        note("rollback")
        if begins:
            connection.isolation_level = None

    if begins:
        event.listen(
            db.async_engine.sync_engine, "begin", lambda each: each.exec_driver_sql("BEGIN")
        )
    for statement in (select(User), text("SELECT * FROM users")):
        for commits in (False, True):
            async with db(commit_on_exit=commits):
                await db.async_session.execute(statement)
                asked.clear()
            assert bool(asked) is begins, asked
        store.assert_settled()
    async with db():
        db.async_session.add(User(name="lost"))
        await db.async_session.flush()
        asked.clear()
    assert asked
    async with db():
        await (await db.async_session.connection()).exec_driver_sql("DELETE FROM users")
        asked.clear()
    assert asked
    assert store.users() == []
    store.assert_settled()
    await db.adispose()


def test_what_was_written_or_locked_is_kept_for_the_background_task(
    serve: Serve, postgresql_store: Store
) -> None:
    store, db = postgresql_store, postgresql_store.db
    store.backend.execute("INSERT INTO users (name) VALUES ('ann'), ('bob')")
    app = store.app()
    locked: list[Any] = []

    @app.get("/{what}")
    def route(what: str) -> JSONResponse:
        if what == "written":
            db.session.add(User(name="zoe"))
            db.session.flush()
        elif what == "locked":
            db.session.scalars(select(User).where(User.id == 1).with_for_update()).one()
        elif what == "locked text":
            db.session.execute(text("SELECT name FROM users WHERE id = 1 FOR SHARE")).one()
        else:
            pieces = iter(db.session.scalars(select(User.name).execution_options(yield_per=1)))
            next(pieces)

        def after() -> None:
            if what == "pieces":
                locked.extend(pieces)
                return
            with db():
                free = select(User.id).with_for_update(skip_locked=True)
                locked.append(len(db.session.scalars(free).all()))
            db.session.commit()

        return JSONResponse({}, background=BackgroundTask(after))

    with client_of(serve, app) as client:
        for number, what in enumerate(("locked", "locked text", "pieces", "written"), 1):
            assert client.get(f"/{what}").status_code == 200
            wait_until(lambda number=number: len(locked) == number, what)  # type: ignore[misc]
    assert locked == [1, 1, "bob", 2]
    assert store.users() == ["ann", "bob", "zoe"]
