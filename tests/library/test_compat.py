"""`fastapi_sqlalchemy.compat`: fastapi-async-sqlalchemy's names and meanings."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelSession

import fastapi_sqlalchemy
from fastapi_sqlalchemy import compat
from fastapi_sqlalchemy.app_binding import bind_app
from fastapi_sqlalchemy.exceptions import MissingSessionError, SessionNotInitialisedError
from support.models import User
from support.stores import Store


@pytest.fixture
async def proxy(async_store: Store) -> AsyncIterator[compat.DBSessionMeta]:
    """On a database of the test's own, with the sessions that the middleware configures."""
    session_args = compat.SQLAlchemyMiddleware.defaults["async_session_args"]
    yield compat.DBSessionMeta(async_store.configure(async_session_args=session_args))
    await async_store.db.adispose()


def test_its_db_speaks_for_the_global_one() -> None:
    assert compat.db.database is fastapi_sqlalchemy.db
    assert type(compat.db) is compat.DBSessionMeta is compat.DBSessionType
    assert compat.DBSessionMeta.__name__ == "DBSessionMeta"  # in an annotation's error
    assert compat.DefaultAsyncSession is SQLModelSession


def test_a_middleware_serves_as_it_did_there(sqlite_store: Store) -> None:
    """It commits whatever the status, unless an exception is raised."""
    middleware, db = compat.create_middleware_and_session_proxy()
    app = FastAPI()
    app.add_middleware(middleware, db_url=sqlite_store.backend.async_url, commit_on_exit=True)

    @app.get("/{status}")
    async def route(status: int) -> JSONResponse:
        assert isinstance(db.session, SQLModelSession)
        db.session.add(User(name=str(status)))
        if status == 500:
            raise LookupError
        return JSONResponse({}, status)

    with pytest.raises(SessionNotInitialisedError):
        _ = compat.create_middleware_and_session_proxy()[1].session
    bind_app(app)
    with TestClient(app, raise_server_exceptions=False) as client:
        for status in (200, 404, 500):
            assert client.get(f"/{status}").status_code == status
        with pytest.raises(MissingSessionError):
            _ = db.session
    assert sqlite_store.users() == ["200", "404"]


async def test_a_block_has_a_session_and_gives_db(
    proxy: compat.DBSessionMeta, async_store: Store
) -> None:
    db = proxy
    async with db(commit_on_exit=True) as inside:
        assert inside is db
        db.session.add(User(name="ann"))
        async with db():
            db.session.add(User(name="lost"))
            await db.session.flush()
            await db.session.rollback()
    assert await asyncio.to_thread(async_store.users) == ["ann"]


@pytest.mark.parametrize("commit_on_exit", [False, True])
async def test_each_task_has_a_session_that_ends_with_it(
    proxy: compat.DBSessionMeta, async_store: Store, commit_on_exit: bool
) -> None:
    db = proxy

    async def write(name: str) -> int:
        if name == "fails":
            db.session.add(User(name=name))
            raise LookupError
        db.session.add(User(name=name))
        await asyncio.sleep(0.01)
        assert db.session is db.session
        return id(db.session)

    async with db(multi_sessions=True, commit_on_exit=commit_on_exit):
        parent = id(db.session)
        await db.session.scalar(text("SELECT 1"))
        one = await asyncio.gather(write("ann"), return_exceptions=True)
        two = await asyncio.gather(write("fails"), write("bob"), return_exceptions=True)
        assert len({parent, one[0], two[1]}) == 3
    assert async_store.checked_out() == 0
    names = await asyncio.to_thread(async_store.users)
    assert sorted(names) == (["ann", "bob"] if commit_on_exit else [])  # committed side by side


