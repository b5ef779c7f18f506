"""`ship.enqueue`: by itself, and as part of a session's transaction."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from textwrap import dedent
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import SecretStr
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from fastapi_sqlalchemy import db
from fsa_cli import Task, task
from fsa_cli.exceptions import ArgumentError, UsageError
from fsa_cli.ledger import control, nodes
from fsa_cli.ledger.location import ledger_of
from fsa_cli.ledger.store import Ledger
from fsa_cli.project.settings import read
from fsa_cli.runner.dry_run import execute_dry_run
from fsa_cli.runner.run import Run
from fsa_cli.tasks.arguments import bind
from fsa_cli.tasks.registry import registry
from fsa_cli.tasks.signature import signature_of
from support.backends import Backend
from support.ledgers import runs_of
from support.processes import Run as Fsa

Runs = Callable[[], list[Any]]


@pytest.fixture
def ship(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A task of an app whose `db` is on *backend*."""
    monkeypatch.chdir(tmp_path)
    registry.clear()

    @task
    def ship(item: str, count: int = 1, *, since: date | None = None) -> None: ...

    db.configure(db_url=backend.url)
    backend.execute("CREATE TABLE orders (n INTEGER)")
    yield ship
    db.dispose()
    registry.clear()


@pytest.fixture
def runs(ship: Any, backend: Backend) -> Iterator[Runs]:
    """The rows of its ledger."""
    ledger: Ledger = ledger_of({"default": db}, read())
    ledger.create()
    yield lambda: runs_of(ledger)
    ledger.dispose()


def insert() -> None:
    db.session.execute(text("INSERT INTO orders (n) VALUES (1)"))


def orders(backend: Backend) -> int:
    return len(backend.rows("SELECT n FROM orders"))


def test_a_run_is_queued_with_its_arguments_by_name(ship: Any, runs: Runs) -> None:
    run_id = ship.enqueue("coffee", 7, since=date(2026, 1, 2)).id

    (row,) = runs()
    assert (row.id, row.task, row.kind, row.status) == (run_id, "ship", "manual", "queued")
    assert json.loads(row.arguments) == {"item": "coffee", "count": 7, "since": "2026-01-02"}
    assert (row.executor, row.attempt) == ("local", 1)
    assert abs(row.not_before_ms - row.queued_ms) < 1000


def test_what_stars_take_is_enqueued_as_it_is_called(ship: Any, runs: Runs) -> None:
    @task
    def pack(order: str, *items: int) -> None: ...

    pack.enqueue("a", 1, 2)
    pack.enqueue("b")

    kept = [json.loads(row.arguments) for row in runs()]
    assert sorted(kept, key=str) == [{"order": "a", "items": [1, 2]}, {"order": "b"}]


