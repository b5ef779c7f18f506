"""A scope that is cancelled, at each of its awaits: nothing leaks, and nobody is told a lie."""

import asyncio
import gc
import itertools
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from fastapi_sqlalchemy import Database, MissingSessionError
from fastapi_sqlalchemy.sessions.shielding import start, wait_shielded
from support.models import User
from support.releases import LOSES_CANCELLED_CONNECTIONS, LOSES_THEM
from support.stores import Store, at_commit
from support.waiting import wait_until

Cancel = Callable[[asyncio.Task[Any]], None]


class Interrupted:
    """Runs `work` in a task and cancels it at its n-th suspension, if there are so many."""

    def __init__(self, work: Coroutine[Any, Any, Any], nth: int) -> None:
        self.reached = False
        self._work = work
        self._nth = nth

    @types.coroutine
    def steps(self, cancel: Callable[[], None]) -> Generator[Any, Any, Any]:
        """`work`, with `cancel` called right after its n-th suspension."""
        suspensions = 0
        thrown: BaseException | None = None
        while True:
            try:
                waited_for = self._work.throw(thrown) if thrown else self._work.send(None)
            except StopIteration as done:
                return done.value
            if suspensions == self._nth:
                self.reached = True
                asyncio.get_running_loop().call_soon(cancel)
            suspensions += 1
            thrown = None
            try:
                yield waited_for
            except BaseException as exc:
                thrown = exc


async def by_task_cancel(interrupted: Interrupted) -> Any:
    async def main() -> Any:
        task = asyncio.current_task()
        assert task is not None
        return await interrupted.steps(task.cancel)

    return await asyncio.create_task(main())


async def by_task_cancel_again_and_again(interrupted: Interrupted) -> Any:
    async def main() -> Any:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        turns = itertools.count()

        def cancel() -> None:
            if not task.done():
                task.cancel()
                # At each turn of the loop; what takes longer is a server's answer.
                loop.call_later(0 if next(turns) < 200 else 0.001, cancel)

        return await interrupted.steps(cancel)

    return await asyncio.create_task(main())


async def by_timeout(interrupted: Interrupted) -> Any:
    try:
        async with asyncio.timeout(None) as limit:
            return await interrupted.steps(lambda: limit.reschedule(0))
    except TimeoutError:
        raise asyncio.CancelledError from None


async def by_task_group(interrupted: Interrupted) -> Any:
    class Stop(Exception):
        pass

    failing = asyncio.Event()

    async def fail() -> None:
        await failing.wait()
        raise Stop

    try:
        async with asyncio.TaskGroup() as group:
            other = group.create_task(fail())
            result = await interrupted.steps(failing.set)
            other.cancel()
        return result
    except* Stop:
        pass
    raise asyncio.CancelledError


async def by_anyio_scope(interrupted: Interrupted) -> Any:
    with anyio.CancelScope() as scope:
        return await interrupted.steps(scope.cancel)
    raise asyncio.CancelledError


WAYS = [
    by_task_cancel,
    by_task_cancel_again_and_again,
    by_timeout,
    by_task_group,
    by_anyio_scope,
]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def cancelled_by(request: pytest.FixtureRequest) -> Callable[[Interrupted], Any]:
    way: Callable[[Interrupted], Any] = request.param
    return way


