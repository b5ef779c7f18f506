"""A worker of ours inside an engine's own: it makes runs where a team starts that worker itself."""

from __future__ import annotations

import atexit
import os
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsa_cli.processes.worker import Worker

__all__ = ["end", "take"]

# How much goes on at a time is the engine's business.
_CONCURRENCY = 1000
_GRACE_S = 25.0

_lock = threading.Lock()
_here: list[tuple[int, Worker]] = []


def take(run_id: str) -> Future[None]:
    """Have this process make a run; the first one loads the app, as `fsa` does.

    Raises:
        FsaError: The app was not found here, or its ledger is away.
    """
    with _lock:
        if not _here or _here[0][0] != os.getpid():  # a prefork pool's child is a node of its own
            _here[:] = [(os.getpid(), _begun())]
    return _here[0][1].taker.take(run_id)


def end() -> None:
    """Wait for what goes on here, and record it."""
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
    setup = ProcessBuilder.of(loaded, chosen, Output(quiet=True), registry)
    setup.open()
    nothing = Local(Surroundings(setup.ledger, chosen))
    worker = setup.worker(nothing, (), concurrency=_CONCURRENCY, grace_s=_GRACE_S)
    worker.begin()
    atexit.register(end)
    return worker
