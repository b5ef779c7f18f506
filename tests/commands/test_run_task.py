"""`fsa run-task` as a real process: what it prints, what it leaves, how it exits."""

from __future__ import annotations

import gc
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from support.backends import Backend
from support.processes import Completed, OpenTerminal, Run, Start
from support.waiting import wait_until

MAIN = """
    import asyncio, subprocess, sys, time
    from dataclasses import dataclass
    from datetime import date, datetime
    from typing import Literal
    from fastapi import FastAPI
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session
    from fastapi_sqlalchemy import DBSessionMiddleware, db
    from fsa_cli import TaskContext, task

    app = FastAPI(title="Shop")
    app.add_middleware(DBSessionMiddleware, db_url={url!r})
    INSERT = text("INSERT INTO written (n) VALUES (:n)")

    @task
    def write(n: int = 1, *, since: date | None = None) -> int:
        '''Write a number.'''
        db.session.execute(INSERT, dict(n=n))
        return n

    @task
    async def write_async(session: AsyncSession, n: int = 1) -> dict:
        await session.execute(INSERT, dict(n=n))
        return {{"n": n}}

    @task
    def fail(session: Session):
        session.execute(INSERT, dict(n=1))
        raise LookupError("no such user")

    @task
    async def fail_async(session: AsyncSession):
        await session.execute(INSERT, dict(n=1))
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(600))
            raise LookupError("no such user")

    @task
    def keep(session: Session):
        for n in 1, 2:
            session.execute(INSERT, dict(n=n))
            session.commit()
        session.execute(INSERT, dict(n=3))
        raise LookupError("no third")

    @task
    async def keep_async(session: AsyncSession):
        for n in 1, 2:
            await session.execute(INSERT, dict(n=n))
            await session.commit()
        await session.execute(INSERT, dict(n=3))
        raise LookupError("no third")

    @task
    def keep_inner(session: Session):
        session.execute(text("SELECT 1"))
        session.commit()
        with db(commit_on_exit=True):
            db.session.execute(INSERT, dict(n=1))
        raise LookupError("no third")

    @task
    def wait(session: Session):
        session.execute(INSERT, dict(n=1))
        print("waiting", flush=True)
        try:
            time.sleep(600)
        except Exception:
            pass

    @task
    async def wait_async(session: AsyncSession):
        await session.execute(INSERT, dict(n=1))
        print("waiting", flush=True)
        await asyncio.sleep(600)

    LONG = text(
        "SELECT pg_sleep(600)"
        if {url!r}.startswith("postgresql")
        else "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT count(*) FROM n"
    )

    @task
    def query(session: Session):
        session.execute(INSERT, dict(n=1))
        print("waiting", flush=True)
        session.execute(LONG)

    @task
    async def query_async(session: AsyncSession):
        await session.execute(INSERT, dict(n=1))
        print("waiting", flush=True)
        await session.execute(LONG)

    @task(backoff_s=0.02)
    def third(context: TaskContext, session: Session) -> int:
        session.execute(INSERT, dict(n=context.attempt))
        if context.attempt < 3:
            raise LookupError("not yet")
        return context.attempt

    @task
    def noisy() -> str:
        print("printed")
        subprocess.run(["echo", "echoed"], check=True)
        return "returned"

    @task
    def own(*, json: str = "no", app: str = "no", help: bool = False) -> list:
        return [json, app, help]

    @task
    def injected(app: FastAPI, context: TaskContext) -> str:
        return f"{{app.title}} {{context.attempt}} {{context.scheduled_at}}"

    @task(timeout_s=0.3)
    def slow(session: Session):
        session.execute(INSERT, dict(n=1))
        time.sleep(600)

    @task(commit=False)
    def careless(session: Session):
        session.execute(INSERT, dict(n=1))

    @task
    def leave():
        sys.exit("enough")

    @task
    def count(context: TaskContext):
        with context.progress(2, "rows") as progress:
            progress.advance(2)

    @dataclass
    class Point:
        x: int
        y: int = 0

    @task
    def typed(
        user_id: int,
        *names: str,
        mode: Literal["fast", "slow"] = "fast",
        ids: list[int] = [],
        active: bool = True,
        point: Point | None = None,
        at: datetime | None = None,
    ) -> list:
        return [user_id, names, mode, ids, active, point and [point.x, point.y], at]

    def plain(n: int) -> int:
        '''Not registered.'''
        db.session.execute(INSERT, dict(n=n))
        return n * 2
"""


