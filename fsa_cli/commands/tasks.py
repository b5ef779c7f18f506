"""`fsa tasks`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from fsa_cli.cli.completion import task_names
from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.task_help import task_help
from fsa_cli.exceptions import FsaError
from fsa_cli.schedules.schedule import parse_schedule
from fsa_cli.schedules.timezones import zone_name
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.lookup import NONE_REGISTERED, get_task
from fsa_cli.tasks.registry import registry
from fsa_cli.tasks.signature import Parameter, signature_of

app = typer.Typer()


@app.command()
def tasks(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="One task in full.",
            show_default=False,
            autocompletion=task_names,
        ),
    ] = None,
) -> None:
    """The registered tasks: what they take, when they run; one task in full.

    \b
      fsa tasks
      fsa tasks count_users
      fsa tasks --json
    """
    fsa = Fsa.of(context)
    fsa.load()
    zone = fsa.settings.timezone
    if name is not None:
        task = get_task(name)
        if fsa.output.json:
            fsa.output.document(_document(task, zone))
            return
        for line in task_help(task, zone):
            fsa.output.line(line)
        return
    rows: list[dict[str, object]] = []
    for task in registry:
        try:
            row = _document(task, zone)
            if not fsa.output.json:
                row["takes"] = signature_of(task.function).short_usage
            rows.append(row)
        except FsaError as exc:
            problem = f"{exc.message}; {exc.hint}" if exc.hint else exc.message
            rows.append({"name": task.name, "summary": task.summary, "problem": problem})
            fsa.output.warn(f"{task.name} ({task.place}): {problem}")
    if not rows:
        fsa.output.say(NONE_REGISTERED)
    fsa.output.table(
        rows, {"name": "task", "takes": "takes", "schedule": "schedule", "summary": "what it does"}
    )


def _document(task: TaskDefinition, zone: str | None) -> dict[str, object]:
    """A task as JSON."""
    signature = signature_of(task.function)
    schedule = None
    if task.schedule is not None:
        schedule = parse_schedule(task.schedule, task.timezone or zone)
    return {
        "name": task.name,
        "summary": task.summary,
        "usage": signature.usage,
        "parameters": [_parameter(parameter) for parameter in signature.parameters],
        "schedule": schedule.text if schedule else None,
        "timezone": zone_name(schedule.timezone) if schedule else None,
        "next": schedule.next_after(datetime.now(UTC)) if schedule else None,
        "args": dict(task.args),
        "timeout_s": task.timeout_s,
        "commit": task.commit,
        "database": task.database,
        "executor": task.executor,
        "queue": task.queue,
        "tags": sorted(task.tags),
        "async": task.is_async,
        "file": task.file,
        "line": task.line,
    }


def _parameter(parameter: Parameter) -> dict[str, object]:
    return {
        "name": parameter.name,
        "kind": parameter.kind,
        "type": parameter.metavar,
        "required": parameter.required,
        "repeatable": parameter.many,
        "default": None if parameter.required or parameter.is_secret else parameter.default,
        "choices": list(parameter.choices) or None,
        "help": parameter.help or None,
    }
