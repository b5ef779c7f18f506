"""The command that starts a worker for runs that wait."""

from __future__ import annotations

from shlex import quote

from fsa_cli.exceptions import FsaError
from fsa_cli.project import loader, settings
from fsa_cli.runs.executor import LOCAL

__all__ = ["worker_command"]


def worker_command(executor: str, queue: str | None = None) -> str:
    """`fsa worker start` as it is typed to have the runs of *executor* executed.

    The executor is named: without it a worker hosts what the settings say, and a task may have
    another one.

    Args:
        queue: The broker's queue; None: those of the tasks.
    """
    if executor == LOCAL and _default() == LOCAL:
        return "fsa worker start"
    named = f" --queue {quote(queue)}" if queue and executor != LOCAL else ""
    return f"fsa worker start --executor {quote(executor)}{named}"


def _default() -> str | None:
    """What `fsa worker start` hosts here; None if the settings cannot be read."""
    current = loader.current()
    try:
        return (current[1] if current else settings.read()).executor or LOCAL
    except FsaError:
        return None
