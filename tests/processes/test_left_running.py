"""Threads and coroutines that a task leaves running: the process ends without them."""

from __future__ import annotations

import signal
import time

import pytest

from support.processes import Process, Run, Start
from support.shops import Shop
from support.waiting import wait_until

TASKS = """
import atexit, concurrent.futures, threading

def note(name):
    (pathlib.Path(__file__).parent / name).touch()

def work():
    while True:
        time.sleep(1)

@task(timeout_s=1)
async def fetch():
    await asyncio.to_thread(time.sleep, 40)

@task
async def stubborn():
    async def stay():
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass
    stubborn.kept = asyncio.create_task(stay())
    await asyncio.sleep(0.1)

@task
def leave_thread():
    atexit.register(note, "called")
    threading.Thread(target=work, name="left-thread", daemon=False).start()

@task
def leave_pool():
    atexit.register(note, "called")
    concurrent.futures.ThreadPoolExecutor(thread_name_prefix="left-pool").submit(work)

@task
def leave_handler():
    atexit.register(work)
    atexit.register(note, "called")

@task(timeout_s=1)
def end_late():
    threading.Thread(target=work, name="left-thread", daemon=False).start()
    time.sleep(60)
"""


@pytest.fixture
def laid(small_shop: Shop, fsa: Run) -> Shop:
    small_shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    return small_shop


@pytest.fixture
def worker(laid: Shop, fsa_process: Start) -> Process:
    process = fsa_process("worker", "start", env={"FSA_STATE_DIR": "state"})
    process.wait_for("fsa worker")
    return process


@pytest.mark.parametrize(
    ("name", "status", "left"),
    [
        ("fetch", "timed_out", "asyncio_0"),
        ("stubborn", "succeeded", None),
        ("leave_thread", "succeeded", "left-thread"),
        ("leave_pool", "succeeded", "left-pool_0"),
        ("leave_handler", "succeeded", "a function of atexit"),
    ],
)
def test_a_worker_ends_in_seconds_and_names_what_is_left_running(
    name: str, status: str, left: str | None, worker: Process, laid: Shop, fsa: Run
) -> None:
    assert fsa("run-task", name, "--enqueue").returncode == 0
    wait_until(lambda: laid.runs() == [(name, status)])
    worker.send(signal.SIGTERM)

    done = worker.wait(within_s=25)

    assert done.returncode == 0, done.stderr
    assert "every task that was running has ended" in done.stderr
    assert ("the process ends without" in done.stderr) is (left is not None)
    assert left is None or f"without {left}, which goes on" in done.stderr
    assert ("when it is cancelled: stubborn.<locals>.stay" in done.stderr) is (name == "stubborn")
    assert laid.ledger("SELECT state FROM fsa_node WHERE role = 'worker'") == [("stopped",)]
    if name.startswith("leave"):
        assert (laid.directory / "called").exists()


@pytest.mark.parametrize(
    ("name", "code", "left"), [("fetch", 124, "asyncio_0"), ("end_late", 124, "left-thread")]
)
def test_run_task_ends_soon_after_its_time_out(
    name: str, code: int, left: str, laid: Shop, fsa: Run
) -> None:
    began_s = time.monotonic()

    done = fsa("run-task", name)

    assert time.monotonic() - began_s < 25
    assert done.returncode == code, done.stderr
    assert f"{name} took longer than 1 s" in done.stderr
    assert f"without {left}, which goes on" in done.stderr


def test_run_task_ends_although_a_coroutine_swallows_its_cancellation(laid: Shop, fsa: Run) -> None:
    done = fsa("run-task", "stubborn", timeout=40)

    assert done.returncode == 0, done.stderr
    assert "when it is cancelled: stubborn.<locals>.stay" in done.stderr
