"""How far runs have come."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, insert, update

from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import progress

__all__ = ["write_progress"]


def write_progress(ledger: Ledger, told: Mapping[str, tuple[int, int | None, str]]) -> None:
    """Write how far these runs have come: done, total, text."""

    def work(connection: Connection) -> None:
        now_ms = ledger.now_ms(connection)
        for run_id, (done, total, text) in sorted(told.items()):
            values = {"done": done, "total": total, "text": text, "updated_ms": now_ms}
            changed = connection.execute(
                update(progress).where(progress.c.run == run_id).values(**values)
            )
            if not changed.rowcount:
                connection.execute(insert(progress).values(run=run_id, **values))

    ledger.write(work)
