"""Ten starts at once, and ledgers on which none can start."""

import time
from collections.abc import Callable, Iterator

import pytest

from support.backends import Backend, PostgreSQL
from support.oracle import Verdict
from support.processes import Run
from support.replicas import Replicas, Scheduled
from support.waiting import wait_until

TICKS = """
@task(schedule="every 1s")
def tick(context: TaskContext):
    note(context)
    write(context)
"""


@pytest.mark.slow
def test_ten_replicas_that_start_at_once_make_the_tables_and_run_each_instant_once(
    backend: Backend,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(backend)
    replicas.lay(TICKS, [Scheduled("tick")])

    replicas.start_all(10)

    judged(replicas)


@pytest.fixture
def laid(postgresql: Backend, replicas_on: Callable[..., Replicas]) -> Replicas:
    replicas = replicas_on(postgresql)
    replicas.lay(TICKS, [Scheduled("tick")])
    return replicas


def test_a_ledger_of_no_version_is_said(laid: Replicas, fsa: Run) -> None:
    assert fsa("scheduler", "tick").returncode == 0
    laid.backend.execute("ALTER TABLE fsa_run DROP COLUMN commits")

    done = fsa("scheduler", "start")

    assert done.returncode == 3
    assert "the ledger's table fsa_run has no column commits" in done.stderr
    assert "no fsa made it so" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def reader(postgresql: PostgreSQL) -> Iterator[str]:
    """The URL of a user who may read, and nothing else."""
    name = f"reader_{postgresql.location.database}"
    postgresql.execute(f"CREATE ROLE {name} LOGIN; GRANT pg_read_all_data TO {name}")
    yield postgresql.location.set(drivername="postgresql+psycopg", username=name).render_as_string()
    postgresql.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_ledger_that_cannot_be_created_is_reported(laid: Replicas, reader: str, fsa: Run) -> None:
    done = fsa("scheduler", "start", env={"DB_URL": reader})

    assert done.returncode == 3
    assert "the ledger's tables cannot be created" in done.stderr
    assert "permission denied" in done.stderr
    assert "fsa scheduler init --sql" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_ledger_that_may_only_be_read_is_said(laid: Replicas, reader: str, fsa: Run) -> None:
    assert fsa("scheduler", "tick").returncode == 0

    done = fsa("scheduler", "start", env={"DB_URL": reader})

    assert done.returncode in (3, 4)
    assert "permission denied" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_ledger_that_is_dropped_meanwhile_is_said_and_does_not_end_the_process(
    laid: Replicas,
) -> None:
    laid.start_all(1)
    laid.backend.execute("DROP TABLE fsa_run")
    process = laid.replicas[0].process
    wait_until(lambda: "the ledger's database refuses" in process.stderr)
    time.sleep(3)

    done = process.stop()

    assert 'relation "fsa_run" does not exist' in done.stderr
    assert done.stderr.count("the ledger's database refuses") <= 2, done.stderr
    assert "the ledger cannot be reached" not in done.stderr
    assert "Traceback" not in done.stderr
