"""What needs a look, each thing with the command that shows or cures it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from shlex import quote
from typing import Any

from sqlalchemy import Row

from fsa_cli.ledger.glance import Glance, Waiting
from fsa_cli.ledger.records import OPEN_STATES, NodeState, RunStatus, status_words
from fsa_cli.ledger.run_search import SAID_LENGTH
from fsa_cli.ledger.time import instant_of
from fsa_cli.project import loader
from fsa_cli.runs.run_view import brief_error
from fsa_cli.runs.status_view import node_state
from fsa_cli.runs.user_frames import own_frames
from fsa_cli.runs.worker_command import worker_command
from fsa_cli.tasks.locks import lock_of
from fsa_cli.tasks.registry import registry
from fsa_cli.terminal.formatting import format_span, format_time, format_times
from fsa_cli.terminal.masking import mask_head, mask_tail

__all__ = [
    "BAD",
    "LONG_MS",
    "NOBODY_TAKES_IT",
    "Problem",
    "held_locks",
    "is_schedule_kept",
    "lives",
    "lock_holder",
    "problems",
    "since",
    "waits_because",
]

#: What waits for longer than that wants a look.
LONG_MS = 60_000
NOBODY_TAKES_IT = "no live process takes it (--only, --tag, another version?)"
# A group or a long run skips one now and then.
_SKIPPED = 5
_DIED_MS = 3600 * 1000
#: How a run ends that somebody may want to try again.
BAD = (RunStatus.FAILED, RunStatus.TIMED_OUT, RunStatus.INTERRUPTED)


@dataclass(frozen=True)
class Problem:
    """Something that needs a look.

    Attributes:
        subject: A task, or a kind of process.
        said: What is wrong.
        detail: What was said about it: an error, a place.
        commands: What shows more, or is the cure.
        is_task: Whether the subject is a task.
    """

    subject: str
    said: str
    detail: str = ""
    commands: tuple[str, ...] = ()
    is_task: bool = False

    @property
    def text(self) -> str:
        return f"{self.subject}: {self.said}"


def problems(seen: Glance) -> list[Problem]:
    """What needs a look: the one answer of `fsa status`, `fsa top` and the console."""
    # A web process may have imported a part of the tasks; `fsa` has loaded the app with all.
    places = {task.name: task.place for task in registry} if loader.current() else None
    found = [*_processes(seen, places), *_unfired(seen, places)]
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


def lives(node: Row[Any], now_ms: int) -> bool:
    """Whether a process holds its lease."""
    return node_state(node, now_ms) in OPEN_STATES


def is_schedule_kept(nodes: Iterable[Row[Any]], now_ms: int) -> bool:
    """Whether of these nodes one fires what comes: a scheduler, or an `fsa scheduler tick` that was
    there since yesterday."""
    return any(
        each.role == "tick" or (each.role == "scheduler" and lives(each, now_ms)) for each in nodes
    )


def since(ms: int, now_ms: int) -> str:
    """An instant of the past, as `format_time`."""
    return format_time(instant_of(ms), instant_of(now_ms))


def _processes(seen: Glance, places: Mapping[str, str] | None) -> Iterator[Problem]:
    alive = _alive(seen)
    beside = f"; alive in this ledger: {', '.join(seen.elsewhere)}" if seen.elsewhere else ""
    if places is not None:
        has_schedule = any(task.schedule is not None for task in registry)
    else:
        has_schedule = any(task.schedule_hash is not None for task in seen.tasks)
    if has_schedule and not is_schedule_kept(seen.nodes, seen.now_ms):
        yield Problem("scheduler", f"none is alive{beside}", commands=("fsa scheduler start",))
    dispatched = [each for each in seen.waiting if each.status == RunStatus.DISPATCHED]
    if dispatched and "worker" not in alive:
        number = sum(each.number for each in dispatched)
        yield Problem(
            "worker",
            f"none is alive, and {number} dispatched for {_longest(dispatched, seen)}",
            commands=tuple(sorted({worker_command(each.executor) for each in dispatched})),
        )
    elif dispatched:
        yield from _unserved(seen, dispatched)
    yield from _died(seen)


def _unfired(seen: Glance, places: Mapping[str, str] | None) -> Iterator[Problem]:
    """The tasks that have a schedule, here or in the ledger, which no scheduler of those that live
    fires."""
    if "scheduler" not in _alive(seen):
        return
    wanted = {each.name for each in seen.tasks if each.schedule_hash is not None}
    if places is not None:
        wanted = {task.name for task in registry if task.schedule is not None}
    paused = {each.name for each in seen.tasks if each.paused_ms is not None}
    for name in sorted(wanted - seen.known - paused):
        yield Problem(
            name,
            "no live scheduler knows it (--only, --tag, another version?)",
            commands=(f"fsa scheduler start --only {quote(name)}",),
            is_task=True,
        )


def _died(seen: Glance) -> Iterator[Problem]:
    """The processes that have died in the last hour, those of one role together; nothing of a role
    of which each has been replaced, and has left no run open."""
    by_role: dict[str, list[Row[Any]]] = {}
    for node in seen.nodes:
        is_dead = node_state(node, seen.now_ms) == "dead"
        is_new = seen.now_ms - node.lease_until_ms <= _DIED_MS
        if is_dead and is_new and node.role != "command":
            by_role.setdefault(node.role, []).append(node)
    left_open = {run.node for run in seen.running}
    for role, dead in by_role.items():
        is_tick = role == "tick"  # which ends with its work
        others = [
            each
            for each in seen.nodes
            if each.role == role
            and (lives(each, seen.now_ms) or (is_tick and each.state == NodeState.STOPPED))
        ]
        new = _new_ones(dead, others, seen.now_ms)
        if new == len(dead) and left_open.isdisjoint(each.id for each in dead):
            continue
        last = max(dead, key=lambda each: each.lease_until_ms)
        ago = f"{_ago(last.lease_until_ms, seen)} ago: {last.host}, pid {last.pid}"
        many = len(dead) > 1
        again = f"start {'them' if many else 'it'} again unless that is done"
        yield Problem(
            role,
            f"{len(dead)} have died, the last {ago}" if many else f"one has died {ago}",
            f"{f'{new} started since' if new else again}; "
            f"{'' if many else 'it is '}named here for an hour",
            (
                "fsa scheduler tick" if is_tick else f"fsa {quote(role)} start",
                "fsa runs --status interrupted",
            ),
        )


def _new_ones(dead: Sequence[Row[Any]], others: list[Row[Any]], now_ms: int) -> int:
    """How many of the *dead* have one of the *others* in their place, each one of its own: what
    dies again and again is not well although the last one lives."""
    number = 0
    for each in dead:
        if new := next((one for one in others if _replaces(one, each, now_ms)), None):
            others.remove(new)
            number += 1
    return number


def _replaces(new: Row[Any], dead: Row[Any], now_ms: int) -> bool:
    """Whether a process was started when the other one was silent already, and serves the same."""
    # The ledger has no length of a lease. It is renewed after a quarter of it: what is left of that
    # of the one that lives is three quarters at least.
    lease_ms = max(new.lease_until_ms - now_ms, 0) * 4 // 3
    if new.started_ms < dead.lease_until_ms - lease_ms:
        return False
    if new.services is None:  # a scheduler; a worker that has not said what it serves
        return True
    return dead.services is not None and {*dead.services.split("\n")} <= {*new.services.split("\n")}


def _unserved(seen: Glance, dispatched: Sequence[Waiting]) -> Iterator[Problem]:
    by_queue: dict[tuple[str, str | None], list[Waiting]] = {}
    for each in dispatched:
        if not seen.serving.has(each.executor, each.queue):
            by_queue.setdefault((each.executor, each.queue), []).append(each)
    for (executor, queue), same in by_queue.items():
        number = sum(each.number for each in same)
        yield Problem(
            "worker",
            f"none serves the queue {queue} of {executor}, and {number} dispatched for "
            f"{_longest(same, seen)}",
            commands=(worker_command(executor, queue),),
        )


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
            f"{number} queued for {_ago(same[0].due_ms, seen)}: {why}",
            commands=(f"fsa runs {quote(name)} --status queued", *cures),
            is_task=True,
        )


def _alive(seen: Glance) -> set[str]:
    return {each.role for each in seen.nodes if lives(each, seen.now_ms)}


def _error(last: Row[Any]) -> str:
    goes_on = "..." if len(last.error or "") >= SAID_LENGTH else ""
    return mask_head(brief_error(last) or "") + goes_on


def _longest(dispatched: Sequence[Waiting], seen: Glance) -> str:
    """For how long the first of them is dispatched; its `due_ms` is when it is sent again."""
    return _ago(min(each.oldest_ms for each in dispatched), seen)


def _ago(ms: int, seen: Glance) -> str:
    return format_span(seen.now_ms - ms)
