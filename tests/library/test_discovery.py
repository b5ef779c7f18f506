"""`with db():` right after `add_middleware`, before anything is built."""

from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine, select
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from fastapi_sqlalchemy import Database, DBSessionMiddleware, SessionNotInitialisedError
from fastapi_sqlalchemy.app_binding import bind_app
from support.models import Base, User


def test_a_block_right_after_add_middleware_uses_its_arguments(db: Database) -> None:
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite://", commit_on_exit=True, db=db)
    with db():
        Base.metadata.create_all(db.session.connection())
        db.session.add(User(name="ann"))
        db.session.commit()

    @app.get("/users")
    def names() -> list[str]:
        return list(db.session.scalars(select(User.name)))

    assert app.middleware_stack is None
    assert TestClient(app).get("/users").json() == ["ann"]


@pytest.mark.parametrize("kind", ["positional", "custom engine", "async url", "in the constructor"])
def test_every_way_to_name_the_database_is_found(kind: str, db: Database) -> None:
    engine = create_engine("sqlite://")
    app: Starlette = Starlette()
    if kind == "positional":
        app.add_middleware(DBSessionMiddleware, "sqlite:///a.db", db=db)
    elif kind == "custom engine":
        app.add_middleware(DBSessionMiddleware, custom_engine=engine, db=db)
    elif kind == "async url":
        app.add_middleware(DBSessionMiddleware, async_db_url="sqlite+aiosqlite:///a.db", db=db)
    else:
        app = Starlette(middleware=[Middleware(DBSessionMiddleware, "sqlite:///a.db", db=db)])
    app.add_middleware(GZipMiddleware)
    with db():
        assert db.url is not None
    if kind == "custom engine":
        assert db.engine is engine
    engine.dispose()
    del app


def test_a_subclass_that_passes_its_arguments_on_is_found(db: Database) -> None:
    class OwnMiddleware(DBSessionMiddleware):
        def __init__(self, app: ASGIApp, **arguments: Any) -> None:
            super().__init__(app, **arguments)

    app = FastAPI()
    app.add_middleware(OwnMiddleware, db_url="sqlite:///own.db", db=db)
    with db():
        assert str(db.url) == "sqlite:///own.db"
    del app


def test_equal_arguments_of_several_apps_are_one(db: Database) -> None:
    apps = [FastAPI(), FastAPI()]
    for app in apps:
        app.add_middleware(DBSessionMiddleware, db_url="sqlite://", db=db)
    with db():
        assert db.session.scalar(select(1)) == 1
    del apps


def test_several_different_apps_are_listed_with_their_passwords_masked(db: Database) -> None:
    apps = [FastAPI(), FastAPI(), FastAPI()]
    for app, url in zip(
        apps,
        ("postgresql://ann:secret@one/d", "postgresql://bob:secret@other/d", "sqlite:///c.db"),
        strict=True,
    ):
        app.add_middleware(DBSessionMiddleware, db_url=url, db=db)
    with pytest.raises(SessionNotInitialisedError) as caught:
        _ = db.session
    message = str(caught.value)
    for url in ("postgresql://ann:***@one/d", "postgresql://bob:***@other/d", "sqlite:///c.db"):
        assert url in message
    assert "db.configure(db_url=...)" in message
    assert "secret" not in message
    db.configure("sqlite://")  # what the message says is a way out
    with db():
        assert db.session.scalar(select(1)) == 1
    del apps


def test_an_app_that_is_gone_has_no_say(db: Database) -> None:
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///gone.db", db=db)
    del app
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///here.db", db=db)
    with db():
        assert str(db.url) == "sqlite:///here.db"


def test_another_databases_middleware_is_not_ours(db: Database) -> None:
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite://", db=Database("other"))
    with pytest.raises(SessionNotInitialisedError), db():
        pass
    del app


def test_where_nothing_was_added_the_error_says_what_to_write(db: Database) -> None:
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db=db)  # of a database that was never configured
    for use in (lambda: db.session, lambda: db.async_session, lambda: db.engine):
        with pytest.raises(SessionNotInitialisedError, match=r"app\.add_middleware") as caught:
            use()
        assert "db.configure(db_url=" in str(caught.value)
    del app


def test_what_is_found_is_used_from_then_on(db: Database) -> None:
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite://", db=db)
    with db():
        Base.metadata.create_all(db.session.connection())
        db.session.commit()
    del app
    with db():
        assert db.session.scalars(select(User.name)).all() == []
    assert db.is_configured


def test_bind_app_configures_what_the_middlewares_name_and_builds_nothing() -> None:
    own, reports = Database("own"), Database("reports")
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///own.db", db=own)
    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///reports.db", db=reports)
    app.add_middleware(GZipMiddleware)
    bound = bind_app(app, {"reports": "sqlite:///other.db"})
    assert {"own": own, "reports": reports}.items() <= bound.items()
    assert (str(own.url), str(reports.url)) == ("sqlite:///own.db", "sqlite:///other.db")
    assert app.middleware_stack is None


def test_bind_app_replaces_the_url_for_the_middleware_that_is_built_later_too(
    db: Database,
) -> None:
    app = FastAPI()
    app.add_middleware(
        DBSessionMiddleware, "sqlite:///own.db", None, {"echo": False}, commit_on_exit=True, db=db
    )
    bind_app(app, {"test": "sqlite://"})
    Base.metadata.create_all(db.engine)

    @app.post("/users/{name}")
    def add(name: str) -> None:
        db.session.add(User(name=name))

    assert TestClient(app).post("/users/ann").status_code == 200
    with db():
        assert db.session.scalars(select(User.name)).all() == ["ann"]


def test_bind_app_replaces_the_url_of_a_subclass_that_passes_its_arguments_on(
    db: Database,
) -> None:
    class OwnMiddleware(DBSessionMiddleware):
        def __init__(self, app: ASGIApp, **arguments: Any) -> None:
            super().__init__(app, **arguments)

    app = FastAPI()
    app.add_middleware(OwnMiddleware, db_url="sqlite:///own.db", commit_on_exit=True, db=db)
    bind_app(app, {"test": "sqlite:///other.db"})
    assert TestClient(app).get("/").status_code == 404  # it is built now
    assert str(db.url) == "sqlite:///other.db"
