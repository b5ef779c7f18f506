"""`fsa scheduler next | test | trigger | pause | resume | status | init`, and what health says."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from support.backends import Backend
from support.processes import Run, Start
from support.shops import Shop
from support.waiting import wait_until

STATE = {"FSA_STATE_DIR": "state"}
TASKS = """
from datetime import date

@task(schedule="every 1s")
def tick():
    db.session.execute(INSERT, dict(n=1))

@task(schedule="30 2 * * *", timezone="Europe/Berlin")
def nightly(): ...

@task
def ship(item: str, *, count: int = 1, since: date | None = None) -> dict:
    db.session.execute(INSERT, dict(n=count))
    return {"item": item, "since": since}

@task
def fail():
    raise LookupError("no such user")

@task(timeout_s=0.2)
async def slow():
    await asyncio.sleep(600)

@task
def hide(token: str = "none"): ...
"""


@pytest.fixture
def small(small_shop: Shop) -> Shop:
    small_shop.write(TASKS)
    return small_shop


@pytest.fixture
def laid(shop: Shop, fsa: Run) -> Shop:
    shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    return shop


def test_next_shows_instants_in_the_zone_and_in_utc(fsa: Run, small: Shop) -> None:
    rows = json.loads(fsa("scheduler", "next", "nightly", "-n", "3", "--json").stdout)

    assert [row["task"] for row in rows] == ["nightly"] * 3
    for row in rows:
        local = datetime.fromisoformat(row["local"])
        assert (local.hour, local.minute) in ((2, 30), (3, 0))  # there may be no 2:30
        assert local == datetime.fromisoformat(row["at"])
        assert row["timezone"] == "Europe/Berlin"


def test_next_says_where_the_clocks_change(fsa: Run, small: Shop) -> None:
    rows = json.loads(fsa("scheduler", "next", "nightly", "-n", "366", "--json").stdout)

    changes = [row["clocks"] for row in rows if row["clocks"]]
    # Of 366 days one of the two may have another a year later.
    forward, *more = [text for text in changes if text.startswith("clocks go forward 1 h to Sun ")]
    back, *others = [text for text in changes if text.startswith("clocks go back 1 h to Sun ")]
    assert len(changes) == 2 + len(more + others) <= 3
    assert forward.endswith("03:00 Europe/Berlin")
    assert back.endswith("02:00 Europe/Berlin")
    shifted = next(row for row in rows if row["clocks"] == forward)
    assert shifted["local"].endswith("03:00:00+02:00")
    plain = fsa("scheduler", "next", "nightly", "-n", "366").stdout.splitlines()
    assert plain[0] == "task\tlocal\tzone\tUTC\tin\tclocks"


def test_next_of_all_tasks_is_one_list_in_order(fsa: Run, small: Shop) -> None:
    rows = json.loads(fsa("scheduler", "next", "--json").stdout)

    assert len(rows) == 10
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
    assert fsa("scheduler", "next", "ship").returncode == 2
    assert "did you mean nightly?" in fsa("scheduler", "next", "nigtly").stderr


@pytest.mark.parametrize(
    ("words", "code", "before", "after"),
    [
        (["nightly", "--at", "2026-07-01T02:30"], 0, "2026-06-30T00:30Z", "2026-07-02T00:30Z"),
        (["nightly", "--at", "2026-07-01T02:31"], 1, "2026-07-01T00:30Z", "2026-07-02T00:30Z"),
        (["nightly", "--at", "2026-07-01T00:30Z"], 0, "2026-06-30T00:30Z", "2026-07-02T00:30Z"),
        (
            ["30 2 * * *", "--at", "2026-03-29T02:30", "--timezone", "Europe/Berlin"],
            *(1, "2026-03-29T01:00Z", "2026-03-30T00:30Z"),  # it is skipped, and comes at 03:00
        ),
        (
            ["30 2 * * *", "--at", "2026-03-29T03:00", "--timezone", "Europe/Berlin"],
            *(0, "2026-03-28T01:30Z", "2026-03-30T00:30Z"),
        ),
        (["30 2 * * *", "--at", "2026-03-29T02:30"], 0, "2026-03-28T02:30Z", "2026-03-30T02:30Z"),
        (["0 0 29 2 *", "--at", "2026-02-28T00:00"], 1, "2024-02-29T00:00Z", "2028-02-29T00:00Z"),
        (
            ["every 15m", "--at", "2026-02-28T00:15:01Z"],
            1,
            "2026-02-28T00:15Z",
            "2026-02-28T00:30Z",
        ),
    ],
)
def test_test_says_whether_an_instant_fires(
    words: list[str], code: int, before: str, after: str, fsa: Run, small: Shop
) -> None:
    done = fsa("scheduler", "test", *words, "--json")

    assert done.returncode == code, done.stderr
    shown = json.loads(done.stdout)
    assert shown["fires"] is (code == 0)
    assert datetime.fromisoformat(shown["before"]) == datetime.fromisoformat(before)
    assert datetime.fromisoformat(shown["after"]) == datetime.fromisoformat(after)


def test_a_schedule_is_tested_without_an_app(fsa: Run) -> None:
    done = fsa("scheduler", "test", "0 3 * * *", "--at", "2026-07-01T03:00")

    assert done.returncode == 0
    assert "fires\tyes\n" in done.stdout
    assert fsa("scheduler", "test", "0 3 * * *", "--at", "noon").returncode == 2
    for end in ("0001-01-01", "9999-12-31"):
        refused = fsa("scheduler", "test", "0 3 * * *", "--at", end)
        assert (refused.returncode, "expected a year" in refused.stderr) == (2, True)
    assert fsa("scheduler", "test", "0 3 * *", "--at", "2026-07-01").returncode == 3


def test_a_triggered_run_starts_soon_in_a_scheduler_that_lives(
    fsa: Run, fsa_process: Start, shop: Shop
) -> None:
    shop.write(TASKS)
    process = fsa_process("scheduler", "start", env=STATE)
    process.wait_for("fsa scheduler")
    wait_until(shop.written)

    words = ["coffee", "--count", "7", "--since", "2026-01-01"]
    done = fsa("scheduler", "trigger", "ship", *words, "--wait", "--json")

    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert (run["status"], run["kind"]) == ("succeeded", "manual")
    assert run["arguments"] == {"item": "coffee", "count": 7, "since": "2026-01-01"}
    assert run["result"] == {"item": "coffee", "since": "2026-01-01"}
    queued, began = (datetime.fromisoformat(run[key]) for key in ("queued_at", "started_at"))
    assert (began - queued).total_seconds() < 3
    assert 7 in shop.written()
    assert fsa("scheduler", "trigger", "fail", "--wait").returncode == 1
    assert fsa("scheduler", "trigger", "slow", "--wait").returncode == 124
    assert process.stop().returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ship"], "missing ITEM"),
        (["ship", "tea", "--count", "many"], "expected a whole number"),
        (["ship", "tea", "--cont", "1"], "did you mean --count?"),
        (["shp"], "did you mean ship?"),
        (["hide", "--token", "x"], "--token is a secret, and the ledger keeps none"),
        (["main:plain"], "main has no function 'plain'"),
        (["json:dumps"], "is not a registered task"),
    ],
)
def test_what_cannot_be_triggered_is_said(
    words: list[str], message: str, fsa: Run, small: Shop
) -> None:
    assert fsa("scheduler", "init").returncode == 0

    done = fsa("scheduler", "trigger", *words)

    assert done.returncode == 2
    assert message in done.stderr
    assert small.runs() == []


def test_the_words_after_the_name_are_the_tasks(fsa: Run, small: Shop) -> None:
    assert fsa("scheduler", "init").returncode == 0
    page = fsa("scheduler", "trigger", "ship", "--help").stdout
    assert "--count" in page

    done = fsa(
        "scheduler", "trigger", "--args-json", '{"item": "tea"}', "ship", "--count=2", "--json"
    )

    run = json.loads(done.stdout)
    assert run["arguments"] == {"item": "tea", "count": 2}
    assert "no scheduler is alive" in done.stderr
    assert "not before" not in fsa("runs", "show", run["id"]).stdout


def test_a_person_says_when_how_urgent_and_once(fsa: Run, small: Shop) -> None:
    assert fsa("scheduler", "init").returncode == 0
    words = ("--run-after", "10m", "--priority=10", "--unique", "tea")
    enqueued = fsa("run-task", "ship", "tea", "--enqueue", *words)
    assert enqueued.returncode == 0, enqueued.stderr
    run_id = enqueued.stdout.strip()

    assert fsa("scheduler", "trigger", *words, "ship", "tea").stdout.strip() == run_id
    shown = json.loads(fsa("runs", "show", run_id, "--json").stdout)
    assert (shown["priority"], shown["unique_key"]) == (10, "tea")
    waits = datetime.fromisoformat(shown["not_before"]) - datetime.fromisoformat(shown["queued_at"])
    assert 599 < waits.total_seconds() < 601
    assert "\nnot before\t" in fsa("runs", "show", run_id).stdout
    for wrong, said in (
        (["run-task", "ship", "tea", "--unique", "a"], "with --enqueue"),
        (["scheduler", "trigger", "ship", "tea", "--priority", "high"], "a whole number"),
        (["scheduler", "trigger", "ship", "tea", "--priority", "101"], "from -100 to 100"),
        (["scheduler", "trigger", "ship", "tea", "--run-after", "soon"], '--run-after "soon"'),
    ):
        refused = fsa(*wrong)
        assert refused.returncode == 2, wrong
        assert said in refused.stderr
    assert len(small.runs()) == 1


def test_a_paused_task_is_skipped_until_it_is_resumed(
    fsa: Run, fsa_process: Start, laid: Shop
) -> None:
    done = fsa("scheduler", "pause", "tick")
    assert (done.stdout, done.returncode) == ("tick\n", 0)
    process = fsa_process("scheduler", "start", env=STATE)
    wait_until(lambda: ("tick", "skipped") in laid.runs())
    assert "paused: fsa scheduler resume tick" in process.stderr
    assert laid.written() == []

    status = json.loads(fsa("scheduler", "status", "--json").stdout)
    task = next(each for each in status["tasks"] if each["task"] == "tick")
    assert (task["paused"], "@" in task["paused_by"]) == (True, True)
    assert fsa("scheduler", "resume", "--all").stdout == "tick\n"

    wait_until(laid.written)
    assert process.stop().returncode == 0


def test_all_scheduled_tasks_are_paused_and_resumed(fsa: Run, small: Shop) -> None:
    assert fsa("scheduler", "init").returncode == 0

    assert fsa("scheduler", "pause", "--all").stdout == "nightly\ntick\n"
    assert fsa("scheduler", "pause", "tick").stdout == ""
    resumed = fsa("scheduler", "resume", "nightly", "tick", "--json")
    assert json.loads(resumed.stdout) == {"resumed": ["nightly", "tick"]}
    unscheduled = fsa("scheduler", "pause", "ship")
    assert (unscheduled.returncode, unscheduled.stdout) == (2, "")
    assert "fsa runs cancel --task ship --status queued" in unscheduled.stderr
    for words in (["pause"], ["pause", "tick", "--all"], ["resume"], ["pause", "tck"]):
        assert fsa("scheduler", *words).returncode == 2, words


def test_status_shows_nodes_and_how_each_task_fares(
    fsa: Run, fsa_process: Start, shop: Shop
) -> None:
    shop.write(TASKS)
    process = fsa_process("scheduler", "start", env=STATE)
    wait_until(shop.written)

    status = json.loads(fsa("scheduler", "status", "--json").stdout)

    (node,) = [each for each in status["nodes"] if each["role"] == "scheduler"]
    assert (node["state"], node["pid"]) == ("alive", process.pid)
    tasks = {each["task"]: each for each in status["tasks"]}
    assert tasks["tick"]["schedule"] == "every 1s"
    assert tasks["tick"]["last_run"]["status"] == "succeeded"
    assert tasks["tick"]["last_success_at"] is not None
    assert tasks["nightly"]["last_run"] is None
    assert (tasks["nightly"]["known"], tasks["ship"]["known"]) == (True, False)
    plain = fsa("scheduler", "status")
    assert f"\tscheduler\talive\t{node['host']}\t{process.pid}\t" in plain.stdout
    process.kill()
    assert "none is alive" not in plain.stderr


def test_status_says_which_task_no_live_scheduler_knows(
    fsa: Run, fsa_process: Start, small: Shop
) -> None:
    process = fsa_process("scheduler", "start", env=STATE)
    wait_until(small.written)
    assert process.stop().returncode == 0
    assert "scheduler: none is alive: fsa scheduler start" in fsa("scheduler", "status").stderr
    small.write("@task(schedule='every 1s')\ndef other(): ...\n")
    process = fsa_process("scheduler", "start", env=STATE)
    wait_until(lambda: ("other", "succeeded") in small.runs())

    lines = fsa("scheduler", "status").stdout.splitlines()

    note = {line.split("\t")[0]: line.split("\t")[-1] for line in lines}
    assert note["tick"] == note["nightly"] == "no live scheduler knows it"
    assert note["other"] == note["ship"] == ""


def test_another_release_of_the_app_that_has_another_namespace_is_named(
    fsa: Run, fsa_process: Start, small: Shop
) -> None:
    """Two directories are two namespaces where nothing else names them."""
    old = fsa_process("scheduler", "start", env={**STATE, "FSA_NAMESPACE": "release-1"})
    wait_until(small.written)
    new = {**STATE, "FSA_NAMESPACE": "release-2"}

    enqueued = fsa("run-task", "tick", "--enqueue", env=new)
    health = fsa("health", env=new)
    seen = fsa("status", env=new)
    process = fsa_process("scheduler", "start", env=new)
    process.wait_for("namespace release-2 (also alive there: release-1)")
    assert json.loads(fsa("scheduler", "status", "--json", env=new).stdout)["other_namespaces"] == [
        "release-1"
    ]
    assert old.stop().returncode == 0
    status = fsa("scheduler", "status", env=new)

    row = re.search(r"^namespaces\t.*", health.stdout, re.MULTILINE)
    assert row is not None
    assert row[0] == "namespaces\tok\t\talso alive in this ledger: release-1"
    assert seen.stdout.splitlines()[2].endswith("of their own: release-1")
    named = "no scheduler is alive in the namespace release-2, but in release-1"
    assert named in enqueued.stderr
    assert "no scheduler has run yet in this namespace, but in release-1" in health.stdout
    assert "also alive" not in status.stderr
    assert process.stop().returncode == 0


def test_a_node_whose_lease_is_over_is_dead(fsa: Run, fsa_process: Start, small: Shop) -> None:
    process = fsa_process("scheduler", "start", env={**STATE, "FSA_LEASE_S": "3"})
    wait_until(small.written)
    process.kill()

    wait_until(lambda: "\tdead\t" in fsa("scheduler", "status").stdout)


def test_init_makes_the_ledger_once(fsa: Run, backend: Backend, tmp_path: Path) -> None:
    shop = Shop(tmp_path, backend)
    shop.write(TASKS)

    made = json.loads(fsa("scheduler", "init", "--json").stdout)
    again = json.loads(fsa("scheduler", "init", "--json").stdout)

    assert (made["made"], again["made"]) == (True, False)
    assert fsa("runs").returncode == 0


def test_init_prints_sql_that_makes_the_ledger_and_connects_to_nothing(
    fsa: Run, backend: Backend, tmp_path: Path
) -> None:
    shop = Shop(tmp_path, backend)
    shop.write(TASKS)

    done = fsa("scheduler", "init", "--sql")

    assert done.returncode == 0
    assert not list(tmp_path.glob("*-ledger.db"))
    ledger, _, data = done.stdout.partition("CREATE TABLE fsa_effect")
    assert bool(data) is (backend.name == "sqlite")
    if backend.name == "sqlite":
        (name,) = [line.split()[-1] for line in ledger.splitlines() if line.startswith("-- ")][:1]
        with closing(sqlite3.connect(tmp_path / name)) as connection, connection:
            connection.executescript(ledger)
        connection.close()
    else:
        _execute(backend, ledger)
    assert json.loads(fsa("scheduler", "init", "--json").stdout)["made"] is False
    assert fsa("run-task", "ship", "tea").returncode == 0
    assert shop.runs() == [("ship", "succeeded")]


def _execute(backend: Backend, script: str) -> None:
    engine = sqlalchemy.create_engine(backend.url)
    lines = [line for line in script.splitlines() if not line.startswith("--")]
    with engine.begin() as connection:
        for statement in "\n".join(lines).split(";"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    engine.dispose()


def checks(fsa: Run, *words: str) -> dict[str, Any]:
    found = json.loads(fsa("health", *words, "--json").stdout)["checks"]
    return {each["check"]: each for each in found}


def test_health_asks_whether_a_scheduler_is_alive(fsa: Run, fsa_process: Start, shop: Shop) -> None:
    shop.write(TASKS)
    none = checks(fsa)
    assert none["scheduler"]["ok"] is False
    assert "there is no ledger of runs yet" in none["scheduler"]["detail"]
    assert "tasks" not in none

    process = fsa_process("scheduler", "start", env=STATE)
    wait_until(shop.written)
    well = checks(fsa)

    assert well["scheduler"]["ok"] is True
    assert well["scheduler"]["detail"].startswith("1 alive, lease for ")
    assert well["tasks"]["ok"] is True
    assert process.stop().returncode == 0
    ended = fsa("health")
    assert ended.returncode == 1
    assert "no scheduler is alive, the last one was " in ended.stdout
    assert "scheduler" not in checks(fsa, "ready")
    assert fsa("health", "ready").returncode == 0


def test_health_reports_that_no_worker_takes_dispatched_runs(
    fsa: Run, fsa_process: Start, postgresql: Backend, tmp_path: Path
) -> None:
    shop = Shop(tmp_path, postgresql)
    shop.write(TASKS)
    carried = {**STATE, "FSA_EXECUTOR": "procrastinate"}
    assert fsa("scheduler", "init", env=carried).returncode == 0
    process = fsa_process("scheduler", "start", env=carried)
    wait_until(lambda: shop.ledger("SELECT id FROM fsa_run WHERE status = 'handed_off'"))
    assert checks(fsa)["workers"]["ok"] is True

    long_ago = "UPDATE fsa_run SET queued_ms = queued_ms - 120000 WHERE status = 'handed_off'"
    postgresql.execute(long_ago)
    workers = checks(fsa)["workers"]
    assert workers["ok"] is False
    assert workers["detail"].startswith("no worker takes runs of the queue fsa.")
    assert ", for 2 min" in workers["detail"]
    assert ": fsa worker start --executor procrastinate --queue fsa." in workers["detail"]
    assert re.search(r"   0 queued   [1-9]\d* dispatched\n", fsa("status", env=carried).stdout)

    worker = fsa_process("worker", "start", env={**carried, "FSA_STATE_DIR": "worker"})
    wait_until(lambda: checks(fsa)["workers"]["ok"])
    assert worker.stop().returncode == process.stop().returncode == 0


def test_health_says_what_was_missed_and_what_fails_each_time(
    fsa: Run, fsa_process: Start, small: Shop
) -> None:
    small.write(
        """
        @task(schedule="every 1s", catch_up="none")
        def tick():
            db.session.execute(INSERT, dict(n=1))
            if pathlib.Path("fails").exists():
                raise LookupError("no such user")
        """
    )
    process = fsa_process("scheduler", "start", env=STATE)
    wait_until(small.written)
    assert process.stop().returncode == 0
    (small.directory / "fails").touch()
    assert fsa("run-task", "tick").returncode == 1
    once = "tick failed last, fewer than 3 times in a row"
    assert checks(fsa)["tasks"]["detail"] == once
    process = fsa_process("scheduler", "start", env=STATE)
    wait_until(lambda: small.runs().count(("tick", "failed")) >= 3)

    tasks = checks(fsa)["tasks"]

    assert tasks["ok"] is False
    assert "failed " in tasks["detail"]
    assert "times in a row" in tasks["detail"]
    assert fsa("scheduler", "pause", "tick").returncode == 0
    assert checks(fsa)["tasks"]["ok"] is True
    assert checks(fsa)["paused"]["detail"].startswith("tick by ")


def test_health_sees_the_queue_also_where_nothing_is_scheduled(fsa: Run, small: Shop) -> None:
    small.write("@task\ndef ship(): ...\n")

    assert set(checks(fsa)) == {"database default", "pool default"}
    assert fsa("scheduler", "init").returncode == 0
    assert fsa("run-task", "ship", "--enqueue").returncode == 0
    assert checks(fsa)["queue"]["ok"] is True
    (file,) = small.directory.glob("*-ledger.db")
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE fsa_run SET not_before_ms = not_before_ms - 120000")
    queue = checks(fsa)["queue"]
    assert queue["ok"] is False
    assert queue["detail"].startswith("1 queued, the oldest for 2 min")
    assert queue["detail"].endswith("nobody executes runs: fsa scheduler start, fsa worker start")
    now_ms = round(time.time() * 1000)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(
            "INSERT INTO fsa_node VALUES ('one', ?, 'db1', 4711, '1', 'worker', 'alive', ?, ?, ?)",
            (small.directory.name, now_ms, now_ms, now_ms + 3_600_000),
        )
        connection.execute("INSERT INTO fsa_node_task VALUES ('one', '@celery/mail', '', 0)")
    assert checks(fsa)["queue"]["ok"] is True  # it takes nothing of what waits in the ledger
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE fsa_node_task SET task = '@local/'")
    queue = checks(fsa)["queue"]
    assert queue["ok"] is False
    said = "; no live process takes it (--only, --tag, another version?): fsa runs ship"
    assert queue["detail"].endswith(said)
    small.write("@task\ndef send_off(): ...\n")
    assert "the app has no task ship: fsa runs ship" in checks(fsa)["queue"]["detail"]
    assert "scheduler" not in checks(fsa)


def test_a_schedule_that_ticks_keep_is_well(fsa: Run, small: Shop) -> None:
    assert fsa("scheduler", "tick", env=STATE).returncode == 0

    found = checks(fsa)["scheduler"]

    assert found["ok"] is True
    assert "the last tick was" in found["detail"]
