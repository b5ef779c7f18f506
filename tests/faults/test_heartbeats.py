"""A process whose event loop is blocked and whose threads are all busy is alive."""

import time
from collections.abc import Callable

from support.backends import Backend
from support.ledgers import enqueue
from support.replicas import Replicas, Scheduled, ledger_of
from support.waiting import wait_until

BUSY = """
@task(schedule="every 1s")
def tick(context: TaskContext):
    note(context)
    write(context)

@task
async def blocks_the_loop(seconds: float, context: TaskContext):
    note(context)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    await write_async(context)

@task
def takes_a_thread(seconds: float, context: TaskContext):
    note(context)
    time.sleep(seconds)
    write(context)
"""


def test_heartbeats_go_on_while_the_loop_is_blocked_and_all_threads_are_busy(
    postgresql: Backend, is_long: bool, replicas_on: Callable[..., Replicas]
) -> None:
    replicas = replicas_on(postgresql)
    replicas.lease_s = 4.0
    replicas.lay(BUSY, [Scheduled("tick")])
    replicas.start_all(1, "--concurrency", "3")
    replicas.start("--only", "tick")  # it would take over
    replicas.wait_up()
    seconds = 30 if is_long else 7
    with ledger_of(replicas) as ledger:
        arguments = f'{{"seconds": {seconds}}}'
        runs = [
            enqueue(ledger, name, arguments)
            for name in ("blocks_the_loop", "takes_a_thread", "takes_a_thread")
        ]
    names = ", ".join(f"'{run}'" for run in runs)
    began_s = time.monotonic()
    statuses: list[str] = []

    def have_ended() -> bool:
        nodes = postgresql.rows("SELECT state FROM fsa_node")
        assert nodes == [("alive",), ("alive",)], nodes
        rows = postgresql.rows(f"SELECT status FROM fsa_run WHERE id IN ({names})")
        statuses[:] = [status for (status,) in rows]
        return not {"queued", "running"} & set(statuses)

    wait_until(have_ended, within_s=2 * seconds + 20)  # two of them take turns

    assert statuses == ["succeeded"] * 3
    assert time.monotonic() - began_s >= seconds - 1
    assert replicas.stop() == [0, 0]
    assert "has died" not in replicas.said
