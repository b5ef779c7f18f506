"""What a person asks for from another process, while replicas run: trigger, pause, resume."""

import time
from collections.abc import Callable

from fsa_cli.ledger import control
from support.backends import Backend
from support.ledgers import enqueue
from support.oracle import Verdict, starts_of
from support.replicas import Replicas, Scheduled, ledger_of
from support.waiting import wait_until

TICKS = """
@task(schedule="every 1s")
def tick(context: TaskContext):
    note(context)
    write(context)

@task
async def by_hand(context: TaskContext):
    note(context)
    await write_async(context)
"""


def test_what_is_triggered_from_another_process_starts_within_a_second_and_a_half(
    backend: Backend,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(backend)
    replicas.lay(TICKS, [Scheduled("tick")])
    replicas.start_all(2)
    asked: dict[str, float] = {}

    with ledger_of(replicas) as ledger:
        for _ in range(8):
            at_ms = time.time() * 1000
            asked[enqueue(ledger, "by_hand", "{}", by="the test")] = at_ms
            replicas.pause(0.2, 0.6)

    def began() -> bool:
        return asked.keys() <= {start.run for start in starts_of(replicas)}

    wait_until(began, within_s=20)
    late_ms = [s.at_ms - asked[s.run] for s in starts_of(replicas) if s.run in asked]
    assert len(late_ms) == len(asked), "one was begun twice"
    assert max(late_ms) < 1500, late_ms
    judged(replicas)


def test_a_task_that_is_paused_from_another_process_begins_nothing_until_it_is_resumed(
    postgresql: Backend,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(postgresql)
    replicas.lay(TICKS, [Scheduled("tick")])
    replicas.start_all(3)
    time.sleep(1)

    with ledger_of(replicas) as ledger:
        assert control.pause(ledger, ["tick"], "the test") == ["tick"]
        paused_ms = replicas.now_ms()
        time.sleep(6)
        assert control.resume(ledger, ["tick"]) == ["tick"]
        resumed_ms = replicas.now_ms()
    wait_until(lambda: any(s.at_ms > resumed_ms for s in starts_of(replicas)), within_s=5)

    judged(replicas)
    assert not [s for s in starts_of(replicas) if paused_ms + 50 < s.at_ms < resumed_ms]
    # The sweep writes them down, when they are one second old and at most two.
    reasons = replicas.ledger.rows(
        f"SELECT status, error FROM fsa_run WHERE scheduled_ms > {paused_ms + 500}"
        f" AND scheduled_ms <= {resumed_ms - 3500}"
    )
    assert set(reasons) == {("skipped", "the task is paused")}
