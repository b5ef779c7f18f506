"""`fsa status`: one look, and the commands for what needs another."""

import json
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import httpx
import pexpect
import pytest
from sqlalchemy import create_engine, make_url, text

from support.backends import Backend
from support.browser import address_of
from support.processes import OpenTerminal, Run, Start, write_files
from support.shops import Shop
from support.waiting import wait_until

TASKS = """
@task(schedule="@yearly")
def report():
    raise LookupError("no such user")

@task(schedule="@hourly")
def tidy(): ...

@task
def ship(): ...
"""
COLORS = re.compile(r"\x1b\[[0-9;]*m")


def age(shop: Shop, ms: int) -> None:
    """Let the runs of its ledger be older."""
    (ledger,) = shop.directory.glob("*-ledger.db")
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE fsa_run SET not_before_ms = not_before_ms - ?", (ms,))


def test_at_night_each_cause_is_seen_with_its_cure_on_lines_of_eighty_columns(
    fsa: Run, terminal: OpenTerminal, small_shop: Shop
) -> None:
    small_shop.write(TASKS)
    before = fsa("status")
    assert before.returncode == 0
    assert "there is no ledger of runs yet" in before.stdout
    assert fsa("scheduler", "init").returncode == 0
    for word in ("pause", "resume"):  # from then on the ledger knows it
        assert fsa("scheduler", word, "report").returncode == 0
    for _ in range(2):
        assert fsa("run-task", "report").returncode == 1
    waiting = fsa("run-task", "ship", "--enqueue").stdout.strip()
    assert waiting
    assert fsa("scheduler", "pause", "tidy").returncode == 0
    now_ms = round(time.time() * 1000)
    (ledger,) = small_shop.directory.glob("*-ledger.db")
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute(
            "UPDATE fsa_run SET not_before_ms = ? WHERE id = ?", (now_ms - 720_000, waiting)
        )
        connection.execute(
            "INSERT INTO fsa_node VALUES"
            " ('dead', ?, 'db1', 4711, '1', 'scheduler', 'dead', ?, ?, ?)",
            (small_shop.directory.name, now_ms, now_ms, now_ms - 180_000),
        )
    small_shop.write(TASKS.replace("ship", "send_off"))

    found = json.loads(fsa("status", "--json").stdout)
    wrong = {
        (each["subject"], re.sub(r"\d+ min( \d+ s)?", "N min", each["said"])): each["commands"]
        for each in found["problems"]
    }
    (last,) = {each["last_run"]["id"] for each in found["tasks"] if each["task"] == "report"}
    cure = 'aliases=["ship"] of the task that it is now'
    queued = f"1 queued for N min: the app has no such task (renamed? {cure})"
    assert wrong["ship", queued] == [
        "fsa runs ship --status queued",
        "fsa runs cancel --task ship --status queued",
    ]
    assert wrong["report", "failed 2 times, never succeeded"] == [f"fsa runs show {last[:8]}"]
    assert wrong["scheduler", "none is alive"] == ["fsa scheduler start"]
    assert wrong["scheduler", "one has died N min ago: db1, pid 4711"] == [
        "fsa scheduler start",
        "fsa runs --status interrupted",
    ]
    assert next(each for subject, each in wrong if subject == "tidy").startswith("paused ")
    assert {each["task"]: each["state"] for each in found["next"]} == {
        "report": "",
        "tidy": "paused",
    }

    child = terminal("fsa", "status", columns=80)
    child.expect(pexpect.EOF)
    lines = COLORS.sub("", str(child.before)).splitlines()
    assert not any(line.endswith("...") for line in lines)
    # A path alone is never cut.
    assert max(len(line) for line in lines if len(line.split()) > 1) <= 80
    headings = [line for line in lines if line and line[0].islower() and "  " not in line]
    assert headings[-2:] == ["needs a look", "next, once a scheduler is alive"]
    place = re.search(r"main\.py:(\d+): LookupError: no such user", "\n".join(lines))
    assert place is not None
    source = (small_shop.directory / "main.py").read_text().splitlines()
    assert "raise LookupError" in source[int(place[1]) - 1]  # where it failed, not where it begins


