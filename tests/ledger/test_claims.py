"""Claims: who runs an instant, on each backend and from many threads at once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, event, select

from fsa_cli.ledger import control
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.claim_queued import claim_next, claim_queued, requeue_claimed
from fsa_cli.ledger.dialects import LOCK_S
from fsa_cli.ledger.enqueue import write_run
from fsa_cli.ledger.finish import finish
from fsa_cli.ledger.records import ClaimedRun, Due, NewRun, RunOutcome
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run
from support.ledgers import dispose, enqueue, make_node, now_ms, open_ledger, runs_of

WINDOW_MS = 30_000
LOCAL: dict[str, Any] = {"executor": "local", "queue": None, "dispatched": False}


def due_now(ledger: Ledger, name: str = "report", *, lock: bool = True, waits: bool = False) -> Due:
    key = f"{ledger.namespace}/{name}" if lock else None
    return Due(name, now_ms(ledger), key, waits, '{"n": 1}')


def enqueue_in_order(ledger: Ledger, *names: str) -> list[str]:
    """Queue runs of these tasks, each a millisecond older than the next: their ids.

    Of runs of one millisecond any may be claimed first.
    """
    oldest_ms = now_ms(ledger) - len(names)
    return [
        write_run(ledger, NewRun.of(name, "{}", **LOCAL, at_ms=oldest_ms + n))
        for n, name in enumerate(names)
    ]


def test_an_instant_is_claimed_once_and_its_row_says_by_whom(ledger: Ledger) -> None:
    first, second = make_node(ledger), make_node(ledger)
    due = due_now(ledger)

    mine = claim_due(ledger, first.id, [due], window_ms=WINDOW_MS)
    theirs = claim_due(ledger, second.id, [due], window_ms=WINDOW_MS)

    assert [(c.task, c.scheduled_ms, c.attempt) for c in mine.mine] == [("report", *due.key[1:], 1)]
    assert theirs.mine == []
    assert theirs.others == [due]
    (row,) = runs_of(ledger)
    assert (row.id, row.claim, row.node) == (mine.mine[0].run_id, mine.mine[0].token, first.id)
    assert (row.status, row.arguments, row.lock_key) == ("running", '{"n": 1}', due.lock_key)
    assert abs(row.started_ms - due.scheduled_ms) < 5000


def test_of_many_replicas_at_once_exactly_one_gets_each_instant(ledger: Ledger) -> None:
    at_ms = now_ms(ledger)
    due = [Due(f"task{n}", at_ms + k, f"{ledger.namespace}/{n}") for n in range(10) for k in (0, 1)]
    url = ledger.engine.url.render_as_string(hide_password=False)
    replicas = [open_ledger(url, ledger.namespace) for _ in range(4)]
    ready = threading.Barrier(len(replicas))

    def take(replica: Ledger) -> list[tuple[str, int]]:
        node = make_node(replica)
        ready.wait()
        outcome = claim_due(replica, node.id, due, window_ms=WINDOW_MS)
        return [(c.task, c.scheduled_ms) for c in outcome.mine]

    with ThreadPoolExecutor(len(replicas)) as threads:
        taken = [key for mine in threads.map(take, replicas) for key in mine]
    for replica in replicas:
        replica.dispose()

    assert max(Counter(taken).values()) == 1
    assert max(Counter(task for task, _ in taken).values()) == 1, "two runs of a task at a time"
    rows = runs_of(ledger)
    assert {(row.task, row.scheduled_ms) for row in rows} == {each.key for each in due}
    assert Counter(row.status for row in rows) == {"running": 10, "skipped": 10}


def test_an_instant_that_a_replica_makes_up_for_meanwhile_is_not_said_to_be_skipped(
    ledger: Ledger,
) -> None:
    node = make_node(ledger)
    url = ledger.engine.url.render_as_string(hide_password=False)
    replica = open_ledger(url, ledger.namespace)
    goes_on = due_now(ledger)
    late = goes_on._replace(scheduled_ms=goes_on.scheduled_ms - 2 * WINDOW_MS)
    assert claim_due(ledger, node.id, [goes_on], window_ms=WINDOW_MS).mine
    asked: list[object] = []

    def make_up(*_: object) -> None:
        asked.append(None)
        if len(asked) == 3:  # to insert it as skipped; it had no row when that was looked at
            unlocked = late._replace(lock_key=None)
            assert claim_due(replica, node.id, [unlocked], window_ms=10 * WINDOW_MS).mine

    for engine in {ledger.engine.pool, ledger._single.pool}:
        event.listen(engine, "checkout", make_up)
    outcome = claim_due(ledger, node.id, [late], window_ms=WINDOW_MS)

    dispose(replica)
    assert (outcome.skipped, outcome.others, outcome.left) == ([], [late], [])
    assert {row.status for row in runs_of(ledger)} == {"running"}


def test_while_the_run_before_goes_on_an_instant_is_skipped_or_waits(ledger: Ledger) -> None:
    node = make_node(ledger)
    for name, waits, status in (("skips", False, "skipped"), ("waits", True, "queued")):
        first = due_now(ledger, name, waits=waits)
        second = Due(name, first.scheduled_ms + 1, first.lock_key, waits)
        claim_due(ledger, node.id, [first], window_ms=WINDOW_MS)

        outcome = claim_due(ledger, node.id, [second], window_ms=WINDOW_MS)

        assert outcome.mine == []
        assert (outcome.queued if waits else outcome.skipped) == [second]
        row = runs_of(ledger)[-1]
        assert (row.task, row.status, row.lock_key) == (name, status, None)
        assert (row.finished_ms is None) is waits


def test_without_a_lock_runs_overlap(ledger: Ledger) -> None:
    node = make_node(ledger)
    first = due_now(ledger, lock=False)
    second = Due("report", first.scheduled_ms + 1)

    assert len(claim_due(ledger, node.id, [first, second], window_ms=WINDOW_MS).mine) == 2


def test_what_is_early_old_or_paused_is_not_claimed(ledger: Ledger) -> None:
    node = make_node(ledger)
    at_ms = now_ms(ledger)
    control.pause(ledger, ["paused"], "ann")
    early, old = Due("early", at_ms + 60_000), Due("old", at_ms - WINDOW_MS - 1000)
    paused = Due("paused", at_ms)

    outcome = claim_due(ledger, node.id, [early, old, paused], window_ms=WINDOW_MS)

    assert outcome.mine == []
    assert outcome.early == [early]
    assert set(outcome.left) == {old, paused}
    assert runs_of(ledger) == []


def test_a_name_is_taken_letter_by_letter(ledger: Ledger) -> None:
    node, at_ms = make_node(ledger), now_ms(ledger)

    outcome = claim_due(
        ledger, node.id, [Due("Report", at_ms), Due("report", at_ms)], window_ms=WINDOW_MS
    )

    assert len(outcome.mine) == 2


def test_a_claim_whose_answer_was_lost_is_found_by_its_token(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The COMMIT happens, and the connection is gone before the answer."""
    node, due = make_node(ledger), due_now(ledger)
    at_once = Ledger.at_once

    def without_answer(self: Ledger, work: Callable[[Connection], object], **more: Any) -> set[str]:
        at_once(self, work, **more)
        return set()

    monkeypatch.setattr(Ledger, "at_once", without_answer)

    outcome = claim_due(ledger, node.id, [due], window_ms=WINDOW_MS)

    assert len(outcome.mine) == 1
    assert [row.claim for row in runs_of(ledger)] == [outcome.mine[0].token]


