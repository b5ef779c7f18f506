"""The pytest fixtures of `fastapi_sqlalchemy.testing`, in a project of a user's own."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.backends import Backend

APP = """
import os

from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy import String

from fastapi_sqlalchemy import DBSessionMiddleware, db


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))


app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url=os.environ["DB_URL"], commit_on_exit=True)


@app.post("/users/{name}")
def add(name: str):
    db.session.add(User(name=name))


@app.get("/users")
def users():
    return db.session.scalars(select(User.name).order_by(User.id)).all()


@app.get("/async-users")
async def async_users():
    return (await db.async_session.scalars(select(User.name).order_by(User.id))).all()
"""

CONFTEST = """
import pytest
from fastapi.testclient import TestClient

from shop import app

pytest_plugins = ["fastapi_sqlalchemy.testing"]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def client():
    return TestClient(app)
"""

TESTS = """
import asyncio

import pytest
from sqlalchemy import func, select

from fastapi_sqlalchemy import db
from shop import User


def count():
    with db():
        return db.session.scalar(select(func.count()).select_from(User))


@pytest.mark.parametrize("run", [1, 2])
def test_the_requests_and_the_test_share_the_sandbox(db_session, client, run):
    assert db.session is db_session
    db_session.add(User(name="from the test"))
    db_session.commit()
    client.post("/users/from-a-request").raise_for_status()
    assert client.get("/users").json() == ["ann", "from the test", "from-a-request"]
    assert client.get("/async-users").json() == client.get("/users").json()
    names = db_session.scalars(select(User.name).order_by(User.id)).all()
    assert names == client.get("/users").json()


def test_what_is_flushed_is_seen_too(db_session, client):
    db_session.add(User(name="flushed"))
    db_session.flush()
    assert client.get("/users").json() == ["ann", "flushed"]


def test_a_sandbox_without_a_session(db_sandbox):
    assert db_sandbox is db
    with db(commit_on_exit=True):
        db.session.add(User(name="bob"))
    assert count() == 2


@pytest.mark.anyio
@pytest.mark.parametrize("run", [1, 2])
async def test_async_tests_are_rolled_back_too(async_db_session, client, run):
    async_db_session.add(User(name="async"))
    await async_db_session.commit()
    async with db():
        names = (await db.async_session.scalars(select(User.name).order_by(User.id))).all()
    assert names == ["ann", "async"]
    assert await asyncio.to_thread(lambda: client.get("/users").json()) == names


def test_a_failing_test_is_rolled_back(db_session):
    db_session.add(User(name="lost"))
    db_session.commit()
    pytest.xfail("on purpose")


def test_nothing_is_left():
    assert count() == 1
"""


@pytest.mark.slow
def test_each_test_is_rolled_back_and_shares_its_sandbox_with_its_requests(
    backend: Backend, tables: Callable[[Backend], Backend], tmp_path: Path
) -> None:
    tables(backend).execute("INSERT INTO users (name) VALUES ('ann')")
    for name, text in {"shop": APP, "conftest": CONFTEST, "test_shop": TESTS}.items():
        (tmp_path / f"{name}.py").write_text(text)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", tmp_path],
        env={"DB_URL": backend.url, "PYTHONPATH": str(tmp_path), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "7 passed, 1 xfailed" in ran.stdout
    assert backend.rows("SELECT name FROM users") == [("ann",)]


@pytest.mark.slow
def test_another_database_is_sandboxed_by_overriding_one_fixture(
    sqlite: Backend, tables: Callable[[Backend], Backend], tmp_path: Path
) -> None:
    tables(sqlite)
    (tmp_path / "test_reports.py").write_text(
        f"""
import pytest
from sqlalchemy import text
from fastapi_sqlalchemy import Database

pytest_plugins = ["fastapi_sqlalchemy.testing"]
reports = Database("reports")
reports.configure({sqlite.url!r})


@pytest.fixture
def sandboxed_database():
    return reports


def test_writes(db_session):
    db_session.execute(text("INSERT INTO users (name) VALUES ('gone')"))
    db_session.commit()
    assert reports.session is db_session
"""
    )
    ran = run_pytest(tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert sqlite.rows("SELECT * FROM users") == []


@pytest.mark.slow
def test_a_sandbox_of_a_database_that_nobody_has_configured_warns(tmp_path: Path) -> None:
    """The tests write by an engine of the app's own, and what they write stays."""
    (tmp_path / "test_nothing.py").write_text(
        'pytest_plugins = ["fastapi_sqlalchemy.testing"]\n\n\ndef test(db_sandbox): ...\n'
    )
    ran = run_pytest(tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "db_sandbox has held nothing: no code has configured db." in ran.stdout


def run_pytest(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_fixtures_are_not_imported_with_the_library() -> None:
    code = "import sys, fastapi_sqlalchemy; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
