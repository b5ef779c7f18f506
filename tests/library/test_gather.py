"""Coroutines side by side: `db.gather`, and what `asyncio.gather` over one session says."""

import asyncio
import gc
from typing import Any

import pytest
from sqlalchemy import select, text

from fastapi_sqlalchemy.exceptions import ConcurrentUseError, DBSessionError
from support.models import User
from support.stores import Store


async def test_one_session_that_two_tasks_use_at_once_is_a_clear_error(async_store: Store) -> None:
    db = async_store.configure()

    async def ask() -> Any:
        return await db.async_session.scalar(text("SELECT 1"))

    for connected in (False, True):
        async with db():
            if connected:
                await ask()
            answers = await asyncio.gather(ask(), ask(), ask(), return_exceptions=True)
            errors = [answer for answer in answers if isinstance(answer, ConcurrentUseError)]
            assert (answers[0], len(errors)) == (1, 2), answers
            assert "await db.gather(" in str(errors[0])
            assert "concurrent operations are not permitted" in str(errors[0])  # SQLAlchemy's
            assert await ask() == 1  # one task at a time, it goes on
    await db.adispose()


async def test_a_flush_beside_another_tasks_statement_is_a_clear_error(async_store: Store) -> None:
    db = async_store.configure()

    async def add(name: str) -> None:
        db.async_session.add(User(name=name))
        await db.async_session.flush()

    async with db():
        await db.async_session.scalar(text("SELECT 1"))
        with pytest.raises(DBSessionError, match=r"db\.gather"):
            await asyncio.gather(db.async_session.scalar(text("SELECT 1")), add("ann"))
    await db.adispose()
    assert async_store.users() == []


async def test_gather_gives_each_coroutine_a_session_of_its_own(async_store: Store) -> None:
    db = async_store.configure()
    sessions = []

    async def add(name: str) -> str:
        sessions.append(db.async_session)
        db.async_session.add(User(name=name))
        return name.upper()

    async with db():
        outer = db.async_session
        found = await db.gather(*(add(name) for name in "abc"), limit=2, commit_on_exit=True)
        assert found == ["A", "B", "C"]
        assert len({*map(id, sessions), id(outer)}) == 4
        assert db.async_session is outer
        assert await db.gather() == []
    assert sorted(async_store.users()) == ["a", "b", "c"]
    await db.adispose()


async def test_gather_runs_at_most_limit_at_a_time(async_postgresql_store: Store) -> None:
    db = async_postgresql_store.configure(engine_args={"pool_size": 4, "max_overflow": 0})
    running, most = 0, 0

    async def work() -> None:
        nonlocal running, most
        running += 1
        await db.async_session.execute(text("SELECT 1"))
        most = max(most, async_postgresql_store.checked_out())
        await asyncio.sleep(0)
        assert running <= 3
        running -= 1

    async with db():
        await db.async_session.execute(text("SELECT 1"))
        await db.gather(*(work() for _ in range(12)), limit=3)
    assert most == 4
    await db.adispose()


async def test_gather_without_commit_on_exit_rolls_each_scope_back(async_store: Store) -> None:
    db = async_store.configure()

    async def add(name: str) -> None:
        db.async_session.add(User(name=name))
        await db.async_session.flush()
        if name == "kept":
            await db.async_session.commit()

    await db.gather(add("kept"), add("lost"), limit=1)
    assert async_store.users() == ["kept"]
    await db.adispose()


async def test_the_first_failure_cancels_the_rest_and_all_have_ended(async_store: Store) -> None:
    db = async_store.configure()
    ended: list[str] = []
    started = asyncio.Event()

    async def wait(name: str) -> None:
        db.async_session.add(User(name=name))
        await db.async_session.flush()
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append(name)

    async def fail() -> None:
        await started.wait()
        raise LookupError("the first")

    never = [wait(f"never {n}") for n in range(3)]
    with pytest.raises(LookupError, match="the first"):
        await db.gather(wait("one"), fail(), *never, limit=2, commit_on_exit=True)
    assert ended == ["one"]
    assert async_store.checked_out() == 0
    assert async_store.users() == []
    gc.collect()  # "coroutine was never awaited" would be a warning, so a failure
    await db.adispose()


async def test_a_cancelled_gather_has_ended_all_of_it(async_store: Store) -> None:
    """Also where it is cancelled again while it waits for them."""
    db = async_store.configure()
    ended: list[int] = []
    started = asyncio.Semaphore(0)

    async def wait(n: int) -> None:
        if async_store.backend.name == "sqlite":
            await db.async_session.execute(text("SELECT 1"))  # one writer at a time
        else:
            db.async_session.add(User(name=str(n)))
            await db.async_session.flush()
        started.release()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            ended.append(n)

    task = asyncio.create_task(db.gather(*(wait(n) for n in range(3)), commit_on_exit=True))
    for _ in range(3):
        await started.acquire()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(ended) == [0, 1, 2]
    assert async_store.checked_out() == 0
    assert async_store.users() == []
    await db.adispose()


async def test_a_failed_commit_is_a_failure_of_gather(async_store: Store) -> None:
    db = async_store.configure()
    async_store.backend.execute("INSERT INTO users (id, name) VALUES (1, 'ann')")

    async def add() -> None:
        db.async_session.add(User(id=1, name="again"))

    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        await db.gather(add(), commit_on_exit=True)
    await db.adispose()


async def test_a_limit_below_one_is_refused(postgresql_store: Store) -> None:
    db = postgresql_store.configure()

    async def work() -> None:
        raise AssertionError

    with pytest.raises(ValueError, match="limit"):
        await db.gather(work(), limit=0)
    gc.collect()


async def test_what_is_no_coroutine_is_refused_and_the_others_are_closed(
    postgresql_store: Store,
) -> None:
    db = postgresql_store.configure()

    async def work() -> None:
        raise AssertionError

    task = asyncio.create_task(asyncio.sleep(0))
    for wrong in (task, work, [work]):
        with pytest.raises(TypeError, match=rf"coroutines.* was given a {type(wrong).__name__}"):
            await db.gather(work(), wrong)  # type: ignore[arg-type]
    await task


async def test_gather_reads_what_is_committed(async_store: Store) -> None:
    db = async_store.configure()
    async_store.backend.execute("INSERT INTO users (id, name) VALUES (1, 'ann')")

    async def read() -> list[str]:
        return list(await db.async_session.scalars(select(User.name)))

    assert await db.gather(read(), read()) == [["ann"], ["ann"]]
    await db.adispose()
