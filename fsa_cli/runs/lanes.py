"""The lanes: a line of bars for each task, what was on the left of now, what comes on the right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row

from fsa_cli.ledger.time import instant_of
from fsa_cli.runs.coming import ComingInstants
from fsa_cli.schedules.schedule import Schedule
from fsa_cli.terminal.formatting import format_elapsed

__all__ = ["SPANS", "Bar", "Lane", "Lanes", "draw"]

#: How far the lanes reach on each side of now, by the name in an address.
SPANS: Mapping[str, timedelta] = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "24h": timedelta(hours=24),
}
#: So many runs are drawn, the latest: to read a day of a busy ledger takes too long.
MOST_RUNS = 2000
_LEAST_WIDTH = 0.28
_MOST_CELLS, _LEAST_CELLS, _ALL_CELLS = 240, 40, 4000
_MOST_COMING = 40
_WORST = (
    "failed",
    "timed_out",
    "interrupted",
    "missed",
    "running",
    "skipped",
    "cancelled",
    "discarded",
)


@dataclass(frozen=True, slots=True)
class Bar:
    """One run, or several of one status that nobody could tell apart at this width.

    Attributes:
        start, width: In percent of the lane.
        run_id: None of several, and of what is to come.
        since_ms, until_ms: The instants of several.
    """

    status: str
    start: float
    width: float
    label: str
    run_id: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Lane:
    """The line of one task; `summary` says in words what its bars show."""

    task: str
    note: str
    bars: Sequence[Bar]
    summary: str


@dataclass(frozen=True, slots=True)
class Lanes:
    """The lanes of some tasks.

    Attributes:
        ticks: Marks of the time line: their place in percent, and their text.
        hidden: How many tasks have no lane.
        read_from: Not None: what came before is not drawn, there are too many runs.
    """

    span: str
    start: datetime
    now: datetime
    end: datetime
    ticks: Sequence[tuple[float, str]]
    lanes: Sequence[Lane]
    hidden: int
    read_from: datetime | None


@dataclass(frozen=True, slots=True)
class _Scale:
    start_ms: int
    now_ms: int
    end_ms: int

    def at(self, ms: int) -> float:
        place = 100 * (ms - self.start_ms) / (self.end_ms - self.start_ms)
        return round(min(max(place, 0.0), 100.0), 2)


def draw(
    tasks: Iterable[tuple[str, str]],
    recent: Sequence[Row[Any]],
    running: Sequence[Row[Any]],
    schedules: Mapping[str, Schedule],
    coming: ComingInstants,
    *,
    now_ms: int,
    span: str,
    most: int,
    paused: Iterable[str] = (),
) -> Lanes:
    """The lanes of *tasks*, in their order.

    Args:
        tasks: The name of each, and a note for its line.
        recent: The runs of `run_search.recent`, at most `MOST_RUNS`, the newest first.
        running: Those that go on, whenever they began.
        most: So many lanes are drawn.
        paused: Tasks of which nothing is to come.
    """
    reach_ms = SPANS[span] // timedelta(milliseconds=1)
    scale = _Scale(now_ms - reach_ms, now_ms, now_ms + reach_ms)
    by_task: dict[str, dict[str, Row[Any]]] = defaultdict(dict)
    for row in (*recent, *running):
        by_task[row.task][row.id] = row
    wanted = list(tasks)
    stopped = set(paused)
    lanes = []
    cells = min(max(_ALL_CELLS // max(min(len(wanted), most), 1), _LEAST_CELLS), _MOST_CELLS)
    for name, note in wanted[:most]:
        past = _past(by_task.get(name, {}).values(), scale, cells)
        schedule = None if name in stopped else schedules.get(name)
        future = _future(name, schedule, coming, scale) if schedule is not None else []
        lanes.append(Lane(name, note, [*past, *future], _summary(past, future)))
    return Lanes(
        span=span,
        start=instant_of(scale.start_ms),
        now=instant_of(now_ms),
        end=instant_of(scale.end_ms),
        ticks=_ticks(scale),
        lanes=lanes,
        hidden=max(len(wanted) - most, 0),
        read_from=instant_of(recent[-1].scheduled_ms) if len(recent) >= MOST_RUNS else None,
    )


def _past(rows: Iterable[Row[Any]], scale: _Scale, cells: int) -> list[Bar]:
    """The bars of what was. Short runs of one status in one cell of the lane are one bar."""
    drawn: dict[tuple[str, int], list[Row[Any]]] = defaultdict(list)
    bars = []
    for row in rows:
        begun_ms = ended_ms = row.started_ms or row.scheduled_ms
        if row.status == "running":
            ended_ms = scale.now_ms
        elif row.started_ms is not None:  # what never started has no length
            ended_ms = row.finished_ms or begun_ms
        start, end = scale.at(begun_ms), scale.at(ended_ms)
        if ended_ms < scale.start_ms or begun_ms > scale.end_ms:
            continue
        if end - start > _LEAST_WIDTH:
            bars.append(_bar(row, start, end - start))
        else:
            drawn[row.status, int(start * cells / 100)].append(row)
    for (status, _), same in drawn.items():
        first = min(same, key=lambda row: int(row.scheduled_ms))
        start = scale.at(first.started_ms or first.scheduled_ms)
        least = _LEAST_WIDTH if first.started_ms is not None else 2 * _LEAST_WIDTH
        width = round(min(least, 100 - start), 2)
        if len(same) == 1:
            bars.append(_bar(first, start, width))
            continue
        last_ms = max(row.scheduled_ms for row in same)
        until = scale.at(max(row.started_ms or row.scheduled_ms for row in same))
        bars.append(
            Bar(
                status,
                start,
                round(max(until - start, width), 2),
                f"{len(same)} {status.replace('_', ' ')} from {_clock(first.scheduled_ms)}",
                since_ms=first.scheduled_ms,
                until_ms=last_ms,
            )
        )
    # What is worst is drawn last, and so above the others.
    order = {status: place for place, status in enumerate(reversed(_WORST), 1)}
    return sorted(bars, key=lambda bar: (order.get(bar.status, 0), bar.start))


def _bar(row: Row[Any], start: float, width: float) -> Bar:
    begun_ms = row.started_ms or row.scheduled_ms
    took = ""
    if row.finished_ms is not None and row.started_ms is not None:
        took = f", took {format_elapsed(max(row.finished_ms - row.started_ms, 0))}"
    label = f"{row.status.replace('_', ' ')} {_clock(begun_ms)}{took}"
    return Bar(row.status, start, round(width, 2), label, run_id=row.id)


def _future(name: str, schedule: Schedule, coming: ComingInstants, scale: _Scale) -> list[Bar]:
    instants = coming.of(name, schedule, scale.now_ms, scale.end_ms, _MOST_COMING)
    if not instants:
        return []
    if len(instants) == _MOST_COMING:  # side by side they would be one grey bar
        start = scale.at(instants[0])
        return [Bar("coming", start, round(100 - start, 2), f"to come {schedule.text}")]
    width = _LEAST_WIDTH
    return [
        Bar("coming", round(min(scale.at(ms), 100 - width), 2), width, f"to come {_clock(ms)}")
        for ms in instants
    ]


def _summary(past: Sequence[Bar], future: Sequence[Bar]) -> str:
    counts: dict[str, int] = defaultdict(int)
    for bar in past:
        counts[bar.status.replace("_", " ")] += 1 if bar.run_id else int(bar.label.split()[0])
    said = [f"{number} {status}" for status, number in sorted(counts.items())]
    if future:
        said.append(future[0].label.replace("to come", "next"))
    return ", ".join(said) or "nothing"


_STEPS = tuple(timedelta(minutes=m) for m in (5, 15, 30, 60, 120, 240, 480, 720))


def _ticks(scale: _Scale) -> list[tuple[float, str]]:
    span_ms = scale.end_ms - scale.start_ms
    step_ms = next(
        (s for each in _STEPS if span_ms / (s := each // timedelta(milliseconds=1)) <= 8),
        24 * 3600 * 1000,
    )
    first_ms = scale.start_ms - scale.start_ms % step_ms + step_ms
    return [
        (scale.at(ms), instant_of(ms).strftime("%H:%M"))
        for ms in range(first_ms, scale.end_ms, step_ms)
    ]


def _clock(ms: int) -> str:
    return instant_of(ms).strftime("%H:%M:%S")
