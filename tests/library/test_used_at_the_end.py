"""A session that another task or thread still uses when its scope ends: at the response, at the
end of the call, at the end of a block."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_sqlalchemy import Database
from fastapi_sqlalchemy.exceptions import ConcurrentUseError
from support.backends import Backend
from support.models import User
from support.stores import Store, opened
from support.web import Serve, client_of

SYNC_DRIVERS = {
    "psycopg": "postgresql",
    "psycopg2": "postgresql",
    "pymysql": "mariadb",
    "pysqlite": "sqlite",
}
# Long enough that whoever waits for its end is seen to wait.
SLOW = {
    "postgresql": "SELECT pg_sleep(8)",
    "mariadb": "SELECT sleep(8)",
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 60000000) "
    "SELECT count(*) FROM n",
}


@pytest.fixture(params=SYNC_DRIVERS)
def sync_store(
    request: pytest.FixtureRequest, db: Database, emptied: Callable[[str], Backend]
) -> Iterator[Store]:
    backend = emptied(SYNC_DRIVERS[request.param])
    with opened(db, backend, backend.with_driver(request.param)) as store:
        yield store


def one_place(store: Store) -> dict[str, Any]:
    return {"pool_size": 1, "max_overflow": 0, "pool_timeout": 10}


class AnswersAfter:
    """A time-out middleware that answers 504 and lets the route run on."""

    def __init__(self, app: ASGIApp, limit_s: float) -> None:
        self.app = app
        self.limit_s = limit_s
        self.left: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answered = False

        async def send_in_time(message: Any) -> None:
            if not answered:
                await send(message)

        task = asyncio.create_task(self.app(scope, receive, send_in_time))
        done, _ = await asyncio.wait({task}, timeout=self.limit_s)
        if done:
            task.result()
            return
        answered = True
        self.left.add(task)
        task.add_done_callback(lambda ended: ended.exception())
        await JSONResponse({}, 504)(scope, receive, send)


def app_of(store: Store, db: Database) -> FastAPI:
    slow = text(SLOW[store.backend.name])
    app = store.app(commit_on_exit=True, engine_args=one_place(store))

    async def fails() -> None:
        await asyncio.sleep(0.3)
        raise HTTPException(409)

    async def forget(coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        await asyncio.sleep(0.3)

    @app.get("/gathered/{side}")
    async def gathered(side: str) -> None:
        await asyncio.gather(work(side), fails())

    @app.get("/forgotten/{side}")
    async def forgotten(side: str) -> int:
        await forget(work(side))
        return 1

    @app.get("/no_content/{side}", status_code=204)
    async def no_content(side: str) -> None:
        await forget(work(side))

    @app.get("/late/{side}")
    async def late(side: str) -> None:
        await work(side)

    @app.get("/connection/{side}")
    async def connection(side: str) -> int:
        db.async_session.add(User(name="half"))
        await db.async_session.flush()
        await forget((await db.async_session.connection()).execute(slow))
        return 1

    async def work(side: str) -> None:
        if side == "async":
            db.async_session.add(User(name="half"))
            await db.async_session.flush()
            await db.async_session.execute(slow)
        else:
            await asyncio.to_thread(work_in_thread)

    def work_in_thread() -> None:
        db.session.add(User(name="half"))
        db.session.flush()
        db.session.execute(slow)

    @app.post("/users/{name}/{side}")
    async def create(name: str, side: str) -> int:
        if side == "async":
            db.async_session.add(User(name=name))
        else:
            await asyncio.to_thread(lambda: db.session.add(User(name=name)))
        return 1

    return app


def check(
    serve: Serve,
    store: Store,
    caplog: pytest.LogCaptureFixture,
    path: str,
    status: int,
    limit: bool,
) -> None:
    """Ask for `path`, then for two requests that need its place in the pool."""
    side = path.rsplit("/", 1)[1]
    app = app_of(store, store.db)
    if limit:
        # Inside of ours: added before it.
        entry = app.user_middleware.pop()
        app.add_middleware(AnswersAfter, limit_s=0.5)
        app.user_middleware.insert(0, entry)
    with client_of(serve, app) as client:
        began = time.monotonic()
        assert client.get(path).status_code == status
        for name in ("ann", "bob"):
            assert client.post(f"/users/{name}/{side}").status_code == 200
        assert time.monotonic() - began < 6, "somebody waited for the statement"
    assert store.users() == ["ann", "bob"]
    assert "still uses its session" in caplog.text


PATHS = [
    ("/gathered", 409, False),
    ("/forgotten", 500, False),
    ("/no_content", 500, False),
    ("/late", 504, True),
]


@pytest.mark.parametrize(("path", "status", "limit"), PATHS)
def test_a_request_that_ends_while_a_task_uses_its_session_spoils_no_connection(
    serve: Serve,
    async_store: Store,
    caplog: pytest.LogCaptureFixture,
    path: str,
    status: int,
    limit: bool,
) -> None:
    check(serve, async_store, caplog, f"{path}/async", status, limit)


def test_a_request_whose_connection_a_task_still_uses_is_not_committed(
    serve: Serve, async_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    check(serve, async_store, caplog, "/connection/async", 500, False)


@pytest.mark.parametrize(("path", "status", "limit"), PATHS)
def test_a_request_that_ends_while_a_thread_uses_its_session_spoils_no_connection(
    serve: Serve,
    sync_store: Store,
    caplog: pytest.LogCaptureFixture,
    path: str,
    status: int,
    limit: bool,
) -> None:
    check(serve, sync_store, caplog, f"{path}/sync", status, limit)


@pytest.mark.parametrize("commit", [True, False])
async def test_a_block_that_ends_while_a_task_uses_its_session_is_not_committed(
    async_store: Store, caplog: pytest.LogCaptureFixture, commit: bool
) -> None:
    store = async_store
    db = store.configure(engine_args=one_place(store))
    slow = text(SLOW[store.backend.name])

    async def end() -> None:
        async with db(commit_on_exit=commit):
            db.async_session.add(User(name="half"))
            await db.async_session.flush()
            task = asyncio.create_task(db.async_session.execute(slow))
            tasks.append(task)
            await asyncio.sleep(0.3)

    tasks: list[asyncio.Task[Any]] = []

    began = time.monotonic()
    if commit:
        with pytest.raises(ConcurrentUseError, match="is not committed: the task 'Task-"):
            await end()
    else:
        await end()
    async with db(commit_on_exit=True):
        db.async_session.add(User(name="ann"))
    assert time.monotonic() - began < 6
    assert await asyncio.to_thread(store.users) == ["ann"]
    assert "still uses its session" in caplog.text
    with pytest.raises(DBAPIError):
        await tasks[0]
    await db.adispose()


def test_a_statement_that_outlasts_its_event_loop_still_ends_its_connection(
    sqlite_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing interrupts a function of the app's own: the loop is closed before it returns."""
    db = sqlite_store.configure()
    inside, over = threading.Event(), threading.Event()
    before = set(threading.enumerate())
    connections: list[Any] = []

    @db.on_connect
    def listen(connection: Any, _: object) -> None:
        connections.append(connection.driver_connection)
        connection.create_function("hold", 0, hold)

    def hold() -> int:
        inside.set()
        over.wait(20)
        return 1

    async def leave() -> None:
        async with db():
            left.append(asyncio.create_task(db.async_session.execute(text("SELECT hold()"))))
            await asyncio.to_thread(inside.wait, 10)

    left: list[asyncio.Task[Any]] = []
    asyncio.run(leave())
    over.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    assert connections[0]._connection is None
    left.clear()


