"""`fsa db revision | upgrade | downgrade | current | history | stamp`: Alembic on the app."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsa_cli.cli.context import Fsa
from fsa_cli.cli.options import agree, confirm_option, option
from fsa_cli.exceptions import DatabaseUnreachable, UsageError

if TYPE_CHECKING:
    from fsa_cli.migrations import Migrations, State, Step

_REVISION = "A revision: its id or the start of it, head, heads, base, +1, -1."


def revision(
    context: typer.Context,
    message: Annotated[
        str | None,
        option("db revision", "-m", "--message", help="What it changes.", metavar="TEXT"),
    ] = None,
    autogenerate: Annotated[
        bool,
        option("db revision", "--autogenerate", help="Fill it with what the models changed."),
    ] = False,
) -> None:
    """Write a new migration. With --autogenerate, from the models against the database.

    \b
      fsa db revision --autogenerate -m "add users.active"
      fsa db revision -m "fill users.active"

    Without an alembic.ini and a folder, it begins the folder migrations.
    """
    fsa = Fsa.of(context)
    written, changes = _migrations(fsa).revision(message, autogenerate=autogenerate)
    if fsa.output.json:
        fsa.output.document({"revision": asdict(written) if written else None, "changes": changes})
        return
    for change in changes:
        fsa.output.say(change)
    if written is None:
        fsa.output.say("the models and the database are the same: nothing was written")
    else:
        fsa.output.line(os.path.relpath(written.file))


def upgrade(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(metavar="REVISION", help=_REVISION)] = "head",
    sql: Annotated[
        bool, option("db upgrade", "--sql", help="Print the SQL instead of running it.")
    ] = False,
    confirm: Annotated[str | None, confirm_option("db upgrade")] = None,
) -> None:
    """Apply the migrations that the database lacks, up to REVISION.

    \b
      fsa db upgrade
      fsa db upgrade +1
      fsa db upgrade --sql > upgrade.sql
    """
    fsa = Fsa.of(context)
    migrations = _migrations(fsa)
    if sql:
        migrations.sql(revision, sys.stdout)
        return
    agree(fsa, f"upgrade to {revision}", confirm)
    _apply(fsa, migrations, lambda tell: migrations.upgrade(revision, tell=tell))


def downgrade(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(metavar="REVISION", help=_REVISION)] = "-1",
    sql: Annotated[
        bool,
        option("db downgrade", "--sql", help="Print the SQL of FROM:TO instead of running it."),
    ] = False,
    confirm: Annotated[str | None, confirm_option("db downgrade")] = None,
) -> None:
    """Take migrations back, down to REVISION; the last one, if none is named.

    \b
      fsa db downgrade
      fsa db downgrade base --yes
      fsa db downgrade --sql 3f2a:base

    What was in the tables and columns that it drops is lost: it asks first.
    """
    fsa = Fsa.of(context)
    if revision.startswith("--"):
        raise UsageError(f"No such option: {revision}", hint="fsa db downgrade --help")
    migrations = _migrations(fsa)
    if sql:
        migrations.sql(revision, sys.stdout, down=True)
        return
    agree(fsa, _taken_back(revision), confirm, destructive=True)
    _apply(fsa, migrations, lambda tell: migrations.downgrade(revision, tell=tell))


def current(context: typer.Context) -> None:
    """The revision of the database, and those to apply. Exits 5 if it is not at head.

    \b
      fsa db current
      fsa db current --json
    """
    fsa = Fsa.of(context)
    migrations = _migrations(fsa)
    state = migrations.state()
    if fsa.output.json:
        fsa.output.document(_document(state))
    else:
        known = {each.revision: each for each in migrations.history()}
        rows: list[dict[str, object]] = [
            {
                "revision": each,
                "message": known[each].message if each in known else None,
                "state": "current, head" if each in state.heads else "current",
            }
            for each in state.current
        ]
        rows += [{**asdict(each), "state": "to apply"} for each in state.pending]
        fsa.output.table(rows, {"revision": "revision", "message": "message", "state": "state"})
    if not state.at_head:
        raise state.behind()


def history(context: typer.Context) -> None:
    """Every migration, the newest first, and its state in the database.

    \b
      fsa db history
      fsa db history --json
    """
    fsa = Fsa.of(context)
    migrations = _migrations(fsa)
    states = _states(fsa, migrations)
    rows = [
        {**asdict(each), "state": states(each.revision) if states else None}
        for each in migrations.history()
    ]
    fsa.output.table(
        rows,
        {"revision": "revision", "down": "after", "message": "message", "state": "state"},
    )


def stamp(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(metavar="REVISION", help=_REVISION)],
    purge: Annotated[
        bool, option("db stamp", "--purge", help="Forget every revision that is noted first.")
    ] = False,
    confirm: Annotated[str | None, confirm_option("db stamp")] = None,
) -> None:
    """Note that the database is at REVISION, without migrating it.

    \b
      fsa db stamp head
      fsa db stamp 3f2a --purge
    """
    fsa = Fsa.of(context)
    migrations = _migrations(fsa)
    agree(fsa, f"note that the schema is at {revision}", confirm)
    _apply(fsa, migrations, lambda tell: migrations.stamp(revision, purge=purge, tell=tell))


def _migrations(fsa: Fsa) -> Migrations:
    from fsa_cli.migrations import Migrations

    return Migrations(fsa.load(), fsa.settings)


def _apply(
    fsa: Fsa, migrations: Migrations, work: Callable[[Callable[[Step], None]], None]
) -> None:
    steps: list[Step] = []

    def tell(step: Step) -> None:
        steps.append(step)
        fsa.output.say(f"{step.direction} {step.revision}  {step.message}".rstrip())

    work(tell)
    state = migrations.state()
    if fsa.output.json:
        fsa.output.document({"steps": [asdict(each) for each in steps], **_document(state)})
    else:
        fsa.output.say(f"the schema is {state}")


def _taken_back(revision: str) -> str:
    """The action of `downgrade`, for its question."""
    if revision == "base":
        return "take every migration back"
    if revision.startswith("-"):
        count = revision[1:]
        return "take the last migration back" if count == "1" else f"take {count} migrations back"
    return f"take the migrations after {revision} back"


def _document(state: State) -> dict[str, Any]:
    return {**asdict(state), "at_head": state.at_head}


def _states(fsa: Fsa, migrations: Migrations) -> Callable[[str], str] | None:
    """The state of each revision in the database; None if it cannot be reached."""
    try:
        state = migrations.state()
    except Exception as exc:
        unreachable = fsa.load().unreachable(exc)
        if unreachable is None and not isinstance(exc, DatabaseUnreachable):
            raise
        fsa.output.warn("the database cannot be reached: which it has is not known")
        return None
    pending = {each.revision for each in state.pending}

    def of(revision: str) -> str:
        if revision in state.current:
            return "current"
        return "to apply" if revision in pending else "applied"

    return of
