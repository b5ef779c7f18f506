"""A team's own Celery worker makes the runs, with its prefork pool: each child is a node."""

import os
import signal
import sys
from collections.abc import Callable

from support.backends import Backend
from support.engines import SOON, Engine, engines
from support.oracle import judge
from support.processes import Start, write_files
from support.replicas import Replicas, Scheduled
from support.waiting import wait_until

TASKS = """
@task(schedule="every 1s", queue={queue!r}, overlap="allow")
def marked(context: TaskContext):
    note(context)
    write(context)
    time.sleep(0.5)

@task(schedule="every 2s", queue={queue!r}, overlap="allow", on_crash="retry")
async def retried(context: TaskContext):
    note(context)
    await write_async(context)
    await asyncio.sleep(1)
"""

TEAM = """
import os

import celery
import fsa_cli.executors.celery

app = celery.Celery("team", broker=os.environ["FSA_BROKER_URL"])
app.conf.broker_connection_retry_on_startup = True
"""


@engines(of=["redis", "rabbitmq"])
def test_children_that_are_killed_take_no_run_with_them(
    engine: Engine,
    postgresql: Backend,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    start: Start,
    noted: Callable[[str], None],
) -> None:
    replicas = replicas_on(postgresql)
    replicas.environment = engine.environment
    source = ("" if is_long else SOON) + TASKS.format(queue=engine.queue)
    tasks = [
        Scheduled("marked", overlap="allow"),
        Scheduled("retried", every_s=2, on_crash="retry", overlap="allow"),
    ]
    replicas.lay(source, tasks)
    write_files(replicas.directory, team=TEAM)
    replicas.start()
    replicas.wait_up()
    team = start(
        *(sys.executable, "-m", "celery", "-A", "team", "worker", "-P", "prefork"),
        *("-c", "3", "-Q", engine.queue, "--loglevel", "WARNING"),
        cwd=replicas.directory,
        env={**replicas.environment, "FSA_STATE_DIR": "state", "FSA_LEASE_S": "6"},
    )

    def at_work() -> list[int]:
        rows = postgresql.rows(
            "SELECT n.pid FROM fsa_node n JOIN fsa_run r ON r.node = n.id"
            " WHERE n.state = 'alive' AND r.status = 'running'"
        )
        return [pid for (pid,) in rows if is_alive(pid)]

    for _ in range(20 if is_long else 3):
        (pid, *_) = wait_until(at_work)
        os.kill(pid, signal.SIGKILL)
        replicas.faults += 1
        replicas.note_in_flight(pid)
        replicas.pause(0.5, 2.0)
    cut_ms = replicas.settle(within_s=120)
    assert team.stop().returncode == 0, team
    assert replicas.stop() == [0]

    verdict = judge(replicas, cut_ms)

    verdict.assert_kept()
    noted(
        f"{replicas.faults} kills, {verdict.instants} instants, {dict(verdict.statuses)}, "
        f"recovered within {max(verdict.recovered_s):.1f} s"
    )
    nodes = dict(postgresql.rows("SELECT state, count(*) FROM fsa_node GROUP BY state"))
    assert nodes.keys() == {"dead", "stopped"}
    postgresql.assert_released()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
