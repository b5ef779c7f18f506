"""Whether the schedule is kept, by the ledger."""

from __future__ import annotations

from collections.abc import Collection
from shlex import quote
from typing import TYPE_CHECKING

from fsa_cli.exceptions import CheckFailed
from fsa_cli.ledger import queries
from fsa_cli.ledger.access import existing
from fsa_cli.ledger.queries import Vitals
from fsa_cli.runs.task_problems import NOBODY_TAKES_IT, held_locks, lock_holder
from fsa_cli.runs.worker_command import worker_command
from fsa_cli.terminal.formatting import format_span

if TYPE_CHECKING:
    from fsa_cli.project.loader import LoadedApp
    from fsa_cli.project.settings import Settings

__all__ = ["alive", "paused", "queue", "tasks", "vitals", "workers"]

# One failure is a task's own affair; a task that fails each time is not well.
_FAILURES = 3
# A worker that a team starts itself becomes a node with the first run that it takes.
_STRANDED_MS = 60 * 1000
# A schedule that `fsa scheduler tick` keeps has no scheduler that lives on.
_TICKED_MS = 15 * 60 * 1000


def vitals(loaded: LoadedApp, settings: Settings) -> Vitals:
    """The ledger's figures on its schedulers and tasks.

    Raises:
        LedgerUnusable: There is none, or it cannot be read.
        DatabaseUnreachable: Its database is away.
    """
    with existing(loaded, settings) as ledger:
        return queries.vitals(ledger)


def alive(seen: Vitals) -> str:
    """How many schedulers live, and how long the best lease still lasts.

    Raises:
        CheckFailed: None does.
    """
    left = [each.lease_until_ms - seen.now_ms for each in seen.nodes]
    live = [ms for ms, each in zip(left, seen.nodes, strict=True) if ms >= 0 and each.is_open]
    if live:
        return f"{len(live)} alive, lease for {format_span(max(live))} more"
    ago = min((-ms for ms in left), default=None)
    others = f" in this namespace, but in {', '.join(seen.elsewhere)}" if seen.elsewhere else ""
    if ago is None:
        raise CheckFailed(f"no scheduler has run yet{others}: fsa scheduler start")
    ticked = [-ms for ms, each in zip(left, seen.nodes, strict=True) if each.role == "tick"]
    if ticked and min(ticked) <= _TICKED_MS:
        return f"the last tick was {format_span(min(ticked))} ago"
    raise CheckFailed(f"no scheduler is alive{others}, the last one was {format_span(ago)} ago")


def tasks(seen: Vitals, scheduled: Collection[str]) -> str:
    """Check that no task has missed an instant since its last success, or fails each time.

    Raises:
        CheckFailed: One has.
    """
    wrong = []
    for name in sorted({*scheduled, *seen.failures}):
        missed = seen.missed.get(name, 0) if name in scheduled else 0
        failures = seen.failures.get(name, 0)
        parts = [f"missed {missed}"] if missed else []
        parts += [f"failed {failures} times in a row"] if failures >= _FAILURES else []
        if parts:
            wrong.append(f"{name} {' and '.join(parts)}: fsa runs {quote(name)}")
    if wrong:
        raise CheckFailed("; ".join(wrong))
    if failing := sorted(name for name, failures in seen.failures.items() if failures):
        return f"{', '.join(failing)} failed last, fewer than {_FAILURES} times in a row"
    return "nothing since the last success"


def queue(seen: Vitals, known: Collection[str]) -> str:
    """How many runs wait, and for how long the oldest does.

    Raises:
        CheckFailed: They wait for a process that is not there, or the app has no such task.
    """
    waiting = [each for each in seen.waiting if each.status == "queued"]
    if not waiting:
        dispatched = sum(each.number for each in seen.waiting)
        return f"{dispatched} dispatched" if dispatched else "nothing waits"
    number = sum(each.number for each in waiting)
    oldest_ms = seen.now_ms - waiting[0].since_ms
    said = f"{number} queued, the oldest for {format_span(oldest_ms)}"
    late = [each for each in waiting if seen.now_ms - each.since_ms > _STRANDED_MS]
    unknown = sorted(each.task for each in late if each.task not in known)
    if unknown:
        raise CheckFailed(
            f"{said}; the app has no task {', '.join(unknown)}: fsa runs {quote(unknown[0])}"
        )
    if late and not seen.executing:
        wanted = {worker_command(each.executor) for each in seen.unserved}
        start = ", ".join(["fsa scheduler start", *sorted(wanted)])
        raise CheckFailed(f"{said}; nobody executes runs: {start}")
    held = held_locks(seen.running)
    free = [each.task for each in late if lock_holder(held, each.task) is None]
    busy = sum(each.executor == "local" for each in seen.running)
    if free and busy < seen.takers:  # a process has nothing to do
        raise CheckFailed(f"{said}; {NOBODY_TAKES_IT}: fsa runs {quote(free[0])}")
    return said


def workers(seen: Vitals) -> str:
    """How many processes execute runs.

    Raises:
        CheckFailed: No worker takes the runs that were dispatched to a broker.
    """
    for each in seen.unserved:
        waits_ms = seen.now_ms - each.since_ms
        if each.executor != "local" and waits_ms > _STRANDED_MS:
            of = f" of the queue {each.queue}" if each.queue else ""
            said = f"no worker takes runs{of}, for {format_span(waits_ms)}"
            raise CheckFailed(f"{said}: {worker_command(each.executor, each.queue)}")
    return f"{seen.executing} alive"


def paused(seen: Vitals) -> str:
    """The tasks that are paused, and by whom; "" if none is."""
    return ", ".join(f"{name} by {by}" if by else name for name, by in sorted(seen.paused.items()))
