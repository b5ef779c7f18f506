"""A run that is asked for starts soon: PostgreSQL says so, and elsewhere it is looked for often."""

from __future__ import annotations

import statistics
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from fsa_cli.ledger import wake
from fsa_cli.processes import listener
from fsa_cli.processes.listener import FileWatch
from support.backends import Backend
from support.ledgers import enqueue, open_ledger
from support.pgbouncer import PgBouncer
from support.processes import Run, Start
from support.shops import Shop
from support.waiting import wait_until

TASKS = """
import json
from fsa_cli.runs.enqueue import enqueuer_here

@task
def ship(n: int): ...

@task(overlap="queue")
def alone(n: int): ...

@task(schedule="@yearly")
def ask_both():
    for n in range(12):
        ship.using(session=db.session).enqueue(n)
        alone.using(session=db.session).enqueue(n)
        db.session.commit()
        time.sleep(0.11)

@task(schedule="@yearly")
def ask():
    for n in range(12):
        ship.using(session=db.session).enqueue(n)
        db.session.commit()
        time.sleep(0.11)
"""
TIMES = """
SELECT queued_ms, started_ms - queued_ms FROM fsa_run WHERE task = '{}' AND status = 'succeeded'
"""


def waited(shop: Shop, task: str = "ship") -> list[int]:
    return [ms for _, ms in shop.ledger(TIMES.format(task))]


def wait_in_paces(shop: Shop, task: str = "ship") -> float:
    """How long a run has waited for its start, beside the time from one request to the next.

    That is a sleep of 110 ms and a COMMIT, and longer on a machine that has more to do.
    """
    rows = sorted(shop.ledger(TIMES.format(task)))[-12:]
    paces = [later - earlier for (earlier, _), (later, _) in pairwise(rows)]
    return statistics.median(ms for _, ms in rows) / statistics.median(paces)


# Polled once a second they would wait for half of one, 4.5 paces.
@pytest.mark.parametrize(("name", "most"), [("postgresql", 1.7), ("mariadb", 3.0)])
def test_a_run_starts_soon_after_its_commit(
    name: str,
    most: float,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    fsa: Run,
    fsa_process: Start,
) -> None:
    shop = Shop(tmp_path, request.getfixturevalue(name))
    shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    process = fsa_process("worker", "start", env={"FSA_STATE_DIR": "state"})
    process.wait_for("fsa worker")
    assert fsa("run-task", "ship", "99", "--enqueue").returncode == 0
    wait_until(lambda: waited(shop))

    assert fsa("run-task", "ask", "--no-record").returncode == 0

    wait_until(lambda: len(waited(shop)) == 13)
    assert wait_in_paces(shop) < most, waited(shop)
    assert process.stop().returncode == 0


def test_what_has_a_lock_waits_for_nothing_else_and_two_workers_share_both(
    tmp_path: Path, postgresql: Backend, fsa: Run, fsa_process: Start
) -> None:
    shop = Shop(tmp_path, postgresql)
    shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    workers = [fsa_process("worker", "start", env={"FSA_STATE_DIR": f"{n}"}) for n in range(2)]
    for each in workers:
        each.wait_for("fsa worker")

    assert fsa("run-task", "ask_both", "--no-record").returncode == 0

    for task in ("ship", "alone"):
        wait_until(lambda task=task: len(waited(shop, task)) == 12)
        assert wait_in_paces(shop, task) < 1.7, waited(shop, task)
    for each in workers:
        done = each.stop()
        assert (done.returncode, done.stderr.count("Error")) == (0, 0), done
    assert shop.ledger("SELECT COUNT(*) FROM fsa_run WHERE status <> 'succeeded'") == [(0,)]


def test_a_session_that_listens_and_that_the_pooler_has_lent_to_another_is_waited_for(
    pgbouncer: PgBouncer,
) -> None:
    ledger = open_ledger(pgbouncer.url)
    with wake.listening(ledger) as connection:
        with psycopg.connect(pgbouncer.url.replace("+psycopg", "")) as other:
            other.execute("SELECT 1")
            assert not connection.forget()
        wait_until(connection.forget)
    ledger.dispose()

    assert pgbouncer.answers("SELECT count(*) FROM pg_listening_channels()") == {"0"}


def test_behind_a_pooler_that_passes_no_notice_on_it_is_said_once_and_asked(
    pgbouncer: PgBouncer, tmp_path: Path, fsa: Run, fsa_process: Start
) -> None:
    shop = Shop(tmp_path, pgbouncer.backend)
    shop.write(TASKS)
    env = {"FSA_STATE_DIR": "state", "FSA_LEDGER_URL": pgbouncer.url}
    assert fsa("scheduler", "init", env=env).returncode == 0
    process = fsa_process("worker", "start", env=env)
    process.wait_for("LISTEN does not come through")
    for n in range(3):
        assert fsa("run-task", "ship", str(n), "--enqueue", env=env).returncode == 0
    wait_until(lambda: len(waited(shop)) == 3)
    time.sleep(0.5)
    # The sessions are lent to others, and what listens in one would hold back the queue of notices.
    assert pgbouncer.answers("SELECT count(*) FROM pg_listening_channels()") == {"0"}

    done = process.stop()

    assert done.returncode == 0
    assert (done.stdout + done.stderr).count("LISTEN does not come through") == 1


def test_a_write_to_sqlites_file_is_noticed(tmp_path: Path) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.create()
    noticed = threading.Event()
    assert ledger.file == tmp_path / "ledger.db"
    watch = FileWatch(ledger.file, noticed.set)
    watch.start()
    try:
        # Until its first look is done, a write changes nothing that it has seen.
        wait_until(lambda: enqueue(ledger, "ship") and noticed.wait(0.3))
    finally:
        watch.stop()
        ledger.dispose()
    assert not watch.alive


def test_it_ends_at_once_though_nothing_is_heard(
    postgresql: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_LOOK_S", 3600.0)
    ledger = open_ledger(postgresql.url)
    heard = threading.Event()
    context: Any = SimpleNamespace(ledger=ledger, events=None)
    hears = listener.Listener(context, heard.set, lambda: None)
    hears.start()
    assert heard.wait(60)

    hears.stop(within_s=60)

    assert not hears.alive
    ledger.dispose()
