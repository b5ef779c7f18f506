"""`db` itself: what it says of itself, and what it takes."""

import inspect
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import fastapi_sqlalchemy
from fastapi_sqlalchemy import (
    Database,
    DBSessionMiddleware,
    MissingSessionError,
    SessionNotInitialisedError,
)
from support.backends import Backend


def test_configure_and_the_middleware_take_the_same_arguments() -> None:
    configure = dict(inspect.signature(Database.configure).parameters)
    middleware = dict(inspect.signature(DBSessionMiddleware).parameters)
    del configure["self"], middleware["app"], middleware["db"]
    assert list(configure) == list(middleware)
    for name, parameter in configure.items():
        assert (parameter.default, parameter.kind) == (
            middleware[name].default,
            middleware[name].kind,
        )


def test_configuring_connects_nowhere(db: Database) -> None:
    db.configure("postgresql+psycopg://nobody@127.0.0.1:1/nowhere")
    with db():
        assert isinstance(db.session, Session)
    assert db._binding().engines.made().keys() <= {"sync"}


def test_what_it_prints_has_no_password(db: Database) -> None:
    assert repr(db) == "<Database 'test': not configured>"
    db.configure("postgresql://ann:secret@h/d?sslmode=require&password=secret")
    assert repr(db) == "<Database 'test': postgresql://ann:***@h/d?password=***&sslmode=require>"


def test_the_url_of_an_app_that_has_not_started_is_known(db: Database) -> None:
    assert db.url is None
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db", db=db)
    assert str(db.url) == "sqlite:///shop.db"


def test_a_url_object_is_taken_as_it_is(db: Database) -> None:
    url = make_url("sqlite:///shop.db")
    db.configure(url)
    assert db.url == url


def test_asking_outside_says_what_is_missing(db: Database) -> None:
    for ask in (lambda: db.session, lambda: db.async_session):
        with pytest.raises(SessionNotInitialisedError):
            ask()
    db.configure("sqlite://")
    for ask in (lambda: db.session, lambda: db.async_session):
        with pytest.raises(MissingSessionError, match=r"with db\(\):"):
            ask()


async def test_pool_status_counts_the_connections_of_both_sides(
    postgresql: Backend, db: Database
) -> None:
    db.configure(postgresql.url, engine_args={"pool_size": 2, "max_overflow": 3})
    assert db.pool_status() == {}
    async with db():
        db.session.connection()
        async with db():
            await db.async_session.connection()
            assert db.pool_status() == {
                "sync": {"size": 2, "checked_in": 0, "checked_out": 1, "overflow": 0},
                "async": {"size": 2, "checked_in": 0, "checked_out": 1, "overflow": 0},
            }
        assert db.pool_status()["async"]["checked_in"] == 1
        assert db.pool_status()["async"]["checked_out"] == 0
    await db.adispose()


async def test_dispose_closes_the_idle_connections_and_leaves_the_engines_usable(
    backend: Backend, db: Database
) -> None:
    db.configure(backend.url)
    for _ in range(2):
        async with db():
            await db.async_session.scalar(select(1))
        with db():
            db.session.scalar(select(1))
        await db.adispose()
        backend.assert_released()
    with db():
        db.session.scalar(select(1))
    db.dispose()
    backend.assert_released()


async def test_a_connection_in_use_while_its_engine_is_disposed_is_closed_when_given_back(
    backend: Backend, db: Database
) -> None:
    db.configure(backend.url)
    async with db():
        await db.async_session.scalar(select(1))
        db.session.scalar(select(1))
        await db.adispose()
        assert await db.async_session.scalar(select(1)) == 1
        assert db.session.scalar(select(1)) == 1
        assert backend.connections() >= 1
    backend.assert_released()


def test_dispose_leaves_custom_engines_alone(postgresql: Backend, db: Database) -> None:
    engine = create_engine(postgresql.url)
    db.configure(custom_engine=engine)
    with db():
        db.session.scalar(select(1))
    db.dispose()
    assert postgresql.connections() == 1
    engine.dispose()


def test_the_global_db_is_the_default_one() -> None:
    assert isinstance(fastapi_sqlalchemy.db, Database)
    assert fastapi_sqlalchemy.db.name == "default"


async def test_the_two_sessions_are_what_they_are_called(db: Database) -> None:
    db.configure("sqlite://")
    async with db() as same:
        assert same is db
        assert isinstance(db.session, Session)
        assert isinstance(db.async_session, AsyncSession)
    with db() as same_again:
        assert same_again is db
    await db.adispose()


def test_arguments_are_copied(db: Database) -> None:
    engine_args: dict[str, Any] = {"pool_size": 2}
    db.configure("sqlite://", engine_args=engine_args)
    engine_args["pool_size"] = 7
    assert db.engine.pool.size() == 2  # type: ignore[attr-defined]
