"""App and ledger behind PgBouncer in transaction mode."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.oracle import Verdict
from support.pgbouncer import UNPREPARED, PgBouncer
from support.replicas import Replicas


def test_of_replicas_behind_a_pooler_that_are_killed_no_instant_is_lost_and_none_runs_twice(
    pgbouncer: PgBouncer,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(pgbouncer.backend, pgbouncer.url, UNPREPARED)
    replicas.lay_load()
    replicas.start_all()
    time.sleep(2)

    for left in reversed(range(60 if is_long else 3)):
        replicas.kill_one_of(in_flight=left == 0)
        replicas.pause(0.5, 2.0)

    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        assert pgbouncer.settings(name) == {"0"}
    verdict = judged(replicas)
    assert verdict.statuses["succeeded"] > replicas.faults


@pytest.mark.long
@pytest.mark.slow
def test_the_other_faults_behind_a_pooler() -> None:
    """The short form of each, once more: all replicas reach PostgreSQL through a PgBouncer."""
    here = Path(__file__)
    others = [str(each) for each in here.parent.glob("test_*.py") if each != here]
    chosen = ("-k", "not mariadb and not sqlite", "-n", "2", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--pooled", *chosen, *others],
        cwd=here.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
