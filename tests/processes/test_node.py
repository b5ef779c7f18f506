"""`fsa scheduler` as a real process: runs, signals, exit codes, and what is in the database."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from fsa_cli import task
from fsa_cli.processes.clock import Clock
from fsa_cli.processes.schedule_plan import plan
from fsa_cli.processes.timer import Timer
from fsa_cli.tasks.registry import registry
from support.backends import Backend
from support.processes import FSA, OpenTerminal, Process, Run, Start, write_files
from support.waiting import DEADLINE_S, wait_until

HEAD = """
import asyncio, contextvars, os, pathlib, sys, threading, time
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from fastapi_sqlalchemy import DBSessionMiddleware, db
from fsa_cli import TaskContext, task

app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url={url!r})
INSERT = text("INSERT INTO written (n) VALUES (:n)")
HERE = pathlib.Path(__file__).parent

def wait_for(name):
    while not (HERE / name).exists():
        time.sleep(0.02)
"""

# The task that the tests of stopping use: it has written, and goes on until the file `go` is there.
WAIT = """
@task(schedule="every 1s")
def wait(session: Session):
    session.execute(INSERT, dict(n=1))
    print("begun", flush=True)
    wait_for("go")
"""
WAIT_ASYNC = """
@task(schedule="every 1s")
async def wait(session: AsyncSession):
    await session.execute(INSERT, dict(n=1))
    print("begun", flush=True)
    while not (HERE / "go").exists():
        await asyncio.sleep(0.02)
