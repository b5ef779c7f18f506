"""os.fork with open connections, and inside an open block: the parent's stay the parent's."""

import json
from textwrap import dedent

import pytest

from support.backends import Backend
from support.processes import Run

pytestmark = pytest.mark.slow

DRIVERS = [
    ("postgresql", "psycopg"),
    ("postgresql", "psycopg2"),
    ("mariadb", "pymysql"),
    ("sqlite", "pysqlite"),
]
ASYNC_DRIVERS = [
    ("postgresql", "psycopg"),
    ("postgresql", "asyncpg"),
    ("mariadb", "aiomysql"),
    ("mariadb", "asyncmy"),
]

# What every script begins with.
PRELUDE = """
    import gc, json, os, sys, traceback, warnings
    warnings.simplefilter("error")

    from sqlalchemy import create_engine, text
    from sqlalchemy.ext.asyncio import create_async_engine
    from fastapi_sqlalchemy import db

    url, kind = sys.argv[1:3]
    if kind == "custom":
        db.configure(custom_engine=create_engine(url))
    elif kind == "custom async":
        db.configure(custom_engine=create_async_engine(url))
    else:
        db.configure(url)
    gc.freeze()  # what is imported is no garbage of a child's

    WHO = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT connection_id()"}

    def who(session):
        sql = WHO.get(session.get_bind().dialect.name)
        if sql:
            return session.scalar(text(sql))
        return id(session.connection().connection.driver_connection)

    def insert(session, n):
        session.execute(text(f"INSERT INTO t VALUES ({n})"))

    def wait(pid):
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code == 0, f"the child ended with {code}"

    def say(**facts):
        print(json.dumps(facts), flush=True)
"""

IN_BLOCK = """
    from sqlalchemy.exc import StatementError
    from fastapi_sqlalchemy import MissingSessionError

    main = os.getpid()

    def child(behaviour, session):
        if behaviour == "exits":
            sys.exit(0)
        if behaviour == "exits at once":
            os._exit(0)
        if behaviour == "raises":
            raise RuntimeError("in the child")
        if behaviour == "uses db itself":
            with db(commit_on_exit=True):
                insert(db.session, 3)
        if behaviour == "goes on with the parent's session":
            session.rollback()
            insert(session, 4)
            session.commit()
        if behaviour in ("asks for the session", "commits", "executes"):
            try:
                if behaviour == "asks for the session":
                    db.session
                elif behaviour == "commits":
                    session.commit()
                else:
                    insert(session, 4)
            except (MissingSessionError, StatementError) as exc:
                assert "before the process forked" in str(exc)
            else:
                raise AssertionError("it is the parent's")
        if behaviour == "rolls back":
            session.rollback()
            session.close()
        if behaviour == "disposes":
            db.dispose()
        if behaviour == "configures":
            db.configure("sqlite://")

    def work(behaviour, session):
        insert(session, 1)
        before = who(session)
        pid = os.fork()
        if not pid:
            child(behaviour, session)
            return
        wait(pid)
        assert who(session) == before
        insert(session, 2)

    def in_begin(behaviour):
        with db(), db.session.begin():
            insert(db.session, 1)
            pid = os.fork()
            if not pid:
                if behaviour == "exits a begin() block":
                    sys.exit(0)
                return
            wait(pid)
            insert(db.session, 2)

    for behaviour in sys.argv[3:]:
        try:
            if "begin()" in behaviour:
                in_begin(behaviour)
            else:
                with db(commit_on_exit=True):
                    work(behaviour, db.session)
        except RuntimeError:
            if os.getpid() == main:
                raise
        except MissingSessionError:
            if os.getpid() == main or behaviour != "leaves a begin() block":
                raise
        if os.getpid() != main:
            gc.collect()
            sys.exit(0)
        with db(commit_on_exit=True):
            rows = sorted(n for n, in db.session.execute(text("SELECT n FROM t")))
            db.session.execute(text("DELETE FROM t"))
            say(behaviour=behaviour, rows=rows)
    db.engine.dispose()
"""

BEHAVIOURS = [
    "leaves",
    "leaves a begin() block",
    "exits a begin() block",
    "exits",
    "exits at once",
    "raises",
    "asks for the session",
    "rolls back",
    "commits",
    "executes",
    "disposes",
    "configures",
    "uses db itself",
    "goes on with the parent's session",
]
ROWS = {"uses db itself": [1, 2, 3], "goes on with the parent's session": [1, 2, 4]}