@pytest.fixture(params=["postgresql", "sqlite"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """The two that differ most: the runner's own tests are on all three."""
    chosen: Backend = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def project(
    backend: Backend, write_app: Callable[..., Path], tmp_path: Path
) -> Callable[[], list[int]]:
    """The app on each database; gives the numbers that were written."""
    backend.execute("CREATE TABLE written (n INTEGER)")
    write_app(tmp_path, main=MAIN.format(url=backend.url))
    return lambda: [n for (n,) in backend.rows("SELECT n FROM written")]


@pytest.fixture
def small(sqlite: Backend, write_app: Callable[..., Path], tmp_path: Path) -> Path:
    """The app on SQLite, for what does not depend on the database."""
    sqlite.execute("CREATE TABLE written (n INTEGER)")
    return write_app(tmp_path, main=MAIN.format(url=sqlite.url))


Written = Callable[[], list[int]]


def test_a_task_is_run_and_its_row_is_there(fsa: Run, project: Written) -> None:
    done = fsa("run-task", "write", "--n", "7")

    assert (done.returncode, done.stdout) == (0, "7\n")
    assert done.stderr.startswith("write succeeded in ")
    assert done.stderr.endswith("committed\n")
    assert project() == [7]


def test_an_async_task_is_run_and_its_row_is_there(fsa: Run, project: Written) -> None:
    done = fsa("run-task", "write_async", "--n=7")

    assert (done.returncode, done.stdout) == (0, '{"n": 7}\n')
    assert project() == [7]


@pytest.mark.parametrize(("name", "nth"), [("fail", 0), ("fail_async", 1)])
def test_a_task_that_raises_exits_1_with_the_users_line(
    name: str, nth: int, fsa: Run, project: Written, tmp_path: Path
) -> None:
    source = (tmp_path / "main.py").read_text().splitlines()
    line = [n for n, text in enumerate(source, 1) if "raise LookupError" in text][nth]

    done = fsa("run-task", name)

    assert (done.returncode, done.stdout) == (1, "")
    first, *details = done.stderr.splitlines()
    assert first.startswith(f"error: {name} failed after ")
    assert first.endswith(": LookupError: no such user")
    assert details[:2] == [
        f"  main.py, line {line}, in {name}",
        '    raise LookupError("no such user")',
    ]
    assert "  what it wrote was rolled back" in details
    assert len(done.stderr.splitlines()) <= 8
    assert project() == []


@pytest.mark.parametrize(
    ("name", "said", "rows"),
    [
        ("keep", "2 commits", [1, 2]),
        ("keep_async", "2 commits", [1, 2]),
        ("keep_inner", "a commit", [1]),
    ],
)
def test_what_a_task_has_committed_before_it_failed_is_said_to_stay(
    name: str, said: str, rows: list[int], fsa: Run, project: Written
) -> None:
    done = fsa("run-task", name)

    stays = f"  what it had committed by itself stays ({said}); the rest was rolled back"
    assert (done.returncode, stays in done.stderr.splitlines()) == (1, True), done.stderr
    assert project() == rows

    dry = fsa("run-task", name, "--dry-run")
    assert (dry.returncode, "stays" in dry.stderr) == (1, False), dry.stderr
    assert project() == rows


def test_the_error_of_a_flush_before_a_query_is_the_databases_at_the_users_line(
    fsa: Run, write_app: Callable[..., None], tmp_path: Path
) -> None:
    write_app(
        tmp_path,
        main="""
            from fastapi import FastAPI
            from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
            from fastapi_sqlalchemy import DBSessionMiddleware, db
            from fsa_cli import task
            class Base(DeclarativeBase): ...
            class User(Base):
                __tablename__ = "users"
                id: Mapped[int] = mapped_column(primary_key=True)
                name: Mapped[str]
            app = FastAPI()
            app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")
            @task
            def add():
                Base.metadata.create_all(db.engine)
                db.session.add(User())
                db.session.query(User).all()
        """,
    )
    fsa("scheduler", "init")
    first, *_ = fsa("run-task", "add").stderr.splitlines()
    assert "IntegrityError: (sqlite3.IntegrityError) NOT NULL constraint failed" in first
    source = (tmp_path / "main.py").read_text().splitlines()
    (line,) = [n for n, text in enumerate(source, 1) if "query(User)" in text]
    assert f"main.py:{line}: IntegrityError: NOT NULL constraint" in fsa("status").stdout


def test_the_traceback_is_shown_when_it_is_asked_for(fsa: Run, small: Path) -> None:
    done = fsa("run-task", "fail", "--traceback")

    assert "Traceback (most recent call last)" in done.stderr
    assert "LookupError: no such user" in done.stderr


@pytest.mark.parametrize("name", ["wait", "wait_async"])
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_rolls_back(
    name: str,
    number: signal.Signals,
    code: int,
    word: str,
    fsa_process: Start,
    project: Written,
    backend: Backend,
) -> None:
    process = fsa_process("run-task", name)
    process.wait_for("waiting")

    done = process.stop(number)

    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == f"error: {name} was {word} and rolled back"
    assert project() == []
    backend.assert_released()


@pytest.mark.parametrize("words", [["query"], ["query_async"], ["query_async", "--dry-run"]])
def test_ctrl_c_ends_the_statement_that_a_task_waits_for(
    words: list[str],
    fsa_process: Start,
    project: Written,
    backend: Backend,
) -> None:
    process = fsa_process("run-task", *words)
    process.wait_for("waiting")

    done = process.stop(signal.SIGINT)

    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == f"error: {words[0]} was interrupted and rolled back"
    assert project() == []
    backend.assert_released()


def test_ctrl_c_at_a_terminal_exits_130(terminal: OpenTerminal, small: Path) -> None:
    child = terminal("fsa", "run-task", "wait")
    child.expect("waiting")
    child.sendintr()
    child.expect("interrupted and rolled back")
    child.expect_exact("\n")
    child.wait()

    assert child.exitstatus == 130


@pytest.mark.parametrize(
    "words", [["slow"], ["wait", "--timeout", "0.3"], ["wait_async", "--timeout=0.3"]], ids=str
)
def test_a_time_out_rolls_back_and_exits_124(words: list[str], fsa: Run, project: Written) -> None:
    done = fsa("run-task", *words)

    assert done.returncode == 124
    assert f"error: {words[0]} took longer than 0.3 s" in done.stderr
    assert project() == []


def test_a_dry_run_reports_rows_by_table_and_leaves_none(fsa: Run, project: Written) -> None:
    done = fsa("run-task", "write", "--dry-run", "--n", "7")

    assert (done.returncode, done.stdout) == (
        0,
        "7\ntable\tinserted\tupdated\tdeleted\nwritten\t1\t0\t0\n",
    )
    told, kept = done.stderr.splitlines()
    assert told.endswith("; a dry run: all of it was rolled back")
    assert kept.startswith("not undone: ")
    assert project() == []

    again = fsa("run-task", "--dry-run", "write_async", "--json")
    table = {"database": "default", "table": "written", "inserted": 1, "updated": 0, "deleted": 0}
    assert json.loads(again.stdout)["dry_run"]["tables"] == [table | {"inserted_or_updated": 0}]
    assert project() == []


def test_a_dry_run_of_a_task_that_fails_exits_1(fsa: Run, small: Path) -> None:
    done = fsa("run-task", "fail", "--dry-run")

    assert (done.returncode, done.stdout) == (1, "")
    assert "LookupError: no such user" in done.stderr


@pytest.mark.parametrize(
    ("options", "pauses"), [([], (0.02, 0.04)), (["--backoff=0.01"], (0.01, 0.02))], ids=str
)
def test_retries_follow_with_a_growing_pause(
    options: list[str], pauses: tuple[float, float], fsa: Run, project: Written
) -> None:
    done = fsa("run-task", "third", "--retries", "2", *options)

    assert (done.returncode, done.stdout) == (0, "3\n")
    first, second, last = done.stderr.splitlines()
    assert first.startswith("attempt 1 of 3 failed after ")
    assert first.endswith(f": LookupError: not yet; the next one in {pauses[0]} s")
    assert second.endswith(f"; the next one in {pauses[1]} s")
    assert last.startswith("third succeeded")
    assert project() == [3]


def test_retries_end(fsa: Run, small: Path) -> None:
    done = fsa("run-task", "third", env={"FSA_RUN_TASK_RETRIES": "1", "FSA_RUN_TASK_BACKOFF": "0"})

    assert done.returncode == 1
    assert "error: third failed in attempt 2 after " in done.stderr


def test_arguments_are_taken_from_json(fsa: Run, small: Path, tmp_path: Path) -> None:
    (tmp_path / "args.json").write_text('{"n": 5, "since": "2026-01-01"}')

    assert fsa("run-task", "write", "--args-json", '{"n": 4}').stdout == "4\n"
    assert fsa("run-task", "write", "--args-json=@args.json").stdout == "5\n"
    assert fsa("run-task", "write", "--args-json", "-", "--n=7", input='{"n": 6}').stdout == "7\n"


def test_commit_false_is_said(fsa: Run, project: Written) -> None:
    done = fsa("run-task", "careless")

    assert done.returncode == 0
    assert "not committed: the task says commit=False" in done.stderr
    assert project() == []


def test_a_function_that_is_not_registered_is_run_by_module_and_name(
    fsa: Run, project: Written
) -> None:
    done = fsa("run-task", "main:plain", "4")

    assert (done.returncode, done.stdout) == (0, "8\n")
    assert project() == [4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wrte"], "there is no task 'wrte'\nhint: did you mean write"),
        (["xyz"], "there is no task 'xyz'\nhint: there are careless, count"),
        (["nowhere:f"], "there is no module 'nowhere'"),
        (["main:plian"], "main has no function 'plian'\nhint: did you mean main:plain?"),
        (["write", "--n", "x"], '--n "x": expected a whole number'),
        (["write", "--since", "soon"], '--since "soon": expected a date like 2026-11-22'),
        (["write", "7"], 'unexpected argument "7": the task takes none'),
        (["write", "--m", "7"], "no such option: --m"),
        (
            ["write", "--timeout-s", "7"],
            "no such option: --timeout-s\nhint: did you mean --timeout",
        ),
        (["write", "--timeout", "0"], '--timeout "0": expected seconds, more than 0'),
        (["write", "--timeout", "1e15"], '--timeout "1e15": expected seconds, more than 0, up to'),
        (["--timeout", "-1", "write"], '--timeout "-1": expected seconds, more than 0'),
        (["main:plain"], "missing N (a whole number)\nhint: fsa run-task main:plain -h"),
        (["write", "--retries", "x"], '--retries "x": expected a whole number, 0 or more'),
        (["write", "--timeout"], "--timeout needs a value"),
        (["write", "--args-json", "n=1"], '--args-json "n=1": not JSON: '),
        (["write", "--args-json", '{"n": "x"}'], '--args-json n "x": expected a whole number'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_word_exits_2_in_one_line(
    words: list[str], message: str, fsa: Run, small: Path
) -> None:
    done = fsa("run-task", *words)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    ("line", "given", "returned"),
    [
        ("7", "", [7, [], "fast", [], True, None, None]),
        (
            "7 ann bob --mode slow --no-active",
            "",
            [7, ["ann", "bob"], "slow", [], False, None, None],
        ),
        ("-7 --ids 1 --ids=2", "", [-7, [], "fast", [1, 2], True, None, None]),
        ("7 --ids -", "3\n4\n", [7, [], "fast", [3, 4], True, None, None]),
        ('7 --point {"x":1}', "", [7, [], "fast", [], True, [1, 0], None]),
        ("7 --point @point.json", "", [7, [], "fast", [], True, [2, 3], None]),
        ("7 --at 2026-01-02T03:04", "", [7, [], "fast", [], True, None, "2026-01-02T03:04:00"]),
        ("7 -- -x --ids 1 -y", "", [7, ["-x", "-y"], "fast", [1], True, None, None]),
        ("7 -- -- --ids", "", [7, ["--ids"], "fast", [], True, None, None]),
    ],
)
def test_words_arrive_in_the_task_as_what_it_says(
    line: str, given: str, returned: list[object], fsa: Run, small: Path
) -> None:
    (small / "point.json").write_text('{"x": 2, "y": 3}')

    done = fsa("run-task", "typed", *line.split(), input=given)

    assert (done.returncode, json.loads(done.stdout)) == (0, returned)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seven", 'USER_ID "seven": expected a whole number'),
        ("7 --mode fsat", '--mode "fsat": expected one of fast, slow\nhint: did you mean fast?'),
        ("7 --ids x", '--ids "x": expected a whole number'),
        ("7 ann b\udcff", 'NAMES "b\\udcff": not UTF-8'),
        ('7 --point {"y":1}', '--point "{"y":1}": x: '),
        ("7 --point @none", '--point "@none": cannot read none: No such file'),
        ("7 --at soon", '--at "soon": expected a date and time like 2026-11-22T15:30'),
    ],
)
def test_words_that_do_not_fit_are_refused_in_a_line(
    line: str, message: str, fsa: Run, small: Path
) -> None:
    done = fsa("run-task", "typed", *line.split())

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) <= 2


