"""An engine carries the runs: its workers are killed and stopped, and its messages go astray."""

import time
from collections.abc import Callable

import pytest

from fsa_cli.ledger.enqueue import write_run
from fsa_cli.ledger.records import NewRun
from support.backends import Backend
from support.engines import (
    ENGINES,
    SOON,
    Broker,
    Engine,
    RabbitMQ,
    Repeating,
    engines,
    standing_still,
)
from support.oracle import Verdict, starts_of
from support.replicas import Replicas, ledger_of
from support.waiting import wait_until

BUSY = """
@task(queue={queue!r})
def busy(context: TaskContext):
    note(context)
    time.sleep(1)
    write(context)
"""

Fleet = Callable[..., Replicas]


def wanted(engine: Engine, task: str) -> NewRun:
    """A run that waits in the ledger until it is handed to the engine."""
    return NewRun.of(task, "{}", executor=engine.executor, queue=engine.queue, dispatched=False)


@pytest.fixture
def fleet(
    postgresql: Backend, engine: Engine, is_long: bool, replicas_on: Callable[..., Replicas]
) -> Fleet:
    """`fleet()`: two schedulers, and three workers that the engine brings runs to.

    Messages that were lost are sent again after `lost_for_s`.
    """

    def make(
        *, schedulers: int = 2, workers: int = 3, lost_for_s: int = 30 if is_long else 4
    ) -> Replicas:
        replicas = replicas_on(postgresql)
        replicas.environment = engine.environment
        replicas.queue = engine.queue
        replicas.lay_load("" if lost_for_s == 30 else SOON)
        if engine.executor == "procrastinate":
            replicas.prepare()
        replicas.start_with_workers(schedulers, workers)
        return replicas

    return make


@engines(*ENGINES)
def test_of_schedulers_and_workers_that_are_killed_at_random_no_run_is_lost_or_executed_twice(
    engine: Engine, fleet: Fleet, is_long: bool, judged: Callable[..., Verdict]
) -> None:
    replicas = fleet()
    time.sleep(1)

    for left in reversed(range(50 if is_long else 2)):
        replicas.kill_one_of("worker", in_flight=left == 0)
        replicas.pause(0.2, 1.0)
        replicas.kill_one_of("scheduler")
        replicas.pause(0.2, 1.0)
    replicas.wait_up()

    verdict = judged(replicas, within_s=300 if is_long else 120)
    assert verdict.statuses["succeeded"] > verdict.instants * 0.4
    assert verdict.recovered_s, "what was in flight when its worker was killed was not seen"


@engines()
def test_workers_that_are_stopped_one_after_another_under_load_exit_0_and_lose_nothing(
    engine: Engine, fleet: Fleet, is_long: bool, judged: Callable[..., Verdict]
) -> None:
    replicas = fleet(schedulers=1)

    for number in range(40 if is_long else 3):
        replica = replicas.replicas[number % 4]
        replicas.pause(0.2, 1.0)
        assert replica.process.stop().returncode == 0
        replicas.faults += 1
        replicas.restart(replica)
        replicas.wait_up()

    verdict = judged(replicas, within_s=120)
    assert not verdict.statuses["interrupted"]


@engines("redis")
def test_messages_that_come_twice_run_once(
    engine: Engine, fleet: Fleet, is_long: bool, judged: Callable[..., Verdict]
) -> None:
    replicas = fleet(schedulers=1)

    with Repeating(replicas, engine) as repeating:
        time.sleep(60 if is_long else 5)
        wait_until(lambda: repeating.delivered > 100, "a hundred messages more")

    replicas.faults = repeating.delivered
    verdict = judged(replicas)
    assert not verdict.statuses["interrupted"]


@engines("rabbitmq")
def test_messages_that_are_lost_are_sent_again(
    engine: Engine, fleet: Fleet, is_long: bool, judged: Callable[..., Verdict]
) -> None:
    # RabbitMQ gives each worker its share in advance: three leave nothing to lose in this time.
    replicas = fleet(schedulers=1, workers=1)

    fewest = 20 if is_long else 2
    for number in range(fewest + 30):
        if number >= fewest and replicas.faults > 5:
            break
        replicas.pause(0.5, 1.5)
        with standing_still(replicas, "worker"):
            time.sleep(1.5)
            replicas.faults += engine.lose()

    verdict = judged(replicas, within_s=120)
    assert replicas.faults > 5
    assert not verdict.statuses["interrupted"]


