"""`with db():` and `async with db():`: which session is whose, and how a scope ends."""

import asyncio
import contextvars
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import Depends
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from fastapi_sqlalchemy import Database, MissingSessionError, SessionNotInitialisedError
from support.models import User
from support.releases import LOSES_CANCELLED_CONNECTIONS, LOSES_THEM
from support.stores import Store
from support.waiting import wait_until
from support.web import Serve, client_of


async def test_the_two_sessions_have_exactly_two_names(async_store: Store) -> None:
    db = async_store.configure()
    with db() as given:
        assert given is db
        assert isinstance(db.session, Session)
        assert db.session is db.session
    async with db() as given:
        assert given is db
        assert isinstance(db.async_session, AsyncSession)
        assert db.async_session is db.async_session
        assert isinstance(db.session, Session)
        assert db.async_session.sync_session is not db.session


@pytest.mark.parametrize("side", ["sync", "async"])
async def test_an_ended_scope_leaves_nothing_to_the_garbage_collector(
    async_store: Store, side: str
) -> None:
    """What a session has loaded would stay in memory until then."""
    db = async_store.configure()
    async with db():  # some drivers' connecting leaves a cycle
        await db.async_session.execute(text("SELECT 1"))
    gc.disable()
    try:
        async with db(commit_on_exit=True):
            session = db.session if side == "sync" else db.async_session.sync_session
            session.add(User(name="ann"))
            gone = weakref.ref(session)
            del session
        async with asyncio.timeout(5):  # its thread may not have forgotten it yet
            while gone() is not None:
                await asyncio.sleep(0.01)
    finally:
        gc.enable()
    await db.adispose()


def test_the_async_session_is_not_to_be_had_in_a_plain_with(sqlite_store: Store) -> None:
    db = sqlite_store.configure()
    with db(), pytest.raises(MissingSessionError, match="async with db"):
        _ = db.async_session


def test_without_a_scope_or_a_configuration_each_has_its_own_error(sqlite_store: Store) -> None:
    with pytest.raises(SessionNotInitialisedError):
        _ = sqlite_store.db.session
    db = sqlite_store.configure()
    for name in ("session", "async_session"):
        with pytest.raises(MissingSessionError, match="with db"):
            getattr(db, name)


async def test_a_nested_block_has_a_session_of_its_own_and_restores_the_outer_one(
    async_store: Store,
) -> None:
    db = async_store.configure()
    async with db():
        outer = (db.session, db.async_session)
        with db():
            assert db.session is not outer[0]
            async with db():
                assert db.async_session is not outer[1]
        assert (db.session, db.async_session) == outer
    with pytest.raises(MissingSessionError):
        _ = db.session


async def test_a_scope_that_is_not_used_opens_nothing(async_store: Store) -> None:
    db = async_store.configure()
    async with db():
        with db():
            pass
        assert db.session.is_active
        assert db.async_session.is_active
        assert async_store.checked_out() == 0
    assert all(side["checked_in"] == 0 for side in db.pool_status().values())


def test_a_block_commits_only_if_asked_to_and_only_if_it_ends_normally(store: Store) -> None:
    db = store.configure()
    with db():
        db.session.add(User(name="not asked"))
        db.session.flush()
    with db(commit_on_exit=True):
        db.session.add(User(name="asked"))
    with db():
        db.session.add(User(name="by hand"))
        db.session.commit()
    with pytest.raises(LookupError), db(commit_on_exit=True):
        db.session.add(User(name="failed"))
        db.session.flush()
        raise LookupError
    assert store.users() == ["asked", "by hand"]


async def test_an_async_block_commits_only_if_asked_to_and_only_if_it_ends_normally(
    async_store: Store,
) -> None:
    db = async_store.configure()
    async with db():
        db.async_session.add(User(name="not asked"))
        await db.async_session.flush()
    async with db(commit_on_exit=True):
        db.async_session.add(User(name="asked"))
    with pytest.raises(LookupError):
        async with db(commit_on_exit=True):
            db.async_session.add(User(name="failed"))
            await db.async_session.flush()
            raise LookupError
    assert async_store.users() == ["asked"]
    await db.adispose()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_every_base_exception_is_a_failure(
    sqlite_store: Store, failure: type[BaseException]
) -> None:
    db = sqlite_store.configure()
    with pytest.raises(failure), db(commit_on_exit=True):
        db.session.add(User(name="ann"))
        raise failure
    with pytest.raises(failure):
        async with db(commit_on_exit=True):
            db.async_session.add(User(name="ann"))
            raise failure
    assert sqlite_store.users() == []
    await db.adispose()


