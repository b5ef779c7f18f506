"""What to say where nobody takes a run that is asked for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from fsa_cli.ledger import nodes
from fsa_cli.ledger.offload import off_the_loop
from fsa_cli.ledger.served_queues import is_registered, serving
from fsa_cli.ledger.store import Ledger
from fsa_cli.runs.executor import Executor
from fsa_cli.runs.worker_command import worker_command

__all__ = ["UnservedRuns", "unserved"]

_LOOKED_EVERY_S = 60.0


def unserved(ledger: Ledger, executor: Executor, queue: str | None, task: str) -> str | None:
    """What to say where nobody who lives serves this queue, or nobody was ever there who takes
    runs of *task*; None: somebody does, or may."""
    return ledger.read(lambda connection: _unserved(connection, ledger, executor, queue, task))


def _unserved(
    connection: Connection, ledger: Ledger, executor: Executor, queue: str | None, task: str
) -> str | None:
    now_ms = ledger.now_ms(connection)
    found = serving(connection, ledger, now_ms)
    if found.has(executor.name, queue):
        if is_registered(connection, ledger, task):
            return None
        said = f"no live process takes {task} (--only, --tag, another version?)"
        return f"{said}: it waits for {worker_command(executor.name, queue)}"
    others = nodes.elsewhere(connection, ledger, now_ms)
    here = f" in the namespace {ledger.namespace}, but in {', '.join(others)}" if others else ""
    if not executor.carries:
        return (
            f"no scheduler is alive{here}, and no worker: it waits for "
            f"{worker_command(executor.name)}, fsa scheduler start or fsa scheduler tick"
        )
    if found.workers:
        said = f"no live worker serves the queue {queue} of {executor.name}"
        return f"{said}: it waits for {worker_command(executor.name, queue)}"
    return f"no worker is alive{here}: it waits for {worker_command(executor.name)}"


class UnservedRuns:
    """Says once of each queue that nobody serves it, and of each task that nobody takes it. The
    ledger is asked once a minute at most for each task."""

    def __init__(self, ledger: Ledger, warn: Callable[[str], None]) -> None:
        self._ledger = ledger
        self._warn = warn
        self._look_at_s: dict[tuple[str, str | None, str], float] = {}
        self._said: set[str] = set()

    def look(self, executor: Executor, queue: str | None, task: str) -> None:
        key, now_s = (executor.name, queue, task), time.monotonic()
        if now_s < self._look_at_s.get(key, float("-inf")):
            return
        self._look_at_s[key] = now_s + _LOOKED_EVERY_S
        with contextlib.suppress(SQLAlchemyError):  # whoever writes the run says it
            said = off_the_loop(lambda: unserved(self._ledger, executor, queue, task))
            if said is not None:
                self._look_at_s[key] = float("inf")
                if said not in self._said:
                    self._said.add(said)
                    self._warn(said)
