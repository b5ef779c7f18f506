"""The runner: what a task is given, what becomes of its writes, and how a run ends."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2.extensions
import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import fastapi_sqlalchemy
from fastapi_sqlalchemy import Database
from fsa_cli import Task, TaskContext
from fsa_cli.exceptions import TaskDefinitionError, TimedOut
from fsa_cli.runner.execute import execute, execute_async, failed_result, run
from fsa_cli.runner.run import Run, RunResult
from support.backends import Backend
from support.releases import LOSES_CANCELLED_CONNECTIONS, LOSES_THEM
from support.waiting import wait_until

INSERT = text("INSERT INTO written (n) VALUES (1)")


@pytest.fixture
def database(backend: Backend) -> Iterator[Database]:
    backend.execute("CREATE TABLE written (n INTEGER)")
    database = Database("tests")
    database.configure(db_url=backend.url, async_db_url=backend.async_url)
    yield database
    database.dispose()


def rows(backend: Backend) -> int:
    [(count,)] = backend.rows("SELECT count(*) FROM written")
    return int(count)


def task(function: Callable[..., Any], **options: Any) -> Task:
    return Task(name=function.__name__, function=function, **options)


def write(session: Session) -> int:
    session.execute(INSERT)
    return 7


async def write_async(session: AsyncSession) -> int:
    await session.execute(INSERT)
    return 7


def write_and_raise(session: Session) -> None:
    session.execute(INSERT)
    raise LookupError("no such user")


async def write_and_raise_async(session: AsyncSession) -> None:
    await session.execute(INSERT)
    raise LookupError("no such user")


@pytest.mark.parametrize("function", [write, write_async])
def test_a_task_that_returns_is_committed(
    function: Callable[..., Any], database: Database, backend: Backend
) -> None:
    result = run(task(function), database=database)

    assert (result.status, result.value, result.error) == ("succeeded", 7, None)
    assert rows(backend) == 1


@pytest.mark.parametrize("function", [write, write_async])
def test_commit_false_leaves_it_to_the_task(
    function: Callable[..., Any], database: Database, backend: Backend
) -> None:
    assert run(task(function, commit=False), database=database).succeeded

    assert rows(backend) == 0


@pytest.mark.parametrize("function", [write_and_raise, write_and_raise_async])
def test_a_task_that_raises_is_rolled_back(
    function: Callable[..., Any], database: Database, backend: Backend
) -> None:
    result = run(task(function), database=database)

    assert (result.status, str(result.error)) == ("failed", "no such user")
    assert not result.at_commit
    assert rows(backend) == 0


def test_arguments_and_everything_that_is_injected_arrive(database: Database) -> None:
    app = FastAPI()

    def take(name: str, session: Session, context: TaskContext, app: FastAPI, n: int = 3) -> Any:
        return name, session is database.session, context.attempt, app, n

    take.__annotations__ = {"name": str, "session": Session, "context": TaskContext, "app": FastAPI}

    result = run(task(take), {"name": "ann"}, app=app, database=database)

    assert result.value == ("ann", True, 1, app, 3)


def test_a_task_that_takes_the_app_needs_one(database: Database) -> None:
    def take(app: FastAPI) -> None: ...

    result = run(task(take), database=database)

    assert isinstance(result.error, TaskDefinitionError)
    assert "takes the app as 'app'" in str(result.error)


def test_the_global_db_is_used_where_none_is_named(backend: Backend, database: Database) -> None:
    fastapi_sqlalchemy.db.configure(db_url=backend.url, async_db_url=backend.async_url)

    def use() -> None:
        fastapi_sqlalchemy.db.session.execute(INSERT)

    try:
        assert run(task(use)).succeeded
    finally:
        fastapi_sqlalchemy.db.dispose()

    assert rows(backend) == 1


def test_a_commit_that_fails_is_a_failed_run(postgresql: Backend) -> None:
    postgresql.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
    postgresql.execute(
        "CREATE TABLE child (parent INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"
    )
    database = Database("tests")
    database.configure(db_url=postgresql.url)

    def orphan(session: Session) -> str:
        session.execute(text("INSERT INTO child VALUES (1)"))
        return "done"

    async def orphan_async(session: AsyncSession) -> str:
        await session.execute(text("INSERT INTO child VALUES (1)"))
        return "done"

    for function in (orphan, orphan_async):
        result = run(task(function), database=database)

        assert (result.status, result.at_commit, result.value) == ("failed", True, None)
        assert isinstance(result.error, IntegrityError)
    assert postgresql.rows("SELECT * FROM child") == []
    database.dispose()


def test_an_async_task_is_cancelled_at_its_time_out(database: Database, backend: Backend) -> None:
    async def slow(session: AsyncSession) -> None:
        await session.execute(INSERT)
        await asyncio.sleep(600)

    result = run(task(slow, timeout_s=0.2), database=database)

    assert result.status == "timed_out"
    assert isinstance(result.error, TimedOut)
    assert str(result.error) == "slow took longer than 0.2 s"
    assert rows(backend) == 0


def test_a_sync_task_in_the_main_thread_is_interrupted_at_its_time_out(
    database: Database, backend: Backend
) -> None:
    def slow(session: Session) -> None:
        session.execute(INSERT)
        with contextlib.suppress(Exception):  # no reason to stay
            time.sleep(600)

    before = signal.getsignal(signal.SIGALRM)
    result = run(task(slow), database=database, timeout_s=0.2)

    assert result.status == "timed_out"
    assert rows(backend) == 0
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_statement_that_psycopg_waits_for_is_cancelled_at_the_time_out(
    postgresql: Backend,
) -> None:
    database = Database("tests")
    database.configure(db_url=postgresql.url)

    def slow(session: Session) -> None:
        session.execute(text("SELECT pg_sleep(600)"))

    result = run(task(slow), database=database, timeout_s=0.3)

    assert result.status == "timed_out"
    database.dispose()
    active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)' "
    wait_until(lambda: postgresql.rows(active + "AND state = 'active'") == [(0,)])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_statement_that_sqlite_works_on_ends_at_the_time_out(
    asynchronous: bool, sqlite: Backend
) -> None:
    """And so does the run's whole transaction; the connection can be used again."""
    if asynchronous and LOSES_CANCELLED_CONNECTIONS:
        pytest.skip(LOSES_THEM)
    sqlite.execute("CREATE TABLE written (n INTEGER)")
    database = Database("tests")
    database.configure(db_url=sqlite.url)
    long = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT max(i) FROM n")

    def slow(session: Session) -> None:
        session.execute(INSERT)
        session.execute(long)

    async def slow_async(session: AsyncSession) -> None:
        await session.execute(INSERT)
        await session.execute(long)

    result = run(task(slow_async if asynchronous else slow), database=database, timeout_s=0.3)

    assert result.status == "timed_out"
    assert rows(sqlite) == 0
    assert run(task(write), database=database).succeeded
    assert rows(sqlite) == 1
    assert signal.set_wakeup_fd(-1) == -1
    database.dispose()


