"""The pauses between attempts."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from fsa_cli import Retry, task
from fsa_cli.exceptions import TaskDefinitionError
from fsa_cli.ledger.records import ClaimedRun
from fsa_cli.processes.subprocess_run import SubprocessRun
from fsa_cli.runner.retry import RetryPolicy, asked_pause_s
from fsa_cli.runner.run import Run
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.registry import registry


def test_pauses_double_up_to_a_limit_and_do_not_meet() -> None:
    exact = RetryPolicy(retries=9, backoff_s=1, longest_s=10)
    assert [exact.pause_s(attempt) for attempt in (1, 2, 4, 5, 500)] == [1, 2, 8, 10, 10]

    registry.clear()

    @task(retries=9, backoff_s=2, max_backoff_s=20)
    def work() -> None: ...

    registry.clear()
    policy = RetryPolicy.of(work.task)
    pauses = [policy.pause_s(9) for _ in range(200)]
    assert 18 <= min(pauses) < 19 < 21 < max(pauses) <= 22


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"retry_on": "LookupError"}, "retry_on"),
        ({"retry_on": 5}, "retry_on"),
        ({"backoff_jitter": 2}, "backoff_jitter=2"),
        ({"max_backoff_s": -1}, "max_backoff_s"),
        ({"priority": 101}, "priority=101"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(TaskDefinitionError, match=said):

        @task(**options)  # type: ignore[call-overload, untyped-decorator, unused-ignore]
        def work() -> None: ...

    registry.clear()


def test_a_retry_that_says_no_time_waits_as_after_a_failure_and_none_for_ever() -> None:
    class Bare(Retry):
        def __init__(self, in_s: object = None) -> None:
            if in_s is not None:
                self.in_s = in_s  # type: ignore[assignment]

    given = (None, "soon", float("nan"), -1, 1e300, 10**400, 5)
    assert [asked_pause_s(Bare(in_s)) for in_s in given] == [
        *[None] * 4,
        *[100 * 365 * 86400] * 2,
        5,
    ]


def test_an_error_of_another_process_is_a_retry_only_if_that_says_so() -> None:
    """Celery has a `Retry` too, and tasks have classes of their own."""
    definition = TaskDefinition(name="ship", function=print)
    claimed = ClaimedRun("run", "token", "ship", 0, "manual", 1, "{}")
    ended = {"status": "failed", "value": None, "error": "no", "traceback": None}

    def pause_s(**more: object) -> float | None:
        told = json.dumps({**ended, **more, "retry_in_s": None, "at_commit": False})
        started = datetime.now(UTC)
        run = Run(task=definition, run_id="run")
        result = SubprocessRun(claimed, {})._result(run, told, started, 0.0, late=False)
        return RetryPolicy().pause_after_s(result)

    assert pause_s(error_type="Retry", asks_again=False) is None
    assert pause_s(error_type="Closed", asks_again=True) == 1.0
