"""The oracle has teeth: it finds what goes wrong where a part of the scheduler is broken."""

import time
from collections.abc import Callable

import pytest

from support.backends import Backend
from support.oracle import judge
from support.replicas import RECOVERED_WITHIN_S, Replicas, Scheduled

NO_REAPER = """
from fsa_cli.ledger import maintenance

maintenance.reap = lambda *given, **more: maintenance.Died((), (), (), ())

@task(schedule="every 1s", overlap="allow")
def work(context: TaskContext):
    note(context)
    time.sleep(0.5)
    write(context)
"""


def test_a_broken_reaper_is_found(
    postgresql: Backend, replicas_on: Callable[..., Replicas]
) -> None:
    replicas = replicas_on(postgresql)
    replicas.lay(NO_REAPER, [Scheduled("work", overlap="allow")])
    replicas.start_all(2)
    while not replicas.in_flight:
        replicas.pause(1.0, 2.0)
        replicas.kill_one_of()
    time.sleep(RECOVERED_WITHIN_S)
    cut_ms = replicas.now_ms() - 3000

    verdict = judge(replicas, cut_ms)

    assert any("is running" in each for each in verdict.violations), verdict
    assert any("was not recovered" in each for each in verdict.violations), verdict


NO_FENCE = """
from fsa_cli.ledger.fence import Fence

Fence.guard = lambda self, session, connection, wrote: None

@task(schedule="every 1s", on_crash="retry")
def work(context: TaskContext):
    note(context)
    write(context)
    time.sleep(0.7)
"""


def test_a_fence_that_is_off_is_found(
    postgresql: Backend, replicas_on: Callable[..., Replicas]
) -> None:
    """A replica that stands still is given up, and commits all the same when it goes on."""
    replicas = replicas_on(postgresql)
    replicas.lay(NO_FENCE, [Scheduled("work", on_crash="retry")])
    replicas.start_all(2)
    stood_still = replicas.stand_still_in_flight(replicas.lease_s + 3)
    assert stood_still
    cut_ms = replicas.settle()

    verdict = judge(replicas, cut_ms)

    assert any("has taken effect 2 times" in each for each in verdict.violations), verdict


def test_an_instant_without_a_row_is_found(
    sqlite: Backend, replicas_on: Callable[..., Replicas]
) -> None:
    replicas = replicas_on(sqlite)
    replicas.lay(
        """
        @task(schedule="every 1s")
        def work(context: TaskContext):
            note(context)
            write(context)
        """,
        [Scheduled("work")],
    )
    replicas.start_all(1)
    time.sleep(3)
    cut_ms = replicas.settle()
    assert replicas.stop() == [0]
    judge(replicas, cut_ms).assert_kept()
    gone = replicas.ledger.rows(
        "SELECT id FROM fsa_run WHERE status = 'succeeded'"
        f" AND scheduled_ms BETWEEN {replicas.first_ms() + 1} AND {cut_ms} LIMIT 1"
    )[0][0]
    replicas.ledger.execute(f"DELETE FROM fsa_run WHERE id = '{gone}'")

    with pytest.raises(AssertionError, match="0 rows"):
        judge(replicas, cut_ms).assert_kept()
