"""`fsa_cli.testing`: a user's tests of tasks, as a user writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.backends import Backend
from support.processes import Run

APP = """
import asyncio
from datetime import date, timedelta

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.orm import Session

from fastapi_sqlalchemy import DBSessionMiddleware, db
from fsa_cli import Discard, Retry, TaskContext, task

app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url={url!r}, commit_on_exit=True)

@task(retries=2)
def ship(session: Session, context: TaskContext, item: str, on: date = date(2026, 1, 1)) -> str:
    session.execute(text("INSERT INTO written (n) VALUES (1)"))
    if item == "lost":
        raise LookupError(item)
    if context.attempt < 3 and item == "late":
        raise LookupError("not yet")
    if item == "closed":
        raise Discard("closed")
    return f"{{context.attempt}} x {{item}}"

@task(schedule="0 3 * * *", timezone="Europe/Berlin", priority=5)
async def mail(to: str = "all") -> int:
    await db.async_session.execute(text("INSERT INTO written (n) VALUES (2)"))
    if to == "bob":
        await ship.using(session=db.async_session).aenqueue("tea")
    return 1

@app.post("/ship/{{item}}")
def soon(item: str) -> str:
    asked = ship.using(session=db.session, unique=item).enqueue(item)
    ship.using(session=db.session, unique=item).enqueue(item)
    if item == "refused":
        raise ValueError(item)
    return asked.id

@app.post("/mail/{{to}}")
async def soon_too(to: str) -> str:
    return (await mail.using(run_after=timedelta(hours=1)).aenqueue(to)).id
"""
CONFTEST = """
import pytest
from main import app

pytest_plugins = ["fastapi_sqlalchemy.testing", "fsa_cli.testing"]

@pytest.fixture
def task_app():
    return app

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
TESTS = """
import asyncio
from datetime import UTC, date, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from fastapi_sqlalchemy import db
from fsa_cli import RunNotFound, results
from fsa_cli.exceptions import ArgumentError, UsageError
from fsa_cli.testing import fires_between
from main import app, mail, ship

def written():
    with db():
        return sorted(db.session.scalars(text("SELECT n FROM written")))

def test_a_request_asks_for_a_run(db_sandbox, enqueued, run_enqueued):
    client = TestClient(app, raise_server_exceptions=False)
    client.post("/ship/tea")
    client.post("/mail/ann")
    client.post("/ship/refused")
    with db():
        ship.using(session=db.session).enqueue("left without a commit")
        assert len(enqueued) == 3
        with db.session.begin_nested():
            ship.using(session=db.session).enqueue("released")
    assert str(enqueued) == "[ship(item='tea'), mail(to='ann')]"
    asked = enqueued.assert_enqueued(ship, item="tea")
    assert asked.options.unique == "tea"
    assert enqueued.assert_enqueued(mail).options.run_after == timedelta(hours=1)
    enqueued.assert_not_enqueued(ship, item="coffee")
    enqueued.assert_not_enqueued(ship, item="refused")
    with pytest.raises(pytest.fail.Exception, match=r"no run of ship\\(item='coffee'\\)"):
        enqueued.assert_enqueued(ship, item="coffee")
    with pytest.raises(pytest.fail.Exception, match=r"ship\\(item='tea'\\) was asked for"):
        enqueued.assert_not_enqueued(ship)
    assert asked.result.status == "queued" and written() == []

    first, second = run_enqueued()  # by priority
    assert (first.task.name, second.value) == ("mail", "1 x tea")
    assert written() == [1, 2]
    assert asked.result.wait() == "1 x tea"
    assert results.get(asked.result.id).return_value == "1 x tea"
    with pytest.raises(RunNotFound):
        results.get("0" * 32)
    assert run_enqueued() == []

def test_nothing_is_left_of_the_test_before(db_sandbox, enqueued):
    assert len(enqueued) == 0 and written() == []

def test_what_a_run_asks_for_and_retries(db_sandbox, enqueued, run_enqueued):
    mail.enqueue("bob")
    ship.using(priority=9).enqueue("late", on=date(2026, 2, 3))
    ship.using(priority=8).enqueue("closed")
    enqueued.assert_enqueued(ship, on=date(2026, 2, 3))
    ended = run_enqueued()
    told = [(each.task.name, each.status, each.attempt) for each in ended]
    assert told == [("ship", "succeeded", 3), ("ship", "discarded", 1), ("mail", "succeeded", 1),
                    ("ship", "succeeded", 1)]
    assert written() == [1, 1, 2]
    lost = ship.enqueue("lost")
    with pytest.raises(LookupError):
        run_enqueued()
    assert (lost.status, lost.attempts) == ("failed", 3)
    ship.enqueue("lost")
    assert [each.status for each in run_enqueued(raises=False)] == ["failed"]

def test_one_run(db_sandbox, run):
    assert run(ship, "tea") == "1 x tea"
    assert run(mail) == 1
    with pytest.raises(LookupError):
        run(ship, item="lost")
    with pytest.raises(ArgumentError):
        run(ship, itme="tea")
    assert written() == [1, 2]

@pytest.mark.anyio
async def test_a_coroutine(db_sandbox, enqueued, arun_enqueued, run, run_enqueued):
    await mail.aenqueue("bob")
    assert [each.status for each in await arun_enqueued()] == ["succeeded"] * 2
    assert await run.a(mail, "ann") == 1
    for wrong in (run_enqueued, lambda: run(ship, "tea")):
        with pytest.raises(UsageError, match="would block its loop"):
            wrong()

def test_which_schedules_fire():
    since = datetime(2026, 3, 27, 12, tzinfo=UTC)
    fires = fires_between(since, since + timedelta(days=3))
    assert [each.at.hour for each in fires] == [2, 1, 1]
    assert {each.task for each in fires} == {"mail"}
    assert fires_between(since, since + timedelta(hours=1), mail) == []
"""


