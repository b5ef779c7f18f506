"""The tasks of this process by name, and whom their failures are told."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

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
        self._failure_hooks: dict[object, Callable[[Any], object]] = {}

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

    def add_failure_hook(self, hook: Callable[[Any], object]) -> None:
        """Add what hears of the failures of all tasks.

        A function is called once, also where its module was imported under two names: an app that
        is its own `__main__` is.
        """
        place: object = id(hook)
        if inspect.isfunction(hook):
            code = hook.__code__
            place = code.co_filename, code.co_firstlineno, hook.__qualname__
        self._failure_hooks[place] = hook

    @property
    def failure_hooks(self) -> tuple[Callable[[Any], object], ...]:
        """Called with the `RunResult` of each run of any task that failed for good."""
        return tuple(self._failure_hooks.values())

    def clear(self) -> None:
        """Forget every task and hook; for tests."""
        self._failure_hooks.clear()
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
