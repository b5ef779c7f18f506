"""Runs as a page shows them: a list by filter, and one run in full."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from fsa_cli.exceptions import ArgumentError, FsaError
from fsa_cli.ledger import queries, run_search
from fsa_cli.ledger.attempts import attempts_of
from fsa_cli.ledger.records import RunStatus, status_words
from fsa_cli.ledger.run_search import SAID_LENGTH, RunFilter
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.time import instant_of
from fsa_cli.ledger.values import arguments_in
from fsa_cli.runs.run_view import duration_ms, error_of, progress_text, said, waits_until
from fsa_cli.runs.user_frames import Frame, own_frames
from fsa_cli.runs.waiting_run import why_it_waits
from fsa_cli.tasks.registry import registry
from fsa_cli.tasks.signature import signature_of
from fsa_cli.terminal.json_values import dumps
from fsa_cli.terminal.masking import MAX_TEXT_LENGTH, mask_head, mask_tail

__all__ = [
    "EarlierAttempt",
    "RunDetail",
    "RunLine",
    "RunPage",
    "arguments_shown",
    "cursor_in",
    "run_detail",
    "run_line",
    "run_page",
    "running_lines",
]

_CURSOR = re.compile(r"(-?\d{1,19})\.([\x21-\x7e]{1,36})")
_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run as a line of a list.

    Attributes:
        at: When it started, or the instant that it is for.
        duration_ms: Up to now if it goes on; None if it has not started.
        said: Its progress, its error or its result, in one line.
        queue: The broker's queue, or the executor if there is none.
        place: The host and the process that runs it, if it goes on.
    """

    id: str
    task: str
    status: str
    kind: str
    attempt: int
    at: datetime
    scheduled_at: datetime
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    duration_ms: int | None
    said: str
    queue: str
    requested_by: str | None
    cancel_requested: bool
    done: int | None = None
    total: int | None = None
    place: str | None = None
    node: str | None = None


@dataclass(frozen=True, slots=True)
class RunPage:
    """Some runs of a list; `after` is where the next ones begin, None at the end. Where they are
    rare a page may have few of them, or none, and there may be more."""

    runs: Sequence[RunLine]
    after: str | None


@dataclass(frozen=True, slots=True)
class EarlierAttempt:
    """An attempt that another one followed.

    Attributes:
        place: The host and the process, or the beginning of the node's id if that is forgotten.
        said: Its error, in one line.
    """

    number: int
    status: str
    at: datetime
    duration_ms: int | None
    place: str
    said: str


@dataclass(frozen=True, slots=True)
class RunDetail:
    """A run in full, its long texts cut where nobody reads on.

    Attributes:
        arguments, result: JSON, with secrets masked.
        own_frames: The lines of the traceback that are the user's, the innermost first.
        cut: Which of the texts are not whole.
        timeline: What happened to it, and when.
        node_state: Of the node that has it, or had it; None if it is forgotten.
        attempts: Those before its last, the first one first.
        waits: Why it waits, and the commands that show or cure it; "" if it does not.
    """

    line: RunLine
    arguments: str
    error_type: str | None
    error: str | None
    traceback: str | None
    own_frames: Sequence[Frame]
    result: str | None
    cut: frozenset[str]
    timeline: Sequence[tuple[str, datetime]]
    not_before: datetime | None
    progress: str | None
    progress_at: datetime | None
    commits: int
    lock_key: str | None
    executor: str
    role: str | None
    node_state: str | None
    attempts: Sequence[EarlierAttempt]
    waits: tuple[str, Sequence[str]]

    @property
    def has_ended(self) -> bool:
        return self.line.status not in _OPEN


_OPEN = tuple(status for status in RunStatus if not status.is_final)


def run_page(
    ledger: Ledger, wanted: RunFilter, after: str | None, limit: int, now: datetime
) -> RunPage:
    """The latest runs that match, after those that were seen.

    Args:
        after: `RunPage.after` of the page before; None: from the newest.
    """
    rows, end = run_search.search(ledger, wanted, cursor_in(after), limit + 1)
    if len(rows) > limit:
        end = rows[limit - 1].place_ms, rows[limit - 1].id
    return RunPage(
        [run_line(row, now) for row in rows[:limit]],
        f"{end[0]}.{end[1]}" if end is not None else None,
    )


def running_lines(ledger: Ledger, limit: int, now: datetime) -> list[RunLine]:
    """The runs that go on, the longest first."""
    return [run_line(row, now) for row in run_search.running(ledger, limit)]


