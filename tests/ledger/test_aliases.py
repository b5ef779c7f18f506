"""A task that was renamed: what stands in the ledger under its old name is its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from fsa_cli import task
from fsa_cli.exceptions import DuplicateTask, TaskDefinitionError
from fsa_cli.ledger import control, tables
from fsa_cli.ledger.backfill import backfill, register_tasks
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.enqueue import write_run
from fsa_cli.ledger.records import Due, ExpectedInstant, NewRun, RunStatus
from fsa_cli.ledger.store import Ledger
from fsa_cli.processes.schedule_plan import plan, registered
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.locks import lock_of
from fsa_cli.tasks.registry import registry
from support.backends import Backend
from support.ledgers import make_node, now_ms, runs_of
from support.processes import Run


def close_the_day() -> None: ...


OLD = TaskDefinition(name="nightly", function=close_the_day, schedule="0 3 * * *")
NEW = TaskDefinition(
    name="close_the_day", function=close_the_day, schedule="0 3 * * *", aliases=("nightly",)
)


def register(ledger: Ledger, *tasks: TaskDefinition) -> dict[str, int]:
    return register_tasks(ledger, registered(tasks, plan(tasks)))


def new_run(name: str, **more: object) -> NewRun:
    return NewRun.of(name, "{}", executor="local", queue=None, dispatched=False, **more)


def test_its_watermark_its_pause_and_its_failures_go_on(ledger: Ledger) -> None:
    register(ledger, OLD)
    control.pause(ledger, ["nightly"], "ada")
    before_ms = now_ms(ledger) - 3_600_000
    old = update(tables.task).where(tables.task.c.namespace == ledger.namespace)
    old = old.values(watermark_ms=before_ms, consecutive_failures=3)
    ledger.write(lambda connection: connection.execute(old))

    assert register(ledger, NEW) == {"close_the_day": before_ms}
    assert register(ledger, NEW) == {"close_the_day": before_ms}

    rows = ledger.read(
        lambda connection: connection.execute(
            tables.task.select().where(
                tables.task.c.namespace == ledger.namespace, tables.task.c.name == "close_the_day"
            )
        ).all()
    )
    assert [(row.paused_by, row.consecutive_failures) for row in rows] == [("ada", 3)]


def test_with_another_schedule_it_begins_now(ledger: Ledger) -> None:
    register(ledger, OLD)
    old = update(tables.task).where(tables.task.c.namespace == ledger.namespace)
    ledger.write(lambda connection: connection.execute(old.values(watermark_ms=1)))
    hourly = TaskDefinition(
        name="hourly", function=close_the_day, schedule="0 * * * *", aliases=("nightly",)
    )

    assert register(ledger, hourly)["hourly"] > 1


def test_an_instant_that_the_version_before_has_is_not_executed_again(ledger: Ledger) -> None:
    node = make_node(ledger, "nightly")
    at_ms = node.started_ms
    old, new = Due("nightly", at_ms), Due("close_the_day", at_ms, before=("nightly",))
    later = Due("close_the_day", at_ms + 1, before=("nightly",))
    assert len(claim_due(ledger, node.id, [old], window_ms=5000).mine) == 1

    outcome = claim_due(ledger, node.id, [new, later], window_ms=5000)
    backfill(ledger, node.id, [ExpectedInstant(new), ExpectedInstant(later)], at_ms + 1, {})

    assert (outcome.others, [each.task for each in outcome.mine]) == ([new], ["close_the_day"])
    assert [(row.task, row.scheduled_ms) for row in runs_of(ledger)] == [
        ("close_the_day", at_ms + 1),
        ("nightly", at_ms),
    ]


def test_what_the_version_before_covered_and_did_not_fire_is_not_missed(ledger: Ledger) -> None:
    before = make_node(ledger, "nightly")
    node = make_node(ledger, "close_the_day")
    at_ms = before.started_ms
    behind = update(tables.node).where(tables.node.c.id == node.id)
    ledger.write(lambda c: c.execute(behind.values(covered_from_ms=at_ms + 1)))
    due = Due("close_the_day", at_ms, before=("nightly",))

    counts = backfill(ledger, node.id, [ExpectedInstant(due, "none")], at_ms, {})

    assert counts == {RunStatus.QUEUED: 1}


def test_both_versions_have_one_lock_and_one_set_of_unique_keys(ledger: Ledger) -> None:
    assert lock_of(OLD, "shop") == lock_of(NEW, "shop") == "shop/nightly"
    first = write_run(ledger, new_run("nightly", unique="order:17"))

    again = new_run("close_the_day", unique="order:17", key_task=NEW.oldest_name)

    assert write_run(ledger, again) == first


@pytest.fixture
def _empty_registry() -> Iterator[None]:
    registry.clear()
    yield
    registry.clear()


@pytest.mark.usefixtures("_empty_registry")
def test_a_name_is_of_one_task_only() -> None:
    @task(aliases=["old"])
    def new() -> None: ...

    assert registry.get("old") is new.task
    for name, aliases in (("old", []), ("other", ["old"]), ("third", ["new"])):
        with pytest.raises(DuplicateTask, match=r"the name '\w+' is of two tasks"):
            task(name=name, aliases=aliases)(lambda: None)
    for wrong in (["new"], ["a b"], [1], ["x", "x"]):
        with pytest.raises(TaskDefinitionError, match=r"alias|twice"):
            task(name="new", aliases=wrong)(lambda: None)
    assert [each.name for each in registry] == ["new"]


def test_runs_of_the_old_name_are_executed_and_it_can_still_be_named(
    fsa: Run, tmp_path: Path, sqlite: Backend
) -> None:
    source = f"""
from fastapi import FastAPI
from fastapi_sqlalchemy import DBSessionMiddleware
from fsa_cli import task

app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url={sqlite.url!r})

@task
def ship(item: str) -> str:
    return item
"""
    (tmp_path / "main.py").write_text(source)
    fsa("run-task", "ship", "tea", "--enqueue", cwd=tmp_path)
    (tmp_path / "main.py").write_text(
        source.replace("@task", '@task(aliases=["ship"])').replace("def ship", "def deliver")
    )

    ticked = fsa("scheduler", "tick", cwd=tmp_path)
    here = fsa("run-task", "ship", "cocoa", cwd=tmp_path)

    assert ticked.returncode == 0, ticked.stderr
    assert (here.stdout, "ship is deliver now" in here.stderr) == ("cocoa\n", True), here.stderr
    shown = fsa("runs", "deliver", cwd=tmp_path).stdout
    assert shown.count("succeeded") == 2, shown
    assert "ship" in shown
