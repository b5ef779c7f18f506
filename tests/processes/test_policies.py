"""What `@task` promises about its scheduled runs, kept by a real `fsa scheduler`."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from support.backends import Backend
from support.processes import Process, Run, Start
from support.waiting import wait_until

HEAD = """
import asyncio, os, pathlib, sys, threading, time
from datetime import datetime, timedelta, timezone
from apscheduler.triggers.date import DateTrigger
from fastapi import FastAPI
from sqlalchemy import text
from fastapi_sqlalchemy import DBSessionMiddleware, db
from fsa_cli import TaskContext, task

app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url={url!r})
HERE = pathlib.Path(__file__).parent
INSERT = text("INSERT INTO written (n) VALUES (:n)")

def wait_for(name):
    while not (HERE / name).exists():
        time.sleep(0.02)

SOON = datetime.now(timezone.utc) + timedelta(seconds=2)
once = DateTrigger(SOON)
"""

Lay = Callable[[str], Path]
Rows = Callable[..., list[Any]]


@pytest.fixture
def lay(tmp_path: Path, sqlite: Backend) -> Lay:
    """`lay(source)`: an app with these tasks on SQLite."""
    sqlite.execute("CREATE TABLE written (n INTEGER)")

    def write(source: str) -> Path:
        (tmp_path / "main.py").write_text(HEAD.format(url=sqlite.url) + dedent(source))
        return tmp_path

    return write


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """`rows(columns, where)`: of the ledger's runs, by task and instant."""

    def read(columns: str, where: str = "1 = 1") -> list[Any]:
        found = list(tmp_path.glob("*-ledger.db"))
        if not found:
            return []
        with closing(sqlite3.connect(found[0], timeout=10)) as connection:
            sql = f"SELECT {columns} FROM fsa_run WHERE {where} ORDER BY task, scheduled_ms"
            try:
                return connection.execute(sql).fetchall()
            except sqlite3.OperationalError:  # not made yet
                return []

    return read


@pytest.fixture
def host(fsa_process: Start) -> Callable[..., Process]:
    def start(*options: str, **env: str) -> Process:
        process = fsa_process("scheduler", "start", *options, env={"FSA_STATE_DIR": "state", **env})
        process.wait_for("fsa scheduler")
        return process

    return start


def test_a_run_that_fails_is_retried_as_its_row_shows(
    lay: Lay, rows: Rows, host: Callable[..., Process]
) -> None:
    lay(
        """
        @task(schedule=once, retries=2, backoff_s=0.1)
        def flaky(context: TaskContext):
            db.session.execute(INSERT, dict(n=context.attempt))
            if context.attempt < 3:
                raise LookupError(f"attempt {context.attempt}, key {context.idempotency_key}")
            return context.attempt

        @task(schedule=once, retries=1, backoff_s=0.1)
        def hopeless():
            password = "hunter2"
            raise RuntimeError(f"postgresql://ann:{password}@db/shop")
        """
    )
    process = host()

    wait_until(lambda: len(rows("id", "status IN ('succeeded', 'failed')")) == 2)
    process.stop()

    flaky, hopeless = rows("task, status, attempt, result, error_type, error, traceback")
    assert flaky == ("flaky", "succeeded", 3, "3", None, None, None)
    assert hopeless[:3] == ("hopeless", "failed", 2)
    assert hopeless[4:6] == ("RuntimeError", "postgresql://ann:***@db/shop")
    assert "in hopeless" in hopeless[6]
    assert "hunter2" not in hopeless[6]
    assert "it will be executed again" in process.stderr