def run_detail(ledger: Ledger, run_id: str, now: datetime) -> RunDetail | None:
    """A run in full; None if there is none of that id, and not one alone that begins so."""
    row = run_search.one(ledger, run_id, MAX_TEXT_LENGTH)
    if row is None:
        begun = queries.find(ledger, run_id.lower())
        row = run_search.one(ledger, begun[0].id, MAX_TEXT_LENGTH) if len(begun) == 1 else None
    if row is None:
        return None
    traceback = None if row.traceback is None else mask_tail(row.traceback)
    lengths = {
        name: getattr(row, f"{name}_length") or 0
        for name in ("arguments", "error", "result", "traceback")
    }
    return RunDetail(
        line=run_line(row, now),
        arguments=arguments_shown(row.task, row.arguments, row.id),
        error_type=row.error_type,
        error=None if row.error is None else mask_head(row.error),
        traceback=traceback,
        own_frames=own_frames(traceback or ""),
        result=None if row.result is None else mask_head(row.result),
        cut=frozenset(name for name, length in lengths.items() if length > MAX_TEXT_LENGTH),
        timeline=_timeline(row),
        not_before=waits_until(row),
        progress=progress_text(row),
        progress_at=None if row.updated_ms is None else instant_of(row.updated_ms),
        commits=row.commits,
        lock_key=row.lock_key,
        executor=row.executor,
        role=row.role,
        node_state=row.node_state,
        attempts=[_earlier(each) for each in attempts_of(ledger, row.id)],
        waits=why_it_waits(ledger, row),
    )


def run_line(row: Row[Any], now: datetime) -> RunLine:
    """A row of `run_search` as a line."""
    place = f"{row.host}:{row.pid}" if getattr(row, "host", None) is not None else None
    text = said(row)
    return RunLine(
        id=row.id,
        task=row.task,
        status=row.status,
        kind=row.kind,
        attempt=row.attempt,
        at=instant_of(row.started_ms or row.scheduled_ms),
        scheduled_at=instant_of(row.scheduled_ms),
        queued_at=instant_of(row.queued_ms),
        started_at=None if row.started_ms is None else instant_of(row.started_ms),
        finished_at=None if row.finished_ms is None else instant_of(row.finished_ms),
        duration_ms=duration_ms(row, now),
        said=" ".join(mask_head(text, SAID_LENGTH).split()),
        queue=row.queue or row.executor,
        requested_by=row.requested_by,
        cancel_requested=row.cancel_requested_ms is not None,
        done=row.done,
        total=row.total,
        place=place,
        node=row.node,
    )


def _earlier(row: Row[Any]) -> EarlierAttempt:
    return EarlierAttempt(
        number=row.number,
        status=row.status,
        at=instant_of(row.started_ms or row.finished_ms),
        duration_ms=duration_ms(row, None),
        place=f"{row.host}:{row.pid}" if row.host is not None else (row.node or "")[:8],
        said=" ".join(mask_head(error_of(row) or "", SAID_LENGTH).split()),
    )


def arguments_shown(task_name: str, text: str, run_id: str) -> str:
    """The arguments of a run as JSON for a person: what is named or typed as a secret is masked."""
    try:
        values = arguments_in(text, run_id)
    except ArgumentError:  # something else, or its end was cut off
        return mask_head(text)
    task = registry.get(task_name)
    if task is not None:
        try:
            secret = signature_of(task.function).secrets
        except FsaError:  # it cannot be read, and is said where it is run
            secret = frozenset()
        values = {name: "***" if name in secret else value for name, value in values.items()}
    return dumps(values, indent=2) if values else ""


def cursor_in(text: str | None) -> tuple[int, str] | None:
    """The place in a list that an address names; None: its beginning."""
    match = _CURSOR.fullmatch(text or "")
    if match is None or abs(int(match[1])) > _LARGEST:
        return None
    return int(match[1]), match[2]


def _timeline(row: Row[Any]) -> list[tuple[str, datetime]]:
    """What is known of its way: a row keeps the last attempt."""
    known = [
        ("enqueued" if row.kind == "manual" else "due", row.scheduled_ms),
        ("recorded", row.queued_ms if row.queued_ms - row.scheduled_ms > 1000 else None),
        ("started", row.started_ms),
        ("asked to end", row.cancel_requested_ms),
        (status_words(row.status), row.finished_ms),
    ]
    return [(label, instant_of(ms)) for label, ms in known if ms is not None]
