"""The tasks of this process by name."""

from __future__ import annotations

from collections.abc import Iterator

from fsa_cli.exceptions import DuplicateTask
from fsa_cli.tasks.callables import written_function
from fsa_cli.tasks.definition import TaskDefinition

__all__ = ["Registry", "registry"]


class Registry:
    """The tasks of this process by name, in the order in which they were defined."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskDefinition] = {}
        #: The names that tasks had before, and those that they have.
        self._renamed: dict[str, str] = {}
        self._executions: dict[str, object] = {}

    def add(self, task: TaskDefinition) -> None:
        """Add *task*.

        A module that is imported once more (reloaded, or under a second name) defines its tasks
        again; the new one takes the old one's place.

        Raises:
            DuplicateTask: another function has that name, or one of the aliases, already.
        """
        execution = _module_execution(task)
        known = self._tasks.get(task.name)
        if known is not None and not (
            _origin(known) == _origin(task)
            and (known.line == task.line or self._executions[task.name] is not execution)
        ):
            raise DuplicateTask(
                f"two tasks are named {task.name!r}: {known.place} and {task.place}",
                hint='give one of them another name: @task(name="...")',
            )
        for name in task.names:
            other = self.get(name)
            if other is not None and other.name != task.name:
                raise DuplicateTask(
                    f"the name {name!r} is of two tasks, for one as an alias: "
                    f"{other.name} ({other.place}) and {task.name} ({task.place})",
                    hint="aliases are names that no task has any more",
                )
        if known is not None:
            self._renamed = {each: now for each, now in self._renamed.items() if now != known.name}
        self._tasks[task.name] = task
        self._executions[task.name] = execution
        self._renamed |= dict.fromkeys(task.aliases, task.name)

    def get(self, name: str) -> TaskDefinition | None:
        """The task of that name, or that had it before."""
        return self._tasks.get(self._renamed.get(name, name))

    def clear(self) -> None:
        """Forget every task; for tests."""
        self._tasks.clear()
        self._renamed.clear()
        self._executions.clear()

    def __contains__(self, name: object) -> bool:
        return name in self._tasks or name in self._renamed

    def __iter__(self) -> Iterator[TaskDefinition]:
        return iter(tuple(self._tasks.values()))

    def __len__(self) -> int:
        return len(self._tasks)


registry = Registry()


def _origin(task: TaskDefinition) -> tuple[str, str]:
    function = written_function(task.function)
    return task.file, getattr(function, "__qualname__", task.name)


def _module_execution(task: TaskDefinition) -> object:
    """The module's spec, which is a new object each time its body is executed.

    It tells a reloaded module from one that defines a function twice: in both, file and name agree.
    """
    return getattr(written_function(task.function), "__globals__", {}).get("__spec__")
