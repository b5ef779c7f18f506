"""`fsa run-task` writes its run into the ledger, where there is one."""

from __future__ import annotations

import json
import re
import signal
from contextlib import closing
from pathlib import Path

import pytest

from support.processes import Run, Start
from support.shops import Shop
from support.waiting import wait_until

TASKS = """
@task
def ship(item: str = "tea", *, token: str = "none") -> dict:
    db.session.execute(INSERT, dict(n=1))
    return {"item": item}

@task
async def ship_async(session: AsyncSession) -> int:
    await session.execute(INSERT, dict(n=2))
    return 2

@task
def fail():
    db.session.execute(INSERT, dict(n=3))
    raise LookupError("no such user")

@task
def third(context: TaskContext):
    db.session.execute(INSERT, dict(n=context.attempt))
    if context.attempt < 3:
        raise LookupError("not yet")

@task
def slow(context: TaskContext):
    db.session.execute(INSERT, dict(n=4))
    with context.progress(10, "rows") as progress:
        progress.advance(4)
        print("begun", flush=True)
        time.sleep(600)

@task
async def slow_async(session: AsyncSession):
    await session.execute(INSERT, dict(n=4))
    print("begun", flush=True)
    await asyncio.sleep(600)

def plain() -> str:
    return "plain"

@task
def loaded() -> list:
    return sorted({"apscheduler", "alembic", "IPython", "rich"} & set(sys.modules))
"""


@pytest.fixture
def recorded(shop: Shop, fsa: Run) -> Shop:
    """An app with tasks and a ledger."""
    shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    return shop


@pytest.fixture
def small(small_shop: Shop, fsa: Run) -> Shop:
    small_shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    return small_shop


@pytest.mark.parametrize(("name", "n"), [("ship", 1), ("ship_async", 2)])
def test_a_run_is_recorded_with_its_arguments_its_result_and_who_asked(
    name: str, n: int, fsa: Run, recorded: Shop
) -> None:
    done = fsa("run-task", name, *(["--item", "coffee"] if n == 1 else []))

    assert done.returncode == 0, done.stderr
    assert recorded.written() == [n]
    (run,) = json.loads(fsa("runs", name, "--json").stdout)
    assert (run["status"], run["kind"], run["attempt"]) == ("succeeded", "manual", 1)
    assert run["arguments"] == ({"item": "coffee"} if n == 1 else {})
    assert run["result"] == ({"item": "coffee"} if n == 1 else 2)
    assert "@" in run["requested_by"]
    assert run["lock_key"] is None
    assert recorded.ledger("SELECT role, state FROM fsa_node") == [("command", "stopped")]
    recorded.backend.assert_released()


def test_a_run_is_not_recorded_where_there_is_no_ledger(
    fsa: Run, shop: Shop, tmp_path: Path
) -> None:
    shop.write(TASKS)

    done = fsa("run-task", "ship", env={"FSA_STATE_DIR": "state"})

    assert (done.returncode, done.stdout) == (0, '{"item": "tea"}\n')
    assert "warning" not in done.stderr
    assert not list(tmp_path.glob("*-ledger.db"))
    assert not (tmp_path / "state").exists()
    assert fsa("runs").returncode == 3


def test_a_failed_run_is_recorded_with_its_traceback(fsa: Run, recorded: Shop) -> None:
    assert fsa("run-task", "fail").returncode == 1

    (run,) = json.loads(fsa("runs", "fail", "--json").stdout)
    assert run["status"] == "failed"
    assert (run["error"]["type"], run["error"]["message"]) == ("LookupError", "no such user")
    assert "in fail" in run["error"]["traceback"]
    assert recorded.written() == []


def test_a_retried_run_is_one_row_with_the_number_of_its_last_attempt(
    fsa: Run, recorded: Shop
) -> None:
    done = fsa("run-task", "third", "--retries", "5", "--backoff", "0.01")

    assert done.returncode == 0, done.stderr
    assert recorded.written() == [3]
    rows = recorded.ledger("SELECT status, attempt FROM fsa_run")
    assert [tuple(row) for row in rows] == [("succeeded", 3)]
    earlier = json.loads(fsa("runs", "show", "third", "--json").stdout)["earlier_attempts"]
    assert [(each["attempt"], each["status"]) for each in earlier] == [(1, "failed"), (2, "failed")]
    assert all(each["error"]["message"] and each["pid"] for each in earlier)
    shown = fsa("runs", "show", "third").stdout
    assert re.search(r"\nearlier attempts\nattempt\tstatus\t.*\n1\tfailed\t.*\n2\tfailed\t", shown)


