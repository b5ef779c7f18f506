"""A run of the ledger: as a row of a table, in full, and as JSON."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row

from fsa_cli.exceptions import FsaError, UsageError, did_you_mean
from fsa_cli.ledger import queries
from fsa_cli.ledger.records import PUT_OFF, RunStatus, status_word
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import FINAL
from fsa_cli.ledger.time import instant_of
from fsa_cli.ledger.values import value_in
from fsa_cli.schedules.durations import duration_s
from fsa_cli.tasks.registry import registry
from fsa_cli.terminal.formatting import format_elapsed, format_time

__all__ = [
    "ATTEMPT_COLUMNS",
    "COLUMNS",
    "LAST",
    "RunError",
    "RunProgress",
    "WholeRun",
    "attempt_document",
    "attempt_row",
    "brief_error",
    "details",
    "document",
    "duration_ms",
    "error_of",
    "foot",
    "get_run",
    "instant_or_span",
    "none_found",
    "progress_text",
    "row",
    "said",
    "since_ms",
    "waits_until",
    "whole_run",
]

#: In place of an id: the latest run.
LAST = "last"

COLUMNS = {
    "run": "run",
    "task": "task",
    "status": "status",
    "at": "at (UTC)",
    "took": "took",
    "said": "what it said",
}
#: Of the attempts before the last.
ATTEMPT_COLUMNS = {
    "attempt": "attempt",
    "status": "status",
    "at": "at (UTC)",
    "took": "took",
    "by": "by",
    "error": "error",
}
_SHORT = 8


def get_run(ledger: Ledger, prefix: str) -> Row[Any]:
    """The run whose id begins with *prefix*; the latest of the task *prefix*; of all, by "last".

    Of a task, one that goes on comes before one that was skipped meanwhile.

    Raises:
        UsageError: There is none, or more than one.
    """
    matching = queries.find(ledger, prefix.lower()) if prefix else []
    if not matching and prefix:
        name = None if prefix.lower() == LAST else prefix
        names = None if name is None else [name]
        going_on = queries.runs(ledger, names=names, statuses=["running"], limit=1) if name else []
        matching = going_on or queries.runs(ledger, names=names, limit=1)
    if not matching:
        known = {each.name for each in (*queries.tasks(ledger), *registry)}
        near = None if prefix in known else did_you_mean(prefix, known)
        said = none_found(prefix, (), None) if prefix in known else f"there is no run {prefix!r}"
        raise UsageError(said, hint=near or "fsa runs lists the latest ones")
    if len(matching) > 1:
        raise UsageError(
            f"{prefix!r} is the beginning of more than one run",
            details=[f"{each.id}  {each.task}  {status_word(each.status)}" for each in matching],
            hint="write more of it",
        )
    return matching[0]


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run has come, as it says itself."""

    text: str
    done: int
    total: int | None


@dataclass(frozen=True, slots=True)
class RunError:
    """What a run has failed with."""

    type: str | None
    message: str | None
    traceback: str | None


@dataclass(frozen=True, slots=True)
class WholeRun:
    """A run with all that its row has: what `--json` prints.

    Attributes:
        not_before: While it waits, the time before which it does not start.
        duration_ms: None until it has ended.
        arguments, result: As JSON has them; the text itself where it is none.
    """

    id: str
    task: str
    kind: str
    status: str
    attempt: int
    scheduled_at: datetime | None
    queued_at: datetime | None
    not_before: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    duration_ms: int | None
    arguments: object
    requested_by: str | None
    executor: str
    queue: str | None
    priority: int
    unique_key: str | None
    node: str | None
    lock_key: str | None
    commits: int
    cancel_requested_at: datetime | None
    progress: RunProgress | None
    result: object
    error: RunError | None