"""
WAITS = pytest.mark.parametrize("source", [WAIT, WAIT_ASYNC], ids=["sync", "async"])


@pytest.fixture(params=["postgresql", "sqlite"])
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.getfixturevalue(request.param)
    return chosen


Lay = Callable[[Backend, str], None]


@pytest.fixture
def lay(tmp_path: Path) -> Lay:
    """`lay(backend, source)`: an app with these tasks, on this database."""

    def write(backend: Backend, source: str) -> None:
        backend.execute("CREATE TABLE written (n INTEGER)")
        (tmp_path / "main.py").write_text(HEAD.format(url=backend.url) + dedent(source))

    return write


def written(backend: Backend) -> list[int]:
    return [n for (n,) in backend.rows("SELECT n FROM written")]


def ledger_of(directory: Path, where: str = "1 = 1") -> list[tuple[str, str]]:
    """The task and the status of each run in the ledger of a SQLite app in *directory*."""
    return ledger_rows(directory, f"SELECT task, status FROM fsa_run WHERE {where}")


def ledger_rows(directory: Path, sql: str) -> list[Any]:
    (file,) = directory.glob("*-ledger.db")
    with contextlib.closing(sqlite3.connect(file, timeout=10)) as connection:
        return connection.execute(sql).fetchall()


def started(fsa_process: Start, *options: str) -> Process:
    process = fsa_process("scheduler", "start", *options, env={"FSA_STATE_DIR": "state"})
    process.wait_for("fsa scheduler")
    return process


def test_tasks_run_by_themselves_and_sigterm_exits_0(
    fsa_process: Start, lay: Lay, backend: Backend
) -> None:
    lay(
        backend,
        """
        import logging
        logging.basicConfig(level=logging.INFO)

        @task(schedule="every 1s")
        def sync():
            db.session.execute(INSERT, dict(n=1))

        @task(schedule="every 1s")
        async def asynchronous():
            await db.async_session.execute(INSERT, dict(n=2))
            return "done"
        """,
    )
    process = started(fsa_process)

    wait_until(lambda: {1, 2} <= set(written(backend)))
    wait_until(lambda: len(written(backend)) >= 4)
    backend.assert_no_transaction()
    done = process.stop(signal.SIGTERM)

    assert done.returncode == 0
    assert done.stdout == ""
    assert "2 tasks of main:app" in done.stderr
    assert "every task that was running has ended" in done.stderr
    assert "apscheduler" not in done.stderr
    lines = [line.split() for line in done.stderr.splitlines() if "succeeded" in line]
    assert len(lines) == len(written(backend))
    assert {line[2] for line in lines} == {"sync", "asynchronous"}
    assert any(line[-1] == "done" for line in lines)
    backend.assert_released()


@WAITS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_running_task_ends_before_the_process_does(
    number: signal.Signals,
    source: str,
    fsa_process: Start,
    lay: Lay,
    backend: Backend,
    tmp_path: Path,
) -> None:
    lay(backend, source)
    process = started(fsa_process)
    process.wait_for("begun")
    process.send(number)
    process.wait_for(f"{number.name}: waiting up to 25 s for wait (since ")
    assert process.returncode is None

    (tmp_path / "go").touch()
    done = process.wait()

    assert done.returncode == 0
    assert written(backend) == [1]


@WAITS
def test_a_running_task_ends_though_its_terminal_is_closed(
    source: str, terminal: OpenTerminal, lay: Lay, sqlite: Backend, tmp_path: Path
) -> None:
    lay(sqlite, source)
    child = terminal("fsa", "scheduler", "start", env={"FSA_STATE_DIR": "state"})
    child.expect("begun")
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), child.child_fd)
    ends = "SELECT 1 FROM fsa_node WHERE state = 'draining'"
    wait_until(lambda: ledger_rows(tmp_path, ends), "its end has begun")

    (tmp_path / "go").touch()

    wait_until(lambda: not child.isalive(), "it has ended")
    assert child.exitstatus == 0
    assert written(sqlite) == [1]


PRINTS = """
@task(schedule="every 1s"{isolated})
def prints():
    open("begun", "w").close()
    wait_for("go")
    print("x" * 20_000)
    print("more", file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("isolated", ["", ', isolation="process"'], ids=["here", "isolated"])
@pytest.mark.parametrize("output", ["pipe", "full disk"])
def test_a_task_may_print_where_nobody_reads(
    output: str, isolated: str, lay: Lay, sqlite: Backend, tmp_path: Path
) -> None:
    lay(sqlite, PRINTS.format(isolated=isolated))
    with contextlib.ExitStack() as stack:
        if output == "pipe":
            reading, writing = os.pipe()
            stack.callback(os.close, writing)
        else:
            writing = stack.enter_context(Path("/dev/full").open("w")).fileno()
        process = subprocess.Popen(
            [FSA, "scheduler", "start"], cwd=tmp_path, stdout=writing, stderr=writing
        )
        stack.callback(process.kill)
        wait_until((tmp_path / "begun").exists)
        if output == "pipe":
            os.close(reading)

        (tmp_path / "go").touch()

        wait_until(lambda: ("prints", "succeeded") in ledger_of(tmp_path), "it has ended")
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    assert ledger_of(tmp_path, "status = 'failed'") == []


@WAITS
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)]
)
def test_what_does_not_end_in_time_is_rolled_back_and_said(
    number: signal.Signals, code: int, source: str, fsa_process: Start, lay: Lay, backend: Backend
) -> None:
    lay(backend, source)
    process = started(fsa_process, "--grace", "0.2")
    process.wait_for("begun")

    done = process.stop(number)

    assert done.returncode == code
    assert f"stopped by {number.name} with work left: wait (since " in done.stderr
    backend.assert_released()
    assert written(backend) == []


@WAITS
def test_a_second_signal_does_not_wait(
    source: str, fsa_process: Start, lay: Lay, sqlite: Backend
) -> None:
    lay(sqlite, source)
    process = started(fsa_process, "--grace", "3600")
    process.wait_for("begun")
    process.send(signal.SIGTERM)
    process.wait_for("waiting up to 3600 s")

    done = process.stop(signal.SIGTERM)

    assert done.returncode == 143
    assert written(sqlite) == []


def test_a_task_that_asks_learns_that_it_is_cancelled(
    fsa_process: Start, lay: Lay, sqlite: Backend
) -> None:
    lay(
        sqlite,
        """
        @task(schedule="every 1s")
        def patient(context: TaskContext):
            print("begun", flush=True)
            while not context.cancelled:
                time.sleep(0.02)
            print("told", flush=True)
        """,
    )
    process = started(fsa_process, "--grace", "0.2")
    process.wait_for("begun")

    done = process.stop()

    assert done.returncode == 143
    assert done.stdout.endswith("told\n")


