"""The names that an adapter of a broker needs.

The protocol itself is in `fsa_cli.runs.executor`. Another package adds a broker by an entry point
of the group `fsa_cli.executors`: its name, and a callable that takes a `Surroundings` and returns
an `Executor`. Those of this package are listed in `fsa_cli.runs.executor_registry`.
"""

from __future__ import annotations

from fsa_cli.runs.executor import (
    LOCAL,
    TASK,
    Executor,
    Local,
    Message,
    OutsideTheLedger,
    Surroundings,
    Take,
)

__all__ = [
    "LOCAL",
    "TASK",
    "Executor",
    "Local",
    "Message",
    "OutsideTheLedger",
    "Surroundings",
    "Take",
]
