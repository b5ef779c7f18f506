"""Runs that an engine carries: handed off in one transaction, taken once, sent again when late."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, update
from sqlalchemy.exc import ProgrammingError

from fsa_cli.ledger import control, nodes, queries, redelivery, tables
from fsa_cli.ledger.claim_dispatched import claim_dispatched, requeue_dispatched
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.claim_queued import claim_queued
from fsa_cli.ledger.enqueue import insert_run, write_run
from fsa_cli.ledger.glance import glance
from fsa_cli.ledger.records import SENT_AGAIN_MS, Due, NewRun
from fsa_cli.ledger.served_queues import service
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import QUEUE_LENGTH
from fsa_cli.runs.executor_registry import queue_name
from fsa_cli.runs.task_problems import problems
from fsa_cli.tasks.definition import TaskDefinition
from support.backends import Backend
from support.ledgers import LEASE_MS, end_lease, enqueue, make_node, now_ms, open_ledger, runs_of

WINDOW_MS = 5000
ENGINE = "engine"


def due_now(ledger: Ledger, name: str = "report", *, lock: bool = True, waits: bool = False) -> Due:
    key = f"{ledger.namespace}/{name}" if lock else None
    return Due(name, now_ms(ledger), key, waits, "{}", ENGINE, "mail")


def wanted(task: str = "report") -> NewRun:
    return NewRun.of(task, '{"n": 1}', executor=ENGINE, queue="mail", dispatched=True)


def make_late(ledger: Ledger, run_id: str, by_ms: int) -> None:
    """Have a run be handed off so long ago."""
    at_ms = now_ms(ledger) - by_ms
    statement = (
        update(tables.run)
        .where(tables.run.c.id == run_id)
        .values(queued_ms=at_ms, not_before_ms=at_ms + SENT_AGAIN_MS)
    )
    ledger.write(lambda connection: connection.execute(statement))


def test_a_due_instant_is_dispatched_with_its_lock_and_without_a_node(ledger: Ledger) -> None:
    node = make_node(ledger)
    due = due_now(ledger)

    outcome = claim_due(ledger, node.id, [due], window_ms=WINDOW_MS, dispatch="")

    (row,) = runs_of(ledger)
    assert [each.run_id for each in outcome.mine] == [row.id]
    assert (row.status, row.node, row.lock_key) == ("handed_off", None, due.lock_key)
    assert (row.executor, row.queue, row.started_ms) == (ENGINE, "mail", None)
    assert abs(row.not_before_ms - row.queued_ms - SENT_AGAIN_MS) < 1000


def test_an_instant_is_dispatched_by_one_of_many_replicas(ledger: Ledger) -> None:
    at_ms = now_ms(ledger)
    due = [Due(f"task{n}", at_ms, f"{ledger.namespace}/{n}", executor=ENGINE) for n in range(20)]
    url = ledger.engine.url.render_as_string(hide_password=False)
    replicas = [open_ledger(url, ledger.namespace) for _ in range(4)]
    ready = threading.Barrier(len(replicas))

    def dispatch(replica: Ledger) -> list[str]:
        node = make_node(replica)
        ready.wait()
        outcome = claim_due(replica, node.id, due, window_ms=WINDOW_MS, dispatch="")
        return [each.run_id for each in outcome.mine]

    with ThreadPoolExecutor(len(replicas)) as threads:
        sent = [run_id for mine in threads.map(dispatch, replicas) for run_id in mine]
    for replica in replicas:
        replica.dispose()

    assert sorted(sent) == sorted(row.id for row in runs_of(ledger))
    assert len(sent) == len(due)


def test_a_message_is_part_of_the_statement_that_dispatches_its_run(postgresql: Backend) -> None:
    """As Procrastinate's function is, whose job is a row of the same database."""
    postgresql.execute(
        "CREATE TABLE job (run_id TEXT, queue TEXT);"
        "CREATE FUNCTION defer(TEXT[], TEXT[]) RETURNS bigint[] LANGUAGE sql AS"
        " 'INSERT INTO job SELECT * FROM unnest($1, $2) RETURNING ARRAY[1::bigint]'"
    )
    joined = "SELECT defer(ARRAY(SELECT id FROM put), ARRAY(SELECT queue FROM put))"
    ledger = open_ledger(postgresql.url)
    ledger.create()
    node = make_node(ledger)
    due = [due_now(ledger, name, lock=False) for name in ("a", "b")]
    by_hand, queued = (
        wanted("c"),
        NewRun.of("d", "{}", executor=ENGINE, queue="q", dispatched=False),
    )

    outcome = claim_due(ledger, node.id, due, window_ms=WINDOW_MS, dispatch=joined)
    again = claim_due(ledger, node.id, due, window_ms=WINDOW_MS, dispatch=joined)
    write_run(ledger, by_hand, joined)
    write_run(ledger, queued)
    found = claim_queued(ledger, node.id, {"d": None}, most=9, executor=ENGINE, dispatch=joined)

    assert again.mine == []
    run_ids = {each.run_id for each in [*outcome.mine, *found.runs]}
    assert len(run_ids) == 3
    assert sorted(postgresql.rows("SELECT * FROM job")) == sorted(
        (run_id, "q" if run_id == queued.run_id else "mail")
        for run_id in {*run_ids, by_hand.run_id}
    )
    postgresql.execute("DROP FUNCTION defer(TEXT[], TEXT[])")
    with pytest.raises(ProgrammingError):
        claim_due(ledger, node.id, [due_now(ledger, "e")], window_ms=WINDOW_MS, dispatch=joined)
    assert {row.task for row in runs_of(ledger)} == {"a", "b", "c", "d"}
    ledger.dispose()


