"""SIGTERM, and the end of a run, while the ledger is away, or does not answer."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.backends import Backend
from support.processes import Process, Run, Start, run
from support.proxy import Proxy, proxy_to
from support.waiting import wait_until

APP = """
import pathlib, time
from fastapi import FastAPI
from fastapi_sqlalchemy import DBSessionMiddleware
from fsa_cli import task

app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url={url!r})

@task(schedule="every 1s")
def wait():
    print("begun", flush=True)
    while not (pathlib.Path(__file__).parent / "go").exists():
        time.sleep(0.02)
    print("ended", flush=True)
"""


@pytest.fixture(params=["postgresql", "mariadb"])
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def proxy(backend: Backend) -> Iterator[Proxy]:
    with proxy_to(backend.url) as proxy:
        yield proxy


@pytest.fixture
def scheduler(
    proxy: Proxy, backend: Backend, fsa: Run, fsa_process: Start, tmp_path: Path
) -> Process:
    """A scheduler whose ledger is behind `proxy`, and that runs `wait`."""
    (tmp_path / "main.py").write_text(APP.format(url=proxy.url(backend.url)))
    assert fsa("scheduler", "init").returncode == 0
    process = fsa_process("scheduler", "start", "--grace", "10")
    process.wait_for("begun")
    return process


def test_it_ends_although_the_ledger_does_not_answer(
    scheduler: Process, proxy: Proxy, tmp_path: Path
) -> None:
    (tmp_path / "go").touch()
    scheduler.wait_for("succeeded")
    proxy.silent.set()

    done = scheduler.stop()

    assert done.returncode == 4
    assert "error: the ledger does not take " in done.stderr


def test_how_a_run_has_ended_is_told_when_the_ledger_is_back(
    scheduler: Process, proxy: Proxy, backend: Backend, tmp_path: Path
) -> None:
    """It is kept for the whole grace: else the row says `running`, and another node repeats it."""
    end_while_away(scheduler, proxy, tmp_path)
    scheduler.send(signal.SIGTERM)
    with pytest.raises(AssertionError, match="did not end"):
        scheduler.wait(within_s=5)
    proxy.away.clear()

    assert scheduler.wait().returncode == 0
    assert set(backend.rows("SELECT status FROM fsa_run WHERE started_ms IS NOT NULL")) == {
        ("succeeded",)
    }


def test_what_the_ledger_was_not_told_is_said(
    scheduler: Process, proxy: Proxy, backend: Backend, tmp_path: Path
) -> None:
    end_while_away(scheduler, proxy, tmp_path)

    done = scheduler.stop()

    assert done.returncode == 4
    assert "error: the ledger does not take the end of 1 run: the ledger cannot be" in done.stderr
    ((run_id,),) = backend.rows("SELECT id FROM fsa_run WHERE status = 'running'")
    assert f"  run {run_id} of wait\n" in done.stderr


def end_while_away(scheduler: Process, proxy: Proxy, directory: Path) -> None:
    proxy.away.set()
    proxy.drop_all()
    (directory / "go").touch()
    scheduler.wait_for("ended")
    wait_until(lambda: "cannot be reached" in scheduler.stderr, "the outage is said")


RUN_TASK = """
import time
from fastapi import FastAPI
from fastapi_sqlalchemy import DBSessionMiddleware, db
from fsa_cli import task
from sqlalchemy import text

app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url={url!r})

@task
def ask():
    db.session.execute(text("SELECT 1"))
    print("begun", flush=True)
    db.session.execute(text("SELECT {sleep}(600)"))

@task
def wait():
    db.session.execute(text("SELECT 1"))
    print("begun", flush=True)
    time.sleep(600)

@task
def end():
    print("begun", flush=True)
    while not pathlib.Path("go").exists():
        time.sleep(0.02)
    return "done"
