"""A row whose change the database refuses: a constraint, a trigger, a type of somebody's own."""

from __future__ import annotations

from sqlalchemy import update
from sqlalchemy.exc import DBAPIError

from fsa_cli.database.connections import driver_message
from fsa_cli.ledger.dialects import refuses_row
from fsa_cli.ledger.finish import count_outcomes
from fsa_cli.ledger.records import ClaimedRun, RefusedClaim, RunOutcome, RunStatus
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import run
from fsa_cli.terminal.masking import mask

__all__ = ["end_refused", "refusal_text"]


def refusal_text(error: BaseException) -> str:
    """What the database said, as any database can keep it."""
    said = mask(driver_message(error)).encode("ascii", "backslashreplace").decode()[:1000]
    return said.replace("\0", "\\0")


def end_refused(ledger: Ledger, refused: ClaimedRun, since: str, error: Exception) -> RefusedClaim:
    """End a run as failed whose claim the database refuses, unless it refuses that too."""
    now_ms = ledger.read(ledger.now_ms)
    reason = refusal_text(error)
    statement = (
        update(run)
        .where(run.c.id == refused.run_id, run.c.status == since)
        .values(
            status=RunStatus.FAILED,
            finished_ms=now_ms,
            lock_key=None,
            error_type="ClaimRefused",
            error=f"the ledger could not keep that it starts: {reason}",
        )
    )
    try:
        number = ledger.at_once(lambda connection: connection.execute(statement).rowcount)
    except DBAPIError as exc:
        if not refuses_row(exc):
            raise
        return RefusedClaim(refused.run_id, refused.task, reason, is_ended=False)
    if number:
        outcome = RunOutcome(
            run_id=refused.run_id,
            token=refused.token,
            task=refused.task,
            status=RunStatus.FAILED,
            started_ms=None,
            finished_ms=now_ms,
        )
        count_outcomes(ledger, [outcome])
    return RefusedClaim(refused.run_id, refused.task, reason, is_ended=True)
