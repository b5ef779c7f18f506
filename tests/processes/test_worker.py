"""`fsa worker start`: with each engine, and without one."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from support import engines
from support.backends import Backend
from support.processes import Process, Run, Start, write_files
from support.shops import Shop
from support.waiting import wait_until

STATE = {"FSA_STATE_DIR": "state", "FSA_LEASE_S": "6"}
TASKS = """
@task
def ship(item: str, *, count: int = 1) -> str:
    db.session.execute(INSERT, dict(n=count))
    return f"{item} x {count}"

@task
async def mail(to: str) -> str:
    await db.async_session.execute(INSERT, dict(n=1))
    return to

@task(retries=2, backoff_s=0.1)
def fail(context: TaskContext):
    db.session.execute(INSERT, dict(n=1))
    if context.attempt < 3:
        raise LookupError("not yet")

@task(timeout_s=0.2)
async def slow():
    await asyncio.sleep(600)

@task
async def sleep():
    await asyncio.sleep(600)

@task
async def drain():
    await asyncio.sleep(2)
    await db.async_session.execute(INSERT, dict(n=99))

@task(isolation="process")
def apart(context: TaskContext):
    context.progress(4, "nearly")
    return 7

@task(queue="letters")
def write() -> str:
    return "Dear Ann"

@task(overlap="queue")
def one_by_one():
    begun = time.monotonic()
    time.sleep(0.2)
    with open("spans", "a") as file:
        file.write(f"{begun} {time.monotonic()}\\n")

@task(schedule="every 1s", executor="local")
def tick(): ...

@task(schedule="every 1s", tags=["carried"])
def tock(context: TaskContext):
    return context.idempotency_key
"""


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A Redis of the test's own."""
    with engines._redis(tmp_path) as server:
        yield server.url


class Carried:
    """An app whose runs one executor carries."""

    def __init__(self, shop: Shop, name: str, settings: str = "") -> None:
        self.shop = shop
        self.name = name
        shop.write(TASKS)
        write_files(
            shop.directory,
            {"pyproject.toml": f'[tool.fsa]\nnamespace = "shop"\nexecutor = "{name}"\n{settings}'},
        )


@pytest.fixture(params=["local-sqlite", "procrastinate", "celery-mariadb"])
def carried(request: pytest.FixtureRequest, tmp_path: Path, fsa: Run) -> Carried:
    name, _, database = request.param.partition("-")
    backend: Backend = request.getfixturevalue(database or "postgresql")
    settings = ""
    if name == "celery":
        settings = f'broker_url = "{request.getfixturevalue("redis_url")}"\n'
    made = Carried(Shop(tmp_path, backend), name, settings)
    done = fsa("scheduler", "init")
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def worker(carried: Carried, fsa_process: Start) -> Process:
    process = fsa_process("worker", "start", "--concurrency", "4", env=STATE)
    process.wait_for("fsa worker")
    return process


@pytest.fixture
def ended(fsa: Run, worker: Process) -> Run:
    """`trigger ... --wait --json`."""
    return lambda *words, **more: fsa("scheduler", "trigger", *words, "--wait", "--json", **more)


def test_an_enqueued_run_is_executed_and_recorded(carried: Carried, ended: Run, fsa: Run) -> None:
    later = fsa("run-task", "mail", "bob", "--enqueue", "--run-after", "3s", "--priority", "9")
    for words, result in (
        (["ship", "coffee", "--count", "7"], "coffee x 7"),
        (["mail", "ann"], "ann"),
        (["apart"], 7),
        (["fail"], None),
    ):
        done = ended(*words)
        assert done.returncode == 0, done.stderr
        run = json.loads(done.stdout)
        assert (run["status"], run["result"]) == ("succeeded", result)
        assert run["executor"] == carried.name

    assert run["attempt"] == 3
    wait_until(lambda: len(carried.shop.written()) == 4)
    assert carried.shop.written() == [7, 1, 1, 1]
    waited = json.loads(fsa("runs", "show", later.stdout.strip(), "--json").stdout)
    after = [datetime.fromisoformat(waited[at]) for at in ("scheduled_at", "started_at")]
    assert 3.0 <= (after[1] - after[0]).total_seconds() < 8.0
    enqueued = fsa("run-task", "ship", "tea", "--enqueue")
    assert enqueued.returncode == 0, enqueued.stderr
    run_id = enqueued.stdout.strip()
    wait_until(lambda: ("ship", "succeeded") in carried.shop.runs()[-1:])
    assert json.loads(fsa("runs", "show", run_id, "--json").stdout)["result"] == "tea x 1"


