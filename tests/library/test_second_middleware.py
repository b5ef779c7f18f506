"""Two `DBSessionMiddleware` on one app, as a conftest that adds the test database writes it."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import URL, select
from sqlalchemy.orm import Session
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response

from fastapi_sqlalchemy import Database, DBSessionMiddleware
from fastapi_sqlalchemy.app_binding import bind_app
from fastapi_sqlalchemy.exceptions import ConfigurationError
from support.backends import SQLite
from support.models import User, create_tables


@pytest.fixture
def prod(tmp_path: Path) -> SQLite:
    backend = SQLite(URL.create("sqlite", database=str(tmp_path / "prod.db")))
    create_tables(backend)
    return backend


@pytest.fixture
def test(tmp_path: Path) -> SQLite:
    backend = SQLite(URL.create("sqlite", database=str(tmp_path / "test.db")))
    create_tables(backend)
    return backend


@pytest.fixture
def app(db: Database, prod: SQLite, test: SQLite) -> FastAPI:
    app = FastAPI()

    @app.post("/")
    def create() -> int:
        db.session.add(User(name="ann"))
        return 1

    app.add_middleware(DBSessionMiddleware, db_url=prod.url, commit_on_exit=True, db=db)
    app.add_middleware(DBSessionMiddleware, db_url=test.url, commit_on_exit=True, db=db)
    return app


def names(backend: SQLite) -> list[str]:
    return [name for (name,) in backend.rows("SELECT name FROM users")]


@pytest.mark.parametrize("between", [False, True], ids=["side by side", "one between"])
def test_the_outermost_middleware_serves_the_requests_and_the_log_names_both(
    app: FastAPI,
    db: Database,
    prod: SQLite,
    test: SQLite,
    between: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if between:
        outermost = app.user_middleware.pop(0)

        @app.middleware("http")
        async def pass_on(request: Request, call_next: object) -> Response:
            return await call_next(request)  # type: ignore[operator,no-any-return]

        app.user_middleware.insert(0, outermost)
    with TestClient(app) as client:
        for _ in range(3):
            assert client.post("/").status_code == 200
    assert names(prod) == []
    assert names(test) == ["ann"] * 3
    assert caplog.text.count("two DBSessionMiddleware for one db") == 1
    assert "test.db, the outermost" in caplog.text
    assert "prod.db does not" in caplog.text
    with db():
        assert db.session.scalars(select(User.name)).all() == ["ann"] * 3


def test_outside_requests_it_is_the_same_one_before_anything_is_built(
    app: FastAPI, db: Database, test: SQLite
) -> None:
    with db(commit_on_exit=True):
        db.session.add(User(name="script"))
    assert names(test) == ["script"]


def test_fsa_binds_the_same_one(app: FastAPI, db: Database, test: SQLite) -> None:
    bind_app(app)
    assert db.url is not None
    assert db.url.render_as_string() == test.url


def test_a_mounted_app_keeps_its_own_database(db: Database, prod: SQLite, test: SQLite) -> None:
    def app_on(backend: SQLite) -> FastAPI:
        app = FastAPI()
        app.add_middleware(DBSessionMiddleware, db_url=backend.url, commit_on_exit=True, db=db)

        @app.post("/")
        def create() -> int:
            db.session.add(User(name="ann"))
            return 1

        return app

    app = app_on(prod)
    app.mount("/mounted", app_on(test))
    with TestClient(app) as client:
        client.post("/mounted/")
    assert (names(prod), names(test)) == ([], ["ann"])


def test_a_middleware_around_the_whole_app_serves_it(
    app: FastAPI, db: Database, prod: SQLite, test: SQLite, tmp_path: Path
) -> None:
    del app.user_middleware[0]
    with TestClient(DBSessionMiddleware(app, test.url, commit_on_exit=True, db=db)) as client:
        client.post("/")
    assert (names(prod), names(test)) == ([], ["ann"])


def test_two_databases_of_one_name_are_refused(prod: SQLite, test: SQLite) -> None:
    app = FastAPI()
    for backend in (prod, test):
        app.add_middleware(DBSessionMiddleware, db_url=backend.url, db=Database("reports"))
    with pytest.raises(ConfigurationError, match="Two databases of this app are named 'reports'"):
        bind_app(app)


def test_a_subclass_with_a_dispatch_is_refused_when_it_is_made() -> None:
    with pytest.raises(TypeError, match=r"Mine\.dispatch\(\) would never be called"):

        class Mine(DBSessionMiddleware):
            async def dispatch(self, request: Request, call_next: object) -> None: ...

    class Timed(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: object) -> Response:
            return await call_next(request)  # type: ignore[operator,no-any-return]

    class Fine(DBSessionMiddleware):
        session: Session