async def at_every_await(
    make: Callable[[int], Coroutine[Any, Any, Any]],
    cancelled_by: Callable[[Interrupted], Any],
    check: Callable[[int, bool], None],
) -> int:
    """Run what `make(n)` returns, cancelled at its n-th await, n = 0.. until it ends untouched."""
    if LOSES_CANCELLED_CONNECTIONS:
        pytest.skip(LOSES_THEM)
    loop = asyncio.get_running_loop()
    report = loop.get_exception_handler() or (lambda loop, context: None)

    def excuse_asyncpg(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # What asyncpg.connect() leaves behind where it is cancelled itself.
        if "unexpected connection_lost() call" not in str(context.get("exception")):
            report(loop, context)

    loop.set_exception_handler(excuse_asyncpg)
    for nth in range(500):
        interrupted = Interrupted(make(nth), nth)
        try:
            await cancelled_by(interrupted)
        except asyncio.CancelledError:
            confirmed = False
        else:
            confirmed = True
        check(nth, confirmed)
        if not interrupted.reached:
            assert confirmed
            return nth
    raise AssertionError("it never ended untouched")


async def test_an_async_scope_cancelled_at_any_await_is_whole_or_nothing(
    async_store: Store, cancelled_by: Callable[[Interrupted], Any]
) -> None:
    db = async_store.configure()

    async def write(nth: int) -> None:
        async with db(commit_on_exit=True):
            session = db.async_session
            session.add(User(name=f"{nth} first"))
            await session.flush()
            session.add(User(name=f"{nth} second"))

    def check(nth: int, confirmed: bool) -> None:
        assert async_store.checked_out() == 0, nth
        rows = [name for name in async_store.users() if name.startswith(f"{nth} ")]
        assert len(rows) in ((2,) if confirmed else (0, 2)), (nth, rows)

    assert await at_every_await(write, cancelled_by, check) > 3
    await db.adispose()


async def test_both_sessions_cancelled_at_any_await_are_committed_together(
    async_postgresql_store: Store, cancelled_by: Callable[[Interrupted], Any]
) -> None:
    store = async_postgresql_store
    db = store.configure()

    async def write(nth: int) -> None:
        async with db(commit_on_exit=True):
            db.session.add(User(name=f"{nth} sync"))
            db.async_session.add(User(name=f"{nth} async"))

    def check(nth: int, confirmed: bool) -> None:
        assert store.checked_out() == 0, nth
        rows = [name for name in store.users() if name.startswith(f"{nth} ")]
        assert len(rows) in ((2,) if confirmed else (0, 2)), (nth, rows)

    assert await at_every_await(write, cancelled_by, check) >= 1
    await db.adispose()


async def test_a_scope_that_rolls_back_cancelled_at_any_await_keeps_nothing(
    async_store: Store, cancelled_by: Callable[[Interrupted], Any]
) -> None:
    db = async_store.configure()

    async def read_and_write(nth: int) -> None:
        async with db():
            await db.async_session.scalars(select(User))
            db.async_session.add(User(name=str(nth)))
            await db.async_session.flush()

    def check(nth: int, confirmed: bool) -> None:
        assert async_store.checked_out() == 0, nth

    assert await at_every_await(read_and_write, cancelled_by, check) > 3
    assert async_store.users() == []
    await db.adispose()


async def test_a_custom_aiosqlite_engine_closes_what_it_was_opening_when_it_was_cancelled(
    sqlite_store: Store, cancelled_by: Callable[[Interrupted], Any]
) -> None:
    """From Python 3.13 on, sqlite3 warns of a connection that nobody closed."""
    engine = create_async_engine(sqlite_store.backend.with_driver("aiosqlite"))
    db = sqlite_store.db
    db.configure(custom_async_engine=engine)

    async def connect(nth: int) -> None:
        async with db():
            await db.async_session.connection()

    def check(nth: int, confirmed: bool) -> None:
        gc.collect()

    assert await at_every_await(connect, cancelled_by, check) > 1
    await engine.dispose()


async def test_a_connection_that_is_stopped_while_it_closes_keeps_no_loop_from_ending(
    sqlite_store: Store,
) -> None:
    """SQLAlchemy stops one whose `close()` was cancelled, and leaves the `close()` behind."""
    db = sqlite_store.configure()
    async with db():
        lent = await (await db.async_session.connection()).get_raw_connection()
        connection: Any = lent.driver_connection
        if not hasattr(connection, "stop"):
            pytest.skip("aiosqlite before 0.22 has no stop()")
        closing = asyncio.create_task(connection.close())
        await asyncio.sleep(0)
        connection.stop()
        connection._thread.join(10)
        closing.cancel()
        done, _ = await asyncio.wait([closing], timeout=10)
        assert done
    await db.adispose()


@pytest.mark.parametrize("side", ["sync", "async"])
async def test_a_request_cancelled_at_any_await_is_committed_or_has_not_answered(
    async_store: Store, cancelled_by: Callable[[Interrupted], Any], side: str
) -> None:
    store, db = async_store, async_store.db
    app: FastAPI = store.app(commit_on_exit=True)

    @app.post("/{name}")
    async def route(name: str) -> int:
        if side == "sync":
            db.session.add(User(name=name))
        else:
            db.async_session.add(User(name=name))
            await db.async_session.flush()
        return 1

    answered: set[int] = set()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def post(nth: int) -> None:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                assert message["status"] == 200
                answered.add(nth)
            await asyncio.sleep(0)

        await app(_asgi(f"/n{nth}"), receive, send)

    def check(nth: int, confirmed: bool) -> None:
        assert store.checked_out() == 0, nth
        if nth in answered:
            assert f"n{nth}" in store.users()
        else:
            assert not confirmed

    assert await at_every_await(post, cancelled_by, check) >= 2
    await db.adispose()


async def test_a_request_cancelled_at_any_await_leaves_nothing_of_what_it_has_read(
    async_store: Store, cancelled_by: Callable[[Interrupted], Any]
) -> None:
    store, db = async_store, async_store.db
    store.backend.execute("INSERT INTO users (name) VALUES ('ann')")
    app: FastAPI = store.app()
    found: list[str] = []

    @app.post("/{name}")
    async def route(name: str) -> JSONResponse:
        user = (await db.async_session.scalars(select(User))).one()

        async def after() -> None:
            found.append(user.name)
            await db.async_session.scalar(select(User.id))

        return JSONResponse({}, background=BackgroundTask(after))

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def post(nth: int) -> None:
        async def send(message: Message) -> None:
            await asyncio.sleep(0)

        await app(_asgi(f"/n{nth}"), receive, send)

    def check(nth: int, confirmed: bool) -> None:
        assert store.checked_out() == 0, nth

    assert await at_every_await(post, cancelled_by, check) > 5
    assert set(found) == {"ann"}
    await asyncio.to_thread(store.assert_settled)
    await db.adispose()


def _asgi(path: str) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }


@pytest.mark.parametrize("side", ["sync", "async"])
async def test_a_commit_that_is_under_way_is_waited_for_and_then_the_task_is_cancelled(
    postgresql_store: Store, side: str
) -> None:
    store = postgresql_store
    at_commit(store.backend, "PERFORM pg_advisory_xact_lock(43)")
    db = store.configure()
    waiting = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event = 'advisory' AND query LIKE 'COMMIT%'"
    )

    async def write() -> None:
        async with db(commit_on_exit=True):
            (db.session if side == "sync" else db.async_session).add(User(name="ann"))

    holder = Database("holder")
    holder.configure(db_url=store.backend.url)
    with holder():
        holder.session.execute(text("SELECT pg_advisory_xact_lock(43)"))
        task = asyncio.create_task(write())
        await asyncio.to_thread(wait_until, lambda: store.backend.rows(waiting))
        for _ in range(10):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        assert store.backend.rows(waiting)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.users() == ["ann"]
    assert store.checked_out() == 0
    holder.dispose()
    await db.adispose()


async def test_a_commit_in_a_cancelled_anyio_scope_is_waited_for_without_being_cancelled_on_and_on(
    postgresql_store: Store,
) -> None:
    """anyio cancels in every turn of the loop whoever is not shielded."""
    store = postgresql_store
    at_commit(store.backend, "PERFORM pg_advisory_xact_lock(43)")
    db = store.configure()
    waiting = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event = 'advisory' AND query LIKE 'COMMIT%'"
    )
    scope = anyio.CancelScope()

    async def write() -> None:
        with scope:
            async with db(commit_on_exit=True):
                db.async_session.add(User(name="ann"))

    holder = Database("holder")
    holder.configure(db_url=store.backend.url)
    with holder():
        holder.session.execute(text("SELECT pg_advisory_xact_lock(43)"))
        task = asyncio.create_task(write())
        await asyncio.to_thread(wait_until, lambda: store.backend.rows(waiting))
        scope.cancel()
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
        assert task.cancelling() <= 2
    await task
    assert scope.cancelled_caught
    assert store.users() == ["ann"]
    assert store.checked_out() == 0
    holder.dispose()
    await db.adispose()