def test_a_run_that_waits_for_a_slot_is_executed_by_the_next(
    fsa_process: Start, lay: Lay, sqlite: Backend, tmp_path: Path
) -> None:
    lay(sqlite, WAIT + WAIT.replace("def wait(", "def other("))
    process = started(fsa_process, "--concurrency", "1")
    process.wait_for("begun")
    ((running, _),) = ledger_of(tmp_path, "status = 'running'")
    waiting = "other" if running == "wait" else "wait"
    wait_until(lambda: (waiting, "queued") in ledger_of(tmp_path))

    process.send(signal.SIGTERM)
    process.wait_for("SIGTERM: waiting")
    (tmp_path / "go").touch()
    done = process.wait()

    assert done.returncode == 0
    assert done.stdout == "begun\n"
    assert written(sqlite) == [1]
    again = started(fsa_process)
    wait_until(lambda: (waiting, "succeeded") in ledger_of(tmp_path))
    assert again.stop().returncode == 0


def test_one_task_does_not_run_twice_at_a_time(
    fsa_process: Start, lay: Lay, sqlite: Backend, tmp_path: Path
) -> None:
    lay(sqlite, WAIT)
    process = started(fsa_process)
    process.wait_for("wait  skipped    the run before it has not ended")
    assert process.stdout == "begun\n"

    (tmp_path / "go").touch()
    process.wait_for("succeeded")

    assert process.stop().returncode == 0


def test_a_failing_task_is_said_and_runs_again(
    fsa_process: Start, lay: Lay, backend: Backend
) -> None:
    lay(
        backend,
        """
        @task(schedule="every 1s")
        def fail():
            db.session.execute(INSERT, dict(n=1))
            raise LookupError("no such user")

        @task(schedule="every 1s")
        async def fail_async():
            await db.async_session.execute(INSERT, dict(n=1))
            raise LookupError("no such user")

        @task(schedule="every 1s")
        def leave():
            sys.exit(1)

        @task(schedule="every 1s")
        async def leave_async():
            sys.exit(1)

        @task(schedule="every 1s")
        def interrupt():
            raise KeyboardInterrupt

        @task(schedule="every 1s")
        async def interrupt_async():
            raise KeyboardInterrupt

        @task(schedule="every 1s", timeout_s=0.1)
        async def slow():
            await asyncio.sleep(600)
        """,
    )
    process = started(fsa_process)
    for name in ("fail", "fail_async", "leave", "leave_async"):
        wait_until(lambda name=name: process.stderr.count(f"  {name} ") >= 3)  # type: ignore[misc]
    for name in ("interrupt", "interrupt_async", "slow"):
        wait_until(lambda name=name: process.stderr.count(f"  {name} ") >= 3)  # type: ignore[misc]

    done = process.stop()

    assert done.returncode == 0
    assert "LookupError: no such user (main.py, line " in done.stderr
    assert "slow             timed out" in done.stderr
    assert "Traceback" not in done.stderr
    assert written(backend) == []


def test_a_database_that_is_away_at_the_start_is_said(
    fsa_process: Start, sqlite: Backend, lay: Lay, tmp_path: Path
) -> None:
    lay(
        sqlite, "@task(schedule='every 1s')\ndef use():\n    db.session.execute(text('SELECT 1'))\n"
    )
    main = tmp_path / "main.py"
    url = "postgresql+psycopg://ann:s3cret@127.0.0.1:1/shop"
    main.write_text(main.read_text().replace(repr(sqlite.url), repr(url)))

    done = fsa_process("scheduler", "start", env={"FSA_STATE_DIR": "state"}).wait()

    assert done.returncode == 4
    assert "the ledger cannot be reached" in done.stderr
    assert "s3cret" not in done.stderr


