"""`db.session` and `db.async_session` of one scope on SQLite, which has one writer at a time.

With the minute that SQLite may wait here, what is not refused at once runs into the suite's time
limit.
"""

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text

from fastapi_sqlalchemy import Database
from fastapi_sqlalchemy.exceptions import ConcurrentUseError

WRITE, READ = text("INSERT INTO note VALUES (1)"), text("SELECT count(*) FROM note")
Run = Callable[[Any], Awaitable[Any]]


def configured(url: str, timeout_s: float = 60) -> Database:
    db = Database("both_sides")
    db.configure(db_url=url, engine_args={"connect_args": {"timeout": timeout_s}})
    with db(commit_on_exit=True):
        db.session.execute(text("CREATE TABLE note (n int)"))
    return db


def sides(db: Database) -> dict[str, Run]:
    async def sync(statement: Any) -> Any:
        return db.session.execute(statement)

    async def asynchronous(statement: Any) -> Any:
        return await db.async_session.execute(statement)

    return {"db.session": sync, "db.async_session": asynchronous}


@pytest.fixture(params=["memory", "file"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    return configured("sqlite://" if request.param == "memory" else f"sqlite:///{tmp_path}/a.db")


@pytest.mark.parametrize(
    ("first", "second"), [("session", "async_session"), ("async_session", "session")]
)
async def test_what_would_wait_for_its_own_scope_is_refused(
    db: Database, first: str, second: str
) -> None:
    first, second = f"db.{first}", f"db.{second}"
    run = sides(db)
    async with db():
        await run[second](READ)
        await run[first](WRITE)
        with pytest.raises(ConcurrentUseError, match=f"^{first} has written.* and {second} of"):
            await run[second](WRITE)
        if db.engine.url.query.get("vfs") == "memdb":
            with pytest.raises(ConcurrentUseError, match=f"^{first} has written"):
                await run[second](READ)
        else:
            assert (await run[second](READ)).scalar_one() == 0
        db.session.rollback()
        await db.async_session.rollback()
        await run[second](WRITE)
    await db.adispose()


async def test_a_savepoint_that_is_rolled_back_keeps_its_lock(db: Database) -> None:
    run = sides(db)
    async with db():
        nested = db.session.begin_nested()
        await run["db.session"](WRITE)
        nested.rollback()
        assert not db.uncommitted
        with pytest.raises(ConcurrentUseError, match=r"^db\.session has written"):
            await run["db.async_session"](WRITE)
        db.session.rollback()
        await run["db.async_session"](WRITE)
    await db.adispose()


async def test_after_a_commit_or_what_commits_itself_the_other_goes_on(db: Database) -> None:
    run = sides(db)
    async with db(commit_on_exit=True):
        await run["db.session"](WRITE)
        db.session.commit()
        assert (await run["db.async_session"](READ)).scalar_one() == 1
        await run["db.session"](text("CREATE TABLE other (n int)"))  # Python begins nothing for it
        await run["db.async_session"](WRITE)
    await db.adispose()


@pytest.mark.parametrize("side", ["session", "async_session"])
async def test_what_waits_in_vain_for_the_block_around_it_says_so(
    tmp_path: Path, side: str
) -> None:
    db = configured(f"sqlite:///{tmp_path}/a.db", timeout_s=0.2)
    run = sides(db)
    async with db(commit_on_exit=True):
        await run[f"db.{side}"](WRITE)
        async with db():
            with pytest.raises(ConcurrentUseError, match=f"^db.{side} of `async with .* around it"):
                await run[f"db.{side}"](WRITE)
    async with db():
        assert (await run[f"db.{side}"](READ)).scalar_one() == 1
    await db.adispose()


async def test_between_two_scopes_the_second_waits(db: Database) -> None:
    waiting = threading.Event()

    def write() -> None:
        with db(commit_on_exit=True):
            event.listen(db.engine, "before_cursor_execute", lambda *args: waiting.set())
            db.session.execute(WRITE)

    async with db(commit_on_exit=True):
        await db.async_session.execute(WRITE)
        thread = threading.Thread(target=write)
        thread.start()
        assert waiting.wait(30)
    thread.join()
    with db():
        assert db.session.execute(READ).scalar_one() == 2
    await db.adispose()


async def test_sessions_of_two_databases_do_not_refuse_each_other(tmp_path: Path) -> None:
    db = configured("sqlite://")
    engine = create_engine(f"sqlite:///{tmp_path}/other.db")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE note (n int)"))
    async with db({"bind": engine}, commit_on_exit=True):
        db.session.execute(WRITE)
        await db.async_session.execute(WRITE)
    engine.dispose()
    await db.adispose()
