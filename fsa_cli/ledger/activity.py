"""What the runs that go on for long do: written by their nodes now and then, where it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Row, delete, insert, select

from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import activity

__all__ = ["activities", "write_activity"]

_PLACE = 500


def write_activity(ledger: Ledger, told: Mapping[str, tuple[str, Sequence[int]]]) -> None:
    """Write what these runs do: the line that they are in, and their database sessions."""

    def work(connection: Connection) -> None:
        now_ms = ledger.now_ms(connection)
        connection.execute(delete(activity).where(activity.c.run.in_(sorted(told))))
        connection.execute(
            insert(activity),
            [
                {
                    "run": run_id,
                    "place": place[:_PLACE],
                    "sessions": " ".join(map(str, sessions)),
                    "updated_ms": now_ms,
                }
                for run_id, (place, sessions) in sorted(told.items())
            ],
        )

    ledger.write(work)


def activities(ledger: Ledger, run_ids: Sequence[str]) -> dict[str, Row[tuple[str, str, str, int]]]:
    """What is known of these runs, by their ids: place, sessions, updated_ms."""
    statement = select(activity).where(activity.c.run.in_(run_ids))
    rows = ledger.read(lambda connection: connection.execute(statement).all())
    return {row.run: row for row in rows}
