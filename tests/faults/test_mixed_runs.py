"""Runs that fail, are cancelled and take too long leave nothing behind in their process."""

import json
import time
from collections import Counter
from collections.abc import Callable

from fsa_cli.ledger import control
from support.backends import Backend
from support.ledgers import enqueue
from support.oracle import judge
from support.replicas import Replicas, Scheduled, ledger_of
from support.waiting import wait_until

MIXED = """
seen = contextvars.ContextVar("seen", default=0)

def begin(context):
    if seen.get():
        open("leaked", "a").write(context.task + chr(10))
    seen.set(1)
    note(context)

@task(schedule="every 1s")
def tick(context: TaskContext):
    begin(context)
    write(context)

@task
def works(context: TaskContext):
    begin(context)
    write(context)

@task
async def works_async(context: TaskContext):
    begin(context)
    await write_async(context)

@task
def fails(context: TaskContext):
    begin(context)
    write(context)
    raise LookupError("as it should")

@task
async def fails_async(context: TaskContext):
    begin(context)
    await write_async(context)
    raise LookupError("as it should")

@task
async def leaves(context: TaskContext):
    begin(context)
    await write_async(context)
    sys.exit(3)

@task
async def breaks_its_transaction(context: TaskContext):
    begin(context)
    await write_async(context)
    await db.async_session.execute(text("SELECT 1 / 0"))

@task(timeout_s=0.05)
async def takes_too_long(context: TaskContext):
    begin(context)
    await write_async(context)
    await db.async_session.execute(text("SELECT pg_sleep(30)"))

@task(timeout_s=0.05)
def takes_too_long_in_a_thread(context: TaskContext):
    begin(context)
    write(context)
    while not context.cancelled:
        time.sleep(0.01)

@task
async def is_cancelled(context: TaskContext):
    begin(context)
    await write_async(context)
    await db.async_session.execute(text("SELECT pg_sleep(30)"))

@task
def probe(context: TaskContext):
    engines = []
    for binding in list(db._bindings):
        engines += list(binding.engines._made)
        engines += [held.engine.sync_engine for held in binding.engines._by_loop.values()]
    return {"pools": len(engines), "out": sum(engine.pool.checkedout() for engine in engines)}
"""

#: Of a hundred runs, and how each should end.
OF_HUNDRED = {
    "works": (25, "succeeded"),
    "works_async": (25, "succeeded"),
    "fails": (12, "failed"),
    "fails_async": (12, "failed"),
    "leaves": (6, "failed"),
    "breaks_its_transaction": (6, "failed"),
    "takes_too_long": (8, "timed_out"),
    "takes_too_long_in_a_thread": (4, "timed_out"),
    "is_cancelled": (2, "cancelled"),
}


def test_mixed_runs_leave_no_connection_no_transaction_and_no_context_behind(
    postgresql: Backend, is_long: bool, replicas_on: Callable[..., Replicas]
) -> None:
    replicas = replicas_on(postgresql)
    replicas.lay(MIXED, [Scheduled("tick")])
    replicas.start_all(1)

    with ledger_of(replicas) as ledger:
        for _ in range(100 if is_long else 3):
            names = [name for name, (number, _) in OF_HUNDRED.items() for _ in range(number)]
            for name in names:
                enqueue(ledger, name, "{}")
            deadline_s = time.monotonic() + 120
            while open_runs := postgresql.rows(
                "SELECT id, task, status FROM fsa_run WHERE kind = 'manual'"
                " AND status IN ('queued', 'running')"
            ):
                assert time.monotonic() < deadline_s, open_runs
                for run, name, status in open_runs:
                    if (name, status) == ("is_cancelled", "running"):
                        control.cancel(ledger, run)
                time.sleep(0.2)
        control.pause(ledger, ["tick"], "the test")
        time.sleep(1.5)
        enqueue(ledger, "probe", "{}")
        result = wait_until(
            lambda: postgresql.rows("SELECT result FROM fsa_run WHERE result LIKE '%pools%'")
        )
        control.resume(ledger, ["tick"])

    found = json.loads(result[0][0])
    assert found["out"] == 0
    assert found["pools"] == 2
    postgresql.assert_no_transaction()
    assert not (replicas.directory / "leaked").exists()
    ends = Counter(
        postgresql.rows(
            "SELECT task, status FROM fsa_run WHERE kind = 'manual' AND task <> 'probe'"
        )
    )
    times = 100 if is_long else 3
    assert ends == {(name, end): n * times for name, (n, end) in OF_HUNDRED.items()}
    cut_ms = replicas.settle()
    assert replicas.stop() == [0]
    judge(replicas, cut_ms).assert_kept()
    postgresql.assert_released()
