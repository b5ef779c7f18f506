"""Which executor carries which task: its own, or that of a flag, or that of the settings."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import cast

from fsa_cli.exceptions import ConfigurationError, did_you_mean
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import QUEUE_LENGTH
from fsa_cli.project.settings import Settings
from fsa_cli.runs.executor import LOCAL, Executor, Surroundings
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.terminal.user_code import import_string

__all__ = ["ExecutorRegistry", "executor_name", "queue_name"]

_GROUP = "fsa_cli.executors"
_OURS: Mapping[str, tuple[str, str, str | None]] = {
    LOCAL: ("fsa_cli.runs.executor", "Local", None),
    "procrastinate": ("fsa_cli.executors.procrastinate", "Procrastinate", "procrastinate"),
    "celery": ("fsa_cli.executors.celery", "Celery", "celery"),
}


def executor_name(task: TaskDefinition, default: str | None) -> str:
    """The executor of *task*; *default* is that of tasks that name none."""
    return task.executor or default or LOCAL


def queue_name(task: TaskDefinition, namespace: str) -> str:
    """The broker's queue for runs of *task*.

    Services that share a broker do not take each other's messages.
    """
    return task.queue or f"fsa.{namespace}"[:QUEUE_LENGTH]


class ExecutorRegistry:
    """The executors of one app, each created when it is first asked for."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._surroundings = Surroundings(ledger, settings)
        self._created: dict[str, Executor] = {}

    def named(self, name: str) -> Executor:
        """The executor *name*.

        Raises:
            ConfigurationError: There is none, or it cannot be used as things are.
        """
        if name not in self._created:
            self._created[name] = self._create(name)
        return self._created[name]

    def of(self, task: TaskDefinition) -> Executor:
        """The executor of *task*; raises as `named` does."""
        return self.named(executor_name(task, self._surroundings.settings.executor))

    def brokers(
        self, tasks: Iterable[TaskDefinition]
    ) -> dict[str, tuple[Executor, list[TaskDefinition]]]:
        """The brokers that carry these tasks, each with its tasks; raises as `named` does."""
        found: dict[str, tuple[Executor, list[TaskDefinition]]] = {}
        for task in tasks:
            executor = self.of(task)
            if executor.carries:
                found.setdefault(executor.name, (executor, []))[1].append(task)
        return found

    def close(self) -> None:
        for each in self._created.values():
            each.close()

    def _create(self, name: str) -> Executor:
        if name in _OURS:
            module, attribute, extra = _OURS[name]
            try:
                factory = getattr(importlib.import_module(module), attribute)
            except ImportError as exc:
                raise ConfigurationError(
                    f"the executor {name!r} is not installed",
                    details=[f"asked for by {self._source(name)}", str(exc)],
                    hint=f"pip install 'fastapi-sqlalchemy[{extra}]'",
                ) from exc
            return cast(Executor, factory(self._surroundings))
        others = {each.name: each for each in entry_points(group=_GROUP)}
        if name not in others:
            known = [*_OURS, *others]
            raise ConfigurationError(
                f"there is no executor {name!r}",
                details=[f"asked for by {self._source(name)}"],
                hint=did_you_mean(name, known, most=1) or f"there are {', '.join(known)}",
            )
        target = f"{others[name].module}:{others[name].attr}"
        factory = import_string(target, f"the executor {name!r},", source=self._source(name))
        return cast(Executor, factory(self._surroundings))

    def _source(self, name: str) -> str:
        settings = self._surroundings.settings
        return settings.sources["executor"] if settings.executor == name else f"{name!r} of a task"