def test_tasks_of_a_group_run_one_after_the_other(
    lay: Lay, rows: Rows, host: Callable[..., Process]
) -> None:
    lay(
        """
        for name in ("one", "two", "three"):
            @task(name=name, schedule=once, group="disk", overlap="queue")
            def work():
                started = time.time()
                time.sleep(0.3)
                return [started, time.time()]
        """
    )
    process = host()
    wait_until(lambda: len(rows("id", "status = 'succeeded'")) == 3)
    process.stop()

    spans = sorted(json.loads(result) for (result,) in rows("result"))
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def test_jitter_delays_a_start_and_not_its_instant(
    lay: Lay, rows: Rows, host: Callable[..., Process]
) -> None:
    lay(
        """
        for n in range(6):
            @task(name=f"task{n}", schedule=once, jitter_s=2)
            def work(context: TaskContext):
                return (datetime.now(timezone.utc) - context.scheduled_at).total_seconds()
        """
    )
    process = host()
    wait_until(lambda: len(rows("id", "status = 'succeeded'")) == 6)
    process.stop()

    instants = {at for (at,) in rows("scheduled_ms")}
    delays = [float(result) for (result,) in rows("result")]
    assert len(instants) == 1
    assert max(delays) - min(delays) > 0.2


def test_what_was_missed_is_caught_up_as_the_task_says(
    lay: Lay, rows: Rows, host: Callable[..., Process]
) -> None:
    source = """
        @task(schedule="every 1s", catch_up="all")
        def all_of_them(): ...

        @task(schedule="every 1s")
        def the_latest(): ...

        @task(schedule="every 1s", catch_up="none")
        def none_of_them(): ...
        """
    lay(source)
    first = host(FSA_LEASE_S="3")
    wait_until(lambda: len(rows("id", "status = 'succeeded'")) >= 3)
    first.kill()
    killed_ms = time.time() * 1000
    wait_until(lambda: time.time() * 1000 > killed_ms + 8000)

    second = host(FSA_LEASE_S="3")
    wait_until(lambda: rows("id", "kind = 'catch_up' AND status = 'succeeded'"))
    wait_until(lambda: not rows("id", "status = 'queued'"))
    second.stop()

    counts = {
        name: [kind for _, kind in found if kind == "catch_up"]
        for name in ("all_of_them", "the_latest", "none_of_them")
        if (found := rows("id, kind", f"task = '{name}'"))
    }
    assert len(counts["all_of_them"]) >= 3
    assert len(counts["the_latest"]) == 1
    assert counts["none_of_them"] == []
    assert not rows("id", "task = 'all_of_them' AND status = 'missed'")
    for name in counts:
        instants = [at for (at,) in rows("scheduled_ms", f"task = '{name}'")]
        assert {b - a for a, b in pairwise(instants)} == {1000}, name


def test_a_sync_task_that_goes_on_keeps_its_lock_until_it_returns(
    lay: Lay, rows: Rows, host: Callable[..., Process], tmp_path: Path
) -> None:
    lay(
        """
        @task(schedule="every 1s", timeout_s=0.5)
        def stubborn():
            db.session.execute(INSERT, dict(n=1))
            wait_for("go")
        """
    )
    process = host()
    wait_until(lambda: rows("id", "status = 'timed_out'"))
    wait_until(lambda: rows("id", "status = 'skipped'"))
    assert rows("status, lock_key IS NOT NULL", "status = 'timed_out'") == [("timed_out", 1)]

    (tmp_path / "go").touch()
    wait_until(lambda: len(rows("id", "status IN ('timed_out', 'succeeded')")) >= 2)
    assert process.stop().returncode == 0
    assert not rows("id", "status = 'running'")
    assert not rows("id", "lock_key IS NOT NULL")


def test_a_statement_that_takes_too_long_is_ended(
    fsa_process: Start, tmp_path: Path, postgresql: Backend
) -> None:
    (tmp_path / "main.py").write_text(
        HEAD.format(url=postgresql.url)
        + dedent(
            """
            @task(schedule=once, timeout_s=0.5)
            def slow():
                db.session.execute(text("SELECT pg_sleep(600)"))
            """
        )
    )
    process = fsa_process("scheduler", "start", env={"FSA_STATE_DIR": "state"})
    process.wait_for("slow")
    process.wait_for("timed out")
    asleep = "query LIKE '%pg_sleep(600)' AND state = 'active' AND datname = current_database()"
    wait_until(lambda: not postgresql.rows(f"SELECT 1 FROM pg_stat_activity WHERE {asleep}"))

    assert process.stop().returncode == 0
    ((status, error),) = postgresql.rows("SELECT status, error FROM fsa_run")
    assert status == "timed_out"
    assert error.removesuffix("; its thread goes on") == "slow took longer than 0.5 s"
    postgresql.assert_released()