def test_a_database_that_cannot_be_reached_exits_4(
    fsa: Run, write_app: Callable[..., Path], tmp_path: Path
) -> None:
    url = "postgresql+psycopg://ann:s3cret@127.0.0.1:1/shop"
    write_app(tmp_path, main=MAIN.format(url=url))

    for name in ("write", "write_async"):
        done = fsa("run-task", name)

        assert done.returncode == 4
        assert "cannot be reached" in done.stderr
        assert "127.0.0.1:1" in done.stderr
        assert "s3cret" not in done.stderr


def test_json_has_the_run_and_prints_go_to_stderr(fsa: Run, small: Path) -> None:
    done = fsa("run-task", "noisy", "--json")

    run = json.loads(done.stdout)
    assert (run["task"], run["status"], run["result"]) == ("noisy", "succeeded", "returned")
    assert run["error"] is None
    assert (run["progress"], run["dry_run"]) == ([], None)
    assert run["started_at"].endswith("Z")
    assert run["duration_ms"] > 0
    assert done.stderr.splitlines() == ["printed", "echoed"]


def test_json_of_a_failed_run_says_where(fsa: Run, small: Path) -> None:
    done = fsa("run-task", "fail", "--json")

    assert done.returncode == 1
    run, error = json.loads(done.stdout), json.loads(done.stderr)
    assert run["status"] == "failed"
    assert run["error"]["type"] == "LookupError"
    assert run["error"]["file"].endswith("main.py")
    assert (error["error"], error["exit_code"]) == ("task_failed", 1)


