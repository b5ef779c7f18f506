"""A status below 400 means committed: what a response says about its transaction, and when."""

import logging
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import JSONResponse
from sqlalchemy import create_engine, event, insert, literal, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from fastapi_sqlalchemy import Database
from support.backends import Backend
from support.models import Membership, User
from support.stores import REFUSE, Store, at_commit
from support.waiting import wait_until
from support.web import Serve, add_http_middleware, client_of


def add_nothing(app: FastAPI) -> None:
    pass


def add_gzip(app: FastAPI) -> None:
    app.add_middleware(GZipMiddleware, minimum_size=0)


AROUND = {"plain": add_nothing, "gzip": add_gzip, "http_middleware": add_http_middleware}


@pytest.fixture(params=AROUND)
def around(request: pytest.FixtureRequest) -> Callable[[FastAPI], None]:
    return AROUND[request.param]


@pytest.fixture(params=["inside", "outside"])
def add_middlewares(
    request: pytest.FixtureRequest, around: Callable[[FastAPI], None]
) -> Callable[[Store, bool], FastAPI]:
    """The other middleware between ours and the route, or around ours."""

    def build(store: Store, commit_on_exit: bool = True) -> FastAPI:
        if request.param == "outside":
            return store.app(commit_on_exit=commit_on_exit, outside=around)
        app = FastAPI()
        around(app)
        app.user_middleware[:0] = store.app(commit_on_exit=commit_on_exit).user_middleware
        return app

    return build


def test_a_request_is_committed_before_its_response_is_sent(serve: Serve, store: Store) -> None:
    app = store.app(commit_on_exit=True)

    @app.post("/sync")
    def sync_route() -> int:
        store.db.session.add(User(name="sync"))
        return 1

    @app.post("/async")
    async def async_route() -> int:
        store.db.async_session.add(User(name="async"))
        return 1

    with client_of(serve, app) as client:
        assert client.post("/sync").status_code == 200
        assert store.users() == ["sync"]
        assert client.post("/async").status_code == 200
        assert store.users() == ["sync", "async"]


@pytest.mark.slow
def test_what_a_response_has_confirmed_is_read_by_the_next_request(
    serve: Serve, postgresql_store: Store
) -> None:
    db = postgresql_store.db
    app = postgresql_store.app(commit_on_exit=True)

    @app.post("/users/{name}")
    def create(name: str) -> int:
        user = User(name=name)
        db.session.add(user)
        db.session.flush()
        return user.id

    @app.get("/users/{key}")
    async def read(key: int) -> str:
        user = await db.async_session.get(User, key)
        return user.name if user else "missing"

    with client_of(serve, app) as client:
        missing = []
        for n in range(400):
            key = client.post(f"/users/u{n}").json()
            if client.get(f"/users/{key}").json() != f"u{n}":
                missing.append(n)
        assert missing == []


@pytest.mark.parametrize("side", ["sync", "async"])
def test_a_commit_that_the_database_refuses_is_answered_500_and_runs_no_background_task(
    serve: Serve, postgresql_store: Store, add_middlewares: Callable[..., FastAPI], side: str
) -> None:
    store = postgresql_store
    ran = []
    app = add_middlewares(store)

    @app.post("/sync", status_code=201)
    def sync_route(tasks: BackgroundTasks) -> int:
        tasks.add_task(ran.append, 1)
        store.db.session.add(Membership(user_id=4711))
        store.db.session.flush()
        return 1

    @app.post("/async", status_code=201)
    async def async_route(tasks: BackgroundTasks) -> int:
        tasks.add_task(ran.append, 1)
        store.db.async_session.add(Membership(user_id=4711))
        await store.db.async_session.flush()
        return 1

    with client_of(serve, app) as client:
        assert client.post(f"/{side}").status_code == 500
        store.assert_settled()
    assert store.backend.rows("SELECT * FROM memberships") == []
    assert ran == []


