"""What people did to runs and tasks: who, when, what, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import audit

__all__ = ["begin", "end", "find", "latest"]

_PERSON_LENGTH = 255
_OUTCOME_LENGTH = 4000


def begin(
    ledger: Ledger, request_id: str, person: str, action: str, target: str, detail: str
) -> bool:
    """Record that somebody asks for something; False if this very request is recorded already.

    Args:
        request_id: 32 hexadecimal characters, made where the form was.
        detail: For people, with secrets masked.
    """
    now_ms = ledger.read(ledger.now_ms)
    statement = insert(audit).values(
        id=request_id,
        namespace=ledger.namespace,
        at_ms=now_ms,
        person=person[:_PERSON_LENGTH],
        action=action,
        target=target[:_PERSON_LENGTH],
        detail=detail[:_OUTCOME_LENGTH],
    )
    try:
        ledger.at_once(lambda connection: connection.execute(statement))
    except IntegrityError:
        return False
    return True


def end(ledger: Ledger, request_id: str, outcome: str) -> None:
    """Record what became of it."""
    statement = (
        update(audit).where(audit.c.id == request_id).values(outcome=outcome[:_OUTCOME_LENGTH])
    )
    ledger.at_once(lambda connection: connection.execute(statement))


def find(ledger: Ledger, request_id: str) -> Row[Any] | None:
    """The entry of a request; None: it was never sent."""
    statement = select(audit).where(audit.c.id == request_id, audit.c.namespace == ledger.namespace)
    return ledger.read(lambda connection: connection.execute(statement).one_or_none())


def latest(ledger: Ledger, after: tuple[int, str] | None, limit: int) -> Sequence[Row[Any]]:
    """The latest entries, the newest first.

    Args:
        after: The time and the id of the last one that was seen; None: from the newest.
    """
    statement = (
        select(audit)
        .where(audit.c.namespace == ledger.namespace)
        .order_by(audit.c.at_ms.desc(), audit.c.id)
        .limit(limit)
    )
    if after is not None:
        at_ms, last = after
        statement = statement.where(
            audit.c.at_ms <= at_ms, or_(audit.c.at_ms < at_ms, audit.c.id > last)
        )
    return ledger.read(lambda connection: connection.execute(statement).all())