def test_queued_runs_are_taken_in_order_and_once(ledger: Ledger) -> None:
    first, second = make_node(ledger), make_node(ledger)
    wanted = [enqueue(ledger, f"task{n}", "{}") for n in range(6)]
    locks = {f"task{n}": f"{ledger.namespace}/task{n}" for n in range(6)}

    one, more, *_ = claim_queued(ledger, first.id, locks, most=4)
    two, *_ = claim_queued(ledger, second.id, locks, most=4)

    assert (len(one), len(two)) == (4, 2)
    assert more
    assert {c.run_id for c in (*one, *two)} == set(wanted)
    assert {(row.status, row.node) for row in runs_of(ledger)} == {
        ("running", first.id),
        ("running", second.id),
    }


def test_of_many_replicas_at_once_exactly_one_gets_each_queued_run(ledger: Ledger) -> None:
    for n in range(30):
        enqueue(ledger, f"task{n % 10}", "{}")
    locks = {f"task{n}": f"{ledger.namespace}/task{n}" for n in range(10)}
    url = ledger.engine.url.render_as_string(hide_password=False)
    replicas = [open_ledger(url, ledger.namespace) for _ in range(3)]
    ready = threading.Barrier(len(replicas))

    def take(replica: Ledger) -> list[tuple[str, str]]:
        node = make_node(replica)
        ready.wait()
        taken = []
        for _ in range(3):
            found, *_ = claim_queued(replica, node.id, locks, most=5)
            taken += [(c.run_id, c.task) for c in found]
        return taken

    with ThreadPoolExecutor(len(replicas)) as threads:
        taken = [each for mine in threads.map(take, replicas) for each in mine]
    for replica in replicas:
        replica.dispose()

    assert max(Counter(run_id for run_id, _ in taken).values()) == 1
    assert max(Counter(task for _, task in taken).values()) == 1, "the lock of a task was held"


def test_a_queued_run_waits_for_its_lock_and_its_time(ledger: Ledger) -> None:
    node = make_node(ledger)
    lock = f"{ledger.namespace}/report"
    (running,) = claim_due(ledger, node.id, [due_now(ledger)], window_ms=WINDOW_MS).mine
    waiting = enqueue(ledger, "report", "{}")

    assert claim_queued(ledger, node.id, {"report": lock}, most=5)[0] == []

    at_ms = now_ms(ledger)
    finish(ledger, [ended(running, at_ms, retry_in_ms=60_000)])
    (taken,), *_ = claim_queued(ledger, node.id, {"report": lock}, most=5)
    assert taken.run_id == waiting  # the other one is to be made again in a minute