@pytest.mark.parametrize("side", ["sync", "async"])
def test_a_refused_commit_is_answered_by_the_apps_own_handler(
    serve: Serve, postgresql_store: Store, add_middlewares: Callable[..., FastAPI], side: str
) -> None:
    store = postgresql_store
    ran = []
    app = add_middlewares(store)

    def handle_sync(request: Request, exc: Exception) -> JSONResponse:
        return JSONResponse({"conflict": str(request.url.path)}, status_code=409)

    async def handle_async(request: Request, exc: Exception) -> JSONResponse:
        return handle_sync(request, exc)

    app.add_exception_handler(IntegrityError, handle_sync if side == "sync" else handle_async)

    @app.post("/{name}", status_code=201)
    def route(name: str, tasks: BackgroundTasks) -> int:
        tasks.add_task(ran.append, 1)
        store.db.session.add(User(name=name))
        store.db.session.add(Membership(user_id=4711))
        return 1

    with client_of(serve, app) as client:
        answer = client.post("/ann")
        assert (answer.status_code, answer.json()) == (409, {"conflict": "/ann"})
        store.assert_settled()
    assert store.users() == []
    assert ran == []


@pytest.mark.parametrize("status", [200, 409])
def test_what_the_handler_of_a_refused_commit_writes_is_kept_by_the_status_of_its_answer(
    serve: Serve, postgresql_store: Store, status: int
) -> None:
    store = postgresql_store
    app = store.app(commit_on_exit=True)

    @app.exception_handler(IntegrityError)
    async def handle(request: Request, exc: IntegrityError) -> JSONResponse:
        store.db.async_session.add(User(name="the handler's"))
        if request.url.path == "/again":
            store.db.async_session.add(Membership(user_id=4712))
        return JSONResponse("handled", status_code=status)

    @app.post("/once")
    @app.post("/again")
    async def route() -> None:
        store.db.async_session.add(Membership(user_id=4711))

    with client_of(serve, app) as client:
        assert client.post("/once").status_code == status
        assert store.users() == (["the handler's"] if status == 200 else [])
        # It is asked once: what the database refuses of its own is nobody's any more.
        assert client.post("/again").status_code == (500 if status == 200 else 409)
        store.assert_settled()
    assert len(store.users()) == (status == 200)


@pytest.mark.parametrize("middleware_on", ["parent", "mounted"])
def test_a_handler_that_only_the_parent_of_a_mounted_app_has_answers_a_refused_commit(
    serve: Serve, postgresql_store: Store, middleware_on: str
) -> None:
    store = postgresql_store
    ran = []
    parent, mounted = FastAPI(), FastAPI()
    entry = store.app(commit_on_exit=True).user_middleware[0]
    (parent if middleware_on == "parent" else mounted).user_middleware.append(entry)
    parent.mount("/shop", mounted)

    @parent.exception_handler(IntegrityError)
    async def handle(request: Request, exc: Exception) -> JSONResponse:
        return JSONResponse("of the parent", status_code=409)

    @mounted.post("/", status_code=201)
    def route(tasks: BackgroundTasks) -> int:
        tasks.add_task(ran.append, 1)
        store.db.session.add(Membership(user_id=4711))
        return 1

    with client_of(serve, parent) as client:
        answer = client.post("/shop/")
        assert (answer.status_code, answer.json()) == (409, "of the parent")
        store.assert_settled()
    assert ran == []


def test_a_flush_that_fails_at_the_commit_is_answered_500(serve: Serve, store: Store) -> None:
    app = store.app(commit_on_exit=True)

    @app.post("/{side}")
    async def route(side: str) -> int:
        session = store.db.session if side == "sync" else store.db.async_session
        session.add_all([User(id=1, name="ann"), User(id=1, name="bob")])
        return 1

    with client_of(serve, app) as client:
        for side in ("sync", "async"):
            assert client.post(f"/{side}").status_code == 500
        store.assert_settled()
    assert store.users() == []


