"""After the connections were cut, no task pays for one that had lain idle in the app's pool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import StaticPool

from fastapi_sqlalchemy import Database
from support.backends import Backend
from support.processes import Run, Start
from support.proxy import proxy_to
from support.waiting import wait_until

HEAD = """
from fastapi import FastAPI
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from fastapi_sqlalchemy import DBSessionMiddleware, db
from fsa_cli import task

app = FastAPI()
"""
URL = "db.configure(db_url={url!r})"
ENGINE = "db.configure(custom_engine=create_engine({url!r}))"
SYNC = """
@task(schedule="@yearly")
def ask(session: Session):
    session.execute(text("SELECT 1"))
    with db():
        db.session.execute(text("SELECT 1"))
"""
ASYNC = """
@task(schedule="@yearly")
async def ask(session: AsyncSession):
    await session.execute(text("SELECT 1"))
    async with db():
        await db.async_session.execute(text("SELECT 1"))
"""
KINDS = {
    "psycopg": ("postgresql", "psycopg", URL, SYNC),
    "psycopg async": ("postgresql", "psycopg", URL, ASYNC),
    "psycopg custom": ("postgresql", "psycopg", ENGINE, SYNC),
    "psycopg2": ("postgresql", "psycopg2", URL, SYNC),
    "asyncpg": ("postgresql", "asyncpg", URL, ASYNC),
    "pymysql": ("mariadb", "pymysql", URL, SYNC),
    "asyncmy": ("mariadb", "asyncmy", URL, ASYNC),
    "aiomysql": ("mariadb", "aiomysql", URL, ASYNC),
}


@pytest.mark.parametrize(("name", "driver", "configure", "task"), KINDS.values(), ids=KINDS.keys())
def test_a_run_after_the_connections_were_cut_succeeds(
    name: str,
    driver: str,
    configure: str,
    task: str,
    request: pytest.FixtureRequest,
    fsa: Run,
    fsa_process: Start,
    tmp_path: Path,
) -> None:
    backend: Backend = request.getfixturevalue(name)
    with proxy_to(backend.url) as proxy:
        url = proxy.url(backend.with_driver(driver))
        (tmp_path / "main.py").write_text(HEAD + configure.format(url=url) + task)
        assert fsa("scheduler", "init").returncode == 0
        scheduler = fsa_process("scheduler", "start")
        scheduler.wait_for("fsa scheduler")
        run(fsa, backend, 1)

        proxy.drop_all()
        run(fsa, backend, 2)

        proxy.away.set()
        proxy.drop_all()
        wait_until(lambda: "cannot be reached" in scheduler.stderr, "the outage is said")
        proxy.away.clear()
        run(fsa, backend, 3)

        assert set(statuses(backend)) == {"succeeded"}, scheduler.stdout
        assert scheduler.stop().returncode == 0


def statuses(backend: Backend) -> list[str]:
    ended = "SELECT status FROM fsa_run WHERE finished_ms IS NOT NULL"
    return [status for (status,) in backend.rows(ended)]


def run(fsa: Run, backend: Backend, count: int) -> None:
    assert fsa("scheduler", "trigger", "ask").returncode == 0
    wait_until(lambda: len(statuses(backend)) == count, "the run has ended")


def test_a_connection_that_is_in_use_goes_on(postgresql: Backend) -> None:
    db = Database()
    db.configure(db_url=postgresql.url)
    pid = text("SELECT pg_backend_pid()")
    with db():
        before = db.session.scalar(pid)
        db.renew_connections()
        assert db.session.scalar(pid) == before
    with db():
        after = db.session.scalar(pid)
        assert after != before
    with db():
        assert db.session.scalar(pid) == after
    db.dispose()


@pytest.mark.parametrize(
    "configure",
    [
        lambda db: db.configure(db_url="sqlite://"),
        lambda db: db.configure(custom_engine=create_engine("sqlite://", poolclass=StaticPool)),
    ],
    ids=["url", "custom"],
)
def test_a_database_in_memory_survives(configure: Callable[[Database], None]) -> None:
    db = Database()
    configure(db)
    with db(commit_on_exit=True):
        db.session.execute(text("CREATE TABLE kept (n INTEGER)"))
    db.renew_connections()
    with db():
        assert db.session.scalars(text("SELECT n FROM kept")).all() == []
    db.engine.dispose()
    db.dispose()
