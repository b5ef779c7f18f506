"""Look up a task by the name that a person wrote, and the database that it runs in."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING

from fsa_cli.exceptions import AppLoadError, TaskNotFound, did_you_mean
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.registry import registry
from fsa_cli.terminal.user_code import describe_error

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database
    from fsa_cli.project.loader import LoadedApp
    from fsa_cli.project.settings import Settings

__all__ = ["NONE_REGISTERED", "database_for", "get_task"]

#: What is said where there is no task: also how one that is written is found.
NONE_REGISTERED = (
    "no task is registered: write @task above a function in the app or in tasks.py beside its "
    "module (shop/tasks.py for shop/main.py), "
    'or name its module in [tool.fsa]: tasks = ["shop.jobs"]'
)
_LISTED = 8


def get_task(name: str) -> TaskDefinition:
    """The registered task *name*, or the function `module:function` as a task.

    Raises:
        TaskNotFound: with a did-you-mean, or a list of the tasks.
        AppLoadError: the module of `module:function` failed while it was imported.
    """
    task = registry.get(name)
    if task is not None:
        return task
    if ":" in name:
        return _of_function(name)
    names = [task.name for task in registry]
    if hint := did_you_mean(name, names):
        pass
    elif names:
        more = f" and {len(names) - _LISTED} more: fsa tasks" if len(names) > _LISTED else ""
        hint = f"there are {', '.join(sorted(names)[:_LISTED])}{more}"
    else:
        hint = NONE_REGISTERED
    raise TaskNotFound(f"there is no task {name!r}", hint=hint)


def _of_function(name: str) -> TaskDefinition:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not (module_name + ".").startswith(exc.name + "."):
            raise _import_failed(module_name, exc) from exc
        raise TaskNotFound(f"there is no module {exc.name!r}", hint="MODULE:FUNCTION") from exc
    except (Exception, SystemExit) as exc:
        raise _import_failed(module_name, exc) from exc
    found = getattr(module, attribute, None)
    if not inspect.isroutine(found):
        functions = [n for n, value in vars(module).items() if inspect.isfunction(value)]
        raise TaskNotFound(
            f"{module_name} has no function {attribute!r}",
            hint=did_you_mean(attribute, functions, most=2, form=f"{module_name}:{{}}"),
        )
    registered = getattr(found, "task", None)
    return (
        registered
        if isinstance(registered, TaskDefinition)
        else TaskDefinition(name=attribute, function=found)
    )


def _import_failed(module: str, error: BaseException) -> AppLoadError:
    return AppLoadError(f"the module {module!r} cannot be imported", details=describe_error(error))


def database_for(task: TaskDefinition, loaded: LoadedApp, settings: Settings) -> Database:
    """The database of *task*: that of a flag, the task's own, or the app's `db`.

    Raises:
        ConfigurationError: the app has no database.
        UsageError: it has none of that name.
    """
    if settings.sources.get("database") != "default":
        return loaded.database(settings.database)
    if task.database is None and len(loaded.databases) == 1:
        return next(iter(loaded.databases.values()))
    return loaded.database(task.database or "default")
