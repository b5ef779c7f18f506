"""`fsa init` and `fsa dev`: a project is begun, and served in one terminal."""

import re
import signal
import socket
import sys
import tomllib
from pathlib import Path

import httpx
import pexpect
import pytest

from support.processes import OpenTerminal, Run, Start, run
from support.waiting import wait_until

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


@pytest.mark.parametrize(
    ("app", "tasks"),
    [
        ("src/shop/main.py", "src/shop/tasks.py"),
        ("app/main.py", "app/tasks.py"),
    ],
)
@pytest.mark.parametrize("is_package", [True, False])
def test_tasks_are_begun_beside_the_app_and_can_be_imported(
    fsa: Run, tmp_path: Path, app: str, tasks: str, is_package: bool
) -> None:
    (tmp_path / app).parent.mkdir(parents=True)
    (tmp_path / app).write_text(APP)
    (tmp_path / "pyproject.toml").write_text("")
    if is_package:
        (tmp_path / app).with_name("__init__.py").write_text("")
    assert f"{tasks}\twritten\n" in fsa("init").stdout
    written = tomllib.loads((tmp_path / "pyproject.toml").read_text())["tool"]["fsa"]
    assert written["namespace"] == tmp_path.name
    done = fsa("run-task", "ask_database")
    assert done.stdout == "1\n", done.stderr
    (tmp_path / "test_it.py").write_text(TEST)
    tested = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    assert "1 passed" in tested.stdout, tested.stdout


def test_a_port_that_is_taken_is_said_before_anything_is_started(fsa: Run, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = fsa("dev", "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: the port {port} of 127.0.0.1 cannot be taken" in done.stderr
    assert "hint: --port N" in done.stderr


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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_nothing_goes_on_when_it_ends_hard(
    number: signal.Signals, fsa_process: Start, tmp_path: Path
) -> None:
    noted = "import os, pathlib\npathlib.Path(f'{os.getpid()}.pid').touch()\n"
    (tmp_path / "main.py").write_text(f"{noted}from fsa_cli import task\n{APP}{TICK}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    dev = fsa_process("dev", "--port", port)
    dev.wait_for("startup complete")
    dev.wait_for("tick  succeeded")
    children = {int(path.stem) for path in tmp_path.glob("*.pid")} - {dev.pid}
    assert len(children) == 2

    dev.send(number)
    dev.wait()

    wait_until(lambda: not any(map(is_alive, children)), "they have ended", within_s=20)


def is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
