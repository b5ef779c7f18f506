"""`using(...)`: later, first, once; `enqueue_many`: many."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, update

from fastapi_sqlalchemy import db
from fsa_cli import TaskContext, task
from fsa_cli.exceptions import ArgumentError, UsageError
from fsa_cli.ledger import tables
from fsa_cli.ledger.location import ledger_of
from fsa_cli.ledger.store import Ledger
from fsa_cli.project.settings import read
from fsa_cli.tasks.registry import registry
from support.backends import Backend
from support.ledgers import runs_of

Runs = Callable[[], list[Any]]


@pytest.fixture
def ship(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.chdir(tmp_path)
    registry.clear()

    @task(priority=-3)
    def ship(context: TaskContext, item: str, count: int = 1) -> int:
        return count

    db.configure(db_url=backend.url)
    yield ship
    db.dispose()
    registry.clear()


@pytest.fixture
def ledger(ship: Any) -> Iterator[Ledger]:
    made = ledger_of({"default": db}, read())
    made.create()
    yield made
    made.dispose()


def test_a_run_says_when_how_urgent_and_in_which_queue(ship: Any, ledger: Ledger) -> None:
    at = datetime(2031, 3, 30, 1, 30, tzinfo=timezone(timedelta(hours=1)))  # Berlin's clocks change
    ship.enqueue("as the task says")
    ship.using(run_after=at, priority=10, queue="mail").enqueue("at")
    ship.using(run_after=timedelta(minutes=5)).using(priority=-100).enqueue("in")
    ship.using(run_after=at - timedelta(days=9999)).enqueue("long ago")

    rows = {row.arguments.split('"')[3]: row for row in runs_of(ledger)}
    assert rows["as the task says"].priority == -3
    assert rows["at"].not_before_ms == datetime(2031, 3, 30, 0, 30, tzinfo=UTC).timestamp() * 1000
    assert (rows["at"].priority, rows["at"].queue, rows["at"].status) == (10, "mail", "queued")
    assert 0 <= rows["in"].not_before_ms - rows["in"].queued_ms - 300_000 < 1000
    assert rows["in"].priority == -100
    assert rows["long ago"].not_before_ms < rows["long ago"].queued_ms


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"run_after": datetime(2031, 1, 1)}, "an instant with its zone"),
        ({"run_after": 5}, "a datetime with a zone, or a timedelta"),
        ({"priority": 101}, "from -100 to 100"),
        ({"priority": True}, "from -100 to 100"),
        ({"queue": ""}, "queue=''"),
        ({"unique": ""}, "unique=''"),
        ({"unique": "a\nb"}, "in one line"),
        ({"unique": "x" * 191}, "1 to 190"),
        ({"unique_for": timedelta(hours=1)}, "how long a key is kept"),
        ({"unique": "a", "unique_for": 3600}, "a timedelta"),
        ({"run_at": 1}, "no option 'run_at'"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    registry.clear()

    @task
    def ship() -> None: ...

    with pytest.raises(UsageError, match=said):
        ship.using(**options).enqueue()
    registry.clear()


def test_a_unique_run_is_there_once_and_gone_with_its_transaction(
    ship: Any, ledger: Ledger
) -> None:
    with db():
        asked = [
            ship.using(session=db.session, unique="17").enqueue(item) for item in ("tea", "coffee")
        ]
        db.session.rollback()
        assert runs_of(ledger) == []

        asked = [
            ship.using(session=db.session, unique="17").enqueue(item) for item in ("tea", "coffee")
        ]
        other = ship.using(session=db.session, unique="18").enqueue("tea")
        db.session.commit()
    assert ship.using(unique="17").enqueue("cocoa") == asked[0] == asked[1] != other
    assert sorted(row.id for row in runs_of(ledger)) == sorted([asked[0].id, other.id])

    everything = update(tables.run).values(status="succeeded", finished_ms=1)
    ledger.write(lambda connection: connection.execute(everything))
    again = ship.using(unique="17", unique_for=timedelta(days=1)).enqueue("tea")
    assert again != asked[0]

    with pytest.raises(UsageError, match="2 runs of ship are to have one unique key"):
        ship.using(unique="many").enqueue_many([{"item": "a"}, {"item": "b"}])

    each = ship.using(unique=lambda call: f"item:{call['item']}")
    with db():
        asking = each.using(session=db.session)
        first = asking.enqueue_many({"item": item} for item in "abca")
        db.session.commit()
    assert first[0] == first[3] == each.enqueue("a")
    assert len({result.id for result in first}) == 3
    with pytest.raises(UsageError, match="unique=17: expected a text"):
        ship.using(unique=lambda _: 17).enqueue("a")


def test_many_runs_are_one_statement(ship: Any, ledger: Ledger) -> None:
    from fsa_cli.runs.enqueue import enqueuer_here

    ship.enqueue("warm")
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "INSERT" in statement:
            sent.append(statement)

    own = enqueuer_here().ledger
    for engine in (own.engine, own._single):
        event.listen(engine, "before_cursor_execute", note)
    began_s = time.perf_counter()
    results = ship.using(priority=7).enqueue_many({"item": str(n)} for n in range(2000))
    took_s = time.perf_counter() - began_s

    assert len(sent) == 1
    assert took_s < 5, took_s
    rows = [row for row in runs_of(ledger) if row.priority == 7]
    assert {row.id for row in rows} == {result.id for result in results}
    assert len({row.arguments for row in rows}) == 2000
    assert ship.enqueue_many([]) == []
    with pytest.raises(ArgumentError):
        ship.enqueue_many([{"item": "a"}, {"itme": "b"}])
    assert len(runs_of(ledger)) == 2001

    with db():
        ship.using(session=db.session).enqueue_many([{"item": "x"}] * 3)
        db.session.rollback()
        ship.using(session=db.session).enqueue_many([{"item": "x"}] * 4)
        db.session.commit()
    assert len(runs_of(ledger)) == 2005


async def test_a_coroutine_has_all_of_it(ship: Any, ledger: Ledger) -> None:
    async with db():
        asking = ship.using(session=db.async_session, unique="17", run_after=timedelta(hours=1))
        first, second = await asking.aenqueue("tea"), await asking.aenqueue("tea")
        await ship.using(session=db.async_session).aenqueue_many([{"item": "x"}] * 3)
        await db.async_session.commit()
    assert first == second
    assert len(runs_of(ledger)) == 4
    await ship.aenqueue_many([{"item": "x"}])
    assert len(runs_of(ledger)) == 5
    await db.adispose()


@pytest.mark.parametrize("kind", ["half", "long", "large"])
def test_arguments_that_no_ledger_keeps_are_refused_by_name(ship: Any, kind: str) -> None:
    @task
    def send(body: Any) -> None: ...

    bad = {"half": "\ud800", "long": 10**6000, "large": "x" * 4_000_000}[kind]
    for call in (lambda: send.enqueue(bad), lambda: send.enqueue_many([{"body": bad}] * 2)):
        with pytest.raises(ArgumentError, match="the arguments of send "):
            call()


def test_a_key_that_mysql_compares_with_another_one_is_refused(ship: Any) -> None:
    for options in ({"unique": "tea "}, {"queue": "ma\0il"}):
        with pytest.raises(UsageError, match="expected a"):
            ship.using(**options).enqueue("tea")
