"""How a task says how its run goes on, and what its database decides for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.backends import Backend
from support.processes import Run, Start
from support.shops import Shop
from support.waiting import wait_until

TASKS = """
import threading
from fsa_cli import Discard, Retry

told = []

def tell(result):
    told.append(result.task.name)
    pathlib.Path("told").write_text(" ".join(told))

def times(name):
    file = pathlib.Path(f"{name}.times")
    with file.open("a") as lines:
        lines.write("x")
    return file.stat().st_size

@task(retries=1, backoff_s=0.01, on_failure=tell)
def later(context: TaskContext):
    db.session.execute(INSERT, dict(n=1))
    assert context.attempt == 1  # however often it is put off
    if times("later") < 4:
        raise Retry("the shop is closed", in_s=0.1)

class Closed(Retry):
    def __init__(self):
        pass

@task(retries=5, backoff_s=0.01, isolation="process", on_failure=tell)
def apart():
    if times("apart") < 2:
        raise Closed
    raise Discard("nothing to pack")

@task(retries=5, backoff_s=0.01, on_failure=tell)
async def discards():
    await db.async_session.execute(INSERT, dict(n=2))
    raise Discard("no such order")

@task(retries=5, backoff_s=0.01, retry_on=LookupError, on_failure=tell)
def picky():
    raise KeyError("a LookupError") if times("picky") < 3 else ValueError("another")

meeting = threading.Barrier(2, timeout=10)

def cross(name, first, second):
    update = "UPDATE stock SET n = n + 1 WHERE id = {}"
    for n in (first, second):
        db.session.execute(text(update.format(n)))
        if times(name) == 1:
            meeting.wait()

@task(on_failure=tell)
def one():
    cross("one", 1, 2)

@task(on_failure=tell)
def other():
    cross("other", 2, 1)

@task(on_failure=tell)
def committed():
    with db():
        db.session.execute(INSERT, dict(n=3))
        db.session.commit()
    times("committed")
    db.session.execute(text(CONFLICT))
"""
CONFLICT = {
    "postgresql": "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$",
    "mariadb": "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213",
}


@pytest.mark.parametrize("name", CONFLICT)
def test_a_run_goes_on_as_its_task_and_its_database_say(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, fsa: Run, fsa_process: Start
) -> None:
    backend: Backend = request.getfixturevalue(name)
    shop = Shop(tmp_path, backend)
    shop.write(f"CONFLICT = {CONFLICT[name]!r}\n{TASKS}")
    backend.execute("CREATE TABLE stock (id INTEGER PRIMARY KEY, n INTEGER)")
    backend.execute("INSERT INTO stock VALUES (1, 0), (2, 0)")
    assert fsa("scheduler", "init").returncode == 0
    names = ["later", "apart", "discards", "picky", "one", "other", "committed"]
    for each in names:
        assert fsa("run-task", each, "--enqueue").returncode == 0
    process = fsa_process("worker", "start", "--concurrency", "8", env={"FSA_STATE_DIR": "state"})

    def shown() -> dict[str, dict[str, object]]:
        runs = json.loads(fsa("runs", "--json").stdout)
        return {run["task"]: run for run in runs}

    final = {"succeeded", "failed", "discarded"}
    wait_until(lambda: {run["status"] for run in shown().values()} <= final)
    done = process.stop()
    assert done.returncode == 0
    logged = [line.split() for line in done.stderr.splitlines()]
    how = [line[3] for line in logged if line[2:3] == ["later"]]
    assert how == ["put", "put", "put", "succeeded"]
    runs = shown()
    one = json.loads(fsa("runs", "show", str(runs["later"]["id"]), "--json").stdout)
    assert [each["status"] for each in one["earlier_attempts"]] == ["put_off"] * 3

    def times(each: str) -> int:
        return (tmp_path / f"{each}.times").stat().st_size

    def ended(each: str) -> tuple[object, object]:
        return runs[each]["status"], runs[each]["attempt"]

    assert (*ended("later"), times("later")) == ("succeeded", 1, 4)
    assert (*ended("apart"), times("apart")) == ("discarded", 1, 2)
    assert runs["apart"]["error"]["message"] == "nothing to pack"  # type: ignore[index]
    assert ended("discards") == ("discarded", 1)
    assert (*ended("picky"), times("picky")) == ("failed", 3, 3)
    # One of the two was rolled back, and executed again at once; that costs it no retry.
    for each in ("one", "other"):
        assert ended(each) == ("succeeded", 1), runs[each]
    assert sorted((times("one"), times("other"))) == [2, 3]
    assert [n for (n,) in backend.rows("SELECT n FROM stock")] == [2, 2]
    # What it has committed by itself would be there twice.
    assert (runs["committed"]["status"], times("committed")) == ("failed", 1)
    assert sorted(shop.written()) == [1, 3]
    assert sorted((tmp_path / "told").read_text().split()) == ["committed", "picky"]
    failures = dict(shop.ledger("SELECT name, consecutive_failures FROM fsa_task"))
    assert (failures["picky"], failures["discards"], failures["later"]) == (1, 0, 0)


def test_a_person_is_told_so(fsa: Run, small_shop: Shop) -> None:
    small_shop.write(TASKS)
    done = fsa("run-task", "discards")
    assert done.returncode == 1
    assert "discards discarded after" in done.stderr
    assert "no such order" in done.stderr
    assert "asked to be executed again" in fsa("run-task", "later").stderr
    assert fsa("run-task", "later", "--retries", "1").returncode == 0
    assert fsa("runs", "--status", "discarded", "--json").stdout != "[]\n"
    assert small_shop.written() == [1]