def test_what_a_task_prints_is_on_stdout_without_json(fsa: Run, small: Path) -> None:
    assert fsa("run-task", "noisy").stdout == "printed\nechoed\nreturned\n"


def result(done: Completed) -> object:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_flag_that_the_task_has_too_is_the_tasks_after_its_name(fsa: Run, small: Path) -> None:
    assert result(fsa("run-task", "own", "--json", "yes")) == ["yes", "no", False]
    assert result(fsa("run-task", "own", "--help")) == ["no", "no", True]
    assert result(fsa("run-task", "own", "--", "--app", "x:y")) == ["no", "x:y", False]
    run = result(fsa("run-task", "--json", "own"))
    assert isinstance(run, dict)
    assert run["result"] == ["no", "no", False]


def test_an_app_flag_that_could_be_either_is_refused(fsa: Run, small: Path) -> None:
    done = fsa("run-task", "own", "--app", "main:app")

    assert done.returncode == 2
    assert "--app after 'own' may be fsa's" in done.stderr
    assert "own -- --app" in done.stderr


def test_fsas_flags_are_understood_after_the_name(fsa: Run, small: Path, tmp_path: Path) -> None:
    (tmp_path / "main.py").rename(tmp_path / "other.py")

    done = fsa("run-task", "write", "--app", "other:app", "--n", "3", "-q")

    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def test_the_app_and_the_context_are_injected(fsa: Run, small: Path) -> None:
    assert fsa("run-task", "injected").stdout == "Shop 1 None\n"


