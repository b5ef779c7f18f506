"""The overview as lines of a terminal: what needs a look, lanes, and runs to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from fsa_cli.ledger.records import status_words
from fsa_cli.runs.lanes import Bar, Lanes
from fsa_cli.runs.overview import Overview
from fsa_cli.runs.run_pages import RunDetail, RunLine
from fsa_cli.terminal.formatting import format_duration, format_elapsed, format_time
from fsa_cli.terminal.screen import Line

__all__ = ["detail_lines", "overview_lines"]

_NAME_WIDTH = 24
_MOST_PROBLEMS = 4
_MOST_QUEUES = 3
_WIDE = 100
_STYLES = {
    **dict.fromkeys(("succeeded", "alive"), "green"),
    **dict.fromkeys(("failed", "timed_out", "interrupted", "dead"), "bold red"),
    **dict.fromkeys(("running", "queued", "handed_off"), "cyan"),
    **dict.fromkeys(("missed", "paused", "draining"), "yellow"),
}
# Each state has a sign of its own: colour is not all that tells them apart.
_SIGNS = {
    "succeeded": "▪",
    "failed": "✕",
    "timed_out": "✕",
    "interrupted": "✕",
    "missed": "▨",
    "running": "━",
    "queued": "…",
    "handed_off": "→",
    "skipped": "○",
    "cancelled": "-",
    "discarded": "-",
    "coming": "·",
}


def overview_lines(
    seen: Overview,
    runs: Sequence[RunLine],
    chosen: int,
    where: str,
    *,
    width: int,
    height: int,
) -> list[Line]:
    """The screen, without its last line.

    Args:
        runs: Those to choose from: what runs, then what has failed.
        chosen: The number of the one that is.
    """
    count = len(seen.problems)
    verdict = "all is well" if not count else f"{count} to look at"
    now = f"{seen.now:%H:%M:%S} UTC"
    room = max(width - len(now) - len(verdict) - 6, 20)  # the name gives way, the verdict does not
    lines: list[Line] = [
        [
            (_short(where, room), "bold"),
            (f"   {now}   ", ""),
            (verdict, "bold red" if count else "green"),
        ]
    ]
    lines += [[("  " + each.text, "")] for each in seen.problems[:_MOST_PROBLEMS]]
    if count > _MOST_PROBLEMS:
        lines.append([(f"  and {count - _MOST_PROBLEMS} more", "dim")])
    lines.append([])
    room = max((height - len(lines) - 6) // 2, 1)
    lines += _lane_lines(seen.lanes, room, width)
    lines += [[], *_waiting(seen), [_heading(seen)]]
    left = height - len(lines)
    first = max(min(chosen - left + 1, len(runs) - left), 0)
    cells = [_cells(run, seen.now, 28 if width >= _WIDE else 20) for run in runs]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines += [
        _run_line(run, cells[place], widths, is_chosen=place == chosen)
        for place, run in list(enumerate(runs))[first : first + left]
    ]
    return lines


def detail_lines(run: RunDetail, now: datetime, first: int, height: int) -> list[Line]:
    """A run in full, from its line *first* on."""
    lines: list[Line] = [
        [
            (f"{run.line.task}  {run.line.id}  ", "bold"),
            (status_words(run.line.status), _STYLES.get(run.line.status, "")),
        ]
    ]
    for label, moment in run.timeline:
        lines.append([(f"  {moment:%Y-%m-%d %H:%M:%S}  {label}", "")])
    for each in run.attempts:
        status = status_words(each.status)
        told = f"attempt {each.number}  {status}  {each.place}  {each.said}"
        lines.append([(f"  {each.at:%Y-%m-%d %H:%M:%S}  {told}", "")])
    facts = {
        "asked for by": run.line.requested_by,
        "on": run.line.place,
        "progress": run.progress,
        "arguments": run.arguments,
        "result": run.result,
        "error": f"{run.error_type or ''}: {run.error or ''}".strip(": "),
    }
    for name, value in facts.items():
        if value:
            lines += _block(name, value)
    for frame in run.own_frames:
        lines.append([(f"  {frame.place} in {frame.function}", "bold")])
        lines.append([(f"    {frame.source}", "")])
    if run.traceback:
        lines += _block("traceback", run.traceback)
    return lines[first : first + height]


def _block(name: str, text: str) -> list[Line]:
    head, *rest = text.splitlines() or [""]
    if not rest:
        return [[(f"{name}  ", "dim"), (head, "")]]
    return [[(name, "dim")], *([("  " + each, "")] for each in (head, *rest))]


def _lane_lines(lanes: Lanes, room: int, width: int) -> list[Line]:
    cells = max(width - _NAME_WIDTH - 1, 20)
    marks = [" "] * cells
    free = 0
    for place, label in lanes.ticks:
        start = min(int(place * cells / 100), cells - len(label))
        if start >= free:  # one that has no room is left out
            marks[start : start + len(label)] = label
            free = start + len(label) + 1
    lines: list[Line] = [[(" " * _NAME_WIDTH + " " + "".join(marks), "dim")]]
    for lane in lanes.lanes[:room]:
        name = _short(lane.task, _NAME_WIDTH - 1)
        style = "bold red" if lane.note.startswith("failed") else ""
        lines.append([(name.ljust(_NAME_WIDTH), style), (" ", ""), *_drawn(lane.bars, cells)])
    hidden = lanes.hidden + max(len(lanes.lanes) - room, 0)
    if hidden:
        more = "1 more lane" if hidden == 1 else f"{hidden} more lanes"
        lines.append([(f"{more}: fsa console, or a higher window", "dim")])
    return lines


def _drawn(bars: Sequence[Bar], cells: int) -> list[tuple[str, str]]:
    row: list[tuple[str, str]] = [(" ", "")] * cells
    row[cells // 2] = ("│", "dim")
    for bar in bars:
        start = min(int(bar.start * cells / 100), cells - 1)
        end = min(max(int((bar.start + bar.width) * cells / 100), start + 1), cells)
        sign = _SIGNS.get(bar.status, "▪"), _STYLES.get(bar.status, "dim")
        row[start:end] = [sign] * (end - start)
    return row


def _waiting(seen: Overview) -> list[Line]:
    waiting = [
        f"{line.number}{'+' if line.more else ''} {status_words(line.status)} in {line.name}, "
        f"{f'{line.later} for later, ' if line.later else ''}"
        f"oldest {format_duration(seen.now - line.oldest)}"
        for line in seen.waiting
    ]
    if len(waiting) > _MOST_QUEUES:
        waiting[_MOST_QUEUES - 1 :] = [f"and {len(waiting) - _MOST_QUEUES + 1} more queues"]
    nodes = [node for node in seen.nodes if node.lives]
    alive = ", ".join(f"{node.role} {node.host}:{node.pid}" for node in nodes[:4])
    more = f" and {len(nodes) - 4} more" if len(nodes) > 4 else ""
    return [
        *(
            [("waiting  " if place == 0 else " " * 9, "dim"), (text, "")]
            for place, text in enumerate(waiting or ["nothing"])
        ),
        [("alive    ", "dim"), ((alive or "nobody") + more, "" if alive else "bold red")],
        [],
    ]


def _heading(seen: Overview) -> tuple[str, str]:
    running = f"{len(seen.running)}{'+' if seen.running_more else ''}"
    return f"{running} running; failed since yesterday below", "dim"


def _cells(run: RunLine, now: datetime, name_width: int) -> tuple[str, str, str, str]:
    """What stands before what it said: its task, status, time and duration."""
    took = "" if run.duration_ms is None else format_elapsed(run.duration_ms)
    return _short(run.task, name_width), status_words(run.status), format_time(run.at, now), took


def _run_line(
    run: RunLine, cells: Sequence[str], widths: Sequence[int], *, is_chosen: bool
) -> Line:
    name, status, at, took = cells
    of_name, of_status, of_at, of_took = widths
    around = " reverse" if is_chosen else ""
    return [
        (f"{'>' if is_chosen else ' '} {run.id[:8]}  {name:<{of_name}}  ", around.strip()),
        (f"{status:<{of_status}}", (_STYLES.get(run.status, "") + around).strip()),
        (f"  {at:>{of_at}}  {took:>{of_took}}  ", around.strip()),
        (run.said, around.strip()),
    ]


def _short(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"