def test_a_time_out_and_a_cancelled_run_are_recorded_as_such(
    carried: Carried, ended: Run, fsa: Run
) -> None:
    timed_out = ended("slow")
    assert timed_out.returncode == 124, timed_out.stderr

    run_id = fsa("run-task", "sleep", "--enqueue").stdout.strip()
    wait_until(lambda: ("sleep", "running") in carried.shop.runs())
    assert fsa("runs", "cancel", run_id).returncode == 0
    wait_until(lambda: ("sleep", "cancelled") in carried.shop.runs())


def test_runs_of_one_lock_follow_each_other(carried: Carried, worker: Process, fsa: Run) -> None:
    for _ in range(3):
        assert fsa("run-task", "one_by_one", "--enqueue").returncode == 0

    wait_until(lambda: carried.shop.runs() == [("one_by_one", "succeeded")] * 3)
    # By one clock: the ledger has the database's for the start, and an estimate of it for the end.
    noted = Path(carried.shop.directory, "spans").read_text().splitlines()
    spans = sorted(tuple(map(float, line.split())) for line in noted)
    assert len(spans) == 3
    assert all(first[1] <= second[0] for first, second in pairwise(spans))


def test_sigterm_lets_what_runs_end_and_exits_0(
    carried: Carried, worker: Process, fsa: Run
) -> None:
    assert fsa("run-task", "drain", "--enqueue").returncode == 0
    wait_until(lambda: ("drain", "running") in carried.shop.runs())

    worker.send(signal.SIGTERM)

    assert worker.wait().returncode == 0, worker.stderr
    assert "waiting up to 25 s for drain" in worker.stderr
    assert carried.shop.runs() == [("drain", "succeeded")]
    assert carried.shop.written() == [99]


def test_a_worker_is_a_node_of_its_own(carried: Carried, worker: Process, fsa: Run) -> None:
    (node,) = json.loads(fsa("scheduler", "status", "--json").stdout)["nodes"]

    assert (node["role"], node["state"], node["pid"]) == ("worker", "alive", worker.pid)


def test_what_a_scheduler_fires_the_workers_make(
    carried: Carried, worker: Process, fsa_process: Start
) -> None:
    scheduler = fsa_process("scheduler", "start", env={**STATE, "FSA_STATE_DIR": "other"})
    scheduler.wait_for("fsa scheduler")
    wait_until(lambda: carried.shop.runs().count(("tock", "succeeded")) >= 2)
    scheduler.send(signal.SIGTERM)
    assert scheduler.wait().returncode == 0, scheduler.stderr

    nodes = dict(carried.shop.ledger("SELECT id, pid FROM fsa_node"))
    rows = carried.shop.ledger("SELECT task, node FROM fsa_run WHERE status = 'succeeded'")
    makers = {task: {nodes[node] for name, node in rows if name == task} for task, _ in rows}
    if carried.name == "local":
        assert set().union(*makers.values()) <= {worker.pid, scheduler.pid}
    else:
        assert makers["tock"] == {worker.pid}
        assert makers["tick"] == {scheduler.pid}


