"""`on_failure` functions that end, or do not return."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fsa_cli.ledger.records import RunOutcome
from fsa_cli.processes import notifications
from fsa_cli.processes.notifications import Notifications
from fsa_cli.runner.execute import failed_result
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.tasks.definition import TaskDefinition
from support.waiting import wait_until

Fail = Callable[..., None]


@pytest.fixture
def told() -> list[str]:
    """The tasks of whose failure somebody was told."""
    return []


@pytest.fixture
def sent() -> Iterator[Notifications]:
    made = Notifications()
    yield made
    made.stop()


@pytest.fixture
def fail(sent: Notifications) -> Fail:
    """`fail(name, hook)`: a run of a task fails whose `on_failure` is *hook*."""

    def failed(name: str, hook: Callable[[RunResult], object]) -> None:
        task = TaskDefinition(name=name, function=print, on_failure=(hook,))
        run = Run(task=task)
        result = failed_result(run, LookupError("no such user"))
        outcome = RunOutcome(
            run_id=run.run_id, token="", task=name, status="failed", started_ms=0, finished_ms=1
        )
        sent.run_finished(run, result, outcome)

    return failed


def test_a_function_that_exits_does_not_end_those_of_the_other_tasks(
    fail: Fail, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def leave(result: RunResult) -> None:
        sys.exit(3)

    fail("first", leave)
    fail("second", lambda result: told.append(result.task.name))

    wait_until(lambda: told == ["second"], within_s=5)
    assert "leave failed" in caplog.text


def test_a_function_that_does_not_return_is_named_and_keeps_no_others_waiting(
    fail: Fail,
    told: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notifications, "_LONG_S", 0.2)
    released = threading.Event()

    def hang(result: RunResult) -> None:
        released.wait(60)

    fail("first", hang)
    fail("second", lambda result: told.append(result.task.name))

    wait_until(lambda: told == ["second"], within_s=5)
    released.set()
    assert "hang has not returned after 0.2 s" in caplog.text


def test_what_nobody_was_told_of_is_counted_at_the_end(
    fail: Fail, sent: Notifications, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    released, begun = threading.Event(), threading.Event()

    def hang(result: RunResult) -> None:
        begun.set()
        released.wait(60)

    for name in ("first", "second", "third"):
        fail(name, hang)
    assert begun.wait(5)
    began_s = time.monotonic()
    sent.stop(0.1)

    assert time.monotonic() - began_s < 5
    assert "ends before 3 failures have been told" in caplog.text
    released.set()
