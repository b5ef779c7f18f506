"""In a sandbox, the two sessions of one scope end in any order."""

import logging
from collections.abc import Callable

import pytest
from sqlalchemy import func, select

from fastapi_sqlalchemy import Database
from support.backends import Backend
from support.models import User


@pytest.fixture
def stored(backend: Backend, tables: Callable[[Backend], Backend], db: Database) -> Backend:
    db.configure(tables(backend).url)
    return backend


async def count(db: Database) -> int | None:
    return await db.async_session.scalar(select(func.count()).select_from(User))


@pytest.mark.parametrize("first", ["session", "async_session"])
async def test_both_sessions_commit_and_roll_back_in_any_order(
    stored: Backend, db: Database, first: str
) -> None:
    async with db.sandbox():
        async with db():
            for ending in ("commit", "rollback", "commit"):
                if first == "session":
                    db.session.add(User(name="one"))
                    db.session.flush()
                    db.async_session.add(User(name="two"))
                    await db.async_session.flush()
                else:
                    db.async_session.add(User(name="two"))
                    await db.async_session.flush()
                    db.session.add(User(name="one"))
                    db.session.flush()
                getattr(db.session, ending)()
                await getattr(db.async_session, ending)()
            assert await count(db) == 4
    assert stored.rows("SELECT count(*) FROM users") == [(0,)]


async def test_a_scope_ends_with_both_sessions_open(
    stored: Backend, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with db.sandbox():
        async with db():
            db.session.add(User(name="one"))
            db.session.flush()
            db.async_session.add(User(name="two"))
            await db.async_session.flush()
        async with db():
            assert await count(db) == 0
    assert caplog.messages == []