def test_a_middleware_that_hides_a_refused_commit_behind_a_200_is_not_believed(
    serve: Serve, postgresql_store: Store
) -> None:
    at_commit(postgresql_store.backend, REFUSE)

    class Hide:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                await self.app(scope, receive, send)
            except Exception:
                await JSONResponse("all is well")(scope, receive, send)

    app = FastAPI()
    app.add_middleware(Hide)
    app.user_middleware[:0] = postgresql_store.app(commit_on_exit=True).user_middleware

    @app.post("/")
    def route() -> int:
        postgresql_store.db.session.add(User(name="ann"))
        return 1

    with client_of(serve, app) as client:
        assert client.post("/").status_code == 500


def test_an_exception_in_the_route_or_in_a_dependency_rolls_back(
    serve: Serve, store: Store
) -> None:
    db = store.db
    app = store.app(commit_on_exit=True)

    def failing_dependency() -> None:
        db.session.add(User(name="dependency"))
        db.session.flush()
        raise LookupError

    async def failing_async_dependency() -> None:
        db.async_session.add(User(name="async dependency"))
        await db.async_session.flush()
        raise LookupError

    @app.post("/route")
    def route() -> None:
        db.session.add(User(name="route"))
        db.session.flush()
        raise LookupError

    @app.post("/async_route")
    async def async_route() -> None:
        db.async_session.add(User(name="route"))
        await db.async_session.flush()
        raise LookupError

    app.post("/dependency", dependencies=[Depends(failing_dependency)])(lambda: 1)
    app.post("/async_dependency", dependencies=[Depends(failing_async_dependency)])(lambda: 1)

    with client_of(serve, app) as client:
        for path in ("/route", "/async_route", "/dependency", "/async_dependency"):
            assert client.post(path).status_code == 500, path
            store.assert_settled()
    assert store.users() == []


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(400, ["200", "399"]), (500, ["200", "399", "409"]), (None, ["200", "399", "409", "503"])],
)
def test_a_status_from_rollback_from_status_on_rolls_back(
    serve: Serve, postgresql_store: Store, limit: int | None, kept: list[str]
) -> None:
    db = postgresql_store.db
    app = postgresql_store.app(commit_on_exit=True, rollback_from_status=limit)

    @app.post("/{status}")
    def route(status: int, raised: bool = False) -> JSONResponse:
        db.session.add(User(name=str(status)))
        db.session.flush()
        if status == 409:
            raise HTTPException(status)
        if raised:
            raise LookupError
        return JSONResponse(None, status_code=status)

    with client_of(serve, app) as client:
        for status in (200, 399, 409, 503):
            assert client.post(f"/{status}").status_code == status
        assert client.post("/200?raised=true").status_code == 500
    assert postgresql_store.users() == kept


def test_without_commit_on_exit_only_what_the_route_commits_stays(
    serve: Serve, store: Store
) -> None:
    db = store.db
    app = store.app()

    @app.post("/{name}")
    def route(name: str) -> int:
        db.session.add(User(name=name))
        if name == "kept":
            db.session.commit()
        return 1

    with client_of(serve, app) as client:
        assert client.post("/kept").status_code == 200
        assert client.post("/lost").status_code == 200
    assert store.users() == ["kept"]


def test_rows_of_a_finished_savepoint_are_committed(serve: Serve, store: Store) -> None:
    db = store.db
    app = store.app(commit_on_exit=True)

    def in_savepoint() -> Iterator[None]:
        with db.session.begin_nested():
            db.session.add(User(name="in the dependency"))
        yield

    async def in_async_savepoint() -> Any:
        async with db.async_session.begin_nested():
            db.async_session.add(User(name="in the async dependency"))
        yield

    @app.post("/route")
    def route() -> int:
        with db.session.begin_nested():
            db.session.add(User(name="in the route"))
        return 1

    app.post("/dependency", dependencies=[Depends(in_savepoint)])(lambda: 1)
    app.post("/async_dependency", dependencies=[Depends(in_async_savepoint)])(lambda: 1)
    with client_of(serve, app) as client:
        for path in ("/route", "/dependency", "/async_dependency"):
            assert client.post(path).status_code == 200
    assert store.users() == ["in the route", "in the dependency", "in the async dependency"]


