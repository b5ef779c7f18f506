"""What needs a look, each thing with the command that shows or cures it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, lru_cache, partial
from shlex import quote
from typing import Any

from sqlalchemy import Row

from fsa_cli.ledger.glance import Glance, Waiting
from fsa_cli.ledger.records import RunStatus, status_words
from fsa_cli.ledger.run_search import SAID_LENGTH
from fsa_cli.project import loader
from fsa_cli.runs.problem import Problem, since
from fsa_cli.runs.process_problems import process_problems
from fsa_cli.runs.run_view import brief_error
from fsa_cli.runs.user_frames import own_frames
from fsa_cli.runs.worker_command import worker_command
from fsa_cli.tasks.locks import lock_of
from fsa_cli.tasks.registry import registry
from fsa_cli.terminal.formatting import format_span, format_times
from fsa_cli.terminal.masking import mask_head, mask_tail

__all__ = [
    "BAD",
    "LONG_MS",
    "NOBODY_TAKES_IT",
    "held_locks",
    "lock_holder",
    "problems",
    "waits_because",
]

#: What waits for longer than that wants a look.
LONG_MS = 60_000
NOBODY_TAKES_IT = "no live process takes it (--only, --tag, another version?)"
# A group or a long run skips one now and then.
_SKIPPED = 5
#: How a run ends that somebody may want to try again.
BAD = (RunStatus.FAILED, RunStatus.TIMED_OUT, RunStatus.INTERRUPTED)


def problems(seen: Glance) -> list[Problem]:
    """What needs a look: the one answer of `fsa status`, `fsa top` and the console."""
    # A web process may have imported a part of the tasks; `fsa` has loaded the app with all.
    places = {task.name: task.place for task in registry} if loader.current() else None
    found = [*process_problems(seen, places)]
    if seen.unwritable is not None:
        found.insert(0, Problem("ledger", seen.unwritable))
    for task in seen.tasks:
        found += _task(task, seen, places)
    found += _waiting(seen)
    found += [
        Problem(
            run.task,
            f"runs on a process that is silent: {run.role} {run.host}, pid {run.pid}",
            "the next scheduler or worker that is alive decides it",
            (f"fsa runs show {quote(run.id[:8])}",),
            is_task=True,
        )
        for run in seen.running
        if run.lease_until_ms is not None and run.lease_until_ms < seen.now_ms
    ]
    return found


def waits_because(
    seen: Glance, name: str, start: Callable[[], str], held: Mapping[str, Row[Any]] | None = None
) -> tuple[str, tuple[str, ...]]:
    """Why a queued run of the task *name* waits whose time has come, and what shows or cures it.

    Args:
        start: The command that starts a worker for it; to know it may take reading the settings.
        held: As `held_locks` of what runs.
    """
    if loader.current() and registry.get(name) is None:
        cancel = f"fsa runs cancel --task {quote(name)} --status queued"
        cure = f'aliases=["{name}"] of the task that it is now'
        return f"the app has no such task (renamed? {cure})", (cancel,)
    if not seen.serving.executing:
        return "nobody is alive who executes runs", (start(),)
    held = held_locks(seen.running) if held is None else held
    if (one := lock_holder(held, name)) is not None:
        show = (f"fsa runs show {quote(one.id[:8])}",)
        if one.task == name:
            return f"its run {one.id[:8]} goes on", show
        return f"its lock is held by run {one.id[:8]} of {one.task}", show
    if len(seen.running) >= seen.serving.executing:
        return "other runs go on, or no live process knows it", ()
    return NOBODY_TAKES_IT, (start(),)


def held_locks(running: Iterable[Row[Any]]) -> dict[str, Row[Any]]:
    """The locks that these runs hold; of a task that nobody knows here, its name."""
    held: dict[str, Row[Any]] = {}
    for each in running:
        task = registry.get(each.task)
        lock = each.task if task is None else lock_of(task, "")
        if lock is not None:
            held.setdefault(lock, each)
    return held


def lock_holder(held: Mapping[str, Row[Any]], name: str) -> Row[Any] | None:
    """The run that holds the lock of this task."""
    task = registry.get(name)
    return held.get((name if task is None else lock_of(task, "")) or "")


def _task(task: Row[Any], seen: Glance, places: Mapping[str, str] | None) -> Iterator[Problem]:
    problem = partial(Problem, task.name, is_task=True)
    last = seen.last_executed.get(task.name)
    skipped = seen.skipped.get(task.name, 0)
    missed = seen.missed.get(task.name, 0) if task.paused_ms is None else 0
    fails = False
    if task.consecutive_failures and last is not None and last.status in BAD:
        fails = True
        said = f"{status_words(last.status)} {format_times(task.consecutive_failures)}"
        yield problem(
            f"{said}{f', missed {missed}' if missed else ''}, {_last_good(task, seen)}",
            ": ".join(
                filter(
                    None,
                    [
                        _place_of(last.traceback)
                        if last.traceback
                        else (places or {}).get(task.name),
                        _error(last),
                    ],
                )
            ),
            (
                f"fsa runs show {quote(last.id[:8])}",
                *_again(last),
                *([f"fsa runs {quote(task.name)}"] if missed else []),
            ),
        )
    elif last is not None and last.status == RunStatus.INTERRUPTED:
        yield problem(
            f"interrupted {since(last.finished_ms or last.scheduled_ms, seen.now_ms)}, "
            + _last_good(task, seen)
            + (f", {skipped} skipped since" if skipped else ""),
            _error(last),
            (f"fsa runs show {quote(last.id[:8])}", *_again(last)),
        )
    elif (
        skipped >= _SKIPPED
        and task.paused_ms is None  # that is why, and is said below
        and all(each.task != task.name for each in seen.running)
    ):
        yield problem(
            f"skipped {format_times(skipped)}, {_last_good(task, seen)}",
            commands=(f"fsa runs {quote(task.name)} --status skipped",),
        )
    if task.paused_ms is not None:
        by = f" by {task.paused_by}" if task.paused_by else ""
        yield problem(
            f"paused {since(task.paused_ms, seen.now_ms)}{by}",
            commands=(f"fsa scheduler resume {quote(task.name)}",),
        )
        return
    if missed and not fails:
        yield problem(
            f"missed {missed}, {_last_good(task, seen)}",
            commands=(f"fsa runs {quote(task.name)} --status missed",),
        )


def _last_good(task: Row[Any], seen: Glance) -> str:
    ms = task.last_success_ms
    return f"last success {since(ms, seen.now_ms)}" if ms else "never succeeded"


@lru_cache(maxsize=512)  # what fails is seen again at each look
def _place_of(traceback: str) -> str | None:
    """The user's line that raised."""
    frames = own_frames(mask_tail(traceback))
    return frames[0].place if frames else None


def _again(run: Row[Any]) -> tuple[str, ...]:
    return (f"fsa runs retry {quote(run.id[:8])}",) if run.status == RunStatus.INTERRUPTED else ()


def _waiting(seen: Glance) -> Iterator[Problem]:
    late: dict[str, list[Waiting]] = {}
    for each in seen.waiting:
        is_late = each.due and seen.now_ms - each.due_ms >= LONG_MS
        if each.status == RunStatus.QUEUED and is_late:
            late.setdefault(each.task, []).append(each)
    held, start = held_locks(seen.running), cache(worker_command)
    for name, same in late.items():
        why, cures = waits_because(seen, name, partial(start, same[0].executor), held)
        number = f"{sum(each.due for each in same)}{'+' if same[0].more else ''}"
        yield Problem(
            name,
            f"{number} queued for {format_span(seen.now_ms - same[0].due_ms)}: {why}",
            commands=(f"fsa runs {quote(name)} --status queued", *cures),
            is_task=True,
        )


def _error(last: Row[Any]) -> str:
    goes_on = "..." if len(last.error or "") >= SAID_LENGTH else ""
    return mask_head(brief_error(last) or "") + goes_on