def test_one_wrong_schedule_hides_nothing_else(fsa: Run, small_shop: Shop) -> None:
    small_shop.write(TASKS + '@task(schedule="5m")\ndef bad(): ...\n')

    seen = fsa("status")

    assert seen.returncode == 0
    assert "bad     cannot be scheduled, and no scheduler or worker starts" in seen.stdout
    assert 'write "every 5m"' in seen.stdout
    assert "tidy" in seen.stdout.partition("next, once a scheduler is alive")[2]


def test_the_ledger_is_looked_at_while_the_tasks_cannot_be_imported(
    fsa: Run, small_shop: Shop
) -> None:
    small_shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    run = fsa("run-task", "ship", "--enqueue").stdout.strip()
    (small_shop.directory / "tasks.py").write_text("import nix\n")

    seen = fsa("status")
    assert (seen.returncode, "1 queued" in seen.stdout) == (0, True)
    assert "the tasks 'tasks' cannot be imported" in seen.stdout
    shown = fsa("runs", "show", "last")
    assert (shown.returncode, shown.stdout.splitlines()[0]) == (0, f"run\t{run}")
    assert "No module named 'nix'" in shown.stderr
    assert fsa("runs", "cancel", run).returncode == 0
    assert fsa("scheduler", "pause", "tidy").stdout == "tidy\n"
    for words in (["runs", "retry", run], ["scheduler", "list"], ["run-task", "ship"]):
        assert fsa(*words).returncode == 3, words


def test_the_ledger_is_looked_at_where_the_app_cannot_be_imported(
    fsa: Run, small_shop: Shop
) -> None:
    small_shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    assert fsa("run-task", "ship").returncode == 0
    (ledger,) = small_shop.directory.glob("*-ledger.db")
    (small_shop.directory / "main.py").write_text("import nix\n")

    failed = fsa("runs", "-n", "1")
    assert failed.returncode == 3
    assert "FSA_LEDGER_URL=... shows the ledger" in failed.stderr
    env = {"FSA_LEDGER_URL": f"sqlite:///{ledger}"}
    assert "ship\tsucceeded" in fsa("runs", "-n", "1", env=env).stdout
    assert "no module named 'nix'" in fsa("status", env=env).stdout.lower()


def test_a_run_of_a_dead_process_says_who_decides_it(fsa: Run, small_shop: Shop) -> None:
    small_shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    run = fsa("run-task", "ship", "--enqueue").stdout.strip()
    (ledger,) = small_shop.directory.glob("*-ledger.db")
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute(
            "INSERT INTO fsa_node (id, namespace, role, host, pid, version, state, started_ms,"
            " covered_from_ms, lease_until_ms)"
            " SELECT 'n', namespace, 'worker', 'h', 7, '1', 'alive', 1, 1, 2 FROM fsa_run"
        )
        connection.execute("UPDATE fsa_run SET status = 'running', node = 'n', started_ms = 1")

    shown = fsa("runs", "show", run).stdout
    assert "its process is silent since 1970-01-01 00:00:00" in shown
    cancelled = fsa("runs", "cancel", run)
    assert "the next scheduler, worker or tick decides it" in cancelled.stderr


def test_what_comes_is_not_counted_down_as_if_a_scheduler_were_alive(
    fsa: Run, fsa_process: Start, small_shop: Shop
) -> None:
    small_shop.write(TASKS)
    warning = "no scheduler is alive, and nothing of this runs: fsa scheduler start"
    assert warning in fsa("scheduler", "list").stderr  # where there is no ledger yet, too
    scheduler = fsa_process("scheduler", "start")
    scheduler.wait_for("Ctrl-C or SIGTERM")

    assert "next" in fsa("status").stdout.splitlines()
    assert warning not in fsa("scheduler", "list").stderr
    small_shop.write(TASKS + '@task(schedule="@hourly")\ndef new(): ...\n')
    seen = json.loads(fsa("status", "--json").stdout)
    states = {each["task"]: each["state"] for each in seen["next"]}
    assert states == {"report": "", "tidy": "", "new": "not fired"}
    (new,) = [each for each in seen["problems"] if each["subject"] == "new"]
    assert new["said"].startswith("no live scheduler knows it (")
    scheduler.stop()
    assert "next, once a scheduler is alive" in fsa("status").stdout.splitlines()
    assert warning in fsa("scheduler", "list").stderr
    assert fsa("scheduler", "tick").returncode == 0
    assert "next" in fsa("status").stdout.splitlines()
    assert warning not in fsa("scheduler", "list").stderr