async def test_a_commit_that_fails_is_raised_and_gives_the_connection_back(
    async_store: Store,
) -> None:
    db = async_store.configure()
    async_store.backend.execute("INSERT INTO users (id, name) VALUES (1, 'ann')")
    with pytest.raises(IntegrityError), db(commit_on_exit=True):
        db.session.add(User(id=1, name="again"))
    with pytest.raises(IntegrityError):
        async with db(commit_on_exit=True):
            db.async_session.add(User(id=1, name="again"))
    assert async_store.checked_out() == 0
    assert async_store.users() == ["ann"]
    await db.adispose()


def test_session_args_of_a_block_are_for_its_sessions_only(sqlite_store: Store) -> None:
    db = sqlite_store.configure(session_args={"autoflush": False})
    with db(session_args={"expire_on_commit": False}):
        assert (db.session.expire_on_commit, db.session.autoflush) == (False, False)
        with db():
            assert (db.session.expire_on_commit, db.session.autoflush) == (True, False)


def test_four_threads_that_ask_at_once_get_the_same_session(sqlite_store: Store) -> None:
    db = sqlite_store.configure()
    for _ in range(50):
        with db(), ThreadPoolExecutor(4) as threads:
            together = threading.Barrier(4)

            def ask() -> int:
                together.wait(60)  # noqa: B023
                return id(db.session)

            context = contextvars.copy_context()
            asked = [threads.submit(context.copy().run, ask) for _ in range(4)]
            assert {future.result(60) for future in asked} == {id(db.session)}


async def test_child_tasks_see_the_session_of_their_parents_scope(async_store: Store) -> None:
    db = async_store.configure()

    async def child() -> tuple[int, int]:
        return id(db.async_session), await asyncio.to_thread(lambda: id(db.session))

    async with db():
        first = await asyncio.create_task(child())
        assert first == (id(db.async_session), id(db.session))


@pytest.mark.parametrize("kept", [False, True], ids=["asks db", "kept its session"])
async def test_a_task_that_outlives_its_scope_is_told_so_and_leaks_nothing(
    async_store: Store, kept: bool
) -> None:
    db = async_store.configure()
    asked, over = asyncio.Event(), asyncio.Event()

    async def outlive() -> Any:
        session = db.async_session
        await session.scalar(text("SELECT 1"))
        asked.set()
        await over.wait()
        for _ in range(2):
            with pytest.raises(MissingSessionError, match="has ended"):
                await (session if kept else db.async_session).scalar(text("SELECT 1"))
        session.add(User(name="late"))
        with pytest.raises(MissingSessionError, match="has ended"):
            await session.flush()
        async with db(commit_on_exit=True):  # the cure that the error names
            db.async_session.add(User(name="of its own"))
        return True

    async with db():
        task = asyncio.create_task(outlive())
        await asked.wait()
    over.set()
    assert await task
    assert async_store.checked_out() == 0
    assert async_store.users() == ["of its own"]
    await db.adispose()


@pytest.mark.parametrize("kept", [False, True], ids=["asks db", "kept its session"])
def test_a_thread_that_outlives_its_scope_is_told_so_and_leaks_nothing(
    store: Store, kept: bool
) -> None:
    db = store.configure()
    over = threading.Event()
    told: list[str] = []

    def outlive() -> None:
        session = db.session
        over.wait(60)
        for _ in range(2):
            try:
                (session if kept else db.session).scalars(select(User)).all()
            except MissingSessionError as exc:
                told.append(str(exc))

    with db():
        db.session.scalars(select(User)).all()
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(outlive,))
        thread.start()
    over.set()
    thread.join(60)
    assert len(told) == 2
    assert all("has ended" in text for text in told)
    assert store.checked_out() == 0


