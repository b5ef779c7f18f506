"""`fsa runs`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from fsa_cli.cli.command_tree import USUAL
from fsa_cli.cli.completion import task_names
from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import confirm_option, option
from fsa_cli.exceptions import TaskNotFound, UsageError
from fsa_cli.terminal.folding import side_by_side

if TYPE_CHECKING:
    from sqlalchemy import Row

    from fsa_cli.ledger.store import Ledger

app = typer.Typer()

_WATCH_EVERY_S = 2.0
_ID = typer.Argument(
    metavar="ID", help="The run's id or its beginning; a task, for its latest run; last."
)
_ID_OR_FILTERS = typer.Argument(
    metavar="ID", help="As in show; without it the options choose the runs."
)
# Of one statement's answer; who has more does it again.
_MOST = 10_000
_OPEN = ("queued", "handed_off", "running")
# As many characters of an id as are shown.
_ID_SHOWN = 8
_BROKEN_OFF = ("interrupted", "timed_out")


class Status(Enum):
    """The statuses of runs, as they are stored; and what texts call one of them."""

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
    handed_off = "handed_off"
    dispatched = "dispatched"


def _task(command: str) -> Any:
    return option(command, "--task", help="Only this task's.", metavar="NAME")


def _status(command: str) -> Any:
    return option(command, "--status", help="Only those; again for more.", metavar="S")


def _since(command: str) -> Any:
    return option(command, "--since", help="Only later ones: 2h, 2026-11-22.", metavar="TIME")


def _queue(command: str) -> Any:
    return option(command, "--queue", help="Only those of this queue.", metavar="Q")


def _tag(command: str) -> Any:
    return option(command, "--tag", help="Only of tasks that have this tag.", metavar="TAG")


def _unique(command: str) -> Any:
    return option(command, "--unique", help="Only the run that has this key.", metavar="KEY")


@app.callback(invoke_without_command=True)
def runs(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A task.", hidden=True, autocompletion=task_names),
    ] = None,
    task: Annotated[str | None, _task("runs")] = None,
    status: Annotated[list[Status] | None, _status("runs")] = None,
    since: Annotated[str | None, _since("runs")] = None,
    queue: Annotated[str | None, _queue("runs")] = None,
    tag: Annotated[str | None, _tag("runs")] = None,
    unique: Annotated[str | None, _unique("runs")] = None,
    limit: Annotated[
        int,
        option("runs", "-n", "--limit", help="At most so many.", min=1, max=10**9, metavar="N"),
    ] = 20,
    watch: Annotated[
        bool, option("runs", "--watch", help="Show them again every 2 s, until Ctrl-C.")
    ] = False,
) -> None:
    """What ran, of all tasks or of NAME: the latest first, with error or result.

    \b
      fsa runs count_users --since 2h
      fsa runs --status failed --status timed_out
    """
    if context.invoked_subcommand is not None:
        return
    from fsa_cli.ledger import queries
    from fsa_cli.ledger.access import existing
    from fsa_cli.runs import run_view as views

    fsa = Fsa.of(context)
    with existing(fsa.load(), fsa.settings) as ledger:
        filters = _filters(ledger, name or task, status, since, queue, tag, unique)
        filters["limit"] = limit
        if watch:
            _watch(fsa, ledger, filters)
        found = queries.runs(ledger, **filters)
    _show(fsa, found)
    if not found:
        if queue or tag or unique:
            fsa.output.say("no run is like that")
        else:
            fsa.output.say(views.none_found(name or task, filters["statuses"], since))


@app.command()
def show(context: typer.Context, run: Annotated[str, _ID]) -> None:
    """One run in full, with its traceback; one that goes on with what it does and waits for.

    \b
      fsa runs show 3f2a
      fsa runs show last
      fsa runs show count_users --json
    """
    from fsa_cli.ledger.access import existing
    from fsa_cli.ledger.activity import activities
    from fsa_cli.ledger.attempts import attempts_of
    from fsa_cli.ledger.glance import executing
    from fsa_cli.runs import run_view as views
    from fsa_cli.runs.run_activity import Doing, doing
    from fsa_cli.runs.task_problems import BAD
    from fsa_cli.runs.waiting_run import why_it_waits
    from fsa_cli.tasks.registry import registry

    fsa = Fsa.of(context)
    loaded = fsa.load()
    with existing(loaded, fsa.settings) as ledger:
        found = views.get_run(ledger, run)
        by = executing(ledger, found.id)
        earlier = attempts_of(ledger, found.id)
        goes_on = found.status == "running"
        does = doing(ledger, [found], loaded.databases) if goes_on else {}
        waits, cures = why_it_waits(ledger, found)
        was = activities(ledger, [found.id]) if found.status in _BROKEN_OFF else {}
    now = does.get(found.id, Doing())
    if fsa.output.json:
        document = views.document(found)
        document["earlier_attempts"] = [views.attempt_document(each) for each in earlier]
        if goes_on:
            document["host"], document["pid"] = (by.host, by.pid) if by else (None, None)
            document["doing"] = asdict(now)
        if waits:
            document["waits_because"], document["commands"] = waits, cures
        fsa.output.document(document)
        return
    now_at = datetime.now(UTC)
    facts = views.details(found, now_at)
    if by is not None:
        facts["node"] = f"{by.role} {facts['node']}, {by.host}, pid {by.pid}"
    if goes_on and (silent := _silent(by)):
        facts["but"] = silent
    elif goes_on:
        task = registry.get(found.task)
        limit = task.timeout_s if task is not None else None
        facts |= {"in": now.place, "sends": now.sends, "waits for": now.waits_for}
        facts["end that session"] = "; ".join(now.cures)
        facts["time limit"] = f"{limit:g} s" if limit is not None else "none"
        facts["end it"] = (
            f"it is asked to; Python that computes ends with pid {by.pid} of {by.host} alone"
            if found.cancel_requested_ms is not None and by is not None
            else f"fsa runs cancel {found.id[:8]}"
        )
    elif waits:
        facts |= {"waits because": waits, "then": "; ".join(cures)}
    elif found.id in was:
        facts["was in"] = was[found.id].place
    if found.status in BAD:
        facts["try it again"] = f"fsa runs retry {found.id[:8]}"
    fsa.output.record({name: value for name, value in facts.items() if value != ""})
    if found.traceback:
        fsa.output.text(f"\n{found.traceback}")
    if earlier:
        fsa.output.line("")
        fsa.output.heading("earlier attempts")
        dated = not fsa.output.console.is_terminal
        rows = [views.attempt_row(each, now_at, dated=dated) for each in earlier]
        fsa.output.table(rows, views.ATTEMPT_COLUMNS, spare=["took", "by"])


@app.command()
def retry(
    context: typer.Context,
    run: Annotated[str | None, _ID_OR_FILTERS] = None,
    task: Annotated[str | None, _task("runs retry")] = None,
    status: Annotated[list[Status] | None, _status("runs retry")] = None,
    since: Annotated[str | None, _since("runs retry")] = None,
    queue: Annotated[str | None, _queue("runs retry")] = None,
    tag: Annotated[str | None, _tag("runs retry")] = None,
    unique: Annotated[str | None, _unique("runs retry")] = None,
    confirm: Annotated[str | None, confirm_option("runs retry")] = None,
) -> None:
    """Have a scheduler run it again, with the same arguments; prints the new id.

    With filters in place of an id: all runs that have ended and are like that. It
    says how many and asks; --yes does not ask. Doing it twice runs them twice.

    \b
      fsa runs retry 3f2a
      fsa runs retry --status failed --task ship --since 2h
    """
    from fsa_cli.ledger import queries
    from fsa_cli.ledger.access import existing
    from fsa_cli.ledger.tables import FINAL
    from fsa_cli.runs import control
    from fsa_cli.runs import run_view as views

    fsa = Fsa.of(context)
    _one_or_filters(run, task, status, since, queue, tag, unique)
    with existing(fsa.load(), fsa.settings) as ledger:
        if run is not None:
            new = control.retry(ledger, fsa.settings, run, fsa.output.warn)
            if fsa.output.json:
                fsa.output.document(views.document(new))
            else:
                fsa.output.line(new.id)
            return
        filters = _filters(ledger, task, status, since, queue, tag, unique)
        filters["statuses"] = [e for e in filters["statuses"] or FINAL if e in FINAL]
        before = queries.runs(ledger, **filters, limit=_MOST) if filters["statuses"] else []
        if before:
            _agree(fsa, f"retry {_number(before)}", confirm)
        ids = control.retry_many(ledger, fsa.settings, before[::-1], fsa.output.warn)
    if fsa.output.json:
        fsa.output.document({"retried": ids})
        return
    for each in ids:
        fsa.output.line(each)
    fsa.output.say(f"enqueued {len(ids)} of {_number(before)}" if before else "no run is like that")


@app.command()
def cancel(
    context: typer.Context,
    run: Annotated[str | None, _ID_OR_FILTERS] = None,
    task: Annotated[str | None, _task("runs cancel")] = None,
    status: Annotated[list[Status] | None, _status("runs cancel")] = None,
    since: Annotated[str | None, _since("runs cancel")] = None,
    queue: Annotated[str | None, _queue("runs cancel")] = None,
    tag: Annotated[str | None, _tag("runs cancel")] = None,
    unique: Annotated[str | None, _unique("runs cancel")] = None,
    confirm: Annotated[str | None, confirm_option("runs cancel")] = None,
) -> None:
    """Cancel a run: a queued one at once; a running one is asked to end.

    With filters in place of an id: all runs that have not ended and are like that.
    It says how many and asks; --yes does not ask.

    \b
      fsa runs cancel 3f2a
      fsa runs cancel --status queued --queue mail
    """
    from fsa_cli.ledger import control as ledger_control
    from fsa_cli.ledger import queries
    from fsa_cli.ledger.access import existing
    from fsa_cli.ledger.glance import executing
    from fsa_cli.runs import control
    from fsa_cli.runs import run_view as views

    fsa = Fsa.of(context)
    _one_or_filters(run, task, status, since, queue, tag, unique)
    with existing(fsa.load(), fsa.settings) as ledger:
        if run is not None:
            cancelled, was = control.cancel(ledger, run)
            done = "cancelled" if was == "queued" else "asked to end"
            if fsa.output.json:
                fsa.output.document(views.document(cancelled))
            else:
                fsa.output.say(f"{done}: run {cancelled.id[:8]} of {cancelled.task}")
                if was == "running" and (silent := _silent(executing(ledger, cancelled.id))):
                    fsa.output.warn(silent)
            return
        filters = _filters(ledger, task, status, since, queue, tag, unique)
        filters["statuses"] = [e for e in filters["statuses"] or _OPEN if e in _OPEN]
        found = queries.runs(ledger, **filters, limit=_MOST) if filters["statuses"] else []
        if found:
            _agree(fsa, f"cancel {_number(found)}", confirm)
        queued, running = ledger_control.cancel_many(ledger, [each.id for each in found])
    if fsa.output.json:
        fsa.output.document({"cancelled": queued, "asked_to_end": running})
    elif found:
        fsa.output.say(f"cancelled: {queued}; asked to end: {running}")
    else:
        fsa.output.say("no run is like that")


def _silent(by: Row[Any] | None) -> str:
    """What is said of a run whose process is past its lease; nothing where it is not."""
    from fsa_cli.runs.problem import since

    if by is None or by.lease_until_ms >= by.now_ms:
        return ""
    return (
        f"its process is silent since {since(by.lease_until_ms, by.now_ms)}: the next scheduler, "
        "worker or tick decides it"
    )


def _one_or_filters(run: str | None, *filters: object) -> None:
    if run is None and not any(filters):
        raise UsageError("which run?", hint="its id, or --status, --task, --since, --queue, --tag")
    if run is not None and any(filters):
        raise UsageError("an id names one run, and the options choose others", hint="one of both")


def _agree(fsa: Fsa, action: str, confirmed: str | None) -> None:
    fsa.confirm(action, fsa.database, typed=confirmed)


def _number(found: Sequence[object]) -> str:
    more = " (there may be more: do it again)" if len(found) == _MOST else ""
    return f"{len(found)} run{'' if len(found) == 1 else 's'}{more}"


def _filters(
    ledger: Ledger,
    name: str | None,
    status: Sequence[Status] | None,
    since: str | None,
    queue: str | None,
    tag: str | None,
    unique: str | None,
) -> dict[str, Any]:
    """The arguments of `queries.runs`.

    Raises:
        TaskNotFound: Nobody knows the task.
        UsageError: It is the id of a run.
    """
    from fsa_cli.ledger import queries
    from fsa_cli.runs import control
    from fsa_cli.runs import run_view as views
    from fsa_cli.tasks.registry import registry

    task = None if name is None else registry.get(name)
    names = None if name is None else {name, *(task.names if task is not None else ())}
    if name is not None and not queries.runs(ledger, names=names, limit=1):
        try:
            control.known([name], [each.name for each in queries.tasks(ledger)])
        except TaskNotFound:
            if len(name) >= _ID_SHOWN and queries.find(ledger, name.lower()):
                hint = f"fsa runs show {name}"
                raise UsageError(f"{name!r} is a run, not a task", hint=hint) from None
            meant = USUAL.get(f"runs {name}")
            if name in Status.__members__:
                meant = f"fsa runs --status {name}"
            if meant is not None:
                raise TaskNotFound(f"there is no task {name!r}", hint=meant) from None
            raise
    if tag is not None:
        tagged = {name for each in registry if tag in each.tags for name in each.names}
        names = tagged if names is None else names & tagged
    return {
        "names": names,
        "statuses": [
            each.value if each is not Status.dispatched else Status.handed_off.value
            for each in status or ()
        ],
        "since_ms": views.since_ms(since, datetime.now(UTC)) if since else None,
        "queue": queue,
        "unique": unique,
    }


def _show(fsa: Fsa, found: list[Row[Any]]) -> None:
    from fsa_cli.runs import run_view as views

    if fsa.output.json:
        fsa.output.document([views.document(each) for each in found])
        return
    now = datetime.now(UTC)
    is_seen = fsa.output.console.is_terminal
    rows = [views.row(each, now, dated=not is_seen) for each in found]
    fsa.output.table(rows, views.COLUMNS, spare=["took"])
    if is_seen and found:
        for line in side_by_side(views.foot(found), fsa.output.console.width):
            fsa.output.say(line)


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
                fsa.output.text(f"\n{at:%H:%M:%S} UTC, again every {_WATCH_EVERY_S:g} s")
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
        fsa.output.leave_line()
        raise typer.Exit(0) from None
