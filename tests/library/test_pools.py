"""Small pools, many requests: nobody waits for somebody who waits for him."""

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import anyio.to_thread
import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy import select, text
from sqlalchemy.pool import QueuePool

from fastapi_sqlalchemy import Database
from fastapi_sqlalchemy.sessions import activity, pool_waiting, request_scope
from support.models import User
from support.stores import Store
from support.waiting import wait_until
from support.web import Serve, add_http_middleware, client_of

REQUESTS = 200
#: Who waits for somebody who waits for him waits for ever; a busy machine serves them all in time.
NARROW = {"max_overflow": 0, "pool_timeout": 120}


class UserOut(BaseModel):
    id: int
    name: str


def ask_all_at_once(client: httpx.Client, *paths: str) -> Counter[int]:
    """The statuses of 200 requests that are under way at the same time."""

    def ask(n: int) -> int:
        return client.get(paths[n % len(paths)], timeout=180).status_code

    client.get("/warm")
    with ThreadPoolExecutor(REQUESTS) as threads:
        return Counter(threads.map(ask, range(REQUESTS)))


def add_routes(app: FastAPI, store: Store) -> None:
    db = store.db

    @app.get("/sync", response_model=UserOut)
    def sync_route() -> User:
        return db.session.scalars(select(User)).one()

    def current_user() -> User:
        return db.session.scalars(select(User)).one()

    @app.get("/dependency", response_model=UserOut)
    def dependent_route(user: User = Depends(current_user)) -> User:  # noqa: B008
        return user

    @app.get("/async", response_model=UserOut)
    async def async_route() -> User:
        return (await db.async_session.scalars(select(User))).one()

    @app.get("/warm")
    async def warm() -> int:
        return 1


@pytest.mark.parametrize(("pool_size", "commit_on_exit"), [(1, True), (2, False)])
@pytest.mark.slow
def test_a_tiny_pool_serves_200_requests_at_once(
    serve: Serve, postgresql_store: Store, pool_size: int, commit_on_exit: bool
) -> None:
    """Their responses are validated in a thread, while every thread waits for a connection."""
    store = postgresql_store
    store.backend.execute("INSERT INTO users (name) VALUES ('ann')")
    app = store.app(commit_on_exit=commit_on_exit, engine_args={**NARROW, "pool_size": pool_size})
    add_routes(app, store)
    with client_of(serve, app) as client:
        for path in ("/sync", "/dependency", "/async"):
            assert ask_all_at_once(client, path) == {200: REQUESTS}, path
            store.assert_settled()


