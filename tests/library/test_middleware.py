"""`DBSessionMiddleware`: what it lets through, what it warns about, what it costs."""

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, Response, StreamingResponse
from sqlalchemy import insert, select, text

from fastapi_sqlalchemy import Database, DBSessionMiddleware, MissingSessionError
from fastapi_sqlalchemy.exceptions import ConfigurationError
from support.models import User
from support.stores import Store
from support.waiting import wait_until
from support.web import Serve, add_http_middleware, client_of


def add_nothing(app: FastAPI) -> None:
    pass


def add_gzip(app: FastAPI) -> None:
    app.add_middleware(GZipMiddleware, minimum_size=0)


@pytest.fixture(params=[add_nothing, add_gzip, add_http_middleware], ids=lambda f: f.__name__)
def around(request: pytest.FixtureRequest) -> Callable[[FastAPI], None]:
    added: Callable[[FastAPI], None] = request.param
    return added


@pytest.fixture(params=["inside", "outside"])
def app(
    request: pytest.FixtureRequest,
    around: Callable[[FastAPI], None],
    postgresql_store: Store,
    tmp_path: Path,
) -> FastAPI:
    """Every kind of response, each with a row written, and the other middleware on either side."""
    store, db = postgresql_store, postgresql_store.db
    if request.param == "outside":
        app = store.app(commit_on_exit=True, outside=around)
    else:
        app = FastAPI()
        around(app)
        app.user_middleware[:0] = store.app(commit_on_exit=True).user_middleware
    (tmp_path / "file.txt").write_text("of the file " * 100)

    def write(request: Request) -> None:
        db.session.add(User(name=f"{request.method} {request.url.path}"))

    async def awrite(request: Request) -> None:
        db.async_session.add(User(name=f"{request.method} {request.url.path}"))
        await db.async_session.flush()

    @app.api_route("/json", methods=["GET", "HEAD"], dependencies=[Depends(write)])
    def json_route() -> dict[str, str]:
        return {"of": "json"}

    @app.get("/async_json", dependencies=[Depends(awrite)])
    async def async_json_route() -> dict[str, str]:
        return {"of": "json"}

    @app.get("/stream", dependencies=[Depends(write)])
    def stream_route() -> StreamingResponse:
        return StreamingResponse(f"{n}\n" for n in range(100))

    @app.api_route("/file", methods=["GET", "HEAD"], dependencies=[Depends(awrite)])
    async def file_route() -> FileResponse:
        return FileResponse(tmp_path / "file.txt")

    @app.get("/not_modified", dependencies=[Depends(write)])
    def not_modified_route() -> Response:
        return Response(status_code=304)

    return app


def test_every_kind_of_response_is_whole_and_committed(
    serve: Serve, postgresql_store: Store, app: FastAPI
) -> None:
    with client_of(serve, app) as client:
        assert client.get("/json").json() == {"of": "json"}
        assert client.get("/async_json").json() == {"of": "json"}
        assert client.get("/stream").text == "".join(f"{n}\n" for n in range(100))
        assert client.get("/file").text == "of the file " * 100
        head = client.head("/json")
        assert (head.status_code, head.text) == (200, "")
        head = client.head("/file")
        assert (head.status_code, head.text) == (200, "")
        assert client.get("/not_modified").status_code == 304
        assert postgresql_store.users() == [
            "GET /json",
            "GET /async_json",
            "GET /stream",
            "GET /file",
            "HEAD /json",
            "HEAD /file",
            "GET /not_modified",
        ]
        assert client.get("/missing").status_code == 404
        postgresql_store.assert_settled()


def test_a_request_that_uses_no_database_opens_nothing(
    serve: Serve, postgresql_store: Store
) -> None:
    app = postgresql_store.app(commit_on_exit=True)

    @app.get("/")
    async def route() -> bool:
        return bool(postgresql_store.db._scope.get())

    with client_of(serve, app) as client:
        assert client.get("/").json() is True
        assert postgresql_store.db.pool_status() == {}


@pytest.mark.parametrize("side", ["sync", "async"])
@pytest.mark.parametrize("pending", ["added", "flushed", "executed", "text"])
def test_what_a_request_leaves_uncommitted_is_rolled_back_with_a_warning(
    serve: Serve,
    store: Store,
    caplog: pytest.LogCaptureFixture,
    side: str,
    pending: str,
) -> None:
    db = store.db
    app = store.app()

    def write(session: Any) -> None:
        if pending == "executed":
            session.execute(insert(User).values(name="lost"))
        elif pending == "text":
            session.execute(text("INSERT INTO users (name) VALUES ('lost')"))
        else:
            session.add(User(name="lost"))
            if pending == "flushed":
                session.flush()

    @app.post("/sync/{n}")
    def sync_route(n: int) -> int:
        write(db.session)
        return n

    @app.post("/async/{n}")
    async def async_route(n: int) -> int:
        await db.async_session.run_sync(write)
        return n

    with client_of(serve, app) as client:
        assert client.post(f"/{side}/1").status_code == 200
        store.assert_settled()
    assert store.users() == []
    assert f"POST /{side}/{{n}} wrote to the database without a commit" in caplog.text