def test_an_isolated_task_has_a_process_of_its_own_which_a_time_out_kills(
    lay: Lay, rows: Rows, host: Callable[..., Process], sqlite: Backend, tmp_path: Path
) -> None:
    lay(
        """
        @task(schedule=once, isolation="process")
        def well():
            db.session.execute(INSERT, dict(n=1))
            return os.getpid()

        @task(schedule=once, isolation="process")
        async def fails():
            raise LookupError("no such user")

        @task(schedule=once, isolation="process", timeout_s=0.5)
        def hangs():
            (HERE / "pid").write_text(str(os.getpid()))
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    pass

        @task(schedule=once, isolation="process")
        def dies():
            os._exit(9)
        """
    )
    process = host()
    wait_until(lambda: len(rows("id", "status NOT IN ('queued', 'running')")) == 4)
    process.stop()

    dies, fails, hangs, well = rows("task, status, error_type, error, result")
    assert dies[1:4] == ("failed", "ProcessDied", "its process has died")
    assert fails[1:4] == ("failed", "LookupError", "no such user")
    assert hangs[1:3] == ("timed_out", "TimedOut")
    assert well[1] == "succeeded"
    assert int(well[4]) not in (process.pid, os.getpid())
    assert sqlite.rows("SELECT n FROM written") == [(1,)]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_an_isolated_run_says_why_its_process_could_not_load_the_app(
    lay: Lay, rows: Rows, host: Callable[..., Process], tmp_path: Path
) -> None:
    lay(
        """
        @task(schedule="every 1s", isolation="process")
        def ship():
            (HERE / "ran").touch()
        """
    )
    process = host()
    wait_until((tmp_path / "ran").exists)
    (tmp_path / "main.py").write_text("raise RuntimeError('half deployed')\n")
    wait_until(lambda: rows("id", "status = 'failed'"))
    process.stop()

    (error_type, error), *_ = rows("error_type, error", "status = 'failed'")
    assert (error_type, error) == ("AppLoadError", "the app 'main' cannot be imported")


@pytest.mark.parametrize("name", ["types", "secrets"])
def test_an_isolated_run_takes_no_module_of_the_project_for_one_of_pythons_own(
    lay: Lay, rows: Rows, host: Callable[..., Process], tmp_path: Path, name: str
) -> None:
    """`fsa` itself does not: the project is on its path only once the app is imported."""
    lay(
        """
        @task(schedule=once, isolation="process")
        def ship():
            return "done"
        """
    )
    (tmp_path / f"{name}.py").write_text("mine = 1\n")

    process = host()
    wait_until(lambda: rows("id", "status NOT IN ('queued', 'running')"))
    process.stop()

    assert rows("status, error, result") == [("succeeded", None, '"done"')]