@pytest.mark.parametrize("commit", [True, False])
def test_a_block_that_ends_while_a_thread_uses_its_session_is_not_committed(
    sync_store: Store, caplog: pytest.LogCaptureFixture, commit: bool
) -> None:
    store = sync_store
    db = store.configure(engine_args=one_place(store))
    slow = text(SLOW[store.backend.name])
    errors: list[BaseException] = []
    begun = threading.Event()

    def use(session: Any) -> None:
        begun.set()
        try:
            session.execute(slow)
        except Exception as exc:
            errors.append(exc)

    def end() -> None:
        with db(commit_on_exit=commit):
            db.session.add(User(name="half"))
            db.session.flush()
            thread = threading.Thread(target=use, args=(db.session,), name="left-behind")
            threads.append(thread)
            thread.start()
            begun.wait(5)
            time.sleep(0.3)

    threads: list[threading.Thread] = []
    began = time.monotonic()
    if commit:
        with pytest.raises(ConcurrentUseError, match="not committed: the thread 'left-behind'"):
            end()
    else:
        end()
    with db(commit_on_exit=True):
        db.session.add(User(name="ann"))
    assert time.monotonic() - began < 6
    threads[0].join(10)
    assert not threads[0].is_alive()
    assert len(errors) == 1
    assert store.users() == ["ann"]
    assert "the thread 'left-behind' still uses its session" in caplog.text


def test_one_sync_session_serves_one_thread_at_a_time(store: Store) -> None:
    db = store.configure()
    inside, over = threading.Event(), threading.Event()
    with db():
        connection = db.session.connection()

        def hold(*_: Any) -> None:
            if threading.current_thread() is thread:
                inside.set()
                over.wait(10)

        event.listen(connection, "before_cursor_execute", hold)
        session = db.session
        thread = threading.Thread(target=lambda: session.execute(text("SELECT 1")))
        thread.start()
        inside.wait(10)
        with pytest.raises(ConcurrentUseError, match="Another thread is using this Session"):
            session.execute(text("SELECT 1"))
        over.set()
        thread.join(10)
        assert session.scalar(text("SELECT 1")) == 1
