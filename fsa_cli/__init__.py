"""fsa: run tasks, shells, checks and schedules of a FastAPI app on its own database.

In an app: `from fsa_cli import task, TaskContext`. The tool itself is the command `fsa`.
"""

from fsa_cli.context import Progress, TaskContext
from fsa_cli.tasks import Task, task

__all__ = ["Progress", "Task", "TaskContext", "task"]