def test_tasks_that_this_process_does_not_know_are_left_to_others(ledger: Ledger) -> None:
    node = make_node(ledger)
    enqueue(ledger, "new_here_soon", "{}")

    assert claim_queued(ledger, node.id, {"report": None}, most=5)[0] == []


def test_what_was_just_asked_for_is_claimed_in_one_statement(ledger_on_postgresql: Ledger) -> None:
    ledger = ledger_on_postgresql
    first, second = make_node(ledger), make_node(ledger)
    locks = {"ship": None, "mail": None, "report": f"{ledger.namespace}/report"}
    waiting = enqueue_in_order(ledger, "ship", "mail", "ship", "ship")
    left = {enqueue(ledger, name, "{}") for name in ("report", "new_here_soon")}
    left.add(write_run(ledger, NewRun.of("ship", "{}", **LOCAL, wait_ms=60_000)))
    left.add(write_run(ledger, NewRun.of("ship", "{}", **{**LOCAL, "executor": "celery"})))
    urgent = write_run(ledger, NewRun.of("ship", "{}", **LOCAL, priority=1))

    sent: list[str] = []
    event.listen(ledger._single, "before_cursor_execute", lambda *given: sent.append(given[2]))
    mine = claim_next(ledger, first.id, locks, most=3, token="a" * 32)
    assert len(sent) == 1
    with ledger.engine.connect() as connection:
        connection.execute(select(run.c.id).where(run.c.id == waiting[3]).with_for_update())
        theirs = claim_next(ledger, second.id, locks, most=9, token="b" * 32)

    assert [each.run_id for each in mine] == [urgent, *waiting[:2]]
    assert [each.run_id for each in theirs] == [waiting[2]], "another transaction has its row"
    rows = {row.id: row for row in runs_of(ledger)}
    assert {rows[each.run_id].claim for each in mine} == {"a" * 32}
    assert {rows[each.run_id].node for each in theirs} == {second.id}
    assert {row.id for row in rows.values() if row.status == "queued"} == {*left, waiting[3]}


def test_rows_in_a_transaction_that_does_not_end_keep_no_others_waiting(
    ledger_on_postgresql: Ledger,
) -> None:
    ledger = ledger_on_postgresql
    node = make_node(ledger)
    waiting = enqueue_in_order(ledger, *["ship"] * 130)
    held = set(waiting[:120])

    with ledger.engine.connect() as connection:
        connection.execute(select(run.c.id).where(run.c.id.in_(held)).with_for_update())
        began_s = time.monotonic()
        found = claim_queued(ledger, node.id, {"ship": None}, most=7)
        took_s = time.monotonic() - began_s

    assert [each.run_id for each in found.runs] == waiting[120:127]
    assert found.more
    assert took_s < LOCK_S


def test_what_an_unanswered_commit_has_claimed_is_known(
    ledger_on_postgresql: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledger_on_postgresql
    node = make_node(ledger)
    wanted = {enqueue(ledger, "ship", "{}") for _ in range(2)}
    at_once = Ledger.at_once

    def twice(self: Ledger, work: Callable[[Connection], object]) -> object:
        at_once(self, work)
        return at_once(self, work)

    monkeypatch.setattr(Ledger, "at_once", twice)
    mine = claim_next(ledger, node.id, {"ship": None}, most=5, token="a" * 32)
    assert {each.run_id for each in mine} == wanted


def test_claimed_runs_that_have_not_started_can_be_queued_again(ledger: Ledger) -> None:
    node, other = make_node(ledger), make_node(ledger)
    (claimed,) = claim_due(ledger, node.id, [due_now(ledger)], window_ms=WINDOW_MS).mine

    requeue_claimed(ledger, [claimed])

    (row,) = runs_of(ledger)
    assert (row.status, row.claim, row.lock_key, row.attempt) == ("queued", None, None, 1)
    (again,), *_ = claim_queued(ledger, other.id, {"report": claimed.lock_key}, most=5)
    assert again.run_id == claimed.run_id
    requeue_claimed(ledger, [claimed])  # a token of before gives nothing back
    assert runs_of(ledger)[0].status == "running"


def test_a_claimed_run_that_is_cancelled_is_not_queued_again(ledger: Ledger) -> None:
    node = make_node(ledger)
    claimed = claim_due(
        ledger, node.id, [due_now(ledger), due_now(ledger, "other")], window_ms=WINDOW_MS
    ).mine
    assert control.cancel(ledger, claimed[0].run_id) == "running"

    requeue_claimed(ledger, claimed)

    rows = {row.id: row for row in runs_of(ledger)}
    first, other = (rows[each.run_id] for each in claimed)
    assert (first.status, first.lock_key, first.started_ms) == ("cancelled", None, None)
    assert first.finished_ms is not None
    assert (other.status, other.finished_ms) == ("queued", None)


def ended(claimed: ClaimedRun, at_ms: int, **more: object) -> RunOutcome:
    values: dict[str, object] = {"status": "failed", "error": "no", **more}
    return RunOutcome(
        run_id=claimed.run_id,
        token=claimed.token,
        task=claimed.task,
        started_ms=at_ms,
        finished_ms=at_ms,
        **values,  # type: ignore[arg-type]
    )
