"""fsa: run tasks, shells, checks and schedules of a FastAPI app on its own database.

In an app: `from fsa_cli import task, TaskContext`. The tool itself is the command `fsa`.
In an app's lifespan, where one container is enough: `async with fsa_cli.scheduling():`.
In an env.py of Alembic: `from fsa_cli import include_name`; in a revision of it `upgrade_ledger`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs as much as all else that `fsa --version` imports
if TYPE_CHECKING:
    from typing import Any

    from fsa_cli.api import Task, on_failure, task
    from fsa_cli.exceptions import RunNotFound
    from fsa_cli.ledger.migration import downgrade_ledger, upgrade_ledger
    from fsa_cli.migrations.own_tables import include_name
    from fsa_cli.processes.lifespan import scheduling
    from fsa_cli.runner.run import RunResult
    from fsa_cli.runs.task_result import TaskResult
    from fsa_cli.tasks.outcomes import Discard, Retry
    from fsa_cli.tasks.task_context import Progress, TaskContext

__all__ = [
    "Discard",
    "Progress",
    "Retry",
    "RunNotFound",
    "RunResult",
    "Task",
    "TaskContext",
    "TaskResult",
    "downgrade_ledger",
    "include_name",
    "on_failure",
    "scheduling",
    "task",
    "upgrade_ledger",
]

_HOMES = {
    "Discard": "tasks.outcomes",
    "Progress": "tasks.task_context",
    "Retry": "tasks.outcomes",
    "RunNotFound": "exceptions",
    "RunResult": "runner.run",
    "Task": "api",
    "TaskContext": "tasks.task_context",
    "TaskResult": "runs.task_result",
    "downgrade_ledger": "ledger.migration",
    "include_name": "migrations.own_tables",
    "on_failure": "api",
    "scheduling": "processes.lifespan",
    "task": "api",
    "upgrade_ledger": "ledger.migration",
}


def __getattr__(name: str) -> Any:
    """Import a public name on its first use: `fsa --version` and `fsa health live` need none."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
