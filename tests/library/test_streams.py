"""Streams and server-sent events: what they may do with the session, and when it is committed."""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import event, insert, select, text
from starlette.background import BackgroundTask

from support.models import Membership, User
from support.releases import LOSES_CANCELLED_CONNECTIONS, LOSES_THEM
from support.stores import Store
from support.web import Serve, add_http_middleware, client_of

try:
    from fastapi.sse import EventSourceResponse
except ImportError:
    EventSourceResponse = None  # type: ignore[assignment,misc]

with_events = pytest.mark.skipif(
    EventSourceResponse is None, reason="FastAPI has no event streams before 0.135"
)

ROWS = 500


@pytest.fixture
def full_store(store: Store) -> Store:
    return fill(store)


@pytest.fixture
def full_async_store(async_store: Store) -> Store:
    return fill(async_store)


def fill(store: Store) -> Store:
    with store.configure()(commit_on_exit=True):
        store.db.session.execute(insert(User), [{"name": f"u{n}"} for n in range(ROWS)])
    return store


@pytest.mark.parametrize("commit_on_exit", [False, True])
@pytest.mark.parametrize("side", ["sync", "async"])
def test_a_cursor_opened_in_the_route_streams_to_its_end(
    serve: Serve, full_async_store: Store, side: str, commit_on_exit: bool
) -> None:
    app = full_async_store.app(commit_on_exit=commit_on_exit)
    add_cursors(full_async_store, app)
    with client_of(serve, app) as client:
        assert len(client.get(f"/{side}").text.splitlines()) == ROWS + 1
        assert full_async_store.users().count("route") == commit_on_exit
        assert len(client.get(f"/{side}/connection").text.splitlines()) == ROWS + 1 + commit_on_exit
        full_async_store.assert_settled()
    assert full_async_store.users().count("route") == 2 * commit_on_exit


