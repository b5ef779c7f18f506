"""What a process has claimed, and has no slot for: other processes take it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from fsa_cli.ledger.records import ClaimedRun
from fsa_cli.processes import pool
from fsa_cli.processes.active_runs import ActiveRun
from fsa_cli.runner.run import Run as Execution
from fsa_cli.tasks.definition import TaskDefinition
from support.processes import Run, Start
from support.shops import Shop
from support.waiting import wait_until

TASKS = """
def wait_for(name):
    while not (pathlib.Path(__file__).parent / name).exists():
        time.sleep(0.02)

def mark(name):
    (pathlib.Path(__file__).parent / name).touch()

@task
def brief():
    time.sleep(0.05)

@task
def long():
    wait_for("go")

@task
def child():
    mark("child")
"""
WORKER = "worker", "start", "--concurrency", "2"


@pytest.fixture
def laid(shop: Shop, fsa: Run) -> Shop:
    shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    return shop


def enqueue(fsa: Run, *words: str) -> str:
    done = fsa("run-task", *words, "--enqueue")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def statuses(shop: Shop, task: str) -> list[str]:
    return [status for name, status in shop.runs() if name == task]


def started(fsa_process: Start, state: str = "state") -> None:
    fsa_process(*WORKER, env={"FSA_STATE_DIR": state}).wait_for("fsa worker")


def busy(laid: Shop, fsa_process: Start, fsa: Run) -> None:
    """A worker whose slots are taken until `go` is there."""
    started(fsa_process)
    for _ in range(2):
        enqueue(fsa, "long")
    wait_until(lambda: statuses(laid, "long") == ["running"] * 2)


def test_a_busy_process_leaves_what_it_cannot_start_to_an_idle_one(
    laid: Shop, fsa_process: Start, fsa: Run
) -> None:
    busy(laid, fsa_process, fsa)
    for _ in range(3):
        enqueue(fsa, "child")
    time.sleep(1.5)
    assert statuses(laid, "child") == ["queued"] * 3

    started(fsa_process, "other")

    wait_until(lambda: statuses(laid, "child") == ["succeeded"] * 3, within_s=20)
    assert statuses(laid, "long") == ["running"] * 2


def test_what_was_claimed_ahead_is_queued_again_as_it_was(
    laid: Shop, fsa_process: Start, fsa: Run
) -> None:
    """Slots come free quickly until long runs take them all: what waits then goes back."""
    for _ in range(8):
        enqueue(fsa, "brief", "--priority", "9")
    for _ in range(2):
        enqueue(fsa, "long", "--priority", "5")
    for _ in range(3):
        enqueue(fsa, "child", "--priority", "1")
    started(fsa_process)

    wait_until(lambda: statuses(laid, "long") == ["running"] * 2)
    time.sleep(1.5)  # until then it may claim them, as it did before the long runs had its slots
    columns = "attempt, priority, node, claim, started_ms"
    # One may have had a slot before both long runs had theirs.
    sql = f"SELECT {columns} FROM fsa_run WHERE task = 'child' AND status <> 'succeeded'"
    wait_until(lambda: set(laid.ledger(sql)) == {(1, 1, None, None, None)})
    waiting = len(laid.ledger(sql))
    time.sleep(1.5)
    assert statuses(laid, "child").count("queued") == waiting
    Path(laid.directory, "go").touch()
    wait_until(lambda: statuses(laid, "child") == ["succeeded"] * 3)


def test_a_run_that_waits_for_a_slot_and_is_cancelled_never_starts(
    laid: Shop, fsa_process: Start, fsa: Run
) -> None:
    """Whether its process has claimed it already or not."""
    for _ in range(8):
        enqueue(fsa, "brief", "--priority", "9")
    for _ in range(2):
        enqueue(fsa, "long", "--priority", "5")
    child = enqueue(fsa, "child")
    started(fsa_process)
    wait_until(lambda: statuses(laid, "long") == ["running"] * 2)

    assert fsa("runs", "cancel", child).returncode == 0
    wait_until(lambda: statuses(laid, "child") == ["cancelled"], within_s=5)
    Path(laid.directory, "go").touch()
    wait_until(lambda: statuses(laid, "long") == ["succeeded"] * 2)

    assert statuses(laid, "child") == ["cancelled"]
    assert not Path(laid.directory, "child").exists()
    ((started_ms,),) = laid.ledger("SELECT started_ms FROM fsa_run WHERE task = 'child'")
    assert started_ms is None


def test_an_urgent_run_goes_before_what_was_enqueued_earlier(
    laid: Shop, fsa_process: Start, fsa: Run
) -> None:
    busy(laid, fsa_process, fsa)
    for _ in range(8):
        enqueue(fsa, "child", "--priority", "-100")
    urgent = enqueue(fsa, "child", "--priority", "100")
    time.sleep(1.2)

    Path(laid.directory, "go").touch()
    wait_until(lambda: statuses(laid, "child") == ["succeeded"] * 9)

    begun = dict(laid.ledger("SELECT id, started_ms FROM fsa_run WHERE task = 'child'"))
    # Now and then a process takes the oldest, and two slots come free at once: it is not the last.
    assert begun.pop(urgent) <= max(begun.values())


@pytest.mark.parametrize(("moment_s", "expected"), [(0.0, 2), (60.0, 30)], ids=["slow", "short"])
def test_as_many_are_claimed_ahead_as_begin_soon(
    monkeypatch: pytest.MonkeyPatch, moment_s: float, expected: int
) -> None:
    """As many as there are slots; of runs that take next to nothing as many as end in a moment."""
    monkeypatch.setattr(pool, "_LATELY_S", 60.0)
    monkeypatch.setattr(pool, "_MOMENT_S", moment_s)
    ended = threading.Semaphore(0)
    runs = pool.RunPool(2, lambda active: None, lambda active, result: ended.release())
    runs.open()
    brief = TaskDefinition(name="brief", function=lambda: None, commit=False)
    assert runs.comes_free_soon == 0

    for number in range(30):
        claim = ClaimedRun(str(number), "token", "brief", 0, "manual", 1, "{}")
        assert runs.submit(ActiveRun(claim, Execution(task=brief)))
    for _ in range(30):
        assert ended.acquire(timeout=30)

    assert runs.comes_free_soon == expected
