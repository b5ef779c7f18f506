"""`[tool.fsa] lifespan = true`: the app's lifespan around tasks, on the loop of async ones."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.processes import Run

APP = """
    import asyncio
    from contextlib import asynccontextmanager
    import fsa_cli
    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware, db
    from fsa_cli import task

    def note(text):
        with open("log.txt", "a") as file:
            print(text, file=file)

    @asynccontextmanager
    async def lifespan(app):
        note("began")
        app.state.loop = asyncio.get_running_loop()
        app.state.name = "cache"
        async with asyncio.TaskGroup(), fsa_cli.scheduling():
            yield
        note("ended")
        {at_end}

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")

    @task
    async def asynchronous() -> str:
        assert app.state.loop is asyncio.get_running_loop()
        note("ran")
        return app.state.name

    @task
    def plain() -> str:
        note("ran")
        return app.state.name

    @task(isolation="process")
    async def isolated() -> str:
        assert app.state.loop is asyncio.get_running_loop()
        note("ran")
        return app.state.name

    @task
    def fails() -> None:
        note("ran")
        raise LookupError("no such user")
"""


@pytest.fixture
def write(write_app: Callable[..., Path], tmp_path: Path) -> Callable[..., None]:
    def write(at_end: str = "", setting: str = "lifespan = true") -> None:
        write_app(tmp_path, main=APP.replace("{at_end}", at_end))
        (tmp_path / "pyproject.toml").write_text(f"[tool.fsa]\n{setting}\n")

    return write


def log(path: Path) -> list[str]:
    return (path / "log.txt").read_text().split()


def test_a_task_runs_between_start_and_end_of_the_lifespan(
    fsa: Run, write: Callable[..., None], tmp_path: Path
) -> None:
    write()
    assert fsa("run-task", "asynchronous", "--no-record").stdout == "cache\n"
    assert fsa("run-task", "plain", "--no-record").stdout == "cache\n"
    assert log(tmp_path) == ["began", "ran", "ended"] * 2
    failed = fsa("run-task", "fails", "--no-record", "--retries", "1", "--backoff", "0")
    assert failed.returncode == 1
    assert "no such user" in failed.stderr
    assert log(tmp_path)[6:] == ["began", "ran", "ran", "ended"]


def test_a_dry_run_says_that_the_lifespan_is_not_undone(
    fsa: Run, write: Callable[..., None]
) -> None:
    write()
    told = fsa("run-task", "asynchronous", "--dry-run")
    assert "what the app's lifespan did" in told.stderr
    assert told.returncode == 0


def test_an_error_of_the_lifespan_is_told_with_its_line(
    fsa: Run, write: Callable[..., None], tmp_path: Path
) -> None:
    write(at_end='raise LookupError("no such cache")')
    ended = fsa("run-task", "asynchronous", "--no-record")
    assert (ended.returncode, ended.stdout) == (1, "cache\n")
    assert "lifespan failed when it ended: LookupError: no such cache" in ended.stderr
    assert "main.py" in ended.stderr
    both = fsa("run-task", "fails", "--no-record")
    assert "no such user" in both.stderr
    assert "no such cache" in both.stderr

    main = tmp_path / "main.py"
    main.write_text(main.read_text().replace('note("began")', 'raise OSError("no redis")'))
    for command in (
        ("run-task", "plain", "--no-record"),
        ("shell", "-c", "1"),
        ("scheduler", "tick"),
    ):
        began = fsa(*command)
        assert began.returncode == 1, began.stderr
        assert "lifespan failed when it began: OSError: no redis" in began.stderr
        assert "main.py" in began.stderr


def test_a_scheduler_runs_one_lifespan_around_all_tasks(
    fsa: Run, write: Callable[..., None], tmp_path: Path
) -> None:
    write()
    for name in ("asynchronous", "plain"):
        assert fsa("run-task", name, "--enqueue").returncode == 0
    assert fsa("scheduler", "tick").returncode == 0
    assert log(tmp_path) == ["began", "ran", "ran", "ended"]
    assert fsa("runs").stdout.count("succeeded") == 2


@pytest.mark.slow
def test_a_process_of_its_own_has_a_lifespan_of_its_own(
    fsa: Run, write: Callable[..., None], tmp_path: Path
) -> None:
    write()
    assert fsa("run-task", "isolated", "--enqueue").returncode == 0
    assert fsa("scheduler", "tick").returncode == 0
    assert log(tmp_path) == ["began", "began", "ran", "ended", "ended"]


def test_a_shell_has_what_the_lifespan_has_made(
    fsa: Run, write: Callable[..., None], tmp_path: Path
) -> None:
    write()
    code = "import asyncio as a; await a.sleep(0); print(app.state.loop is a.get_running_loop())"
    assert fsa("shell", "-c", code).stdout == "True\n"
    assert log(tmp_path) == ["began", "ended"]


def test_without_it_none_runs_and_the_setting_is_named(
    fsa: Run, write: Callable[..., None], tmp_path: Path
) -> None:
    write(setting="lifespan = false")
    told = fsa("run-task", "plain", "--no-record")
    assert told.returncode == 1
    assert "unless [tool.fsa] has lifespan = true" in told.stderr
    assert log(tmp_path) == ["ran"]
    write(setting='lifespan = "maybe"')
    assert "lifespan must be true or false, not 'maybe'" in fsa("tasks").stderr