class Listener(http.server.BaseHTTPRequestHandler):
    heard: list[tuple[str, str]]

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.heard.append((self.path, text))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def pings() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The URL of a server that listens, and what it has heard."""
    heard: list[tuple[str, str]] = []
    handler = type("Here", (Listener,), {"heard": heard})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/check", heard
    server.shutdown()
    server.server_close()


def test_on_failure_and_pings_hear_how_runs_end(
    lay: Lay, host: Callable[..., Process], pings: tuple[str, list[tuple[str, str]]]
) -> None:
    url, heard = pings
    lay(
        f"""
        async def told(result):
            print("told of", result.task.name, result.status, result.attempt, flush=True)
            raise RuntimeError("a hook that fails")

        @task(schedule=once, retries=1, backoff_s=0.1, on_failure=told, ping={url!r})
        def fails():
            raise LookupError("no such user")

        @task(schedule=once, on_failure=[told], ping={url!r})
        async def succeeds(): ...
        """
    )
    process = host()
    process.wait_for("told of fails failed 2")
    wait_until(lambda: len(heard) >= 5)
    done = process.stop()

    assert done.stdout.count("told of") == 1
    paths = [path.partition("?")[0] for path, _ in heard]
    assert sorted(paths) == [
        "/check",
        "/check/fail",
        "/check/start",
        "/check/start",
        "/check/start",
    ]
    ((path, text),) = [each for each in heard if "/fail" in each[0]]
    assert "LookupError: no such user" in text
    assert path.count("-") == 4, "rid is a UUID"
    assert done.returncode == 0


def test_one_function_hears_of_the_failures_of_all_tasks(
    lay: Lay, host: Callable[..., Process]
) -> None:
    lay(
        """
        import fsa_cli

        def told(result):
            print("task told of", result.task.name, flush=True)

        for _ in "twice":  # as an app that is its own __main__

            @fsa_cli.on_failure
            async def all_told(result):
                print("told of", result.task.name, repr(result.error), result.attempt, flush=True)

        @task(schedule=once, on_failure=told)
        def fails():
            raise LookupError("no such user")

        @task(schedule=once, isolation="process")
        def exits():
            raise SystemExit(3)

        @task(schedule=once, retries=1, backoff_s=0.1)
        def retried(context: fsa_cli.TaskContext):
            if context.attempt == 1:
                raise LookupError
            print("executed again", flush=True)

        @task(schedule=once)
        def discarded():
            raise fsa_cli.Discard("not needed")
        """
    )
    process = host()
    process.wait_for("told of fails LookupError('no such user') 1")
    process.wait_for("told of exits")
    process.wait_for("executed again")
    told = [line for line in process.stop().stdout.splitlines() if "told of" in line]
    assert sorted(line.partition(" of ")[2].split()[0] for line in told) == [
        "exits",
        "fails",
        "fails",
    ]
    assert told.index("task told of fails") < told.index(
        "told of fails LookupError('no such user') 1"
    )


def test_a_ping_that_nobody_answers_delays_nothing(
    lay: Lay, rows: Rows, host: Callable[..., Process]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a ping is given up after 10 s
        lay(
            f"""
            @task(schedule="every 1s", ping="http://127.0.0.1:{silent.getsockname()[1]}/check")
            def tick(): ...
            """
        )
        process = host()
        wait_until(lambda: len(rows("id", "status = 'succeeded'")) >= 3)

        assert process.stop().returncode == 0
    assert all(late < 5000 for (late,) in rows("started_ms - scheduled_ms"))


def test_a_tick_runs_what_is_due_and_ends(lay: Lay, rows: Rows, fsa: Run, sqlite: Backend) -> None:
    lay(
        """
        @task(schedule="every 2s")
        def works():
            db.session.execute(INSERT, dict(n=1))

        @task(schedule="@yearly")
        def rarely(): ...
        """
    )
    env = {"FSA_STATE_DIR": "state"}
    first = fsa("scheduler", "tick", env=env)
    assert first.returncode == 0, first.stderr
    assert rows("id") == []
    time.sleep(2.1)

    second = fsa("scheduler", "tick", env=env)

    assert second.returncode == 0, second.stderr
    assert {status for (status,) in rows("status")} <= {"succeeded", "missed"}
    assert len(rows("id", "status = 'succeeded'")) == 1
    assert sqlite.rows("SELECT n FROM written") == [(1,)]


def test_a_tick_makes_all_that_it_has_to_catch_up(lay: Lay, rows: Rows, fsa: Run) -> None:
    lay(
        """
        @task(schedule="every 1s", catch_up="all")
        def works(): ...
        """
    )
    env = {"FSA_STATE_DIR": "state"}
    fsa("scheduler", "tick", env=env)
    time.sleep(3.1)

    done = fsa("scheduler", "tick", env=env)

    assert done.returncode == 0, done.stderr
    assert set(rows("status")) == {("succeeded",)}
    assert len(rows("id")) >= 3


def in_ledger(tmp_path: Path, statement: str) -> None:
    file = next(tmp_path.glob("*-ledger.db"))
    with closing(sqlite3.connect(file, timeout=10)) as connection, connection:
        connection.execute(statement)


def test_a_run_that_cannot_start_is_failed_in_the_log_as_in_the_ledger(
    lay: Lay, rows: Rows, fsa: Run, tmp_path: Path
) -> None:
    lay("@task\ndef typed(n: int): ...")
    env = {"FSA_STATE_DIR": "state"}
    fsa("scheduler", "init", env=env)
    assert fsa("run-task", "typed", "1", "--enqueue", env=env).returncode == 0
    in_ledger(tmp_path, "UPDATE fsa_run SET arguments = '{{'")

    done = fsa("scheduler", "tick", env=env)

    assert rows("status") == [("failed",)]
    assert "typed  failed" in done.stderr
    assert "skipped" not in done.stderr
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "error: a run failed")


STRANGE = ("x'ff00'", "'no number'", "1.5", "9223372036854775807", "CAST(x'ff41' AS TEXT)")


def test_what_sqlite_keeps_in_a_column_of_another_type_stops_nothing(
    lay: Lay, rows: Rows, fsa: Run, tmp_path: Path
) -> None:
    """No trigger, no check: whoever writes into the file can put anything anywhere."""
    lay("@task\ndef works(n: int = 1):\n    return n")
    env = {"FSA_STATE_DIR": "state"}
    fsa("scheduler", "init", env=env)
    assert fsa("run-task", "works", "--enqueue", env=env).returncode == 0
    file = next(tmp_path.glob("*-ledger.db"))
    with closing(sqlite3.connect(file, timeout=10)) as connection, connection:
        connection.text_factory = bytes
        names = [row[1].decode() for row in connection.execute("PRAGMA table_info(fsa_run)")]
        number = 0
        for name in sorted(set(names) - {"id", "namespace"}):
            for value in STRANGE:
                number += 1
                other = {
                    "id": f"'{number}'",
                    "scheduled_ms": f"scheduled_ms + {number}",
                    name: value,
                }
                values = ", ".join(other.get(each, each) for each in names)
                connection.execute(
                    f"INSERT OR IGNORE INTO fsa_run SELECT {values} FROM fsa_run LIMIT 1"
                )

        for at, strange_id in enumerate(("x'ff00'", "CAST(x'ff41' AS TEXT)")):
            values = ", ".join(
                {"id": strange_id, "scheduled_ms": str(at), "not_before_ms": "0"}.get(each, each)
                for each in names
            )
            connection.execute(f"INSERT INTO fsa_run SELECT {values} FROM fsa_run LIMIT 1")

    tick = fsa("scheduler", "tick", env=env)
    shown = fsa("runs", "--limit", "500", "--json", env=env)
    table = fsa("runs", "--limit", "500", env=env)

    assert "could not be handled" not in tick.stderr
    assert "Error: '<=' not" not in tick.stderr
    assert rows("count(*)", "status = 'running'") == [(0,)]
    assert rows("count(*)", "status = 'succeeded'")[0][0] > number // 2
    assert (shown.returncode, table.returncode) == (0, 0), shown.stderr + table.stderr
    assert fsa("scheduler", "status", env=env).returncode == 0


@pytest.mark.slow
def test_a_tick_whose_outcomes_the_ledger_refuses_ends_and_says_so(
    lay: Lay, rows: Rows, fsa: Run, tmp_path: Path
) -> None:
    """A trigger of the database's owner, and a table without the rights, look the same."""
    lay("@task\ndef works(): ...\n\n@task\ndef fails(): raise LookupError('gone')")
    env = {"FSA_STATE_DIR": "state"}
    fsa("scheduler", "init", env=env)
    for name in ("works", "fails"):
        assert fsa("run-task", name, "--enqueue", env=env).returncode == 0
    in_ledger(
        tmp_path,
        "CREATE TRIGGER no BEFORE UPDATE ON fsa_run WHEN NEW.status IN ('succeeded', 'failed') "
        "BEGIN SELECT RAISE(ABORT, 'the books are closed'); END",
    )

    done = fsa("scheduler", "tick", env=env)

    assert done.returncode == 4, done.stderr
    said = done.stderr.splitlines()
    (error,) = [line for line in said if line.startswith("error: ")]
    assert error.startswith("error: the ledger does not take the end of 2 runs: ")
    assert error.endswith("the books are closed")
    assert {status for (status,) in rows("status")} <= {"running", "interrupted"}
    in_ledger(tmp_path, "DROP TRIGGER no")
    fsa("scheduler", "tick", env=env)
    assert rows("status") == [("interrupted",)] * 2


