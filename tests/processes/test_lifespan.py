"""`async with fsa_cli.scheduling()`: the schedule inside the web process."""

import signal
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

import httpx

from support.waiting import wait_until
from support.web import ServedProcess

# No fork: what is closed of a parent's sockets must not be this event loop's.
FRESH = {"PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0"}
APP = """
from contextlib import asynccontextmanager

import fsa_cli
from fastapi import FastAPI
from sqlalchemy import text
from fastapi_sqlalchemy import DBSessionMiddleware, db
from fsa_cli import task

@asynccontextmanager
async def lifespan(app):
    async with fsa_cli.scheduling():
        yield

app = FastAPI(lifespan=lifespan)
app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db", commit_on_exit=True)

@app.post("/ask")
def ask() -> str:
    return answer.enqueue().id

@task(schedule="every 1s")
def tick() -> int:
    return db.session.scalar(text("SELECT 1"))

@task
async def answer() -> int:
    return await db.async_session.scalar(text("SELECT 42"))
"""


def test_any_number_of_web_processes_keep_the_schedule_once_and_take_what_is_enqueued(
    serve_process: Callable[..., AbstractContextManager[ServedProcess]], tmp_path: Path
) -> None:
    (tmp_path / "main.py").write_text(APP)

    def runs() -> list[tuple[str, str, str | None]]:
        (file,) = tmp_path.glob("*-ledger.db")
        with closing(sqlite3.connect(file, timeout=10)) as connection:
            return connection.execute("SELECT task, status, result FROM fsa_run").fetchall()

    with (
        serve_process("main:app", cwd=tmp_path, env=FRESH) as first,
        serve_process("main:app", cwd=tmp_path, env=FRESH) as second,
    ):
        assert httpx.post(f"{first.base_url}/ask").status_code == 200
        wait_until(lambda: ("answer", "succeeded", "42") in runs())
        wait_until(lambda: runs().count(("tick", "succeeded", "1")) >= 3)
        for served in (first, second):
            assert served.process.stop(signal.SIGTERM).returncode in (0, -signal.SIGTERM)
    with closing(sqlite3.connect(next(tmp_path.glob("*-ledger.db")))) as connection:
        states = connection.execute("SELECT state FROM fsa_node").fetchall()
    assert states == [("stopped",)] * 2
    assert {status for _, status, _ in runs()} == {"succeeded"}