def whole_run(run: Row[Any]) -> WholeRun:
    """A row of `queries.runs` as a run."""
    has_error = run.error_type or run.error
    return WholeRun(
        id=run.id,
        task=run.task,
        kind=run.kind,
        status=run.status,
        attempt=run.attempt,
        scheduled_at=_instant(run.scheduled_ms),
        queued_at=_instant(run.queued_ms),
        not_before=_instant(run.not_before_ms) if run.status == "queued" else None,
        started_at=_instant(run.started_ms),
        finished_at=_instant(run.finished_ms),
        duration_ms=duration_ms(run, None),
        arguments=value_in(run.arguments),
        requested_by=run.requested_by,
        executor=run.executor,
        queue=run.queue,
        priority=run.priority,
        unique_key=run.unique_key,
        node=run.node,
        lock_key=run.lock_key,
        commits=run.commits,
        cancel_requested_at=_instant(run.cancel_requested_ms),
        progress=None if run.done is None else RunProgress(run.text, run.done, run.total),
        result=value_in(run.result),
        error=RunError(run.error_type, run.error, run.traceback) if has_error else None,
    )


def document(run: Row[Any]) -> dict[str, object]:
    """A run as JSON."""
    return asdict(whole_run(run))


def row(run: Row[Any], now: datetime, *, dated: bool = True) -> dict[str, object]:
    """A run as a line of a table.

    Args:
        dated: False: today's times stand without their date, as a person reads them.
    """
    duration = duration_ms(run, now)
    at = instant_of(run.started_ms or run.scheduled_ms)
    return {
        "run": run.id[:_SHORT],
        "task": run.task,
        "status": status_word(run.status),
        "at": format_time(at, None if dated else now),
        "took": "" if duration is None else format_elapsed(duration),
        "said": " ".join(said(run).split()),
    }


def foot(runs: Sequence[Row[Any]]) -> tuple[str, str]:
    """What a list of runs adds up to, and the command for the one to look at."""
    counted = Counter(each.status for each in runs)
    order = {status: number for number, status in enumerate(RunStatus)}
    each = sorted(counted.items(), key=lambda item: (-item[1], order.get(item[0], 0)))
    number = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
    found = ", ".join(f"{count} {status_word(status)}" for status, count in each)
    wrong = (RunStatus.FAILED, RunStatus.TIMED_OUT, RunStatus.INTERRUPTED)
    chosen = next((run for run in runs if run.status in wrong), runs[0])
    return f"{number}: {found}", f"fsa runs show {chosen.id[:_SHORT]}"


def none_found(name: str | None, statuses: Sequence[str], since: str | None) -> str:
    """The sentence in place of an empty list."""
    kind = f"{' or '.join(map(status_word, statuses))} run" if statuses else "run"
    of = f" of {name}" if name else ""
    if statuses or since:
        return f"no {kind}{of}{f' since {since}' if since else ''}"
    return f"{name} has not run yet" if name else "nothing has run yet"


def details(run: Row[Any], now: datetime) -> dict[str, object]:
    """A run in full, without its traceback and without empty fields."""
    duration = duration_ms(run, now)
    cancelled = "asked to end at" if run.status == "running" else "cancelled at"
    facts: dict[str, object] = {
        "run": run.id,
        "task": run.task,
        "status": status_word(run.status),
        "kind": run.kind,
        "requested by": run.requested_by,
        "arguments": run.arguments if run.arguments != "{}" else None,
        "attempt": run.attempt,
        "priority": run.priority or None,
        "unique key": run.unique_key,
        "scheduled at": _instant(run.scheduled_ms) if run.kind != "manual" else None,
        "queued at": _instant(run.queued_ms),
        "not before": waits_until(run),
        "started at": _instant(run.started_ms),
        "finished at": _instant(run.finished_ms),
        "took": None if duration is None else format_elapsed(duration),
        "node": run.node,
        "commits of its own": run.commits or None,
        cancelled: _instant(run.cancel_requested_ms),
        "progress": progress_text(run),
        "result": run.result,
        "error": error_of(run),
    }
    return {name: value for name, value in facts.items() if value is not None}


def attempt_row(attempt: Row[Any], now: datetime, *, dated: bool = True) -> dict[str, object]:
    """An attempt before the last as a line of a table; *dated* is as for `row`."""
    at = instant_of(attempt.started_ms or attempt.finished_ms)
    duration = duration_ms(attempt, None)
    by = attempt.node and attempt.node[:_SHORT]
    return {
        "attempt": attempt.number,
        "status": attempt.status,
        "at": format_time(at, None if dated else now),
        "took": "" if duration is None else format_elapsed(duration),
        "by": f"{attempt.role} {attempt.host}:{attempt.pid}" if attempt.host else by,
        "error": error_of(attempt),
    }


