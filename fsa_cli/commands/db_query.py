"""`fsa db query | shell`: SQL on the database."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import option
from fsa_cli.exceptions import FsaError, StatementFailed, UsageError
from fsa_cli.terminal.folding import is_terminal

if TYPE_CHECKING:
    from fsa_cli.database.query import Rows

_ON_A_TERMINAL = 500
_HINTS = {
    "multi-query|one statement at a time": "one statement at a time",
    "(?i)read-?only|read only|as cursor|authoriz": (
        "fsa db query only reads; fsa db shell can write"
    ),
    "(?i)no such column|column .* does not exist|unknown column": (
        "fsa db table NAME shows the columns of a table"
    ),
    "(?i)no such table|relation .* does not exist|table .* doesn't exist": (
        "fsa db show lists the tables"
    ),
}


def query(
    context: typer.Context,
    sql: Annotated[
        str, typer.Argument(metavar="SQL", help="A statement; @FILE reads one, - reads stdin.")
    ],
    as_csv: Annotated[
        bool, option("db query", "--csv", help="Comma-separated values, with a header.")
    ] = False,
    limit: Annotated[
        int | None,
        option(
            "db query",
            "--limit",
            help=f"Show that many rows at most; 0 is all. On a terminal {_ON_A_TERMINAL}.",
            min=0,
            metavar="N",
        ),
    ] = None,
) -> None:
    """Run one SQL statement that reads, and show its rows. The database itself refuses to write.

    \b
      fsa db query "select name, count(*) from users group by name"
      fsa db query @report.sql --csv > report.csv
      echo "select 1 as one" | fsa db query - --json

    A function of the server's that reaches outside (dblink, lo_export, pg_read_file, a UDF) is not
    held by a read-only transaction: let FSA_DB_URL name a database user who may only read.
    """
    from fsa_cli.database import query

    fsa = Fsa.of(context)
    if as_csv and fsa.output.json:
        raise UsageError("--csv and --json do not go together")
    statement = _statement(sql)
    if not statement.strip():
        raise UsageError("there is no statement", hint='fsa db query "select 1"')
    database = fsa.database
    if limit is None:
        limit = _ON_A_TERMINAL if _is_read_by_a_person(fsa, as_csv) else 0

    def receive(columns: list[str], rows: Rows) -> None:
        cells = ([query.value(cell) for cell in row] for row in rows)
        first = itertools.islice(cells, limit or None)
        if as_csv:
            fsa.output.csv(columns, first)
        else:
            found = [dict(zip(columns, _shown(fsa, row), strict=True)) for row in first]
            fsa.output.table(found, {name: name for name in columns}, wraps=columns)
            if not found and columns and fsa.output.console.is_terminal:
                fsa.output.say("no row is like that")
        if limit and next(cells, None) is not None:
            fsa.output.say(f"the first {limit} rows: --limit N shows more, --limit 0 all")

    with refusals(fsa):
        query.run(database, statement, receive)


def shell(
    context: typer.Context,
    argv: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGS", help="Arguments for the client, after --."),
    ] = None,
) -> None:
    """The database's own client: psql, mariadb or sqlite3, with the app's URL.

    \b
      fsa db shell
      fsa db shell -- -c "select now()"
      fsa -d reports db shell < report.sql

    The password is never among the client's arguments.
    """
    from fsa_cli.database import client

    raise typer.Exit(client.run(Fsa.of(context).database, argv or []))


@contextmanager
def refusals(fsa: Fsa) -> Iterator[None]:
    """Raise the database's error about a statement, with its driver's own message."""
    from fsa_cli.database.connections import driver_message
    from fsa_cli.database.next_step import next_step

    try:
        yield
    except (FsaError, OSError):
        raise
    except Exception as exc:
        if isinstance(exc, UnicodeEncodeError) or fsa.load().unreachable(exc) is not None:
            raise
        said = driver_message(exc)
        more = str(getattr(exc, "orig", exc)).splitlines()[1:]
        pointed = itertools.takewhile(lambda line: not line.startswith(("QUERY", "CONTEXT")), more)
        hint = next((hint for pattern, hint in _HINTS.items() if re.search(pattern, said)), None)
        raise StatementFailed(said, details=list(pointed), hint=hint or next_step(exc)) from exc


def _statement(sql: str) -> str:
    try:
        if sql == "-":
            return sys.stdin.read()
        if sql.startswith("@"):
            return Path(sql[1:]).read_text(encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"{sql[1:]} cannot be read: {exc.strerror}") from exc
    return sql


def _is_read_by_a_person(fsa: Fsa, as_csv: bool) -> bool:
    return is_terminal(sys.stdout) and not fsa.output.json and not as_csv


def _shown(fsa: Fsa, row: list[Any]) -> list[Any]:
    """For a table: a number with all its digits, as in the database."""
    if fsa.output.json:
        return row
    return [repr(cell) if isinstance(cell, float) else cell for cell in row]
