"""A process that a task forks is told to end, and ends: our handlers are its parent's alone."""

from __future__ import annotations

import pytest

from support.processes import Run
from support.shops import Shop

TASKS = """
import multiprocessing, os, signal
fork = multiprocessing.get_context("fork")

def wait():
    time.sleep(60)

def told() -> dict:
    child = fork.Process(target=wait)
    child.start()
    time.sleep(0.3)
    child.terminate()
    child.join(20)
    exitcode, number = child.exitcode, 0
    if exitcode is None:
        child.kill()
    with fork.Pool(1) as pool:
        number = pool.apply(os.getpid)
    interrupted = fork.Process(target=wait)
    interrupted.start()
    time.sleep(0.3)
    os.kill(interrupted.pid, signal.SIGINT)
    interrupted.join(20)
    if interrupted.exitcode is None:
        interrupted.kill()
    return {"terminated": exitcode, "pool": number > 0, "interrupted": interrupted.exitcode}

@task
def fork_some() -> dict:
    return told()

@task
async def fork_some_async() -> dict:
    return told()
"""
EXPECTED = '{"terminated": -15, "pool": true, "interrupted": 1}'


@pytest.mark.parametrize("name", ["fork_some", "fork_some_async"])
def test_a_child_that_a_task_forks_can_be_terminated(name: str, fsa: Run, small_shop: Shop) -> None:
    small_shop.write(TASKS)

    done = fsa("run-task", name)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == EXPECTED


@pytest.mark.parametrize("name", ["fork_some", "fork_some_async"])
def test_also_in_a_scheduler(name: str, fsa: Run, small_shop: Shop) -> None:
    small_shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    assert fsa("scheduler", "trigger", name).returncode == 0

    assert fsa("scheduler", "tick").returncode == 0

    [(result,)] = small_shop.ledger("SELECT result FROM fsa_run")
    assert result == EXPECTED