def test_the_first_lines_stay_on_a_terminal_however_much_needs_a_look(
    fsa: Run, terminal: OpenTerminal, small_shop: Shop
) -> None:
    small_shop.write("".join(f"@task\ndef bad{n:02}():\n    [][0]\n\n" for n in range(30)) + TASKS)
    assert fsa("scheduler", "init").returncode == 0

    def lines() -> list[str]:
        child = terminal("fsa", "status", columns=80, rows=24)
        child.expect(pexpect.EOF)
        return COLORS.sub("", str(child.before)).splitlines()

    for number in range(5):
        assert fsa("run-task", f"bad{number:02}").returncode == 1
    some = lines()
    assert len(some) < 24
    assert "next" not in some
    assert "in full: fsa status | less" in some[:4]
    # A cron job's: neither a scheduler nor a worker has registered them.
    assert sum(line.startswith("  bad") for line in some) == 5
    first = some.index(next(line for line in some if line.startswith("  bad00")))
    assert "main.py:" in some[first + 1]
    assert "fsa runs show" in some[first + 2]

    for number in range(5, 30):
        assert fsa("run-task", f"bad{number:02}").returncode == 1
    many = lines()
    assert len(many) == 23
    shown = sum(line.startswith("  bad") for line in many)
    assert many[-1] == f"  and {31 - shown - 1} more"
    assert "bad29" in fsa("status").stdout  # nothing is left out in a pipe


def test_names_and_times_do_not_fold_at_eighty_columns(
    fsa: Run, terminal: OpenTerminal, small_shop: Shop
) -> None:
    small_shop.write(TASKS.replace("report", "report_of_the_night"))
    assert fsa("scheduler", "init").returncode == 0
    for words in (("pause", "--all"), ("resume", "--all"), ("pause", "tidy")):
        assert fsa("scheduler", *words).returncode == 0
    assert fsa("run-task", "report_of_the_night").returncode == 1
    run = json.loads(fsa("runs", "--json").stdout)[0]
    in_full = {**run, "earlier_attempts": []}
    assert json.loads(fsa("runs", "show", "last", "--json").stdout) == in_full
    assert json.loads(fsa("runs", "show", run["task"], "--json").stdout) == in_full
    shown = {}
    for words in (("runs", "-n", "5"), ("scheduler", "status"), ("scheduler", "list"), ("config",)):
        child = terminal("fsa", *words, columns=80)
        child.expect(pexpect.EOF)
        lines = COLORS.sub("", str(child.before)).splitlines()
        folded = [line for line in lines if len(line.split()) > 1]  # a path alone is never cut
        assert max(map(len, folded)) <= 80, words
        shown[words[-1]] = "\n".join(" ".join(line.split()) for line in lines)
    assert "task state last run (UTC) was" in shown["status"]  # no nodes, which say it
    time_ = re.escape(run["started_at"][11:19])
    line = rf"{run['id'][:8]} report_of_the_night failed {time_} \d+ ms LookupError: n"
    assert re.search(line, shown["5"])
    assert f"1 run: 1 failed fsa runs show {run['id'][:8]}" in shown["5"]
    assert re.search(rf"report_of_the_night {time_} failed", shown["status"])
    assert "next (UTC)" in shown["list"]
    assert re.search(r"tidy @hourly paused since \d\d:\d\d:\d\d$", shown["list"], re.MULTILINE)
    assert "verbose" not in shown["config"]
    assert "executor local default" in shown["config"]


