"""Two versions of an app with different schedules, and two of fsa, as in a rolling deploy."""

import io
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from support.backends import Backend
from support.oracle import (
    FINAL,
    Start,
    Verdict,
    assert_nothing_left,
    judge,
    starts_of,
    without_row,
)
from support.replicas import Replica, Replicas, Scheduled

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
        end(replicas, replica)
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


#: The last commit of version 1 of the ledger's tables.
BEFORE = "38511fec449093f31e244f584f7cce38eb2ec4e2"

#: Beside the load both versions ask for runs, and this one says for them what that one cannot.
ASKS = """
from datetime import timedelta

@task
def asked(context: TaskContext):
    note(context)
    write(context)

@task(schedule="every 1s", overlap="allow")
def asks(context: TaskContext):
    note(context)
    if hasattr(asked, "using"):
        later = timedelta(seconds=1)
        asked.using(priority=random.choice([-5, 0, 5]), run_after=later).enqueue()
        asked.using(unique="one", run_after=later).enqueue()
    enqueue = getattr(asked, "enqueue", None) or asked.task.enqueue
    for _ in range(5):
        enqueue()
    write(context)
"""


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the version before, from this clone's history."""
    archive = ["git", "archive", "--format=tar", BEFORE, "fsa_cli", "fastapi_sqlalchemy"]
    try:
        done = subprocess.run(archive, cwd=Path(__file__).parents[2], capture_output=True)
    except FileNotFoundError:
        pytest.skip("git is not here")
    if done.returncode:
        pytest.skip(f"{BEFORE[:7]} is not in the history of this clone")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize(
    "on",
    [
        "postgresql",
        pytest.param("mariadb", marks=pytest.mark.long),
        pytest.param("sqlite", marks=pytest.mark.long),
    ],
)
def test_this_version_and_the_one_before_work_side_by_side_while_a_deploy_rolls(
    request: pytest.FixtureRequest,
    on: str,
    before: Path,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(request.getfixturevalue(on))
    replicas.lay_load(ASKS)
    replicas.tasks.append(Scheduled("asks", overlap="allow"))
    # Compiled once, and read from there by the others.
    of_before: Mapping[str, str | None] = {
        "PYTHONPATH": str(before),
        "PYTHONDONTWRITEBYTECODE": None,
    }
    old = [replicas.start(environment=of_before) for _ in range(2)]
    replicas.wait_up()
    assert not has_table(replicas, "fsa_schema")
    time.sleep(1)
    new = [replicas.start() for _ in range(2)]
    replicas.wait_up()
    assert has_table(replicas, "fsa_schema")

    for number in range(12 if is_long else 0):
        for version in (old, new):
            replicas.pause(1.0, 3.0)
            replicas.kill(version[number % 2])
        replicas.wait_up()
    time.sleep(10 if is_long else 1)
    for each in old:
        end(replicas, each)
    alone_ms = replicas.now_ms()

    verdict = judged(replicas)
    assert verdict.statuses["succeeded"] > verdict.instants * 0.5
    starts = starts_of(replicas)
    assert len({each.pid for each in starts}) >= 4, "a process took no part"
    _judge_asked(replicas, [each for each in starts if each.task == "asked"], alone_ms)


def _judge_asked(replicas: Replicas, starts: list[Start], until_ms: int) -> None:
    """Each that was asked for has ended, began once, and no sooner than it was asked for."""
    runs = {
        run: (not_before_ms, status)
        for run, not_before_ms, status in replicas.ledger.rows(
            "SELECT id, not_before_ms, status FROM fsa_run WHERE task = 'asked'"
        )
    }
    begun = Counter(each.run for each in starts)
    assert not [run for run, times in begun.items() if times > 1]
    assert not [each for each in starts if each.at_ms < runs[each.run][0] - 50]
    due = {run: status for run, (at_ms, status) in runs.items() if at_ms < until_ms}
    assert set(due.values()) <= FINAL
    assert {run for run, status in due.items() if status == "succeeded"} <= begun.keys()


def has_table(replicas: Replicas, table: str) -> bool:
    try:
        return bool(replicas.ledger.rows(f"SELECT COUNT(*) FROM {table}"))
    except Exception:
        return False


def end(replicas: Replicas, replica: Replica) -> None:
    """Stop it for good."""
    assert replica.process.stop().returncode == 0
    replicas.replicas.remove(replica)
    replicas.ended.append(replica.process)
