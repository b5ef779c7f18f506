"""What wakes a process on PostgreSQL, and where it must not be in the way."""

from __future__ import annotations

import contextlib
import os
import resource

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from fsa_cli.ledger import wake
from fsa_cli.ledger.enqueue import insert_run
from fsa_cli.ledger.records import NewRun
from fsa_cli.ledger.store import Ledger


@pytest.fixture
def ledger(ledger_on_postgresql: Ledger) -> Ledger:
    return ledger_on_postgresql


def test_a_process_with_many_open_files_hears_too(ledger: Ledger) -> None:
    """A web process has more descriptors than `select` takes."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1200:
        pytest.skip("this process may not open so many files")
    with contextlib.ExitStack() as stack:
        for _ in range(1050):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        connection = stack.enter_context(wake.listening(ledger))
        for _ in range(3):
            wake.notify(ledger)
        assert connection.wait(10)


def test_a_transaction_that_will_be_prepared_notifies_nobody(ledger: Ledger) -> None:
    """PostgreSQL would refuse to prepare it."""
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *more: object) -> None:
        sent.append(statement)

    event.listen(ledger.engine, "before_cursor_execute", note)
    for is_prepared in (False, True):
        sent.clear()
        with Session(ledger.engine, twophase=is_prepared) as session:
            new_run = NewRun.of("ship", "{}", executor="local", queue=None, dispatched=False)
            assert insert_run(ledger, session.connection(), new_run).how == "alone"
            assert any("pg_notify" in statement for statement in sent) is not is_prepared
            session.rollback()
