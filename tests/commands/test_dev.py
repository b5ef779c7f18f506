"""`fsa init` and `fsa dev`: a project is begun, and served in one terminal."""

import re
import socket
import sys
import tomllib
from pathlib import Path

import httpx
import pexpect

from support.processes import OpenTerminal, Run, run

APP = """
from fastapi import FastAPI
from fastapi_sqlalchemy import DBSessionMiddleware

app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")

@app.get("/")
def index() -> str:
    return "first"
"""
TICK = """
@task(schedule="every 1s")
def tick() -> None: ...
"""
TEST = """
from sqlalchemy import text

def test_it(db_session):
    assert db_session.scalar(text("SELECT 1")) == 1
"""


def test_a_project_is_begun_and_nothing_is_overwritten(fsa: Run, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "my_shop"\nversion = "1"')
    done = fsa("init", "--systemd", "--kubernetes")
    assert done.returncode == 0, done.stderr
    assert tomllib.loads((tmp_path / "pyproject.toml").read_text()) == {
        "project": {"name": "my_shop", "version": "1"},
        "tool": {"fsa": {"tasks": ["tasks"]}},
    }
    unit = (tmp_path / "my-shop-scheduler.service").read_text()
    assert "ExecStart=/srv/my-shop/.venv/bin/fsa scheduler start --grace 60" in unit
    assert "image: my-shop\n" in (tmp_path / "my-shop-scheduler.yaml").read_text()
    assert fsa("run-task", "ask_database").stdout == "1\n"
    (tmp_path / "test_it.py").write_text(TEST)
    tested = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    assert "1 passed" in tested.stdout, tested.stdout

    before = {path: path.read_text() for path in tmp_path.glob("*.*") if path.suffix != ".db"}
    (tmp_path / "tasks.py").write_text("")
    before[tmp_path / "tasks.py"] = ""
    assert "fsa run-task ask_database" in done.stderr
    again = fsa("init", "--systemd", "--kubernetes")
    assert "next: fsa tasks, fsa dev, fsa docs first-steps" in again.stderr
    lines = [line.split("\t") for line in again.stdout.splitlines()[1:]]
    assert [done.endswith("left as it is") for _, done in lines] == [True] * 5
    assert {path: path.read_text() for path in before} == before


def test_app_and_schedule_run_in_one_terminal_and_start_again_after_a_change(
    terminal: OpenTerminal, tmp_path: Path
) -> None:
    main = tmp_path / "main.py"
    main.write_text(f"from fsa_cli import task\n{APP}{TICK}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    child = terminal("fsa", "dev", "--port", port, columns=80)
    child.expect("web .*startup complete")
    child.expect("scheduler.* \\| .*tick  succeeded")
    url = f"http://127.0.0.1:{port}/"
    assert httpx.get(url).json() == "first"
    main.write_text(main.read_text().replace("first", "second"))
    child.expect("dev .*a file has changed")
    child.expect("web .*startup complete")
    child.expect("scheduler.* \\| .*tick  succeeded")
    assert httpx.get(url).json() == "second"
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert re.search(r"scheduler.* \| stopped: every task", str(child.before))
