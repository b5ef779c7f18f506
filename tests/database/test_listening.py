"""A listener of a class is called once, however many threads begin at the same moment."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from fsa_cli.database.listening import listen_once

THREADS = 4


@pytest.fixture(autouse=True)
def threads_take_turns_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def calls_of_one_commit(threads: ThreadPoolExecutor) -> int:
    called: list[Session] = []
    ready = Barrier(THREADS)

    class Mine(Session):
        pass

    def note(session: Session) -> None:
        called.append(session)

    def begin(_: int) -> None:
        ready.wait()
        listen_once(Mine, "before_commit", note)

    list(threads.map(begin, range(THREADS)))
    with Mine(create_engine("sqlite://")) as session:
        session.begin()
        session.commit()
    return len(called)


def test_threads_that_begin_at_once_add_one_listener() -> None:
    """With SQLAlchemy's own `event.listen` more than half of the classes had several."""
    with ThreadPoolExecutor(THREADS) as threads:
        assert {calls_of_one_commit(threads) for _ in range(200)} == {1}
