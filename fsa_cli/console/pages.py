"""The pages: of each its template and what that shows. None has SQL of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from starlette.datastructures import QueryParams

from fsa_cli.console import database_page
from fsa_cli.console.source import Source
from fsa_cli.exceptions import UsageError
from fsa_cli.ledger import audit
from fsa_cli.ledger.fingerprint import Fingerprint
from fsa_cli.ledger.records import RunStatus
from fsa_cli.ledger.run_search import RunFilter
from fsa_cli.ledger.time import instant_of
from fsa_cli.runs import lanes, overview, run_pages, task_pages, week
from fsa_cli.runs.node_states import is_kept
from fsa_cli.runs.run_activity import doing
from fsa_cli.runs.run_view import since_ms
from fsa_cli.schedules.words import in_words

__all__ = ["NAVIGATION", "PAGES", "Asked", "NotThere", "Page", "filter_of"]

_RUNS = 50
_MOST_LANES = 30
_ALL_LANES = 500
_AUDIT = 100
_MS = re.compile(r"\d{1,15}")
_MINUTE_MS = 60_000

#: The pages that the head of each page leads to, in its order.
NAVIGATION = {
    "": "Now",
    "runs": "Runs",
    "tasks": "Tasks",
    "coming": "Coming",
    "queues": "Queues",
    "nodes": "Nodes",
    "database": "Database",
    "audit": "Audit",
}


class NotThere(Exception):
    """An address names a run or a task that is not there."""


@dataclass(frozen=True)
class Asked:
    """What is asked for: the part of the address after the question mark, and when."""

    source: Source
    query: QueryParams
    found: Fingerprint

    @property
    def now_ms(self) -> int:
        return self.found.now_ms

    @property
    def now(self) -> datetime:
        return instant_of(self.now_ms)

    @property
    def zone(self) -> str | None:
        return self.source.settings.timezone


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        step_ms: For so long it stays as it is while nothing changes in the ledger.
    """

    template: str
    context: Callable[[Asked], dict[str, Any]]
    step_ms: int = _MINUTE_MS

    def at_span(self, query: QueryParams) -> Page:
        """The page with the step of the lanes that it draws: a pixel or two."""
        if self.template != "now.html":
            return self
        return replace(self, step_ms=_step_ms(_span(query)))


def filter_of(query: Mapping[str, str], statuses: list[str], now: datetime) -> RunFilter:
    """The runs that an address or a form names; what it does not understand it leaves out."""
    known = {status.value for status in RunStatus}
    return RunFilter(
        task=query.get("task") or None,
        statuses=tuple(each for each in statuses if each in known),
        since_ms=_moment(query.get("since"), now),
        until_ms=_moment(query.get("until"), now),
        error_type=query.get("error") or None,
        queue=query.get("queue") or None,
    )


def _moment(text: str | None, now: datetime) -> int | None:
    """Milliseconds since 1970 as a link has them, or what a person writes: 2h, 2026-11-22."""
    if not text:
        return None
    if _MS.fullmatch(text):
        return int(text)
    try:
        return since_ms(text, now)
    except (UsageError, OverflowError):
        return None


def _span(query: QueryParams) -> str:
    span = query.get("span", "")
    return span if span in lanes.SPANS else "1h"


def _step_ms(span: str) -> int:
    """A pixel or some; no shorter than that fourteen statements for a viewer of it are one every
    two seconds."""
    return max(int(lanes.SPANS[span].total_seconds() * 1000) // 120, 28_000)


def _now(asked: Asked) -> dict[str, Any]:
    span, every = _span(asked.query), asked.query.get("lanes") == "all"
    most_lanes = _ALL_LANES if every else _MOST_LANES
    seen = asked.source.look(asked.found, _step_ms(span), span, most_lanes)
    return {"seen": seen.overview, "doing": seen.doing, "spans": list(lanes.SPANS), "every": every}


def _runs(asked: Asked) -> dict[str, Any]:
    wanted = filter_of(asked.query, asked.query.getlist("status"), asked.now)
    page = run_pages.run_page(
        asked.source.ledger, wanted, asked.query.get("after"), _RUNS, asked.now
    )
    fields = {
        name: asked.query.get(name, "") for name in ("task", "since", "until", "error", "queue")
    }
    return {
        "page": page,
        "wanted": wanted,
        "fields": {**fields, "status": list(wanted.statuses)},
        "statuses": [status.value for status in RunStatus],
        "is_first": not asked.query.get("after"),
    }


def _run(asked: Asked) -> dict[str, Any]:
    run_id = asked.query.get("id", "")
    run = run_pages.run_detail(asked.source.ledger, run_id, asked.now) if run_id else None
    if run is None:
        raise NotThere("there is no such run: it may be older than 30 days")
    does = None
    if run.line.status == "running":
        source = asked.source
        does = doing(source.ledger, [run.line], source.sync_databases()).get(run.line.id)
    return {"run": run, "does": does}


def _tasks(asked: Asked) -> dict[str, Any]:
    source = asked.source
    tasks = task_pages.task_lines(source.ledger, source.coming, asked.now_ms, asked.zone)
    return {"tasks": tasks, "is_kept": is_kept(source.ledger, asked.now_ms)}


def _task(asked: Asked) -> dict[str, Any]:
    source, name = asked.source, asked.query.get("name", "")
    task = task_pages.task_detail(
        source.ledger, name, source.coming, source.days, asked.now_ms, asked.zone
    )
    if task is None:
        raise NotThere("there is no such task")
    return {
        "task": task,
        "words": in_words(task.line.schedule) if task.line.schedule else None,
        "is_unfinished": task.calendar.is_unfinished,
        "latest": run_pages.run_page(source.ledger, RunFilter(name), None, 10, asked.now).runs,
    }


def _coming(asked: Asked) -> dict[str, Any]:
    source = asked.source
    seen = week.week(source.ledger, source.week, asked.now_ms, asked.zone)
    kept = is_kept(source.ledger, asked.now_ms)
    return {"week": seen, "is_unfinished": seen.left > 0, "is_kept": kept}


def _queues(asked: Asked) -> dict[str, Any]:
    return {"queues": overview.queue_lines(asked.source.ledger, asked.now_ms)}


def _nodes(asked: Asked) -> dict[str, Any]:
    return {"nodes": overview.node_lines(asked.source.ledger, asked.now_ms)}


def _database(asked: Asked) -> dict[str, Any]:
    return {"databases": database_page.summaries(asked.source)}


def _audit(asked: Asked) -> dict[str, Any]:
    rows = audit.latest(
        asked.source.ledger, run_pages.cursor_in(asked.query.get("after")), _AUDIT + 1
    )
    last = rows[_AUDIT - 1] if len(rows) > _AUDIT else None
    return {
        "entries": [(row, instant_of(row.at_ms)) for row in rows[:_AUDIT]],
        "after": f"{last.at_ms}.{last.id}" if last is not None else None,
    }


#: Each page by the last part of its address.
PAGES: Mapping[str, Page] = {
    "": Page("now.html", _now),
    "runs": Page("runs.html", _runs),
    "run": Page("run.html", _run),
    "tasks": Page("tasks.html", _tasks),
    "task": Page("task.html", _task),
    "coming": Page("coming.html", _coming),
    "queues": Page("queues.html", _queues, 10_000),
    "nodes": Page("nodes.html", _nodes, 6_000),
    "database": Page("database.html", _database, 30_000),
    "audit": Page("audit.html", _audit),
}
