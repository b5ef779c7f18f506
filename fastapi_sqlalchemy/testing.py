"""pytest fixtures: every test in a sandbox of the app's database, rolled back at its end.

    # conftest.py
    from shop.main import app  # configures db

    pytest_plugins = ["fastapi_sqlalchemy.testing"]

    # test_users.py
    def test_a_new_user_is_listed(db_session):
        db_session.add(User(name="ann"))
        db_session.commit()
        assert TestClient(app).get("/users").json() == ["ann"]

The test and the requests that it makes share one connection (see `Database.sandbox`), so each sees
what the other has committed, and nothing is left for the next test.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import fastapi_sqlalchemy

from .database import Database
from .sessions.scope import Scope

__all__ = ["async_db_session", "db_sandbox", "db_session", "sandboxed_database"]


@pytest.fixture
def sandboxed_database() -> Database:
    """The database that the other fixtures sandbox: the global `db`. Override it for another."""
    return fastapi_sqlalchemy.db


@pytest.fixture
def db_sandbox(sandboxed_database: Database) -> Iterator[Database]:
    """`db`, in a sandbox: whatever the test does, commits included, is rolled back at its end.

    No session is open: the test opens its own, as the code that it tests does.
    """
    with sandboxed_database.sandbox():
        yield sandboxed_database
    if sandboxed_database.url is None:
        warnings.warn(
            "db_sandbox has held nothing: no code has configured db. Import the app in conftest.py "
            "or override the fixture sandboxed_database.",
            stacklevel=1,
        )


@pytest.fixture
def db_session(db_sandbox: Database) -> Iterator[Session]:
    """A `Session` in the sandbox; in a sync test `db.session` is the same one."""
    with db_sandbox():
        yield db_sandbox.session


@pytest.fixture
def async_db_session(db_sandbox: Database) -> Iterator[AsyncSession]:
    """An `AsyncSession` in the sandbox, for a test on any event loop.

    Code that uses `db.async_session` runs in an `async with db():` of its own, as elsewhere.

    Raises:
        SandboxError: the database has only an async driver, whose connections belong to one loop.
            Write `async with db.sandbox():` in the test.
    """
    scope = Scope(db_sandbox._binding(), asynchronous=True)
    session = scope.async_session
    try:
        yield session
    finally:
        # On a sync connection nothing has to be awaited.
        session.sync_session.close()
