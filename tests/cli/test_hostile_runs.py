"""A run always ends, whatever its task raises, returns or was given; and the others go on."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from support.backends import Backend
from support.processes import Run, Start
from support.waiting import wait_until

HEAD = """
import asyncio, sys, time
from datetime import datetime, timedelta, timezone
from typing import Annotated
from apscheduler.triggers.date import DateTrigger
from fastapi import FastAPI
from pydantic import AfterValidator
from fastapi_sqlalchemy import DBSessionMiddleware, db
from fsa_cli import TaskContext, task

app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url={url!r})
once = DateTrigger(datetime.now(timezone.utc) + timedelta(seconds=1.5))

async def leaves(): sys.exit(0)
async def is_interrupted(): raise KeyboardInterrupt("not by a person")
"""

TASKS = """
class SaysNothing(Exception):
    def __str__(self): raise ValueError("no text")
    __repr__ = __str__

@task(schedule=once)
def says_nothing(): raise SaysNothing

class Interrupts(Exception):
    def __str__(self): raise KeyboardInterrupt

class Hostile(str):
    def encode(self, *options): raise SystemExit
    replace = __len__ = encode

class SaysHostileText(Exception):
    def __str__(self): return Hostile("its text")

class Noted(Exception):
    @property
    def __notes__(self): raise SystemExit

class Around(ExceptionGroup):
    exceptions = property(lambda self: (self, self))

class Again(Exception):
    __cause__ = property(lambda self: Again("again"))

class Closed:
    def __repr__(self): raise SystemExit(3)

@task(schedule=once)
async def interrupts(): raise Interrupts

@task(schedule=once)
def says_hostile_text(): raise SaysHostileText

@task(schedule=once)
def noted(): raise Noted("with notes")

@task(schedule=once)
def around(): raise Around("a group in itself", [ValueError("v"), OSError("o")])

@task(schedule=once)
async def again(): raise Again("ever new ones")

@task(schedule=once)
def closed(): return Closed()

@task(schedule=once)
async def hostile_text(): return {"text": [Hostile("x")]}

@task(schedule=once)
def long_name(): raise type("N" * 300, (Exception,), {})("too long a name")

@task(schedule=once)
def cancels_itself(): raise asyncio.CancelledError("by itself")

@task(schedule=once)
async def cancels_its_task():
    asyncio.current_task().cancel("by itself")
    await asyncio.sleep(5)

@task(schedule=once)
def group(): raise BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError("v")])

@task(schedule=once)
def interrupt(): raise KeyboardInterrupt("not by a person")

@task(schedule=once)
def exits(): sys.exit(0)

@task(schedule=once)
async def exits_in_child(): await asyncio.gather(leaves(), asyncio.sleep(5))

@task(schedule=once)
async def exits_in_group():
    async with asyncio.TaskGroup() as group:
        group.create_task(leaves())
        await asyncio.sleep(5)

@task(schedule=once)
async def interrupted_in_child(): await asyncio.gather(is_interrupted(), asyncio.sleep(5))

@task(schedule=once)
def surrogate(): return "half \\ud800"

@task(schedule=once)
def digits(): return {"n": 10**6000}

@task(schedule=once)
def much(): return "ab " * 3_000_000

@task(schedule=once, isolation="process")
def apart(): raise SaysNothing

@task(schedule=once)
async def innocent():
    await asyncio.sleep(1)
    return "done"

