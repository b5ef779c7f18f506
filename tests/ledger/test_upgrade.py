"""Tables of the version before get what this one adds, also while its processes go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from fsa_cli.exceptions import LedgerUnusable
from fsa_cli.ledger.claim_queued import claim_queued
from fsa_cli.ledger.enqueue import write_run
from fsa_cli.ledger.records import NewRun
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.upgrade import columns_in
from support.backends import Backend
from support.ledgers import insert_as_before, make_like_before, make_node, open_ledger, runs_of


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def old(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """A ledger as the version before has made it, with a run that waits."""
    backend: Backend = request.getfixturevalue(request.param)
    ledger = open_ledger(backend.url)
    make_like_before(ledger)
    yield ledger
    ledger.dispose()


def test_what_a_version_adds_is_made_at_the_start_by_whoever_is_first(old: Ledger) -> None:
    with pytest.raises(LedgerUnusable, match="no column priority") as caught:
        old.exists()
    assert "fsa scheduler init" in (caught.value.hint or "")

    errors: list[BaseException] = []

    def start() -> None:
        url = old.engine.url.render_as_string(hide_password=False)
        other = open_ledger(url, old.namespace)
        try:
            other.create()
        except BaseException as exc:
            errors.append(exc)
        finally:
            other.dispose()

    starts = [threading.Thread(target=start) for _ in range(8)]
    for each in starts:
        each.start()
    for each in starts:
        each.join()

    assert errors == []
    assert old.exists()
    assert old.create() is False
    old.check_keys()
    # What is there goes on, and processes of the version before go on writing.
    wanted = NewRun.of("ship", "{}", executor="local", queue=None, dispatched=False, priority=5)
    write_run(old, wanted)
    old.write(lambda c: c.execute(text("DELETE FROM fsa_run WHERE id = 'old'")))
    insert_as_before(old)
    found = claim_queued(old, make_node(old).id, {"ship": None}, most=1).runs
    assert [each.run_id for each in found] in ([wanted.run_id], ["old"])
    assert sorted(row.priority for row in runs_of(old)) == [0, 5]


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def others(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """Where another application has tables of these names."""
    backend: Backend = request.getfixturevalue(request.param)
    ledger = open_ledger(backend.url)
    with ledger.engine.begin() as connection:
        connection.execute(text("CREATE TABLE fsa_run (id INTEGER, name VARCHAR(9))"))
        connection.execute(text("CREATE TABLE fsa_schema (id INTEGER, checksum VARCHAR(9))"))
    yield ledger
    ledger.dispose()


def test_tables_of_another_application_are_left_alone(others: Ledger) -> None:
    for work in (others.create, others.exists):
        with pytest.raises(LedgerUnusable, match="has no column") as caught:
            work()
        assert "another application's" in caught.value.details[1]
        assert "ledger_url" in (caught.value.hint or "")
        assert "init" not in (caught.value.hint or "")
    assert others.read(columns_in).keys() == {"fsa_run", "fsa_schema"}


def test_tables_of_a_version_that_this_one_cannot_work_with_are_left_alone(ledger: Ledger) -> None:
    def say(version: int, oldest: int) -> None:
        statement = f"UPDATE fsa_schema SET version = {version}, oldest = {oldest}"
        ledger.write(lambda connection: connection.execute(text(statement)))

    say(3, 1)
    try:
        assert ledger.exists()  # it only adds
        assert ledger.create() is False
        say(4, 3)
        for work in (ledger.exists, ledger.create):
            with pytest.raises(
                LedgerUnusable, match="of version 4, and this fsa knows 2"
            ) as caught:
                work()
        assert "install here" in (caught.value.hint or "")
        assert caught.value.exit_code == 3
    finally:
        say(2, 1)
