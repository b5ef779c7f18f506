"""Runs that an engine carries: handed off in one transaction, taken once, sent again when late."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, update

from fsa_cli.ledger import control, nodes, queries, redelivery, tables
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.claim_queued import claim_dispatched, claim_queued, requeue_dispatched
from fsa_cli.ledger.enqueue import NewRun, write_run
from fsa_cli.ledger.records import SENT_AGAIN_MS, ClaimedRun, Due
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import QUEUE_LENGTH
from fsa_cli.runs.executor_registry import queue_name
from fsa_cli.tasks.definition import TaskDefinition
from support.ledgers import LEASE_MS, make_node, now_ms, open_ledger, runs_of

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


class Sent:
    """What an engine was given in the ledger's transactions."""

    def __init__(self) -> None:
        self.run_ids: list[str] = []

    def __call__(self, connection: Connection, claimed: Sequence[ClaimedRun | str]) -> None:
        assert connection.in_transaction()
        self.run_ids += [each if isinstance(each, str) else each.run_id for each in claimed]


def test_a_due_instant_is_dispatched_with_its_lock_and_without_a_node(ledger: Ledger) -> None:
    node, sent = make_node(ledger), Sent()
    due = due_now(ledger)

    outcome = claim_due(ledger, node.id, [due], window_ms=WINDOW_MS, dispatch=sent)

    (row,) = runs_of(ledger)
    assert [each.run_id for each in outcome.mine] == sent.run_ids == [row.id]
    assert (row.status, row.node, row.lock_key) == ("handed_off", None, due.lock_key)
    assert (row.executor, row.queue, row.started_ms) == (ENGINE, "mail", None)
    assert row.not_before_ms - row.queued_ms == pytest.approx(SENT_AGAIN_MS, abs=2)


def test_an_instant_is_dispatched_by_one_of_many_replicas(ledger: Ledger) -> None:
    at_ms = now_ms(ledger)
    due = [Due(f"task{n}", at_ms, f"{ledger.namespace}/{n}", executor=ENGINE) for n in range(20)]
    url = ledger.engine.url.render_as_string(hide_password=False)
    replicas = [open_ledger(url, ledger.namespace) for _ in range(4)]
    ready = threading.Barrier(len(replicas))

    def dispatch(replica: Ledger) -> list[str]:
        node, sent = make_node(replica), Sent()
        ready.wait()
        outcome = claim_due(replica, node.id, due, window_ms=WINDOW_MS, dispatch=sent)
        assert [each.run_id for each in outcome.mine] == sent.run_ids
        return sent.run_ids

    with ThreadPoolExecutor(len(replicas)) as threads:
        sent = [run_id for mine in threads.map(dispatch, replicas) for run_id in mine]
    for replica in replicas:
        replica.dispose()

    assert sorted(sent) == sorted(row.id for row in runs_of(ledger))
    assert len(sent) == len(due)


def test_a_broker_that_refuses_leaves_no_row(ledger: Ledger) -> None:
    def refuse(connection: Connection, claimed: Sequence[ClaimedRun]) -> None:
        raise LookupError("no such queue")

    with pytest.raises(LookupError):
        claim_due(
            ledger,
            make_node(ledger).id,
            [due_now(ledger)],
            window_ms=WINDOW_MS,
            dispatch=refuse,
        )

    assert runs_of(ledger) == []


@pytest.mark.parametrize(("waits", "status"), [(False, "skipped"), (True, "queued")])
def test_while_a_run_is_dispatched_the_next_is_skipped_or_waits(
    waits: bool, status: str, ledger: Ledger
) -> None:
    node, sent = make_node(ledger), Sent()
    claim_due(ledger, node.id, [due_now(ledger)], window_ms=WINDOW_MS, dispatch=sent)

    again = due_now(ledger, waits=waits)
    claim_due(
        ledger,
        node.id,
        [Due(again.task, again.scheduled_ms + 1, *again_of(again))],
        window_ms=WINDOW_MS,
        dispatch=sent,
    )

    assert [row.status for row in runs_of(ledger)] == ["handed_off", status]
    assert len(sent.run_ids) == 1


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

    def twice(self: Ledger, work: Callable[[Connection], object]) -> object:
        at_once(self, work)
        return at_once(self, work)

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
    node, sent = make_node(ledger), Sent()
    locks = {"report": f"{ledger.namespace}/report"}

    (first,) = claim_dispatched(ledger, node.id, locks, [runs[0].run_id])
    assert claim_dispatched(ledger, node.id, locks, [run.run_id for run in runs[1:]]) == []

    assert sorted(row.status for row in runs_of(ledger)) == ["queued", "queued", "running"]
    assert claim_queued(ledger, node.id, locks, most=9, executor=ENGINE, dispatch=sent).runs == []
    assert first.lock_key == locks["report"]


