"""What to say where nobody serves the queue of a run that is asked for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from fsa_cli.ledger import nodes
from fsa_cli.ledger.offload import off_the_loop
from fsa_cli.ledger.serving import Serving, serving
from fsa_cli.ledger.store import Ledger
from fsa_cli.runs.executor import Executor
from fsa_cli.runs.worker_command import worker_command

__all__ = ["UnservedQueues", "unserved_queue"]

_LOOKED_EVERY_S = 60.0


def unserved_queue(ledger: Ledger, executor: Executor, queue: str | None) -> str | None:
    """What to say where nobody who lives serves this queue; None: somebody does."""

    def look(connection: Connection) -> tuple[Serving, tuple[str, ...] | None]:
        now_ms = ledger.now_ms(connection)
        found = serving(connection, ledger, now_ms)
        if found.has(executor.name, queue):
            return found, None
        return found, nodes.elsewhere(connection, ledger, now_ms)

    found, others = ledger.read(look)
    if others is None:
        return None
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


class UnservedQueues:
    """Says once of each queue that nobody serves it. The ledger is asked once a minute at most."""

    def __init__(self, ledger: Ledger, warn: Callable[[str], None]) -> None:
        self._ledger = ledger
        self._warn = warn
        self._look_at_s: dict[tuple[str, str | None], float] = {}

    def look(self, executor: Executor, queue: str | None) -> None:
        key, now_s = (executor.name, queue), time.monotonic()
        if now_s < self._look_at_s.get(key, float("-inf")):
            return
        self._look_at_s[key] = now_s + _LOOKED_EVERY_S
        with contextlib.suppress(SQLAlchemyError):  # whoever writes the run says it
            said = off_the_loop(lambda: unserved_queue(self._ledger, executor, queue))
            if said is not None:
                self._look_at_s[key] = float("inf")
                self._warn(said)
