"""`fsa scheduler trigger | pause | resume | init`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from fsa_cli.cli.completion import task_names
from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import option, priority_option, run_after_option, unique_option
from fsa_cli.cli.task_call import ENQUEUES, enqueue, read
from fsa_cli.exceptions import UsageError
from fsa_cli.tasks.registry import registry

#: The options of `trigger` that may also stand after NAME, and whether each takes a value.
_OWN = {"--wait": False, "--args-json": True, **ENQUEUES, "--help": False, "-h": False}


_NAMES = typer.Argument(metavar="NAME", help="A task.", autocompletion=task_names)


def trigger(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A task.", autocompletion=task_names)],
    argv: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGS", help="The task's own: fsa run-task NAME --help."),
    ] = None,
    args_json: Annotated[
        str | None,
        option(
            "scheduler trigger",
            "--args-json",
            help="Its arguments as a JSON object, @FILE or -.",
            metavar="JSON",
        ),
    ] = None,
    wait: Annotated[
        bool, option("scheduler trigger", "--wait", help="Wait for its end, and exit as it ended.")
    ] = False,
    run_after: Annotated[str | None, run_after_option("scheduler trigger")] = None,
    priority: Annotated[str | None, priority_option("scheduler trigger")] = None,
    unique: Annotated[str | None, unique_option("scheduler trigger")] = None,
) -> None:
    """Have a scheduler run a task soon; prints the run's id. Also while the task is paused.

    \b
      fsa scheduler trigger count_users
      fsa scheduler trigger count_users --no-active --since 2026-01-01 --wait
      fsa scheduler trigger count_users --run-after 10m --priority 10
    """
    from fsa_cli.cli.task_help import task_help

    fsa = Fsa.of(context)
    given = {
        "--args-json": args_json,
        "--wait": "" if wait else None,
        "--run-after": run_after,
        "--priority": priority,
        "--unique": unique,
    }
    call = read(fsa, name, argv or [], given, _OWN)
    if call.help:
        for line in task_help(call.task, fsa.settings.timezone):
            fsa.output.line(line)
        return
    enqueue(fsa, call, waits="--wait" in call.options)


def pause(
    context: typer.Context,
    names: Annotated[list[str] | None, _NAMES] = None,
    every: Annotated[
        bool, option("scheduler pause", "--all", help="Every task that has a schedule.")
    ] = False,
    queue: Annotated[
        str | None, option("scheduler pause", "--queue", help="Tasks of this queue.", metavar="Q")
    ] = None,
    tag: Annotated[
        str | None, option("scheduler pause", "--tag", help="Tasks with this tag.", metavar="TAG")
    ] = None,
) -> None:
    """Pause the schedules of tasks; instants that come meanwhile are recorded as skipped.

    \b
      fsa scheduler pause count_users
      fsa scheduler pause --all
      fsa scheduler pause --tag nightly
    """
    _steer(Fsa.of(context), names or [], every, queue, tag, paused=True)


def resume(
    context: typer.Context,
    names: Annotated[list[str] | None, _NAMES] = None,
    every: Annotated[
        bool, option("scheduler resume", "--all", help="Every task that is paused.")
    ] = False,
    queue: Annotated[
        str | None, option("scheduler resume", "--queue", help="Tasks of this queue.", metavar="Q")
    ] = None,
    tag: Annotated[
        str | None, option("scheduler resume", "--tag", help="Tasks with this tag.", metavar="TAG")
    ] = None,
) -> None:
    """Resume the schedules of paused tasks.

    \b
      fsa scheduler resume count_users
      fsa scheduler resume --all
    """
    _steer(Fsa.of(context), names or [], every, queue, tag, paused=False)


def init(
    context: typer.Context,
    sql: Annotated[
        bool, option("scheduler init", "--sql", help="Print its SQL; connect to nothing.")
    ] = False,
) -> None:
    """Create the tables of the ledger of runs, as `fsa scheduler start` would.

    \b
      fsa scheduler init
      fsa scheduler init --sql > ledger.sql
    """
    from fsa_cli.ledger import schema
    from fsa_cli.ledger.location import ledger_of
    from fsa_cli.migrations.scripts import find
    from fsa_cli.runs.executor_registry import ExecutorRegistry

    fsa = Fsa.of(context)
    loaded = fsa.load()
    ledger = ledger_of(loaded.databases, fsa.settings)
    brokers = [
        each for each, _ in ExecutorRegistry(ledger, fsa.settings).brokers(registry).values()
    ]
    if sql:
        for statement in schema.statements(ledger, loaded.databases.values()):
            fsa.output.text(statement)
        for broker in brokers:
            for statement in broker.statements():
                fsa.output.text(statement)
        return
    created = schema.create(ledger, loaded.databases.values(), fsa.output.warn)
    prepared = [broker.name for broker in brokers if broker.prepare()]
    ledger.dispose()
    if not find(fsa.settings).spares_own_tables():
        fsa.output.warn(
            "alembic revision --autogenerate would drop the tables fsa_*: in its env.py, from"
            " fsa_cli import include_name, and context.configure(include_name=include_name, ...)"
        )
    if fsa.output.json:
        fsa.output.document({"ledger": ledger.where, "made": created, "brokers": prepared})
        return
    fsa.output.say(f"{'created' if created else 'it exists already'}: {ledger.where}")
    for name in prepared:
        fsa.output.say(f"created: the tables of {name}")


def _steer(
    fsa: Fsa,
    names: Sequence[str],
    every: bool,
    queue: str | None,
    tag: str | None,
    *,
    paused: bool,
) -> None:
    from fsa_cli.ledger.access import existing
    from fsa_cli.runs import control

    if sum(map(bool, (names, every, queue or tag))) != 1:
        raise UsageError("which tasks?", hint="their names, --queue, --tag, or --all")
    loaded = fsa.load()
    if queue or tag:
        names = [
            each.name
            for each in registry
            if (not paused or each.schedule is not None)
            and (queue is None or each.queue == queue)
            and (tag is None or tag in each.tags)
        ]
        if not names:
            raise UsageError("no task is like that", hint="fsa tasks lists them")
    with existing(loaded, fsa.settings) as ledger:
        change = control.pause if paused else control.resume
        changed = change(ledger, names)
    if fsa.output.json:
        fsa.output.document({"paused" if paused else "resumed": changed})
        return
    for name in changed:
        fsa.output.line(name)
    was = "paused" if paused else "resumed"
    tasks = "1 task" if len(changed) == 1 else f"{len(changed)} tasks"
    fsa.output.say(f"{was} {tasks}" if changed else f"nothing was {was}: it is so already")
