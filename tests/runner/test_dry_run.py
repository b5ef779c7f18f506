"""A dry run: everything is really done, and nothing of it is there afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, delete, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from fastapi_sqlalchemy import Database
from fastapi_sqlalchemy.exceptions import SandboxError
from fsa_cli import Task, TaskContext
from fsa_cli.exceptions import Refused
from fsa_cli.runner.dry_run import DryRun, execute_dry_run
from fsa_cli.runner.run import Run, RunResult
from support.backends import Backend
from support.models import User

Rehearse = Callable[..., tuple[RunResult, DryRun]]

SCHEMA = {
    "postgresql": "SELECT table_name, column_name, data_type FROM information_schema.columns"
    " WHERE table_schema = 'public' ORDER BY 1, 2",
    "mariadb": "SELECT table_name, column_name, column_type FROM information_schema.columns"
    " WHERE table_schema = database() ORDER BY 1, 2",
    "sqlite": "SELECT type, name, sql FROM sqlite_schema ORDER BY 1, 2",
}


def everything(backend: Backend) -> list[Any]:
    """The schema and the rows, seen from outside."""
    return [backend.rows(SCHEMA[backend.name]), backend.rows("SELECT * FROM users ORDER BY id")]


@pytest.fixture
def stored(backend: Backend, tables: Callable[[Backend], Backend]) -> Backend:
    tables(backend).execute("INSERT INTO users (name) VALUES ('ann'), ('bob')")
    return backend


@pytest.fixture
def rehearsed(stored: Backend, db: Database) -> Iterator[Rehearse]:
    """Rehearses a function on each database, which is the same before and after."""
    db.configure(stored.url)

    def call(function: Callable[..., Any], **options: Any) -> tuple[RunResult, DryRun]:
        before = everything(stored)
        order = Run(task=Task(name="t", function=function, **options), database=db, dry_run=True)
        told = execute_dry_run(order, {"default": db})
        assert everything(stored) == before
        stored.assert_no_transaction()
        return told

    yield call
    with db():  # outside it is a database as ever
        assert len(db.session.scalars(select(User)).all()) == 2


def commits(session: Session) -> None:
    session.add(User(name="new"))
    session.commit()
    session.execute(update(User).where(User.name == "ann").values(name="x"))


def rolls_back(session: Session) -> None:
    session.add(User(name="new"))
    session.flush()
    session.rollback()
    session.execute(delete(User).where(User.name == "bob"))


def uses_savepoints(session: Session) -> None:
    with session.begin_nested():
        session.add(User(name="kept"))
    nested = session.begin_nested()
    session.execute(delete(User))
    nested.rollback()


def inserts_in_bulk(session: Session) -> None:
    session.execute(insert(User), [{"name": f"user {n}"} for n in range(3000)])


async def is_async(session: AsyncSession) -> None:
    session.add(User(name="new"))
    await session.commit()
    await session.execute(delete(User).where(User.name == "ann"))


async def is_async_in_bulk(session: AsyncSession) -> None:
    async with session.begin_nested():
        await session.execute(insert(User), [{"name": f"user {n}"} for n in range(3000)])


@pytest.mark.parametrize(
    ("function", "inserted", "updated", "deleted"),
    [
        (commits, 1, 1, 0),
        (rolls_back, 0, 0, 1),
        (uses_savepoints, 1, 0, 0),
        (inserts_in_bulk, 3000, 0, 0),
        (is_async, 1, 0, 1),
        (is_async_in_bulk, 3000, 0, 0),
    ],
)
def test_the_changes_of_a_task_are_reported_and_undone(
    function: Callable[..., Any], inserted: int, updated: int, deleted: int, rehearsed: Rehearse
) -> None:
    result, told = rehearsed(function)

    assert result.error is None
    assert told.tables == [
        {
            "database": "default",
            "table": "users",
            "inserted": inserted,
            "updated": updated,
            "deleted": deleted,
            "inserted_or_updated": 0,
        }
    ]
    assert "what the task did outside the app's databases" in told.kept


def makes_a_table(session: Session) -> None:
    session.execute(text("CREATE TABLE extra (n INTEGER)"))
    session.execute(text("INSERT INTO extra VALUES (1)"))
    session.commit()
    session.execute(text("ALTER TABLE users ADD COLUMN age INTEGER"))
    session.execute(text("DROP TABLE memberships"))


def test_ddl_is_reported_and_undone_or_refused(rehearsed: Rehearse, stored: Backend) -> None:
    result, told = rehearsed(makes_a_table)

    if stored.name == "mariadb":
        assert isinstance(result.error, SandboxError)
        assert "CREATE TABLE extra" in str(result.error)
        return
    assert result.error is None
    assert told.schema == [
        "CREATE TABLE extra (n INTEGER)",
        "ALTER TABLE users ADD COLUMN age INTEGER",
        "DROP TABLE memberships",
    ]
    assert [(row["table"], row["inserted"]) for row in told.tables] == [("extra", 1)]


def test_a_task_that_fails_is_undone_and_tells_nothing(rehearsed: Rehearse) -> None:
    def fails(session: Session) -> None:
        session.add(User(name="new"))
        session.commit()
        raise LookupError("no such user")

    result, told = rehearsed(fails)

    assert (result.status, told) == ("failed", DryRun())


def test_a_task_learns_that_it_runs_dry(rehearsed: Rehearse) -> None:
    def look(context: TaskContext) -> bool:
        return context.dry_run

    result, told = rehearsed(look)

    assert result.value is True
    assert not told.changes_something


def test_commit_false_changes_nothing(rehearsed: Rehearse) -> None:
    assert not rehearsed(inserts_in_bulk, commit=False)[1].changes_something


def test_a_write_over_dbs_engine_is_counted_and_rolled_back(
    rehearsed: Rehearse, db: Database, stored: Backend
) -> None:
    before = everything(stored)

    def with_engine() -> None:
        with db.engine.begin() as connection:
            assert connection.execute(select(User.name)).first() is not None
            connection.execute(insert(User), {"name": "not really"})

    result, told = rehearsed(with_engine)
    assert result.succeeded
    assert told.changes_something
    assert everything(stored) == before


def test_a_write_outside_dbs_sessions_is_refused(
    rehearsed: Rehearse, db: Database, stored: Backend
) -> None:
    def with_an_engine_of_its_own() -> None:
        engine = create_engine(stored.url)
        try:
            with engine.begin() as connection:
                connection.execute(text("CREATE TABLE really (n INTEGER)"))
        finally:
            engine.dispose()

    result, _ = rehearsed(with_an_engine_of_its_own)
    assert isinstance(result.error, Refused)
    with db.engine.begin() as connection:  # and afterwards it is free again
        connection.execute(update(User).values(name="x"))


def test_a_deferred_constraint_is_checked_as_a_commit_would(
    postgresql: Backend, tables: Callable[[Backend], Backend], db: Database
) -> None:
    db.configure(tables(postgresql).url)

    def orphan(session: Session) -> None:
        session.execute(text("INSERT INTO memberships (user_id) VALUES (7)"))

    async def orphan_async(session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO memberships (user_id) VALUES (7)"))

    for function in (orphan, orphan_async):
        order = Run(task=Task(name="t", function=function), database=db, dry_run=True)
        result, _ = execute_dry_run(order, {"default": db})

        assert (result.status, result.at_commit) == ("failed", True)
        assert isinstance(result.error, IntegrityError)


@pytest.mark.parametrize("drivername", ["asyncpg", "aiomysql", "aiosqlite"])
def test_a_database_with_only_an_async_driver_has_dry_runs_too(
    drivername: str,
    request: pytest.FixtureRequest,
    tables: Callable[[Backend], Backend],
    db: Database,
) -> None:
    name = {"aiosqlite": "sqlite", "asyncpg": "postgresql", "aiomysql": "mariadb"}[drivername]
    stored = tables(request.getfixturevalue(name))
    before = everything(stored)

    async def many(session: AsyncSession) -> None:
        await session.execute(insert(User), [{"name": "a"}, {"name": "b"}])
        sql = text("INSERT INTO users (name) VALUES (:n)")
        await session.execute(sql, [{"n": "1"}, {"n": "2"}])
        await session.execute(update(User).where(User.name == "a").values(name="c"))
        await session.commit()

    engine = create_async_engine(stored.with_driver(drivername), poolclass=NullPool)
    db.configure(custom_async_engine=engine)
    order = Run(task=Task(name="t", function=many), database=db, dry_run=True)
    result, told = execute_dry_run(order, {"default": db})

    assert result.error is None
    [row] = told.tables
    assert (row["inserted"], row["updated"]) == (4, 1)
    assert everything(stored) == before


@pytest.mark.parametrize("url", ["duckdb:///shop.duckdb", "sqlite+libsql://host/shop"])
def test_a_database_without_savepoints_is_refused_before_anything_is_done(url: str) -> None:
    analytics, done = Database("analytics"), []
    analytics.configure(db_url=url)
    run = Run(task=Task(name="t", function=lambda: done.append(1)), dry_run=True)

    with pytest.raises(Refused, match="has no savepoints"):
        execute_dry_run(run, {"analytics": analytics})

    assert done == []