class Wrapped:
    """A driver's connection as an agent (APM) has it: another class, with all that it has."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        vars(self)["connection"] = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.connection, name, value)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_statement_of_sqlite_ends_also_where_an_agent_wraps_the_drivers_connections(
    asynchronous: bool, sqlite: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    if asynchronous and LOSES_CANCELLED_CONNECTIONS:
        pytest.skip(LOSES_THEM)
    connect = sqlite3.connect
    for module in (sqlite3, sqlite3.dbapi2):
        monkeypatch.setattr(module, "connect", lambda *a, **kw: Wrapped(connect(*a, **kw)))
    database = Database("tests")
    database.configure(db_url=sqlite.url)
    long = text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000000) "
        "SELECT max(i) FROM n"
    )

    def slow(session: Session) -> int:
        return int(session.scalar(long) or 0)

    async def slow_async(session: AsyncSession) -> int:
        return int(await session.scalar(long) or 0)

    begun_s = time.monotonic()
    result = run(task(slow_async if asynchronous else slow), database=database, timeout_s=0.3)

    assert result.status == "timed_out"
    assert time.monotonic() - begun_s < 10
    database.dispose()


def test_a_statement_of_psycopg2_is_cancelled_on_a_connection_of_a_class_of_the_apps_own(
    postgresql: Backend,
) -> None:
    class Connection(psycopg2.extensions.connection):
        pass

    database = Database("tests")
    url = postgresql.url.replace("+psycopg:", "+psycopg2:")
    database.configure(db_url=url, engine_args={"connect_args": {"connection_factory": Connection}})

    def slow(session: Session) -> None:
        session.execute(text("SELECT pg_sleep(20)"))

    begun_s = time.monotonic()
    assert run(task(slow), database=database, timeout_s=0.3).status == "timed_out"
    assert time.monotonic() - begun_s < 10
    database.dispose()


def in_thread(work: Callable[[], RunResult]) -> RunResult:
    results: list[RunResult] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def test_a_sync_task_in_a_thread_is_asked_to_end_and_rolled_back(
    database: Database, backend: Backend
) -> None:
    def patient(session: Session, context: TaskContext) -> str:
        session.execute(INSERT)
        while not context.cancelled:
            time.sleep(0.01)
        return "late"

    result = in_thread(lambda: run(task(patient), database=database, timeout_s=0.2))

    assert (result.status, result.value) == ("timed_out", None)
    assert rows(backend) == 0


def test_an_async_task_that_swallows_its_cancellation_is_rolled_back(
    database: Database, backend: Backend
) -> None:
    async def stubborn(session: AsyncSession) -> str:
        await session.execute(INSERT)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(600)
        return "late"

    result = run(task(stubborn), database=database, timeout_s=0.2)

    assert (result.status, result.value) == ("timed_out", None)
    assert rows(backend) == 0


def test_a_time_out_error_of_the_tasks_own_is_a_failure(database: Database) -> None:
    async def impatient() -> None:
        raise TimeoutError("the API did not answer")

    result = run(task(impatient, timeout_s=600), database=database)

    assert (result.status, str(result.error)) == ("failed", "the API did not answer")


def test_an_interruption_goes_through_after_the_rollback(
    database: Database, backend: Backend
) -> None:
    def interrupted(session: Session) -> None:
        session.execute(INSERT)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(task(interrupted), database=database)

    assert rows(backend) == 0


@pytest.mark.parametrize("kind", [GeneratorExit, asyncio.CancelledError, BaseException])
def test_any_other_exception_of_the_tasks_own_is_a_failure(
    kind: type[BaseException], database: Database, backend: Backend
) -> None:
    def fails(session: Session) -> None:
        session.execute(INSERT)
        raise kind("its own")

    result = run(task(fails), database=database)

    assert (result.status, type(result.error), str(result.error)) == ("failed", kind, "its own")
    assert rows(backend) == 0


@pytest.mark.parametrize("code", [0, 1])
def test_sys_exit_in_a_task_is_a_failure_and_ends_nothing_else(
    code: int, database: Database, backend: Backend
) -> None:
    def leave(session: Session) -> None:
        session.execute(INSERT)
        raise SystemExit(code)

    async def leave_async(session: AsyncSession) -> None:
        await session.execute(INSERT)
        raise SystemExit(code)

    for function in (leave, leave_async):
        result = run(task(function), database=database)

        assert result.status == "failed"
        assert isinstance(result.error, SystemExit)
    assert rows(backend) == 0


class GivesItself:
    def __await__(self) -> Any:
        return self
        yield


def test_what_cannot_be_awaited_is_a_failure(database: Database, backend: Backend) -> None:
    """Without an end, awaited before, or in a thread whose loop runs already."""
    once = functools.cache(write_async)

    def endless(session: Session) -> Any:
        session.execute(INSERT)
        return GivesItself()

    async def endless_async(session: AsyncSession) -> Any:
        await session.execute(INSERT)
        return GivesItself()

    async def inside_a_loop() -> RunResult:
        return run(task(lambda: insert_in_scope()), database=database)

    for function in (endless, endless_async):
        result = run(task(function), database=database)
        assert isinstance(result.error, TaskDefinitionError)
    used = once(None)  # type: ignore[arg-type]
    used.close()
    result = run(task(lambda: used), database=database)
    assert "already awaited" in str(result.error)
    result = asyncio.run(inside_a_loop())
    assert "runs an event loop already" in str(result.error)
    assert rows(backend) == 0


def test_what_a_sync_function_returns_is_awaited_within_its_time_and_until_it_is_cancelled(
    database: Database, backend: Backend
) -> None:
    DATABASES.append(database)
    started = threading.Event()

    async def slow() -> None:
        await insert_in_scope()
        started.set()
        await asyncio.sleep(600)

    assert run(task(logged(slow), timeout_s=0.3), database=database).status == "timed_out"
    assert in_thread(lambda: run(task(logged(slow)), database=database, timeout_s=0.3)).error
    started.clear()
    cancelled = Run(task=task(logged(slow)), database=database)
    results: list[RunResult] = []
    thread = threading.Thread(target=lambda: results.append(execute(cancelled)))
    thread.start()
    started.wait()
    cancelled.statements.end_of_thread()
    thread.join()
    assert isinstance(results[0].error, asyncio.CancelledError)
    assert rows(backend) == 0


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_what_a_child_of_a_returned_coroutine_raises_is_a_failure(
    kind: type[BaseException], database: Database, backend: Backend
) -> None:
    DATABASES.append(database)

    async def child() -> None:
        raise kind("its own")

    async def parent() -> None:
        await insert_in_scope()
        await asyncio.gather(child())

    result = run(task(logged(parent)), database=database)

    assert (result.status, type(result.error)) == ("failed", kind)
    assert rows(backend) == 0


def test_a_generator_inside_a_decorator_is_a_failure(database: Database) -> None:
    def numbers() -> Iterator[int]:
        yield 1

    result = run(task(logged(numbers)), database=database)

    assert isinstance(result.error, TaskDefinitionError)
    assert run(task(made_async(lambda: 1)), database=database).value == 1


def test_a_cancelled_run_is_rolled_back_and_stays_cancelled(
    database: Database, backend: Backend
) -> None:
    started = asyncio.Event()

    async def slow(session: AsyncSession) -> None:
        await session.execute(INSERT)
        started.set()
        await asyncio.sleep(600)

    async def main() -> None:
        running = asyncio.create_task(execute_async(Run(task=task(slow), database=database)))
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())

    assert rows(backend) == 0


def test_the_context_says_what_run_it_is(database: Database) -> None:
    seen: list[TaskContext] = []

    def look(context: TaskContext) -> None:
        seen.append(context)

    result = execute(Run(task=task(look), database=database, attempt=2, timeout_s=60))

    context = seen[0]
    assert (context.task, context.run_id, context.attempt) == ("look", result.run_id, 2)
    assert (context.scheduled_at, context.dry_run, context.cancelled) == (None, False, False)
    assert context.deadline is not None
    assert (context.deadline - result.started_at).total_seconds() == 60
    assert context.logger.name == "fsa.task.look"


def test_a_run_whose_stop_is_set_learns_it(database: Database) -> None:
    stop = threading.Event()

    def look(context: TaskContext) -> tuple[bool, bool]:
        before = context.cancelled
        stop.set()
        return before, context.cancelled

    assert execute(Run(task=task(look), database=database, stop=stop)).value == (False, True)


def test_progress_is_reported(database: Database) -> None:
    seen: list[tuple[int, int | None, str, bool]] = []

    def count(context: TaskContext) -> None:
        with context.progress(total=2, text="rows") as progress:
            progress.advance()
            progress.advance()

    execute(
        Run(
            task=task(count),
            database=database,
            report=lambda p: seen.append((p.done, p.total, p.text, p.finished)),
        )
    )

    assert seen == [
        (0, 2, "rows", False),
        (1, 2, "rows", False),
        (2, 2, "rows", False),
        (2, 2, "rows", True),
    ]


def test_a_run_leaves_no_connection_out(database: Database) -> None:
    for function in (write, write_and_raise, write_async, write_and_raise_async):
        run(task(function), database=database)

    assert all(side["checked_out"] == 0 for side in database.pool_status().values())


def test_a_run_inside_a_scope_has_a_session_of_its_own(
    database: Database, backend: Backend
) -> None:
    with database():
        outer = database.session
        inner = Task(name="inner", function=lambda: database.session is outer)
        result = run(inner, database=database)

    assert result.value is False


def test_what_a_run_sets_in_a_fresh_context_stays_there(database: Database) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    def put() -> None:
        variable.set("set")

    contextvars.Context().run(run, task(put), database=database)

    assert variable.get() == "unset"


class CallsAsync:
    async def __call__(self, session: AsyncSession, n: int = 1) -> int:
        await session.execute(INSERT)
        return n


class CallsWhatIsAsync:
    def __call__(self, n: int = 1) -> Any:
        return insert_in_scope(n)


async def insert_in_scope(n: int = 1) -> int:
    await DATABASES[-1].async_session.execute(INSERT)
    return n


DATABASES: list[Database] = []


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def run_to_its_end(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        async def main() -> Any:
            async with DATABASES[-1](commit_on_exit=True):
                return await function(*args, **kwargs)

        return asyncio.run(main())

    return wrapper


def made_async(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args, **kwargs)

    return wrapper


async def raises_after_insert(session: AsyncSession) -> None:
    await session.execute(INSERT)
    raise LookupError("no such user")


def insert(session: Session, n: int = 1) -> int:
    session.execute(INSERT)
    return n


@pytest.mark.parametrize(
    "function",
    [
        logged(write_async),
        logged(logged(insert_in_scope)),
        run_to_its_end(insert_in_scope),
        made_async(insert),
        made_async(insert_in_scope),
        made_async(logged(insert_in_scope)),
        logged(made_async(insert)),
        functools.partial(write_async),
        functools.partial(logged(insert_in_scope), n=7),
        functools.partial(CallsAsync(), n=7),
        CallsAsync(),
        CallsAsync().__call__,
        CallsWhatIsAsync(),
        lambda: insert_in_scope(7),
    ],
)
@pytest.mark.parametrize("thread", [False, True], ids=["main thread", "thread"])
def test_the_outermost_function_says_how_it_is_called_and_what_can_be_awaited_is(
    function: Callable[..., Any], thread: bool, database: Database, backend: Backend
) -> None:
    DATABASES.append(database)
    made = Task(name="made", function=function)

    result = (
        in_thread(lambda: run(made, database=database)) if thread else run(made, database=database)
    )

    assert (result.status, result.error) == ("succeeded", None)
    assert result.value in (1, 7)
    assert rows(backend) == 1
    failing = Task(name="failing", function=logged(raises_after_insert))
    assert run(failing, database=database).status == "failed"
    assert rows(backend) == 1


@pytest.mark.parametrize("how", ["engine_args", "custom_engine"])
def test_a_failed_run_on_an_engine_in_autocommit_says_what_stays(
    how: str, database: Database, backend: Backend
) -> None:
    plain = create_engine(backend.url)
    if how == "engine_args":
        database.configure(
            db_url=backend.url,
            async_db_url=backend.async_url,
            engine_args={"isolation_level": "AUTOCOMMIT"},
        )
    else:
        database.configure(custom_engine=plain.execution_options(isolation_level="AUTOCOMMIT"))
    functions = [write_and_raise, *([write_and_raise_async] if how == "engine_args" else [])]

    for number, function in enumerate(functions, 1):
        result = run(task(function), database=database)

        assert (result.status, result.kept) == ("failed", True)
        assert rows(backend) == number
    plain.dispose()


def test_a_failed_run_on_any_other_engine_keeps_nothing(database: Database) -> None:
    assert not run(task(write_and_raise), database=database).kept


def test_a_run_whose_attempt_cannot_be_made_ends_as_failed() -> None:
    error = LookupError("no such user")

    result = failed_result(Run(task=task(write), timeout_s=1e15), error)

    assert (result.status, result.error) == ("failed", error)
