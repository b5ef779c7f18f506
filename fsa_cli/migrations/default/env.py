"""The migration environment of a project that has no env.py of its own."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection

from fsa_cli.database.connections import connected

db = context.config.attributes["database"]


def render_item(kind: str, item: object, autogenerating: Any) -> Literal[False]:
    """Have a new migration import the module of a column's type that is not SQLAlchemy's."""
    module = type(item).__module__
    if kind == "type" and module.partition(".")[0] != "sqlalchemy":
        autogenerating.imports.add(f"import {module}")
    return False  # it is written as Alembic does


def migrate(connection: Connection) -> None:
    """Run the migrations of the command, in a transaction."""
    context.configure(
        connection=connection,
        render_as_batch=connection.dialect.name == "sqlite",  # it changes a table by making it anew
        render_item=render_item,
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    context.configure(url=db.url, literal_binds=True, dialect_opts={"paramstyle": "named"})
    with context.begin_transaction():
        context.run_migrations()
else:
    connected(db, migrate)
