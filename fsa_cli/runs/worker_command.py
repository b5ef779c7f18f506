"""The command that starts a worker for runs that wait."""

from __future__ import annotations

from shlex import quote

from fsa_cli.runs.executor import LOCAL

__all__ = ["worker_command"]


def worker_command(executor: str, queue: str | None = None) -> str:
    """`fsa worker start` as it is typed to have the runs of *executor* executed.

    The broker is named: without it a worker hosts what the settings say, and a task may have
    another one.

    Args:
        queue: The broker's queue; None: those of the tasks.
    """
    if executor == LOCAL:
        return "fsa worker start"
    named = f" --queue {quote(queue)}" if queue else ""
    return f"fsa worker start --executor {quote(executor)}{named}"