def test_in_the_morning_what_was_missed_at_night_is_named_although_it_is_over(
    fsa: Run, terminal: OpenTerminal, small_shop: Shop
) -> None:
    small_shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    assert fsa("scheduler", "pause", "tidy").returncode == 0  # from then on the ledger knows it
    assert fsa("scheduler", "resume", "tidy").returncode == 0
    for _ in range(5):
        assert fsa("run-task", "tidy").returncode == 0
    age(small_shop, 3_600_000)
    (ledger,) = small_shop.directory.glob("*-ledger.db")
    with closing(sqlite3.connect(ledger)) as connection, connection:
        for status, number in (("missed", 3), ("failed", 1)):
            connection.execute(
                "UPDATE fsa_run SET status = ? WHERE id IN"
                " (SELECT id FROM fsa_run WHERE status = 'succeeded' LIMIT ?)",
                (status, number),
            )
    seen = json.loads(fsa("status", "--json").stdout)
    assert "tidy" not in [each["subject"] for each in seen["problems"]]
    assert sorted((each["task"], each["status"], each["number"]) for each in seen["over"]) == [
        ("tidy", "failed", 1),
        ("tidy", "missed", 3),
    ]
    child = terminal("fsa", "status", columns=80)
    child.expect(pexpect.EOF)
    shown = COLORS.sub("", str(child.before)).replace("\r", "")
    over = shown[shown.index("over since yesterday\n") : shown.index("\nnext, ")]
    said = r"  tidy  missed 3 times, the last at \S+( \S+)?; it has succeeded since\n"
    assert re.search(said + " +fsa runs tidy --status missed\n", over)
    assert "failed once" in over
    (tasks,) = [
        each
        for each in json.loads(fsa("health", "--json").stdout)["checks"]
        if each["check"] == "tasks"
    ]
    assert tasks["ok"]

    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE fsa_run SET not_before_ms = not_before_ms - 86400000")
    assert "over since yesterday" not in fsa("status").stdout
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE fsa_run SET not_before_ms = not_before_ms + 86400000")
        connection.execute("UPDATE fsa_task SET last_success_ms = NULL")
    assert json.loads(fsa("status", "--json").stdout)["over"] == []


@pytest.mark.parametrize("columns", [80, 100])
def test_a_time_stands_before_a_name_of_any_length(
    columns: int, fsa: Run, terminal: OpenTerminal, small_shop: Shop
) -> None:
    name = "report_of_" * 6
    small_shop.write(TASKS.replace("report", name).replace("@yearly", "0 0 * * 1-5"))
    assert fsa("scheduler", "init").returncode == 0
    child = terminal("fsa", "status", columns=columns)
    child.expect(pexpect.EOF)
    shown = COLORS.sub("", str(child.before)).replace("\r", "")
    (tidy,) = [line for line in shown.splitlines() if "tidy" in line]
    (report,) = [line for line in shown.splitlines() if name in line]
    times = r"  in (\d+ (d|h|min|s) ?){1,2} +"
    assert re.fullmatch(times + "tidy +@hourly", tidy)
    assert re.match(times + name, report)
    assert len(report) <= columns


def test_a_note_has_as_many_lines_as_it_needs_beside_the_longest_name(
    fsa: Run, terminal: OpenTerminal, small_shop: Shop
) -> None:
    name = "report_of_" * 6
    small_shop.write(TASKS.replace("report", name))
    assert fsa("scheduler", "init").returncode == 0
    for words in (
        ("run-task", "tidy"),
        ("scheduler", "pause", name),
        ("scheduler", "pause", "tidy"),
    ):
        assert fsa(*words).returncode == 0

    def seen(*words: str) -> list[str]:
        child = terminal("fsa", *words, columns=80)
        child.expect(pexpect.EOF)
        lines = COLORS.sub("", str(child.before)).splitlines()
        folded = [line for line in lines if len(line.split()) > 1]  # a path alone is never cut
        assert max(map(len, folded)) <= 80
        assert not any("..." in line for line in lines)
        return lines

    lines = seen("scheduler", "status")
    (head,) = [line for line in lines if line.startswith("task ")]
    notes = " ".join(line[head.index("note") :].strip() for line in lines[lines.index(head) + 2 :])
    assert len(re.findall(r"since [-\d: ]{8,14} by \S+", notes)) == 2
    times = [line for line in seen("scheduler", "next", "-n", "2") if ":00:00" in line]
    assert len(times) == 2
    assert all(re.search(r"\d (s|min|h|d)$", line) for line in times)


