"""`fsa scheduler`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.node_command import (
    HostingOptions,
    LogFormat,
    heartbeat_writer,
    host_until_signal,
    process_builder,
    run_to_end,
)
from fsa_cli.commands import scheduler_control, scheduler_inspect
from fsa_cli.exceptions import TaskFailed, UsageError
from fsa_cli.schedules.formatting import format_fire_time
from fsa_cli.schedules.timezones import zone_name
from fsa_cli.terminal.formatting import format_duration

if TYPE_CHECKING:
    from fsa_cli.processes.assembly import ProcessBuilder

app = typer.Typer()

_INTRODUCED = 50


_options = HostingOptions("scheduler start")
_tick_options = HostingOptions("scheduler tick")

_COMMANDS: Mapping[str, Callable[..., Any]] = {
    "list": scheduler_inspect.list_,
    "next": scheduler_inspect.next_,
    "test": scheduler_inspect.fires,
    "status": scheduler_inspect.status,
    "trigger": scheduler_control.trigger,
    "pause": scheduler_control.pause,
    "resume": scheduler_control.resume,
    "init": scheduler_control.init,
}
# What follows the name of a task is the task's.
_NOT_INTERSPERSED = {"trigger"}


@app.callback()
def scheduler() -> None:
    """Host the schedule, inspect it, and control it from any process that reaches its ledger.

    \b
      fsa scheduler start
      fsa scheduler list
      fsa scheduler status
    """


@app.command()
def start(
    context: typer.Context,
    grace_s: Annotated[float, _options.grace] = 25.0,
    concurrency: Annotated[int | None, _options.concurrency] = None,
    only: Annotated[
        list[str] | None,
        _options.option(
            "--only", help="Run this task and no other; again for more.", metavar="NAME"
        ),
    ] = None,
    tag: Annotated[
        list[str] | None,
        _options.option("--tag", help="Run the tasks with this tag; again for more.", metavar="T"),
    ] = None,
    paused: Annotated[
        bool,
        _options.option("--paused", help="Pause every task first: fsa scheduler resume."),
    ] = False,
    port: Annotated[int | None, _options.port] = None,
    host: Annotated[str, _options.host] = "127.0.0.1",
    log_format: Annotated[LogFormat, _options.log_format] = LogFormat.text,
    executor: Annotated[str | None, _options.executor] = None,
) -> None:
    """Run every task that has a schedule, each run in a session of its own, until stopped.

    Any number of replicas may run: each instant is run once. SIGTERM or Ctrl-C stops it; it exits
    with 0 if all that ran has ended.

    \b
      fsa scheduler start
      fsa scheduler start --grace 60 --port 8001 --log-format json
    """
    from fsa_cli.ledger import control
    from fsa_cli.ledger.nodes import namespaces_beside

    fsa = Fsa.of(context)
    fsa.use_executor(executor)
    builder = process_builder(fsa, only or (), tag or (), json=log_format is LogFormat.json)
    if not builder.planned:
        raise UsageError(
            "no task has a schedule: there is nothing to run",
            hint='@task(schedule="0 3 * * *"), @task(schedule="every 15m"); '
            "fsa worker start executes what is enqueued",
        )
    builder.open()
    if paused:
        control.pause(builder.ledger, [each.task.name for each in builder.planned], "--paused")
    node = builder.node(concurrency=concurrency, grace_s=grace_s, pulse=heartbeat_writer(builder))
    others = namespaces_beside(builder.ledger)
    host_until_signal(fsa, builder, node, host, port, partial(_introduce, fsa, builder, others))


@app.command()
def tick(
    context: typer.Context,
    grace_s: Annotated[float, _tick_options.grace] = 25.0,
    concurrency: Annotated[int | None, _tick_options.concurrency] = None,
) -> None:
    """Run what is due, and exit: for a line of crontab, or a CronJob. 1 if a task failed.

    Instants since the last tick are due: of each task the latest one, or those of its `catch_up`.

    \b
      fsa scheduler tick
      fsa scheduler tick --grace 60
    """
    fsa = Fsa.of(context)
    builder = process_builder(fsa)
    builder.open()
    node = builder.node(concurrency=concurrency, grace_s=grace_s, role="tick")
    with node.signals():
        run_to_end(fsa, builder, node.tick)
    if fsa.output.json:
        fsa.output.document({"runs": node.counts})
    failed = sum(node.counts.get(status, 0) for status in ("failed", "timed_out"))
    if failed:
        raise TaskFailed("a run failed" if failed == 1 else f"{failed} runs failed")


def _introduce(fsa: Fsa, builder: ProcessBuilder, others: Sequence[str]) -> None:
    from fsa_cli.ledger import control
    from fsa_cli.runs.scheduler_view import place

    planned, target, ledger = builder.planned, builder.loaded.target, builder.ledger
    tasks = "1 task" if len(planned) == 1 else f"{len(planned)} tasks"
    text = f"fsa scheduler {os.getpid()}: {tasks} of {target}. Ctrl-C or SIGTERM stops it."
    more = {"pid": os.getpid(), "tasks": len(planned), "ledger": ledger.where}
    builder.log.say("started", text, **more, namespace=ledger.namespace)
    if builder.log.json:
        return
    fsa.output.say(place(ledger.where, ledger.namespace, others))
    if brokers := sorted(
        {each.executor for each in planned} & builder.executors.brokers(builder.tasks).keys()
    ):
        fsa.output.say(f"carried by {' and '.join(brokers)}: fsa worker start executes those runs")
    paused = ledger.read(lambda connection: control.paused(connection, ledger.namespace))
    now = datetime.now(UTC)
    name_width = max(len(scheduled.task.name) for scheduled in planned)
    text_width = max(len(scheduled.schedule.text) for scheduled in planned)
    for scheduled in planned[:_INTRODUCED]:
        name, schedule = scheduled.task.name, scheduled.schedule
        if name in paused:
            due = f"paused: fsa scheduler resume {name}"
        elif instant := schedule.next_after(now):
            at = f"{format_fire_time(instant, schedule)} {zone_name(schedule.timezone)}"
            due = f"next {at}, in {format_duration(instant - now)}"
        else:
            due = "never again"
        fsa.output.say(f"  {name:<{name_width}}  {schedule.text:<{text_width}}  {due}")
    if len(planned) > _INTRODUCED:
        fsa.output.say(f"  and {len(planned) - _INTRODUCED} more: fsa scheduler list")


for name, function in _COMMANDS.items():
    settings = {"allow_interspersed_args": False} if name in _NOT_INTERSPERSED else None
    app.command(name, context_settings=settings)(function)