def test_what_no_database_can_keep_of_an_error_is_written_so_that_it_can(
    lay: Lay, rows: Rows, fsa: Run
) -> None:
    lay(
        """
        @task(schedule="every 1s")
        def fails():
            raise LookupError("a NUL \\0 and a half of a pair \\udc80")
        """
    )
    env = {"FSA_STATE_DIR": "state"}
    fsa("scheduler", "tick", env=env)
    time.sleep(1.1)

    fsa("scheduler", "tick", env=env)

    assert rows("error", "status = 'failed'")[0] == ("a NUL \\0 and a half of a pair \\udc80",)


@pytest.mark.parametrize(
    ("error", "code", "counts"),
    [("LookupError", 1, {"failed": 1}), ("Retry(in_s=60)", 0, {"put_off": 1})],
)
def test_a_tick_with_a_failing_task_exits_1(
    error: str, code: int, counts: dict[str, int], lay: Lay, fsa: Run
) -> None:
    lay(
        f"""
        from fsa_cli import Retry

        @task(schedule="every 1s")
        def fails():
            raise {error}
        """
    )
    env = {"FSA_STATE_DIR": "state"}
    fsa("scheduler", "tick", env=env)
    time.sleep(1.1)

    done = fsa("scheduler", "tick", "--json", env=env)

    assert done.returncode == code
    assert json.loads(done.stdout) == {"runs": counts}
    assert ("a run failed" in done.stderr) is (code == 1)


