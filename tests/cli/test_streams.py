"""Standard streams that are closed, full, or read by nobody."""

import json
import subprocess
from pathlib import Path

import pytest

from support.processes import FSA, Completed, environment, run, write_files
from support.waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.slow

FILES = {
    "main.py": """
        from fastapi import FastAPI
        from fastapi_sqlalchemy import DBSessionMiddleware

        app = FastAPI()
        app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")
    """,
    "tasks.py": """
        from fsa_cli import task

        @task(schedule="every 1s")
        def ship() -> str:
            return "tea"
    """,
}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A project with a ledger."""
    write_files(tmp_path, FILES)
    assert run(FSA, "scheduler", "init", cwd=tmp_path).returncode == 0
    return tmp_path


def with_streams(streams: str, *words: str, cwd: Path) -> Completed:
    return run("/bin/sh", "-c", f'"$@" {streams}', "sh", FSA, *words, cwd=cwd)


def scheduler_with_streams(streams: str, cwd: Path) -> int:
    """Start a scheduler, and end it when a run has succeeded: its exit code."""
    words = ["/bin/sh", "-c", f'exec "$@" {streams}', "sh", FSA, "scheduler", "start"]
    process = subprocess.Popen(words, cwd=cwd, env=environment(), stdin=subprocess.DEVNULL)
    try:
        wait_until(
            lambda: process.poll() is not None or ("succeeded", "tea") in outcomes(cwd),
            "a run has succeeded",
        )
        process.terminate()
        return process.wait(DEADLINE_S)
    finally:
        process.kill()


def outcomes(directory: Path) -> list[tuple[str, str]]:
    found = json.loads(run(FSA, "runs", "--json", cwd=directory).stdout)
    return [(each["status"], each["result"]) for each in found]


@pytest.mark.parametrize("streams", ["2>/dev/full", "<&- >&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", [["-v", "run-task", "ship"], ["run-task", "ship", "--json"]])
def test_a_task_runs_and_is_recorded_whoever_hears_of_it(
    shop: Path, words: list[str], streams: str
) -> None:
    done = with_streams(streams, *words, cwd=shop)

    assert done.returncode == 0, done.stderr
    assert outcomes(shop) == [("succeeded", "tea")]


def test_a_value_that_cannot_be_written_is_said_beside_how_the_task_ended(shop: Path) -> None:
    done = with_streams(">/dev/full", "run-task", "ship", cwd=shop)

    ended, error = done.stderr.splitlines()
    assert ended.startswith("ship succeeded in ")
    assert error == "error: the output cannot be written: No space left on device"
    assert (done.returncode, outcomes(shop)) == (1, [("succeeded", "tea")])


@pytest.mark.parametrize(
    "streams", ["2>/dev/full", "<&- >&- 2>&-", "2>/dev/full --log-format=json"]
)
def test_a_scheduler_goes_on_while_nobody_can_read_its_log(shop: Path, streams: str) -> None:
    assert scheduler_with_streams(streams, shop) == 0
    assert ("succeeded", "tea") in outcomes(shop)


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--version"], 0), (["docs", "runs"], 0), (["health", "live"], 1), (["tasks", "none"], 2)],
    ids=str,
)
def test_closed_and_full_streams_change_no_exit_code_but_that_of_data(
    shop: Path, words: list[str], code: int
) -> None:
    closed = with_streams("<&- >&- 2>&-", *words, cwd=shop)
    untold = with_streams("2>/dev/full", *words, cwd=shop)
    full = with_streams(">/dev/full", *words, cwd=shop)

    assert (closed.returncode, untold.returncode, full.returncode) == (code, code, code or 1)
    if code == 0:
        assert full.stderr == "error: the output cannot be written: No space left on device\n"


def test_a_closed_stream_gives_its_descriptor_to_no_connection(shop: Path) -> None:
    code = "import os; session.connection(); assert os.readlink('/proc/self/fd/1') == '/dev/null'"

    done = with_streams(">&-", "shell", "-c", code, cwd=shop)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "replaced", ["Log()", "None", "open('/dev/null', 'w'); sys.stderr.close()"]
)
def test_an_app_may_put_its_own_thing_in_the_place_of_stderr(shop: Path, replaced: str) -> None:
    log = """
class Log:
    def write(self, text):
        open("log", "a").write(text)
"""
    with (shop / "main.py").open("a") as main:
        main.write(f"import sys\n{log}\nsys.stderr = {replaced}\n")

    code = scheduler_with_streams("", shop)
    done = run(FSA, "run-task", "ship", cwd=shop)
    wrong = run(FSA, "run-task", "none", cwd=shop)

    assert (done.returncode, done.stdout) == (0, "tea\n")
    assert (wrong.returncode, code) == (2, 0)
    assert ("succeeded", "tea") in outcomes(shop)
    if replaced == "Log()":
        assert "ship succeeded" in (shop / "log").read_text()
        assert "there is no task 'none'" in (shop / "log").read_text()
