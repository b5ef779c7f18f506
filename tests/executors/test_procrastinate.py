"""What Procrastinate's own worker is given to do, on a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fsa_cli.exceptions import BrokerUnreachable
from fsa_cli.executors import procrastinate
from fsa_cli.executors.procrastinate import Procrastinate
from fsa_cli.project import settings
from fsa_cli.runs.executor import Message, Surroundings
from support.backends import Backend
from support.ledgers import open_ledger
from support.waiting import wait_until


def end(future: Future[None]) -> None:
    with suppress(InvalidStateError):
        future.set_result(None)


class Worker:
    """What has come to it; the future of each."""

    def __init__(self, executor: Procrastinate, slow_s: float = 0.0) -> None:
        self.taken: dict[str, Future[None]] = {}
        self.stop = threading.Event()
        self._executor = executor
        self._slow_s = slow_s
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        self._executor.consume(self._take, queues=["mail"], concurrency=3, stop=self.stop)

    def _take(self, run_id: str) -> Future[None]:
        assert run_id not in self.taken
        future = self.taken[run_id] = Future[None]()
        if self._slow_s:
            self.stop.set()
            time.sleep(self._slow_s)
        if self.stop.is_set():
            end(future)
        return future

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for each in [*self.taken.values()]:
                end(each)
            self._thread.join(10)
            assert not self._thread.is_alive()


@pytest.fixture
def executor(postgresql: Backend, tmp_path: Path) -> Iterator[Procrastinate]:
    ledger = open_ledger(postgresql.url)
    made = Procrastinate(Surroundings(ledger, settings.read(directory=tmp_path)))
    made.prepare()
    yield made
    ledger.dispose()


def send(executor: Procrastinate, count: int) -> list[str]:
    run_ids = [f"run-{number}" for number in range(count)]
    messages = [Message(each, "mail") for each in run_ids]
    executor.publish(messages)
    return run_ids


def statuses(backend: Backend) -> list[str]:
    rows = backend.rows("SELECT status FROM procrastinate_jobs ORDER BY id")
    return [str(status) for (status,) in rows]


def test_no_more_jobs_are_fetched_than_there_is_room_for(
    executor: Procrastinate, postgresql: Backend
) -> None:
    run_ids = send(executor, 5)
    worker = Worker(executor)

    with worker.at_work():
        wait_until(lambda: len(worker.taken) == 3)
        time.sleep(0.5)
        assert [*worker.taken] == run_ids[:3], "not in their order"
        assert statuses(postgresql) == ["doing"] * 3 + ["todo"] * 2

        worker.taken[run_ids[1]].set_result(None)
        wait_until(lambda: len(worker.taken) == 4)
        wait_until(lambda: statuses(postgresql) == ["doing"] * 3 + ["todo"])


def test_jobs_fetched_when_the_worker_was_stopped_reach_the_ledger(
    executor: Procrastinate, postgresql: Backend
) -> None:
    run_ids = send(executor, 5)
    worker = Worker(executor, slow_s=0.3)

    with worker.at_work():
        wait_until(lambda: worker.stop.is_set())

    assert [*worker.taken] == run_ids[:3]
    assert statuses(postgresql) == ["todo"] * 2


def test_a_database_that_stays_away_is_said_in_one_line(
    executor: Procrastinate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = executor._ledger.engine.url.set(host="127.0.0.1", port=1)
    monkeypatch.setattr(executor._ledger.engine, "url", away)
    monkeypatch.setattr(procrastinate, "_CONNECTED_WITHIN_S", 1.5)

    with pytest.raises(BrokerUnreachable, match="jobs cannot be fetched: pool"):
        executor.consume(
            lambda run_id: Future(), queues=["mail"], concurrency=1, stop=threading.Event()
        )
    assert not caplog.records
