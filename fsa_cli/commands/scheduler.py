"""`fsa scheduler`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from fsa_cli import heartbeat, schedules
from fsa_cli.commands import Fsa, scheduler_look, scheduler_steer
from fsa_cli.exceptions import (
    DatabaseUnreachable,
    FsaError,
    Interrupted,
    TaskFailed,
    Terminated,
    UsageError,
)
from fsa_cli.manual import soon, spoken
from fsa_cli.tasks import registry

if TYPE_CHECKING:
    from fsa_cli.scheduler.host import Left
    from fsa_cli.scheduler.setup import Setup

app = typer.Typer()

_INTRODUCED = 50


class LogFormat(Enum):
    text = "text"
    json = "json"


def _option(spelling: str, *, command: str = "START", **more: Any) -> Any:
    variable = f"FSA_SCHEDULER_{command}_{spelling.lstrip('-').replace('-', '_').upper()}"
    return typer.Option(spelling, envvar=variable, show_envvar=True, **more)


_tick_option = partial(_option, command="TICK")

_COMMANDS: Mapping[str, Callable[..., Any]] = {
    "list": scheduler_look.list_,
    "next": scheduler_look.next_,
    "test": scheduler_look.fires,
    "status": scheduler_look.status,
    "trigger": scheduler_steer.trigger,
    "pause": scheduler_steer.pause,
    "resume": scheduler_steer.resume,
    "init": scheduler_steer.init,
}
# What follows the name of a task is the task's.
_NOT_INTERSPERSED = {"trigger"}


@app.callback()
def scheduler() -> None:
    """Host the schedule, look at it, and steer it from any process that reaches its ledger.

    \b
      fsa scheduler start
      fsa scheduler list
      fsa scheduler status
    """


@app.command()
def start(
    context: typer.Context,
    grace_s: Annotated[
        float,
        _option(
            "--grace",
            help="Seconds that running tasks have to end after SIGTERM or Ctrl-C.",
            min=0,
            metavar="S",
        ),
    ] = 25.0,
    concurrency: Annotated[
        int | None,
        _option(
            "--concurrency",
            help="How many tasks run at a time; half of the app's connection pool (7).",
            min=1,
            metavar="N",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        _option("--only", help="Run this task and no other; again for more.", metavar="NAME"),
    ] = None,
    tag: Annotated[
        list[str] | None,
        _option("--tag", help="Run the tasks with this tag; again for more.", metavar="T"),
    ] = None,
    paused: Annotated[
        bool,
        _option("--paused", help="Pause every task first; `fsa scheduler resume` starts them."),
    ] = False,
    port: Annotated[
        int | None,
        _option("--port", help="Serve /livez, /readyz and /metrics.", min=0, max=65535),
    ] = None,
    host: Annotated[
        str, _option("--host", help="Where to serve them.", metavar="ADDRESS")
    ] = "127.0.0.1",
    log_format: Annotated[
        LogFormat, _option("--log-format", help="How each run's line is written.")
    ] = LogFormat.text,
) -> None:
    """Run every task that has a schedule, each run in a session of its own, until stopped.

    Any number of replicas may run on one database: each instant is run once. SIGTERM and Ctrl-C:
    nothing more is started, running tasks end. Exits 0 if all have ended.

    \b
      fsa scheduler start
      fsa scheduler start --grace 60 --port 8001 --log-format json
    """
    from fsa_cli.ledger import history
    from fsa_cli.scheduler import probes

    fsa = Fsa.of(context)
    setup = _setup(fsa, only or (), tag or (), json=fsa.output.json or log_format is LogFormat.json)
    if not setup.planned:
        raise UsageError(
            "no task has a schedule: there is nothing to run",
            hint='@task(schedule="0 3 * * *"), @task(schedule="every 15m")',
        )
    setup.open()
    if paused:
        history.pause(setup.ledger, [each.task.name for each in setup.planned], "--paused")
    made = setup.host(concurrency=concurrency, grace_s=grace_s, pulse=_heartbeat(setup))
    _introduce(fsa, setup)
    with contextlib.ExitStack() as stack:
        if port is not None:
            served = stack.enter_context(probes.serving(made, host, port))
            setup.log.say("probes", f"probes on http://{host}:{served}/", port=served)
        _ended(fsa, setup, made.run)
    setup.log.say("stopped", "stopped: every task that was running has ended")


@app.command()
def tick(
    context: typer.Context,
    grace_s: Annotated[
        float,
        _tick_option(
            "--grace",
            help="Seconds that running tasks have to end after SIGTERM or Ctrl-C.",
            min=0,
            metavar="S",
        ),
    ] = 25.0,
    concurrency: Annotated[
        int | None,
        _tick_option(
            "--concurrency", help="How many tasks run at a time.", min=1, show_default=False
        ),
    ] = None,
) -> None:
    """Run what is due, and exit: for a line of crontab, or a CronJob. 1 if a task failed.

    What is due is what came since the last tick: of each task the latest instant, or what its
    `catch_up` says.

    \b
      fsa scheduler tick
      fsa scheduler tick --grace 60
    """
    fsa = Fsa.of(context)
    setup = _setup(fsa, (), (), json=fsa.output.json)
    setup.open()
    made = setup.host(concurrency=concurrency, grace_s=grace_s, role="tick")
    _ended(fsa, setup, made.tick)
    failed = sum(made.counts.get(status, 0) for status in ("failed", "timed_out"))
    if failed:
        raise TaskFailed("a run failed" if failed == 1 else f"{failed} runs failed")


def _setup(fsa: Fsa, only: Sequence[str], tags: Sequence[str], *, json: bool) -> Setup:
    from fsa_cli.scheduler.setup import Setup

    loaded = fsa.load()
    return Setup.of(loaded, fsa.settings, fsa.output, registry, only=only, tags=tags, json=json)


def _ended(fsa: Fsa, setup: Setup, run: Callable[[], Left | None]) -> None:
    """Run it; leave at once where something goes wrong or is left."""
    from sqlalchemy.exc import SQLAlchemyError

    from fsa_cli.connections import driver_says
    from fsa_cli.scheduler.log import running_for

    try:
        left = run()
    except SQLAlchemyError as exc:
        unreachable = DatabaseUnreachable(
            "the ledger cannot be reached", details=[setup.ledger.where, driver_says(exc)]
        )
        unreachable.__cause__ = exc
        _leave(fsa, unreachable)
    except FsaError as exc:
        _leave(fsa, exc)
    if left is not None:
        _leave(fsa, _left(left.signal, [running_for(run) for run in left.runs]))
    for database in setup.loaded.databases.values():
        database.dispose()
    setup.ledger.dispose()


def _introduce(fsa: Fsa, setup: Setup) -> None:
    planned, target, ledger = setup.planned, setup.loaded.target, setup.ledger
    tasks = "1 task" if len(planned) == 1 else f"{len(planned)} tasks"
    text = f"fsa scheduler {os.getpid()}: {tasks} of {target}. Ctrl-C or SIGTERM stops it."
    more = {"pid": os.getpid(), "tasks": len(planned), "ledger": ledger.where}
    setup.log.say("started", text, **more, namespace=ledger.namespace)
    if setup.log.json:
        return
    fsa.output.say(f"ledger: {ledger.where}, namespace {ledger.namespace}")
    now = datetime.now(UTC)
    name_width = max(len(scheduled.task.name) for scheduled in planned)
    text_width = max(len(scheduled.schedule.text) for scheduled in planned)
    for scheduled in planned[:_INTRODUCED]:
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
    if len(planned) > _INTRODUCED:
        fsa.output.say(f"  and {len(planned) - _INTRODUCED} more: fsa scheduler list")


def _heartbeat(setup: Setup) -> Callable[[], None]:
    """What says that this process is alive; where it cannot be written, that is said once."""
    failed: list[OSError] = []

    def beat() -> None:
        try:
            heartbeat.beat()
        except OSError as exc:
            if not failed:
                setup.log.warn(f"no heartbeat for `fsa health live`: {exc} (set FSA_STATE_DIR)")
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


for name, function in _COMMANDS.items():
    settings = {"allow_interspersed_args": False} if name in _NOT_INTERSPERSED else None
    app.command(name, context_settings=settings)(function)