def test_only_and_tags_choose_and_paused_waits(
    lay: Lay, rows: Rows, host: Callable[..., Process], fsa: Run
) -> None:
    lay(
        """
        @task(schedule="every 1s", tags=["night"])
        def one(): ...

        @task(schedule="every 1s", tags=["day"])
        def two(): ...

        @task(schedule="every 1s")
        def three(): ...
        """
    )
    process = host("--only", "one", "--only", "two", "--tag", "night")
    wait_until(lambda: rows("id", "status = 'succeeded'"))
    process.stop()
    assert {task for (task,) in rows("task")} == {"one"}

    wrong = fsa("scheduler", "start", "--tag", "noon", env={"FSA_STATE_DIR": "state"})
    assert wrong.returncode == 2
    assert "there are day, night" in wrong.stderr

    paused = host("--paused")
    wait_until(lambda: rows("id", "task = 'three' AND status = 'skipped'"))
    assert not rows("id", "task = 'three' AND status = 'succeeded'")
    paused.stop()


def test_probes_and_metrics_are_served(
    lay: Lay, host: Callable[..., Process], tmp_path: Path
) -> None:
    lay(
        """
        @task(schedule="every 1s")
        def tick(): ...

        @task(schedule="every 1s")
        def wait():
            wait_for("go")
        """
    )
    process = host("--port", "0", "--log-format", "json")
    process.wait_for("probes on http://")
    line = next(each for each in process.stderr.splitlines() if "probes on" in each)
    url = f"http://127.0.0.1:{json.loads(line)['port']}"

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url + path, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    assert get("/livez") == (200, "alive\n")
    head = urllib.request.urlopen(urllib.request.Request(url + "/livez", method="HEAD"), timeout=5)
    assert (head.status, head.headers["Content-Length"], head.read()) == (200, "6", b"")
    port = int(url.rpartition(":")[2])
    held = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(300)]
    for each in held[::2]:
        with contextlib.suppress(OSError):  # it was sent away already
            each.sendall(b"GET /livez HTTP/1.1\r\nX: ")
    start_s = time.monotonic()
    assert get("/livez") == (200, "alive\n")
    assert time.monotonic() - start_s < 5
    assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < 150
    for each in held:  # each is closed by the other side
        with contextlib.suppress(OSError):
            while each.recv(1000):
                pass
        each.close()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as long:
        with contextlib.suppress(OSError):
            long.sendall(b"GET /livez HTTP/1.1\r\n" + b"X: y\r\n" * 50_000)
            assert b"alive" not in long.recv(1000)
    wait_until(lambda: get("/readyz") == (200, "ready\n"))
    assert get("/else")[0] == 404
    wait_until(lambda: 'fsa_runs_total{status="succeeded"}' in get("/metrics")[1])
    assert "fsa_lease_trusted 1" in get("/metrics")[1]
    process.send(signal.SIGTERM)
    wait_until(lambda: get("/readyz") == (503, "draining\n"))
    (tmp_path / "go").touch()
    done = process.wait()

    assert done.returncode == 0
    documents = [json.loads(each) for each in done.stderr.splitlines()]
    runs = [each for each in documents if each["event"] == "run"]
    assert {"tick", "wait"} == {each["task"] for each in runs}
    assert all(each["scheduled_at"].endswith("Z") for each in runs)


