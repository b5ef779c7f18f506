"""`fsa scheduler`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, NoReturn

import typer

from fsa_cli import heartbeat, schedules
from fsa_cli.commands import Fsa
from fsa_cli.exceptions import FsaError, Interrupted, Terminated, UsageError
from fsa_cli.finding import database_for
from fsa_cli.manual import soon, spoken
from fsa_cli.runner import Run
from fsa_cli.scheduler.log import Log, running_for
from fsa_cli.scheduler.plan import Scheduled, plan
from fsa_cli.tasks import registry

app = typer.Typer()

_NEXT = 5


@app.callback()
def scheduler() -> None:
    """Host the schedule, or look at it.

    \b
      fsa scheduler start
      fsa scheduler list
    """


@app.command()
def start(
    context: typer.Context,
    grace_s: Annotated[
        float,
        typer.Option(
            "--grace",
            help="Seconds that running tasks have to end after SIGTERM or Ctrl-C.",
            envvar="FSA_SCHEDULER_START_GRACE",
            show_envvar=True,
            min=0,
            metavar="S",
        ),
    ] = 25.0,
    concurrency: Annotated[
        int,
        typer.Option(
            help="How many tasks run at a time; each may need a connection or two of the pool.",
            envvar="FSA_SCHEDULER_START_CONCURRENCY",
            show_envvar=True,
            min=1,
            metavar="N",
        ),
    ] = 7,
) -> None:
    """Run every task that has a schedule, each run in a session of its own, until stopped.

    SIGTERM and Ctrl-C: nothing more is started, running tasks end. Exits 0 if all have ended.

    \b
      fsa scheduler start
      fsa scheduler start --grace 60
    """
    fsa = Fsa.of(context)
    loaded = fsa.load()
    planned = _planned(fsa)
    if not planned:
        raise UsageError(
            "no task has a schedule: there is nothing to run",
            hint='@task(schedule="0 3 * * *"), @task(schedule="every 15m")',
        )
    databases = {each.task.name: database_for(each.task, loaded, fsa.settings) for each in planned}
    log = Log(fsa.output, loaded, max(len(name) for name in databases))

    def order(scheduled: Scheduled, instant: datetime) -> Run:
        return Run(
            task=scheduled.task,
            arguments=scheduled.arguments,
            app=loaded.app,
            database=databases[scheduled.task.name],
            scheduled_at=instant,
        )

    from fsa_cli.scheduler.host import Host

    host = Host(
        planned, order, log, concurrency=concurrency, grace_s=grace_s, pulse=_heartbeat(fsa)
    )
    _introduce(fsa, planned, loaded.target)
    try:
        left = host.run()
    except FsaError as exc:
        _leave(fsa, exc)
    if left is not None:
        _leave(fsa, _left(left.signal, [running_for(run) for run in left.runs]))
    for database in loaded.databases.values():
        database.dispose()
    fsa.output.say("stopped: every task that was running has ended")


@app.command(name="list")
def list_(context: typer.Context) -> None:
    """The scheduled tasks and when each comes next, in its own time zone.

    \b
      fsa scheduler list
      fsa scheduler list --json
    """
    fsa = Fsa.of(context)
    fsa.load()
    now = datetime.now(UTC)
    planned = _planned(fsa)
    if fsa.output.json:
        fsa.output.document([_document(each, now) for each in planned])
    elif not planned:
        fsa.output.say('no task has a schedule: @task(schedule="0 3 * * *")')
    else:
        fsa.output.table(
            [_row(each, now) for each in planned],
            {
                "task": "task",
                "schedule": "schedule",
                "timezone": "zone",
                "next": "next",
                "in": "in",
                "then": "then",
            },
        )


def _document(scheduled: Scheduled, now: datetime) -> dict[str, object]:
    """A scheduled task as JSON has it."""
    schedule = scheduled.schedule
    return {
        "task": scheduled.task.name,
        "schedule": schedule.text,
        "timezone": schedules.zone_name(schedule.timezone),
        "next": schedules.upcoming(schedule, now, _NEXT),
    }


def _row(scheduled: Scheduled, now: datetime) -> dict[str, object]:
    """A scheduled task as a person reads it."""
    schedule = scheduled.schedule
    instants = schedules.upcoming(schedule, now, 2)
    first = instants[0] if instants else None
    return {
        **_document(scheduled, now),
        "next": soon(first, schedule) if first else "never again",
        "in": spoken(first - now) if first else "",
        "then": "".join(soon(instant, schedule, after=first) for instant in instants[1:]),
    }


def _planned(fsa: Fsa) -> list[Scheduled]:
    return plan(registry, fsa.settings.timezone)


def _introduce(fsa: Fsa, planned: list[Scheduled], target: str) -> None:
    tasks = "1 task" if len(planned) == 1 else f"{len(planned)} tasks"
    fsa.output.say(f"fsa scheduler {os.getpid()}: {tasks} of {target}. Ctrl-C or SIGTERM stops it.")
    now = datetime.now(UTC)
    name_width = max(len(scheduled.task.name) for scheduled in planned)
    text_width = max(len(scheduled.schedule.text) for scheduled in planned)
    for scheduled in planned:
        schedule = scheduled.schedule
        instant = schedule.next_after(now)
        due = (
            f"next {soon(instant, schedule)} {schedules.zone_name(schedule.timezone)}"
            f", in {spoken(instant - now)}"
            if instant
            else "never again"
        )
        fsa.output.say(
            f"  {scheduled.task.name:<{name_width}}  {schedule.text:<{text_width}}  {due}"
        )


def _heartbeat(fsa: Fsa) -> Callable[[], None]:
    """What says that this process is alive; where it cannot be written, that is said once."""
    failed: list[OSError] = []

    def beat() -> None:
        try:
            heartbeat.beat()
        except OSError as exc:
            if not failed:
                fsa.output.warn(f"no heartbeat for `fsa health live`: {exc} (set FSA_STATE_DIR)")
            failed.append(exc)

    return beat


def _left(number: signal.Signals, runs: list[str]) -> FsaError:
    kind = Interrupted if number == signal.SIGINT else Terminated
    return kind(
        f"stopped by {number.name} with work left: {', '.join(runs)}",
        details=["what it had not committed is rolled back"],
        hint="--grace S gives running tasks more time",
    )


def _leave(fsa: Fsa, error: FsaError) -> NoReturn:
    """End the process now: a thread that hangs must not hold it back."""
    fsa.output.error(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(error.exit_code)
