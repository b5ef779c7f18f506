"""A node inside a broker's worker that a team starts itself."""

from __future__ import annotations

import atexit
import os
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsa_cli.processes.worker import Worker

__all__ = ["end", "take"]

# How many runs go on at a time, the broker's worker decides.
_CONCURRENCY = 1000
_GRACE_S = 25.0

_lock = threading.Lock()
_here: list[tuple[int, Worker]] = []


def take(run_id: str) -> Future[None]:
    """Execute a run in this process; the first one loads the app, as `fsa` does.

    Raises:
        FsaError: The app was not found here, or its ledger is away.
    """
    with _lock:
        if not _here or _here[0][0] != os.getpid():  # a prefork pool's child is a node of its own
            _here[:] = [(os.getpid(), _begun())]
    return _here[0][1].message_claimer.take(run_id)


def end() -> None:
    """Wait for the runs of this process, and record their outcomes."""
    with _lock:
        if _here and _here[0][0] == os.getpid():
            _, worker = _here.pop()
            worker.end()


def _begun() -> Worker:
    from fsa_cli.processes.assembly import ProcessBuilder
    from fsa_cli.project import loader, settings
    from fsa_cli.runs.executor import Local, Surroundings
    from fsa_cli.tasks.registry import registry
    from fsa_cli.terminal.output import Output

    chosen = settings.read()
    loaded = loader.load(chosen)
    builder = ProcessBuilder.of(loaded, chosen, Output(quiet=True), registry)
    builder.open()
    nothing = Local(Surroundings(builder.ledger, chosen))
    worker = builder.worker(nothing, (), concurrency=_CONCURRENCY, grace_s=_GRACE_S)
    worker.begin()
    atexit.register(end)
    return worker
