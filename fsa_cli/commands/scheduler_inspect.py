"""`fsa scheduler list | next | test | status`."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from fsa_cli.cli.completion import task_names
from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import option
from fsa_cli.exceptions import FsaError, NoLedger, UsageError
from fsa_cli.schedules.formatting import format_fire_time
from fsa_cli.schedules.schedule import Schedule, parse_schedule, upcoming
from fsa_cli.schedules.timezones import zone_name
from fsa_cli.tasks.lookup import get_task
from fsa_cli.tasks.registry import registry
from fsa_cli.terminal.formatting import format_duration

if TYPE_CHECKING:
    from fsa_cli.processes.schedule_plan import Scheduled

_NAME = re.compile(r"[A-Za-z_][\w.-]*")


def list_(context: typer.Context) -> None:
    """The scheduled tasks and when each comes next, in its own time zone.

    \b
      fsa scheduler list
      fsa scheduler list --json
    """
    from fsa_cli.processes.schedule_plan import plan

    fsa = Fsa.of(context)
    fsa.load()
    now = datetime.now(UTC)
    planned = plan(registry, fsa.settings.timezone)
    paused = _paused(fsa) if planned else {}
    if fsa.output.json:
        from fsa_cli.runs.coming import scheduled_task

        found = [(each.task.name, each.schedule) for each in planned]
        fsa.output.document(
            [
                asdict(scheduled_task(name, schedule, now, paused=name in paused))
                for name, schedule in found
            ]
        )
    elif not planned:
        fsa.output.say('no task has a schedule: @task(schedule="0 3 * * *")')
    else:
        columns = {"task": "task", "schedule": "schedule", "timezone": "zone", "next": "next"}
        columns |= {"in": "in", "then": "then"}
        rows = [_row(each, now, paused.get(each.task.name)) for each in planned]
        zones = {each["timezone"] for each in rows}
        if fsa.output.console.is_terminal and len(zones) == 1:
            columns["next"] += f" ({zones.pop()})"
            del columns["timezone"]
        fsa.output.table(rows, columns, spare=("then", "schedule", "timezone"))


def _paused(fsa: Fsa) -> dict[str, str]:
    """The paused tasks, and since when they are; none where no ledger can be read. It warns where
    nobody fires what is listed."""
    from fsa_cli.ledger import queries
    from fsa_cli.ledger.access import existing
    from fsa_cli.runs.node_states import is_kept
    from fsa_cli.runs.problem import since

    try:
        with existing(fsa.load(), fsa.settings) as ledger:
            tasks = queries.tasks(ledger)
            now_ms = ledger.read(ledger.now_ms)
            kept = is_kept(ledger, now_ms)
    except NoLedger:
        tasks, now_ms, kept = [], 0, False
    except FsaError as exc:
        fsa.output.detail(f"whether a task is paused is not known: {exc.message}")
        return {}
    if not kept:
        fsa.output.warn("no scheduler is alive, and nothing of this runs: fsa scheduler start")
    return {
        each.name: f"since {since(each.paused_ms, now_ms)}"
        for each in tasks
        if each.paused_ms is not None
    }


def _row(scheduled: Scheduled, now: datetime, paused: str | None) -> dict[str, object]:
    """A scheduled task for a person."""
    schedule = scheduled.schedule
    row: dict[str, object] = {
        "task": scheduled.task.name,
        "schedule": schedule.text,
        "timezone": zone_name(schedule.timezone),
    }
    if paused is not None:
        utc = "" if row["timezone"] == "UTC" else " UTC"
        return {**row, "next": f"paused {paused}{utc}", "in": "", "then": ""}
    instants = upcoming(schedule, now, 2)
    first = instants[0] if instants else None
    return {
        **row,
        "next": format_fire_time(first, schedule) if first else "never again",
        "in": format_duration(first - now) if first else "",
        "then": "".join(
            format_fire_time(instant, schedule, after=first) for instant in instants[1:]
        ),
    }


def next_(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A task; by default all of them.",
            show_default=False,
            autocompletion=task_names,
        ),
    ] = None,
    count: Annotated[
        int,
        option(
            "scheduler next", "-n", "--count", help="How many instants.", min=1, metavar="COUNT"
        ),
    ] = 10,
) -> None:
    """The coming instants, in the task's time zone and in UTC, with the changes of its clocks.

    \b
      fsa scheduler next
      fsa scheduler next count_users -n 20
      fsa scheduler next --json
    """
    from fsa_cli.processes.schedule_plan import plan
    from fsa_cli.schedules import preview

    fsa = Fsa.of(context)
    fsa.load()
    chosen = list(registry) if name is None else [get_task(name)]
    planned = plan(chosen, fsa.settings.timezone)
    if name is not None and not planned:
        raise UsageError(f"the task {name!r} has no schedule", hint="fsa scheduler list")
    now = datetime.now(UTC)
    pairs = [(each.task.name, each.schedule) for each in planned]
    found = preview.upcoming_fire_times(pairs, now, count)
    if not found:
        fsa.output.say("no task has a schedule" if not planned else "never again")
    rows = [
        {
            "task": each.task,
            "local": each.local.isoformat(sep=" "),
            "timezone": zone_name(each.schedule.timezone),
            "at": each.at if fsa.output.json else each.at.strftime("%Y-%m-%d %H:%M:%S"),
            "in": (each.at - now) if fsa.output.json else format_duration(each.at - now),
            "clocks": each.change,
        }
        for each in found
    ]
    columns = {"task": "task", "local": "local", "timezone": "zone", "at": "UTC", "in": "in"}
    if any(each.change for each in found):
        columns["clocks"] = "clocks"
    fsa.output.table(rows, columns)


def fires(
    context: typer.Context,
    schedule: Annotated[
        str, typer.Argument(metavar="SCHEDULE", help="A schedule, or the name of a task.")
    ],
    at: Annotated[
        str | None,
        option(
            "scheduler test",
            "--at",
            help="An instant; without an offset, in the zone. By default now.",
            metavar="ISO",
        ),
    ] = None,
    timezone: Annotated[
        str | None,
        option("scheduler test", "--timezone", help="The schedule's zone.", metavar="ZONE"),
    ] = None,
) -> None:
    """Does a schedule fire at an instant? Exits 0 if it does, 1 if not.

    \b
      fsa scheduler test count_users --at 2026-10-25T03:00Z
      fsa scheduler test "30 2 * * *" --at 2026-03-29T02:30
    """
    from fsa_cli.schedules import preview

    fsa = Fsa.of(context)
    meant = _schedule(fsa, schedule, timezone)
    instant = datetime.now(UTC) if at is None else preview.read_instant(at, meant)
    found = preview.check_fires(meant, instant)
    shown = {
        "schedule": meant.text,
        "timezone": zone_name(meant.timezone),
        "at": found.at,
        "fires": found.fires,
        "before": found.before,
        "after": found.after,
    }
    if not fsa.output.json:
        for key in ("at", "before", "after"):
            shown[key] = _both(shown[key], meant)
    fsa.output.record(shown)
    raise typer.Exit(0 if found.fires else 1)


def status(context: typer.Context) -> None:
    """The nodes, and the state of each task: its last run, its failures, its missed instants.

    \b
      fsa scheduler status
      fsa scheduler status --json
    """
    from fsa_cli.ledger.access import existing
    from fsa_cli.ledger.glance import glance
    from fsa_cli.runs import scheduler_view as views
    from fsa_cli.runs.task_problems import problems

    fsa = Fsa.of(context)
    with existing(fsa.load(), fsa.settings) as ledger:
        seen = glance(ledger, full=True)
        where, namespace = ledger.where, ledger.namespace
    if fsa.output.json:
        fsa.output.document(views.document(seen, where, namespace))
        return
    fsa.output.say(views.place(where, namespace, seen.elsewhere))
    for problem in problems(seen):
        if not problem.is_task:
            fsa.output.warn(": ".join(filter(None, [problem.text, ", ".join(problem.commands)])))
    every = not fsa.output.console.is_terminal
    if nodes := views.node_rows(seen, dated=every):
        fsa.output.table(nodes, views.NODE_COLUMNS)
        fsa.output.line("")
    rows = views.task_rows(seen, dated=every)
    columns = views.task_columns(rows, every=every)
    if not nodes:  # whose heading names the zone of all times
        columns["last"] += " (UTC)"
    wraps = ("note",) if "note" in columns else ()
    spare = ("running", "queued", "success", "missed")
    fsa.output.table(rows, columns, wraps=wraps, spare=spare)


def _schedule(fsa: Fsa, text: str, zone: str | None) -> Schedule:
    if _NAME.fullmatch(text):
        fsa.load()
        task = get_task(text)
        if task.schedule is None:
            raise UsageError(f"the task {text!r} has no schedule", hint="fsa scheduler list")
        return parse_schedule(task.schedule, zone or task.timezone or fsa.settings.timezone)
    return parse_schedule(text, zone or fsa.settings.timezone)


def _both(instant: object, schedule: Schedule) -> str:
    """An instant in the zone, and in UTC if that is another one."""
    if not isinstance(instant, datetime):
        return "never"
    local = instant.astimezone(schedule.timezone)
    text = f"{local:%a} {local.isoformat(sep=' ')}"
    return text if schedule.timezone is UTC else f"{text}, {instant:%Y-%m-%d %H:%M:%S} UTC"
