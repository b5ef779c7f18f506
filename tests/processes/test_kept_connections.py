"""A scheduler keeps the connections of what it runs at a time."""

from pathlib import Path

import pytest

from support.backends import Backend
from support.processes import Start
from support.waiting import wait_until

APP = """
import asyncio
import time

from fastapi import FastAPI
from sqlalchemy import text
from fastapi_sqlalchemy import DBSessionMiddleware, db
from fsa_cli import task

app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url={url!r})
SERVED = text("INSERT INTO served (pid) VALUES ({pid})")


def work():
    db.session.execute(SERVED)
    time.sleep(0.4)  # all seven of an instant are under way


async def awork():
    await db.async_session.execute(SERVED)
    await asyncio.sleep(0.4)


for n in range(7):
    task({work}, name=f"work{{n}}", schedule="every 1s")
"""


@pytest.mark.parametrize(
    ("name", "driver", "work", "pid"),
    [
        ("postgresql", "psycopg", "work", "pg_backend_pid()"),
        ("postgresql", "asyncpg", "awork", "pg_backend_pid()"),
        ("mariadb", "pymysql", "work", "connection_id()"),
    ],
)
def test_the_runs_of_the_next_instant_open_no_connection(
    name: str,
    driver: str,
    work: str,
    pid: str,
    request: pytest.FixtureRequest,
    fsa_process: Start,
    tmp_path: Path,
) -> None:
    backend: Backend = request.getfixturevalue(name)
    backend.execute("CREATE TABLE served (pid INTEGER)")
    url = str(backend.with_driver(driver))
    (tmp_path / "main.py").write_text(APP.format(url=url, work=work, pid=pid))
    scheduler = fsa_process("scheduler", "start")
    wait_until(lambda: backend.rows("SELECT count(*) FROM served")[0][0] >= 35, "five instants")
    assert scheduler.stop().returncode == 0
    assert len(set(backend.rows("SELECT pid FROM served"))) <= 7
