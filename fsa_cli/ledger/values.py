"""What is in rows, checked where it is read: others can write these rows too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from fsa_cli.exceptions import ArgumentError
from fsa_cli.ledger.records import RunStatus
from fsa_cli.terminal.masking import mask_within

__all__ = ["arguments_in", "has_ended", "is_run_id", "options_in", "value_in"]

# As `fsa_run.id` takes them; SQLite refuses a LIKE of 50,000 characters.
_LONGEST_RUN_ID = 36


def arguments_in(text: str, run_id: str) -> dict[str, Any]:
    """The arguments of a run, by name.

    Raises:
        ArgumentError: The row holds something else.
    """
    found = _object(text)
    if found is None:
        shown = mask_within(text, 60)
        raise ArgumentError(
            f"the arguments of run {run_id[:8]} are no JSON object: {shown}",
            details=["they are in the column `arguments` of fsa_run"],
        )
    return found


@lru_cache(maxsize=4096)  # every look at the ledger reads those of each task
def options_in(text: str | None) -> Mapping[str, Any]:
    """The options of a task; none where the row holds something else."""
    return _object(text or "") or {}


def value_in(text: str | None) -> Any:
    """The value that a row keeps as JSON; the text itself where it is none."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text


def has_ended(status: str, finished_ms: int | None) -> bool:
    """Whether a run has ended for good. A status of a later version's has when the row says when.

    A run that waits for another attempt has a time of its last end, and a status that is known.
    """
    if status in set(RunStatus):
        return RunStatus(status).is_final
    return finished_ms is not None


def is_run_id(text: object) -> bool:
    """Whether a run may have *text* as its id; what a database cannot compare is none."""
    return (
        isinstance(text, str)
        and text.isascii()
        and text.isprintable()
        and len(text) <= _LONGEST_RUN_ID
    )


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