@pytest.mark.parametrize("carried", ["procrastinate", "celery-mariadb"], indirect=True)
def test_a_queue_is_served_by_those_who_name_it(
    carried: Carried, fsa_process: Start, fsa: Run
) -> None:
    clerk = fsa_process("worker", "start", "--queue", "letters", env=STATE)
    clerk.wait_for("fsa worker")
    for name in (["ship", "tea"], ["write"]):
        assert fsa("run-task", *name, "--enqueue").returncode == 0

    wait_until(lambda: ("write", "succeeded") in carried.shop.runs())
    assert ("ship", "handed_off") in carried.shop.runs()
    clerk.send(signal.SIGTERM)
    assert clerk.wait().returncode == 0, clerk.stderr
    status = fsa("scheduler", "status")
    assert "worker: none is alive, and 1 dispatched" in status.stderr


@pytest.mark.parametrize("name", ["procrastinate", "celery"])
def test_a_brokers_own_worker_executes_runs_too(
    name: str,
    postgresql: Backend,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    start: Start,
    fsa: Run,
) -> None:
    if name == "celery":
        url = request.getfixturevalue("redis_url")
        settings = f'broker_url = "{url}"\n'
        team = (
            f"import celery\napp = celery.Celery(broker={url!r})\nimport fsa_cli.executors.celery\n"
        )
        argv = [
            "-m",
            "celery",
            "-A",
            "team",
            "worker",
            "-Q",
            "fsa.shop",
            "-c",
            "2",
            "-l",
            "warning",
        ]
    else:
        settings = ""
        team = (
            "import procrastinate\n"
            "from fsa_cli.executors.procrastinate import register\n"
            "app = procrastinate.App(connector=procrastinate.PsycopgConnector("
            f"conninfo={postgresql.url.replace('+psycopg', '')!r}))\n"
            "register(app)\n"
        )
        argv = ["-m", "procrastinate", "--app", "team.app", "worker", "-q", "fsa.shop", "-c", "2"]
    made = Carried(Shop(tmp_path, postgresql), name, settings)
    write_files(tmp_path, {"team.py": team})
    assert fsa("scheduler", "init").returncode == 0
    process = start(sys.executable, *argv, cwd=tmp_path, env={**STATE, "PYTHONPATH": str(tmp_path)})

    for words in (["ship", "coffee"], ["mail", "ann"], ["fail"]):
        done = fsa("scheduler", "trigger", *words, "--wait", "--json")
        assert done.returncode == 0, done.stderr + process.stderr

    assert made.shop.written() == [1, 1, 1]
    process.send(signal.SIGTERM)
    process.wait()
    roles = made.shop.ledger("SELECT DISTINCT role, state FROM fsa_node")
    assert roles == [("worker", "stopped")], process.stderr


def test_the_tables_of_procrastinate_are_named_and_created_by_init(
    postgresql: Backend, tmp_path: Path, fsa: Run
) -> None:
    Carried(Shop(tmp_path, postgresql), "procrastinate")

    done = fsa("worker", "start")
    assert done.returncode == 3
    assert "Procrastinate's tables are missing" in done.stderr
    assert "hint: fsa scheduler init" in done.stderr
    sql = fsa("scheduler", "init", "--sql")
    assert "CREATE FUNCTION procrastinate_defer_jobs_v1" in sql.stdout
    assert json.loads(fsa("scheduler", "init", "--json").stdout)["brokers"] == ["procrastinate"]
    assert json.loads(fsa("scheduler", "init", "--json").stdout)["brokers"] == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('executor = "procrastinat"', "did you mean procrastinate?"),
        ('executor = "procrastinate"', "Procrastinate needs the ledger to be in PostgreSQL"),
        ('executor = "celery"', "Celery needs a broker"),
        ('executor = "celery"\nbroker_url = "redis:/localhost"', "knows no such broker: redis:/lo"),
        ('executor = "celery"\ncelery_app = "nowhere:app"', "'nowhere:app' cannot be imported"),
        ('executor = "celery"\ncelery_app = "main:app"', "no Celery app"),
    ],
)
def test_an_executor_that_cannot_be_used_is_a_clear_error(
    settings: str, said: str, small_shop: Shop, fsa: Run
) -> None:
    small_shop.write(TASKS)
    write_files(small_shop.directory, {"pyproject.toml": f"[tool.fsa]\n{settings}\n"})

    for command in (
        ["worker", "start"],
        ["scheduler", "start"],
        ["run-task", "write", "--enqueue"],
    ):
        done = fsa(*command)
        assert done.returncode == 3, done.stdout
        assert said in done.stderr
        assert len(done.stderr.splitlines()) < 6


