"""`fsa db revision | merge | upgrade | downgrade | current | history | stamp`: Alembic."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import agree, confirm_option, option
from fsa_cli.exceptions import DatabaseUnreachable, UsageError

if TYPE_CHECKING:
    from fsa_cli.migrations import Migrations, State, Step

#: Of a statement of a migration, in a protected environment.
PROTECTED_LOCK_TIMEOUT_S = 2.0
_X = "What `alembic -x` takes, for context.get_x_argument() of an env.py."
_LOCK_TIMEOUT = (
    "How long a statement waits for a lock before it tries again; 0: no limit."
    " [protected environments: 2s]"
)
_BASELINE = "Fill it with all that the models need, as if the database were empty."
_LEDGER = "Fill it with the tables of the ledger of runs, so that fsa need not create them."
_BEGIN = (
    'fsa db revision --baseline -m "begin" writes what makes these tables; then fsa db stamp head'
    " notes that this database has them"
)
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
    baseline: Annotated[bool, option("db revision", "--baseline", help=_BASELINE)] = False,
    ledger: Annotated[bool, option("db revision", "--ledger", help=_LEDGER)] = False,
    x: Annotated[
        list[str] | None, option("db revision", "-x", "--x-arg", help=_X, metavar="KEY=VALUE")
    ] = None,
) -> None:
    """Write a new migration. With --autogenerate, from the models against the database.

    \b
      fsa db revision --autogenerate -m "add users.active"
      fsa db revision -m "fill users.active"
      fsa db revision --baseline -m "begin" && fsa db stamp head
      fsa db revision --ledger && fsa db upgrade

    Without an alembic.ini and a folder, it begins the folder migrations.
    """
    fsa = Fsa.of(context)
    if ledger and (autogenerate or baseline):
        raise UsageError("--ledger says already what is in it: no --autogenerate, no --baseline")
    migrations = _migrations(fsa, x)
    if ledger:
        _refuse_another_ledger(fsa)
        made = migrations.ledger_revision(message)
        if fsa.output.json:
            fsa.output.document({"revision": asdict(made), "changes": []})
        else:
            fsa.output.line(os.path.relpath(made.file))
        return
    written, changes = migrations.revision(message, autogenerate=autogenerate, baseline=baseline)
    if fsa.output.json:
        fsa.output.document({"revision": asdict(written) if written else None, "changes": changes})
        return
    for change in changes:
        fsa.output.say(change)
    if written is None:
        fsa.output.say("the models and the database are the same: nothing was written")
        if not migrations.begun():
            fsa.output.say(_BEGIN)
        return
    fsa.output.line(os.path.relpath(written.file))
    if baseline:
        fsa.output.say("fsa db stamp head notes that this database is there already")


def merge(
    context: typer.Context,
    message: Annotated[
        str | None, option("db merge", "-m", "--message", help="A line on it.", metavar="TEXT")
    ] = None,
) -> None:
    """Write a migration that joins all heads into one.

    \b
      fsa db merge
      fsa db merge -m "orders and mail"
    """
    fsa = Fsa.of(context)
    written = _migrations(fsa).merge(message)
    if fsa.output.json:
        fsa.output.document({"revision": asdict(written)})
    else:
        fsa.output.line(os.path.relpath(written.file))


def upgrade(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(metavar="REVISION", help=_REVISION)] = "head",
    sql: Annotated[
        bool, option("db upgrade", "--sql", help="Print the SQL instead of running it.")
    ] = False,
    confirm: Annotated[str | None, confirm_option("db upgrade")] = None,
    lock_timeout: Annotated[
        str | None,
        option("db upgrade", "--lock-timeout", help=_LOCK_TIMEOUT, metavar="DURATION"),
    ] = None,
    x: Annotated[
        list[str] | None, option("db upgrade", "-x", "--x-arg", help=_X, metavar="KEY=VALUE")
    ] = None,
) -> None:
    """Apply the migrations that the database lacks, up to REVISION.

    \b
      fsa db upgrade
      fsa db upgrade +1
      fsa db upgrade heads --lock-timeout 2s
      fsa db upgrade --sql > upgrade.sql
    """
    fsa = Fsa.of(context)
    migrations = _migrations(fsa, x)
    if sql:
        fsa.output.raw(migrations.sql(revision))
        return
    agree(fsa, f"upgrade to {revision}", confirm)
    limit_s = _lock_timeout_s(fsa, lock_timeout)
    _apply(
        fsa,
        migrations,
        lambda tell: migrations.upgrade(revision, tell=tell, lock_timeout_s=limit_s),
    )


def downgrade(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(metavar="REVISION", help=_REVISION)] = "-1",
    sql: Annotated[
        bool,
        option("db downgrade", "--sql", help="Print the SQL of FROM:TO instead of running it."),
    ] = False,
    confirm: Annotated[str | None, confirm_option("db downgrade")] = None,
    lock_timeout: Annotated[
        str | None,
        option("db downgrade", "--lock-timeout", help=_LOCK_TIMEOUT, metavar="DURATION"),
    ] = None,
    x: Annotated[
        list[str] | None, option("db downgrade", "-x", "--x-arg", help=_X, metavar="KEY=VALUE")
    ] = None,
) -> None:
    """Take migrations back, down to REVISION; the last one, if none is named.

    \b
      fsa db downgrade base --yes
      fsa db downgrade --sql 3f2a:base

    What was in the tables and columns that it drops is lost: it asks first.
    """
    fsa = Fsa.of(context)
    if revision.startswith("--"):
        raise UsageError(f"No such option: {revision}", hint="fsa db downgrade --help")
    migrations = _migrations(fsa, x)
    if sql:
        fsa.output.raw(migrations.sql(revision, down=True))
        return
    limit_s = _lock_timeout_s(fsa, lock_timeout)
    agree(fsa, _taken_back(revision, migrations), confirm, destructive=True)
    _apply(
        fsa,
        migrations,
        lambda tell: migrations.downgrade(revision, tell=tell, lock_timeout_s=limit_s),
    )


def current(
    context: typer.Context,
    x: Annotated[
        list[str] | None, option("db current", "-x", "--x-arg", help=_X, metavar="KEY=VALUE")
    ] = None,
) -> None:
    """The revision of the database, and those to apply. Exits 5 if it is not at head.

    \b
      fsa db current
      fsa db current --json
    """
    fsa = Fsa.of(context)
    migrations = _migrations(fsa, x)
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


def history(
    context: typer.Context,
    x: Annotated[
        list[str] | None, option("db history", "-x", "--x-arg", help=_X, metavar="KEY=VALUE")
    ] = None,
) -> None:
    """Every migration, the newest first, and its state in the database.

    \b
      fsa db history
      fsa db history --json
    """
    fsa = Fsa.of(context)
    migrations = _migrations(fsa, x)
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
    x: Annotated[
        list[str] | None, option("db stamp", "-x", "--x-arg", help=_X, metavar="KEY=VALUE")
    ] = None,
) -> None:
    """Note that the database is at REVISION, without migrating it.

    \b
      fsa db stamp head
      fsa db stamp 3f2a --purge
    """
    fsa = Fsa.of(context)
    migrations = _migrations(fsa, x)
    agree(fsa, f"note that the schema is at {revision}", confirm)
    _apply(fsa, migrations, lambda tell: migrations.stamp(revision, purge=purge, tell=tell))


def _migrations(fsa: Fsa, x: list[str] | None = None) -> Migrations:
    from fsa_cli.migrations import Migrations

    return Migrations(fsa.load(), fsa.settings, x=x or (), say=fsa.output.say)


def _refuse_another_ledger(fsa: Fsa) -> None:
    """Refuse a migration of the ledger's tables where the ledger is in another database."""
    from fsa_cli.database.identity import address, same_database
    from fsa_cli.ledger.location import ledger_of

    ledger, url = ledger_of(fsa.load().databases, fsa.settings), fsa.database.url
    if url is None or not same_database(ledger.engine.url, url):
        raise UsageError(
            "the ledger of runs is not in the database that these migrations are for",
            details=[f"ledger      {ledger.where}", f"migrations  {address(url) if url else '-'}"],
            hint="fsa scheduler init makes it where it is; --sql prints its SQL",
        )


def _lock_timeout_s(fsa: Fsa, written: str | None) -> float | None:
    """How long a statement may wait for a lock; None: without a limit."""
    from fsa_cli.migrations.exclusive import seconds_of
    from fsa_cli.project import environments

    if written is None:
        protected = environments.of(fsa.settings, [fsa.database]).protected
        return PROTECTED_LOCK_TIMEOUT_S if protected else None
    return seconds_of(written, "--lock-timeout") or None


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
        # One that was rolled back for a lock was reported twice.
        each_once = [asdict(each) for each in dict.fromkeys(steps)]
        fsa.output.document({"steps": each_once, **_document(state)})
    else:
        fsa.output.say(f"the schema is {state}")


def _taken_back(revision: str, migrations: Migrations) -> str:
    """The action of `downgrade`, for its question: the migrations that it takes back."""
    steps = migrations.taken_back(revision)
    if not steps:
        return f"take the migrations after {revision} back"
    named = ", ".join(f"{each.revision} ({each.message})" for each in steps[:3])
    more = f" and {len(steps) - 3} more" if len(steps) > 3 else ""
    if revision == "base":
        return f"take every migration back, {named}{more}"
    return f"take {named}{more} back"


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
