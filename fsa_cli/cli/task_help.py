"""The help page of a task: its description, arguments, schedule."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import Enum

from fsa_cli.schedules.formatting import format_fire_time
from fsa_cli.schedules.schedule import parse_schedule, upcoming
from fsa_cli.schedules.timezones import zone_name
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.signature import Parameter, Signature, signature_of
from fsa_cli.terminal.formatting import format_duration

__all__ = ["task_help"]

_WIDEST = 100
_NEXT = 3


def task_help(task: TaskDefinition, zone: str | None = None) -> list[str]:
    """The lines of *task*'s help page, at most 100 columns wide.

    Args:
        zone: The time zone of a schedule that names none.

    Raises:
        TaskDefinitionError, ScheduleError: what is wrong with the task or its schedule.
    """
    signature = signature_of(task.function)
    lines = [*_usage(f"fsa run-task {task.name}", signature.pieces), ""]
    description = _description(task.description)
    lines += [*(f"  {line}".rstrip() for line in description), ""] if description else []
    for heading, kinds in (("Arguments", {"argument"}), ("Options", {"option", "flag"})):
        rows = [_row(p) for p in signature.parameters if p.kind in kinds]
        lines += [*_section(heading, rows), ""] if rows else []
    lines += _section("Task", list(_facts(task, signature, zone)))
    return lines


def _width() -> int:
    """The terminal's width, if it is narrower than a page."""
    return min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)


def _usage(command: str, pieces: list[str]) -> list[str]:
    lines = [command]
    for piece in pieces:
        if len(lines[-1]) + 1 + len(piece) > _width():
            lines.append("   ")
        lines[-1] += f" {piece}"
    return lines


def _description(docstring: str) -> list[str]:
    """The docstring without its list of parameters, which has a section of its own."""
    lines: list[str] = []
    inside = False
    for line in docstring.splitlines():
        if line.strip() in ("Args:", "Arguments:", "Parameters:"):
            inside = True
        elif inside and line.strip() and not line[0].isspace():
            inside = False
        if not inside and not line.lstrip().startswith(":param"):
            lines.append(line)
    return "\n".join(lines).rstrip().splitlines()


def _row(parameter: Parameter) -> tuple[str, str]:
    if parameter.kind == "argument":
        head = parameter.label
    elif parameter.kind == "flag":
        head = f"{parameter.option}/{parameter.negative_option}"
    else:
        head = f"{parameter.option} {parameter.metavar}"
    notes = []
    if parameter.kind == "argument":
        notes.append(parameter.expected)
    if parameter.many:
        notes.append("several" if parameter.kind == "argument" else "may be repeated")
    if parameter.required:
        notes += ["required"] if parameter.kind != "argument" else []
    elif parameter.default not in (None, [], (), ""):
        notes.append(f"default: {_default(parameter)}")
    note = f"({'; '.join(notes)})" if notes else ""
    return head, f"{parameter.help} {note}".strip()


def _default(parameter: Parameter) -> str:
    value = parameter.default
    if parameter.is_secret:
        return "set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value.value if isinstance(value, Enum) else value)


def _facts(
    task: TaskDefinition, signature: Signature, zone: str | None
) -> Iterator[tuple[str, str]]:
    yield "defined", task.place
    yield "runs", "as a coroutine, in `async with db():`" if task.is_async else "in `with db():`"
    if task.schedule is not None:
        schedule = parse_schedule(task.schedule, task.timezone or zone)
        yield "schedule", f"{schedule.text} ({zone_name(schedule.timezone)})"
        if task.args:
            yield "with", ", ".join(f"{name}={value!r}" for name, value in task.args.items())
        now = datetime.now(UTC)
        instants = upcoming(schedule, now, _NEXT)
        for index, instant in enumerate(instants):
            due = f"{format_fire_time(instant, schedule)}, in {format_duration(instant - now)}"
            yield ("next" if index == 0 else ""), due
        if not instants:
            yield "next", "never again"
    if task.timeout_s is not None:
        yield "time-out", f"{task.timeout_s:g} s"
    if not task.commit:
        yield "commit", "left to the task"
    if task.database is not None:
        yield "database", task.database
    if task.executor is not None or task.queue is not None:
        queue = f", queue {task.queue}" if task.queue is not None else ""
        yield "carried by", f"{task.executor or 'what the settings say'}{queue}"
    if task.tags:
        yield "tags", ", ".join(sorted(task.tags))
    if signature.injected:
        yield "is given", ", ".join(signature.injected)


def _section(heading: str, rows: list[tuple[str, str]]) -> list[str]:
    width = min(max(len(head) for head, _ in rows), 36)
    lines = [f"{heading}:"]
    for head, text in rows:
        body = textwrap.wrap(text, max(_width() - width - 4, 20)) or [""]
        if len(head) > width:
            lines.append(f"  {head}")
            head = ""
        lines += [
            f"  {label:<{width}}  {line}".rstrip()
            for label, line in zip([head, *[""] * (len(body) - 1)], body, strict=True)
        ]
    return lines
