"""`fsa runs`."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from fsa_cli.cli.completion import task_names
from fsa_cli.cli.context import Fsa
from fsa_cli.cli.options import option

if TYPE_CHECKING:
    from sqlalchemy import Row

    from fsa_cli.ledger.store import Ledger

app = typer.Typer()

_WATCH_EVERY_S = 2.0
_ID = typer.Argument(
    metavar="ID", help="The run's id or its beginning; a task, for its latest run; last."
)


class Status(Enum):
    """The statuses of runs, as they are stored and shown."""

    queued = "queued"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    timed_out = "timed_out"
    interrupted = "interrupted"
    missed = "missed"
    skipped = "skipped"
    cancelled = "cancelled"
    discarded = "discarded"
    dispatched = "handed_off"


@app.callback(invoke_without_command=True)
def runs(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="A task.", show_default=False, autocompletion=task_names
        ),
    ] = None,
    task: Annotated[
        str | None, option("runs", "--task", help="Only this task's.", metavar="NAME")
    ] = None,
    status: Annotated[
        list[Status] | None,
        option("runs", "--status", help="Only those; again for more.", metavar="S"),
    ] = None,
    since: Annotated[
        str | None,
        option("runs", "--since", help="Only later ones: 2h, 2026-11-22.", metavar="TIME"),
    ] = None,
    limit: Annotated[
        int, option("runs", "-n", "--limit", help="At most so many.", min=1, metavar="N")
    ] = 20,
    watch: Annotated[
        bool, option("runs", "--watch", help="Show them again every 2 s, until Ctrl-C.")
    ] = False,
) -> None:
    """What ran: the latest runs first, with status, duration, and error or result.

    \b
      fsa runs
      fsa runs count_users --since 2h
      fsa runs --status failed --status timed_out
    """
    if context.invoked_subcommand is not None:
        return
    from fsa_cli.ledger import queries
    from fsa_cli.ledger.access import existing
    from fsa_cli.runs import control
    from fsa_cli.runs import run_view as views

    fsa = Fsa.of(context)
    filters: dict[str, Any] = {
        "name": name or task,
        "statuses": [each.value for each in status or ()],
        "since_ms": views.since_ms(since, datetime.now(UTC)) if since else None,
        "limit": limit,
    }
    with existing(fsa.load(), fsa.settings) as ledger:
        if filters["name"]:
            recorded = [each.name for each in queries.tasks(ledger)]
            if not queries.runs(ledger, name=filters["name"], limit=1):
                control.known([filters["name"]], recorded)
        if watch:
            _watch(fsa, ledger, filters)
        found = queries.runs(ledger, **filters)
    _show(fsa, found)
    if not found:
        fsa.output.say(views.none_found(filters["name"], filters["statuses"], since))


@app.command()
def show(context: typer.Context, run: Annotated[str, _ID]) -> None:
    """One run in full, with its traceback; one that goes on with what it does and waits for.

    \b
      fsa runs show 3f2a
      fsa runs show last
      fsa runs show count_users --json
    """
    from fsa_cli.ledger.access import existing
    from fsa_cli.ledger.glance import executing
    from fsa_cli.runs import run_view as views
    from fsa_cli.runs.run_activity import Doing, doing
    from fsa_cli.tasks.registry import registry

    fsa = Fsa.of(context)
    loaded = fsa.load()
    with existing(loaded, fsa.settings) as ledger:
        found = views.get_run(ledger, run)
        by = executing(ledger, found.id)
        goes_on = found.status == "running"
        does = doing(ledger, [found], loaded.databases) if goes_on else {}
    now = does.get(found.id, Doing())
    if fsa.output.json:
        document = views.document(found)
        if goes_on:
            document["host"], document["pid"] = (by.host, by.pid) if by else (None, None)
            document["doing"] = asdict(now)
        fsa.output.document(document)
        return
    facts = views.details(found, datetime.now(UTC))
    if by is not None:
        facts["node"] = f"{by.role} {facts['node']}, {by.host}, pid {by.pid}"
    if goes_on:
        task = registry.get(found.task)
        limit = task.timeout_s if task is not None else None
        facts |= {"in": now.place, "sends": now.sends, "waits for": now.waits_for}
        facts["time limit"] = f"{limit:g} s" if limit is not None else "none"
        facts["end it"] = f"fsa runs cancel {found.id[:8]}"
    fsa.output.record({name: value for name, value in facts.items() if value != ""})
    if found.traceback:
        fsa.output.line(f"\n{found.traceback}")


@app.command()
def retry(context: typer.Context, run: Annotated[str, _ID]) -> None:
    """Have a scheduler run it again, with the same arguments; prints the new run's id.

    \b
      fsa runs retry 3f2a
      fsa runs retry 3f2a --json
    """
    from fsa_cli.ledger.access import existing
    from fsa_cli.runs import control
    from fsa_cli.runs import run_view as views

    fsa = Fsa.of(context)
    with existing(fsa.load(), fsa.settings) as ledger:
        new = control.retry(ledger, fsa.settings, run, fsa.output.warn)
    if fsa.output.json:
        fsa.output.document(views.document(new))
    else:
        fsa.output.line(new.id)


@app.command()
def cancel(context: typer.Context, run: Annotated[str, _ID]) -> None:
    """Cancel a run: at once if it is queued; a running one is ended by its process.

    A sync task is not killed: its statement is ended, and `TaskContext.cancelled` becomes true.

    \b
      fsa runs cancel 3f2a
      fsa runs cancel 3f2a --json
    """
    from fsa_cli.ledger.access import existing
    from fsa_cli.runs import control
    from fsa_cli.runs import run_view as views

    fsa = Fsa.of(context)
    with existing(fsa.load(), fsa.settings) as ledger:
        cancelled, was = control.cancel(ledger, run)
    if fsa.output.json:
        fsa.output.document(views.document(cancelled))
    elif was == "queued":
        fsa.output.say(f"cancelled: run {cancelled.id[:8]} of {cancelled.task}")
    else:
        fsa.output.say(f"asked to end: run {cancelled.id[:8]} of {cancelled.task}")


def _show(fsa: Fsa, found: list[Row[Any]]) -> None:
    from fsa_cli.runs import run_view as views

    if fsa.output.json:
        fsa.output.document([views.document(each) for each in found])
        return
    now = datetime.now(UTC)
    rows = [views.row(each, now) for each in found]
    if not fsa.output.console.is_terminal:
        fsa.output.table(rows, views.COLUMNS)
    elif found:
        fsa.output.table(views.without_today(rows, now), views.COLUMNS)
        fsa.output.say(views.foot(found))


def _watch(fsa: Fsa, ledger: Ledger, filters: dict[str, Any]) -> NoReturn:
    """Show them again and again: a screen on a terminal, or a line for each that has changed."""
    from fsa_cli.ledger import queries
    from fsa_cli.runs import run_view as views

    shown: dict[str, object] = {}
    try:
        while True:
            found = queries.runs(ledger, **filters)
            if fsa.output.console.is_terminal and not fsa.output.json:
                fsa.output.console.clear()
                _show(fsa, found)
                at = datetime.now(UTC)
                fsa.output.line(f"\n{at:%H:%M:%S} UTC, again every {_WATCH_EVERY_S:g} s")
            else:
                news = [each for each in found if shown.get(each.id) != each.status]
                for each in reversed(news):
                    row = views.row(each, datetime.now(UTC))
                    if fsa.output.json:
                        fsa.output.document(views.document(each))
                    else:
                        fsa.output.line("\t".join(str(row[key]) for key in views.COLUMNS))
                shown |= {each.id: each.status for each in news}
            time.sleep(_WATCH_EVERY_S)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
