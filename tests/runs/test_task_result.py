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
from sqlalchemy import insert, update

from fastapi_sqlalchemy import db
from fsa_cli import results, task
from fsa_cli.exceptions import RunNotFound, TaskFailed
from fsa_cli.ledger import queries, tables
from fsa_cli.ledger.claim_queued import claim_queued
from fsa_cli.ledger.finish import finish
from fsa_cli.ledger.progress import write_progress
from fsa_cli.ledger.records import ClaimedRun, RunOutcome
from fsa_cli.ledger.store import Ledger
from fsa_cli.runner.outcome import progress_fields
from fsa_cli.runs.enqueue import enqueuer_here
from fsa_cli.tasks.registry import registry
from fsa_cli.tasks.task_context import Progress
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
    with pytest.raises(RunNotFound, match="there is no run"):
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
    with pytest.raises(RunNotFound, match="no longer kept"):
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


async def test_a_row_that_others_wrote_is_read_to_its_end(ship: Any) -> None:
    result = await ship.aenqueue("tea")
    ledger = enqueuer_here().ledger

    async def read_with(**values: Any) -> tuple[Any, dict[str, Any]]:
        changing = update(tables.run).where(tables.run.c.id == result.id).values(**values)
        await asyncio.to_thread(ledger.write, lambda connection: connection.execute(changing))
        (last,) = [each async for each in results.events(result.id)]
        return await results.aget(result.id), json.loads(last.partition("data: ")[2])

    for text in ("{no JSON", "[" * 100_000):
        found, told = await read_with(
            status="succeeded", result=text, started_ms=2**62, finished_ms=-(2**62)
        )
        assert (found.return_value, told["return_value"]) == (text, text)
        assert found.finished_at < found.started_at

    found, told = await read_with(status="archived", finished_ms=5)  # a later version's
    assert (found.is_finished, told["status"]) == (True, "archived")
    with pytest.raises(TaskFailed, match="is archived"):
        await found


def test_a_run_that_two_keys_name_is_one_run(ship: Any) -> None:
    result = ship.using(unique="b").enqueue("tea")
    ledger = enqueuer_here().ledger
    row = {"namespace": ledger.namespace, "task": "ship", "name": "a", "run": result.id}
    ledger.write(lambda connection: connection.execute(insert(tables.key).values(row)))

    assert results.get(result.id).status == "queued"
    assert [each.unique_key for each in queries.find(ledger, result.id[:8])] == ["a"]
    for key in ("a", "b"):
        assert [each.id for each in queries.runs(ledger, unique=key)] == [result.id]


@pytest.mark.parametrize("text", ["\0", "\ud800", "\u00e4", 5, None])
def test_what_no_run_can_have_as_its_id_names_none(ship: Any, text: Any) -> None:
    ship.enqueue("tea")
    with pytest.raises(RunNotFound, match="there is no run"):
        results.get(text)


def test_whatever_a_task_says_of_its_progress_is_kept(ship: Any) -> None:
    class Silent:
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

    result = ship.enqueue("tea")
    ledger = enqueuer_here().ledger
    said: Any
    for said, kept in (
        ((10**30, 2.5, "a\0b\ud800"), (2**63 - 1, 2, "a\\0b\\ud800")),
        ((float("nan"), "many", None), (0, 0, "None")),
        (("3", float("inf"), "password=hunter2"), (3, 0, "password=***")),
        ((-(10**30), None, Silent()), (1 - 2**63, None, "<")),
        ((1, 1, "x" * 10_000_000), (1, 1, "x" * 1000)),
    ):
        done, total, text = said
        told = progress_fields(Progress(done=done, total=total, text=text))
        write_progress(ledger, {result.id: told})
        result.refresh()
        found = result.progress
        assert found is not None
        assert (found.done, found.total) == kept[:2]
        assert found.text.startswith(kept[2])