def test_a_tiny_pool_serves_200_requests_that_write(
    serve: Serve, async_server_store: Store
) -> None:
    store, db = async_server_store, async_server_store.db
    app = store.app(commit_on_exit=True, engine_args={**NARROW, "pool_size": 2})

    @app.get("/sync")
    def sync_route() -> int:
        db.session.add(User(name="sync"))
        return 1

    @app.get("/async")
    async def async_route() -> int:
        db.async_session.add(User(name="async"))
        return 1

    @app.get("/warm")
    async def warm() -> int:
        return 1

    with client_of(serve, app) as client:
        assert ask_all_at_once(client, "/sync", "/async") == {200: REQUESTS}
    assert Counter(store.users()) == {"sync": REQUESTS // 2, "async": REQUESTS // 2}


def test_a_tiny_pool_serves_200_streams_under_an_http_middleware(
    serve: Serve, postgresql_store: Store
) -> None:
    """Each waits for a connection in one thread, and for its turn after that in another."""
    store, db = postgresql_store, postgresql_store.db
    app = FastAPI()

    add_http_middleware(app)
    served = store.app(commit_on_exit=True, engine_args={**NARROW, "pool_size": 2})
    app.user_middleware[:0] = served.user_middleware

    @app.get("/stream")
    def stream() -> StreamingResponse:
        db.session.add(User(name="ann"))
        parts = (str(db.session.scalar(text("SELECT 1"))) for _ in range(3))
        return StreamingResponse(parts)

    with client_of(serve, app) as client:
        assert ask_all_at_once(client, "/stream") == {200: REQUESTS}
    assert len(store.users()) == REQUESTS


def test_a_sync_session_on_the_loop_does_not_wait_there_for_a_commit_that_needs_the_loop(
    serve: Serve, postgresql_store: Store
) -> None:
    store, db = postgresql_store, postgresql_store.db
    app = FastAPI()

    add_http_middleware(app)
    served = store.app(commit_on_exit=True, engine_args={**NARROW, "pool_size": 1})
    app.user_middleware[:0] = served.user_middleware

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            await asyncio.sleep(0.2)  # the COMMIT waits for a connection by now
            yield str(db.session.scalar(text("SELECT 1")))

        db.session.add(User(name="ann"))
        return StreamingResponse(parts())

    @app.get("/alive")
    async def alive() -> str:
        return "alive"

    with client_of(serve, app) as client, ThreadPoolExecutor(1) as threads:
        with db.engine.connect():
            asked = threads.submit(client.get, "/stream")
            time.sleep(0.5)
            assert client.get("/alive", timeout=5).json() == "alive"
        # Starlette before 1 cuts an answer that fails; 1 ends it.
        with contextlib.suppress(httpx.RemoteProtocolError):
            assert asked.result(10).status_code in (200, 500)


def test_the_thread_limit_is_what_it_was_after_a_crowd(
    serve: Serve, postgresql_store: Store
) -> None:
    store = postgresql_store
    store.backend.execute("INSERT INTO users (name) VALUES ('ann')")
    app = store.app(engine_args={**NARROW, "pool_size": 1})
    add_routes(app, store)

    @app.get("/limit")
    async def limit() -> int:
        return int(anyio.to_thread.current_default_thread_limiter().total_tokens)

    with client_of(serve, app) as client:
        before = client.get("/limit").json()
        assert ask_all_at_once(client, "/sync") == {200: REQUESTS}
        assert client.get("/limit").json() == before


def test_a_thread_that_is_nobodys_waits_for_a_connection_too(postgresql_store: Store) -> None:
    db = postgresql_store.configure(engine_args={"pool_size": 1, "max_overflow": 0})
    found: list[Any] = []

    def work() -> None:
        with db():
            found.append(db.session.scalar(text("SELECT 1")))

    thread = threading.Thread(target=work)
    with db():
        db.session.scalar(text("SELECT 1"))
        thread.start()
        pool = db.engine.pool
        wait_until(lambda: pool_waiting._queues[pool].length, "the thread waits")
        assert found == []
    thread.join(60)
    assert found == [1]
    assert pool_waiting._queues[pool].length == 0


def test_sqlalchemys_pool_still_says_how_far_it_may_overflow() -> None:
    """`queues` rests on this private attribute."""
    pool = QueuePool(lambda: None, pool_size=2, max_overflow=3)  # type: ignore[arg-type, return-value]
    assert (pool.size(), pool._max_overflow, pool.checkedout()) == (2, 3, 0)


def test_a_pool_without_an_end_is_never_waited_for(postgresql_store: Store) -> None:
    db = postgresql_store.configure(engine_args={"pool_size": 1, "max_overflow": -1})
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(db())
            assert db.session.scalar(text("SELECT 1")) == 1
        assert postgresql_store.checked_out() == 5


def test_a_pool_that_stays_empty_raises_its_timeout(serve: Serve, postgresql_store: Store) -> None:
    store, db = postgresql_store, postgresql_store.db
    app = store.app(engine_args={"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.2})
    add_routes(app, store)
    with client_of(serve, app) as client:
        client.get("/warm")
        with db():
            db.session.scalar(text("SELECT 1"))
            assert client.get("/sync").status_code == 500
            assert client.get("/async").status_code == 500
        store.backend.execute("INSERT INTO users (name) VALUES ('ann')")
        assert client.get("/sync").status_code == 200


async def ask(db: Database, side: str) -> None:
    """Have that side's session hold a connection."""
    if side == "sync":
        await anyio.to_thread.run_sync(lambda: db.session.scalar(text("SELECT 1")))
    else:
        await db.async_session.scalar(text("SELECT 1"))


@pytest.mark.parametrize("side", ["sync", "async"])
def test_who_holds_the_connections_is_named(
    serve: Serve,
    postgresql_store: Store,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    side: str,
) -> None:
    monkeypatch.setattr(request_scope, "IDLE_WARNING_S", 0.2)
    store, db = postgresql_store, postgresql_store.db
    app = store.app(engine_args={"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.3})

    @app.get("/events/{n}")
    async def events(n: int) -> StreamingResponse:
        await ask(db, side)

        def pieces() -> Iterator[str]:
            for _ in range(n):
                yield "data: x\n\n"
                go_on.wait(30)
            yield "data: end\n\n"

        return StreamingResponse(pieces(), media_type="text/event-stream")

    add_routes(app, store)
    go_on = threading.Event()
    with client_of(serve, app) as client:
        with client.stream("GET", "/events/1") as response:
            pieces = response.iter_text()
            assert "x" in next(pieces)
            assert client.get(f"/{side}").status_code == 500
            go_on.set()
            assert "end" in "".join(pieces)
        wait_until(lambda: "kept a connection" in caplog.text, "the end of the stream")
    (line,) = [line for line in caplog.messages if "No connection was free in time" in line]
    assert "GET /events/{n} (idle for 0." in line
    assert "while its response is sent" in line
    assert "GET /events/{n} kept a connection for" in caplog.text


@pytest.mark.parametrize("side", ["sync", "async"])
def test_who_holds_the_connections_is_looked_for_once_for_a_crowd(
    serve: Serve,
    postgresql_store: Store,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    side: str,
) -> None:
    """Each look goes through all objects of the process, on the event loop's thread."""
    store, db = postgresql_store, postgresql_store.db
    app = store.app(engine_args={"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.3})
    add_routes(app, store)

    @app.get("/hold/{side}")
    async def hold(side: str) -> None:
        await ask(db, side)
        await anyio.to_thread.run_sync(go_on.wait, 30)

    def lines(what: str) -> int:
        return sum(
            "No connection was free in time" in line and what in line for line in caplog.messages
        )

    go_on = threading.Event()
    with client_of(serve, app) as client, ThreadPoolExecutor(9) as pool, ExitStack() as stack:
        stack.callback(go_on.set)
        held = pool.submit(client.get, f"/hold/{side}")
        wait_until(lambda: store.checked_out() == 1, "the connection is held")
        answers = list(pool.map(lambda _: client.get(f"/{side}").status_code, range(8)))
        assert answers == [500] * 8
        assert lines("held by GET /hold/{side}") == 1
        assert lines("Who holds them was logged within the last 10 s") == 7
        monkeypatch.setattr(activity, "LOOK_EVERY_S", 0)
        client.get(f"/{side}")
        assert lines("held by GET /hold/{side}") == 2
        go_on.set()
        assert held.result().status_code == 200