async def test_statements_that_share_a_session_take_turns(
    proxy: compat.DBSessionMeta, async_store: Store
) -> None:
    """As asyncpg's do there, once it is connected: apps `gather` a count and a page of rows."""
    db = proxy

    def count() -> Any:
        return db.session.scalar(select(func.count()).select_from(User))

    async with db(commit_on_exit=True):
        db.session.add(User(name="ann"))  # the first of them writes it, and the others wait
        assert await asyncio.gather(*(count() for _ in range(5))) == [1] * 5
        tasks = [asyncio.create_task(count()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()  # while it waits for the first
        first, given_up, last = await asyncio.gather(*tasks, return_exceptions=True)
        assert (first, last) == (1, 1)
        assert isinstance(given_up, asyncio.CancelledError)
    assert await asyncio.to_thread(async_store.users) == ["ann"]
    assert async_store.checked_out() == 0


async def test_a_session_of_a_task_is_committed_or_rolled_back_whatever_it_began(
    proxy: compat.DBSessionMeta,
) -> None:
    """Those that listen rely on it: an outbox is written in `before_commit`."""
    db = proxy
    seen: list[str] = []

    async def work(*, fails: bool) -> None:
        async with db.connection() as session:
            inner = session.sync_session
            event.listen(inner, "before_commit", lambda _: seen.append("commit"))
            event.listen(inner, "after_rollback", lambda _: seen.append("rollback"))
            if fails:
                await session.scalar(text("SELECT 1"))
                raise LookupError

    async with db(multi_sessions=True, commit_on_exit=True):
        await work(fails=False)
        with pytest.raises(LookupError):
            await work(fails=True)
    assert seen == ["commit", "rollback"]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_session_of_a_task_that_cannot_be_ended_is_told(
    proxy: compat.DBSessionMeta, async_store: Store, fails: bool
) -> None:
    db = proxy

    async def broken(_: object = None) -> None:
        raise OSError("no more")

    async def block() -> None:
        async with db(multi_sessions=True):
            await db.session.scalar(text("SELECT 1"))
            vars(db.session)["rollback" if fails else "close"] = broken
            if fails:
                raise LookupError

    if fails:
        with (
            pytest.warns(UserWarning, match="Suppressed session cleanup error.*no more"),
            pytest.raises(LookupError),
        ):
            await block()
    else:
        with pytest.raises(OSError, match="no more"):
            await block()
    assert async_store.checked_out() == 0


async def test_no_more_than_max_concurrent_have_a_session(
    proxy: compat.DBSessionMeta, async_store: Store
) -> None:
    db = proxy
    at_once, most = 0, 0

    async def work(n: int) -> Any:
        nonlocal at_once, most
        async with db.connection() as session:
            assert session is db.session
            at_once += 1
            most = max(most, at_once)
            found = await session.scalar(select(User.id).where(User.id == n))
            await asyncio.sleep(0.005)
            at_once -= 1
            return found

    async def unthrottled() -> None:
        _ = db.session

    async with db(multi_sessions=True, max_concurrent=2):
        await asyncio.gather(*(work(n) for n in range(8)))
        with pytest.raises(RuntimeError, match="not throttled"):
            await asyncio.create_task(unthrottled())
        await db.gather(*(work(n) for n in range(8)))
    assert most == 2
    assert async_store.checked_out() == 0
    with pytest.raises(ValueError, match="greater than 0"):
        db(multi_sessions=True, max_concurrent=0)


async def test_a_commit_that_fails_is_raised_at_the_end_of_the_block(
    async_postgresql_store: Store,
) -> None:
    db = compat.DBSessionMeta(async_postgresql_store.configure())

    async def clash() -> None:
        db.session.add(User(id=1, name="again"))

    async with db(commit_on_exit=True):
        db.session.add(User(id=1, name="ann"))
    with pytest.raises(IntegrityError):
        async with db(multi_sessions=True, commit_on_exit=True):
            await asyncio.create_task(clash())
    assert async_postgresql_store.checked_out() == 0
    await db.database.adispose()


@pytest.fixture
async def small(async_store: Store) -> AsyncIterator[compat.DBSessionMeta]:
    """With one connection, for which nobody waits longer than a minute."""
    queue = {"poolclass": AsyncAdaptedQueuePool, "pool_size": 1, "max_overflow": 0}
    database = async_store.configure(async_engine_args={**queue, "pool_timeout": 60})
    yield compat.DBSessionMeta(database)
    await async_store.db.adispose()


async def test_a_deadline_for_a_connection(small: compat.DBSessionMeta) -> None:
    """What waits has 20 ms; what is left behind would keep the last one from its connection."""
    db = small
    async with db():
        await db.session.execute(text("SELECT 1"))
        with pytest.raises(
            compat.PoolTimeoutError, match=r"within 0\.02 s: 1 of 1 are in use"
        ) as e:
            async with db(pool_timeout=0.02):
                pytest.fail("entered")
        assert isinstance(e.value, TimeoutError)
        assert (e.value.timeout, e.value.retry_after) == (0.02, 1)
        assert e.value.pool_status == db.pool_status()
        async with db(multi_sessions=True, max_concurrent=1):
            with pytest.raises(compat.PoolTimeoutError):
                async with db.connection(timeout=0.02):
                    pytest.fail("entered")
        async with db(multi_sessions=True, pool_timeout=0.02):
            with pytest.raises(compat.PoolTimeoutError):
                await db.gather(asyncio.sleep(0))
    assert db.pool_status() | {"pool_class": ""} == {
        "pool_class": "",
        "size": 1,
        "max_overflow": 0,
        "capacity": 1,
        "checked_in": 1,
        "checked_out": 0,
        "available": 1,
        "saturation": 0.0,
    }
    async with db(pool_timeout=30):
        assert await db.session.scalar(text("SELECT 1")) == 1


async def test_a_deadline_that_is_none_is_refused(proxy: compat.DBSessionMeta) -> None:
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="must be greater than 0 and finite"):
            proxy(pool_timeout=wrong)
        with pytest.raises(ValueError, match="must be greater than 0 and finite"):
            proxy.connection(timeout=wrong)


async def test_what_may_run_already_is_not_gathered(proxy: compat.DBSessionMeta) -> None:
    arguments: dict[str, Any] = {"max_concurrent": 1, "pool_timeout": 30}
    for name, value in arguments.items():
        future = asyncio.get_running_loop().create_future()
        waiting = asyncio.sleep(0)
        async with proxy(multi_sessions=True, **{name: value}):
            with pytest.raises(TypeError, match=f"`{name}` is set.*accepts coroutine objects only"):
                await proxy.gather(waiting, future)
        with pytest.raises(RuntimeError, match="cannot reuse"):  # it was closed
            await waiting
