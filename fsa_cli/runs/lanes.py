"""The lanes: a line of bars for each task, what was on the left of now, what comes on the right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Row

from fsa_cli.ledger.records import status_words
from fsa_cli.ledger.run_search import Drawn
from fsa_cli.ledger.time import instant_of
from fsa_cli.runs.coming import ComingInstants
from fsa_cli.schedules.schedule import Schedule
from fsa_cli.terminal.formatting import format_elapsed

__all__ = ["MOST_RUNS", "SPANS", "Bar", "Lane", "Lanes", "Scale", "draw"]

#: How far the lanes reach on each side of now, by the name in an address.
SPANS: Mapping[str, timedelta] = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "24h": timedelta(hours=24),
}
#: So many runs are drawn, the latest: to read a day of a busy ledger takes too long.
MOST_RUNS = 5000
_LEAST_WIDTH = 0.28
_MOST_CELLS, _LEAST_CELLS, _ALL_CELLS = 240, 12, 1200
_FEW_COMING, _MOST_COMING = 12, 40
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
_ORDER = {status: place for place, status in enumerate(reversed(_WORST), 1)}


class Bar(NamedTuple):
    """One run, or several of one status that nobody could tell apart at this width.

    A page has a thousand of them: to make a frozen dataclass takes five times as long.

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
class Scale:
    """From an instant to its place in a lane, in percent."""

    span: str
    start_ms: int
    now_ms: int
    end_ms: int

    @classmethod
    def around(cls, now_ms: int, span: str) -> Scale:
        reach_ms = SPANS[span] // timedelta(milliseconds=1)
        return cls(span, now_ms - reach_ms, now_ms, now_ms + reach_ms)

    def at(self, ms: int) -> float:
        if ms <= self.start_ms:
            return 0.0
        if ms >= self.end_ms:
            return 100.0
        return round(100 * (ms - self.start_ms) / (self.end_ms - self.start_ms), 2)

    @property
    def least_ms(self) -> int:
        """What is shorter is as long as that, so that it is seen."""
        return int((self.end_ms - self.start_ms) * _LEAST_WIDTH / 100)

    def cell_ms(self, lanes: int) -> int:
        """Short runs that begin within that are one bar: nobody could tell them apart."""
        cells = min(max(_ALL_CELLS // max(lanes, 1), _LEAST_CELLS), _MOST_CELLS)
        return (self.end_ms - self.start_ms) // cells


def draw(
    tasks: Sequence[tuple[str, str]],
    drawn: Sequence[Drawn],
    running: Sequence[Row[Any]],
    schedules: Mapping[str, Schedule],
    coming: ComingInstants,
    scale: Scale,
    *,
    hidden: int = 0,
    paused: Collection[str] = (),
) -> Lanes:
    """The lanes of *tasks*, in their order.

    Args:
        tasks: The name of each, and a note for its line.
        drawn: The rows of `run_search.drawn`, of at most `MOST_RUNS` runs.
        running: Those that go on, whenever they began.
        hidden: How many other tasks there are.
        paused: Tasks of which nothing is to come.
    """
    past: dict[str, list[Bar]] = defaultdict(list)
    for row in running:
        begun_ms = row.started_ms or row.scheduled_ms
        start = scale.at(begun_ms)
        width = round(max(scale.at(scale.now_ms) - start, _LEAST_WIDTH), 2)
        label = f"running {_clock(begun_ms)}"
        past[row.task].append(Bar("running", start, width, label, run_id=row.id))
    cell_ms = scale.cell_ms(len(tasks))
    cells: dict[str, list[Drawn]] = defaultdict(list)
    read = 0
    for some in drawn:
        task, status, number = some[:3]
        read += number
        if number > 1 and status == "succeeded":
            cells[task].append(some)
            continue
        bar = _bar(some, scale) if number == 1 else _bars([some], scale)
        if bar.start < 100 and bar.start + bar.width > 0:
            past[task].append(bar)
    joined_ms = cell_ms if len(tasks) * _LEAST_CELLS >= _ALL_CELLS else 0
    for task, found in cells.items():
        past[task] += [_bars(rows, scale) for rows in _in_a_row(found, joined_ms)]
    lanes = []
    for name, note in tasks:
        # What is worst is drawn last, and so above the others.
        bars = sorted(past.get(name, ()), key=_place)
        schedule = None if name in paused else schedules.get(name)
        future = _future(name, schedule, coming, scale, cell_ms) if schedule is not None else []
        lanes.append(Lane(name, note, [*bars, *future], _summary(bars, future)))
    is_cut = read >= MOST_RUNS
    return Lanes(
        span=scale.span,
        start=instant_of(scale.start_ms),
        now=instant_of(scale.now_ms),
        end=instant_of(scale.end_ms),
        ticks=_ticks(scale),
        lanes=lanes,
        hidden=hidden,
        read_from=instant_of(min(some[5] for some in drawn)) if is_cut else None,
    )


def _place(bar: Bar) -> tuple[int, float]:
    return _ORDER.get(bar.status, 0), bar.start


def _in_a_row(cells: list[Drawn], within_ms: int) -> list[list[Drawn]]:
    """The cells in order, those that follow within that time together: they are one bar."""
    found: list[list[Drawn]] = []
    last_ms = None
    for row in sorted(cells, key=itemgetter(3)):
        begin_ms = row[3]
        if last_ms is None or begin_ms - last_ms > within_ms:
            found.append([])
        found[-1].append(row)
        last_ms = begin_ms
    return found


def _bar(row: Drawn, scale: Scale) -> Bar:
    _, status, _, _, run_id, scheduled_ms, started_ms, finished_ms, _ = row
    begun_ms = scheduled_ms if started_ms is None else started_ms
    start = scale.at(begun_ms)
    width, took = 2 * _LEAST_WIDTH, ""  # what never started has no length
    if started_ms is not None:
        width = _LEAST_WIDTH
        if finished_ms is not None:
            width = scale.at(finished_ms) - start
            if width > 0 or scale.start_ms <= finished_ms:
                width = max(width, _LEAST_WIDTH)
            took = f", took {format_elapsed(max(finished_ms - started_ms, 0))}"
    label = f"{status_words(status)} {_clock(begun_ms)}{took}"
    return Bar(status, start, round(min(width, 100 - start), 2), label, run_id)


def _bars(rows: Sequence[Drawn], scale: Scale) -> Bar:
    status, first_ms, last_ms = rows[0][1], rows[0][5], rows[-1][-1]
    start, end = scale.at(first_ms), scale.at(last_ms)
    width = round(max(end - start - _LEAST_WIDTH / 2, min(_LEAST_WIDTH, 100 - start)), 2)
    number = sum([row[2] for row in rows])
    label = f"{number} {status_words(status)} from {_clock(first_ms)}"
    return Bar(status, start, width, label, None, first_ms, last_ms)


def _future(
    name: str, schedule: Schedule, coming: ComingInstants, scale: Scale, cell_ms: int
) -> list[Bar]:
    # To compute an instant takes 20 microseconds, and a few tell what comes all the time.
    for limit in (_FEW_COMING, _MOST_COMING):
        instants = coming.of(name, schedule, scale.now_ms, scale.end_ms, limit)
        if not instants:
            return []
        between = len(instants) - 1
        is_dense = between > 1 and instants[-1] - instants[0] < between * cell_ms
        if is_dense or len(instants) == _MOST_COMING:  # side by side they would be one grey bar
            start = scale.at(instants[0])
            return [Bar("coming", start, round(100 - start, 2), f"to come {schedule.text}")]
        if len(instants) < limit:
            break
    width = _LEAST_WIDTH
    return [
        Bar("coming", round(min(scale.at(ms), 100 - width), 2), width, f"to come {_clock(ms)}")
        for ms in instants
    ]


def _summary(past: Sequence[Bar], future: Sequence[Bar]) -> str:
    counts: dict[str, int] = defaultdict(int)
    for bar in past:
        counts[status_words(bar.status)] += 1 if bar.run_id else int(bar.label.split()[0])
    said = [f"{number} {status}" for status, number in sorted(counts.items())]
    if future:
        said.append(future[0].label.replace("to come", "next"))
    return ", ".join(said) or "nothing"


_STEPS = tuple(timedelta(minutes=m) for m in (5, 15, 30, 60, 120, 240, 480, 720))


def _ticks(scale: Scale) -> list[tuple[float, str]]:
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
    return _clock_of(ms // 1000 % 86_400)


@lru_cache(maxsize=4096)  # tasks run at the same times
def _clock_of(second: int) -> str:
    return f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