def test_rows_of_a_finished_savepoint_are_rolled_back_with_the_rest(
    serve: Serve, store: Store
) -> None:
    db = store.db
    app = store.app(commit_on_exit=True)

    @app.post("/sync")
    def sync_route(status: int) -> None:
        with db.session.begin_nested():
            db.session.add(User(name=f"sync {status}"))
        with db.session.begin_nested():
            db.session.add(User(name=f"sync {status} again"))
        raise HTTPException(status)

    @app.post("/async")
    async def async_route(status: int) -> None:
        async with db.async_session.begin_nested():
            db.async_session.add(User(name=f"async {status}"))
        raise HTTPException(status)

    with client_of(serve, app) as client:
        for path in ("/sync", "/async"):
            assert client.post(path, params={"status": 409}).status_code == 409
            assert client.post(path, params={"status": 202}).status_code == 202
    with db():
        with db.session.begin_nested():
            db.session.add(User(name="in a block"))
        assert len(store.users()) == 3
    assert store.users() == ["sync 202", "sync 202 again", "async 202"]


def test_a_savepoint_on_a_custom_sqlite_engine_is_rolled_back_too(
    sqlite: Backend, tables: Callable[[Backend], Backend], db: Database
) -> None:
    engine = create_engine(tables(sqlite).url)
    in_autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    db.configure(custom_engine=engine)
    with db():
        with db.session.begin_nested():
            db.session.add(User(name="rolled back"))
    with db(session_args={"bind": in_autocommit}):
        with db.session.begin_nested():
            db.session.add(User(name="kept"))
    engine.dispose()
    assert sqlite.rows("SELECT name FROM users") == [("kept",)]


@pytest.mark.parametrize("way", ["route", "async_route", "block", "engine"])
def test_a_commit_that_sqlite_refuses_leaves_nothing_for_the_next_one(
    serve: Serve, sqlite_store: Store, way: str
) -> None:
    """Somebody reads, and the transaction stays open: its connection goes back to the pool."""
    store = sqlite_store
    app = store.app(commit_on_exit=True, engine_args={"connect_args": {"timeout": 0.1}})

    @app.post("/route/{name}")
    def route(name: str) -> None:
        store.db.session.execute(insert(User).values(name=name))

    @app.post("/async_route/{name}")
    async def async_route(name: str) -> None:
        await store.db.async_session.execute(insert(User).values(name=name))

    @app.post("/block/{name}")
    def block(name: str) -> None:
        with store.db(commit_on_exit=True):
            store.db.session.execute(insert(User).values(name=name))

    @app.post("/engine/{name}")
    def engine(name: str) -> None:
        with store.db.engine.begin() as connection:
            connection.execute(insert(User).values(name=name))

    store.backend.execute("INSERT INTO users (name) VALUES ('ann'), ('bob')")
    with client_of(serve, app) as client:
        with closing(sqlite3.connect(str(store.backend.location.database))) as reader:
            with closing(reader.execute("SELECT name FROM users")) as rows:
                rows.fetchone()
                assert client.post(f"/{way}/lost").status_code == 500
        for other in ("route", "async_route", "engine"):
            assert client.post(f"/{other}/kept").status_code == 200
    assert sorted(store.users()) == ["ann", "bob", "kept", "kept", "kept"]


