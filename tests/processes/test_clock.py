"""The database's clock between two readings."""

import time

import pytest

from fsa_cli.processes.clock import Clock


def assert_tells(clock: Clock, database_ms: int, at_s: float) -> None:
    """*clock* runs from *database_ms* at the monotonic *at_s* on."""
    before_s = time.monotonic()
    told_ms = clock.now_ms
    after_s = time.monotonic()
    assert (before_s - at_s) * 1000 - 3 <= told_ms - database_ms <= (after_s - at_s) * 1000 + 3


def test_a_slow_answer_does_not_spoil_what_a_quick_one_told() -> None:
    clock, now_s = Clock(), time.monotonic()
    clock.set(1_000_000, now_s - 0.002, now_s)

    # Answered at once, and half a second on its way back: in the middle it was 249 ms earlier.
    clock.set(1_000_003, now_s + 0.001, now_s + 0.5)

    assert_tells(clock, 1_000_001, now_s)


def test_an_answer_that_is_no_worse_counts_and_so_does_one_after_a_long_time() -> None:
    clock, now_s = Clock(), time.monotonic()
    clock.set(1_000_000, now_s - 1, now_s - 0.9)
    clock.set(1_001_000, now_s, now_s + 0.001)
    assert_tells(clock, 1_001_000, now_s)

    clock.set(1_101_020, now_s + 100, now_s + 100.09)  # they run apart meanwhile

    assert_tells(clock, 1_101_020, now_s + 100.045)


@pytest.mark.parametrize("by_ms", [-3_600_000, -400, 400, 30_000])
def test_a_clock_that_somebody_has_set_is_followed_at_once(by_ms: int) -> None:
    clock, now_s = Clock(), time.monotonic()
    clock.set(10_000_000, now_s - 0.001, now_s)

    clock.set(10_005_000 + by_ms, now_s + 4.9, now_s + 5.1)

    assert_tells(clock, 10_005_000 + by_ms, now_s + 5)