@pytest.mark.parametrize(("waits", "status"), [(False, "skipped"), (True, "queued")])
def test_while_a_run_is_dispatched_the_next_is_skipped_or_waits(
    waits: bool, status: str, ledger: Ledger
) -> None:
    node = make_node(ledger)
    claim_due(ledger, node.id, [due_now(ledger)], window_ms=WINDOW_MS, dispatch="")

    again = due_now(ledger, waits=waits)
    claim_due(
        ledger,
        node.id,
        [Due(again.task, again.scheduled_ms + 1, *again_of(again))],
        window_ms=WINDOW_MS,
        dispatch="",
    )

    assert [row.status for row in runs_of(ledger)] == ["handed_off", status]


def again_of(due: Due) -> tuple[str | None, bool, str, str, str | None]:
    return due.lock_key, due.waits, due.arguments, due.executor, due.queue


def test_a_message_that_comes_twice_is_taken_once(ledger: Ledger) -> None:
    run = wanted()
    write_run(ledger, run)
    first, second = make_node(ledger), make_node(ledger)

    taken = claim_dispatched(ledger, first.id, {"report": None}, [run.run_id, run.run_id])
    again = claim_dispatched(ledger, second.id, {"report": None}, [run.run_id])

    assert [(each.run_id, each.task, each.arguments) for each in taken] == [
        (run.run_id, "report", '{"n": 1}')
    ]
    assert again == []
    (row,) = runs_of(ledger)
    assert (row.status, row.node, row.claim) == ("running", first.id, taken[0].token)