@task(schedule="every 1s")
async def every_second(): ...
"""

Rows = Callable[..., list[Any]]


@pytest.fixture
def lay(tmp_path: Path, sqlite: Backend) -> Callable[[str], None]:
    def write(source: str) -> None:
        (tmp_path / "main.py").write_text(HEAD.format(url=sqlite.url) + dedent(source))

    return write


@pytest.fixture
def connection(tmp_path: Path) -> Callable[[], sqlite3.Connection]:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(next(tmp_path.glob("*-ledger.db")), timeout=10)

    return connect


@pytest.fixture
def rows(tmp_path: Path, connection: Callable[[], sqlite3.Connection]) -> Rows:
    def read(columns: str, where: str = "1 = 1") -> list[Any]:
        if not list(tmp_path.glob("*-ledger.db")):
            return []
        with closing(connection()) as connected:
            sql = f"SELECT {columns} FROM fsa_run WHERE {where} ORDER BY task, scheduled_ms"
            try:
                return connected.execute(sql).fetchall()
            except sqlite3.OperationalError:  # not made yet
                return []

    return read


@pytest.mark.slow
def test_every_run_ends_and_the_loop_of_the_others_lives(
    lay: Callable[[str], None], rows: Rows, fsa_process: Start
) -> None:
    lay(TASKS)
    process = fsa_process("scheduler", "start", env={"FSA_STATE_DIR": "state"})
    process.wait_for("fsa scheduler")
    others = "task != 'every_second'"
    wait_until(
        lambda: len(rows("id", f"{others} AND status NOT IN ('queued', 'running')")) == 22,
        within_s=30,
    )
    before = len(rows("id", "task = 'every_second' AND status = 'succeeded'"))
    wait_until(
        lambda: len(rows("id", "task = 'every_second' AND status = 'succeeded'")) > before + 1,
        within_s=15,
    )
    process.stop()
    assert process.returncode == 0, process.stderr

    ended = {row[0]: row[1:] for row in rows("task, status, error_type, error, result", others)}
    assert ended["says_nothing"][:2] == ("failed", "SaysNothing")
    assert "__str__ raised ValueError" in ended["says_nothing"][2]
    assert ended["interrupts"][:2] == ("failed", "Interrupts")
    assert ended["says_hostile_text"][:3] == ("failed", "SaysHostileText", "its text")
    assert ended["noted"][:3] == ("failed", "Noted", "with notes")
    assert ended["around"][:2] == ("failed", "Around")
    assert ended["again"][:3] == ("failed", "Again", "ever new ones")
    assert ended["apart"][:3] == ended["says_nothing"][:3]
    assert ended["long_name"][:3] == ("failed", "N" * 255, "too long a name")
    assert ended["cancels_itself"][:3] == ("failed", "CancelledError", "by itself")
    assert ended["cancels_its_task"][:2] == ("failed", "CancelledError")
    assert ended["group"][:2] == ("failed", "BaseExceptionGroup")
    assert ended["interrupt"][:3] == ("failed", "KeyboardInterrupt", "not by a person")
    for name in ("exits", "exits_in_child", "exits_in_group"):
        assert ended[name][:2] == ("failed", "SystemExit"), name
    assert ended["interrupted_in_child"][:2] == ("failed", "KeyboardInterrupt")
    assert ended["innocent"] == ("succeeded", None, None, '"done"')
    for name in ("surrogate", "digits", "much", "closed", "hostile_text"):
        assert ended[name][:3] == ("succeeded", None, None), name
        json.loads(ended[name][3])
    assert rows("id", "status = 'running'") == []


UNRULY = """
import os, threading
from pathlib import Path

def note(name):
    with open("notes", "a") as file: file.write(f"{name} {os.getpid()}\\n")

@task
async def stops_loop(): asyncio.get_running_loop().stop()

@task
async def cancels_all():
    for each in asyncio.all_tasks(): each.cancel()

@task
def forks():
    time.sleep(0.3)
    if os.fork() == 0: return "child"

@task
def fails_in_child():
    time.sleep(0.3)
    if os.fork() == 0: raise ValueError("in the child")

@task
async def awaits_in_child():
    future = asyncio.get_running_loop().create_future()
    if os.fork() == 0: await future

@task
def takes_all_threads():
    threading.stack_size(1 << 45)  # the system gives none of that size
    time.sleep(2)
    threading.stack_size(0)

@task
def counts():
    note("counts")
    time.sleep(0.2)

@task
async def acounts():
    await asyncio.sleep(0.05)
    note("acounts")

@task(schedule="every 1s")
def every_second(): ...

@task(schedule="every 1s")
async def every_async_second(): ...
"""
_COUNTED = 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("stops_loop", "cancels_all", "forks", "fails_in_child", "awaits_in_child"),
        "takes_all_threads",
    ],
)
def test_what_a_task_does_to_its_process_is_not_done_to_other_runs(
    lay: Callable[[str], None],
    rows: Rows,
    connection: Callable[[], sqlite3.Connection],
    fsa: Run,
    fsa_process: Start,
    tmp_path: Path,
    name: str,
) -> None:
    lay(UNRULY)
    env = {"FSA_STATE_DIR": "state"}
    assert fsa("run-task", "counts", "--enqueue", env=env).returncode == 0
    with closing(connection()) as connected, connected:
        columns = [row[1] for row in connected.execute("PRAGMA table_info(fsa_run)")]
        given = ", ".join(f":{each}" for each in columns)
        cursor = connected.execute("SELECT * FROM fsa_run")
        first = dict(zip(columns, cursor.fetchone(), strict=True))
        # The counted ones wait in the process that the task forks, and some are going on.
        asked = [name] * 3
        if name != "cancels_all":
            asked += ("counts", "acounts") * _COUNTED
        more = [
            {
                **first,
                "task": task,
                "id": f"{n:032x}",
                "slot": f"{n:032x}",
                "priority": 1 if task == name else 0,
            }
            for n, task in enumerate(asked)
        ]
        connected.execute("DELETE FROM fsa_run")
        connected.executemany(f"INSERT INTO fsa_run VALUES ({given})", more)

    process = fsa_process("scheduler", "start", env=env)
    process.wait_for("fsa scheduler")
    others = "task NOT LIKE 'every_%' AND status NOT IN ('queued', 'running')"
    wait_until(lambda: len(rows("id", others)) == len(asked), within_s=40)
    for each in ("every_second", "every_async_second"):
        succeeded = f"task = '{each}' AND status = 'succeeded'"
        before = len(rows("id", succeeded))
        wait_until(lambda it=succeeded, n=before: len(rows("id", it)) > n + 1, within_s=15)  # type: ignore[misc]
    process.stop()

    assert process.returncode == 0, process.stderr
    ended = {status for (status,) in rows("status", f"task = '{name}'")}
    # The others of its kind are cancelled with all there is.
    assert ended == {"succeeded"} or (name == "cancels_all" and "running" not in ended)
    assert rows("id", "status = 'running'") == []
    if len(asked) > 3:
        notes = Path(tmp_path, "notes").read_text().splitlines()
        assert len(notes) == 2 * _COUNTED
        assert len(set(notes)) == 2  # all in one process


STARTS_SLOWLY = """
from apscheduler.schedulers.background import BackgroundScheduler