@pytest.mark.parametrize("name", ["postgresql", "mariadb", "sqlite"])
def test_a_users_tests_of_tasks(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, python: Run
) -> None:
    backend: Backend = request.getfixturevalue(name)
    backend.execute("CREATE TABLE written (n INTEGER)")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "main.py").write_text(APP.format(url=backend.url))
    (tmp_path / "test_orders.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")

    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")

    assert "6 passed" in done.stdout, done.stdout + done.stderr
    assert backend.rows("SELECT n FROM written") == []
    assert list(tmp_path.glob("*-ledger.db")) == []


OWN_ENGINE = """
from fastapi import Depends, FastAPI
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from fastapi_sqlalchemy import db
from fsa_cli import task

app = FastAPI()
engine = create_engine({url!r})

def get_db():
    with Session(engine) as session:
        yield session

@task
def count() -> int:
    return db.session.scalar(text("SELECT count(*) FROM written"))

@app.post("/")
def write(session: Session = Depends(get_db)):
    session.execute(text("INSERT INTO written (n) VALUES (1)"))
    count.using(session=session).enqueue()
    session.commit()
"""
OWN_TESTS = """
import pytest
from fastapi.testclient import TestClient
from main import app, count

@pytest.mark.parametrize("_", range(2))
def test_what_the_apps_own_session_commits_is_rolled_back(db_sandbox, run_enqueued, run, _):
    TestClient(app).post("/")
    assert [each.value for each in run_enqueued()] == [1]
    assert run(count) == 1
"""


def test_the_database_that_pyproject_names_is_sandboxed_too(
    tmp_path: Path, python: Run, backend: Backend
) -> None:
    backend.execute("CREATE TABLE written (n INTEGER)")
    settings = (
        '[tool.fsa]\ndatabase = "main:engine"\n[tool.pytest.ini_options]\npythonpath = ["."]\n'
    )
    (tmp_path / "pyproject.toml").write_text(settings)
    (tmp_path / "main.py").write_text(OWN_ENGINE.format(url=backend.url))
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_own.py").write_text(OWN_TESTS)

    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")

    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert backend.rows("SELECT n FROM written") == []
