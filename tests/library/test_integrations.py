"""Other packages on our sessions and engines."""

from collections.abc import Callable
from textwrap import dedent

import pytest
import sqlmodel
from fastapi import FastAPI
from fastapi_pagination import Page, add_pagination
from fastapi_pagination.ext.sqlalchemy import apaginate, paginate
from pydantic import BaseModel
from sqlalchemy import select
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelAsyncSession
from starlette.testclient import TestClient

from fastapi_sqlalchemy import Database, DBSessionMiddleware
from support.backends import Backend
from support.models import User
from support.processes import Run


class Hero(sqlmodel.SQLModel, table=True):
    id: int | None = sqlmodel.Field(default=None, primary_key=True)
    name: str


def test_sqlmodels_sessions_on_both_sides(backend: Backend, db: Database) -> None:
    app = FastAPI()
    app.add_middleware(
        DBSessionMiddleware,
        db_url=backend.url,
        session_args={"class_": sqlmodel.Session},
        async_session_args={"class_": SQLModelAsyncSession},
        commit_on_exit=True,
        db=db,
    )
    with db():
        Hero.metadata.create_all(db.engine, tables=[Hero.__table__])  # type: ignore[attr-defined]

    @app.post("/heroes/{name}")
    def add(name: str) -> None:
        assert isinstance(db.session, sqlmodel.Session)
        db.session.add(Hero(name=name))

    @app.get("/heroes")
    def names() -> list[str]:
        assert isinstance(db.session, sqlmodel.Session)
        return [hero.name for hero in db.session.exec(sqlmodel.select(Hero))]

    @app.get("/async-heroes")
    async def async_names() -> list[str]:
        assert isinstance(db.async_session, SQLModelAsyncSession)
        return [hero.name for hero in await db.async_session.exec(sqlmodel.select(Hero))]

    with TestClient(app) as client:
        assert client.post("/heroes/ann").status_code == 200
        assert client.get("/heroes").json() == ["ann"]
        assert client.get("/async-heroes").json() == ["ann"]
    backend.assert_released()


async def test_sqlmodels_async_session_as_the_class_of_session_args(db: Database) -> None:
    db.configure("sqlite://", session_args={"class_": SQLModelAsyncSession})
    async with db():
        assert isinstance(db.async_session, SQLModelAsyncSession)
        assert (await db.async_session.exec(sqlmodel.select(1))).one() == 1
    await db.adispose()


class UserOut(BaseModel, from_attributes=True):
    name: str


def test_fastapi_pagination_pages_through_our_sessions(
    backend: Backend, tables: Callable[[Backend], Backend], db: Database
) -> None:
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url=tables(backend).url, db=db)

    @app.get("/users")
    def users() -> Page[UserOut]:
        return paginate(db.session, select(User).order_by(User.id))  # type: ignore[no-any-return]

    @app.get("/async-users")
    async def async_users() -> Page[UserOut]:
        return await apaginate(db.async_session, select(User).order_by(User.id))  # type: ignore[no-any-return]

    add_pagination(app)
    with db(commit_on_exit=True):
        db.session.add_all([User(name=f"user {number}") for number in range(7)])
    with TestClient(app) as client:
        for path in ("/users", "/async-users"):
            page = client.get(path, params={"page": 2, "size": 3}).json()
            assert page["total"] == 7
            assert [item["name"] for item in page["items"]] == ["user 3", "user 4", "user 5"]
    backend.assert_released()


# Its check of versions refuses SQLAlchemy 2.1 (0.66b1 instruments "sqlalchemy < 2.1.0"), which it
# instruments well.
TRACED = """
    import asyncio
    import sys

    from opentelemetry import trace
    from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    url, when = sys.argv[1:]
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

    if when == "before":
        SQLAlchemyInstrumentor().instrument(skip_dep_check=True)
    from sqlalchemy import text
    from fastapi_sqlalchemy import db
    if when == "after":
        SQLAlchemyInstrumentor().instrument(skip_dep_check=True)

    db.configure(url)
    with db():
        db.session.execute(text("SELECT 1 AS of_sync"))

    async def asynchronous():
        async with db():
            await db.async_session.execute(text("SELECT 2 AS of_async"))

    asyncio.run(asynchronous())
    db.dispose()
    for span in exporter.get_finished_spans():
        print(dict(span.attributes).get("db.statement"))
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_opentelemetry_sees_both_engines_instrumented_before_or_after_our_import(
    when: str, postgresql: Backend, python: Run
) -> None:
    done = python("-c", dedent(TRACED), postgresql.url, when)
    assert done.returncode == 0, done.stderr
    statements = done.stdout.splitlines()
    assert "SELECT 1 AS of_sync" in statements
    assert "SELECT 2 AS of_async" in statements