@pytest.mark.parametrize("name", ["slow", "slow_async"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)]
)
def test_a_run_that_is_stopped_is_recorded_as_interrupted(
    number: signal.Signals, code: int, name: str, fsa_process: Start, recorded: Shop
) -> None:
    process = fsa_process("run-task", name)
    process.wait_for("begun")
    assert recorded.runs() == [(name, "running")]

    done = process.stop(number)

    assert done.returncode == code
    assert recorded.runs() == [(name, "interrupted")]
    assert recorded.written() == []
    recorded.backend.assert_released()


def test_a_run_that_takes_too_long_is_recorded_as_timed_out(fsa: Run, recorded: Shop) -> None:
    assert fsa("run-task", "slow", "--timeout", "0.3").returncode == 124
    assert recorded.runs() == [("slow", "timed_out")]
    done, total, text = recorded.ledger("SELECT done, total, text FROM fsa_progress")[0]
    assert (done, total, text) == (4, 10, "rows")


def test_a_run_can_be_cancelled_from_another_process(
    fsa: Run, fsa_process: Start, recorded: Shop
) -> None:
    process = fsa_process("run-task", "slow")
    process.wait_for("begun")
    (run_id,) = recorded.ledger("SELECT id FROM fsa_run")[0]

    assert fsa("runs", "cancel", run_id[:8]).returncode == 0

    done = process.wait()
    assert done.returncode == 143
    assert "slow was cancelled and rolled back" in done.stderr
    assert recorded.runs() == [("slow", "cancelled")]
    assert recorded.written() == []


def test_a_run_of_a_process_that_was_declared_dead_commits_nothing(
    fsa_process: Start, recorded: Shop
) -> None:
    recorded.write(
        """
        @task
        def late():
            db.session.execute(INSERT, dict(n=5))
            print("begun", flush=True)
            while not pathlib.Path("go").exists():
                time.sleep(0.02)
        """
    )
    process = fsa_process("run-task", "late")
    process.wait_for("begun")
    sql = "UPDATE fsa_run SET status = 'interrupted'"
    if recorded.backend.name == "sqlite":
        import sqlite3

        (file,) = recorded.directory.glob("*-ledger.db")
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute(sql)
        connection.close()
    else:
        recorded.backend.execute(sql)

    (recorded.directory / "go").touch()
    done = process.wait()

    assert done.returncode == 1
    assert "no longer this process's: nothing is committed" in done.stderr
    assert recorded.written() == []


def test_no_record_and_a_dry_run_leave_no_row(fsa: Run, small: Shop) -> None:
    assert fsa("run-task", "ship", "--no-record").returncode == 0
    assert fsa("run-task", "ship", env={"FSA_RUN_TASK_NO_RECORD": "1"}).returncode == 0
    assert fsa("run-task", "ship", "--dry-run").returncode == 0

    assert small.runs() == []
    assert small.written() == [1, 1]


def test_a_secret_is_not_kept(fsa: Run, small: Shop) -> None:
    assert fsa("run-task", "ship", "--token", "s3cret").returncode == 0

    (arguments,) = small.ledger("SELECT arguments FROM fsa_run")[0]
    assert json.loads(arguments) == {"token": "***"}


def test_a_function_that_is_no_task_is_recorded_under_its_place(fsa: Run, small: Shop) -> None:
    assert fsa("run-task", "main:plain").stdout == "plain\n"
    assert small.runs() == [("main:plain", "succeeded")]


def test_a_recorded_run_loads_no_scheduler(fresh_fsa: Run, small: Shop) -> None:
    assert fresh_fsa("run-task", "loaded").stdout == "[]\n"
    assert small.runs() == [("loaded", "succeeded")]