def test_runs_can_be_cancelled_from_elsewhere(
    lay: Lay, rows: Rows, host: Callable[..., Process], sqlite: Backend
) -> None:
    lay(
        """
        @task(schedule=once)
        async def waits():
            await db.async_session.execute(INSERT, dict(n=1))
            await asyncio.sleep(600)

        @task(schedule=once)
        def asks(context: TaskContext):
            db.session.execute(text("SELECT 1"))
            while not context.cancelled:
                time.sleep(0.02)
            raise RuntimeError("told to end")
        """
    )
    process = host()
    wait_until(lambda: len(rows("id", "status = 'running'")) == 2)
    file = next(Path(str(sqlite.location.database)).parent.glob("*-ledger.db"))
    with closing(sqlite3.connect(file, timeout=10)) as connection, connection:
        connection.execute("UPDATE fsa_run SET cancel_requested_ms = 1")

    wait_until(lambda: len(rows("id", "status = 'cancelled'")) == 2)
    assert process.stop().returncode == 0
    assert sqlite.rows("SELECT n FROM written") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("overlap='twice'", 'it is one of "skip", "queue", "allow"'),
        ("catch_up='some'", 'it is one of "latest", "all", "none"'),
        ("on_crash='panic'", 'it is one of "mark", "retry"'),
        ("retries=-1", "a whole number, 0 or more"),
        ("jitter_s=-1", "seconds, 0 or more"),
        ("isolation='vm'", '"process", or None'),
        ("ping='hc-ping.com'", "a URL"),
        ("on_failure=['mail']", "a function of one argument"),
    ],
)
def test_an_option_that_cannot_be_is_said(options: str, message: str, lay: Lay, fsa: Run) -> None:
    lay(f"@task(schedule='@daily', {options})\ndef report(): ...")

    done = fsa("scheduler", "list")

    assert done.returncode == 3
    assert "task 'report' (main.py:" in done.stderr
    assert message in done.stderr