def test_each_run_knows_its_instant_and_has_a_context_of_its_own(
    fsa_process: Start, lay: Lay, sqlite: Backend
) -> None:
    lay(
        sqlite,
        """
        seen = contextvars.ContextVar("seen", default=0)

        def say(*words):
            # One write for the line and its end: two threads write, and lines must not mix.
            os.write(1, (" ".join(map(str, words)) + chr(10)).encode())

        @task(schedule="every 1s", args={"name": "ann"})
        def sync(name: str, context: TaskContext):
            seen.set(seen.get() + 1)
            say("sync", name, context.scheduled_at.isoformat(), seen.get())

        @task(schedule="every 1s")
        async def asynchronous(context: TaskContext):
            seen.set(seen.get() + 1)
            loop, thread = id(asyncio.get_running_loop()), threading.current_thread().name
            say("async", loop, thread, seen.get())
        """,
    )
    process = started(fsa_process)
    wait_until(lambda: process.stdout.count("\n") >= 6)
    process.stop()

    runs = [line.split() for line in process.stdout.splitlines()]
    instants = [datetime.fromisoformat(run[2]) for run in runs if run[0] == "sync"]
    assert instants == sorted(set(instants))
    assert all(i.microsecond == 0 and i.utcoffset() == timedelta(0) for i in instants)
    assert {run[1] for run in runs if run[0] == "sync"} == {"ann"}
    assert len({run[1] for run in runs if run[0] == "async"}) == 1, "more than one loop"
    assert {run[2] for run in runs if run[0] == "async"}.isdisjoint({"APScheduler", "MainThread"})
    assert {run[-1] for run in runs} == {"1"}


TICK = """
@task(schedule="every 1s")
def tick(context: TaskContext):
    print(context.scheduled_at.timestamp(), flush=True)
"""


def stand_still(process: Process, seconds: float) -> None:
    process.send(signal.SIGSTOP)
    stopped_at = time.time()
    wait_until(lambda: time.time() > stopped_at + seconds)
    process.send(signal.SIGCONT)


def test_what_comes_in_one_instant_is_shared_by_the_replicas_as_far_as_they_have_free_slots(
    fsa_process: Start, lay: Lay, sqlite: Backend, tmp_path: Path
) -> None:
    lay(
        sqlite,
        """
        for number in range(8):
            @task(name=f"task_{number}", schedule="every 1s", overlap="allow")
            def wait():
                time.sleep(0.3)
        """,
    )
    options = "scheduler", "start", "--concurrency", "4"
    replicas = [fsa_process(*options, env={"FSA_STATE_DIR": name}) for name in ("a", "b")]
    for replica in replicas:
        replica.wait_for("fsa scheduler")

    # Of the first that both have met, each learns that it is not alone.
    most = """
        SELECT MAX(number) FROM (
            SELECT scheduled_ms, COUNT(*) AS number FROM fsa_run
            WHERE scheduled_ms > (SELECT MAX(started_ms) + 2000 FROM fsa_node)
            GROUP BY scheduled_ms, node
        ) GROUP BY scheduled_ms HAVING SUM(number) = 8 ORDER BY scheduled_ms DESC LIMIT 5
    """

    def is_shared() -> bool:
        latest = [number for (number,) in ledger_rows(tmp_path, most)]
        return len(latest) == 5 and sum(number <= 5 for number in latest) >= 4

    # A machine that is busy may not wake the other in time: that is not so for long.
    wait_until(is_shared, "four of the latest five instants are shared")
    for replica in replicas:
        assert replica.stop().returncode == 0


def test_after_a_short_standstill_one_instant_is_run_and_the_others_are_recorded_as_skipped(
    fsa_process: Start, lay: Lay, sqlite: Backend, tmp_path: Path
) -> None:
    lay(sqlite, TICK)
    process = started(fsa_process)
    wait_until(lambda: process.stdout)
    before = process.stdout.count("\n")

    stand_still(process, 4)

    wait_until(lambda: process.stdout.count("\n") >= before + 3)
    process.stop()
    instants = [at for (at,) in ledger_rows(tmp_path, "SELECT scheduled_ms FROM fsa_run")]
    assert {b - a for a, b in pairwise(sorted(instants))} == {1000}, "an instant has no row"
    assert len(ledger_of(tmp_path, "status = 'skipped'")) >= 2
    assert set(ledger_of(tmp_path)) == {("tick", "skipped"), ("tick", "succeeded")}


