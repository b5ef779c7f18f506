"""The scheduler at a glance: the nodes, and the state of each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Row

from fsa_cli.ledger.glance import Glance
from fsa_cli.ledger.time import instant_of
from fsa_cli.ledger.values import options_in
from fsa_cli.runs.node_states import node_state, roles_alive
from fsa_cli.terminal.formatting import format_span, format_time

__all__ = [
    "NODE_COLUMNS",
    "document",
    "node_rows",
    "place",
    "task_columns",
    "task_rows",
]

NODE_COLUMNS = {
    "node": "node",
    "role": "role",
    "state": "state",
    "host": "host",
    "pid": "pid",
    "since": "since (UTC)",
    "lease": "lease",
}
_TASK_COLUMNS = {
    "task": "task",
    "state": "state",
    "last": "last run",
    "status": "was",
    "success": "succeeded",
    "failures": "failures",
    "missed": "missed",
    "running": "running",
    "queued": "queued",
    "note": "note",
}
_ALWAYS = {"task", "state", "last", "status", "success"}


def place(where: str, namespace: str, elsewhere: Sequence[str]) -> str:
    """The ledger and the namespace, and which others live in it: perhaps another one was meant."""
    others = f" (also alive there: {', '.join(elsewhere)})" if elsewhere else ""
    return f"ledger: {where}, namespace {namespace}{others}"


def document(overview: Glance, where: str, namespace: str) -> dict[str, object]:
    """All of it as JSON."""
    return {
        "at": instant_of(overview.now_ms),
        "ledger": where,
        "namespace": namespace,
        "other_namespaces": list(overview.elsewhere),
        "nodes": [
            {
                "id": each.id,
                "role": each.role,
                "state": node_state(each, overview.now_ms),
                "host": each.host,
                "pid": each.pid,
                "version": each.version,
                "started_at": instant_of(each.started_ms),
                "lease_until": instant_of(each.lease_until_ms),
            }
            for each in overview.nodes
        ],
        "tasks": [_task(each, overview) for each in overview.tasks],
    }


def node_rows(seen: Glance, *, dated: bool = True) -> list[dict[str, object]]:
    """The nodes that live or have died, without those that have stopped.

    Args:
        dated: False: today's times stand without their date, as a person reads them.
    """
    shown = partial(_shown, now=None if dated else instant_of(seen.now_ms))
    rows = []
    for each in seen.nodes:
        state = node_state(each, seen.now_ms)
        if state == "stopped":
            continue
        left_ms = each.lease_until_ms - seen.now_ms
        ended = f"ended {format_span(-left_ms)} ago"
        rows.append(
            {
                "node": each.id[:8],
                "role": each.role,
                "state": state,
                "host": each.host,
                "pid": each.pid,
                "since": shown(each.started_ms),
                "lease": f"{format_span(left_ms)} left" if left_ms > 0 else ended,
            }
        )
    return rows


def task_rows(overview: Glance, *, dated: bool = True) -> list[dict[str, object]]:
    """The tasks, a line each; *dated* is as for `node_rows`."""
    shown = partial(_shown, now=None if dated else instant_of(overview.now_ms))
    rows = []
    for each in overview.tasks:
        last = overview.last_runs.get(each.name)
        opened = overview.open_runs.get(each.name, {})
        rows.append(
            {
                "task": each.name,
                "state": "paused" if each.paused_ms is not None else "",
                "last": shown(last.started_ms or last.scheduled_ms) if last is not None else "",
                "status": last.status if last is not None else "",
                "success": shown(each.last_success_ms),
                "failures": each.consecutive_failures,
                "missed": overview.missed.get(each.name, 0),
                "running": opened.get("running", 0),
                "queued": opened.get("queued", 0) + opened.get("handed_off", 0),
                "note": _note(each, overview, shown),
            }
        )
    return rows


def task_columns(rows: Sequence[Mapping[str, object]], *, every: bool) -> dict[str, str]:
    """The columns that are not empty.

    Args:
        every: All columns, for a program that reads them by position.
    """
    return {
        key: heading
        for key, heading in _TASK_COLUMNS.items()
        if every or key in _ALWAYS or any(row[key] for row in rows)
    }


def _task(each: Row[Any], overview: Glance) -> dict[str, object]:
    last = overview.last_runs.get(each.name)
    opened = overview.open_runs.get(each.name, {})
    options = options_in(each.options)
    return {
        "task": each.name,
        "schedule": options.get("schedule"),
        "timezone": options.get("timezone"),
        "known": each.name in overview.known,
        "paused": each.paused_ms is not None,
        "paused_at": instant_of(each.paused_ms) if each.paused_ms is not None else None,
        "paused_by": each.paused_by,
        "last_run": None
        if last is None
        else {
            "id": last.id,
            "status": last.status,
            "scheduled_at": instant_of(last.scheduled_ms),
            "finished_at": instant_of(last.finished_ms) if last.finished_ms else None,
        },
        "last_success_at": instant_of(each.last_success_ms) if each.last_success_ms else None,
        "consecutive_failures": each.consecutive_failures,
        "missed": overview.missed.get(each.name, 0),
        "running": opened.get("running", 0),
        "queued": opened.get("queued", 0) + opened.get("handed_off", 0),
    }


def _note(each: Row[Any], overview: Glance, shown: Callable[[int], str]) -> str:
    if each.paused_ms is not None:
        by = f" by {each.paused_by}" if each.paused_by else ""
        return f"since {shown(each.paused_ms)}{by}"
    scheduled = each.schedule_hash is not None
    alive = roles_alive(overview.nodes, overview.now_ms)
    if scheduled and "scheduler" in alive and each.name not in overview.known:
        return "no live scheduler knows it"
    return ""


def _shown(ms: int | None, *, now: datetime | None) -> str:
    return format_time(instant_of(ms), now) if ms else ""
