"""`TaskResult`, `results.get` and `results.events`: a run's state and answer, from any process."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from fastapi_sqlalchemy import db
from fsa_cli import results, task
from fsa_cli.exceptions import TaskFailed, UsageError
from fsa_cli.ledger import tables
from fsa_cli.ledger.claim_queued import claim_queued
from fsa_cli.ledger.finish import finish
from fsa_cli.ledger.progress import write_progress
from fsa_cli.ledger.records import ClaimedRun, RunOutcome
from fsa_cli.ledger.store import Ledger
from fsa_cli.runs.enqueue import enqueuer_here
from fsa_cli.tasks.registry import registry
from support.backends import Backend
from support.ledgers import make_node, now_ms


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def ship(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    backend: Backend = request.getfixturevalue(request.param)
    monkeypatch.chdir(tmp_path)
    registry.clear()

    @task
    def ship(item: str) -> list[str]:
        return [item]

    db.configure(db_url=backend.url)
    yield ship
    db.dispose()
    registry.clear()


def start(ledger: Ledger) -> ClaimedRun:
    (claimed,) = claim_queued(ledger, make_node(ledger).id, {"ship": None}, most=1).runs
    return claimed


def end(ledger: Ledger, claimed: ClaimedRun, status: str, **more: Any) -> None:
    at_ms = now_ms(ledger)
    told = {"started_ms": at_ms - 20, "finished_ms": at_ms, "status": status, **more}
    outcome = RunOutcome(run_id=claimed.run_id, token=claimed.token, task="ship", **told)
    assert finish(ledger, [outcome]) == set()


def test_a_result_says_how_its_run_fares(ship: Any) -> None:
    began = datetime.now(UTC)
    result = ship.enqueue("tea")
    ledger = enqueuer_here().ledger
    assert (result.status, result.attempts, result.task) == ("queued", 0, "ship")
    assert abs((result.enqueued_at - began).total_seconds()) < 5
    with pytest.raises(ValueError, match="has not finished"):
        result.return_value  # noqa: B018
    with pytest.raises(TimeoutError, match="is queued"):
        result.wait(timeout_s=0.05)
    assert result.run_after is not None

    claimed = start(ledger)
    write_progress(ledger, {claimed.run_id: (1, 4, "packing")})
    found = results.get(result.id)
    assert found == result
    assert (found.status, found.attempts, found.is_finished) == ("running", 1, False)
    assert found.progress is not None
    assert (found.progress.done, found.progress.total, found.progress.text) == (1, 4, "packing")

    end(ledger, claimed, "failed", error_type="LookupError", error="no tea", retry_in_ms=0)
    found.refresh()
    assert (found.status, found.attempts, found.finished_at) == ("queued", 1, None)
    (error,) = found.errors
    assert (error.type, error.message) == ("LookupError", "no tea")

    later = threading.Timer(0.1, lambda: end(ledger, start(ledger), "succeeded", result='["tea"]'))
    later.start()
    assert result.wait(timeout_s=10) == ["tea"]
    later.join()
    assert (result.status, result.attempts, result.errors) == ("succeeded", 2, [])
    assert result.started_at is not None
    assert result.finished_at is not None
    assert result.started_at < result.finished_at
    with pytest.raises(UsageError, match="there is no run"):
        results.get("no such run")


async def test_a_coroutine_awaits_it_and_a_failure_is_raised(ship: Any) -> None:
    result = await ship.aenqueue("tea")
    ledger = enqueuer_here().ledger
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(result, 0.05)
    end(ledger, start(ledger), "failed", error_type="LookupError", error="no tea")
    with pytest.raises(TaskFailed, match="is failed: LookupError: no tea"):
        await result
    await ledger_forgets(ledger)
    with pytest.raises(UsageError, match="no longer kept"):
        await result.arefresh()


async def ledger_forgets(ledger: Ledger) -> None:
    forgetting = update(tables.run).values(namespace="another")
    await asyncio.to_thread(ledger.write, lambda connection: connection.execute(forgetting))


async def test_events_follow_a_run_to_its_end(ship: Any) -> None:
    result = await ship.aenqueue("tea")
    ledger = enqueuer_here().ledger
    heard: list[tuple[str, dict[str, Any]]] = []
    async for event in results.events(result.id):
        kind, data = event.rstrip().split("\n")
        assert event.endswith("\n\n")
        heard.append((kind, json.loads(data.removeprefix("data: "))))
        if len(heard) == 1:
            claimed = start(ledger)
        elif len(heard) == 2:
            write_progress(ledger, {claimed.run_id: (3, None, "")})
        elif len(heard) == 3:
            end(ledger, claimed, "succeeded", result='["tea"]')

    kinds = [kind for kind, _ in heard]
    assert kinds == [f"event: {each}" for each in ("queued", "running", "running", "succeeded")]
    assert heard[2][1]["progress"] == {"text": "", "done": 3, "total": None}
    assert heard[3][1]["return_value"] == ["tea"]