@pytest.mark.parametrize(
    "statement",
    [
        insert(User).from_select(["name"], select(select(literal("x").label("x")).cte("made").c.x)),
        update(User)
        .where(User.id.in_(select(select(literal(1).label("n")).cte("made").c.n)))
        .values(name="x"),
        text("-- a comment\n/* another */ WITH made AS (SELECT 1) DELETE FROM users"),
    ],
    ids=["insert", "update", "text"],
)
def test_what_writes_by_with_is_rolled_back_too(
    serve: Serve, sqlite_store: Store, statement: Any
) -> None:
    store, db = sqlite_store, sqlite_store.db
    store.backend.execute("INSERT INTO users (name) VALUES ('ann')")
    app = store.app(commit_on_exit=True)

    @app.post("/sync")
    def sync_route(status: int) -> None:
        db.session.execute(statement)
        raise HTTPException(status)

    @app.post("/async")
    async def async_route(status: int) -> None:
        await db.async_session.execute(statement)
        raise HTTPException(status)

    @app.post("/driver")
    def driver_route(status: int) -> None:
        connection = db.session.connection()
        connection.exec_driver_sql("WITH made AS (SELECT 1) DELETE FROM users WHERE id > ?", (0,))
        raise HTTPException(status)

    with client_of(serve, app) as client:
        for path in ("/sync", "/async", "/driver"):
            assert client.post(path, params={"status": 409}).status_code == 409
        assert store.users() == ["ann"]
        assert client.post("/async", params={"status": 202}).status_code == 202
    assert store.users() != ["ann"]


def test_a_savepoint_that_is_still_open_owns_nothing(serve: Serve, store: Store) -> None:
    db = store.db
    app = store.app(commit_on_exit=True)

    def open_savepoint() -> Iterator[None]:
        with db.session.begin_nested():
            yield

    @app.post("/", dependencies=[Depends(open_savepoint)])
    def route() -> int:
        db.session.add(User(name="inside"))
        return 1

    with client_of(serve, app) as client:
        assert client.post("/").status_code == 200
        assert store.users() == ["inside"]


def test_a_begin_block_that_is_still_open_owns_its_transaction(serve: Serve, store: Store) -> None:
    db = store.db
    at_response: list[list[str]] = []
    app = store.app(commit_on_exit=True)

    def sync_owner() -> Iterator[None]:
        with db.session.begin():
            yield
            at_response.append(store.users())

    async def async_owner() -> Any:
        async with db.async_session.begin():
            yield
            at_response.append(store.users())

    @app.post("/sync", dependencies=[Depends(sync_owner)])
    def sync_route() -> int:
        db.session.add(User(name="sync"))
        with db.session.begin_nested():
            db.session.add(User(name="nested"))
        return 1

    @app.post("/async", dependencies=[Depends(async_owner)])
    async def async_route() -> int:
        db.async_session.add(User(name="async"))
        return 1

    with client_of(serve, app) as client:
        for path in ("/sync", "/async"):
            assert client.post(path).status_code == 200
            store.assert_settled()
    assert at_response == [[], ["sync", "nested"]]
    assert store.users() == ["sync", "nested", "async"]


def test_sqlalchemy_still_marks_the_transaction_of_an_open_begin_block() -> None:
    """`Activity.in_own_block` rests on this private attribute."""
    session = Session()
    assert session._trans_context_manager is None
    with session.begin() as transaction:
        assert session._trans_context_manager is transaction
    assert session._trans_context_manager is None
    session.begin()
    assert session._trans_context_manager is None
    session.close()


def test_event_listeners_of_the_commit_can_use_the_session(
    serve: Serve, postgresql_store: Store
) -> None:
    db = postgresql_store.db
    audited = []

    class Audited(Session):
        pass

    @event.listens_for(Audited, "before_commit")
    def audit(session: Session) -> None:
        audited.append(db.session is session)

    app = postgresql_store.app(commit_on_exit=True, session_args={"class_": Audited})

    @app.post("/")
    def route() -> int:
        db.session.add(User(name="ann"))
        return 1

    with client_of(serve, app) as client:
        assert client.post("/").status_code == 200
    with db(commit_on_exit=True):
        db.session.add(User(name="bob"))
    assert audited == [True, True]
    assert postgresql_store.users() == ["ann", "bob"]


