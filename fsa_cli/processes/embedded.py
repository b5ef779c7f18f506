"""A node inside a broker's worker that a team starts itself."""

from __future__ import annotations

import atexit
import os
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsa_cli.processes.message_claimer import MessageClaimer
    from fsa_cli.processes.node import Node

__all__ = ["end", "take"]

# How many runs go on at a time, the broker's worker decides.
_CONCURRENCY = 1000
_GRACE_S = 25.0

_lock = threading.Lock()
_here: list[tuple[int, Node, MessageClaimer]] = []


def take(run_id: str) -> Future[None]:
    """Execute a run in this process; the first one loads the app, as `fsa` does.

    Raises:
        FsaError: The app was not found here, or its ledger is away.
    """
    with _lock:
        if not _here or _here[0][0] != os.getpid():  # a prefork pool's child is a node of its own
            _here[:] = [(os.getpid(), *_started())]
    return _here[0][2].take(run_id)


def end() -> None:
    """Wait for the runs of this process, and record their outcomes."""
    with _lock:
        if _here and _here[0][0] == os.getpid():
            _, node, _ = _here.pop()
            node.drain(None)


def _started() -> tuple[Node, MessageClaimer]:
    from fsa_cli.processes.assembly import ProcessBuilder
    from fsa_cli.project import loader, settings
    from fsa_cli.tasks.registry import registry
    from fsa_cli.terminal.output import Output

    chosen = settings.read()
    loaded = loader.load(chosen)
    builder = ProcessBuilder.of(loaded, chosen, Output(quiet=True), registry)
    builder.open()
    node, messages = builder.embedded(concurrency=_CONCURRENCY, grace_s=_GRACE_S)
    node.start()
    atexit.register(end)
    return node, messages
