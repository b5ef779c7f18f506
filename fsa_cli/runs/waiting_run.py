"""Why one run waits: for its time, for a lock, or for somebody who takes it."""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy import Row

from fsa_cli.ledger.glance import glance
from fsa_cli.ledger.records import RunStatus
from fsa_cli.ledger.store import Ledger
from fsa_cli.runs.task_problems import LONG_MS, NOBODY_TAKES_IT, waits_because
from fsa_cli.runs.worker_command import worker_command
from fsa_cli.terminal.formatting import format_span

__all__ = ["why_it_waits"]


def why_it_waits(ledger: Ledger, run: Row[Any]) -> tuple[str, tuple[str, ...]]:
    """Why *run* waits, and what shows or cures it; "" if it does not, or not for long."""
    if run.status not in (RunStatus.QUEUED, RunStatus.DISPATCHED):
        return "", ()
    seen = glance(ledger)
    if run.status == RunStatus.DISPATCHED:
        if seen.serving.has(run.executor, run.queue):
            return "", ()
        start = worker_command(run.executor, run.queue)
        return f"no live worker serves the queue {run.queue} of {run.executor}", (start,)
    left_ms = run.not_before_ms - seen.now_ms
    if left_ms > 0:
        return f"its time comes in {format_span(left_ms)}", ()
    why, cures = waits_because(seen, run.task, partial(worker_command, run.executor))
    is_new = -left_ms < LONG_MS and why == NOBODY_TAKES_IT
    return ("", ()) if is_new else (why, cures)