def test_what_listens_to_commits_hears_none_of_an_error_response(
    serve: Serve, async_store: Store
) -> None:
    db = async_store.db
    heard: list[Session] = []

    class Audited(Session): ...

    @event.listens_for(Audited, "before_commit")
    def audit(session: Session) -> None:
        heard.append(session)
        session.add(User(name="audit"))

    app = async_store.app(
        commit_on_exit=True,
        session_args={"class_": Audited},
        async_session_args={"sync_session_class": Audited},
    )

    @app.get("/sync")
    def read() -> None:
        raise HTTPException(404, db.session.scalars(select(User.name)).all())

    @app.get("/async")
    async def read_async() -> None:
        raise HTTPException(404, (await db.async_session.scalars(select(User.name))).all())

    with client_of(serve, app) as client:
        for path in ("/sync", "/async"):
            assert client.get(path).json() == {"detail": []}
    assert (heard, async_store.users()) == ([], [])


def test_a_request_that_wrote_through_both_sessions_commits_both(
    serve: Serve, postgresql_store: Store
) -> None:
    db = postgresql_store.db
    app = postgresql_store.app(commit_on_exit=True)

    @app.post("/")
    async def route() -> int:
        db.session.add(User(name="sync"))
        db.async_session.add(User(name="async"))
        return 1

    with client_of(serve, app) as client:
        assert client.post("/").status_code == 200
    assert sorted(postgresql_store.users()) == ["async", "sync"]


