"""App and ledger behind PgBouncer in transaction mode."""

import time
from collections.abc import Callable

from support.oracle import Verdict
from support.pgbouncer import PgBouncer
from support.replicas import Replicas

#: What the manual says to write there.
UNPREPARED = 'engine_args={"connect_args": {"prepare_threshold": None}}, db_url='


def test_of_replicas_behind_a_pooler_that_are_killed_no_instant_is_lost_and_none_runs_twice(
    pgbouncer: PgBouncer,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(pgbouncer.backend, pgbouncer.url)
    replicas.lay_load()
    app = replicas.directory / "main.py"
    app.write_text(app.read_text().replace("db_url=", UNPREPARED, 1))
    replicas.start_all()
    time.sleep(2)

    for left in reversed(range(60 if is_long else 3)):
        replicas.kill_one_of(in_flight=left == 0)
        replicas.pause(0.5, 2.0)

    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        assert pgbouncer.settings(name) == {"0"}
    verdict = judged(replicas)
    assert verdict.statuses["succeeded"] > verdict.instants * 0.5