@pytest.mark.parametrize("timeout_s", [None, 0.0])
@pytest.mark.parametrize("turns", range(6))
async def test_work_that_ends_in_the_turn_of_a_cancellation_is_not_waited_for_for_ever(
    cancelled_by: Callable[[Interrupted], Any], turns: int, timeout_s: float | None
) -> None:
    """If it were, this test would never end either."""

    async def take(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    async def wait(work: asyncio.Future[None], late: int) -> None:
        await take(late)
        await wait_shielded(work, timeout_s)

    for late in range(turns + 3):
        for nth in (late, late + 1):
            work = asyncio.create_task(take(turns))
            with suppress(asyncio.CancelledError):
                await cancelled_by(Interrupted(wait(work, late), nth))
            assert work.done() or timeout_s is not None


async def test_a_task_that_was_cancelled_before_it_waits_is_let_go_once_the_work_is_done() -> None:
    """Its cancellation is passed on to what it waits for in the very moment that it begins to."""
    released, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await released.wait()
        ended.set()

    async def wait() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await wait_shielded(start(work()))

    waiting = asyncio.create_task(wait())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    released.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()


async def test_work_that_is_cancelled_itself_ends_whoever_waits_for_it() -> None:
    """As `asyncio.run()` does it with each task when it shuts down."""
    work = start(asyncio.Event().wait())
    waiting = asyncio.create_task(wait_shielded(work))
    await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.cancelled()
    assert waiting.cancelling() == 0


async def test_work_that_is_not_done_in_time_goes_on_and_can_be_cancelled() -> None:
    work = start(asyncio.Event().wait())
    assert not await wait_shielded(work, 0.0)
    assert not work.done()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_a_time_limit_around_a_scope_ends_as_a_time_out(async_store: Store) -> None:
    """The cancellation that was held back while the scope ended is not lost, and not doubled."""
    db = async_store.configure()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit:
            async with db():
                await db.async_session.scalar(text("SELECT 1"))
                limit.reschedule(0)
                await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    async with db():
        assert await db.async_session.scalar(text("SELECT 1")) == 1
    await db.adispose()


@pytest.mark.parametrize("times", [10, pytest.param(50, marks=pytest.mark.slow)])
async def test_a_sync_route_that_is_given_up_leaves_no_connection(
    postgresql_store: Store, times: int
) -> None:
    """Its thread goes on after the scope has ended, in the middle of a query or between two."""
    store = postgresql_store
    app = store.app(commit_on_exit=True)
    db = store.db
    errors: list[BaseException] = []
    running = 0

    @app.post("/{name}")
    def route(name: str) -> None:
        nonlocal running
        running += 1
        try:
            while True:
                db.session.execute(text("SELECT 1"))
                db.session.rollback()
        except BaseException as exc:
            errors.append(exc)
        finally:
            running -= 1

    async def call(app: Any, receive: Receive, send: Send) -> None:
        await app(_asgi("/x"), receive, send)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        pass

    for n in range(times):
        task = asyncio.create_task(call(app, receive, send))
        while not running:
            assert not task.done(), (task, errors)
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.0007 * (n % 10))
        # Not even anyio's shield around the thread stops this one.
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while running:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(store.assert_settled)
    assert len(errors) == times
    assert any(isinstance(error, MissingSessionError) for error in errors), errors
    await db.adispose()


@pytest.mark.parametrize("scope_first", [False, True])
async def test_anyio_knows_its_cancellation_that_comes_with_the_end_of_the_time_to_wait(
    scope_first: bool,
) -> None:
    over = asyncio.Event()
    ending: Any = start(over.wait())
    with anyio.CancelScope() as scope:
        steps = (lambda: ending.expire(), scope.cancel)

        def both_in_one_turn() -> None:
            for step in reversed(steps) if scope_first else steps:
                step()

        asyncio.get_running_loop().call_soon(both_in_one_turn)
        await wait_shielded(ending, timeout_s=3600)

    assert scope.cancelled_caught
    over.set()
    await ending


async def test_anyio_knows_its_cancellation_though_a_time_out_of_asyncios_follows() -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    with anyio.CancelScope() as scope:
        async with asyncio.timeout(None) as limit:
            loop.call_soon(scope.cancel)
            loop.call_later(0.01, lambda: limit.reschedule(loop.time()))
            loop.call_later(0.03, over.set)
            await wait_shielded(start(over.wait()))

    assert scope.cancelled_caught
