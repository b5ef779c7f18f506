"""The pauses between attempts."""

from __future__ import annotations

import pytest

from fsa_cli import task
from fsa_cli.exceptions import TaskDefinitionError
from fsa_cli.runner.retry import RetryPolicy
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
