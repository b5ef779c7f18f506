"""The migration environment of a project that has no env.py of its own."""

from alembic import context
from sqlalchemy import Connection

from fsa_cli.database.connections import connected

db = context.config.attributes["database"]


def migrate(connection: Connection) -> None:
    """Run the migrations of the command, in a transaction."""
    # SQLite changes a table by making it anew.
    context.configure(connection=connection, render_as_batch=connection.dialect.name == "sqlite")
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    context.configure(url=db.url, literal_binds=True, dialect_opts={"paramstyle": "named"})
    with context.begin_transaction():
        context.run_migrations()
else:
    connected(db, migrate)
