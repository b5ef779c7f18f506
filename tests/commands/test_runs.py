"""`fsa runs`: what ran, and what becomes of it."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pexpect
import pytest

from fsa_cli import task
from fsa_cli.exceptions import TaskDefinitionError
from support.backends import Backend
from support.processes import OpenTerminal, Run, Start
from support.shops import Shop
from support.waiting import wait_until

STATE = {"FSA_STATE_DIR": "state"}
TASKS = """
@task
def ship(item: str = "tea") -> str:
    db.session.execute(INSERT, dict(n=1))
    return item

@task
def fail():
    raise LookupError("no such user")

@task
def wait(context: TaskContext):
    print("begun", flush=True)
    while not context.cancelled:
        time.sleep(0.02)

@task
def hide(token: str = "none"): ...
"""


@pytest.fixture
def ran(shop: Shop, fsa: Run) -> Shop:
    """An app whose tasks `ship` and `fail` have run once, in this order."""
    shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    assert fsa("run-task", "ship", "--item", "coffee").returncode == 0
    assert fsa("run-task", "fail").returncode == 1
    return shop


@pytest.fixture
def small(small_shop: Shop, fsa: Run) -> Shop:
    small_shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    return small_shop


def documents(fsa: Run, *words: str) -> list[dict[str, object]]:
    done = fsa("runs", *words, "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_the_latest_runs_are_shown_first_in_plain_lines(fsa: Run, ran: Shop) -> None:
    head, *lines = fsa("runs").stdout.splitlines()

    assert head == "run\ttask\tstatus\tat (UTC)\ttook\twhat it said"
    cells = [line.split("\t") for line in lines]
    assert [(row[1], row[2]) for row in cells] == [("fail", "failed"), ("ship", "succeeded")]
    assert [row[-1] for row in cells] == ["LookupError: no such user", "coffee"]
    ran.backend.assert_released()


def test_what_a_database_said_stands_in_the_line_before_it_is_cut(fsa: Run, small: Shop) -> None:
    small.write(
        """
        @task
        def ask():
            db.session.execute(text("SELECT missing"))
        """
    )
    assert fsa("run-task", "ask").returncode == 1

    shown = fsa("runs").stdout
    (run,) = documents(fsa)

    assert "OperationalError: no such column: missing" in shown
    assert "(sqlite3.OperationalError) no such column" in str(run["error"])


def test_runs_are_chosen_by_task_status_and_time(fsa: Run, ran: Shop) -> None:
    def tasks(*words: str) -> list[object]:
        return [each["task"] for each in documents(fsa, *words)]

    assert tasks("ship") == ["ship"]
    assert tasks("ship", "--limit", "1", "-q") == ["ship"]
    assert tasks("--task", "fail") == ["fail"]
    assert tasks("--limit", "1") == ["fail"]
    assert tasks("--status", "succeeded", "--status", "missed") == ["ship"]
    assert tasks("--since", "1h") == ["fail", "ship"]
    assert tasks("--since", "2030-01-01T00:00:00Z") == []
    assert tasks("--since", "90000000h") == ["fail", "ship"]
    for words in (
        *(["--since", given] for given in ("soon", "99999999999h", "9" * 5000 + "h")),
        *(["--status", "odd"], ["--limit", "0"], ["--queue", "\udcff"]),
    ):
        assert fsa("runs", *words).returncode == 2, words


def test_a_run_is_shown_in_full_by_the_beginning_of_its_id(fsa: Run, ran: Shop) -> None:
    (run,) = documents(fsa, "fail")
    assert isinstance(run["id"], str)
    short = str(run["id"])[:6]

    shown = fsa("runs", "show", short).stdout
    document = json.loads(fsa("runs", "show", short, "--json").stdout)

    assert f"run\t{run['id']}\ntask\tfail\nstatus\tfailed\n" in shown
    assert "error\tLookupError: no such user\n" in shown
    assert f"try it again\tfsa runs retry {run['id'][:8]}\n" in shown
    assert shown.rstrip().endswith("LookupError: no such user")
    assert "Traceback (most recent call last):" in shown
    assert document == {**run, "earlier_attempts": []}


def test_a_run_that_is_not_there_or_not_the_only_one_is_said(fsa: Run, ran: Shop) -> None:
    missing = fsa("runs", "show", "zzz")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "there is no run 'zzz'" in missing.stderr
    typo = fsa("runs", "show", "shipp")
    assert typo.returncode == 2
    assert "there is no run 'shipp'\nhint: did you mean ship?" in typo.stderr
    assert "error: wait has not run yet\n" in fsa("runs", "show", "wait").stderr
    many = "from main import ship; [ship.enqueue() for _ in range(16)]"
    assert fsa("shell", "-c", many).returncode == 0
    ids = [str(run["id"]) for run in documents(fsa)]
    first = next(a[0] for a in ids if sum(b[0] == a[0] for b in ids) > 1)

    several = fsa("runs", "show", first)

    assert several.returncode == 2
    assert f"{first!r} is the beginning of more than one run" in several.stderr


def test_an_unknown_task_is_said_with_the_one_that_was_meant(fsa: Run, small: Shop) -> None:
    done = fsa("runs", "shp")

    assert done.returncode == 2
    assert "there is no task 'shp'" in done.stderr
    assert "did you mean ship?" in done.stderr
    for words, hint in (
        (["list"], "fsa runs"),
        (["logs"], "fsa runs show last"),
        (["failed"], "fsa runs --status failed"),
        (["--failed"], "--status failed"),
    ):
        assert fsa("runs", *words).stderr.endswith(f"hint: {hint}\n"), words
    assert fsa("runs", "ship").stderr == "ship has not run yet\n"


def test_the_id_of_a_run_in_place_of_a_task_is_said_with_the_command_that_shows_it(
    fsa: Run, ran: Shop
) -> None:
    shown = str(documents(fsa, "ship")[0]["id"])[:8]

    done = fsa("runs", shown)

    assert done.returncode == 2
    assert f"error: {shown!r} is a run, not a task\nhint: fsa runs show {shown}\n" in done.stderr


def test_the_runs_of_a_task_that_is_no_longer_there_are_shown(fsa: Run, ran: Shop) -> None:
    ran.write("")

    assert [run["task"] for run in documents(fsa, "ship")] == ["ship"]
    again = fsa("runs", "retry", str(documents(fsa, "ship")[0]["id"]))
    assert again.returncode == 2
    assert "there is no task 'ship'" in again.stderr


def test_a_run_is_retried_with_its_arguments(fsa: Run, ran: Shop) -> None:
    (before,) = documents(fsa, "ship")

    done = fsa("runs", "retry", str(before["id"]))

    assert done.returncode == 0
    assert "no scheduler is alive" in done.stderr
    (run,) = documents(fsa, "--status", "queued")
    assert done.stdout == f"{run['id']}\n"
    assert (run["kind"], run["arguments"]) == ("manual", {"item": "coffee"})
    assert fsa("runs", "retry", str(run["id"])).returncode == 2
    assert fsa("scheduler", "tick", env=STATE).returncode == 0
    assert documents(fsa, "ship")[0]["status"] == "succeeded"
    assert ran.written() == [1, 1]


def test_a_retried_run_is_carried_as_its_task_is_today(
    fsa: Run, terminal: OpenTerminal, postgresql: Backend, tmp_path: Path
) -> None:
    """A broker carried the run, and its setting is gone since: nobody takes its messages."""
    shop = Shop(tmp_path, postgresql)
    shop.write(TASKS)
    broker = {"FSA_EXECUTOR": "procrastinate"}
    assert fsa("scheduler", "init", env=broker).returncode == 0
    assert fsa("run-task", "--enqueue", "ship", env=broker).returncode == 0
    (before,) = documents(fsa)
    assert (before["executor"], before["status"]) == ("procrastinate", "handed_off")
    # As the screens call it, and as it is stored.
    assert documents(fsa, "--status", "dispatched") == documents(fsa, "--status", "handed_off")
    assert documents(fsa, "--status", "dispatched") == [before]
    run_id = str(before["id"])
    screen = terminal("fsa", "runs", columns=80)
    screen.expect(pexpect.EOF)
    told = [
        str(screen.before),
        fsa("runs").stdout,
        fsa("runs", "show", run_id).stdout,
        fsa("runs", "retry", run_id).stderr,
        fsa("top").stdout,
        fsa("runs", "--status", "dispatched", "--since", "2099-01-01").stderr,
    ]
    for each in told:
        assert "dispatched" in each
        assert "handed" not in each
    assert fsa("runs", "cancel", str(before["id"])).returncode == 0

    done = fsa("runs", "retry", str(before["id"]))

    assert done.returncode == 0, done.stderr
    assert documents(fsa, "--limit", "1")[0]["executor"] == "local"
    assert fsa("scheduler", "tick", env=STATE).returncode == 0
    assert shop.written() == [1]


def test_a_retried_run_is_sent_to_the_broker_that_carries_its_task_now(
    fsa: Run, postgresql: Backend, tmp_path: Path
) -> None:
    shop = Shop(tmp_path, postgresql)
    shop.write(TASKS)
    broker = {"FSA_EXECUTOR": "procrastinate"}
    assert fsa("scheduler", "init", env=broker).returncode == 0
    assert fsa("run-task", "ship").returncode == 0
    (before,) = documents(fsa)

    assert fsa("runs", "retry", str(before["id"]), env=broker).returncode == 0

    assert documents(fsa, "--limit", "1")[0]["executor"] == "procrastinate"
    jobs = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo'"
    assert postgresql.rows(jobs) == [(1,)]


def test_a_run_with_a_secret_is_not_retried(fsa: Run, small: Shop) -> None:
    fsa("run-task", "hide", "--token", "s3cret")

    done = fsa("runs", "retry", str(documents(fsa)[0]["id"]))

    assert done.returncode == 2
    assert "a secret, which the ledger has not kept" in done.stderr


def test_a_queued_run_is_cancelled_at_once(fsa: Run, ran: Shop) -> None:
    run_id = fsa("scheduler", "trigger", "ship").stdout.strip()

    done = fsa("runs", "cancel", run_id[:8])

    assert (done.returncode, done.stdout) == (0, "")
    assert documents(fsa, "ship")[0]["status"] == "cancelled"
    assert fsa("scheduler", "tick", env=STATE).returncode == 0
    assert ran.written() == [1]
    ended = fsa("runs", "cancel", run_id)
    assert ended.returncode == 2
    assert "has ended: cancelled" in ended.stderr


def test_many_runs_are_cancelled_and_retried_by_what_they_have_in_common(
    fsa: Run, shop: Shop
) -> None:
    shop.write(
        """
        @task(queue="letters", tags=["post"])
        def write(n: int):
            if not pathlib.Path("repaired").exists():
                raise LookupError(n)
            db.session.execute(INSERT, dict(n=n))

        @task(schedule="@yearly", tags=["post"])
        def yearly(): ...
        """
    )
    assert fsa("scheduler", "init").returncode == 0
    for n in range(3):
        assert fsa("run-task", "write", str(n), "--enqueue", "--unique", str(n)).returncode == 0
    later = fsa("run-task", "yearly", "--enqueue", "--run-after", "1h").stdout.strip()
    assert [run["arguments"] for run in documents(fsa, "--unique", "1")] == [{"n": 1}]
    assert len(documents(fsa, "--queue", "letters", "--tag", "post")) == 3
    assert documents(fsa, "--queue", "letters", "--tag", "other") == []

    for words in (["--status", "queued"], []):
        refused = fsa("runs", "cancel", *words)
        assert refused.returncode == (6 if words else 2)
    assert (
        "cancel 4 runs: here is no terminal to ask at"
        in fsa("runs", "cancel", "--tag", "post").stderr
    )
    assert fsa("runs", "retry", later, "--task", "yearly").returncode == 2
    assert fsa("runs", "retry", "--status", "queued", "--yes").stderr == "no run is like that\n"
    assert fsa("runs", "cancel", "--task", "yearly", "--since", "1h", "--yes").returncode == 0
    assert fsa("scheduler", "tick", env=STATE).returncode == 1
    assert [run["status"] for run in documents(fsa)].count("failed") == 3

    (shop.directory / "repaired").touch()
    retried = fsa("runs", "retry", "--status", "failed", "--task", "write", "--yes", "--json")
    assert len(json.loads(retried.stdout)["retried"]) == 3
    assert fsa("scheduler", "tick", env=STATE).returncode == 0
    assert sorted(shop.written()) == [0, 1, 2]

    assert fsa("scheduler", "pause", "--tag", "post").stdout == "yearly\n"
    assert fsa("scheduler", "resume", "--tag", "post").stdout == "yearly\n"
    assert fsa("scheduler", "pause", "--queue", "letters").returncode == 2


def test_what_the_ledger_masked_is_not_run_again_without_it(fsa: Run, small: Shop) -> None:
    assert fsa("run-task", "ship", "--item", "postgresql://u:hunter2@h/db").returncode == 0

    done = fsa("runs", "retry", "last")

    assert done.returncode == 2
    assert "was given a secret, which the ledger has not kept" in done.stderr
    assert "hunter2" not in fsa("runs", "show", "last").stdout


def test_an_isolated_run_of_a_schedule_gets_what_the_ledger_does_not_keep(
    fsa: Run, small_shop: Shop
) -> None:
    small_shop.write("""