def test_an_executor_of_another_package_is_found_by_its_entry_point(
    small_shop: Shop, fsa: Run
) -> None:
    """It has what it is given lie in a file, and nobody reads it."""
    small_shop.write(TASKS)
    write_files(
        small_shop.directory,
        {
            "pyproject.toml": '[tool.fsa]\nexecutor = "file"\n',
            "file_executor.py": """
                from pathlib import Path
                from fsa_cli.executors.base import Local

                class File(Local):
                    name = "file"
                    carries = True

                    def publish(self, messages):
                        with Path("messages").open("a") as file:
                            file.writelines(f"{m.queue} {m.run_id}\\n" for m in messages)
            """,
            "file_executor-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: file-executor\n",
            "file_executor-1.dist-info/entry_points.txt": (
                "[fsa_cli.executors]\nfile = file_executor:File\n"
            ),
        },
    )

    done = fsa("run-task", "write", "--enqueue", env={"PYTHONPATH": "."})

    assert done.returncode == 0, done.stderr
    messages = (small_shop.directory / "messages").read_text()
    assert messages == f"letters {done.stdout.strip()}\n"
    assert small_shop.runs() == [("write", "handed_off")]


def test_a_worker_that_would_do_nothing_says_so(small_shop: Shop, fsa: Run) -> None:
    small_shop.write("")
    assert "no task is registered" in fsa("worker", "start").stderr
    small_shop.write(TASKS)
    done = fsa("worker", "start", "--queue", "letters")
    assert (done.returncode, "local has one queue" in done.stderr) == (2, True)


def test_a_task_says_what_carries_it(small_shop: Shop, fsa: Run) -> None:
    small_shop.write(TASKS)

    assert "carried by  what the settings say, queue letters" in fsa("tasks", "write").stdout
    assert "carried by  local\n" in fsa("tasks", "tick").stdout
    assert json.loads(fsa("tasks", "write", "--json").stdout)["queue"] == "letters"


@pytest.mark.parametrize("option", ["--lock", "--dry-run", "--no-record", "--retries=2"])
def test_enqueue_refuses_options_of_a_run_here(option: str, small_shop: Shop, fsa: Run) -> None:
    small_shop.write(TASKS)

    done = fsa("run-task", "write", "--enqueue", option)

    assert done.returncode == 2
    assert "--enqueue runs it elsewhere" in done.stderr


def test_a_full_process_that_hears_of_more_does_not_forget_what_waits(
    fsa: Run, fsa_process: Start, postgresql: Backend, tmp_path: Path
) -> None:
    shop = Shop(tmp_path, postgresql)  # where it is told, and else looks once a second
    shop.write(
        """
        @task
        def brief():
            time.sleep(0.15)
        """
    )
    many = "from main import brief; brief.enqueue_many([{}] * 40)"
    assert fsa("shell", "-c", many).returncode == 0
    fsa_process("worker", "start", "--concurrency", "1", env=STATE)
    wait_until(lambda: ("brief", "succeeded") in shop.runs())

    more = "from main import brief\nfor _ in range(4): brief.enqueue(); time.sleep(1)"
    assert fsa("shell", "-c", f"import time\n{more}").returncode == 0
    wait_until(lambda: shop.runs() == [("brief", "succeeded")] * 44)

    spans = shop.ledger("SELECT started_ms, finished_ms FROM fsa_run ORDER BY started_ms")
    pauses_ms = sorted(after[0] - before[1] for before, after in pairwise(spans))
    assert pauses_ms[-2] < 300, pauses_ms