def test_of_two_messages_that_come_at_once_the_run_that_holds_the_lock_is_taken(
    ledger: Ledger,
) -> None:
    node, sent = make_node(ledger), Sent()
    names = [f"report{n}" for n in range(8)]
    due = [due_now(ledger, name) for name in names]
    locks = {each.task: each.lock_key for each in due}
    claim_due(ledger, node.id, due, window_ms=WINDOW_MS, dispatch=sent)
    by_hand = [wanted(name) for name in names]
    for run in by_hand:
        write_run(ledger, run)

    taken = claim_dispatched(
        ledger, node.id, locks, [*(run.run_id for run in by_hand), *sent.run_ids]
    )

    assert {each.run_id for each in taken} == set(sent.run_ids)
    rows = {row.id: (row.status, row.lock_key) for row in runs_of(ledger)}
    assert {rows[run.run_id] for run in by_hand} == {("queued", None)}


def test_requeued_runs_leave_their_locks_and_are_dispatched_again(
    ledger: Ledger,
) -> None:
    node, sent = make_node(ledger), Sent()
    due = due_now(ledger)
    locks = {due.task: due.lock_key}
    claim_due(ledger, node.id, [due], window_ms=WINDOW_MS, dispatch=sent)

    requeue_dispatched(ledger, sent.run_ids)

    (row,) = runs_of(ledger)
    assert (row.status, row.lock_key, row.claim) == ("queued", None, None)
    claim_queued(ledger, node.id, locks, most=9, executor=ENGINE, dispatch=sent)
    assert sent.run_ids == [row.id] * 2
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
    node, sent = make_node(ledger), Sent()
    queued = NewRun.of("report", "{}", executor=ENGINE, queue="mail", dispatched=False)
    write_run(ledger, queued)

    found = claim_queued(ledger, node.id, {"report": None}, most=9, executor=ENGINE, dispatch=sent)

    assert [each.queue for each in found.runs] == ["mail"]
    assert sent.run_ids == [queued.run_id]
    (row,) = runs_of(ledger)
    assert (row.status, row.node) == ("handed_off", None)
    assert row.not_before_ms - row.queued_ms == pytest.approx(SENT_AGAIN_MS, abs=2)


def test_a_late_message_is_sent_again_after_twice_the_time_and_by_one(ledger: Ledger) -> None:
    run, sent = wanted(), Sent()
    write_run(ledger, run)
    assert redelivery.late_messages(ledger, ENGINE) == {}

    make_late(ledger, run.run_id, 31_000)
    assert redelivery.late_messages(ledger, ENGINE) == {"mail": (1, 1)}
    assert redelivery.resend(ledger, ENGINE, "mail", 10, sent) == [run.run_id] == sent.run_ids
    assert redelivery.late_messages(ledger, ENGINE) == {}
    assert redelivery.resend(ledger, ENGINE, "mail", 10, sent) == []

    (row,) = runs_of(ledger)
    assert row.not_before_ms - now_ms(ledger) == pytest.approx(31_000, abs=2000)
    make_late(ledger, run.run_id, 120_000)
    redelivery.resend(ledger, ENGINE, "mail", 10, sent)
    (row,) = runs_of(ledger)
    assert row.not_before_ms - now_ms(ledger) == pytest.approx(120_000, abs=2000)


def test_no_more_messages_are_sent_again_than_are_missing(ledger: Ledger) -> None:
    runs, sent = [wanted() for _ in range(5)], Sent()
    for run in runs:
        write_run(ledger, run)
        make_late(ledger, run.run_id, 40_000)

    assert len(redelivery.resend(ledger, ENGINE, "mail", 2, sent)) == 2
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
    node, sent = make_node(ledger), Sent()
    due = due_now(ledger)
    claim_due(ledger, node.id, [due], window_ms=WINDOW_MS, dispatch=sent)
    (run_id,) = sent.run_ids

    assert control.cancel(ledger, run_id) == "queued"

    assert claim_dispatched(ledger, node.id, {"report": due.lock_key}, [run_id]) == []
    (row,) = runs_of(ledger)
    assert (row.status, row.lock_key) == ("cancelled", None)


def test_a_run_is_written_once_whatever_became_of_the_commit(ledger: Ledger) -> None:
    run = wanted()
    write_run(ledger, run)
    tries: list[str] = []

    def enlist(connection: Connection) -> None:
        tries.append("sent")
        if len(tries) == 1:
            connection.invalidate()
            raise_lost(connection)

    write_run(ledger, wanted("other"), enlist)

    assert len(tries) == 2
    assert len(runs_of(ledger)) == 2


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


def test_dispatched_runs_are_stranded_while_no_worker_lives(ledger: Ledger) -> None:
    assert queries.vitals(ledger).stranded_ms is None

    write_run(ledger, wanted())
    (row,) = runs_of(ledger)
    assert queries.vitals(ledger).stranded_ms == row.queued_ms

    nodes.register(ledger, "worker", LEASE_MS)
    assert queries.vitals(ledger).stranded_ms is None