def test_an_error_names_the_page_that_says_more_to_a_person(
    fsa: Run, terminal: OpenTerminal, small_shop: Shop
) -> None:
    small_shop.write(TASKS)
    assert "fsa docs" not in fsa("run-task", "report").stderr
    child = terminal("fsa", "run-task", "report", columns=80)
    child.expect(pexpect.EOF)
    assert COLORS.sub("", str(child.before)).splitlines()[-1] == "more: fsa docs trouble"


def test_what_others_call_a_command_is_answered_with_ours(fsa: Run) -> None:
    for asked, ours in (
        ("migrate", "fsa db upgrade"),
        ("ps", "fsa status"),
        ("help", "fsa --help"),
    ):
        answered = fsa(asked)
        assert answered.returncode == 2
        assert f"hint: {ours}" in answered.stderr


def test_a_worker_says_once_that_nobody_knows_the_task_of_a_run(
    fsa: Run, fsa_process: Start, small_shop: Shop
) -> None:
    small_shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    assert fsa("run-task", "ship", "--enqueue").returncode == 0
    (file,) = small_shop.directory.glob("*-ledger.db")
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE fsa_run SET not_before_ms = not_before_ms - 120000")
    small_shop.write(TASKS.replace("ship", "send_off"))
    worker = fsa_process("worker", "start")
    worker.wait_for("1 run of ship for 2 min")
    said = "this app has no such task (renamed? an old version?): fsa runs ship --status queued"
    assert worker.stderr.count(said) == 1


@pytest.mark.parametrize("backend", ["postgresql", "mariadb"])
def test_a_run_that_hangs_on_a_lock_says_who_holds_it(
    request: pytest.FixtureRequest, tmp_path: Path, fsa: Run, fsa_process: Start, backend: str
) -> None:
    shop = Shop(tmp_path, request.getfixturevalue(backend))
    shop.write("""
    @task(timeout_s=60)
    def hang():
        db.session.execute(text("UPDATE written SET n = 2"))
    """)
    shop.backend.execute("INSERT INTO written (n) VALUES (1)")
    assert fsa("scheduler", "init").returncode == 0
    engine = create_engine(shop.backend.url)
    with engine.connect() as holder:
        number = holder.scalar(
            text("SELECT " + {"postgresql": "pg_backend_pid()"}.get(backend, "connection_id()"))
        )
        holder.execute(text("UPDATE written SET n = 3 /* password=geheim */"))
        worker = fsa_process("worker", "start")
        run_id = fsa("run-task", "hang", "--enqueue").stdout.strip()

        def doing() -> object:
            shown = json.loads(fsa("runs", "show", run_id, "--json").stdout)
            return [
                one
                for each in shown.get("doing", {}).get("sessions", ())
                for one in each["blockers"]
            ]

        wait_until(doing)
        shown = fsa("runs", "show", "hang").stdout
        assert f"pid {worker.pid}" in shown
        assert re.search(r"^in\tmain.py:\d+ hang  db.session.execute", shown, re.MULTILINE)
        assert re.search(r"^sends\tUPDATE written SET n = 2  \(for \d+ s\)$", shown, re.MULTILINE)
        assert f"waits for\ta lock of session {number}, idle in transaction for" in shown
        user = make_url(shop.backend.url).username
        assert re.search(rf"^waits for\t.*: .*\buser {user}\b", shown, re.MULTILINE)
        if backend == "postgresql":  # MariaDB does not say what an idle session has sent
            assert "; it sent UPDATE written SET n = 3 /* password=*** */" in shown
        cure = {"postgresql": f'-c "select pg_terminate_backend({number})"'}.get(
            backend, f'-e "KILL {number}"'
        )
        assert f"end that session\tfsa db shell -- {cure}" in shown
        assert f"end it\tfsa runs cancel {run_id[:8]}" in shown
        assert "time limit\t60 s" in shown
        seen = fsa("status").stdout
        assert f"waits for a lock of session {number}, idle" in seen
        assert f"fsa db shell -- {cure}" in seen
        assert f"fsa runs cancel {run_id[:8]}" in seen
        console = fsa_process("console", "--port", "0")
        here = address_of(console)
        waits = f"waits for a lock of session {number}, idle in transaction for"
        page = wait_until(lambda: waits in (text := httpx.get(here).text) and text)
        assert "geheim" not in page
        console.stop()
    engine.dispose()
    wait_until(lambda: ("hang", "succeeded") in shop.runs())
    worker.wait_for(f"Z  {run_id[:8]}  hang  succeeded")