def test_where_the_second_commit_fails_the_error_says_that_the_first_is_committed(
    serve: Serve, postgresql_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    db = postgresql_store.db
    app = postgresql_store.app(commit_on_exit=True)

    @app.post("/late")
    async def late() -> int:
        db.session.add(User(name="sync"))
        db.async_session.add(Membership(user_id=4711))  # fails at COMMIT
        return 1

    @app.post("/early")
    async def early() -> int:
        db.session.add(User(name="never"))
        db.async_session.add(User(id=1, name="taken"))  # fails when it is flushed
        return 1

    with client_of(serve, app) as client, caplog.at_level(logging.ERROR, "fastapi_sqlalchemy"):
        assert client.post("/late").status_code == 500
        assert postgresql_store.users() == ["sync"]
        assert "POST /late wrote through db.session and db.async_session" in caplog.text
        assert "is committed" in caplog.text
        caplog.clear()
        assert client.post("/early").status_code == 500
        assert postgresql_store.users() == ["sync"]
        assert caplog.text == ""
        postgresql_store.assert_settled()


def test_background_tasks_read_loaded_objects_without_a_further_select(
    serve: Serve, store: Store
) -> None:
    """Without commit_on_exit: a rollback at the response would expire them."""
    db = store.db
    store.backend.execute("INSERT INTO users (id, name) VALUES (1, 'ann')")
    names: list[str] = []
    statements: list[str] = []
    app = store.app()

    @app.get("/")
    def route(tasks: BackgroundTasks) -> int:
        user = db.session.scalars(select(User)).one()

        def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            statements.append(statement)

        event.listen(db.engine, "before_cursor_execute", count)
        tasks.add_task(lambda: names.append(user.name))
        return 1

    with client_of(serve, app) as client:
        assert client.get("/").status_code == 200
        store.assert_settled()
    assert names == ["ann"]
    assert statements == []


def test_a_background_task_can_use_the_session_of_its_request(serve: Serve, store: Store) -> None:
    db = store.db
    found: list[list[str]] = []
    app = store.app(commit_on_exit=True)

    def work() -> None:
        found.append(list(db.session.scalars(select(User.name))))
        db.session.add(User(name="background"))
        db.session.commit()

    @app.post("/")
    def route(tasks: BackgroundTasks) -> int:
        db.session.add(User(name="route"))
        tasks.add_task(work)
        return 1

    with client_of(serve, app) as client:
        assert client.post("/").status_code == 200
    assert found == [["route"]]
    assert store.users() == ["route", "background"]


def test_an_async_background_task_can_use_the_session_of_its_request(
    serve: Serve, async_store: Store
) -> None:
    db = async_store.db
    found: list[list[str]] = []
    app = async_store.app(commit_on_exit=True)

    async def work() -> None:
        found.append(list(await db.async_session.scalars(select(User.name))))
        db.async_session.add(User(name="background"))
        await db.async_session.commit()

    @app.post("/")
    async def route(tasks: BackgroundTasks) -> int:
        db.async_session.add(User(name="route"))
        tasks.add_task(work)
        return 1

    with client_of(serve, app) as client:
        assert client.post("/").status_code == 200
        async_store.assert_settled()
    assert found == [["route"]]
    assert async_store.users() == ["route", "background"]


def test_a_commit_that_takes_long_stops_nobody_else(serve: Serve, postgresql_store: Store) -> None:
    """The lock that the COMMIT waits for is released only after pings were answered."""
    store = postgresql_store
    db = store.db
    at_commit(store.backend, "PERFORM pg_advisory_xact_lock(42)")
    app = store.app(commit_on_exit=True)

    @app.post("/sync")
    def sync_route() -> int:
        db.session.add(User(name="sync"))
        return 1

    @app.post("/async")
    async def async_route() -> int:
        db.async_session.add(User(name="async"))
        return 1

    @app.get("/ping")
    async def ping() -> str:
        return "pong"

    _run_behind_a_lock(serve, store, app)
    assert store.users() == ["sync", "async"]


def _run_behind_a_lock(serve: Serve, store: Store, app: FastAPI) -> None:
    waiting = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event = 'advisory' AND query LIKE 'COMMIT%'"
    )
    engine = create_engine(store.backend.url)
    with client_of(serve, app) as client, ThreadPoolExecutor() as threads:
        for path in ("/sync", "/async"):
            with engine.connect() as holder:
                holder.execute(text("SELECT pg_advisory_lock(42)"))
                answer = threads.submit(client.post, path)
                wait_until(lambda: store.backend.rows(waiting), "the COMMIT waits")
                for _ in range(20):
                    assert client.get("/ping").json() == "pong"
                assert store.backend.rows(waiting), "the COMMIT still waits"
                assert not answer.done()
                holder.execute(text("SELECT pg_advisory_unlock(42)"))
            assert answer.result(60).status_code == 200
            store.assert_settled()
    engine.dispose()


def test_a_connection_that_the_server_ends_before_the_commit_is_answered_500(
    serve: Serve, async_postgresql_store: Store
) -> None:
    store = async_postgresql_store
    db = store.db
    app = store.app(commit_on_exit=True)
    end_me = "SELECT pg_terminate_backend({})"

    @app.post("/sync")
    def sync_route() -> int:
        db.session.add(User(name="lost"))
        db.session.flush()
        pid = db.session.scalar(text("SELECT pg_backend_pid()"))
        store.backend.rows(end_me.format(pid))
        return 1

    @app.post("/async")
    async def async_route() -> int:
        db.async_session.add(User(name="lost"))
        await db.async_session.flush()
        pid = await db.async_session.scalar(text("SELECT pg_backend_pid()"))
        store.backend.rows(end_me.format(pid))
        return 1

    @app.get("/")
    async def again() -> list[str]:
        users = list(db.session.scalars(select(User.name)))
        return users + list(await db.async_session.scalars(select(User.name)))

    with client_of(serve, app) as client:
        for path in ("/sync", "/async"):
            assert client.post(path).status_code == 500, path
            store.assert_settled()
            assert client.get("/").json() == []
