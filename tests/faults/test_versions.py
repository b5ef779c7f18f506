"""Two versions of an app with different schedules, as in a rolling deploy."""

import time
from collections.abc import Callable

from support.backends import Backend
from support.oracle import assert_nothing_left, judge, without_row
from support.replicas import Replicas, Scheduled

APP = """
VERSION = os.environ["VERSION"]

def work(context: TaskContext):
    note(context)
    write(context)

def define(name, schedule):
    def work(context: TaskContext):
        note(context)
        write(context)

    task(name=name, schedule=schedule)(work)

define("kept", "every 1s")
if VERSION == "1":
    define("changed", "every 2s")
    define("removed", "every 1s")
else:
    define("changed", "every 3s")
    define("added", "every 1s")
"""
KEPT = Scheduled("kept")


def test_each_version_fires_what_it_knows_and_nothing_twice(
    postgresql: Backend, replicas_on: Callable[..., Replicas]
) -> None:
    replicas = replicas_on(postgresql)
    replicas.lay(APP, [KEPT])
    old = [replicas.start(environment={"VERSION": "1"}) for _ in range(2)]
    replicas.wait_up()
    old_first_ms = replicas.now_ms()
    time.sleep(2)
    for _ in range(2):
        replicas.start(environment={"VERSION": "2"})
    replicas.wait_up()
    new_first_ms = replicas.now_ms()
    replicas.kill(old[0])  # and the old version is started once more, after the new one
    replicas.wait_up()
    time.sleep(2)
    old_until_ms = replicas.now_ms() - 500
    for replica in old:
        assert replica.process.stop().returncode == 0
        replicas.replicas.remove(replica)
        replicas.ended.append(replica.process)
    alone_ms = replicas.now_ms()
    time.sleep(4)
    cut_ms = replicas.settle()
    assert_nothing_left(replicas)

    assert replicas.stop() == [0, 0]
    judge(replicas, cut_ms).assert_kept()
    for scheduled, first_ms, until_ms in (
        (Scheduled("changed", every_s=2), old_first_ms, old_until_ms),
        (Scheduled("changed", every_s=3), new_first_ms, cut_ms),
        (Scheduled("removed"), old_first_ms, old_until_ms),
        (Scheduled("added"), new_first_ms, cut_ms),
    ):
        assert not without_row(replicas, scheduled, first_ms, until_ms), scheduled
    strays = replicas.ledger.rows(
        f"SELECT task, scheduled_ms FROM fsa_run WHERE scheduled_ms > {alone_ms}"
        " AND (task = 'removed' OR task = 'changed' AND scheduled_ms % 3000 <> 0)"
    )
    assert not strays
