"""What needs a look about processes: none is there, one has died, nobody serves a queue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from shlex import quote
from typing import Any

from sqlalchemy import Row

from fsa_cli.ledger.glance import Glance, Waiting
from fsa_cli.ledger.records import NodeState, RunStatus
from fsa_cli.runs.node_states import is_schedule_kept, lives, node_state, roles_alive
from fsa_cli.runs.problem import Problem
from fsa_cli.runs.worker_command import worker_command
from fsa_cli.tasks.registry import registry
from fsa_cli.terminal.formatting import format_span

__all__ = ["process_problems"]

_DIED_MS = 3600 * 1000


def process_problems(seen: Glance, places: Mapping[str, str] | None) -> Iterator[Problem]:
    """What is wrong with the processes, and the tasks that no scheduler fires.

    Args:
        places: Of the tasks here; None where not all of them are imported.
    """
    alive = roles_alive(seen.nodes, seen.now_ms)
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
    yield from _unfired(seen, places)


def _unfired(seen: Glance, places: Mapping[str, str] | None) -> Iterator[Problem]:
    """The tasks that have a schedule, here or in the ledger, which no scheduler of those that live
    fires."""
    if "scheduler" not in roles_alive(seen.nodes, seen.now_ms):
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


def _longest(dispatched: Sequence[Waiting], seen: Glance) -> str:
    """For how long the first of them is dispatched; its `due_ms` is when it is sent again."""
    return _ago(min(each.oldest_ms for each in dispatched), seen)


def _ago(ms: int, seen: Glance) -> str:
    return format_span(seen.now_ms - ms)
