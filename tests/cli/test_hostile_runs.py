"""A run always ends, whatever its task raises, returns or was given; and the others go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from support.backends import Backend
from support.processes import Run

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


@pytest.fixture
def lay(tmp_path: Path, sqlite: Backend) -> Callable[[str], None]:
    def write(source: str) -> None:
        (tmp_path / "main.py").write_text(HEAD.format(url=sqlite.url) + dedent(source))

    return write


@pytest.mark.parametrize("name", ["exits_in_child", "exits_in_group"])
def test_run_task_says_that_a_child_coroutine_has_left(
    lay: Callable[[str], None], fsa: Run, name: str
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
