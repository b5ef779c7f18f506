"""`fsa status`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from shlex import quote
from typing import TYPE_CHECKING

import typer

from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.sections import Section, Thing, shorten
from fsa_cli.exceptions import FsaError, LedgerUnusable
from fsa_cli.terminal.escaping import one_line
from fsa_cli.terminal.folding import fold, side_by_side
from fsa_cli.terminal.formatting import (
    format_duration,
    format_elapsed,
    format_span,
    format_time,
    format_times,
)
from fsa_cli.terminal.masking import mask_within

if TYPE_CHECKING:
    from fsa_cli.ledger.glance import Glance
    from fsa_cli.processes.schedule_plan import Scheduled
    from fsa_cli.project.loader import LoadedApp
    from fsa_cli.runs.failures import Failures
    from fsa_cli.runs.problem import Problem
    from fsa_cli.runs.run_activity import Doing
    from fsa_cli.tasks.definition import TaskDefinition

app = typer.Typer()

_NEXT = 5
_PAST = 5
_SHOWN = 160
_DETAIL_LINES = 3
_NAME_WIDTH = 24
_LEAST = 8
# A pager breaks what is longer in the middle of a word.
_PAGER_WIDTH = 80


@app.command()
def status(context: typer.Context) -> None:
    """One look: what is alive, what needs a look, what runs, what comes next.

    \b
      fsa status
      fsa status --json

    Each thing that needs a look stands with the command that shows more or is the cure. Exits with
    0 also then: `fsa health` is for exit codes.
    """
    from fsa_cli.ledger.access import existing
    from fsa_cli.ledger.glance import glance
    from fsa_cli.processes.schedule_plan import plan_and_faults
    from fsa_cli.runs.failures import failures
    from fsa_cli.runs.node_states import is_schedule_kept
    from fsa_cli.runs.problem import Problem
    from fsa_cli.runs.run_activity import doing
    from fsa_cli.runs.task_problems import problems
    from fsa_cli.tasks.registry import registry

    fsa = Fsa.of(context)
    loaded = fsa.load()
    seen: Glance | None = None
    does: dict[str, Doing] = {}
    past: list[Failures] = []
    try:
        with existing(loaded, fsa.settings) as ledger:
            seen = glance(ledger, full=True)
            does = doing(ledger, seen.running, loaded.databases)
            past = [each for each in failures(ledger, seen.now_ms, seen.tasks) if each.is_over]
        found = problems(seen)
    except LedgerUnusable as exc:
        # Without a database the ledger would be a file of this machine: that comes first.
        names_none = not loaded.databases and not fsa.settings.ledger_url
        subject, wrong = ("database", loaded.no_database()) if names_none else ("ledger", exc)
        found = [Problem(subject, wrong.message, "; ".join(wrong.details), (wrong.hint or "",))]
    planned, faults = plan_and_faults(registry, fsa.settings.timezone)
    schema, is_behind = _schema(fsa)
    found += _problems_here(loaded, faults, schema if is_behind else "")
    coming = _coming(planned, seen)
    if fsa.output.json:
        fsa.output.document(_document(fsa, seen, found, past, coming))
        return
    waits = seen is None or not is_schedule_kept(seen.nodes, seen.now_ms)
    sections = [
        Section("needs a look", list(_problem_lines(fsa, found))),
        Section("running", list(_running_lines(fsa, seen, does)) if seen is not None else []),
        Section(
            "over since yesterday",
            list(_past_lines(fsa, past[:_PAST])),
            left_out=max(len(past) - _PAST, 0),
            is_over=True,
        ),
        Section("next, once a scheduler is alive" if waits else "next", _coming_lines(fsa, coming)),
    ]
    console = fsa.output.console
    head = [_head(fsa, schema), *(_counts(seen) if seen is not None else ())]
    if console.is_terminal:
        head = [part for line in head for part in fold(one_line(line), console.width, indent=2)]
    if console.is_terminal and shorten(sections, console.height - len(head), console.width):
        head.append("in full: fsa status | less")
    for line in head:
        fsa.output.line(line)
    for section in sections:
        section.tell(fsa.output)


def _cut(fsa: Fsa, line: str) -> str:
    """One line, which a terminal does not fold."""
    console, line = fsa.output.console, one_line(line)
    width = console.width if console.is_terminal else 0
    return mask_within(line, width) if width else line


def _problems_here(
    loaded: LoadedApp, faults: Sequence[tuple[TaskDefinition, FsaError]], behind: str
) -> Iterator[Problem]:
    """What keeps the next process from starting, or from doing its work."""
    from fsa_cli.runs.problem import Problem

    if (failure := loaded.failure) is not None:
        cure = failure.hint or "fsa doctor"
        yield Problem("app", failure.message, "; ".join(failure.details), (cure,))
    if behind:
        yield Problem("schema", behind, "", ("fsa db upgrade",))
    for task, exc in faults:
        said = "cannot be scheduled, and no scheduler or worker starts"
        told = f"{exc.message} ({task.place})"
        yield Problem(task.name, said, told, (exc.hint or "",), is_task=True)


def _head(fsa: Fsa, schema: str) -> str:
    from fsa_cli.database.identity import address

    loaded, namespace = fsa.load(), fsa.settings.namespace
    databases = ", ".join(address(each.url) for each in loaded.databases.values()) or "no database"
    environment = fsa.environment()
    guard = ", protected" if environment.protected else ""
    named = f"  {environment.name}{guard}" if environment.name else ""
    databases += f", schema {schema}" if schema else ""
    return f"{namespace}{named}  {loaded.target}  {databases}"


def _schema(fsa: Fsa) -> tuple[str, bool]:
    """Where the schema is, nothing where the project has no migrations; whether not at head."""
    from fsa_cli.migrations import is_at_head

    try:
        state = is_at_head(fsa.load(), fsa.settings)
        return ("", False) if state is None else (str(state), not state.at_head)
    except FsaError as exc:
        return f"unknown: {exc.message}", False


def _counts(seen: Glance) -> Iterator[str]:
    from fsa_cli.ledger.records import RunStatus
    from fsa_cli.ledger.time import instant_of
    from fsa_cli.runs.node_states import lives

    at = f"{instant_of(seen.now_ms):%H:%M:%S} UTC"  # as all times below
    alive = Counter(each.role for each in seen.nodes if lives(each, seen.now_ms))
    processes = [
        f"{number} {role}{'s' if number > 1 else ''}" for role, number in sorted(alive.items())
    ]
    running = sum(each.get("running", 0) for each in seen.open_runs.values())
    due = [each for each in seen.waiting if each.due and each.status == RunStatus.QUEUED]
    queued = f"{sum(each.due for each in due)} queued"
    if due:
        oldest_ms = min(each.due_ms for each in due)
        queued += f" for {format_span(seen.now_ms - oldest_ms)}"
    carried = sum(each.number for each in seen.waiting if each.status == RunStatus.DISPATCHED)
    dispatched = f"{carried} dispatched" if carried else ""
    clock_s = time.time() - seen.now_ms / 1000
    clock = f"clock {clock_s:+.1f} s" if abs(clock_s) >= 1 else ""
    alive_here = f"{', '.join(processes) or 'no process'} alive"
    parts = [at, alive_here, f"{running} running", queued, dispatched, clock]
    yield "   ".join(part for part in parts if part)
    if seen.elsewhere:
        others = ", ".join(seen.elsewhere)
        yield f"also alive in this ledger, in namespaces of their own: {others}"


def _problem_lines(fsa: Fsa, found: list[Problem]) -> Iterator[Thing]:
    """Each with what is known of it, and its commands, none of which is cut."""
    console = fsa.output.console
    width = min(max((len(each.subject) for each in found), default=0), _NAME_WIDTH)
    room = max(console.width - width - 4, 1) if console.is_terminal else 0
    for each in found:
        name = f"  {each.subject:<{width}}"
        thing = Thing("\n".join(fsa.output.fact_lines(name, each.said, below=width + 4)))
        if detail := " ".join(each.detail.split()):
            told = mask_within(detail, _DETAIL_LINES * room) if room else detail
            thing.detail += fsa.output.fact_lines(f"  {'':<{width}}", told)
        commands = [command for command in each.commands if command]
        for line in side_by_side(commands, room or _PAGER_WIDTH - width - 4):
            thing.commands += fsa.output.fact_lines(f"  {'':<{width}}", line)
        yield thing


def _past_lines(fsa: Fsa, past: Sequence[Failures]) -> Iterator[Thing]:
    from fsa_cli.ledger.records import status_words

    width = min(max((len(each.task) for each in past), default=0), _NAME_WIDTH)
    now = datetime.now(UTC)
    for each in past:
        number = f"{each.number}+ times" if each.more else format_times(each.number)
        said = f"{status_words(each.status)} {number}, the last at "
        said += f"{format_time(each.last_at, now)}; it has succeeded since"
        name = f"  {each.task:<{width}}"
        first = "\n".join(fsa.output.fact_lines(name, said, below=width + 4))
        show = f"fsa runs {quote(each.task)} --status {each.status}"
        yield Thing(first, commands=fsa.output.fact_lines(f"  {'':<{width}}", show))


def _running_lines(fsa: Fsa, seen: Glance, does: dict[str, Doing]) -> Iterator[Thing]:
    from fsa_cli.runs.run_view import progress_text

    def lines(text: str) -> list[str]:
        return fsa.output.fact_lines(" " * 10, text)

    for run in seen.running:
        took = format_elapsed(max(seen.now_ms - (run.started_ms or seen.now_ms), 0))
        where = f"{run.role} {run.host}:{run.pid}" if run.host else "of no known process"
        come = progress_text(run) or ""
        line = f"  {run.id[:8]}  {took}  {run.task}  {where}  {come}".rstrip()
        thing, doing = Thing(_cut(fsa, line)), does.get(run.id)
        if doing is not None and doing.place:
            thing.detail += lines(mask_within(f"in {doing.place}", _SHOWN))
        if doing is not None and doing.waits_for:
            waits = lines(mask_within(f"waits for {doing.waits_for}", _SHOWN))
            thing.said = "\n".join([thing.said, *waits])
            show = f"fsa runs show {run.id[:8]}     fsa runs cancel {run.id[:8]}"
            thing.commands += [part for each in (*doing.cures, show) for part in lines(each)]
        elif doing is not None and doing.sends:
            thing.detail += lines(mask_within(doing.sends, _SHOWN))
        yield thing


def _coming_lines(fsa: Fsa, coming: list[dict[str, object]]) -> list[Thing]:
    """The time stands before a name of any length, and the schedule gives way."""
    times = [f"in {each['in']}" if each["in"] else f"{each['state']}" for each in coming]
    of_time = max(map(len, times), default=0)
    width = max((len(str(each["task"])) for each in coming), default=0)
    width = min(width, _NAME_WIDTH)
    console, lines = fsa.output.console, []
    for at, each in zip(times, coming, strict=True):
        line, schedule = f"  {at:<{of_time}}  {each['task']:<{width}}", str(each["schedule"])
        has_room = (
            not console.is_terminal or len(line) + 2 + min(len(schedule), _LEAST) <= console.width
        )
        lines.append(Thing(_cut(fsa, f"{line}  {schedule}" if has_room else line)))
    return lines


def _coming(planned: Sequence[Scheduled], seen: Glance | None) -> list[dict[str, object]]:
    """The next instants, the nearest first; a task that is paused, or that no scheduler of those
    that live knows, has none."""
    from fsa_cli.runs.node_states import roles_alive
    from fsa_cli.schedules.schedule import upcoming

    paused = {each.name for each in seen.tasks if each.paused_ms is not None} if seen else set()
    known = None
    if seen is not None and "scheduler" in roles_alive(seen.nodes, seen.now_ms):
        known = seen.known
    now = datetime.now(UTC)
    rows = []
    for each in planned:
        at, state = next(iter(upcoming(each.schedule, now, 1)), None), ""
        if each.task.name in paused:
            at, state = None, "paused"
        elif known is not None and each.task.name not in known:
            at, state = None, "not fired"
        elif at is None:
            state = "never again"
        span = format_duration(at - now) if at is not None else ""
        rows.append((at, each.task.name, each.schedule.text, span, state))
    rows.sort(key=lambda row: (row[0] is None, row[0] or now, row[1]))
    return [
        {"task": name, "schedule": text, "at": at, "in": span, "state": state}
        for at, name, text, span, state in rows[:_NEXT]
    ]


def _document(
    fsa: Fsa,
    seen: Glance | None,
    found: list[Problem],
    past: list[Failures],
    coming: list[dict[str, object]],
) -> dict[str, object]:
    from fsa_cli.ledger.time import instant_of
    from fsa_cli.runs import scheduler_view
    from fsa_cli.runs.run_pages import run_line

    loaded, settings = fsa.load(), fsa.settings
    document: dict[str, object] = {"namespace": settings.namespace, "app": loaded.target}
    if seen is not None:
        document |= scheduler_view.document(seen, "", settings.namespace)
        now = instant_of(seen.now_ms)
        document["running"] = [asdict(run_line(run, now)) for run in seen.running]
        document["waiting"] = [
            {"task": each.task, "status": each.status, "number": each.due}
            for each in seen.waiting
            if each.due
        ]
    document["problems"] = [asdict(each) for each in found]
    document["over"] = [asdict(each) for each in past]
    document["next"] = coming
    return document