@engines("redis", of=["redis", "rabbitmq"])
def test_a_broker_that_restarts_and_is_away_keeps_no_run_waiting_for_long(
    engine: Broker, fleet: Fleet, is_long: bool, judged: Callable[..., Verdict]
) -> None:
    replicas = fleet(lost_for_s=30)
    replicas.pause(0.5, 1.5)
    with standing_still(replicas, "worker"):
        time.sleep(1.5)
        engine.leave()
        # A client may try for seconds, and a restart that it does not notice costs 30 s.
        wait_until(lambda: "cannot be reached" in replicas.said, within_s=30)
    engine.come_back()
    replicas.faults += 1

    for away_s in (*[1.0] * 5, 60.0) if is_long else ():
        replicas.pause(2.0, 4.0)
        engine.leave()
        replicas.faults += 1
        time.sleep(away_s)
        engine.come_back()

    verdict = judged(replicas, within_s=180)
    assert not verdict.statuses["interrupted"]
    assert "celery can be reached again" in replicas.said
    if not is_long:
        assert verdict.late_ms[-1] < 20_000


@engines(of=["rabbitmq"])
def test_a_broker_that_falls_silent_loses_no_run(
    engine: RabbitMQ, fleet: Fleet, judged: Callable[..., Verdict]
) -> None:
    replicas = fleet()
    replicas.pause(1.0, 2.0)

    engine.proxy.silent.set()
    replicas.faults += 1
    time.sleep(60)
    engine.proxy.drop_all()
    engine.proxy.silent.clear()

    verdict = judged(replicas, within_s=180)
    assert not verdict.statuses["interrupted"]


@engines("rabbitmq")
def test_runs_of_a_worker_that_is_stopped_are_executed_by_another_at_once(
    engine: Engine, postgresql: Backend, replicas_on: Callable[..., Replicas]
) -> None:
    replicas = replicas_on(postgresql)
    replicas.environment = engine.environment
    replicas.lay(BUSY.format(queue=engine.queue), [])
    replicas.prepare()
    for _ in range(2):
        replicas.start("--concurrency", "4", command="worker")
    replicas.wait_up()
    with ledger_of(replicas) as ledger:

        def both_listen() -> bool:
            write_run(ledger, wanted(engine, "busy"))
            time.sleep(0.2)
            return len({start.pid for start in starts_of(replicas)}) == 2

        # One of them may begin to listen when the other one has taken all there was.
        wait_until(both_listen, "each of them has begun a run")
        for _ in range(24):
            write_run(ledger, wanted(engine, "busy"))

    assert replicas.replicas[0].process.stop().returncode == 0

    def left() -> list[tuple[str, str]]:
        return postgresql.rows("SELECT id, status FROM fsa_run WHERE status <> 'succeeded'")

    # Half a minute after the last message another one would be sent.
    wait_until(lambda: not left(), "every run has succeeded", within_s=20)
    runs = len(postgresql.rows("SELECT id FROM fsa_run"))
    assert len(starts_of(replicas)) == len({start.run for start in starts_of(replicas)}) == runs


@engines("rabbitmq", of=["rabbitmq"])
def test_a_worker_says_why_celerys_own_has_ended(
    engine: RabbitMQ, postgresql: Backend, replicas_on: Callable[..., Replicas]
) -> None:
    replicas = replicas_on(postgresql)
    replicas.environment = engine.environment
    replicas.lay(BUSY.format(queue=engine.queue), [])
    replicas.prepare()
    with engine.held():
        worker = replicas.start(command="worker").process
        worker.wait_for("Celery's worker has ended: ResourceLocked: Queue.declare: (405)")
        with ledger_of(replicas) as ledger:
            write_run(ledger, wanted(engine, "busy"))

    done = "SELECT id FROM fsa_run WHERE status = 'succeeded'"
    wait_until(lambda: postgresql.rows(done))
    assert "celery can be reached again" in worker.stderr
    assert worker.stop().returncode == 0


@engines("redis", of=["redis", "rabbitmq"])
def test_a_worker_that_begins_when_its_broker_is_away_says_so_and_waits_for_it(
    engine: Broker, postgresql: Backend, replicas_on: Callable[..., Replicas]
) -> None:
    replicas = replicas_on(postgresql)
    replicas.environment = engine.environment
    replicas.lay(BUSY.format(queue=engine.queue), [])
    engine.leave()
    worker = replicas.start(command="worker").process
    replicas.start(command="worker")
    replicas.wait_up()
    for each in replicas.replicas:
        each.process.wait_for("Celery's broker cannot be reached")
    with ledger_of(replicas) as ledger:
        write_run(ledger, wanted(engine, "busy"))
    assert replicas.replicas[1].process.stop().returncode == 0

    engine.come_back()

    done = "SELECT id FROM fsa_run WHERE status = 'succeeded'"
    wait_until(lambda: postgresql.rows(done), within_s=120)
    assert "celery can be reached again" in worker.stderr
    assert worker.stderr.count("cannot be reached") <= 2, worker
    assert worker.stop().returncode == 0