async def test_a_query_that_is_under_way_when_its_scope_ends_leaks_nothing(
    async_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    if LOSES_CANCELLED_CONNECTIONS and "asyncmy" in async_store.url:
        pytest.skip(LOSES_THEM)
    db = async_store.configure()

    async def query() -> None:
        while True:
            await db.async_session.scalar(text("SELECT 1"))
            await db.async_session.rollback()

    for suspensions in range(40):
        async with db():
            assert db.async_session
            task = asyncio.create_task(query())
            for _ in range(suspensions):
                await asyncio.sleep(0)
        if "asyncmy" in async_store.url:
            task.cancel()  # its reader does not notice that its connection was closed
        with pytest.raises((Exception, asyncio.CancelledError)):  # which, depends on the moment
            await task
        assert async_store.checked_out() == 0
    await db.adispose()


def test_exits_may_come_in_another_order_and_twice(store: Store) -> None:
    db = store.configure()
    first, second = db(), db()
    first.__enter__()
    db.session.scalars(select(User)).all()
    second.__enter__()
    inner = db.session
    inner.scalars(select(User)).all()
    first.__exit__(None, None, None)
    assert db.session is inner
    second.__exit__(None, None, None)
    with pytest.raises(MissingSessionError):
        _ = db.session
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert store.checked_out() == 0


async def test_async_exits_may_come_in_another_order_and_twice(async_store: Store) -> None:
    db = async_store.configure()
    first, second = db(), db()
    await first.__aenter__()
    await db.async_session.scalars(select(User))
    await second.__aenter__()
    await db.async_session.scalars(select(User))
    await first.__aexit__(None, None, None)
    await second.__aexit__(None, None, None)
    await first.__aexit__(None, None, None)
    with pytest.raises(MissingSessionError):
        _ = db.async_session
    assert async_store.checked_out() == 0
    await db.adispose()


def test_one_context_object_can_be_entered_again_while_it_is_open(store: Store) -> None:
    db = store.configure()
    context = db(commit_on_exit=True)
    with context:
        db.session.add(User(name="outer"))
        with context:
            db.session.add(User(name="inner"))
        assert store.users() == ["inner"]
    assert sorted(store.users()) == ["inner", "outer"]


def test_one_context_object_serves_threads_that_enter_it_side_by_side(store: Store) -> None:
    db = store.configure()
    context = db(commit_on_exit=True)
    entered, inside, over = threading.Event(), threading.Event(), threading.Event()

    def fails() -> None:
        with pytest.raises(ZeroDivisionError), context:
            entered.set()
            db.session.add(User(name="rolled back"))
            assert inside.wait(10)
            _ = 1 / 0
        over.set()

    def ends_well() -> None:
        assert entered.wait(10)
        with context:
            inside.set()
            assert over.wait(10)
            db.session.add(User(name="committed"))

    with ThreadPoolExecutor() as pool:
        failing = pool.submit(fails)
        pool.submit(ends_well).result()
        failing.result()
    assert store.users() == ["committed"]


async def test_one_context_object_serves_tasks_that_enter_it_side_by_side(
    async_store: Store,
) -> None:
    db = async_store.configure()
    context = db(commit_on_exit=True)
    inside, over = asyncio.Event(), asyncio.Event()

    async def fails() -> None:
        with pytest.raises(ZeroDivisionError):
            async with context:
                db.async_session.add(User(name="rolled back"))
                await inside.wait()
                _ = 1 / 0
        over.set()

    async def ends_well() -> None:
        async with context:
            db.async_session.add(User(name="committed"))
            inside.set()
            await over.wait()

    await asyncio.gather(fails(), ends_well())
    assert await asyncio.to_thread(async_store.users) == ["committed"]
    await db.adispose()


def test_a_scope_that_is_left_in_another_context_is_ended_all_the_same(
    serve: Serve, store: Store
) -> None:
    """FastAPI enters and leaves a sync `yield` dependency in two contexts."""
    db = store.db
    app = store.app()
    sessions: list[Session] = []

    def block() -> Iterator[Session]:
        with db(commit_on_exit=True):
            yield db.session

    @app.post("/")
    def route(session: Session = Depends(block)) -> bool:  # noqa: B008
        sessions.append(session)
        session.add(User(name="ann"))
        session.flush()
        return session is db.session

    with client_of(serve, app) as client:
        assert client.post("/").json() is False  # the route sees its request's own
        store.assert_settled()
    with pytest.raises(MissingSessionError):
        sessions[0].scalars(select(User)).all()
    assert store.users() == ["ann"]


def test_close_in_a_block_and_more_use_after_it_goes_on(store: Store) -> None:
    db = store.configure()
    with db(commit_on_exit=True):
        db.session.add(User(name="lost"))
        db.session.flush()
        db.session.close()
        db.session.add(User(name="kept"))
    assert store.users() == ["kept"]


WRITES: dict[str, Callable[[Session], object]] = {
    "add": lambda session: session.add(User(name="x")),
    "flush": lambda session: (session.add(User(name="x")), session.flush()),
    "insert": lambda session: session.execute(insert(User), [{"name": "x"}]),
    "update": lambda session: session.execute(update(User).values(name="x")),
    "delete": lambda session: session.execute(delete(User)),
    "text": lambda session: session.execute(text("INSERT INTO users (name) VALUES ('x')")),
    "with text": lambda session: session.execute(
        text("WITH n AS (SELECT 1 AS n) UPDATE users SET name = 'x' WHERE id IN (SELECT n FROM n)")
    ),
    "dirty": lambda session: setattr(session.get(User, 1), "name", "x"),
    "deleted": lambda session: session.delete(session.get(User, 1)),
    "savepoint": lambda session: session.begin_nested().__enter__().session.execute(delete(User)),
}
READS: dict[str, Callable[[Session], object]] = {
    "nothing": lambda session: None,
    "select": lambda session: session.scalars(select(User)).all(),
    "get": lambda session: session.get(User, 1),
    "query": lambda session: session.query(User).all(),
    "count": lambda session: session.scalar(select(func.count()).select_from(User)),
    "text": lambda session: session.execute(text("  select 1")),
    "with": lambda session: session.execute(text("WITH n AS (SELECT 1 AS n) SELECT n FROM n")),
    "for update": lambda session: session.scalars(select(User).with_for_update()).all(),
    "committed": lambda session: (session.add(User(name="x")), session.commit()),
    "rolled back": lambda session: (session.add(User(name="x")), session.rollback()),
    "refresh": lambda session: session.refresh(session.get_one(User, 1)),
}


@pytest.mark.parametrize("kind", WRITES)
async def test_what_was_written_is_uncommitted(postgresql_store: Store, kind: str) -> None:
    db = postgresql_store.configure()
    postgresql_store.backend.execute("INSERT INTO users (name) VALUES ('ann')")
    with db():
        WRITES[kind](db.session)
        assert db.uncommitted
        db.session.rollback()
        assert not db.uncommitted
    async with db():
        await db.async_session.run_sync(WRITES[kind])
        assert db.uncommitted
        await db.async_session.rollback()
        assert not db.uncommitted
    await db.adispose()


@pytest.mark.parametrize("kind", READS)
async def test_what_was_read_or_ended_is_not_uncommitted(
    postgresql_store: Store, kind: str
) -> None:
    db = postgresql_store.configure()
    postgresql_store.backend.execute("INSERT INTO users (name) VALUES ('ann')")
    with db():
        READS[kind](db.session)
        assert not db.uncommitted
    async with db():
        await db.async_session.run_sync(READS[kind])
        assert not db.uncommitted
    assert not db.uncommitted
    await db.adispose()


def test_statements_and_connections_go_through_the_methods_that_are_watched() -> None:
    """`activity` overrides these private methods of `Session`."""
    for name in ("_execute_internal", "_connection_for_bind"):
        assert callable(getattr(Session, name))


def test_two_databases_have_scopes_of_their_own(sqlite_store: Store) -> None:
    db, other = sqlite_store.configure(), Database("other")
    other.configure(db_url=sqlite_store.url)
    with db(), other():
        assert db.session is not other.session
    other.dispose()


def test_a_thread_that_uses_the_session_while_its_scope_ends_leaks_nothing(
    postgresql_store: Store,
) -> None:
    db = postgresql_store.configure()
    for _ in range(30):
        started = threading.Event()
        ended: list[BaseException] = []

        def query() -> None:
            try:
                while True:
                    db.session.scalar(text("SELECT 1"))
                    db.session.rollback()
                    started.set()  # noqa: B023
            except BaseException as exc:
                ended.append(exc)  # noqa: B023

        with db():
            assert db.session
            thread = threading.Thread(target=contextvars.copy_context().run, args=(query,))
            thread.start()
            started.wait(60)
        thread.join(60)
        assert ended
        wait_until(lambda: postgresql_store.checked_out() == 0, "the connection is back")
