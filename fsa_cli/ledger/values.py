"""JSON in rows, checked where it is read: others can write these rows too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fsa_cli.exceptions import ArgumentError
from fsa_cli.terminal.masking import mask

__all__ = ["arguments_in", "options_in"]


def arguments_in(text: str, run_id: str) -> dict[str, Any]:
    """The arguments of a run, by name.

    Raises:
        ArgumentError: The row holds something else.
    """
    found = _object(text)
    if found is None:
        shown = text if len(text) <= 60 else f"{text[:60]} ..."
        raise ArgumentError(
            f"the arguments of run {run_id[:8]} are no JSON object: {mask(shown)}",
            details=["they are in the column `arguments` of fsa_run"],
        )
    return found


def options_in(text: str | None) -> Mapping[str, Any]:
    """The options of a task; none where the row holds something else."""
    return _object(text or "") or {}


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
