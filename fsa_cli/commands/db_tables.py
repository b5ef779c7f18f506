"""`fsa db show | table`: what is in the database."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import option

if TYPE_CHECKING:
    from fsa_cli.database.catalog import Table


def show(
    context: typer.Context,
    exact: Annotated[
        bool, option("db show", "--exact", help="Count the rows of large tables too.")
    ] = False,
) -> None:
    """Every table: its rows, its size with its indexes, its indexes. The largest come first.

    \b
      fsa db show
      fsa db show --exact
      fsa db show --json

    The rows of tables up to 16 MB are counted; for larger ones the server's estimate is shown.
    """
    from fsa_cli.database import catalog
    from fsa_cli.database.connections import connected
    from fsa_cli.database.identity import address
    from fsa_cli.terminal.formatting import format_bytes

    fsa = Fsa.of(context)
    database = fsa.database
    found, total = connected(
        database, lambda c: (catalog.tables(c, exact=exact), catalog.total_bytes(c))
    )
    where = address(database.url)
    if fsa.output.json:
        tables = [asdict(each) for each in found]
        fsa.output.document({"database": where, "size_bytes": total, "tables": tables})
        return
    count = f"{len(found)} table{'' if len(found) == 1 else 's'}"
    fsa.output.say(", ".join(filter(None, [where, count, format_bytes(total)])))
    fsa.output.table(
        [
            {**asdict(each), "size": format_bytes(each.size_bytes), "indexes": each.indexes}
            for each in found
        ],
        {
            "name": "table",
            "rows": "rows",
            "rows_are": "are",
            "size": "size",
            "indexes": "indexes",
        },
        wraps=("indexes",),
    )


def table(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A table, schema.table, or a model's name."),
    ],
    rows: Annotated[
        int, option("db table", "--rows", help="Show that many of its rows.", min=0, metavar="N")
    ] = 0,
) -> None:
    """One table or view in full: its columns, keys, constraints and indexes.

    \b
      fsa db table users
      fsa db table User --rows 3
      fsa db table users --json
    """
    from fsa_cli.database import catalog
    from fsa_cli.database.connections import connected
    from fsa_cli.database.query import value

    fsa = Fsa.of(context)
    database = fsa.database
    found, sampled = connected(
        database,
        lambda c: ((found := catalog.table(c, name)), catalog.sample(c, found, rows)),
    )
    shown = [{key: value(cell) for key, cell in row.items()} for row in sampled]
    if fsa.output.json:
        fsa.output.document({**asdict(found), **({"rows": shown} if rows else {})})
        return
    _show_table(fsa, found)
    if rows:
        fsa.output.line("")
        names = {each.name: each.name for each in found.columns}
        fsa.output.table(shown, names, wraps=names)


def _show_table(fsa: Fsa, found: Table) -> None:
    if found.comment:
        fsa.output.say(found.comment)
    columns: list[dict[str, object]] = [asdict(each) for each in found.columns]
    headings = {"name": "column", "type": "type", "nullable": "null", "default": "default"}
    headings["key"] = "key"
    if any(each.comment for each in found.columns):
        headings["comment"] = "comment"
    fsa.output.table(columns, headings, wraps=("type", "default", "comment"))
    if found.constraints:
        fsa.output.line("")
        fsa.output.table(
            [{**each, "to": each.get("refers_to")} for each in found.constraints],
            {"kind": "constraint", "name": "name", "on": "on", "to": "refers to"},
            wraps=("name", "on", "to"),
        )
    if found.indexes:
        fsa.output.line("")
        headings = {"name": "index", "columns": "columns", "unique": "unique"}
        fsa.output.table(found.indexes, headings, wraps=("name", "columns"))