from pydantic import SecretStr

@task(schedule="every 1s", isolation="process", args={"key": SecretStr("hunter2"), "raw": b"\\xff"})
def isolated(key: SecretStr, raw: bytes) -> int:
    return len(key.get_secret_value()) + 100 * len(raw)
""")
    assert fsa("scheduler", "init").returncode == 0
    for _ in range(2):
        fsa("scheduler", "tick", env=STATE)
        time.sleep(1)

    (run, *_) = documents(fsa)

    assert (run["status"], run["result"]) == ("succeeded", 107)
    assert run["arguments"] == {"key": "***", "raw": {"base64": "/w=="}}


def test_a_run_of_the_scheduler_is_cancelled(
    fsa: Run, fsa_process: Start, shop: Shop, tmp_path: Path
) -> None:
    shop.write(TASKS + "\n@task(schedule='@yearly')\ndef yearly(): ...\n")
    process = fsa_process("scheduler", "start", env=STATE)
    process.wait_for("fsa scheduler")
    run_id = fsa("scheduler", "trigger", "wait").stdout.strip()
    process.wait_for("begun")

    assert "asked to end" in fsa("runs", "cancel", run_id).stderr

    wait_until(lambda: ("wait", "running") not in shop.runs())
    run = json.loads(fsa("runs", "show", run_id, "--json").stdout)
    assert run["cancel_requested_at"] is not None
    assert process.stop().returncode == 0


def test_a_run_that_computes_is_said_to_end_with_its_process_once_it_is_asked_to(
    fsa: Run, fsa_process: Start, small: Shop, tmp_path: Path
) -> None:
    small.write(
        """
        import pathlib, time
        @task(schedule="@yearly")
        def compute():
            print("begun", flush=True)
            while not pathlib.Path("enough").exists():
                time.sleep(0.05)
        """
    )
    process = fsa_process("scheduler", "start", env=STATE)
    process.wait_for("fsa scheduler")
    run_id = fsa("scheduler", "trigger", "compute").stdout.strip()
    process.wait_for("begun")
    assert f"end it\tfsa runs cancel {run_id[:8]}" in fsa("runs", "show", run_id).stdout

    assert "asked to end" in fsa("runs", "cancel", run_id).stderr

    shown = fsa("runs", "show", run_id).stdout
    assert "asked to end at\t" in shown
    told = rf"^end it\tit is asked to; .* ends with pid {process.pid} of \S+ alone$"
    assert re.search(told, shown, re.MULTILINE)
    (tmp_path / "enough").touch()
    wait_until(lambda: ("compute", "running") not in small.runs())
    assert process.stop().returncode == 0


def test_watching_in_a_pipe_is_a_line_for_each_change(
    fsa: Run, fsa_process: Start, small: Shop
) -> None:
    watching = fsa_process("runs", "--watch")
    run_id = fsa("scheduler", "trigger", "ship").stdout.strip()
    watching.wait_for("queued")
    assert fsa("scheduler", "tick", env=STATE).returncode == 0
    watching.wait_for("succeeded")

    done = watching.stop(signal.SIGINT)

    assert done.returncode == 0
    lines = [line.split("\t")[:3] for line in done.stdout.splitlines()]
    assert [run_id[:8], "ship", "queued"] in lines
    assert [run_id[:8], "ship", "succeeded"] in lines


def test_a_terminal_has_colors_and_one_line_for_each_run(
    fsa: Run, terminal: OpenTerminal, small: Shop
) -> None:
    assert fsa("run-task", "ship", "--item", "x" * 200).returncode == 0
    assert fsa("run-task", "fail").returncode == 1

    screen = terminal("fsa", "runs", columns=80)
    screen.expect("\x1b\\[1;31mfailed")
    screen.expect("\x1b\\[32msucceeded")
    screen.expect(r"x+\.\.\.")
    screen.expect("\r\n")
    assert "xxx" not in screen.read()

    watched = terminal("fsa", "runs", "--watch", columns=80)
    watched.expect("again every 2 s")
    watched.sendintr()
    watched.read()
    watched.close()
    assert watched.exitstatus == 0


def test_without_a_ledger_it_is_said_what_makes_one(fsa: Run, shop: Shop) -> None:
    shop.write(TASKS)

    for words in (
        ["runs"],
        ["runs", "show", "a"],
        ["runs", "cancel", "a"],
        ["scheduler", "status"],
    ):
        done = fsa(*words)
        assert done.returncode == 3, words
        assert "there is no ledger of runs yet" in done.stderr
        assert "fsa scheduler init" in done.stderr


def test_a_ledger_that_is_away_or_read_only_is_said(
    fsa: Run, shop: Shop, request: pytest.FixtureRequest
) -> None:
    shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    away = {"FSA_LEDGER_URL": "postgresql+psycopg://ann:s3cret@127.0.0.1:1/shop"}
    done = fsa("runs", env=away)
    assert done.returncode == 4
    assert "the ledger cannot be reached" in done.stderr
    assert "s3cret" not in done.stderr
    if shop.backend.name == "sqlite":
        return
    url = f"{shop.backend.url}?options=-c%20default_transaction_read_only%3Don"
    only = {"FSA_LEDGER_URL": url}

    assert fsa("runs", env=only).returncode == 0
    refused = fsa("scheduler", "trigger", "ship", env=only)
    assert refused.returncode == 3
    assert "the ledger's database refuses" in refused.stderr
    assert "read-only transaction" in refused.stderr
    ran = fsa("run-task", "ship", env=only)
    assert (ran.returncode, ran.stderr.count("warning: ")) == (0, 1)


def test_a_prohibited_command_is_refused(fsa: Run, small: Shop) -> None:
    (small.directory / "pyproject.toml").write_text(
        '[tool.fsa.env.production]\nprotected = true\nprohibited = ["runs cancel", "scheduler *"]\n'
    )
    env = {"FSA_ENV": "production"}

    for words in (["runs", "cancel", "a"], ["scheduler", "trigger", "ship"]):
        assert fsa(*words, env=env).returncode == 6, words
    assert fsa("runs", env=env).returncode == 0


@pytest.mark.parametrize("name", ["show", "retry", "cancel"])
def test_a_task_cannot_have_the_name_of_a_command_of_runs(name: str) -> None:
    with pytest.raises(TaskDefinitionError, match="has a name that `fsa runs` uses"):

        @task(name=name)
        def function() -> None: ...


def test_no_module_that_a_row_names_is_imported(fsa: Run, ran: Shop) -> None:
    """Whoever can write to the ledger must not run code where somebody retries a run."""
    (ran.directory / "evil.py").write_text(
        "open('imported', 'w').close()\ndef run(): ...\n", encoding="utf-8"
    )
    [run_id] = [str(each["id"]) for each in documents(fsa, "fail")]
    rename = f"UPDATE fsa_run SET task = 'evil:run' WHERE id = '{run_id}'"
    if ran.backend.name == "sqlite":
        (file,) = ran.directory.glob("*-ledger.db")
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute(rename)
        connection.close()
    else:
        ran.backend.execute(rename)

    done = fsa("runs", "retry", run_id)

    assert done.returncode == 2, done.stderr
    assert "there is no task 'evil:run'" in done.stderr
    for words in (["runs", "cancel", run_id], ["runs", "show", run_id], ["scheduler", "tick"]):
        fsa(*words)
    assert not (ran.directory / "imported").exists()