def test_the_lock_is_held_while_it_runs_and_says_by_whom(
    fsa: Run, fsa_process: Start, recorded: Shop
) -> None:
    process = fsa_process("run-task", "slow", "--lock")
    process.wait_for("begun")

    second = fsa("run-task", "slow", "--lock")

    assert second.returncode == 75
    assert "slow is locked: a run of slow goes on" in second.stderr
    assert f"pid {process.pid}" in second.stderr
    assert recorded.runs() == [("slow", "running")]
    process.stop()
    assert recorded.ledger("SELECT count(*) FROM fsa_run WHERE lock_key IS NOT NULL") == [(0,)]


def test_the_lock_keeps_the_scheduler_from_running_it(
    fsa_process: Start, small_shop: Shop, fsa: Run
) -> None:
    small_shop.write(TASKS.replace("@task\ndef slow", "@task(schedule='every 1s')\ndef slow"))
    assert fsa("scheduler", "init").returncode == 0
    process = fsa_process("run-task", "slow", "--lock")
    process.wait_for("begun")

    scheduler = fsa_process("scheduler", "start", env={"FSA_STATE_DIR": "state"})
    scheduler.wait_for("slow  skipped")

    assert "begun" not in scheduler.stdout
    assert process.returncode is None


def test_the_lock_needs_a_ledger(fsa: Run, small_shop: Shop) -> None:
    small_shop.write(TASKS)

    done = fsa("run-task", "ship", "--lock")

    assert done.returncode == 3
    assert "there is no ledger of runs yet" in done.stderr
    assert "fsa scheduler init" in done.stderr
    assert small_shop.written() == []
    assert fsa("run-task", "ship", "--lock", "--no-record").returncode == 2


@pytest.mark.parametrize(
    ("url", "warning"),
    [
        ("postgresql+psycopg://ann:s3cret@127.0.0.1:1/shop", "the ledger cannot be reached"),
        ("sqlite:///old.db", "the ledger's table fsa_node has no column"),
        ("mongodb://127.0.0.1/shop", "the ledger cannot be on mongodb"),
    ],
)
def test_a_ledger_that_is_away_or_old_keeps_no_task_from_running(
    url: str, warning: str, fsa: Run, small_shop: Shop
) -> None:
    import sqlite3

    small_shop.write(TASKS)
    with closing(sqlite3.connect(small_shop.directory / "old.db")) as connection, connection:
        connection.execute("CREATE TABLE fsa_run (id TEXT)")
        for name in ("fsa_node", "fsa_node_task", "fsa_progress"):
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM fsa_run")
    connection.close()

    done = fsa("run-task", "ship", env={"FSA_LEDGER_URL": url})

    assert done.returncode == 0, done.stderr
    assert small_shop.written() == [1]
    assert done.stderr.count("warning: ") == 1
    assert "the run is not recorded" in done.stderr
    assert warning in done.stderr
    assert "s3cret" not in done.stderr


def test_a_ledger_that_goes_away_meanwhile_keeps_no_task_from_ending(
    fsa_process: Start, small: Shop
) -> None:
    small.write(
        """
        @task
        def wait():
            print("begun", flush=True)
            while not pathlib.Path("go").exists():
                time.sleep(0.02)
            return "done"
        """
    )
    process = fsa_process("run-task", "wait")
    process.wait_for("begun")
    (file,) = small.directory.glob("*-ledger.db")
    for each in small.directory.glob("*-ledger.db*"):
        each.unlink()
    file.mkdir()

    (small.directory / "go").touch()
    done = process.wait()

    assert (done.returncode, done.stdout) == (0, "begun\ndone\n")


def test_a_killed_run_is_marked_by_the_next_scheduler(
    fsa: Run, fsa_process: Start, recorded: Shop
) -> None:
    process = fsa_process("run-task", "slow", env={"FSA_LEASE_S": "3"})
    process.wait_for("begun")
    process.kill()
    recorded.write(TASKS + "\n@task(schedule='@yearly')\ndef yearly(): ...\n")

    fsa_process("scheduler", "start", env={"FSA_STATE_DIR": "state", "FSA_LEASE_S": "3"})

    wait_until(lambda: recorded.runs() == [("slow", "interrupted")])