@pytest.mark.parametrize(
    ("words", "shown", "after"),
    [
        (["scheduler", "start"], "in ", "stopped: every task that was running has ended"),
        (["run-task", "sleep"], "asleep", "error: sleep was interrupted and rolled back"),
        (["runs", "--watch"], "again every", ""),
        (["runs", "retry", "--status", "failed"], "[y/N] ", "error: interrupted"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_said_after_control_c_has_a_line_of_its_own(
    words: list[str], shown: str, after: str, fsa: Run, terminal: OpenTerminal, small_shop: Shop
) -> None:
    small_shop.write(
        TASKS
        + """
@task
def sleep():
    print("asleep", flush=True)
    time.sleep(600)
"""
    )
    assert fsa("scheduler", "init").returncode == 0
    assert fsa("run-task", "report").returncode == 1
    child = terminal("fsa", *words, columns=80)
    child.expect_exact(shown)
    if words == ["scheduler", "start"]:
        child.expect("tidy .*\n")  # its last line
    child.sendintr()
    while child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=20):
        child.sendintr()  # the first one came in the middle of a callback, which drops it

    lines = COLORS.sub("", str(child.before)).splitlines()
    at = max(number for number, line in enumerate(lines) if line.endswith("^C"))
    assert [line for line in lines[at + 1 :] if line][:1] == ([after] if after else [])


def test_an_app_without_a_database_is_told_how_to_name_one(fsa: Run, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(
        "from fastapi import FastAPI\nfrom fsa_cli import task\napp = FastAPI()\n\n"
        '@task(schedule="@hourly")\ndef tidy(): ...\n'
    )
    (tmp_path / "pyproject.toml").unlink(missing_ok=True)
    (found,) = json.loads(fsa("status", "--json").stdout)["problems"]
    assert found["subject"] == "database"
    assert found["said"] == "the app main:app has no database"
    (cure,) = found["commands"]
    assert "db_url=" in cure
    assert "FSA_DB_URL" in cure
    project = re.search(r"^project\t\S+\t(.*)$", fsa("config").stdout, re.MULTILINE)
    assert project is not None
    assert project[1] == "the current directory: no pyproject.toml"


def test_the_database_in_the_first_line_is_not_cut(
    postgresql: Backend, tmp_path: Path, fsa: Run, terminal: OpenTerminal
) -> None:
    shop = Shop(tmp_path, postgresql)
    shop.write(TASKS)
    (tmp_path / "pyproject.toml").write_text(f'[tool.fsa]\nnamespace = "{"long" * 12}"\n')
    child = terminal("fsa", "status", columns=80)
    child.expect(pexpect.EOF)
    shown = " ".join(COLORS.sub("", str(child.before)).split())
    assert f"as {make_url(postgresql.url).username} " in shown


@pytest.mark.parametrize("executed", ["interrupted", "skipped"])
def test_a_task_that_is_skipped_again_and_again_and_never_succeeds_needs_a_look(
    executed: str, fsa: Run, small_shop: Shop
) -> None:
    small_shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    for word in ("pause", "resume"):
        assert fsa("scheduler", word, "tidy").returncode == 0
    for _ in range(6):
        assert fsa("run-task", "tidy").returncode == 0
    (ledger,) = small_shop.directory.glob("*-ledger.db")
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE fsa_task SET last_success_ms = NULL")
        connection.execute("UPDATE fsa_run SET status = 'skipped'")
        first = "SELECT id FROM fsa_run ORDER BY scheduled_ms LIMIT 1"
        connection.execute(f"UPDATE fsa_run SET status = ? WHERE id = ({first})", [executed])
        (run_id,) = connection.execute(first).fetchone()
    (found,) = [
        each
        for each in json.loads(fsa("status", "--json").stdout)["problems"]
        if each["subject"] == "tidy"
    ]
    if executed == "skipped":
        assert found["said"] == "skipped 6 times, never succeeded"
        assert found["commands"] == ["fsa runs tidy --status skipped"]
        assert fsa("scheduler", "pause", "tidy").returncode == 0
        paused = json.loads(fsa("status", "--json").stdout)["problems"]
        (said,) = [each["said"] for each in paused if each["subject"] == "tidy"]
        assert said.startswith("paused ")  # which is why, and is not said twice
    else:
        said = r"interrupted \d\d:\d\d:\d\d, never succeeded, 5 skipped since"
        assert re.fullmatch(said, found["said"])
        show, retry = f"fsa runs show {run_id[:8]}", f"fsa runs retry {run_id[:8]}"
        assert found["commands"] == [show, retry]


def test_what_is_asked_of_an_old_deployment_is_said_at_once(
    fsa: Run, fsa_process: Start, small_shop: Shop
) -> None:
    small_shop.write(TASKS)
    scheduler = fsa_process("scheduler", "start")
    scheduler.wait_for("Ctrl-C or SIGTERM")
    small_shop.write(TASKS + "\n@task\ndef label(): ...\n")
    warning = "no live process takes label (--only, --tag, another version?)"

    assert fsa("run-task", "ship", "--enqueue").stderr == ""
    assert warning in fsa("run-task", "label", "--enqueue").stderr
    assert fsa("run-task", "label").returncode == 0  # the ledger has a row of it now
    assert warning in fsa("scheduler", "trigger", "label").stderr
    scheduler.stop()
    scheduler = fsa_process("scheduler", "start")
    scheduler.wait_for("Ctrl-C or SIGTERM")
    assert fsa("run-task", "label", "--enqueue").stderr == ""


def test_in_a_pager_sections_stand_apart_and_commands_are_whole(fsa: Run, small_shop: Shop) -> None:
    small_shop.write(TASKS.replace('"no such user"', '"no such user, " * 50'))
    assert fsa("scheduler", "init").returncode == 0
    assert fsa("run-task", "report").returncode == 1
    assert fsa("run-task", "ship", "--enqueue").returncode == 0
    age(small_shop, 720_000)
    small_shop.write(TASKS.replace("ship", "send_off"))
    lines = fsa("status").stdout.splitlines()

    headings = [place for place, line in enumerate(lines) if line and line[0].islower()]
    assert [lines[place] for place in headings[-2:]] == [
        "needs a look",
        "next, once a scheduler is alive",
    ]
    assert [lines[place - 1] for place in headings[-2:]] == ["", ""]
    assert "fsa runs cancel --task ship --status queued" in [line.strip() for line in lines]
    assert any(line.endswith("...") and "no such user" in line for line in lines)  # it goes on


def test_a_queued_run_says_why_it_waits(fsa: Run, small_shop: Shop) -> None:
    small_shop.write("""
    @task(group="post")
    def send(): ...

    @task(group="post")
    def sort(): ...
    """)
    assert fsa("scheduler", "init").returncode == 0
    waiting = fsa("run-task", "send", "--enqueue").stdout.strip()

    def why(run: str = waiting) -> tuple[str, list[str]]:
        shown = json.loads(fsa("runs", "show", run, "--json").stdout)
        return shown.get("waits_because", ""), shown.get("commands", [])

    assert why() == ("nobody is alive who executes runs", ["fsa worker start"])
    shown = fsa("runs", "show", waiting).stdout
    assert "waits because\tnobody is alive who executes runs\nthen\tfsa worker start\n" in shown
    later = fsa("run-task", "send", "--enqueue", "--run-after", "2h").stdout.strip()
    assert why(later)[0].startswith("its time comes in ")

    holder = fsa("run-task", "sort", "--enqueue").stdout.strip()
    now_ms = round(time.time() * 1000)
    (ledger,) = small_shop.directory.glob("*-ledger.db")
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute(
            "INSERT INTO fsa_node VALUES ('one', ?, 'db1', 4711, '1', 'worker', 'alive', ?, ?, ?)",
            (small_shop.directory.name, now_ms, now_ms, now_ms + 3_600_000),
        )
        connection.execute(
            "UPDATE fsa_run SET status = 'running', node = 'one' WHERE id = ?", [holder]
        )
    said = f"its lock is held by run {holder[:8]} of sort"
    assert why() == (said, [f"fsa runs show {holder[:8]}"])
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE fsa_run SET status = 'failed' WHERE id = ?", [holder])
    assert why() == ("", [])  # it has been there for a moment, and will be taken
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE fsa_run SET not_before_ms = not_before_ms - 120000")
    assert why()[0] == "no live process takes it (--only, --tag, another version?)"
    (small_shop.directory / "main.py").write_text(
        (small_shop.directory / "main.py").read_text().replace("def send", "def send_off")
    )
    assert why() == (
        'the app has no such task (renamed? aliases=["send"] of the task that it is now)',
        ["fsa runs cancel --task send --status queued"],
    )


def test_a_run_without_a_broker_is_told_of_a_worker_that_hosts_none(
    fsa: Run, small_shop: Shop, python: Run
) -> None:
    small_shop.write("""
    @task(executor="local")
    def ship(): ...
    """)
    write_files(small_shop.directory, {"pyproject.toml": '[tool.fsa]\nexecutor = "celery"\n'})
    assert fsa("scheduler", "init").returncode == 0
    said = fsa("run-task", "ship", "--enqueue").stderr
    start = "fsa worker start --executor local"
    assert f"it waits for {start}, fsa scheduler start" in said
    assert json.loads(fsa("runs", "show", "last", "--json").stdout)["commands"] == [start]
    age(small_shop, 120_000)

    (ship,) = json.loads(fsa("status", "--json").stdout)["problems"]
    assert ship["commands"] == ["fsa runs ship --status queued", start]
    checks = json.loads(fsa("health", "--json").stdout)["checks"]
    (queue,) = [each for each in checks if each["check"] == "queue"]
    assert queue["detail"].endswith(f"nobody executes runs: fsa scheduler start, {start}")
    # A web process has loaded no app, and reads the settings itself.
    asked = "from fsa_cli.runs.worker_command import worker_command as c; print(c('local'))"
    assert python("-c", asked).stdout.strip() == start


@pytest.mark.parametrize("role", ["scheduler", "worker"])
def test_a_queue_that_separates_nothing_is_said_at_the_start(
    role: str, fsa_process: Start, small_shop: Shop
) -> None:
    small_shop.write("""
    @task(queue="letters")
    def write(): ...

    @task(schedule="@yearly")
    def tidy(): ...
    """)
    process = fsa_process(role, "start")
    process.wait_for("queue= of write is a broker's, and their executor has none")


def test_a_screen_with_times_names_their_zone(
    fsa: Run, terminal: OpenTerminal, small_shop: Shop
) -> None:
    name = "report_of_the_night"
    source = TASKS.replace("report", name)
    small_shop.write(source.replace('"@yearly"', '"@yearly", timezone="Europe/Berlin"'))
    assert fsa("scheduler", "init").returncode == 0
    assert fsa("scheduler", "pause", name).returncode == 0

    def shown(*words: str) -> str:
        child = terminal("fsa", *words, columns=80)
        child.expect(pexpect.EOF)
        return COLORS.sub("", str(child.before)).replace("\r", "")

    assert re.search(r"^\d\d:\d\d:\d\d UTC   no process alive   0 running", shown("status"), re.M)
    listed = shown("scheduler", "list")
    assert re.search(
        rf"^{name} +(@yearly +)?Europe/Berlin +paused since \d\d:\d\d:\d\d UTC", listed, re.M
    )
