"""SIGTERM under load, and SIGSTOP for longer than the lease."""

import signal
import time
from collections.abc import Callable

import pytest

from support.backends import Backend
from support.oracle import Verdict, judge
from support.replicas import Replicas, Scheduled


def test_replicas_that_are_stopped_one_after_another_under_load_exit_0_and_lose_nothing(
    postgresql: Backend,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(postgresql)
    replicas.lay_load()
    replicas.start_all()

    for number in range(40 if is_long else 3):
        replica = replicas.replicas[number % 3]
        replicas.pause(0.2, 1.2)
        assert replica.process.stop().returncode == 0
        replicas.faults += 1
        replicas.restart(replica)
        replicas.wait_up()

    verdict = judged(replicas)
    assert not verdict.statuses["interrupted"]
    assert not verdict.statuses["missed"]


LONG = """
@task(schedule="every 2s", overlap="allow")
def marked(context: TaskContext):
    note(context)
    write(context)
    time.sleep(1.5)

@task(schedule="every 2s", overlap="allow", on_crash="retry")
async def retried(context: TaskContext):
    note(context)
    await write_async(context)
    await asyncio.sleep(1.5)
"""


def test_a_run_that_a_drain_cuts_short_is_marked_or_retried_and_takes_effect_once(
    postgresql: Backend, replicas_on: Callable[..., Replicas]
) -> None:
    replicas = replicas_on(postgresql)
    replicas.lay(
        LONG,
        [
            Scheduled("marked", every_s=2, overlap="allow"),
            Scheduled("retried", every_s=2, overlap="allow", on_crash="retry"),
        ],
    )
    replicas.start_all(2, "--grace", "0.1")
    codes = []
    for number in range(2):
        replica = replicas.replicas[number % 2]
        while not replicas.running_of(replica.process.pid):
            time.sleep(0.02)
        codes.append(replica.process.stop().returncode)
        replicas.restart(replica)
        replicas.wait_up()
    replicas.start("--grace", "3600")
    replicas.wait_up()
    patient = replicas.replicas[-1]
    while not replicas.running_of(patient.process.pid):
        time.sleep(0.02)
    patient.process.send(signal.SIGTERM)
    patient.process.wait_for("waiting up to 3600 s")
    codes.append(patient.process.stop().returncode)
    replicas.replicas.remove(patient)
    replicas.ended.append(patient.process)
    cut_ms = replicas.settle()
    replicas.stop()

    verdict = judge(replicas, cut_ms)

    verdict.assert_kept()
    assert set(codes) <= {0, 143}
    assert codes.count(143) >= 2, codes
    assert verdict.statuses["interrupted"] >= 1
    postgresql.assert_released()


@pytest.mark.slow
def test_a_replica_that_stands_still_beyond_its_lease_is_given_up_and_commits_nothing(
    postgresql: Backend,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(postgresql)
    replicas.lay_load()
    replicas.start_all()
    time.sleep(1)

    for _ in range(8 if is_long else 1):
        assert replicas.stand_still_in_flight(replicas.lease_s + 3)
        replicas.pause(1.0, 2.0)

    judged(replicas)
    assert "was declared dead" in replicas.said
