"""Processes that a task starts and leaves behind, and what it reads."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from support.processes import Process, Run, Start
from support.shops import Shop
from support.waiting import wait_until

TASKS = """
import multiprocessing, os, subprocess

HERE = pathlib.Path(__file__).parent

def note(name):
    (HERE / f"{name}.new").write_text(str(os.getpid()))
    (HERE / f"{name}.new").rename(HERE / name)

def sleep():
    note("helper")
    time.sleep(60)

def leave_behind():
    if os.fork() == 0:
        os.setsid()
        sleep()
        os._exit(0)
    return "back"

def start_helper():
    multiprocessing.get_context("fork").Process(target=sleep).start()
    time.sleep(60)

@task
def daemonize():
    return leave_behind()

@task(isolation="process", timeout_s=30)
def back():
    return leave_behind()

@task(isolation="process", timeout_s=1)
def late():
    start_helper()

@task(isolation="process")
def busy():
    start_helper()

@task(isolation="process", timeout_s=30)
def read():
    ran = subprocess.run(["cat"], capture_output=True)
    return [ran.stdout.decode(), sys.stdin.read()]
"""


@pytest.fixture
def worker(small_shop: Shop, fsa: Run, fsa_process: Start) -> Process:
    small_shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    process = fsa_process("worker", "start", env={"FSA_STATE_DIR": "state"})
    process.wait_for("fsa worker")
    return process


def ended(fsa: Run, name: str) -> tuple[str, object]:
    """The status and the result of a run, which is waited for less long than its helper sleeps."""
    done = fsa("scheduler", "trigger", name, "--wait", "--json", timeout=25)
    run = json.loads(done.stdout)
    return run["status"], run["result"]


def is_gone(file: Path) -> bool:
    """Whether the process that has written its number there has ended."""
    stat = Path("/proc", file.read_text(), "stat")
    return not stat.exists() or stat.read_text().rpartition(") ")[2].startswith("Z")


def test_an_isolated_run_ends_with_its_task_and_not_with_what_that_has_left_behind(
    worker: Process, fsa: Run, tmp_path: Path
) -> None:
    assert ended(fsa, "back") == ("succeeded", "back")
    wait_until((tmp_path / "helper").exists)
    assert not is_gone(tmp_path / "helper")
    os.kill(int((tmp_path / "helper").read_text()), 9)


def test_the_time_out_of_an_isolated_run_ends_what_its_task_has_started(
    worker: Process, fsa: Run, tmp_path: Path
) -> None:
    assert ended(fsa, "late") == ("timed_out", None)
    wait_until(lambda: is_gone(tmp_path / "helper"), within_s=10)


def test_an_isolated_run_whose_task_has_forked_can_be_cancelled(
    worker: Process, small_shop: Shop, fsa: Run, tmp_path: Path
) -> None:
    run_id = fsa("run-task", "busy", "--enqueue").stdout.strip()
    wait_until((tmp_path / "helper").exists)
    assert fsa("runs", "cancel", run_id).returncode == 0
    wait_until(lambda: small_shop.runs() == [("busy", "cancelled")], within_s=20)
    wait_until(lambda: is_gone(tmp_path / "helper"), within_s=10)


def test_what_an_isolated_task_reads_from_its_standard_input_is_empty(
    worker: Process, fsa: Run
) -> None:
    assert ended(fsa, "read") == ("succeeded", ["", ""])


def test_run_task_ends_with_its_task_and_not_with_what_that_has_left_behind(
    small_shop: Shop, fsa: Run, tmp_path: Path
) -> None:
    small_shop.write(TASKS)
    began_s = time.monotonic()

    done = fsa("run-task", "daemonize", timeout=40)

    assert (done.returncode, done.stdout) == (0, "back\n")
    assert time.monotonic() - began_s < 30
    wait_until((tmp_path / "helper").exists)
    os.kill(int((tmp_path / "helper").read_text()), 9)
