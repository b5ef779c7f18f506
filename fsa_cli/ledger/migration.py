"""The ledger's tables in a migration of the app's own, for those who change a database by Alembic.

from alembic import op
from fsa_cli import downgrade_ledger, upgrade_ledger

def upgrade():
    upgrade_ledger(op)

def downgrade():
    downgrade_ledger(op)
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.schema import DropTable

from fsa_cli.database.identity import address
from fsa_cli.ledger import schema, tables, upgrade

__all__ = ["downgrade_ledger", "upgrade_ledger"]


def upgrade_ledger(op: Any) -> None:
    """Create what the ledger's tables lack, on the connection and in the transaction of *op*.

    What is there already is left as it is, and older tables get what this version adds. With
    `alembic upgrade --sql` it prints what `fsa scheduler init --sql` prints.

    Args:
        op: `from alembic import op`.

    Raises:
        LedgerUnusable: The tables are of a version that this code does not know, or of none.
    """
    context = op.get_context()
    if context.as_sql:
        for statement in schema.ledger_statements(context.dialect):
            context.impl.static_output(statement)
        return
    connection = op.get_bind()
    found, newest = upgrade.found_in(connection)
    upgrade.check(found, newest, address(connection.engine.url))
    for table in tables.metadata.sorted_tables:
        if table.name not in found:
            table.create(connection)
    for missing in upgrade.missing_statements(found, connection.dialect):
        for each in missing:
            connection.execute(each)
    upgrade.note(connection)


def downgrade_ledger(op: Any) -> None:
    """Drop the ledger's tables, and with them every run; *op* as in `upgrade_ledger`."""
    as_sql = op.get_context().as_sql
    found = None if as_sql else upgrade.columns_in(op.get_bind())
    for table in reversed(tables.metadata.sorted_tables):
        if found is None or table.name in found:
            op.execute(DropTable(table))
