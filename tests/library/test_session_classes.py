"""Session classes with methods of their own, which execute statements at unusual moments."""

import logging
from typing import Any

import pytest
from fastapi import HTTPException
from sqlalchemy import event, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from support.models import User
from support.stores import Store
from support.web import Serve, client_of

ONE = select(func.count()).select_from(User)


class ReadsWhenMade(Session):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute(ONE)


class WritesWhenMade(Session):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connection(execution_options={"stream_results": False})
        self.add(User(name="made"))
        self.flush()


class ReadsBeforeClose(Session):
    def close(self) -> None:
        self.execute(ONE)
        super().close()


class ReadsAfterClose(Session):
    def close(self) -> None:
        super().close()
        self.execute(ONE)


class ReadsAfterCommit(Session):
    def commit(self) -> None:
        super().commit()
        self.execute(ONE)


class ReadsAfterRollback(Session):
    def rollback(self) -> None:
        super().rollback()
        self.execute(ONE)


class AsyncReadsBeforeClose(AsyncSession):
    async def close(self) -> None:
        await self.execute(ONE)
        await super().close()


class AsyncReadsAfterClose(AsyncSession):
    async def close(self) -> None:
        await super().close()
        await self.execute(ONE)


class AsyncReadsAfterRollback(AsyncSession):
    async def rollback(self) -> None:
        await super().rollback()
        await self.execute(ONE)


@pytest.mark.parametrize(
    "class_",
    [ReadsWhenMade, ReadsBeforeClose, ReadsAfterClose, ReadsAfterCommit, ReadsAfterRollback],
)
def test_a_class_executes_statements_whenever_it_likes(
    serve: Serve, store: Store, class_: type[Session], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fastapi_sqlalchemy")
    db, app = store.db, store.app(commit_on_exit=True, session_args={"class_": class_})

    @app.post("/")
    def write(name: str, status: int) -> None:
        db.session.add(User(name=name))
        db.session.flush()
        raise HTTPException(status)

    @app.get("/")
    def read() -> int | None:
        return db.session.scalar(ONE)

    @app.get("/touched")
    def touch() -> None:
        assert db.session is not None

    with client_of(serve, app) as client:
        assert client.post("/", params={"name": "kept", "status": 202}).status_code == 202
        assert client.post("/", params={"name": "lost", "status": 409}).status_code == 409
        assert client.get("/").json() == 1
        assert client.get("/touched").status_code == 200
        store.assert_settled()
    with db(commit_on_exit=True):
        db.session.add(User(name="in a block"))
    with db():
        assert db.session.scalar(ONE) == 2
    store.assert_settled()
    assert caplog.messages == []


@pytest.mark.parametrize(
    "class_", [AsyncReadsBeforeClose, AsyncReadsAfterClose, AsyncReadsAfterRollback]
)
def test_an_async_class_executes_statements_whenever_it_likes(
    serve: Serve, async_store: Store, class_: type[AsyncSession], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fastapi_sqlalchemy")
    db, app = async_store.db, async_store.app(commit_on_exit=True, session_args={"class_": class_})

    @app.post("/")
    async def write(name: str, status: int) -> None:
        db.async_session.add(User(name=name))
        await db.async_session.flush()
        raise HTTPException(status)

    @app.get("/")
    async def read() -> int | None:
        return await db.async_session.scalar(ONE)

    @app.get("/touched")
    async def touch() -> None:
        assert db.async_session is not None

    with client_of(serve, app) as client:
        assert client.post("/", params={"name": "kept", "status": 202}).status_code == 202
        assert client.post("/", params={"name": "lost", "status": 409}).status_code == 409
        assert client.get("/").json() == 1
        assert client.get("/touched").status_code == 200
        async_store.assert_settled()
    assert caplog.messages == []


def test_what_a_class_writes_when_it_is_made_counts_as_written(store: Store) -> None:
    db = store.configure(session_args={"class_": WritesWhenMade})
    with db():
        assert db.session.in_transaction()
        assert db.uncommitted
    assert store.users() == []
    with db.sandbox(), db(commit_on_exit=True):
        assert db.session.scalar(ONE) == 1
    assert store.users() == []
    with db(commit_on_exit=True):
        assert db.session.in_transaction()
    assert store.users() == ["made"]


def test_a_listener_that_fails_after_the_commit_is_no_failed_rollback(
    serve: Serve, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fastapi_sqlalchemy")
    db, app = store.db, store.app(commit_on_exit=True)

    def fail(session: Session) -> None:
        raise ZeroDivisionError

    @app.post("/sync")
    def sync_route() -> None:
        event.listen(db.session, "after_commit", fail)
        db.session.add(User(name="sync"))

    @app.post("/async")
    async def async_route() -> None:
        event.listen(db.async_session.sync_session, "after_commit", fail)
        db.async_session.add(User(name="async"))

    with client_of(serve, app) as client:
        assert client.post("/sync").status_code == 500
        assert client.post("/async").status_code == 500
        store.assert_settled()
    assert store.users() == ["sync", "async"]
    assert caplog.messages == []
