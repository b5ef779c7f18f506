"""What it takes to draw a page of many tasks, in calls: a clock on a busy machine says little."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any

import pytest
from starlette.requests import Request

from fsa_cli.console import drawing, rendering
from fsa_cli.ledger.run_search import Drawn
from fsa_cli.runs import lanes
from fsa_cli.runs.coming import ComingInstants
from fsa_cli.runs.task_pages import TaskLine
from fsa_cli.schedules.schedule import Schedule, parse_schedule

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
AROUND = {
    "current": "tasks",
    "navigation": {},
    "allowed": set(),
    "person": "ann",
    "namespace": "shop",
    "where": "here",
    "environment": None,
    "asks_for": None,
    "etag": "",
    "can_rehearse": False,
    "now": NOW,
}


def calls(work: Callable[[], object]) -> int:
    """How many functions in Python *work* calls, once it was done before."""
    number = 0

    def count(frame: FrameType, kind: str, _: object) -> None:
        nonlocal number
        number += kind == "call"

    work()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return number


def line(number: int) -> TaskLine:
    return TaskLine(
        name=f"task_{number}",
        summary="Do it.",
        schedule="*/3 * * * *",
        zone="UTC",
        next_at=NOW + timedelta(minutes=number),
        paused_at=None,
        paused_by=None,
        failures=0,
        last_success_at=NOW,
        last_id=f"{number:032x}",
        last_status="succeeded",
        last_at=NOW - timedelta(minutes=number),
        is_here=True,
        is_known=True,
    )


def test_a_line_of_the_tasks_takes_at_most_160_calls() -> None:
    request = Request({"type": "http", "headers": []})

    def page(number: int) -> int:
        context: dict[str, Any] = {**AROUND, "is_kept": True}
        context["tasks"] = [line(each) for each in range(number)]
        return calls(lambda: rendering.page(request, "tasks.html", context))

    assert (page(200) - page(100)) / 100 <= 160


def test_a_bar_of_a_lane_takes_at_most_ten_calls() -> None:
    scale = lanes.Scale.around(NOW_MS, "1h")

    def draw(number: int) -> int:
        ended = [NOW_MS - each * 10_000 for each in range(number)]
        rows: list[Drawn] = [
            ("tea", "failed", 1, ms, f"{ms:x}", ms, ms + 40, ms + 900, ms) for ms in ended
        ]

        def work() -> str:
            drawn = lanes.draw([("tea", "")], rows, [], {}, ComingInstants(), scale)
            return drawing.lane_bars(drawn.lanes)

        return calls(work)

    assert (draw(200) - draw(100)) / 100 <= 10


@pytest.mark.parametrize(
    ("run_id", "linked"),
    [("5b1e03aa" * 4, "5b1e03aa5b"), ("a foreign one/1", "a%20foreign%20one%2F1"), ("1" * 31,) * 2],
)
def test_a_bar_links_its_run_by_as_much_of_the_id_as_tells_it(run_id: str, linked: str) -> None:
    rows: list[Drawn] = [("tea", "failed", 1, NOW_MS, run_id, NOW_MS, NOW_MS, NOW_MS, NOW_MS)]
    scale = lanes.Scale.around(NOW_MS, "1h")
    drawn = lanes.draw([("tea", "")], rows, [], {}, ComingInstants(), scale)
    assert f'href="run?id={linked}"' in drawing.lane_bars(drawn.lanes)


def test_what_comes_all_the_time_is_told_by_a_few_instants() -> None:
    coming, asked = CountedInstants(), parse_schedule("*/3 * * * *", "UTC")
    tasks = [(f"task{number}", "") for number in range(100)]
    schedules = {name: asked for name, _ in tasks}

    drawn = lanes.draw(tasks, [], [], schedules, coming, lanes.Scale.around(NOW_MS, "24h"))

    assert {len(lane.bars) for lane in drawn.lanes} == {1}
    assert coming.most == 12


class CountedInstants(ComingInstants):
    """Knows how many instants of a task were wanted."""

    most = 0

    def of(
        self, name: str, schedule: Schedule, after_ms: int, until_ms: int, limit: int
    ) -> Sequence[int]:
        self.most = max(self.most, limit)
        return super().of(name, schedule, after_ms, until_ms, limit)
