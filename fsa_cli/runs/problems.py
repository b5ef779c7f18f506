"""What needs a look, each thing with the command that shows or cures it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row

from fsa_cli.ledger.glance import Glance
from fsa_cli.ledger.queries import Overview
from fsa_cli.ledger.records import OPEN_STATES, RunStatus
from fsa_cli.ledger.time import instant_of
from fsa_cli.runs.run_pages import own_frames
from fsa_cli.runs.run_view import error_of
from fsa_cli.runs.status_view import node_state
from fsa_cli.terminal.formatting import format_span, format_time, format_times
from fsa_cli.terminal.masking import mask_tail

__all__ = ["LONG_MS", "Problem", "lives", "problems", "since"]

#: What waits for longer than that wants a look.
LONG_MS = 60_000
_DIED_MS = 3600 * 1000
_BAD = (RunStatus.FAILED, RunStatus.TIMED_OUT, RunStatus.INTERRUPTED)


@dataclass(frozen=True)
class Problem:
    """Something that needs a look.

    Attributes:
        subject: A task, or a kind of process.
        said: What is wrong.
        detail: What was said about it: an error, a place.
        commands: What shows more, or is the cure.
    """

    subject: str
    said: str
    detail: str = ""
    commands: tuple[str, ...] = ()


def problems(glance: Glance, places: Mapping[str, str], *, has_schedule: bool) -> Iterator[Problem]:
    """What needs a look.

    Args:
        places: The tasks of the app as it is here, and where each was written.
        has_schedule: Whether one of them has a schedule.
    """
    seen = glance.overview
    yield from _processes(glance, has_schedule)
    for task in seen.tasks:
        yield from _task(task, seen, places)
    yield from _waiting(glance, places)
    for run in glance.running:
        if run.lease_until_ms is not None and run.lease_until_ms < seen.now_ms:
            yield Problem(
                run.task,
                f"runs on a process that is silent: {run.role} {run.host}, pid {run.pid}",
                "the next scheduler or worker that is alive decides it",
                (f"fsa runs show {run.id[:8]}",),
            )


def lives(node: Row[Any], now_ms: int) -> bool:
    """Whether a process holds its lease."""
    return node_state(node, now_ms) in OPEN_STATES


def since(ms: int, now_ms: int) -> str:
    """An instant of the past, as `format_time`."""
    return format_time(instant_of(ms), instant_of(now_ms))


def _processes(glance: Glance, has_schedule: bool) -> Iterator[Problem]:
    seen = glance.overview
    alive = {each.role for each in seen.nodes if lives(each, seen.now_ms)}
    ticks = any(each.role == "tick" for each in seen.nodes)
    beside = f"; alive in this ledger: {', '.join(seen.elsewhere)}" if seen.elsewhere else ""
    if has_schedule and not ticks and "scheduler" not in alive:
        yield Problem("scheduler", f"none is alive{beside}", commands=("fsa scheduler start",))
    dispatched = [each for each in glance.waiting if each.status == RunStatus.DISPATCHED]
    if dispatched and "worker" not in alive:
        number = sum(each.number for each in dispatched)
        yield Problem(
            "worker",
            f"none is alive, and {number} dispatched for {_ago(dispatched[0].since_ms, seen)}",
            commands=("fsa worker start",),
        )
    for node in seen.nodes:
        ended_ms = seen.now_ms - node.lease_until_ms
        is_dead = node_state(node, seen.now_ms) == "dead"
        if is_dead and node.role != "command" and ended_ms <= _DIED_MS:
            yield Problem(
                node.role,
                f"one has died {_ago(node.lease_until_ms, seen)} ago: {node.host}, pid {node.pid}",
                commands=("fsa scheduler status",),
            )


def _task(task: Row[Any], seen: Overview, places: Mapping[str, str]) -> Iterator[Problem]:
    last = seen.last_runs.get(task.name)
    place = places.get(task.name, "")
    if task.consecutive_failures and last is not None and last.status in _BAD:
        number = task.consecutive_failures
        succeeded = task.last_success_ms
        good = f"last success {since(succeeded, seen.now_ms)}" if succeeded else "never succeeded"
        yield Problem(
            task.name,
            f"{last.status.replace('_', ' ')} {format_times(number)}, {good}",
            ": ".join(filter(None, [_place_of(last) or place, error_of(last)])),
            (f"fsa runs show {last.id[:8]}", *_again(last)),
        )
    elif last is not None and last.status == RunStatus.INTERRUPTED:
        yield Problem(
            task.name,
            f"interrupted {since(last.finished_ms or last.scheduled_ms, seen.now_ms)}",
            error_of(last) or "",
            (f"fsa runs show {last.id[:8]}", *_again(last)),
        )
    if task.paused_ms is not None:
        by = f" by {task.paused_by}" if task.paused_by else ""
        yield Problem(
            task.name,
            f"paused {since(task.paused_ms, seen.now_ms)}{by}",
            commands=(f"fsa scheduler resume {task.name}",),
        )
    elif missed := seen.missed.get(task.name):
        yield Problem(
            task.name,
            f"missed {missed} since its last success",
            commands=(f"fsa runs {task.name} --status missed",),
        )


def _place_of(run: Row[Any]) -> str | None:
    """The user's line that raised."""
    frames = own_frames(mask_tail(run.traceback or ""))
    return frames[0].place if frames else None


def _again(run: Row[Any]) -> tuple[str, ...]:
    return (f"fsa runs retry {run.id[:8]}",) if run.status == RunStatus.INTERRUPTED else ()


def _waiting(glance: Glance, places: Collection[str]) -> Iterator[Problem]:
    seen = glance.overview
    alive = {each.role for each in glance.overview.nodes if lives(each, seen.now_ms)}
    running = {each.task: each for each in glance.running}
    for each in glance.waiting:
        if each.status != RunStatus.QUEUED or seen.now_ms - each.since_ms < LONG_MS:
            continue
        cure: tuple[str, ...] = ()
        if each.task not in places:
            why = "the app has no such task (renamed?)"
            cure = (f"fsa runs cancel --task {each.task} --status queued",)
        elif alive.isdisjoint({"scheduler", "worker"}):
            why = "nobody is alive who executes runs"
            cure = ("fsa worker start",)
        elif (one := running.get(each.task)) is not None:
            why = f"its run {one.id[:8]} goes on"
        else:
            why = "other runs go on, or no live process knows it"
        command = f"fsa runs {each.task} --status queued"
        yield Problem(
            each.task,
            f"{each.number} queued for {_ago(each.since_ms, seen)}: {why}",
            "",
            (command, *cure),
        )


def _ago(ms: int, seen: Overview) -> str:
    return format_span(seen.now_ms - ms)
