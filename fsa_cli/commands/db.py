"""`fsa db`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import typer

from fsa_cli.commands import db_migrations, db_query, db_schema, db_tables

app = typer.Typer()

_COMMANDS: Mapping[str, Callable[..., Any]] = {
    "show": db_tables.show,
    "table": db_tables.table,
    "query": db_query.query,
    "shell": db_query.shell,
    "create": db_schema.create,
    "check": db_schema.check,
    "revision": db_migrations.revision,
    "merge": db_migrations.merge,
    "upgrade": db_migrations.upgrade,
    "downgrade": db_migrations.downgrade,
    "current": db_migrations.current,
    "history": db_migrations.history,
    "stamp": db_migrations.stamp,
}
# `-1` is a revision, not an option.
_RELATIVE = {"downgrade"}

for name, function in _COMMANDS.items():
    settings = {"ignore_unknown_options": True} if name in _RELATIVE else None
    app.command(name, context_settings=settings)(function)


@app.callback()
def db() -> None:
    """The app's database: what is in it, SQL on it, its schema and its migrations.

    \b
      fsa db show
      fsa db query "select count(*) from users"
      fsa db upgrade
    """
