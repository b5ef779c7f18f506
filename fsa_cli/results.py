"""Runs that were asked for, found again from any process by their ids.

result = results.get(run_id)
return StreamingResponse(results.events(run_id), media_type="text/event-stream")
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from fsa_cli.exceptions import RunNotFound
from fsa_cli.ledger import queries
from fsa_cli.ledger.access import reached
from fsa_cli.runs.enqueue import enqueuer_here
from fsa_cli.runs.task_result import TaskResult
from fsa_cli.tasks.enqueue_capture import diversion
from fsa_cli.terminal.json_values import dumps

__all__ = ["TaskResult", "aget", "events", "get"]

_ASKED_EVERY_S = 0.25
_LONGEST_S = 1.0
# Proxies close a connection on which nothing comes for a minute.
_SILENT_FOR_S = 15.0


def get(run_id: str) -> TaskResult[Any]:
    """The run with this id, as its row says it now.

    Raises:
        RunNotFound: There is none, or it is not committed yet.
        ConfigurationError: There is no ledger here.
        DatabaseUnreachable: The ledger's database is away.
    """
    if (kept := diversion()) is not None:
        found: TaskResult[Any] | None = kept.find(run_id)
    else:
        ledger = enqueuer_here().ledger
        with reached(ledger):
            row = queries.get(ledger, run_id)
        found = None if row is None else TaskResult.of(row, lambda: ledger)
    if found is None:
        raise RunNotFound(f"there is no run {run_id!r}", hint="fsa runs lists the latest ones")
    return found


async def aget(run_id: str) -> TaskResult[Any]:
    """As `get`, without blocking the event loop."""
    return await asyncio.to_thread(get, run_id)


async def events(run_id: str) -> AsyncIterator[str]:
    """Server-sent events of a run: one now, one for each change, the last at its end.

    Each is `event: STATUS` and `data:` with JSON: id, task, status, attempts, progress, and at the
    end `return_value`, or `error` with its type and message.

    https://html.spec.whatwg.org/multipage/server-sent-events.html

    Raises:
        RunNotFound: There is no such run, or no longer.
    """
    result = await aget(run_id)
    told = ""
    told_at_s = time.monotonic()
    pause_s = _ASKED_EVERY_S
    while True:
        event = f"event: {result.status}\ndata: {dumps(document(result))}\n\n"
        if event != told:
            told, told_at_s, pause_s = event, time.monotonic(), _ASKED_EVERY_S
            yield event
        elif time.monotonic() - told_at_s > _SILENT_FOR_S:
            told_at_s = time.monotonic()
            yield ": nothing new\n\n"
        if result.is_finished:
            return
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.2, _LONGEST_S)
        await result.arefresh()


def document(result: TaskResult[Any]) -> dict[str, object]:
    """What an event says, as a value of JSON."""
    progress = result.progress
    shown: dict[str, object] = {
        "id": result.id,
        "task": result.task,
        "status": str(result.status),
        "attempts": result.attempts,
        "progress": progress
        and {"text": progress.text, "done": progress.done, "total": progress.total},
    }
    if result.succeeded:
        shown["return_value"] = result.return_value
    elif result.errors:
        error = result.errors[-1]
        shown["error"] = {"type": error.type, "message": error.message}
    return shown