def test_a_queue_that_nobody_serves_is_said_once_and_asked_for_rarely(
    ship: Any, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    from fsa_cli.runs.enqueue import enqueuer_here

    ship.enqueue("tea")
    said = [each.getMessage() for each in caplog.records if each.name == "fsa.enqueue"]
    assert len(said) == 1
    assert said[0].startswith("no scheduler is alive, and no worker: it waits for ")
    sent: list[str] = []
    own = enqueuer_here().ledger
    for engine in (own.engine, own._single):
        event.listen(engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
    ship.enqueue("coffee")
    assert not [each for each in sent if "fsa_node" in each]
    assert len([each for each in caplog.records if each.name == "fsa.enqueue"]) == 1
    assert len(runs()) == 2


def test_a_task_that_no_process_has_is_said_once(
    ship: Any, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    from fsa_cli.runs.enqueue import enqueuer_here

    own = enqueuer_here().ledger
    own.create()
    nodes.register(own, "scheduler", 60_000)
    control.add_task(own, "ship")  # as a run by hand does
    for each in ("tea", "coffee"):
        ship.enqueue(each)
    said = [each.getMessage() for each in caplog.records if each.name == "fsa.enqueue"]
    assert said == [
        "no live process takes ship (--only, --tag, another version?): it waits for "
        "fsa worker start"
    ]
    assert len(runs()) == 2


async def test_a_run_is_queued_from_a_coroutine(ship: Any, runs: Runs) -> None:
    asked = await ship.aenqueue("coffee")

    assert [row.id for row in runs()] == [asked.id]


@pytest.mark.parametrize("how", ["commit", "rollback", "raise", "leave"])
def test_a_run_of_a_session_is_there_if_and_only_if_it_commits(
    how: str, ship: Any, runs: Runs, backend: Backend
) -> None:
    try:
        with db():
            insert()
            ship.using(session=db.session).enqueue("coffee")
            if how == "commit":
                db.session.commit()
            elif how == "rollback":
                db.session.rollback()
            elif how == "raise":
                raise LookupError("after it was asked for")
    except LookupError:
        pass

    assert len(runs()) == orders(backend) == (1 if how == "commit" else 0)


@pytest.mark.parametrize("commits", [True, False])
async def test_a_run_of_an_async_session_is_there_if_and_only_if_it_commits(
    commits: bool, ship: Any, runs: Runs, backend: Backend
) -> None:
    async with db():
        await db.async_session.execute(text("INSERT INTO orders (n) VALUES (1)"))
        await ship.using(session=db.async_session).aenqueue("coffee")
        if commits:
            await db.async_session.commit()

    assert len(runs()) == orders(backend) == int(commits)
    await db.adispose()


def test_a_savepoint_that_is_rolled_back_takes_its_run_with_it(
    ship: Any, runs: Runs, backend: Backend
) -> None:
    with db():
        ship.using(session=db.session).enqueue("kept")
        with db.session.begin_nested():
            ship.using(session=db.session).enqueue("kept too")
        with pytest.raises(LookupError), db.session.begin_nested():
            with db.session.begin_nested():
                ship.using(session=db.session).enqueue("gone")
            raise LookupError("the outer one")
        db.session.commit()

    asked = sorted(json.loads(row.arguments)["item"] for row in runs())
    assert asked == ["kept", "kept too"]


def test_each_transaction_of_a_session_has_its_own_runs(ship: Any, runs: Runs) -> None:
    with db():
        for commits in (True, False, True):
            ship.using(session=db.session).enqueue("coffee")
            (db.session.commit if commits else db.session.rollback)()

    assert len(runs()) == 2


def test_nothing_leaves_a_sandbox(ship: Any, runs: Runs, backend: Backend) -> None:
    with db.sandbox():
        with db(commit_on_exit=True):
            insert()
            ship.using(session=db.session).enqueue("coffee")
        with db():
            assert db.session.scalar(text("SELECT count(*) FROM orders")) == 1

    assert len(runs()) == orders(backend) == 0


@pytest.mark.parametrize("session", [None, "db.session"])
def test_a_dry_run_enqueues_nothing_and_says_what_it_would(
    ship: Any, runs: Runs, session: str | None
) -> None:
    def order() -> None:
        for item in ("coffee", "tea"):
            ship.using(session=db.session if session else None).enqueue(item)

    made = Run(task=Task(name="order", function=order), database=db, dry_run=True)
    result, told = execute_dry_run(made, {"default": db})

    assert result.succeeded, result.error
    assert told.enqueued == [{"task": "ship", "runs": 2}]
    assert told.tables == []
    assert runs() == []

    ship.enqueue("coffee")
    assert len(runs()) == 1


def test_a_dry_run_refuses_what_could_not_be_enqueued(ship: Any) -> None:
    made = Run(
        task=Task(name="order", function=lambda: ship.enqueue("tea", cuont=1)),
        database=db,
        dry_run=True,
    )
    result, told = execute_dry_run(made, {"default": db})

    assert isinstance(result.error, ArgumentError)
    assert told.enqueued == []


async def test_a_sync_session_serves_a_coroutine_too(ship: Any, runs: Runs) -> None:
    with db():
        await ship.using(session=db.session).aenqueue("coffee")
        ship.using(session=db.session).enqueue("tea")
        db.session.commit()

    assert len(runs()) == 2


@pytest.mark.parametrize(
    ("arguments", "named", "said"),
    [
        ((), {}, "missing item"),
        (("a", 1, "2026-01-01", "more"), {}, "2 arguments without a name, and was given 4"),
        (("a", 1, "2026-01-01"), {}, "2 arguments without a name, and was given 3"),
        ((object(),), {}, "item"),
        ((b"\xff",), {}, "item"),
        (("a",), {"item": "b"}, "ship was given item twice"),
        (("a",), {"colour": "red"}, "colour"),
        (("a", "many"), {}, "many"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    arguments: tuple[Any, ...], named: dict[str, Any], said: str, ship: Any, runs: Runs
) -> None:
    with pytest.raises(ArgumentError, match=said):
        ship.enqueue(*arguments, **named)

    assert runs() == []


async def test_an_async_session_needs_the_coroutine(ship: Any, runs: Runs) -> None:
    async with db():
        with pytest.raises(UsageError, match="AsyncSession") as caught:
            ship.using(session=db.async_session).enqueue("coffee")

    assert "await ship.using(session=session).aenqueue" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="as its session"):
        ship.using(session=db).enqueue("coffee")
    await db.adispose()


def test_bytes_and_zones_are_read_back_as_they_were(ship: Any, runs: Runs) -> None:
    @task(name="kinds")
    def kinds(zone: ZoneInfo, parts: list[bytes], *, whole: bytes) -> None: ...

    given = {"zone": ZoneInfo("Europe/Berlin"), "parts": [b"abc", b"\xff\0"], "whole": b"\x80"}
    kinds.enqueue(**given)

    (row,) = runs()
    assert json.loads(row.arguments)["zone"] == "Europe/Berlin"
    assert bind(signature_of(kinds.task.function), json.loads(row.arguments)) == given
    for wrong in ({"base64": "?"}, {"base64": 1}, {"base64": "", "more": 1}):
        with pytest.raises(ArgumentError, match="whole"):
            bind(signature_of(kinds.task.function), {**json.loads(row.arguments), "whole": wrong})


def test_a_secret_is_not_written_into_the_ledger(ship: Any, runs: Runs) -> None:
    @task
    def sign(token: SecretStr) -> None: ...

    with pytest.raises(UsageError, match="is a secret, and the ledger keeps none"):
        sign.enqueue("abc")

    assert runs() == []


def test_a_run_of_a_transaction_in_another_database_follows_its_commit(
    ship: Any,
    sqlite: Backend,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The ledger is elsewhere: what cannot be written after the COMMIT is logged, not raised."""
    monkeypatch.setenv("FSA_LEDGER_URL", f"sqlite:///{Path.cwd()}/elsewhere.db")
    ledger = ledger_of({"default": db}, read())
    with db():
        ship.using(session=db.session).enqueue("coffee")
        assert runs_of(ledger) == []
        db.session.commit()
        assert len(runs_of(ledger)) == 1

        ship.using(session=db.session).enqueue("tea")
        ledger.write(lambda connection: connection.execute(text("DROP TABLE fsa_run")))
        with caplog.at_level(logging.ERROR, "fsa.enqueue"):
            db.session.commit()
    ledger.dispose()
    assert "could not be enqueued" in caplog.text


@pytest.fixture
def elsewhere(ship: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    """The items of the runs in a ledger that is another database."""
    monkeypatch.setenv("FSA_LEDGER_URL", f"sqlite:///{Path.cwd()}/elsewhere.db")
    ledger = ledger_of({"default": db}, read())
    ledger.create()
    yield lambda: [json.loads(row.arguments)["item"] for row in runs_of(ledger)]
    ledger.dispose()


@pytest.mark.parametrize("end", ["close", "reset", "invalidate", "rollback"])
def test_a_run_of_a_transaction_that_was_given_up_does_not_follow_the_next_commit(
    end: str, ship: Any, elsewhere: Runs
) -> None:
    with db():
        ship.using(session=db.session).enqueue("gone")
        getattr(db.session, end)()
        ship.using(session=db.session).enqueue("kept")
        db.session.commit()

    assert elsewhere() == ["kept"]


def test_a_run_follows_its_savepoint(ship: Any, elsewhere: Runs) -> None:
    with db():
        with db.session.begin_nested(), db.session.begin_nested():
            ship.using(session=db.session).enqueue("kept")
        with pytest.raises(LookupError), db.session.begin_nested():
            with db.session.begin_nested():
                ship.using(session=db.session).enqueue("gone")
            raise LookupError("the outer one")
        savepoint = db.session.begin_nested()
        ship.using(session=db.session).enqueue("gone")
        savepoint.close()
        db.session.commit()

    assert elsewhere() == ["kept"]


def test_a_run_of_a_session_on_a_connection_follows_the_commit_that_is_one(
    ship: Any, elsewhere: Runs
) -> None:
    with db.engine.connect() as connection:
        with Session(connection) as session:
            ship.using(session=session).enqueue("kept")
            session.commit()
        with connection.begin() as outer, Session(connection) as session:
            ship.using(session=session).enqueue("gone")
            session.commit()
            outer.rollback()
    with db.sandbox(), Session(db.engine) as session:
        ship.using(session=session).enqueue("gone")
        session.commit()

    assert elsewhere() == ["kept"]


@pytest.mark.slow
def test_only_the_first_request_waits_for_a_broker_that_is_away(
    ship: Any,
    runs: Runs,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FSA_EXECUTOR", "celery")
    monkeypatch.setenv("FSA_BROKER_URL", "redis://127.0.0.1:1/0")

    ship.enqueue("coffee")
    ship.enqueue("tea")

    unserved, first, second = (record.message for record in caplog.records)
    assert unserved == "no worker is alive: it waits for fsa worker start --executor celery"
    assert "Celery's broker cannot be reached" in first
    assert second.startswith("celery is away; the run ")
    assert [row.status for row in runs()] == ["handed_off"] * 2


def test_an_app_that_was_only_imported_has_its_ledger(python: Fsa, tmp_path: Path) -> None:
    source = """
        from fastapi import FastAPI
        from fastapi_sqlalchemy import DBSessionMiddleware
        from fsa_cli import task

        app = FastAPI()
        app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")

        @task
        def ship(): ...
        """
    (tmp_path / "main.py").write_text(dedent(source))

    done = python("-c", "import main; print(main.ship.enqueue())")

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "shop-ledger.db").is_file()


def test_a_process_without_a_database_has_no_ledger(python: Fsa) -> None:
    done = python(
        "-c",
        "from fsa_cli import task\n@task\ndef ship(): ...\nship.enqueue()",
    )

    assert done.returncode == 1
    assert "there is no ledger: db is not configured in this process" in done.stderr


def test_enqueueing_imports_neither_typer_nor_rich_nor_apscheduler(python: Fsa) -> None:
    done = python(
        "-c",
        "import sys, fsa_cli.runs.enqueue\n"
        "print([name for name in ('typer', 'rich', 'apscheduler') if name in sys.modules])",
    )

    assert done.stdout == "[]\n", done.stderr