def test_what_was_taken_and_the_answer_lost_is_taken_all_the_same(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, runs = make_node(ledger), [wanted(), wanted("locked")]
    for each in runs:
        write_run(ledger, each)
    at_once = Ledger.at_once

    def twice(self: Ledger, work: Callable[[Connection], object], **more: Any) -> object:
        at_once(self, work, **more)
        return at_once(self, work, **more)

    monkeypatch.setattr(Ledger, "at_once", twice)

    taken = claim_dispatched(
        ledger, node.id, {"report": None, "locked": "key"}, [each.run_id for each in runs]
    )

    assert {each.run_id: each.token for each in taken} == {
        row.id: row.claim for row in runs_of(ledger)
    }
    assert [row.status for row in runs_of(ledger)] == ["running", "running"]


def test_of_many_workers_one_takes_each_run(ledger: Ledger) -> None:
    runs = [wanted(f"task{n % 3}") for n in range(30)]
    for run in runs:
        write_run(ledger, run)
    ids = [run.run_id for run in runs]
    url = ledger.engine.url.render_as_string(hide_password=False)
    workers = [open_ledger(url, ledger.namespace) for _ in range(4)]
    ready = threading.Barrier(len(workers))

    def serve(worker: Ledger) -> list[str]:
        node = make_node(worker)
        ready.wait()
        return [
            each.run_id
            for start in range(0, len(ids), 7)
            for each in claim_dispatched(
                worker, node.id, {f"task{n}": None for n in range(3)}, ids[start : start + 7]
            )
        ]

    with ThreadPoolExecutor(len(workers)) as threads:
        taken = [run_id for mine in threads.map(serve, workers) for run_id in mine]
    for worker in workers:
        worker.dispose()

    assert sorted(taken) == sorted(ids)


def test_a_run_whose_lock_is_held_goes_back_to_the_queue(ledger: Ledger) -> None:
    runs = [wanted() for _ in range(3)]
    for run in runs:
        write_run(ledger, run)
    node = make_node(ledger)
    locks = {"report": f"{ledger.namespace}/report"}

    (first,) = claim_dispatched(ledger, node.id, locks, [runs[0].run_id])
    assert claim_dispatched(ledger, node.id, locks, [run.run_id for run in runs[1:]]) == []

    assert sorted(row.status for row in runs_of(ledger)) == ["queued", "queued", "running"]
    assert claim_queued(ledger, node.id, locks, most=9, executor=ENGINE, dispatch="").runs == []
    assert first.lock_key == locks["report"]


def test_of_two_messages_that_come_at_once_the_run_that_holds_the_lock_is_taken(
    ledger: Ledger,
) -> None:
    node = make_node(ledger)
    names = [f"report{n}" for n in range(8)]
    due = [due_now(ledger, name) for name in names]
    locks = {each.task: each.lock_key for each in due}
    dispatched = claim_due(ledger, node.id, due, window_ms=WINDOW_MS, dispatch="").mine
    by_hand = [wanted(name) for name in names]
    for run in by_hand:
        write_run(ledger, run)

    taken = claim_dispatched(
        ledger,
        node.id,
        locks,
        [*(run.run_id for run in by_hand), *(each.run_id for each in dispatched)],
    )

    assert {each.run_id for each in taken} == {each.run_id for each in dispatched}
    rows = {row.id: (row.status, row.lock_key) for row in runs_of(ledger)}
    assert {rows[run.run_id] for run in by_hand} == {("queued", None)}


def test_requeued_runs_leave_their_locks_and_are_dispatched_again(
    ledger: Ledger,
) -> None:
    node = make_node(ledger)
    due = due_now(ledger)
    locks = {due.task: due.lock_key}
    claim_due(ledger, node.id, [due], window_ms=WINDOW_MS, dispatch="")

    (row,) = runs_of(ledger)
    requeue_dispatched(ledger, [row.id])

    (row,) = runs_of(ledger)
    assert (row.status, row.lock_key, row.claim) == ("queued", None, None)
    found = claim_queued(ledger, node.id, locks, most=9, executor=ENGINE, dispatch="")
    assert [each.run_id for each in found.runs] == [row.id]
    assert [each.run_id for each in claim_dispatched(ledger, node.id, locks, [row.id])] == [row.id]
    requeue_dispatched(ledger, [row.id])
    (row,) = runs_of(ledger)
    assert row.status == "running"


def test_a_task_that_a_worker_does_not_know_is_left_for_one_that_does(ledger: Ledger) -> None:
    run = wanted("new_here_soon")
    write_run(ledger, run)

    assert claim_dispatched(ledger, make_node(ledger).id, {"report": None}, [run.run_id]) == []

    (row,) = runs_of(ledger)
    assert row.status == "handed_off"


def test_a_queued_run_is_dispatched_and_waits_from_then_on(ledger: Ledger) -> None:
    node = make_node(ledger)
    queued = NewRun.of("report", "{}", executor=ENGINE, queue="mail", dispatched=False)
    write_run(ledger, queued)

    found = claim_queued(ledger, node.id, {"report": None}, most=9, executor=ENGINE, dispatch="")

    assert [each.queue for each in found.runs] == ["mail"]
    assert [each.run_id for each in found.runs] == [queued.run_id]
    (row,) = runs_of(ledger)
    assert (row.status, row.node) == ("handed_off", None)
    assert abs(row.not_before_ms - row.queued_ms - SENT_AGAIN_MS) < 1000


def test_a_late_message_is_sent_again_after_twice_the_time_and_by_one(ledger: Ledger) -> None:
    run = wanted()
    write_run(ledger, run)
    assert redelivery.late_messages(ledger, ENGINE) == {}

    make_late(ledger, run.run_id, 31_000)
    assert redelivery.late_messages(ledger, ENGINE) == {"mail": (1, 1)}
    assert redelivery.resend(ledger, ENGINE, "mail", 10) == [run.run_id]
    assert redelivery.late_messages(ledger, ENGINE) == {}
    assert redelivery.resend(ledger, ENGINE, "mail", 10) == []

    (row,) = runs_of(ledger)
    assert row.not_before_ms - now_ms(ledger) == pytest.approx(31_000, abs=2000)
    make_late(ledger, run.run_id, 120_000)
    redelivery.resend(ledger, ENGINE, "mail", 10)
    (row,) = runs_of(ledger)
    assert row.not_before_ms - now_ms(ledger) == pytest.approx(120_000, abs=2000)


def test_no_more_messages_are_sent_again_than_are_missing(ledger: Ledger) -> None:
    runs = [wanted() for _ in range(5)]
    for run in runs:
        write_run(ledger, run)
        make_late(ledger, run.run_id, 40_000)

    assert len(redelivery.resend(ledger, ENGINE, "mail", 2)) == 2
    assert redelivery.late_messages(ledger, ENGINE) == {"mail": (5, 3)}
    assert redelivery.late_messages(ledger, "another") == {}


def test_a_message_that_could_not_be_sent_is_late_soon(ledger: Ledger) -> None:
    run = wanted()
    write_run(ledger, run)

    redelivery.mark_unsent(ledger, [run.run_id], 0)

    assert redelivery.late_messages(ledger, ENGINE) == {"mail": (1, 1)}


def test_all_messages_of_a_broker_that_was_away_are_late(ledger: Ledger) -> None:
    for run in (wanted(), wanted()):
        write_run(ledger, run)

    redelivery.mark_all_late(ledger, "another")
    assert redelivery.late_messages(ledger, ENGINE) == {}
    redelivery.mark_all_late(ledger, ENGINE)

    assert redelivery.late_messages(ledger, ENGINE) == {"mail": (2, 2)}


def test_a_dispatched_run_that_is_cancelled_frees_its_lock_and_is_not_claimed(
    ledger: Ledger,
) -> None:
    node = make_node(ledger)
    due = due_now(ledger)
    claim_due(ledger, node.id, [due], window_ms=WINDOW_MS, dispatch="")
    (run_id,) = [row.id for row in runs_of(ledger)]

    assert control.cancel(ledger, run_id) == "queued"

    assert claim_dispatched(ledger, node.id, {"report": due.lock_key}, [run_id]) == []
    (row,) = runs_of(ledger)
    assert (row.status, row.lock_key) == ("cancelled", None)


def test_a_run_is_written_once_whatever_became_of_the_commit(ledger: Ledger) -> None:
    run = wanted()
    tries: list[str] = []

    def insert(connection: Connection) -> None:
        tries.append("sent")
        values = {"id": run.run_id, "slot": run.run_id, "namespace": ledger.namespace}
        connection.execute(
            tables.run.insert().values(
                **values,
                task="report",
                scheduled_ms=1,
                kind="manual",
                status="queued",
                arguments="{}",
                executor=ENGINE,
                attempt=1,
                not_before_ms=1,
                queued_ms=1,
            )
        )
        if not ledger.is_sqlite:  # where there is no way on which an answer could be lost
            raise_lost(connection)

    ledger.write_once(run.run_id, insert)

    assert tries == ["sent"]
    assert [row.id for row in runs_of(ledger)] == [run.run_id]


def raise_lost(connection: Connection) -> None:
    """What a driver says of a connection that is gone."""
    from sqlalchemy.exc import OperationalError

    raise OperationalError("COMMIT", {}, Exception("connection closed"), True)


def test_services_that_share_a_broker_have_queues_of_their_own() -> None:
    task = TaskDefinition(name="report", function=lambda: None)
    named = TaskDefinition(name="report", function=lambda: None, queue="mail")

    assert queue_name(task, "shop") == "fsa.shop" != queue_name(task, "bank")
    assert queue_name(named, "shop") == "mail"
    assert len(queue_name(task, "n" * 100)) == QUEUE_LENGTH


def test_a_message_is_part_of_a_sessions_transaction_where_its_names_mean_the_same(
    postgresql: Backend,
) -> None:
    postgresql.execute(
        "CREATE TABLE job (run_id TEXT); CREATE SCHEMA tenant_1;"
        "CREATE FUNCTION defer(TEXT[]) RETURNS bigint[] LANGUAGE sql AS"
        " 'INSERT INTO job SELECT * FROM unnest($1) RETURNING ARRAY[1::bigint]'"
    )
    joined = "SELECT defer(ARRAY(SELECT id FROM put))"
    ledger = open_ledger(postgresql.url)
    ledger.create()
    first, second = wanted(), wanted()

    with ledger.engine.begin() as connection:
        assert insert_run(ledger, connection, first, joined).how == "with its message"
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL search_path TO tenant_1")
        assert insert_run(ledger, connection, second, joined).how == "alone"

    assert postgresql.rows("SELECT run_id FROM job") == [(first.run_id,)]
    assert {row.id for row in runs_of(ledger)} == {first.run_id, second.run_id}
    ledger.dispose()


def test_dispatched_runs_are_stranded_while_no_worker_lives(ledger: Ledger) -> None:
    def waits() -> list[tuple[str, str | None, int]]:
        found = queries.vitals(ledger).unserved
        return [(each.executor, each.queue, each.since_ms) for each in found]

    assert waits() == []

    write_run(ledger, wanted())
    (row,) = runs_of(ledger)
    assert waits() == [(row.executor, row.queue, row.queued_ms)]
    (problem,) = [each for each in problems(glance(ledger)) if each.subject == "worker"]
    assert problem.commands == (f"fsa worker start --executor {row.executor}",)

    other = {service(row.executor, "other"): "", service("local"): ""}
    nodes.register(ledger, "worker", LEASE_MS, other)
    nodes.register(ledger, "scheduler", LEASE_MS)
    assert len(waits()) == 1
    with ledger.engine.begin() as connection:
        # Not when it is sent again, which is put off each time.
        connection.execute(tables.run.update().values(queued_ms=row.queued_ms - 600_000))
    (problem,) = [each for each in problems(glance(ledger)) if each.subject == "worker"]
    assert " dispatched for 10 min" in problem.said
    assert problem.said.startswith(f"none serves the queue {row.queue} of {row.executor}, and 1 ")
    assert problem.commands == (f"fsa worker start --executor {row.executor} --queue {row.queue}",)

    mine = nodes.register(ledger, "worker", LEASE_MS, {service(row.executor, row.queue): ""})
    assert waits() == []

    end_lease(ledger, mine.id)
    assert len(waits()) == 1
    nodes.register(ledger, "worker", LEASE_MS)  # of the version before: it has not said what
    assert waits() == []


def test_what_waits_in_the_ledger_is_served_by_schedulers_and_its_own_workers(
    ledger: Ledger,
) -> None:
    enqueue(ledger, "ship")
    nodes.register(ledger, "worker", LEASE_MS, {service("celery", "mail"): ""})
    (waits,) = queries.vitals(ledger).unserved
    assert (waits.executor, waits.status, waits.number) == ("local", "queued", 1)

    nodes.register(ledger, "worker", LEASE_MS, {service("local", "any"): ""})
    assert not queries.vitals(ledger).unserved