def test_what_passed_while_no_scheduler_had_a_lease_is_missed_but_for_the_latest(
    fsa_process: Start, lay: Lay, sqlite: Backend, tmp_path: Path
) -> None:
    lay(sqlite, TICK)
    process = fsa_process("scheduler", "start", env={"FSA_STATE_DIR": "state", "FSA_LEASE_S": "3"})
    wait_until(lambda: process.stdout)

    began_ms = time.time() * 1000
    stand_still(process, 15)
    ended_ms = time.time() * 1000

    def gaps() -> set[int]:
        instants = [at for (at,) in ledger_rows(tmp_path, "SELECT scheduled_ms FROM fsa_run")]
        return {b - a for a, b in pairwise(sorted(instants))}

    on_time = f"scheduled_ms > {ended_ms + 1000} AND status = 'succeeded'"
    wait_until(lambda: ledger_of(tmp_path, on_time))
    wait_until(lambda: gaps() == {1000}, "each instant has a row")
    process.stop()
    # What came due a moment ago starts late, by its own timer. Of what came before it the latest is
    # caught up, but where a later one has been quicker than the look back. On a busy machine the
    # process goes on later than it was told to.
    after = f"SELECT min(started_ms) FROM fsa_run WHERE started_ms > {ended_ms - 100}"
    ((went_on_ms,),) = ledger_rows(tmp_path, after)
    passed = f"scheduled_ms BETWEEN {began_ms + 1000} AND {went_on_ms}"
    ran = f"{passed} AND status NOT IN ('missed', 'skipped')"
    assert len(ledger_of(tmp_path, "kind = 'catch_up'")) <= 1
    assert 1 <= len(ledger_of(tmp_path, ran)) <= 5
    assert len(ledger_of(tmp_path, f"{ran} AND scheduled_ms < {ended_ms - 5000}")) <= 1
    assert not ledger_of(tmp_path, f"{ran} AND started_ms < {ended_ms - 100}")
    assert len(ledger_of(tmp_path, f"{passed} AND status = 'missed'")) >= 5


def test_runs_as_json_lines(fsa_process: Start, lay: Lay, sqlite: Backend) -> None:
    lay(sqlite, "@task(schedule='every 1s')\ndef tick():\n    return 7\n")
    process = fsa_process("scheduler", "start", "--json", env={"FSA_STATE_DIR": "state"})
    process.wait_for('"status": "succeeded"')

    done = process.stop()

    assert done.returncode == 0
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["started", "stopped"]
    runs = [each for each in events if each["event"] == "run"]
    for run in runs:
        assert (run["task"], run["status"], run["result"]) == ("tick", "succeeded", 7)
        assert run["scheduled_at"].endswith("Z")
    others = [each for each in events if each["event"] != "run"]
    assert runs
    assert all(each["at"].endswith("Z") and each["message"] for each in others)


def test_it_is_alive_for_probes(fsa_process: Start, fsa: Run, lay: Lay, sqlite: Backend) -> None:
    lay(sqlite, WAIT)
    assert fsa("health", "live", env={"FSA_STATE_DIR": "state"}).returncode == 1

    process = started(fsa_process)
    process.wait_for("begun")

    assert fsa("health", "live", env={"FSA_STATE_DIR": "state"}).returncode == 0


@pytest.mark.parametrize("options", [[], ["--log-format", "json"]], ids=["text", "json"])
def test_a_heartbeat_that_cannot_be_written_is_said_once(
    options: list[str], fsa_process: Start, lay: Lay, sqlite: Backend, tmp_path: Path
) -> None:
    lay(sqlite, WAIT)
    (tmp_path / "file").touch()
    process = fsa_process("scheduler", "start", *options, env={"FSA_STATE_DIR": "file/state"})
    process.wait_for("begun")
    wait_until(lambda: "no heartbeat" in process.stderr)

    (said,) = [line for line in process.stderr.splitlines() if "no heartbeat" in line]
    assert (json.loads(said)["event"] if options else said[:7]) == "warning"


