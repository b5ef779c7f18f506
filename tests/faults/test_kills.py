"""kill -9: a replica that dies takes no instant with it."""

import time
from collections.abc import Callable

import pytest

from support.backends import Backend
from support.oracle import Verdict
from support.replicas import Replicas

KILLS = {"postgresql": (4, 100), "mariadb": (3, 60), "sqlite": (3, 60)}


def test_of_replicas_that_are_killed_at_random_no_instant_is_lost_and_none_runs_twice(
    backend: Backend,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(backend)
    replicas.lay_load()
    replicas.start_all()
    time.sleep(2)

    for left in reversed(range(KILLS[backend.name][is_long])):
        replicas.kill_one_of(in_flight=left == 0)
        replicas.pause(0.5, 2.0)

    # One task at a time works off what waited for those that were killed.
    verdict = judged(replicas, within_s=240 if is_long else 60)
    assert verdict.statuses["succeeded"] > replicas.faults
    assert verdict.recovered_s, "what was in flight when its replica was killed was not seen"


@pytest.mark.slow
def test_when_all_replicas_are_killed_at_once_the_next_ones_make_up_for_it(
    postgresql: Backend,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(postgresql)
    replicas.lay_load()
    replicas.start_all()
    time.sleep(2)

    for _ in range(8 if is_long else 1):
        for replica in replicas.replicas:
            replica.process.kill()
        for replica in replicas.replicas:
            replicas.note_in_flight(replica.process.pid)
        replicas.faults += 1
        replicas.pause(0.0, 4.0)
        for replica in replicas.replicas:
            replicas.restart(replica)
        replicas.wait_up()
        replicas.pause(2.0, 8.0 if is_long else 2.0)

    judged(replicas)