def test_help_after_the_name_is_the_tasks_own(fsa: Run, small: Path) -> None:
    for word in ("--help", "-h"):
        done = fsa("run-task", "write", word)

        assert done.returncode == 0
        assert done.stdout.startswith("fsa run-task write [--n INTEGER] [--since DATE]\n")
        assert "Write a number." in done.stdout


def test_help_before_the_name_is_fsas(fsa: Run, tmp_path: Path) -> None:
    done = fsa("run-task", "--help")  # there is no app here

    assert done.returncode == 0
    assert "Run one task now, here" in done.stdout


def test_progress_is_a_field_of_the_run_in_json(fsa: Run, small: Path) -> None:
    run = json.loads(fsa("run-task", "count", "--json").stdout)

    assert run["progress"] == [{"text": "rows", "done": 2, "total": 2}]


def test_progress_is_a_bar_on_a_terminal_and_nothing_elsewhere(
    fsa: Run, terminal: OpenTerminal, small: Path
) -> None:
    child = terminal("fsa", "run-task", "count")
    child.expect("rows .*2/2.*count succeeded")
    assert fsa("run-task", "count").stderr.startswith("count succeeded")


def test_sys_exit_in_a_task_is_a_failure(fsa: Run, small: Path) -> None:
    done = fsa("run-task", "leave")

    assert done.returncode == 1
    assert "it called sys.exit('enough')" in done.stderr