def attempt_document(attempt: Row[Any]) -> dict[str, object]:
    """An attempt before the last as JSON."""
    error = {"type": attempt.error_type, "message": attempt.error}
    return {
        "attempt": attempt.number,
        "status": attempt.status,
        "started_at": _instant(attempt.started_ms),
        "finished_at": _instant(attempt.finished_ms),
        "duration_ms": duration_ms(attempt, None),
        "node": attempt.node,
        "host": attempt.host,
        "pid": attempt.pid,
        "error": error if attempt.error_type or attempt.error else None,
    }


def since_ms(text: str, now: datetime) -> int:
    """The milliseconds of `--since`: `2h`, or a day or an instant in ISO 8601, in UTC.

    Raises:
        UsageError: It is neither.
    """
    at = instant_or_span(text, "--since")
    try:
        return round((now - at if isinstance(at, timedelta) else at).timestamp() * 1000)
    except OverflowError:  # before year 1
        return 0


def instant_or_span(text: str, option: str) -> datetime | timedelta:
    """The value of an option: `2h`, or a day or an instant in ISO 8601, in UTC if it has no zone.

    Raises:
        UsageError: It is neither.
    """
    try:
        seconds = duration_s(text)
    except FsaError:
        seconds = None
    try:
        if seconds is not None:
            return timedelta(seconds=seconds)
        instant = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise UsageError(
            f'{option} "{text}": expected a time', hint="2h, 30m, 2026-11-22, 2026-11-22T12:00"
        ) from None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


# Of runs and of attempts.
_ENDED = {*FINAL, PUT_OFF}


def duration_ms(run: Row[Any], now: datetime | None) -> int | None:
    """How long a run took, or has taken up to *now*; None if it has not started."""
    if run.started_ms is None:
        return None
    if run.finished_ms is not None and run.status in _ENDED:
        return max(int(run.finished_ms - run.started_ms), 0)
    if now is not None and run.status == "running":
        return max(round(now.timestamp() * 1000) - int(run.started_ms), 0)
    return None


# `(sqlite3.OperationalError) database is locked`, as SQLAlchemy tells it.
_DRIVERS_CLASS = re.compile(r"\A\(\w+(?:\.\w+)+\) ")


def said(run: Row[Any]) -> str:
    """What there is to say of a run: its progress, its error, or its result."""
    if run.status == "running" and (progress := progress_text(run)) is not None:
        return progress
    if run.status == "queued" and run.attempt > 1:
        again = instant_of(run.not_before_ms)
        failed = instant_of(run.finished_ms or run.not_before_ms)
        return f"attempt {run.attempt} at {format_time(again, failed)}: {brief_error(run) or ''}"
    error = brief_error(run)
    if error is not None:
        return error
    value = value_in(run.result)
    return "" if value is None else value if isinstance(value, str) else str(run.result)


def error_of(run: Row[Any]) -> str | None:
    """What a run failed with, as one text; None if nothing is known of an error."""
    return _error_text(run.error_type, run.error)


def brief_error(run: Row[Any]) -> str | None:
    """As `error_of`, for a line: without the driver's class before what the database says."""
    return _error_text(run.error_type, run.error and _DRIVERS_CLASS.sub("", run.error))


def _error_text(kind: str | None, message: str | None) -> str | None:
    if not (kind or message):
        return None
    return message if kind in (None, "Interrupted", "TimedOut") else f"{kind}: {message}"


def progress_text(run: Row[Any]) -> str | None:
    """How far a run has come, as a person reads it; None where it says nothing."""
    if run.done is None:
        return None
    come = f"{run.done} of {run.total}" if run.total is not None else f"{run.done}"
    return f"{run.text} {come}".strip()


def waits_until(run: Row[Any]) -> datetime | None:
    """Before when a queued run does not start; None of one that was to start at once."""
    is_for_later = run.not_before_ms - run.queued_ms >= 1000  # the two are read one after the other
    return instant_of(run.not_before_ms) if run.status == "queued" and is_for_later else None


def _instant(ms: int | None) -> datetime | None:
    return None if ms is None else instant_of(ms)