begin = BackgroundScheduler.start

def begin_slowly(self):
    time.sleep(1)
    begin(self)

BackgroundScheduler.start = begin_slowly
"""


def test_no_run_begins_before_all_of_its_process_has(
    lay: Callable[[str], None], rows: Rows, fsa: Run, fsa_process: Start
) -> None:
    lay(UNRULY + STARTS_SLOWLY)
    assert fsa("run-task", "takes_all_threads", "--enqueue").returncode == 0

    process = fsa_process("scheduler", "start")
    for name in ("takes_all_threads", "every_second"):
        succeeded = f"task = '{name}' AND status = 'succeeded'"
        wait_until(lambda it=succeeded: rows("id", it))  # type: ignore[misc]
    process.stop()

    assert process.returncode == 0, process.stderr


@pytest.mark.slow
def test_what_a_row_says_is_that_run_s_failure(
    lay: Callable[[str], None],
    rows: Rows,
    connection: Callable[[], sqlite3.Connection],
    fsa: Run,
    fsa_process: Start,
) -> None:
    lay(
        """
        def look(value: int) -> int:
            return {1: 1}[value]

        @task
        def takes(n: Annotated[int, AfterValidator(look)] = 1): return n

        @task(schedule="every 1s")
        def every_second(): ...
        """
    )
    env = {"FSA_STATE_DIR": "state"}
    for _ in range(6):
        assert fsa("run-task", "takes", "--enqueue", env=env).returncode == 0
    hostile = ["not json", "[1]", "null", '{"n": 2}', "[" * 100_000, '{"n": 1}']
    with closing(connection()) as connected, connected:
        ids = [row[0] for row in connected.execute("SELECT id FROM fsa_run ORDER BY id")]
        for run_id, arguments in zip(ids, hostile, strict=True):
            connected.execute("UPDATE fsa_run SET arguments = ? WHERE id = ?", (arguments, run_id))
        # A run whose instant is beyond the last year that there is.
        connected.execute(
            "UPDATE fsa_run SET scheduled_ms = ?, kind = 'catch_up' WHERE id = ?",
            (2**62, ids[-1]),
        )

    process = fsa_process("scheduler", "start", env=env)
    process.wait_for("fsa scheduler")
    wait_until(lambda: len(rows("id", "task = 'takes' AND status IN ('failed', 'succeeded')")) == 6)
    wait_until(
        lambda: len(rows("id", "task = 'every_second' AND status = 'succeeded'")) > 1, within_s=10
    )
    process.stop()

    assert process.returncode == 0, process.stderr
    said = dict(rows("arguments, error", "task = 'takes'"))
    for text in ("not json", "[1]", "null"):
        assert said[text].endswith(f"no JSON object: {text}")
    assert dict(rows("arguments, status", "task = 'takes'"))['{"n": 1}'] == "succeeded"
    kinds = dict(rows("arguments, error_type", "task = 'takes'"))
    assert kinds['{"n": 2}'] == "KeyError"


@pytest.mark.parametrize("name", ["exits_in_child", "exits_in_group"])
def test_run_task_says_that_a_child_coroutine_has_left(
    lay: Callable[[str], None], rows: Rows, fsa: Run, name: str
) -> None:
    lay(TASKS)

    for options in ([], ["--dry-run"]):
        result = fsa("run-task", name, *options, env={"FSA_STATE_DIR": "state"})

        assert result.returncode == 1, result.stderr
        assert "sys.exit(0)" in result.stderr


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("says_nothing", "SaysNothing: (its message cannot be shown"),
        ("cancels_itself", "CancelledError: by itself"),
        ("interrupted_in_child", "KeyboardInterrupt: not by a person"),
        ("group", "BaseExceptionGroup: several"),
    ],
)
def test_run_task_says_how_it_failed(
    lay: Callable[[str], None], fsa: Run, name: str, told: str
) -> None:
    lay(TASKS)

    result = fsa("run-task", name, "--no-record", env={"FSA_STATE_DIR": "state"})

    assert result.returncode == 1
    assert told in result.stderr
    shown = fsa("--json", "run-task", name, "--no-record", env={"FSA_STATE_DIR": "state"})
    assert json.loads(shown.stdout)["status"] == "failed"


@pytest.mark.parametrize("name", ["surrogate", "digits"])
def test_run_task_prints_what_cannot_be_encoded(
    lay: Callable[[str], None], fsa: Run, name: str
) -> None:
    lay(TASKS)

    for options in ([], ["--json"]):
        result = fsa(*options, "run-task", name, "--no-record", env={"FSA_STATE_DIR": "state"})
        assert result.returncode == 0, result.stderr