""".replace("import time", "import pathlib, time", 1)


@pytest.fixture
def run_task(
    proxy: Proxy, backend: Backend, fsa: Run, fsa_process: Start, tmp_path: Path
) -> Callable[..., Process]:
    """`fsa run-task NAME` behind the proxy, with *driver*, begun."""

    def start(name: str, driver: str) -> Process:
        url = proxy.url(backend.with_driver(driver))
        sleep = "SLEEP" if driver == "pymysql" else "pg_sleep"
        (tmp_path / "main.py").write_text(RUN_TASK.format(url=url, sleep=sleep))
        assert fsa("scheduler", "init").returncode == 0
        process = fsa_process("run-task", name, env={"FSA_LEASE_S": "3"})
        process.wait_for("begun")
        return process

    return start


drivers = pytest.mark.parametrize(
    ("backend", "driver"),
    [("postgresql", "psycopg"), ("postgresql", "psycopg2"), ("mariadb", "pymysql")],
    indirect=["backend"],
)


@pytest.mark.parametrize(
    ("name", "backend", "driver"),
    [
        ("ask", "postgresql", "psycopg"),
        ("ask", "postgresql", "psycopg2"),
        ("ask", "mariadb", "pymysql"),
        ("wait", "postgresql", "psycopg"),
    ],
    indirect=["backend"],
)
def test_a_second_signal_ends_a_task_whose_server_says_nothing(
    name: str, driver: str, run_task: Callable[..., Process], proxy: Proxy
) -> None:
    """psycopg2 waits in C, where no handler of a signal is called."""
    process = run_task(name, driver)
    time.sleep(0.2)
    proxy.silent.set()

    process.send(signal.SIGTERM)
    time.sleep(0.5)
    done = process.stop()

    assert done.returncode == 143
    assert f"error: {name} was stopped by SIGTERM once more" in done.stderr
    assert f" of {name}\nhint: its row says `running`" in done.stderr


@drivers
def test_one_signal_ends_a_task_whose_server_says_nothing(
    driver: str, run_task: Callable[..., Process], proxy: Proxy
) -> None:
    process = run_task("ask", driver)
    time.sleep(0.2)
    proxy.silent.set()

    done = process.stop()

    assert done.returncode == 143
    assert "error: ask was terminated and rolled back\n  the ledger does not take" in done.stderr


@drivers
@pytest.mark.parametrize("how", ["away", "silent"])
def test_a_run_whose_end_the_ledger_does_not_take_is_named(
    how: str, driver: str, run_task: Callable[..., Process], proxy: Proxy, tmp_path: Path
) -> None:
    process = run_task("end", driver)
    getattr(proxy, how).set()
    if how == "away":
        proxy.drop_all()
    (tmp_path / "go").touch()

    done = process.wait()

    assert (done.returncode, done.stdout) == (4, "begun\ndone\n")
    assert "error: the ledger does not take the end of 1 run: " in done.stderr
    assert " of end\n" in done.stderr


def test_the_end_of_a_run_is_told_when_the_ledger_is_back(
    run_task: Callable[..., Process],
    proxy: Proxy,
    backend: Backend,
    tmp_path: Path,
) -> None:
    process = run_task("end", backend.driver)
    proxy.away.set()
    proxy.drop_all()
    (tmp_path / "go").touch()
    process.wait_for("is not told yet")
    proxy.away.clear()

    assert process.wait().returncode == 0
    assert backend.rows("SELECT status FROM fsa_run") == [("succeeded",)]


CANCEL = """
import sys, threading, time
from fastapi_sqlalchemy import Database
from fsa_cli.runner.execute import execute
from fsa_cli.runner.run import Run
from fsa_cli import task
from sqlalchemy import text

db = Database("shop")
db.configure(sys.argv[1])

@task
def ask():
    db.session.execute(text("SELECT pg_sleep(600)"))

run = Run(task=ask, arguments={}, database=db)
thread = threading.Thread(target=execute, args=(run,), daemon=True)
thread.start()
time.sleep(float(sys.argv[2]))
threading.Thread(target=run.statements.end_of_thread, daemon=True).start()
for _ in range(10):
    time.sleep(0.05)
print("other threads go on", flush=True)
thread.join(20)
print("ended" if not thread.is_alive() else "goes on", flush=True)
"""


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize("silent", [True, False])
def test_to_cancel_a_statement_of_a_silent_server_stops_no_other_thread(
    silent: bool, driver: str, postgresql: Backend
) -> None:
    """Their `cancel` keeps the interpreter to itself until the server answers."""
    url = postgresql.with_driver(driver)
    with proxy_to(url) as proxy:
        if silent:
            proxy.silent_from = b"pg_sleep"
        done = run(sys.executable, "-c", CANCEL, proxy.url(url), "2", timeout=40)
    assert done.stdout == "other threads go on\nended\n"


@pytest.mark.parametrize("command", ["start", "tick"])
def test_it_ends_although_the_ledger_falls_silent_while_it_begins(
    command: str, proxy: Proxy, backend: Backend, fsa: Run, fsa_process: Start, tmp_path: Path
) -> None:
    (tmp_path / "main.py").write_text(APP.format(url=proxy.url(backend.url)))
    assert fsa("scheduler", "init").returncode == 0
    # Before the server has its own limit, by which it would end the connection.
    proxy.silent_from = (
        b"set_config('statement_timeout'"
        if backend.name == "postgresql"
        else b"INSERT INTO fsa_node"
    )
    process = fsa_process("scheduler", command)
    wait_until(proxy.silent.is_set, "it registers")

    done = process.stop()

    assert done.returncode == 143
    assert "error: stopped by SIGTERM while it began: the ledger does not answer" in done.stderr
