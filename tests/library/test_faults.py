"""Servers that fall silent, end a session or restart; clients that hang up."""

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from fastapi_sqlalchemy.engines import engines
from fastapi_sqlalchemy.sessions import handles, shielding
from support.backends import Backend, connect_postgresql
from support.models import User
from support.proxy import proxy_to
from support.stores import Store, at_commit, opened
from support.waiting import DEADLINE_S, wait_until
from support.web import Serve, client_of

SERVERS = {
    "psycopg": "postgresql",
    "asyncpg": "postgresql",
    "aiomysql": "mariadb",
    "asyncmy": "mariadb",
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "ROLLBACK_TIMEOUT_S", 0.3)


@pytest.mark.parametrize("driver", SERVERS)
async def test_an_async_scope_ends_although_the_server_hangs_at_rollback(
    driver: str,
    db: Any,
    emptied: Callable[[str], Backend],
    impatient: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = emptied(SERVERS[driver])
    url = backend.with_driver(driver)
    with proxy_to(url) as proxy, opened(db, backend, url) as store:
        db.configure(db_url=proxy.url(url), engine_args={"pool_size": 1, "max_overflow": 0})
        async with db():
            db.async_session.add(User(name="ann"))
            await db.async_session.flush()
            proxy.silent.set()
        assert "ROLLBACK has not ended after 0.3 s" in caplog.text
        assert store.checked_out() == 0  # at once: the slot is free
        proxy.drop_all()
        proxy.silent.clear()
        # psycopg goes on cancelling on the old socket, and may take a new one of its number for it.
        while shielding._unfinished:
            await asyncio.sleep(0.02)
        async with db():
            assert await db.async_session.scalar(select(User)) is None
        proxy.drop_all()
        await db.adispose()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pymysql"])
async def test_a_sync_session_ends_although_the_server_hangs_at_rollback(
    driver: str,
    db: Any,
    emptied: Callable[[str], Backend],
    impatient: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = emptied("mariadb" if driver == "pymysql" else "postgresql")
    url = backend.with_driver(driver)
    with proxy_to(url) as proxy, opened(db, backend, url) as store:
        db.configure(db_url=proxy.url(url), engine_args={"pool_size": 1, "max_overflow": 0})
        async with db():
            db.session.add(User(name="ann"))
            db.session.flush()
            proxy.silent.set()
        assert "ROLLBACK has not ended after 0.3 s" in caplog.text
        # Its thread is told that the connection is gone, and gives the slot back.
        wait_until(lambda: store.checked_out() == 0, "the slot is free")
        proxy.drop_all()
        proxy.silent.clear()
        async with db():
            assert db.session.scalar(select(User)) is None


async def test_a_pool_is_disposed_although_its_server_is_silent(
    async_server_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg waits for an answer to its goodbye: SIGTERM would never end a server."""
    monkeypatch.setattr(engines, "CLOSE_TIMEOUT_S", 0.3)

    store = async_server_store
    with proxy_to(store.url) as proxy:
        store.db.configure(db_url=proxy.url(store.url))
        engine = store.db.async_engine
        async with engine.connect(), engine.connect(), engine.connect():
            pass
        assert engine.pool.checkedin() == 3
        proxy.silent.set()
        async with asyncio.timeout(DEADLINE_S):
            await store.db.adispose()


async def test_a_rollback_at_the_response_that_hangs_is_given_up_once(
    db: Any,
    serve: Serve,
    emptied: Callable[[str], Backend],
    impatient: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = emptied("postgresql")
    with proxy_to(backend.url) as proxy, opened(db, backend, proxy.url(backend.url)) as store:
        app = store.app(commit_on_exit=True)

        @app.post("/{side}", status_code=409)
        async def route(side: str) -> int:
            if side == "sync":
                db.session.add(User(name="ann"))
                db.session.flush()
            else:
                db.async_session.add(User(name="ann"))
                await db.async_session.flush()
            proxy.silent.set()
            return 1

        def ask() -> None:
            with client_of(serve, app) as client:
                for side in ("sync", "async"):
                    assert client.post(f"/{side}").status_code == 409
                    wait_until(lambda: store.checked_out() == 0, "the slot is free")
                    proxy.drop_all()
                    proxy.silent.clear()

        await asyncio.to_thread(ask)
        assert caplog.text.count("ROLLBACK has not ended") == 2
    assert backend.rows("SELECT * FROM users") == []


async def test_the_pool_goes_on_after_the_server_has_ended_a_session(
    async_server_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store = async_server_store
    db = store.configure(engine_args={"pool_size": 1, "max_overflow": 0})
    kill, own = (
        ("SELECT pg_terminate_backend({})", "SELECT pg_backend_pid()")
        if store.backend.name == "postgresql"
        else ("KILL {}", "SELECT connection_id()")
    )
    for side in ("sync", "async"):
        with pytest.raises(DBAPIError):
            async with db(commit_on_exit=True):
                session: Any = db.session if side == "sync" else db.async_session
                session.add(User(name="lost"))
                if side == "sync":
                    store.backend.rows(kill.format(session.scalar(text(own))))
                else:
                    store.backend.rows(kill.format(await session.scalar(text(own))))
        assert store.checked_out() == 0
    async with db():
        assert db.session.scalar(select(User)) is None
        assert await db.async_session.scalar(select(User)) is None
    await db.adispose()


async def test_the_original_exception_wins_over_a_rollback_that_fails(
    async_server_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store = async_server_store
    kill, own = (
        ("SELECT pg_terminate_backend({})", "SELECT pg_backend_pid()")
        if store.backend.name == "postgresql"
        else ("KILL {}", "SELECT connection_id()")
    )
    db = store.configure()
    with pytest.raises(LookupError):
        async with db():
            store.backend.rows(kill.format(await db.async_session.scalar(text(own))))
            raise LookupError
    with pytest.raises(LookupError), db():
        store.backend.rows(kill.format(db.session.scalar(text(own))))
        raise LookupError
    assert store.checked_out() == 0
    await db.adispose()


def test_requests_are_served_again_after_the_server_was_restarted(
    db: Any, serve: Serve, emptied: Callable[[str], Backend]
) -> None:
    """pool_pre_ping, which is off in SQLAlchemy, tells the connections that a restart has cut."""
    backend = emptied("postgresql")
    backend.execute("INSERT INTO users (name) VALUES ('ann')")
    with proxy_to(backend.url) as proxy, opened(db, backend, proxy.url(backend.url)) as store:
        app = store.app(commit_on_exit=True, engine_args={"pool_pre_ping": True})

        @app.get("/sync")
        def sync_route() -> list[str]:
            return list(db.session.scalars(select(User.name)))

        @app.get("/async")
        async def async_route() -> list[str]:
            return list(await db.async_session.scalars(select(User.name)))

        with client_of(serve, app) as client:
            for _ in range(3):
                for path in ("/sync", "/async"):
                    assert client.get(path).json() == ["ann"]
                proxy.drop_all()
            store.assert_settled()


def test_a_restart_costs_at_most_the_connections_that_it_cut(
    db: Any, serve: Serve, emptied: Callable[[str], Backend]
) -> None:
    backend = emptied("postgresql")
    with proxy_to(backend.url) as proxy, opened(db, backend, proxy.url(backend.url)) as store:
        app = store.app(commit_on_exit=True)

        @app.get("/sync")
        def sync_route() -> list[str]:
            return list(db.session.scalars(select(User.name)))

        @app.get("/async")
        async def async_route() -> list[str]:
            return list(await db.async_session.scalars(select(User.name)))

        with client_of(serve, app) as client:
            for path in ("/sync", "/async"):
                assert client.get(path).status_code == 200
            proxy.drop_all()
            for path in ("/sync", "/async"):
                assert client.get(path).status_code == 500
                assert client.get(path).status_code == 200
            store.assert_settled()


def hang_up_during(base_url: str, path: str, under_way: Callable[[], Any]) -> None:
    """Ask for `path`, and cut the connection when `under_way` says so."""
    host, port = urlsplit(base_url).hostname, urlsplit(base_url).port
    with socket.create_connection((host, port)) as client:
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n".encode())
        wait_until(under_way, f"{path} is under way")
        client.shutdown(socket.SHUT_RDWR)


def add_disconnect_watcher(app: FastAPI) -> None:
    """What BaseHTTPMiddleware and time limits do: the request is cancelled when the client goes."""

    class Watch:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await self.app(scope, receive, send)
                return
            await receive()
            request = asyncio.create_task(self.app(scope, receive, send))

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                request.cancel()

            watcher = asyncio.create_task(watch())
            with suppress(asyncio.CancelledError):
                await request
            watcher.cancel()

    app.add_middleware(Watch)


@pytest.mark.parametrize("watched", [False, True], ids=["plain", "cancelled"])
@pytest.mark.parametrize("times", [8, pytest.param(20, marks=pytest.mark.slow)])
def test_clients_that_hang_up_leave_no_connection(
    serve: Serve, postgresql_store: Store, watched: bool, times: int
) -> None:
    store, db = postgresql_store, postgresql_store.db
    app = store.app(commit_on_exit=True, outside=add_disconnect_watcher if watched else None)
    at_commit(store.backend, "PERFORM pg_advisory_xact_lock_shared(44)")
    waiting = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event = 'advisory'"
    )
    gate = connect_postgresql(store.backend.location)
    streaming = threading.Event()

    @app.post("/sync/query")
    def sync_query() -> None:
        db.session.execute(text("SELECT pg_advisory_xact_lock_shared(44)"))

    @app.post("/async/query")
    async def async_query() -> None:
        await db.async_session.execute(text("SELECT pg_advisory_xact_lock_shared(44)"))

    @app.post("/sync/commit")
    def sync_commit() -> None:
        db.session.add(User(name="sync"))

    @app.post("/async/commit")
    async def async_commit() -> None:
        db.async_session.add(User(name="async"))

    @app.post("/sync/stream")
    def sync_stream() -> StreamingResponse:
        def lines() -> Any:
            with db():
                for _ in range(100_000):
                    yield f"{db.session.scalar(text('SELECT 1'))}\n"
                    streaming.set()

        return StreamingResponse(lines())

    @app.post("/async/stream")
    async def async_stream() -> StreamingResponse:
        async def lines() -> Any:
            async with db():
                for _ in range(100_000):
                    yield f"{await db.async_session.scalar(text('SELECT 1'))}\n"
                    streaming.set()

        return StreamingResponse(lines())

    def hang_up_at_the_gate(base_url: str, path: str) -> None:
        gate.execute("SELECT pg_advisory_lock(44)")
        hang_up_during(base_url, path, lambda: store.backend.rows(waiting))
        gate.execute("SELECT pg_advisory_unlock(44)")

    with gate, serve(app, log_level="critical") as served:
        for n in range(times):
            for side in ("sync", "async"):
                hang_up_at_the_gate(served.base_url, f"/{side}/query")
                store.assert_settled()
                hang_up_at_the_gate(served.base_url, f"/{side}/commit")
                committed = 2 * n + 1 + (side == "async")
                wait_until(lambda: len(store.users()) == committed, "the COMMIT was finished")  # noqa: B023
                store.assert_settled()
                streaming.clear()
                hang_up_during(served.base_url, f"/{side}/stream", streaming.is_set)
                store.assert_settled()
