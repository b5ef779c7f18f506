"""The lock of a task: only one run at a time may hold it."""

from __future__ import annotations

from fsa_cli.project.settings import NAMESPACE_LENGTH
from fsa_cli.tasks.definition import TaskDefinition

__all__ = ["lock_of"]


def lock_of(task: TaskDefinition, namespace: str) -> str | None:
    """The key that only one run at a time may hold; None: runs of the task may overlap.

    The default `overlap="skip"` is about instants: where there is neither a schedule nor a group,
    runs of the task go on side by side.
    """
    if task.schedule is None and task.overlap == "skip" and task.group is None:
        return None
    if task.group is not None:
        return f"{namespace[:NAMESPACE_LENGTH]}/@{task.group}"
    return None if task.overlap == "allow" else f"{namespace[:NAMESPACE_LENGTH]}/{task.oldest_name}"
