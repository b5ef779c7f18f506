"""The names that an app imports: `task`, `Task`.

    @task(schedule="0 3 * * *")
    def count_users(active: bool = True) -> int: ...

Importing this module imports none of typer, rich, apscheduler and SQLAlchemy: an app may have tasks
without paying for the tool that runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast, overload

from fsa_cli.exceptions import TaskDefinitionError, did_you_mean
from fsa_cli.tasks.definition import (
    CatchUp,
    Isolation,
    OnCrash,
    Overlap,
    TaskDefinition,
    check_definition,
)
from fsa_cli.tasks.registry import registry

if TYPE_CHECKING:
    from fsa_cli.runner.run import RunResult

__all__ = ["Task", "TaskFunction", "task"]


#: What other libraries call an option that has no similar name here.
_USUAL = {
    "timeout": "timeout_s",
    "time_limit": "timeout_s",
    "soft_time_limit": "timeout_s",
    "max_retries": "retries",
    "retry": "retries",
    "retry_backoff": "backoff_s",
    "cron": "schedule",
    "crontab": "schedule",
    "interval": "schedule",
    "every": "schedule",
    "run_every": "schedule",
    "tz": "timezone",
    "misfire_grace_time": "start_within_s",
    "coalesce": "catch_up",
    "max_instances": "overlap",
    "lock": "group",
    "queue_name": "queue",
}

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class Task(TaskDefinition):
    """A task that an app's own code can enqueue."""

    def enqueue(self, *args: Any, session: Any = None, **kwargs: Any) -> str:
        """Enqueue a run, for any free process; its id.

        Args:
            session: The run is part of its transaction: it is there if and only if that commits.
                Where the ledger is in another database, the run is written just after the COMMIT.

        Raises:
            ArgumentError: The task takes other arguments.
            ConfigurationError: There is no ledger here, or no such executor.
            DatabaseUnreachable: The ledger's database is away.
        """
        from fsa_cli.runs.enqueue import enqueue

        return enqueue(self, args, kwargs, session)

    async def aenqueue(self, *args: Any, session: Any = None, **kwargs: Any) -> str:
        """As `enqueue`, for `async def`: it does not block the event loop.

        Args:
            session: An `AsyncSession`, or a `Session`.
        """
        from fsa_cli.runs.enqueue import aenqueue

        return await aenqueue(self, args, kwargs, session)


class TaskFunction(Protocol[P, R_co]):
    """The result of `@task`: the same function, with its Task as `.task`."""

    __name__: str
    __qualname__: str
    task: Task

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


@overload
def task(function: Callable[P, R], /) -> TaskFunction[P, R]: ...


@overload
def task(
    *,
    name: str | None = None,
    schedule: object = None,
    timezone: object = None,
    args: Mapping[str, Any] | None = None,
    timeout_s: float | None = None,
    retries: int = 0,
    backoff_s: float = 1.0,
    overlap: Overlap = "skip",
    group: str | None = None,
    catch_up: CatchUp = "latest",
    catch_up_window_s: float = 3600.0,
    start_within_s: float | None = None,
    on_crash: OnCrash = "mark",
    jitter_s: float = 0.0,
    isolation: Isolation | None = None,
    on_failure: Callable[[RunResult], object] | Sequence[Callable[[RunResult], object]] = (),
    ping: str | None = None,
    commit: bool = True,
    database: str | None = None,
    executor: str | None = None,
    queue: str | None = None,
    tags: Sequence[str] = (),
) -> Callable[[Callable[P, R]], TaskFunction[P, R]]: ...


def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    args: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    on_failure: Callable[[Any], object] | Sequence[Callable[[Any], object]] = (),
    **options: Any,
) -> Any:
    """Register a function as a task and return it, with its Task as `.task`.

    The options are the attributes of `Task`. The function can still be called as before; only a run
    by `fsa` gets a session of its own.

    Raises:
        TaskDefinitionError: (a TypeError) a name that cannot be used, a generator function, a bad
            time-out, a classmethod, a bound method.
        DuplicateTask: another function has that name already.
    """

    if unknown := options.keys() - TaskDefinition.__dataclass_fields__.keys():
        name = min(unknown)
        raise TaskDefinitionError(
            f"@task has no option {name!r}",
            hint=did_you_mean(_USUAL.get(name, name), TaskDefinition.__dataclass_fields__, most=1),
        )

    def register(decorated: Callable[P, R]) -> TaskFunction[P, R]:
        function = decorated.__func__ if isinstance(decorated, staticmethod) else decorated
        defined = Task(
            name=_name_of(function) if name is None else name,
            function=function,
            args=dict(args or {}),
            tags=frozenset([tags] if isinstance(tags, str) else tags),
            on_failure=(on_failure,) if callable(on_failure) else tuple(on_failure),
            **options,
        )
        check_definition(defined)
        try:
            cast(TaskFunction[P, R], function).task = defined
        except AttributeError as exc:
            raise TaskDefinitionError(
                f"@task was given {function!r}, which takes no attribute: it needs one, .task",
                hint="write a function that calls it",
            ) from exc
        registry.add(defined)
        return cast(TaskFunction[P, R], decorated)

    return register if function is None else register(function)


def _name_of(function: Any) -> str:
    """Its name; a partial has its function's."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__name__", "")
    return name if isinstance(name, str) else ""