def test_run_task_loads_no_scheduler(fresh_fsa: Run, small: Path) -> None:
    with (small / "main.py").open("a") as main:
        main.write(
            "\n@task\ndef loaded() -> list:\n"
            "    heavy = {'apscheduler', 'alembic', 'IPython', 'rich'}\n"
            "    others = {'sqlalchemy.dialects.postgresql', 'sqlalchemy.dialects.mysql'}\n"
            "    return sorted((heavy | others) & set(sys.modules))\n"
        )

    assert fresh_fsa("run-task", "loaded").stdout == "[]\n"


def test_a_task_has_its_garbage_collected_as_python_does(fresh_fsa: Run, small: Path) -> None:
    with (small / "main.py").open("a") as main:
        main.write(
            "\n@task\ndef collects() -> list:\n"
            "    import gc\n"
            "    return [gc.isenabled(), *gc.get_threshold()]\n"
        )

    assert json.loads(fresh_fsa("run-task", "collects").stdout) == [True, *gc.get_threshold()]


def test_a_killed_task_leaves_nothing_behind(
    fsa_process: Start, project: Written, backend: Backend
) -> None:
    process = fsa_process("run-task", "wait")
    process.wait_for("waiting")

    process.kill()

    backend.assert_released()
    wait_until(lambda: project() == [])


def test_what_is_fsas_or_a_lifespans_is_said(
    fsa: Run, write_app: Callable[..., Path], tmp_path: Path
) -> None:
    write_app(
        tmp_path,
        main="""
            from fastapi import FastAPI
            from fastapi_sqlalchemy import DBSessionMiddleware
            from fsa_cli import task
            app = FastAPI()
            app.add_middleware(DBSessionMiddleware, db_url="sqlite://")

            @task
            def deploy(*, env: str = "test") -> str:
                return env

            @task
            def stateful() -> object:
                return app.state.pool
        """,
    )

    refused = fsa("run-task", "deploy", "--env", "prod", "--no-record")
    assert refused.returncode == 3
    assert "a parameter of that name is given after --: fsa run-task deploy --" in refused.stderr
    assert fsa("run-task", "deploy", "--", "--env", "prod").stdout == "prod\n"
    assert "no lifespan of the app runs around a task" in fsa("run-task", "stateful").stderr
