"""What has not ended well since yesterday, and what of it is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from fsa_cli.ledger import run_search
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.time import instant_of
from fsa_cli.terminal.masking import mask_head

__all__ = ["Failures", "failures"]

_DAY_MS = 24 * 3600 * 1000
_FAILED = 500
_GROUPS = 20
_ERROR_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Failures:
    """Runs of one task that ended alike.

    Attributes:
        more: There are others that were not counted.
        is_over: Their task has succeeded since.
    """

    task: str
    status: str
    error_type: str | None
    error: str
    number: int
    more: bool
    last_id: str
    last_at: datetime
    is_over: bool


def failures(ledger: Ledger, now_ms: int, tasks: Sequence[Row[Any]]) -> list[Failures]:
    """What did not end well in the last day, by task, status and error; the latest first.

    Args:
        tasks: As `Glance.tasks`.
    """
    succeeded_ms = {each.name: each.last_success_ms or 0 for each in tasks}
    return [
        Failures(
            task=row.task,
            status=row.status,
            error_type=row.error_type,
            error=" ".join(mask_head(row.error or "", _ERROR_LENGTH).split()),
            number=row.number,
            more=row.of_status >= _FAILED,
            last_id=row.id,
            last_at=instant_of(row.place_ms),
            is_over=row.place_ms < succeeded_ms.get(row.task, 0),
        )
        for row in run_search.failed(ledger, now_ms - _DAY_MS, _FAILED, _GROUPS)
    ]