def test_what_is_written_around_a_savepoint_that_is_rolled_back_is_not_forgotten(
    store: Store,
) -> None:
    db = store.configure()
    for before, after in ((True, False), (False, True)):
        with db():
            if before:
                db.session.add(User(name="before"))
            with contextlib.suppress(ZeroDivisionError), db.session.begin_nested():
                db.session.execute(insert(User).values(name="inside"))
                assert db.uncommitted
                with db.session.begin_nested():
                    db.session.execute(insert(User).values(name="kept"))
                raise ZeroDivisionError
            assert db.uncommitted is before
            if after:
                db.session.execute(insert(User).values(name="after"))
            assert db.uncommitted
    assert store.users() == []


def test_a_value_that_cannot_be_compared_counts_as_written(sqlite_store: Store) -> None:
    class Odd(str):
        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError

        __hash__ = str.__hash__

    sqlite_store.backend.execute("INSERT INTO users (name) VALUES ('ann')")
    db = sqlite_store.configure()
    with db():
        user = db.session.get_one(User, 1)
        user.name = Odd(user.name)
        assert db.uncommitted
        db.session.expire(user)
        assert not db.uncommitted


def test_nothing_is_warned_about_where_nothing_was_lost(
    serve: Serve, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    db = store.db
    store.backend.execute("INSERT INTO users (name) VALUES ('ann')")
    app = store.app()

    @app.get("/read")
    def read() -> list[str]:
        db.session.execute(text("SELECT 1"))
        return list(db.session.scalars(select(User.name)))

    @app.get("/async_read")
    async def async_read() -> list[str]:
        return list(await db.async_session.scalars(select(User.name)))

    @app.post("/committed")
    def committed() -> int:
        db.session.add(User(name="bob"))
        db.session.commit()
        return len(db.session.scalars(select(User)).all())

    @app.post("/unchanged")
    def unchanged() -> None:
        user = db.session.scalars(select(User).order_by(User.id)).first()
        assert user is not None
        user.name = str(user.name)

    @app.post("/savepoint")
    def savepoint() -> None:
        with contextlib.suppress(ZeroDivisionError), db.session.begin_nested():
            db.session.add(User(name="eve"))
            db.session.flush()
            raise ZeroDivisionError

    @app.post("/async_savepoint")
    async def async_savepoint() -> None:
        async with db.async_session.begin_nested() as nested:
            await db.async_session.execute(insert(User).values(name="eve"))
            await nested.rollback()
        await db.async_session.scalars(select(User))

    @app.post("/rolled_back")
    def rolled_back() -> int:
        db.session.add(User(name="eve"))
        db.session.flush()
        db.session.rollback()
        return 1

    @app.post("/refused")
    def refused() -> None:
        db.session.add(User(name="eve"))
        db.session.flush()
        raise HTTPException(409)

    @app.post("/background")
    def background(tasks: BackgroundTasks) -> int:
        def work() -> None:
            with db(commit_on_exit=True):
                db.session.add(User(name="background"))

        tasks.add_task(work)
        return 1

    with client_of(serve, app) as client:
        for path in ("/read", "/async_read"):
            assert client.get(path).json() == ["ann"]
        for path in ("/unchanged", "/savepoint", "/async_savepoint", "/committed"):
            assert client.post(path).status_code == 200
        for path in ("/rolled_back", "/refused", "/background"):
            client.post(path)
        store.assert_settled()
    assert store.users() == ["ann", "bob", "background"]
    assert caplog.text == ""


def test_the_sync_session_on_the_loops_thread_is_warned_about_once_per_route(
    serve: Serve, sqlite_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    db = sqlite_store.db
    app = sqlite_store.app()

    @app.get("/blocks/{n}")
    async def blocks(n: int) -> int:
        return len(db.session.scalars(select(User)).all())

    @app.get("/blocks_too")
    async def blocks_too() -> int:
        return len(db.session.scalars(select(User)).all())

    @app.get("/only_looks")
    async def only_looks() -> bool:
        return db.session.is_active

    @app.get("/in_a_thread")
    def in_a_thread() -> int:
        return len(db.session.scalars(select(User)).all())

    @app.get("/awaits")
    async def awaits() -> int:
        return len((await db.async_session.scalars(select(User))).all())

    with client_of(serve, app) as client:
        for path in ("/blocks/1", "/blocks/2", "/only_looks", "/in_a_thread", "/awaits"):
            assert client.get(path).status_code == 200
        warned = [record.getMessage() for record in caplog.records]
        assert len(warned) == 1
        assert warned[0].startswith("GET /blocks/{n} uses db.session on the event loop's thread")
        client.get("/blocks_too")
    assert len(caplog.records) == 2


def test_a_request_has_one_session_for_all_that_it_runs(serve: Serve, sqlite_store: Store) -> None:
    db = sqlite_store.db
    app = sqlite_store.app()
    seen: list[int] = []

    def sync_dependency() -> None:
        seen.append(id(db.session))

    async def async_dependency() -> None:
        seen.append(id(db.session))

    @app.get("/", dependencies=[Depends(sync_dependency), Depends(async_dependency)])
    def route(tasks: BackgroundTasks) -> int:
        tasks.add_task(sync_dependency)
        tasks.add_task(async_dependency)
        seen.append(id(db.session))
        return 1

    with client_of(serve, app) as client:
        client.get("/")
        wait_until(lambda: len(seen) == 5, "the background tasks have run")
        assert len(set(seen)) == 1
    with pytest.raises(MissingSessionError):
        _ = db.session


@pytest.mark.anyio
async def test_a_request_that_a_route_makes_to_its_own_app_has_a_session_of_its_own(
    async_postgresql_store: Store,
) -> None:
    store, db = async_postgresql_store, async_postgresql_store.db
    app = store.app(commit_on_exit=True)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://own")

    @app.post("/users/{name}")
    async def create(name: str) -> None:
        db.async_session.add(User(name=name))

    @app.post("/batch")
    async def batch() -> None:
        db.async_session.add(User(name="lost"))
        assert (await client.post("/users/kept")).status_code == 200
        raise HTTPException(409)

    async with client:
        assert (await client.post("/batch")).status_code == 409
    assert store.users() == ["kept"]
    await db.adispose()


def test_a_request_that_uvicorn_begins_inside_the_one_before_has_a_session_of_its_own(
    serve: Serve, postgresql_store: Store
) -> None:
    """A pipelined one begins in the context of that before it, whose background task goes on."""
    store, db = postgresql_store, postgresql_store.db
    app = store.app(commit_on_exit=True)

    @app.get("/first")
    def first(tasks: BackgroundTasks) -> str:
        tasks.add_task(time.sleep, 0.5)
        return str(db.session.scalar(text("select 'first'")))

    @app.get("/second")
    def second() -> str:
        db.session.add(User(name="second"))
        return "second"

    with serve(app) as served:
        address = urlsplit(served.base_url)
        with socket.create_connection((address.hostname, address.port), 20) as connection:
            for path in ("first", "second"):
                connection.sendall(f"GET /{path} HTTP/1.1\r\nHost: own\r\n\r\n".encode())
            answers = b""
            while not answers.endswith(b'"second"'):
                answers += connection.recv(1000)
    assert answers.count(b"HTTP/1.1 200") == 2
    assert store.users() == ["second"]


def test_two_middlewares_serve_two_databases(
    serve: Serve, sqlite_store: Store, tmp_path: Path
) -> None:
    db, reports = sqlite_store.db, Database("reports")
    app = sqlite_store.app(commit_on_exit=True)
    app.add_middleware(
        DBSessionMiddleware, db_url=sqlite_store.url, db=reports, commit_on_exit=True
    )

    @app.post("/{name}")
    def route(name: str) -> bool:
        (db if name == "db" else reports).session.add(User(name=name))
        return db.session is not reports.session

    with client_of(serve, app) as client:
        assert client.post("/db").json() is True
        assert client.post("/reports").json() is True
    assert sqlite_store.users() == ["db", "reports"]
    reports.dispose()


def test_the_pools_are_empty_when_the_server_has_stopped(
    serve: Serve, async_server_store: Store
) -> None:
    store, db = async_server_store, async_server_store.db
    store.backend.assert_released()
    app = store.app()

    @app.get("/")
    async def route() -> int:
        db.session.scalars(select(User)).all()
        await db.async_session.scalars(select(User))
        return 1

    with client_of(serve, app) as client:
        assert client.get("/").status_code == 200
        assert store.backend.connections() == 2
    store.backend.assert_released()


@pytest.mark.parametrize("kind", ["lifespan", "http", "websocket", "block"])
def test_where_no_asyncio_runs_the_code_nothing_is_served_and_the_error_says_why(
    postgresql_store: Store, kind: str
) -> None:
    """Hypercorn's trio workers drive the app without asyncio: each request kept a connection."""
    app, db = postgresql_store.app(), postgresql_store.db
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    async def serve() -> None:
        if kind == "block":
            async with postgresql_store.configure()():
                db.session.execute(select(User))
        else:
            await app({"type": kind, "path": "/", "method": "GET", "headers": []}, receive, send)

    if kind == "lifespan":
        with pytest.raises(StopIteration):
            serve().send(None)
        (answer,) = sent
        assert answer["type"] == "lifespan.startup.failed"
        assert "hypercorn -k asyncio" in answer["message"]
        return
    with pytest.raises(ConfigurationError, match="hypercorn -k asyncio"):
        serve().send(None)
    assert postgresql_store.checked_out() == 0
