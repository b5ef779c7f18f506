"""`fsa db create | check`: the models' tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import agree, confirm_option, option
from fsa_cli.exceptions import SchemaBehind

if TYPE_CHECKING:
    from sqlalchemy import MetaData

    from fsa_cli.migrations import State


def create(
    context: typer.Context,
    confirm: Annotated[str | None, confirm_option("db create")] = None,
) -> None:
    """Create the models' tables that the database lacks. Existing ones are left as they are.

    \b
      fsa db create
      fsa db create --json
      fsa db create --confirm shop
    """
    from fsa_cli.commands.db_query import refusals
    from fsa_cli.database import schema_diff
    from fsa_cli.database.connections import connected
    from fsa_cli.migrations.scripts import find

    fsa = Fsa.of(context)
    database = fsa.database
    wanted = _metadata(fsa)
    missing = connected(database, lambda connection: schema_diff.missing(connection, wanted))
    names = [table.fullname for table in missing]
    if missing:
        agree(fsa, f"create {', '.join(names)}", confirm)
        with refusals(fsa):
            connected(database, lambda connection: schema_diff.create(connection, missing))
    if fsa.output.json:
        fsa.output.document({"created": names})
        return
    for name in names:
        fsa.output.line(name)
    text = f"created {len(names)} table{'' if len(names) == 1 else 's'}"
    fsa.output.say(text if names else "every table is there already")
    if names and find(fsa.settings).exist:
        fsa.output.warn(
            "this project has migrations, which do not know of these tables: fsa db stamp head"
            " says that they were applied"
        )


def check(
    context: typer.Context,
    sql: Annotated[
        bool, option("db check", "--sql", help="Print the SQL that would repair it.")
    ] = False,
) -> None:
    """The models against the database: tables, columns, types, indexes, constraints, migrations.

    Exits 0 if the database can serve the models, 5 if it differs.

    \b
      fsa db check
      fsa db check --json
      fsa db check --sql > repair.sql
    """
    from fsa_cli.database import schema_diff
    from fsa_cli.database.connections import connected

    fsa = Fsa.of(context)
    database = fsa.database
    wanted = _metadata(fsa)
    if sql:
        from fsa_cli.migrations.scripts import require_alembic

        require_alembic()
        from fsa_cli.migrations import comparison

        repair = connected(database, lambda connection: comparison.repair(connection, wanted))
        for line in repair.strip().splitlines():
            fsa.output.line(line)
        return
    found = connected(database, lambda connection: schema_diff.differences(connection, wanted))
    compares = _has_alembic()
    if compares:
        from fsa_cli.migrations import comparison

        found += connected(database, lambda connection: comparison.differences(connection, wanted))
    state = _state(fsa)
    behind = state is not None and not state.at_head
    if fsa.output.json:
        fsa.output.document(
            {
                "ok": not found and not behind,
                "differences": [asdict(each) for each in found],
                "migrations": asdict(state) | {"at_head": state.at_head} if state else None,
            }
        )
    elif found:
        fsa.output.table(
            [asdict(each) for each in found],
            {"what": "what", "table": "table", "column": "column", "detail": "detail"},
            wraps=("detail",),
        )
    if found:
        count = f"{len(found)} difference{'' if len(found) == 1 else 's'}"
        raise SchemaBehind(
            f"the database differs from the models: {count}",
            details=[f"its schema is {state}"] if state else [],
            hint="fsa db upgrade" if behind else _cure(state, compares=compares),
        )
    if state is not None and behind:
        raise state.behind()
    fsa.output.say(
        "the database has every table and column of the models"
        + (", with types and indexes" if compares else "")
    )


def _metadata(fsa: Fsa) -> list[MetaData]:
    from fsa_cli.database.models import metadata_of

    return metadata_of(fsa.settings.metadata, fsa.settings.sources["metadata"])


def _state(fsa: Fsa) -> State | None:
    """The state of the migrations; None if there are none, or Alembic is not installed."""
    if not _has_alembic():
        return None
    from fsa_cli.migrations import is_at_head

    return is_at_head(fsa.load(), fsa.settings)


def _has_alembic() -> bool:
    from fsa_cli.exceptions import ConfigurationError
    from fsa_cli.migrations.scripts import require_alembic

    try:
        require_alembic()
    except ConfigurationError:
        return False
    return True


def _cure(state: State | None, *, compares: bool) -> str:
    if state is not None:
        return 'fsa db revision --autogenerate -m "what changed", then fsa db upgrade'
    if compares:
        return "fsa db create creates missing tables; --sql prints what else would repair it"
    return "fsa db create creates missing tables; Alembic changes existing ones"