def can_unshare() -> bool:
    unshare = shutil.which("unshare")
    probe = [unshare or "", "--fork", "--pid", "true"]
    return unshare is not None and subprocess.run(probe, capture_output=True).returncode == 0


def children_of(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.skipif(not can_unshare(), reason="no right to make a PID namespace")
def test_as_pid_1_a_sigterm_ends_it_while_the_app_is_imported(tmp_path: Path) -> None:
    write_files(tmp_path, {"main.py": "import time\nopen('began', 'w').close()\ntime.sleep(60)"})
    process = subprocess.Popen(["unshare", "--fork", "--pid", FSA, "tasks"], cwd=tmp_path)
    try:
        wait_until((tmp_path / "began").exists)
        os.kill(*children_of(process.pid), signal.SIGTERM)

        assert process.wait(DEADLINE_S) == 143
    finally:
        process.kill()


@pytest.mark.skipif(not can_unshare(), reason="no right to make a PID namespace")
def test_it_can_be_pid_1(start: Start, lay: Lay, sqlite: Backend, tmp_path: Path) -> None:
    lay(sqlite, WAIT)
    process = start(
        "unshare", "--fork", "--pid", "fsa", "scheduler", "start", env={"FSA_STATE_DIR": "state"}
    )
    process.wait_for("fsa scheduler 2:")
    process.wait_for("begun")

    os.kill(*children_of(process.pid), signal.SIGTERM)
    process.wait_for("SIGTERM: waiting")
    (tmp_path / "go").touch()

    assert process.wait().returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="no right to make a PID namespace")
def test_as_pid_1_it_reaps_what_its_tasks_have_left(
    start: Start, lay: Lay, sqlite: Backend
) -> None:
    """A shell pipeline that a time-out kills: two processes a run that nobody else waits for."""
    lay(
        sqlite,
        """
        import subprocess

        @task(schedule="every 2s", isolation="process", timeout_s=0.3)
        def nightly_dump():
            subprocess.run("sleep 60 | cat", shell=True)
        """,
    )
    process = start(
        "unshare", "--fork", "--pid", "fsa", "scheduler", "start", env={"FSA_STATE_DIR": "state"}
    )
    wait_until(lambda: process.stderr.count("took longer than 0.3 s") >= 2, "two have timed out")
    (init,) = children_of(process.pid)

    wait_until(lambda: len(children_of(init)) == 1, "it has one child, the scheduler")
    assert "State:\tZ" not in Path(f"/proc/{children_of(init)[0]}/status").read_text()
    os.kill(init, signal.SIGTERM)
    assert process.wait().returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="no right to make a PID namespace")