def forked(
    python: Run, script: str, backend: Backend, driver: str, *arguments: str
) -> list[dict[str, object]]:
    """What the script's processes said. Each must have ended well, and without a warning."""
    backend.execute("CREATE TABLE t (n integer)")
    done = python("-c", dedent(PRELUDE) + dedent(script), backend.with_driver(driver), *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kind", ["url", "custom"])
@pytest.mark.parametrize(("name", "driver"), DRIVERS)
def test_a_parents_transaction_survives_whatever_a_child_does(
    name: str, driver: str, kind: str, request: pytest.FixtureRequest, python: Run
) -> None:
    backend: Backend = request.getfixturevalue(name)
    # SQLite lets one write at a time: told below.
    behaviours = [each for each in BEHAVIOURS if name != "sqlite" or each not in ROWS]
    said = forked(python, IN_BLOCK, backend, driver, kind, *behaviours)
    assert said == [
        {"behaviour": behaviour, "rows": ROWS.get(behaviour, [1, 2])} for behaviour in behaviours
    ]
    backend.assert_released()


@pytest.mark.parametrize("kind", ["url", "custom"])
@pytest.mark.parametrize(("name", "driver"), DRIVERS)
def test_idle_connections_stay_the_parents_and_a_child_opens_its_own(
    name: str, driver: str, kind: str, request: pytest.FixtureRequest, python: Run
) -> None:
    backend: Backend = request.getfixturevalue(name)
    said = forked(
        python,
        """
        with db(commit_on_exit=True):
            insert(db.session, 1)
            before = who(db.session)
        pid = os.fork()
        if not pid:
            with db(commit_on_exit=True):
                insert(db.session, 2)
                say(child=who(db.session))
            sys.exit(0)
        wait(pid)
        with db(commit_on_exit=True):
            insert(db.session, 3)
            say(parent=who(db.session), before=before)
        db.engine.dispose()
        """,
        backend,
        driver,
        kind,
    )
    child, parent = said
    assert parent["parent"] == parent["before"]
    assert child["child"] != parent["before"] or name == "sqlite"
    assert sorted(backend.rows("SELECT n FROM t")) == [(1,), (2,), (3,)]
    backend.assert_released()


def test_a_childs_own_sqlite_connection_waits_for_the_parents_write(
    sqlite: Backend, python: Run
) -> None:
    said = forked(
        python,
        """
        from sqlalchemy.exc import OperationalError

        with db(commit_on_exit=True):
            insert(db.session, 1)
            pid = os.fork()
            if not pid:
                with db():
                    say(count=db.session.scalar(text("SELECT count(*) FROM t")))
                    try:
                        db.session.execute(text("PRAGMA busy_timeout = 50"))
                        insert(db.session, 2)
                    except OperationalError as exc:
                        say(error="database is locked" in str(exc))
                sys.exit(0)
            wait(pid)
        """,
        sqlite,
        "pysqlite",
        "url",
    )
    assert said == [{"count": 0}, {"error": True}]
    assert sqlite.rows("SELECT n FROM t") == [(1,)]


@pytest.mark.parametrize(("name", "driver"), DRIVERS)
def test_another_threads_block_survives_a_fork(
    name: str, driver: str, request: pytest.FixtureRequest, python: Run
) -> None:
    backend: Backend = request.getfixturevalue(name)
    forked(
        python,
        """
        import threading

        begun, forked = threading.Event(), threading.Event()

        def work():
            with db(commit_on_exit=True):
                insert(db.session, 1)
                before = who(db.session)
                begun.set()
                assert forked.wait(60)
                assert who(db.session) == before
                insert(db.session, 2)

        thread = threading.Thread(target=work)
        thread.start()
        assert begun.wait(60)
        pid = os.fork()
        if not pid:
            del thread, work
            gc.collect()
            sys.exit(0)
        wait(pid)
        forked.set()
        thread.join()
        """,
        backend,
        driver,
        "url",
    )
    assert sorted(backend.rows("SELECT n FROM t")) == [(1,), (2,)]
    backend.assert_released()


@pytest.mark.parametrize(("name", "driver"), DRIVERS)
def test_multiprocessings_fork_inside_a_block(
    name: str, driver: str, request: pytest.FixtureRequest, python: Run
) -> None:
    backend: Backend = request.getfixturevalue(name)
    forked(
        python,
        """
        import multiprocessing

        def child(n):
            with db(commit_on_exit=True):
                insert(db.session, n)

        context = multiprocessing.get_context("fork")
        with db():
            before = who(db.session)
            db.session.rollback()
            for n in (1, 2):
                process = context.Process(target=child, args=(n,))
                process.start()
                process.join()
                assert process.exitcode == 0
            with context.Pool(2) as pool:
                pool.map(child, [3, 4])
            assert who(db.session) == before or db.url.get_backend_name() == "sqlite"
            insert(db.session, 5)
            db.session.commit()
        """,
        backend,
        driver,
        "url",
    )
    assert sorted(backend.rows("SELECT n FROM t")) == [(n,) for n in (1, 2, 3, 4, 5)]
    backend.assert_released()


@pytest.mark.parametrize("kind", ["url", "custom async"])
@pytest.mark.parametrize(("name", "driver"), ASYNC_DRIVERS)
def test_a_parents_async_transaction_survives_a_child(
    name: str, driver: str, kind: str, request: pytest.FixtureRequest, python: Run
) -> None:
    backend: Backend = request.getfixturevalue(name)
    forked(
        python,
        """
        import asyncio

        async def work(behaviour):
            async with db(commit_on_exit=True):
                session = db.async_session
                await session.execute(text("INSERT INTO t VALUES (1)"))
                before = await session.run_sync(who)
                pid = os.fork()
                if not pid:
                    if behaviour == "exits at once":
                        os._exit(0)
                    if behaviour == "exits":
                        sys.exit(0)
                    return
                wait(pid)
                assert await session.run_sync(who) == before
                await session.execute(text("INSERT INTO t VALUES (2)"))
            if kind == "custom async":
                await db.async_engine.dispose()

        main = os.getpid()
        for behaviour in ("leaves", "exits", "exits at once"):
            asyncio.run(work(behaviour))
            gc.collect()
            if os.getpid() != main:
                sys.exit(0)
        """,
        backend,
        driver,
        kind,
    )
    assert sorted(backend.rows("SELECT n FROM t")) == [(1,)] * 3 + [(2,)] * 3
    backend.assert_released()


def test_an_in_memory_database_is_copied_into_the_child(sqlite: Backend, python: Run) -> None:
    said = forked(
        python,
        """
        db.configure("sqlite://")
        with db(commit_on_exit=True):
            db.session.execute(text("CREATE TABLE m (n integer)"))
            db.session.execute(text("INSERT INTO m VALUES (1)"))
        pid = os.fork()
        with db(commit_on_exit=True):
            db.session.execute(text(f"INSERT INTO m VALUES ({2 if pid else 3})"))
        with db():
            numbers = [n for n, in db.session.execute(text("SELECT n FROM m"))]
            if not pid:
                say(child=numbers)
                sys.exit(0)
            wait(pid)
            say(parent=numbers)
        """,
        sqlite,
        "pysqlite",
        "url",
    )
    assert said == [{"child": [1, 3]}, {"parent": [1, 2]}]


def test_a_child_of_a_child_opens_its_own(postgresql: Backend, python: Run) -> None:
    said = forked(
        python,
        """
        def generation(n):
            with db(commit_on_exit=True):
                insert(db.session, n)
                mine = who(db.session)
                say(mine=mine)
                if n < 3:
                    pid = os.fork()
                    if not pid:
                        generation(n + 1)
                        sys.exit(0)
                    wait(pid)
                    assert who(db.session) == mine

        generation(1)
        """,
        postgresql,
        "psycopg",
        "url",
    )
    assert len({str(each["mine"]) for each in said}) == 3
    assert sorted(postgresql.rows("SELECT n FROM t")) == [(1,), (2,), (3,)]
    postgresql.assert_released()


def test_a_lock_that_another_thread_held_does_not_stop_the_child(
    sqlite: Backend, python: Run
) -> None:
    said = forked(
        python,
        """
        import signal, threading

        held, forked = threading.Event(), threading.Event()
        binding = db._binding()

        def hold():
            with db._lock, binding._lock, binding.engines._lock:
                held.set()
                assert forked.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(60)
        pid = os.fork()
        if not pid:
            signal.alarm(30)
            with db():
                say(count=db.session.scalar(text("SELECT count(*) FROM t")))
            db.configure("sqlite://")
            sys.exit(0)
        wait(pid)
        forked.set()
        thread.join()
        """,
        sqlite,
        "pysqlite",
        "url",
    )
    assert said == [{"count": 0}]