@pytest.mark.parametrize("side", ["sync", "async"])
def test_a_cursor_under_an_http_middleware_streams_to_its_end(
    serve: Serve, full_async_store: Store, side: str
) -> None:
    """It is open, and between two of its reads, when the start is passed on."""
    app = FastAPI()

    @app.middleware("http")
    async def pass_on_later(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        await asyncio.sleep(0.1)
        return response

    app.user_middleware[:0] = full_async_store.app(commit_on_exit=True).user_middleware
    add_cursors(full_async_store, app)
    with client_of(serve, app) as client:
        assert len(client.get(f"/{side}/late").text.splitlines()) == ROWS + 1
    assert full_async_store.users().count("route") == 1


@pytest.mark.skipif(LOSES_CANCELLED_CONNECTIONS, reason=LOSES_THEM)
# psycopg's of a cursor that nobody closes.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("end", ["leaves", "fails"])
@pytest.mark.parametrize("side", ["sync", "async"])
def test_what_a_route_with_a_cursor_wrote_is_rolled_back_where_its_stream_does_not_end(
    serve: Serve,
    async_server_store: Store,
    side: str,
    end: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = fill(async_server_store)
    app = store.app(commit_on_exit=True)
    add_cursors(store, app)
    with client_of(serve, app) as client:
        if end == "fails":
            with pytest.raises(httpx.RemoteProtocolError):
                client.get(f"/{side}", params={"fails": True})
        else:
            with client.stream("GET", f"/{side}", params={"pause_s": 0.02}) as response:
                next(response.iter_raw())
        store.assert_settled()
    caplog.clear()  # an error that was logged holds the cursor
    gc.collect()
    assert "route" not in store.users()


@pytest.mark.parametrize("side", ["sync", "async"])
def test_a_cursor_that_a_stream_opens_while_its_start_is_passed_on_is_read_to_its_end(
    serve: Serve, full_async_store: Store, side: str
) -> None:
    app = FastAPI()
    add_http_middleware(app)
    app.user_middleware[:0] = full_async_store.app(commit_on_exit=True).user_middleware
    add_cursors(full_async_store, app)
    with client_of(serve, app) as client:
        for n in range(10):
            assert len(client.get(f"/{side}/late").text.splitlines()) == ROWS + 1 + n
    assert full_async_store.users().count("route") == 10


def add_cursors(store: Store, app: FastAPI) -> None:
    """`/{side}` writes a row and streams all of them through a server-side cursor.

    One of the session's own connection's at `/{side}/connection`; at `/{side}/late` the stream
    opens it.
    """
    db, names = store.db, select(User.name).execution_options(yield_per=10)

    @app.get("/sync")
    @app.get("/sync/{where}")
    def route(where: str = "", pause_s: float = 0, fails: bool = False) -> StreamingResponse:
        db.session.execute(insert(User).values(name="route"))

        def read() -> Any:
            target: Any = db.session.connection() if where == "connection" else db.session
            return target.execute(names)

        def lines(result: Any) -> Iterator[str]:
            for row in result or read():
                yield f"{row.name}\n"
                if fails:
                    raise LookupError
                time.sleep(pause_s)

        return StreamingResponse(lines(None if where == "late" else read()))

    @app.get("/async")
    @app.get("/async/{where}")
    async def route_async(
        where: str = "", pause_s: float = 0, fails: bool = False
    ) -> StreamingResponse:
        session = db.async_session
        await session.execute(insert(User).values(name="route"))

        async def read() -> Any:
            target: Any = await session.connection() if where == "connection" else session
            return await target.stream(names)

        async def lines(result: Any) -> AsyncIterator[str]:
            async for row in result or await read():
                yield f"{row.name}\n"
                if fails:
                    raise LookupError
                await asyncio.sleep(pause_s)

        return StreamingResponse(lines(None if where == "late" else await read()))


def test_with_commit_on_exit_a_stream_opens_a_scope_for_its_cursor(
    serve: Serve, full_store: Store
) -> None:
    db = full_store.db
    app = full_store.app(commit_on_exit=True)

    @app.get("/")
    def route() -> StreamingResponse:
        db.session.add(User(name="route"))

        def lines() -> Iterator[str]:
            with db():
                for name in db.session.scalars(select(User.name).execution_options(yield_per=10)):
                    yield f"{name}\n"

        return StreamingResponse(lines())

    with client_of(serve, app) as client:
        assert len(client.get("/").text.splitlines()) == ROWS + 1


@pytest.mark.parametrize("path", ["/sync", "/async"])
def test_a_stream_under_an_http_middleware_and_its_requests_commit_keep_apart(
    serve: Serve, async_postgresql_store: Store, path: str
) -> None:
    """A BaseHTTPMiddleware passes the start on while the stream is at its first chunk already."""
    db = async_postgresql_store.db
    app = FastAPI()

    add_http_middleware(app)
    app.user_middleware[:0] = async_postgresql_store.app(commit_on_exit=True).user_middleware
    wait = text("SELECT pg_sleep(0.02)")

    @app.get("/sync")
    def route() -> StreamingResponse:
        def produce() -> Iterator[str]:
            for number in range(5):
                db.session.execute(wait)
                yield str(number)

        db.session.add(User(name="ann"))
        return StreamingResponse(produce())

    @app.get("/async")
    async def route_async() -> StreamingResponse:
        async def produce() -> AsyncIterator[str]:
            for number in range(5):
                await db.async_session.execute(wait)
                yield str(number)

        db.async_session.add(User(name="ann"))
        return StreamingResponse(produce())

    with client_of(serve, app) as client:
        assert [client.get(path).text for _ in range(3)] == ["01234"] * 3
    assert async_postgresql_store.users() == ["ann"] * 3


def test_a_stream_reads_loaded_objects_without_a_further_select(serve: Serve, store: Store) -> None:
    db = store.db
    store.backend.execute("INSERT INTO users (id, name) VALUES (1, 'ann')")
    statements: list[str] = []
    app = store.app()

    @app.get("/")
    def route() -> StreamingResponse:
        user = db.session.scalars(select(User)).one()

        def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            statements.append(statement)

        event.listen(db.engine, "before_cursor_execute", count)
        return StreamingResponse(user.name for _ in range(3))

    with client_of(serve, app) as client:
        assert client.get("/").text == "annannann"
    assert statements == []


@pytest.mark.parametrize("commit_on_exit", [False, True])
def test_an_exception_after_the_first_chunk_keeps_only_what_was_committed_before(
    serve: Serve, store: Store, commit_on_exit: bool
) -> None:
    db = store.db
    app = store.app(commit_on_exit=commit_on_exit)

    @app.get("/sync")
    def sync_route() -> StreamingResponse:
        db.session.add(User(name="before"))

        def chunks() -> Iterator[str]:
            yield "first"
            db.session.add(User(name="during"))
            db.session.flush()
            raise LookupError

        return StreamingResponse(chunks())

    @app.get("/async")
    async def async_route() -> StreamingResponse:
        db.async_session.add(User(name="before"))

        async def chunks() -> AsyncIterator[str]:
            yield "first"
            db.async_session.add(User(name="during"))
            await db.async_session.flush()
            raise LookupError

        return StreamingResponse(chunks())

    with client_of(serve, app) as client:
        for path in ("/sync", "/async"):
            with pytest.raises(httpx.RemoteProtocolError):
                client.get(path)
            store.assert_settled()
    assert store.users() == (["before", "before"] if commit_on_exit else [])


KINDS = ["stream", "events", pytest.param("fastapi", marks=with_events)]


def add_streams(store: Store, app: FastAPI, chunks: int, pause_s: float = 0.0) -> None:
    """`/{kind}/{side}` and `/fastapi-{side}`: each chunk comes with a row."""
    db = store.db

    def sync_chunks(prefix: str) -> Iterator[str]:
        for n in range(chunks):
            db.session.add(User(name=f"{prefix} {n}"))
            db.session.flush()
            yield f"data: {n}\n\n"
            time.sleep(pause_s)

    async def async_chunks(prefix: str) -> AsyncIterator[str]:
        for n in range(chunks):
            db.async_session.add(User(name=f"{prefix} {n}"))
            await db.async_session.flush()
            yield f"data: {n}\n\n"
            await asyncio.sleep(pause_s)

    @app.get("/{kind}/sync")
    def sync_stream(kind: str, name: str) -> StreamingResponse:
        media_type = "text/plain" if kind == "stream" else "text/event-stream"
        return StreamingResponse(sync_chunks(name), media_type=media_type)

    @app.get("/{kind}/async")
    async def async_stream(kind: str, name: str) -> StreamingResponse:
        media_type = "text/plain" if kind == "stream" else "text/event-stream"
        return StreamingResponse(async_chunks(name), media_type=media_type)

    if EventSourceResponse is None:
        return

    @app.get("/fastapi-sync", response_class=EventSourceResponse)
    def sync_events(name: str) -> Iterator[str]:
        yield from sync_chunks(name)

    @app.get("/fastapi-async", response_class=EventSourceResponse)
    async def async_events(name: str) -> AsyncIterator[str]:
        async for chunk in async_chunks(name):
            yield chunk


def path_of(kind: str, side: str) -> str:
    return f"/fastapi-{side}" if kind == "fastapi" else f"/{kind}/{side}"


@pytest.mark.parametrize("side", ["sync", "async"])
@pytest.mark.parametrize("kind", KINDS)
def test_whoever_has_read_a_whole_stream_finds_its_rows(
    serve: Serve, store: Store, kind: str, side: str
) -> None:
    app = store.app(commit_on_exit=True)
    add_streams(store, app, 2)
    missing = []
    with client_of(serve, app) as client:
        for n in range(15):
            with client.stream("GET", path_of(kind, side), params={"name": f"s{n}"}) as response:
                assert b"".join(response.iter_raw()).count(b"data: ") >= 2
                if store.users()[-2:] != [f"s{n} 0", f"s{n} 1"]:
                    missing.append(n)
    assert missing == []


def add_downloads(store: Store, app: FastAPI) -> None:
    """`/{side}` writes a row while it sends two parts of a body whose length is told."""
    db = store.db

    def sync_parts(name: str, fails: bool) -> Iterator[bytes]:
        yield b"a" * 100
        db.session.add(User(name=name))
        if fails:
            event.listen(db.session, "before_commit", refuse)
        yield b"b" * 100
        time.sleep(0.05)

    async def async_parts(name: str, fails: bool) -> AsyncIterator[bytes]:
        yield b"a" * 100
        db.async_session.add(User(name=name))
        if fails:
            event.listen(db.async_session.sync_session, "before_commit", refuse)
        yield b"b" * 100
        await asyncio.sleep(0.05)

    def refuse(session: object) -> None:
        raise RuntimeError("refused")

    headers = {"Content-Length": "200"}

    @app.get("/sync")
    def sync_download(name: str, fails: bool = False) -> StreamingResponse:
        db.session.scalars(select(User)).all()
        return StreamingResponse(sync_parts(name, fails), headers=headers)

    @app.get("/async")
    async def async_download(name: str, fails: bool = False) -> StreamingResponse:
        await db.async_session.scalars(select(User))
        return StreamingResponse(async_parts(name, fails), headers=headers)


@pytest.mark.parametrize("side", ["sync", "async"])
def test_whoever_has_all_bytes_of_a_download_finds_its_rows(
    serve: Serve, store: Store, side: str
) -> None:
    """It waits for no last message, which has no bytes."""
    app = store.app(commit_on_exit=True)
    add_downloads(store, app)
    with client_of(serve, app) as client:
        for n in range(5):
            assert len(client.get(f"/{side}", params={"name": f"s{n}"}).content) == 200
            assert store.users()[-1] == f"s{n}"
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(f"/{side}", params={"name": "lost", "fails": True})
    assert "lost" not in store.users()


@pytest.mark.skipif(LOSES_CANCELLED_CONNECTIONS, reason=LOSES_THEM)
@pytest.mark.parametrize("inside", [False, True], ids=["plain", "http middleware inside"])
@pytest.mark.parametrize("side", ["sync", "async"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_whose_client_leaves_is_rolled_back(
    serve: Serve, store: Store, kind: str, side: str, inside: bool
) -> None:
    app = store.app(commit_on_exit=True)
    if inside:
        entry = app.user_middleware.pop()
        add_http_middleware(app)
        app.user_middleware.insert(0, entry)
    add_streams(store, app, 100, pause_s=0.02)
    with client_of(serve, app) as client:
        with client.stream("GET", path_of(kind, side), params={"name": "half"}) as response:
            next(response.iter_raw())
        store.assert_settled()
    assert store.users() == []


def test_what_a_task_writes_after_the_response_is_rolled_back_with_a_warning(
    serve: Serve, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    db = store.db
    app = store.app(commit_on_exit=True)

    @app.get("/lines/{n}")
    def route(n: int) -> StreamingResponse:
        def late() -> None:
            db.session.add(User(name="late"))
            db.session.flush()

        def chunks() -> Iterator[str]:
            yield "first"
            db.session.add(User(name="in the stream"))

        return StreamingResponse(chunks(), background=BackgroundTask(late))

    with client_of(serve, app) as client:
        assert client.get("/lines/1").text == "first"
        store.assert_settled()
    assert store.users() == ["in the stream"]
    assert "GET /lines/{n} wrote to the database without a commit" in caplog.text


@with_events
def test_server_sent_events_that_write_are_committed_at_their_end(
    serve: Serve, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """FastAPI's producer runs before and during what would be the commit."""
    db = store.db
    app = store.app(commit_on_exit=True)

    @app.get("/sync", response_class=EventSourceResponse)
    def sync_events() -> Iterator[int]:
        for n in range(3):
            db.session.add(User(name=f"sync {n}"))
            db.session.flush()
            yield n

    @app.get("/async", response_class=EventSourceResponse)
    async def async_events() -> AsyncIterator[int]:
        for n in range(3):
            db.async_session.add(User(name=f"async {n}"))
            await db.async_session.flush()
            yield n

    with client_of(serve, app) as client:
        for path in ("/sync", "/async"):
            assert client.get(path).text.count("data: ") == 3
            store.assert_settled()
    assert store.users() == [f"{side} {n}" for side in ("sync", "async") for n in range(3)]
    assert caplog.text == ""


@pytest.mark.parametrize("media_type", ["text/event-stream", "text/event-stream; charset=utf-8"])
def test_an_event_stream_that_first_uses_the_session_after_its_start_is_committed_too(
    serve: Serve, store: Store, media_type: str
) -> None:
    db = store.db
    app = store.app(commit_on_exit=True)

    @app.get("/")
    async def route() -> StreamingResponse:
        def events() -> Iterator[str]:
            yield "data: 0\n\n"
            db.session.add(User(name="ann"))
            yield "data: 1\n\n"

        return StreamingResponse(events(), media_type=media_type)

    with client_of(serve, app) as client:
        assert client.get("/").text == "data: 0\n\ndata: 1\n\n"
    assert store.users() == ["ann"]


@with_events
def test_an_event_stream_that_fails_is_rolled_back(serve: Serve, store: Store) -> None:
    db = store.db
    app = store.app(commit_on_exit=True)

    @app.get("/", response_class=EventSourceResponse)
    def events() -> Iterator[int]:
        db.session.add(User(name="ann"))
        db.session.flush()
        yield 1
        raise LookupError

    with client_of(serve, app) as client:
        with suppress(httpx.RemoteProtocolError):
            client.get("/")
        store.assert_settled()
    assert store.users() == []


@with_events
def test_a_commit_that_fails_at_the_end_of_an_event_stream_is_logged_as_an_error(
    serve: Serve, postgresql_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    db = postgresql_store.db
    app = postgresql_store.app(commit_on_exit=True)

    @app.get("/events", response_class=EventSourceResponse)
    def events() -> Iterator[int]:
        db.session.add(Membership(user_id=4711))
        db.session.flush()
        yield 1

    with client_of(serve, app) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            client.get("/events")
        postgresql_store.assert_settled()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "GET /events: the commit at the end of the stream failed" in caplog.text


@with_events
def test_each_event_can_be_committed_in_a_scope_of_its_own(serve: Serve, store: Store) -> None:
    db = store.db
    committed: list[list[str]] = []
    app = store.app(commit_on_exit=True)

    @app.get("/sync", response_class=EventSourceResponse)
    def sync_events() -> Iterator[int]:
        for n in range(2):
            with db(commit_on_exit=True):
                db.session.add(User(name=f"sync {n}"))
            committed.append(store.users())
            yield n

    @app.get("/async", response_class=EventSourceResponse)
    async def async_events() -> AsyncIterator[int]:
        for n in range(2):
            async with db(commit_on_exit=True):
                db.async_session.add(User(name=f"async {n}"))
            committed.append(store.users())
            yield n

    with client_of(serve, app) as client:
        for path in ("/sync", "/async"):
            assert client.get(path).text.count("data: ") == 2
    assert [users[-1] for users in committed] == ["sync 0", "sync 1", "async 0", "async 1"]
