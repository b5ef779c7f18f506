"""An outage is what happened to the connection; what the database refuses belongs to its row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import select, text, update

from fsa_cli.ledger.backfill import register_tasks
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.records import Due, RegisteredTask, RunOutcome
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run, task
from fsa_cli.processes.active_runs import ActiveRun, ActiveRuns
from fsa_cli.processes.completer import Completer, TaskCounters
from fsa_cli.processes.events import NodeEvents, NodeListener
from fsa_cli.processes.node_context import NodeContext
from support.backends import Backend
from support.ledgers import now_ms, open_ledger, runs_of
from support.proxy import proxy_to
from support.waiting import wait_until


class Heard(NodeListener):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warned(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def context(ledger: Ledger, heard: Heard) -> NodeContext:
    context = NodeContext.of(ledger, NodeEvents(heard), role="scheduler", lease_s=20.0, tasks={})
    context.lease.join()
    return context


@pytest.fixture
def completer(context: NodeContext) -> Iterator[Completer]:
    completer = Completer(context, ActiveRuns(), busy=lambda: False)
    completer.start()
    yield completer
    completer.stop()
    assert not completer.alive


def claimed(context: NodeContext, completer: Completer, *names: str) -> list[ActiveRun]:
    ledger = context.ledger
    due = [Due(name, now_ms(ledger), f"{ledger.namespace}/{name}") for name in names]
    with completer._runs.claiming() as token:
        outcome = claim_due(ledger, context.lease.id, due, window_ms=60_000, token=token)
        active = completer._runs.add(outcome.mine)
    return sorted(active, key=lambda each: names.index(each.claim.task))


def status_of(ledger: Ledger, name: str) -> str:
    return next(row.status for row in runs_of(ledger) if row.task == name)


def failed(active: ActiveRun, **more: object) -> RunOutcome:
    claim = active.claim
    outcome = RunOutcome(
        run_id=claim.run_id,
        token=claim.token,
        task=claim.task,
        status="failed",
        started_ms=claim.scheduled_ms,
        finished_ms=claim.scheduled_ms + 1,
        error_type="LookupError",
        error="no",
    )
    return outcome._replace(**more)  # type: ignore[arg-type]


def test_an_outcome_that_the_database_refuses_keeps_no_other_from_being_written(
    context: NodeContext, completer: Completer, heard: Heard
) -> None:
    """It is isolated, and written without what is refused."""
    good, poison, late = claimed(context, completer, "good", "poison", "late")
    too_much = {"started_ms": 2**70}  # SQLite's driver cannot encode it, the others' column neither

    completer.end(good, failed(good))
    completer.end(poison, failed(poison, **too_much))
    wait_until(lambda: status_of(context.ledger, "good") == "failed")
    completer.end(late, failed(late))
    wait_until(lambda: status_of(context.ledger, "late") == "failed")

    assert not context.outage.is_open
    assert not any("cannot be reached" in each for each in heard.warnings)


def test_an_error_type_that_is_too_long_is_left_out(
    context: NodeContext, completer: Completer, heard: Heard
) -> None:
    (poison,) = claimed(context, completer, "poison")
    completer.end(poison, failed(poison, error_type="N" * 300))
    wait_until(lambda: runs_of(context.ledger)[0].status == "failed")
    wait_until(lambda: not len(completer._runs))

    (row,) = runs_of(context.ledger)
    if not context.ledger.is_sqlite:  # which takes any length
        assert row.error_type == "OutcomeRefused"
        assert "could not keep how it ended" in row.error
        assert any(poison.claim.run_id in each for each in heard.warnings)


def test_a_run_whose_next_attempt_the_database_refuses_ends(
    context: NodeContext, completer: Completer
) -> None:
    (active,) = claimed(context, completer, "often")
    most = update(run).where(run.c.id == active.claim.run_id).values(attempt=2**31 - 1)
    context.ledger.write(lambda connection: connection.execute(most))

    # SQLite counts on, but knows no such instant.
    completer.end(active, failed(active, retry_in_ms=2**70 if context.ledger.is_sqlite else 0))

    wait_until(lambda: not len(completer._runs))
    assert status_of(context.ledger, "often") == "failed"


@contextmanager
def column(ledger: Ledger, name: str) -> Iterator[None]:
    """A column of somebody's own in the ledger's table, which no row of ours can satisfy."""
    with ledger.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE fsa_run ADD COLUMN {name} INTEGER"))
        connection.execute(text(f"UPDATE fsa_run SET {name} = 1"))
        kind = ledger.engine.dialect.name
        strict = (
            f"ALTER TABLE fsa_run ALTER COLUMN {name} SET NOT NULL"
            if kind == "postgresql"
            else f"ALTER TABLE fsa_run MODIFY {name} INTEGER NOT NULL"
        )
        connection.execute(text(strict))
    try:
        yield
    finally:
        with ledger.engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE fsa_run DROP COLUMN {name}"))


def test_a_column_of_somebody_s_own_is_no_outage(context: NodeContext, heard: Heard) -> None:
    ledger = context.ledger
    if ledger.is_sqlite:
        pytest.skip("SQLite adds no NOT NULL column without a default")

    def claim() -> object:
        due = [Due("report", now_ms(ledger))]
        return claim_due(ledger, context.lease.id, due, window_ms=60_000)

    with column(ledger, "tenant"):
        assert context.outage.guard(claim) is None
        assert context.outage.guard(claim) is None

    assert not context.outage.is_open
    (warning,) = heard.warnings
    assert warning.startswith("the ledger's database refuses: ")
    assert "tenant" in warning
    assert "tenant" in (context.outage.reason or "")
    assert context.outage.guard(claim) is not None
    assert context.outage.reason is None


def test_what_a_step_raises_ends_no_thread(context: NodeContext, heard: Heard) -> None:
    def unreadable() -> object:
        raise KeyError("on_crash")

    assert context.outage.guard(unreadable) is None
    assert heard.warnings == ["a step failed: KeyError: 'on_crash' (here)"]


def test_the_lock_of_a_run_that_returned_late_is_freed_when_the_ledger_is_back(
    context: NodeContext, completer: Completer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (late,) = claimed(context, completer, "late")
    completer.end(late, failed(late, status="timed_out", keeps_lock=True))
    wait_until(lambda: runs_of(context.ledger)[0].status == "timed_out")
    assert len(completer._runs) == 1
    at_once: Callable[..., object] = Ledger.at_once
    away = [True, True]

    def cut(self: Ledger, work: Callable[..., object], **more: object) -> object:
        if away:
            away.pop()
            from sqlalchemy.exc import OperationalError

            raise OperationalError("", {}, Exception(), connection_invalidated=True)
        return at_once(self, work, **more)

    monkeypatch.setattr(Ledger, "at_once", cut)
    completer.free(late)
    wait_until(lambda: runs_of(context.ledger)[0].lock_key is None)
    wait_until(lambda: not len(completer._runs))


def test_a_locked_row_of_a_task_keeps_no_outcome_waiting(
    context: NodeContext, completer: Completer
) -> None:
    """Somebody holds the task's row, as a process does that was cut off in a transaction."""
    ledger = context.ledger
    if ledger.is_sqlite:
        pytest.skip("a writer there holds the whole file")
    register_tasks(ledger, [RegisteredTask("report", "{}")])
    (run,) = claimed(context, completer, "report")
    with ledger.engine.connect() as connection:
        locked = select(task.c.name).where(task.c.namespace == ledger.namespace).with_for_update()
        assert connection.execute(locked).all()

        completer.end(run, failed(run, finished_ms=run.claim.scheduled_ms + 1))
        wait_until(lambda: status_of(ledger, "report") == "failed", within_s=3)
        wait_until(lambda: not len(completer._runs), within_s=3)
        connection.rollback()

    failures = select(task.c.consecutive_failures).where(task.c.namespace == ledger.namespace)
    wait_until(lambda: ledger.read(lambda c: c.scalar(failures)) == 1)


def test_an_outage_right_after_an_outcome_was_written_leaves_it_to_be_counted(
    postgresql: Backend,
) -> None:
    with proxy_to(postgresql.url) as proxy:
        ledger = open_ledger(proxy.url(postgresql.url))
        ledger.create()
        register_tasks(ledger, [RegisteredTask("report", "{}")])
        context = NodeContext.of(ledger, NodeEvents(), role="scheduler", lease_s=20.0, tasks={})
        counters = TaskCounters(context)
        counters.start()
        proxy.away.set()
        proxy.drop_all()
        at_ms = 1_800_000_000_000
        counters.count(
            [
                RunOutcome(
                    run_id="1",
                    token="token",
                    task="report",
                    status="failed",
                    started_ms=at_ms,
                    finished_ms=at_ms,
                )
            ]
        )
        wait_until(lambda: context.outage.is_open, "it is noticed")

        proxy.away.clear()
        failures = "SELECT consecutive_failures FROM fsa_task"
        wait_until(lambda: postgresql.rows(failures) == [(1,)], within_s=20)
        wait_until(lambda: not context.outage.is_open, "it is over", within_s=5)
        counters.stop()
        ledger.dispose()