@pytest.mark.parametrize(
    ("code", "expected"),
    [("import os; os._exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_as_pid_1_it_exits_as_its_child_does(code: str, expected: int, tmp_path: Path) -> None:
    write_files(tmp_path, {"main.py": code})
    process = subprocess.run(
        ["unshare", "--fork", "--pid", FSA, "tasks"], cwd=tmp_path, check=False, timeout=DEADLINE_S
    )
    assert process.returncode == expected


@pytest.mark.parametrize(
    ("source", "code", "messages"),
    [
        (
            "@task\ndef by_hand(): ...",
            2,
            ["no task has a schedule", "@task(schedule=", "fsa worker start executes what is"],
        ),
        (
            "@task(schedule='5/15 * * * *')\ndef a(): ...\n@task(schedule='every x')\ndef b(): ...",
            3,
            ["2 tasks cannot be scheduled", "a (main.py:", "a step without a range", "b (main.py:"],
        ),
        ("@task(schedule='@daily', timezone='Mars')\ndef a(): ...", 3, ['no time zone "Mars"']),
        ("@task(schedule='@daily')\ndef a(n: int): ...", 3, ["missing n", "args={...}"]),
        ("@task(schedule='@daily', args={'n': 'x'})\ndef a(n: int): ...", 3, ["whole number"]),
        ("@task(schedule='@daily', database='none')\ndef a(): ...", 2, ["no database 'none'"]),
    ],
)
def test_what_cannot_be_hosted_is_said_at_once(
    source: str, code: int, messages: list[str], fsa: Run, lay: Lay, sqlite: Backend
) -> None:
    lay(sqlite, source)

    done = fsa("scheduler", "start", env={"FSA_STATE_DIR": "state"})

    assert done.returncode == code
    assert all(message in done.stderr for message in messages), done.stderr
    assert len(done.stderr.splitlines()) <= 8


LISTED = """
    @task(schedule="30 3 * * *", timezone="Asia/Kolkata")
    def nightly(): ...

    @task(schedule=["every 15m", "@daily"])
    def often(): ...

    @task
    def by_hand(): ...
"""


def test_the_list_shows_each_next_instant_in_the_tasks_zone(
    fsa: Run, lay: Lay, sqlite: Backend
) -> None:
    lay(sqlite, LISTED)

    done = fsa("scheduler", "list")

    assert done.returncode == 0
    head, nightly, often = [line.split("\t") for line in done.stdout.splitlines()]
    assert head == ["task", "schedule", "zone", "next", "in", "then"]
    assert nightly[:3] == ["nightly", "30 3 * * *", "Asia/Kolkata"]
    assert nightly[3].endswith(" 03:30")
    assert often[:3] == ["often", "every 15m, @daily", "UTC"]


def test_the_list_as_json_has_instants_in_utc(fsa: Run, lay: Lay, sqlite: Backend) -> None:
    lay(sqlite, LISTED)

    nightly, often = json.loads(fsa("scheduler", "list", "--json").stdout)

    assert nightly["timezone"] == "Asia/Kolkata"
    assert all(instant.endswith("T22:00:00Z") for instant in nightly["next"])
    assert len(nightly["next"]) == len(often["next"]) == 5


def test_the_projects_time_zone_is_that_of_schedules_without_one(
    fsa: Run, lay: Lay, sqlite: Backend
) -> None:
    lay(sqlite, LISTED)

    done = fsa("scheduler", "list", env={"FSA_TIMEZONE": "Europe/Berlin"})

    assert [line.split("\t")[2] for line in done.stdout.splitlines()] == [
        "zone",
        "Asia/Kolkata",
        "Europe/Berlin",
    ]


def test_a_list_of_nothing_says_so(fsa: Run, lay: Lay, sqlite: Backend) -> None:
    lay(sqlite, "@task\ndef by_hand(): ...")

    done = fsa("scheduler", "list")
    empty = fsa("scheduler", "list", "--json")

    assert (done.returncode, done.stdout) == (0, "")
    assert "no task has a schedule" in done.stderr
    assert json.loads(empty.stdout) == []


def test_the_timer_hands_on_each_instant() -> None:
    @task(schedule="every 1s")
    def tick() -> None: ...

    fired: list[int] = []
    clock = Clock()
    timer = Timer(clock, lambda due: fired.extend(instant for _, instant in due))
    began = clock.now_ms
    timer.expect(plan([tick.task]), began)
    timer.start()
    try:
        wait_until(lambda: len(fired) >= 3)
        assert timer.alive
        assert timer.fired_until_ms >= fired[2]
    finally:
        timer.stop()
        registry.clear()

    assert fired[0] > began
    assert {later - earlier for earlier, later in pairwise(fired)} == {1000}
    assert all(instant % 1000 == 0 for instant in fired)


def test_a_schedule_that_raises_ends_the_scheduler_and_is_named(
    fsa_process: Start, lay: Lay, sqlite: Backend
) -> None:
    lay(
        sqlite,
        """
        from datetime import datetime, timedelta

        class Broken:
            ran = False

            def get_next_fire_time(self, previous, now):
                if Broken.ran:
                    raise LookupError("no more instants")
                return now + timedelta(seconds=1)

        @task(schedule=Broken())
        def tick():
            Broken.ran = True
        """,
    )

    done = started(fsa_process).wait()

    assert done.returncode == 70
    assert "the schedule of 'tick' raised LookupError: no more instants" in done.stderr
