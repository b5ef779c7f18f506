"""The names that an app imports: `task`, the types of what it returns, and `on_failure`.

    @task(schedule="0 3 * * *")
    def count_users(active: bool = True) -> int: ...

Importing this module imports none of typer, rich, apscheduler and SQLAlchemy: an app may have tasks
without paying for the tool that runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    cast,
    final,
    overload,
)

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
    from fastapi import FastAPI
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session
    from typing_extensions import Unpack

    from fsa_cli.runner.run import RunResult
    from fsa_cli.runs.task_result import TaskResult
    from fsa_cli.tasks.task_context import TaskContext

__all__ = ["Asking", "RunOptions", "Task", "TaskFunction", "on_failure", "task"]

Task = TaskDefinition


#: What other libraries call an option that has no similar name here.
_USUAL = {
    "timeout": "timeout_s",
    "time_limit": "timeout_s",
    "soft_time_limit": "timeout_s",
    "max_retries": "retries",
    "max_attempts": "retries",
    "retry": "retries",
    "retry_backoff": "backoff_s",
    "retry_delay": "backoff_s",
    "default_retry_delay": "backoff_s",
    "trigger": "schedule",
    "tz": "timezone",
    "expires": "start_within_s",
    "misfire_grace_time": "start_within_s",
    "coalesce": "catch_up",
    "max_instances": "overlap",
    "lock": "group",
    "queue_name": "queue",
    "retry_backoff_max": "max_backoff_s",
    "autoretry_for": "retry_on",
}
_USUAL |= dict.fromkeys(("cron", "crontab"), 'schedule="0 3 * * *"')
_USUAL |= dict.fromkeys(
    ("every", "run_every", "interval", "interval_s", "seconds", "minutes", "hours"),
    'schedule="every 10s"',
)

_METHODS = ("using", "enqueue", "aenqueue", "enqueue_many", "aenqueue_many")

P = ParamSpec("P")
#: The parameters without the injected ones.
Q = ParamSpec("Q")
V = TypeVar("V")
Hook = TypeVar("Hook", bound=Callable[["RunResult"], object])
R_co = TypeVar("R_co", covariant=True)
if TYPE_CHECKING:
    I1 = TypeVar("I1", TaskContext, Session, AsyncSession, FastAPI)
    I2 = TypeVar("I2", TaskContext, Session, AsyncSession, FastAPI)


class RunOptions(TypedDict, total=False):
    """What is said of a run, and not of its task.

    Attributes:
        session: The run is part of its transaction: it is there if and only if that commits. Where
            the ledger is in another database, the run is written just after the COMMIT.
        run_after: When it may start: an instant with its zone, or how long from now.
        priority: -100 to 100; of those that wait the highest goes first. None is the task's.
        queue: The broker's queue.
        unique: A key. While a run of the task with this key waits or runs, no other one is
            enqueued, and the result is that of the run which is there. For `enqueue_many` a
            function that returns the key of each, given its arguments by name.
        unique_for: For how long after its end the run keeps the key.
    """

    session: Session | AsyncSession | None
    run_after: datetime | timedelta | None
    priority: int | None
    queue: str | None
    unique: str | Callable[[Mapping[str, Any]], str] | None
    unique_for: timedelta | None


class Asking(Generic[Q, V]):
    """A task, and what is said of its runs: the result of `using`."""

    def __init__(self, task: TaskDefinition, options: Mapping[str, Any]) -> None:
        self._task = task
        self._options = options

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        return f"{self._task.name}.using({said})"

    def using(self, **options: Unpack[RunOptions]) -> Asking[Q, V]:
        """The same, with these options too."""
        return Asking(self._task, {**self._options, **options})

    def enqueue(self, *args: Q.args, **kwargs: Q.kwargs) -> TaskResult[V]:
        """Enqueue a run, for any free process.

        Raises:
            ArgumentError: The task takes other arguments.
            UsageError: An option has a value that it cannot have.
            ConfigurationError: There is no ledger here, or no such executor.
            DatabaseUnreachable: The ledger's database is away.
        """
        from fsa_cli.runs.enqueue import enqueue

        (result,) = enqueue(self._task, [(args, kwargs)], self._checked())
        return result

    async def aenqueue(self, *args: Q.args, **kwargs: Q.kwargs) -> TaskResult[V]:
        """As `enqueue`, for `async def`: it does not block the event loop."""
        from fsa_cli.runs.enqueue import aenqueue

        (result,) = await aenqueue(self._task, [(args, kwargs)], self._checked())
        return result

    def enqueue_many(self, calls: Iterable[Mapping[str, Any]]) -> list[TaskResult[V]]:
        """Enqueue a run for each of *calls*, the arguments by name: all in one statement."""
        from fsa_cli.runs.enqueue import enqueue

        return enqueue(self._task, [((), each) for each in calls], self._checked())

    async def aenqueue_many(self, calls: Iterable[Mapping[str, Any]]) -> list[TaskResult[V]]:
        """As `enqueue_many`, for `async def`."""
        from fsa_cli.runs.enqueue import aenqueue

        return await aenqueue(self._task, [((), each) for each in calls], self._checked())

    def _checked(self) -> Any:
        from fsa_cli.runs.run_options import RunOptions

        return RunOptions.of(self._options)


class TaskFunction(Protocol[P, R_co, Q, V]):
    """The result of `@task`: the same function, which can also be asked for.

    Its types are the function's parameters and return type, and those of a run that is asked for:
    without the parameters that the runner injects, and the value that an `async def` gives at last.
    """

    __name__: str
    __qualname__: str
    task: Task

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    def using(self, **options: Unpack[RunOptions]) -> Asking[Q, V]:
        """Say something of the run: `ship.using(run_after=timedelta(minutes=5)).enqueue("tea")`."""

    def enqueue(self, *args: Q.args, **kwargs: Q.kwargs) -> TaskResult[V]:
        """As `Asking.enqueue`."""

    async def aenqueue(self, *args: Q.args, **kwargs: Q.kwargs) -> TaskResult[V]:
        """As `Asking.aenqueue`."""

    def enqueue_many(self, calls: Iterable[Mapping[str, Any]]) -> list[TaskResult[V]]:
        """As `Asking.enqueue_many`."""

    async def aenqueue_many(self, calls: Iterable[Mapping[str, Any]]) -> list[TaskResult[V]]:
        """As `Asking.aenqueue_many`."""


@final
class _Whatever:
    """A type that no user names: only a parameter without a type of its own takes it."""


class TaskDecorator(Protocol):
    """The type of `task`: `@task`, and `@task(...)` with options.

    A first and a second parameter that are injected are taken off; the others of that kind, and
    those by name, are not seen here. Where one of them has no type, nothing is checked.
    """

    @overload
    def __call__(
        self, function: Callable[Concatenate[_Whatever, Q], Coroutine[Any, Any, V]], /
    ) -> TaskFunction[..., Coroutine[Any, Any, V], ..., V]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[_Whatever, Q], V], /
    ) -> TaskFunction[..., V, ..., V]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[I1, _Whatever, Q], Coroutine[Any, Any, V]], /
    ) -> TaskFunction[..., Coroutine[Any, Any, V], ..., V]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[I1, _Whatever, Q], V], /
    ) -> TaskFunction[..., V, ..., V]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[I1, I2, Q], Coroutine[Any, Any, V]], /
    ) -> TaskFunction[Concatenate[I1, I2, Q], Coroutine[Any, Any, V], Q, V]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[I1, I2, Q], V], /
    ) -> TaskFunction[Concatenate[I1, I2, Q], V, Q, V]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[I1, Q], Coroutine[Any, Any, V]], /
    ) -> TaskFunction[Concatenate[I1, Q], Coroutine[Any, Any, V], Q, V]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[I1, Q], V], /
    ) -> TaskFunction[Concatenate[I1, Q], V, Q, V]: ...

    @overload
    def __call__(
        self, function: Callable[Q, Coroutine[Any, Any, V]], /
    ) -> TaskFunction[Q, Coroutine[Any, Any, V], Q, V]: ...

    @overload
    def __call__(self, function: Callable[Q, V], /) -> TaskFunction[Q, V, Q, V]: ...

    @overload
    def __call__(
        self,
        *,
        name: str | None = None,
        schedule: object = None,
        timezone: object = None,
        args: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        retries: int = 0,
        backoff_s: float = 1.0,
        max_backoff_s: float = 3600.0,
        backoff_jitter: float = 0.1,
        retry_on: type[BaseException] | Sequence[type[BaseException]] | None = None,
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
        priority: int = 0,
        keep: timedelta | str | None = None,
        tags: Sequence[str] = (),
        aliases: Sequence[str] = (),
    ) -> TaskDecorator: ...


def _task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    args: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    aliases: Sequence[str] = (),
    on_failure: Callable[[Any], object] | Sequence[Callable[[Any], object]] = (),
    retry_on: type[BaseException] | Sequence[type[BaseException]] | None = None,
    **options: Any,
) -> Any:
    """Register a function as a task and return it, with its Task as `.task`.

    The options are the attributes of `Task`. The function can still be called as before; only a run
    by `fsa` gets a session of its own. `enqueue` and `using` of the result ask for such a run.

    Raises:
        TaskDefinitionError: (a TypeError) a name that cannot be used, a generator function, a bad
            time-out, a classmethod, a bound method.
        DuplicateTask: another function has that name, or one of the aliases, already.
    """

    if unknown := options.keys() - TaskDefinition.__dataclass_fields__.keys():
        name = min(unknown)
        raise TaskDefinitionError(
            f"@task has no option {name!r}",
            hint=f"did you mean {_USUAL[name]}?"
            if name in _USUAL
            else did_you_mean(name, TaskDefinition.__dataclass_fields__, most=1),
        )

    def register(decorated: Any) -> Any:
        function: Any = decorated.__func__ if isinstance(decorated, staticmethod) else decorated
        defined = TaskDefinition(
            name=_name_of(function) if name is None else name,
            function=function,
            args=dict(args or {}),
            tags=frozenset([tags] if isinstance(tags, str) else tags),
            aliases=(aliases,) if isinstance(aliases, str) else tuple(aliases),
            on_failure=(on_failure,) if callable(on_failure) else tuple(on_failure),
            retry_on=_classes(retry_on),
            **options,
        )
        check_definition(defined)
        asking: Asking[..., Any] = Asking(defined, {})
        try:
            function.task = defined
            for method in _METHODS:
                setattr(function, method, getattr(asking, method))
        except AttributeError as exc:
            raise TaskDefinitionError(
                f"@task was given {function!r}, which takes no attribute: it needs one, .task",
                hint="write a function that calls it",
            ) from exc
        registry.add(defined)
        return decorated

    return register if function is None else register(function)


_task.__name__ = _task.__qualname__ = "task"
task = cast(TaskDecorator, _task)


def on_failure(function: Hook) -> Hook:
    """Have *function* called with the `RunResult` of each run of any task that failed for good.

    As the `on_failure` of each task, after its own; for an error tracker. It may be `async def`.

    Raises:
        TaskDefinitionError: (a TypeError) it is no function.
    """
    if not callable(function):
        raise TaskDefinitionError(
            f"@on_failure was given {function!r}, which is not a function",
            hint="write a function of one argument, the RunResult",
        )
    registry.add_failure_hook(function)
    return function


def _classes(given: Any) -> tuple[type[BaseException], ...] | None:
    if given is None:
        return None
    return tuple(given) if isinstance(given, Sequence) else (given,)


def _name_of(function: Any) -> str:
    """Its name; a partial has its function's."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__name__", "")
    return name if isinstance(name, str) else ""
