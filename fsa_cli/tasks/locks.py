"""What only one run at a time may hold."""

from __future__ import annotations

from fsa_cli.project.settings import NAMESPACE_LENGTH
from fsa_cli.tasks.definition import TaskDefinition

__all__ = ["lock_of"]


def lock_of(task: TaskDefinition, namespace: str) -> str | None:
    """What only one run at a time may hold; None where the task's runs may overlap.

    The default `overlap="skip"` is about instants: runs that are only asked for go on side by side.
    """
    if task.schedule is None and task.overlap == "skip" and task.group is None:
        return None
    if task.group is not None:
        return f"{namespace[:NAMESPACE_LENGTH]}/@{task.group}"
    return None if task.overlap == "allow" else f"{namespace[:NAMESPACE_LENGTH]}/{task.name}"
