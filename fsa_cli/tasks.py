"""Tasks: functions that `fsa` can run, by hand or on a schedule.

    @task(schedule="0 3 * * *")
    def count_users(active: bool = True) -> int: ...

Importing this module imports none of typer, rich and apscheduler: an app may have tasks without
paying for the tool that runs them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    get_args,
    overload,
)

from fsa_cli.exceptions import DuplicateTask, TaskDefinitionError

if TYPE_CHECKING:
    from fsa_cli.runner import RunResult

__all__ = ["Registry", "Task", "TaskFunction", "registry", "task"]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Overlap = Literal["skip", "queue", "allow"]
CatchUp = Literal["latest", "all", "none"]
OnCrash = Literal["mark", "retry"]
Isolation = Literal["process"]

_CHOICES = {"overlap": Overlap, "catch_up": CatchUp, "on_crash": OnCrash}

# `fsa runs show`, `retry` and `cancel` take a run, `fsa runs NAME` a task.
_RESERVED = frozenset({"show", "retry", "cancel"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,189}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A function and how it is to be run.

    Attributes:
        name: What `fsa run-task NAME` calls it; the function's name unless told otherwise.
        function: The user's function, as it was written.
        schedule: Cron text, "every 15m", "@daily", an APScheduler trigger, or several of them. Kept
            as it was given: what needs it reads it with `fsa_cli.schedules.parse`.
        timezone: A name, or a zoneinfo or pytz zone; None is UTC.
        args: The arguments of scheduled runs.
        timeout_s: How long a run may take. An async task is cancelled then; what happens to a sync
            one is told in `fsa_cli.runner`. None: for ever.
        retries: How often a run that failed or took too long is made again, by the scheduler. Not a
            sync one whose thread goes on after its time.
        backoff_s: The pause before the first of them, doubled each time, at most an hour.
        overlap: What becomes of an instant while the run before it goes on: "skip" (it is recorded
            as skipped), "queue" (it waits), "allow" (both run). Runs that are only asked for wait
            for one another with "queue", and where the task has a schedule or a group.
        group: Tasks of one group never run at the same time, on any machine; None: a group of its
            own.
        catch_up: Of the instants at which no scheduler ran: the "latest" is made up for, "all", or
            "none".
        catch_up_window_s: How far back that goes.
        start_within_s: How late a run may still start; None is the catch-up window.
        on_crash: What becomes of a run whose process died: "mark" (it is recorded as interrupted:
            at most once) or "retry" (it is made again: at least once).
        jitter_s: Runs start up to so much after their instant; how much follows from task and
            instant, so that it is the same on each machine.
        isolation: "process" runs it in a process of its own, which a time-out kills.
        on_failure: Called with the `RunResult` of each run that failed for good, after it.
        ping: A URL that is called when a run starts (`/start`), succeeds, and fails (`/fail`), as
            healthchecks.io has it.
        commit: Whether a run that returns normally commits. False leaves it to the function.
        database: The name of the `Database` whose scope a run is given; None is the app's `db`.
        executor: What carries its runs: "local", "procrastinate", "celery", or one of another
            package; None is the settings'.
        queue: The engine's queue; None is "fsa.NAMESPACE".
        tags: Words to choose tasks by.
    """

    name: str
    function: Callable[..., Any]
    schedule: object = None
    timezone: object = None
    args: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float | None = None
    retries: int = 0
    backoff_s: float = 1.0
    overlap: Overlap = "skip"
    group: str | None = None
    catch_up: CatchUp = "latest"
    catch_up_window_s: float = 3600.0
    start_within_s: float | None = None
    on_crash: OnCrash = "mark"
    jitter_s: float = 0.0
    isolation: Isolation | None = None
    on_failure: tuple[Callable[[Any], object], ...] = ()
    ping: str | None = None
    commit: bool = True
    database: str | None = None
    executor: str | None = None
    queue: str | None = None
    tags: frozenset[str] = frozenset()

    def enqueue(self, *args: Any, session: Any = None, **kwargs: Any) -> str:
        """Have it run soon, in whichever process is free; the run's id.

        Args:
            session: The run is part of its transaction: it is there if and only if that commits.
                Where the ledger is in another database, the run is written just after the COMMIT.

        Raises:
            ArgumentError: The task takes other arguments.
            ConfigurationError: There is no ledger here, or no such executor.
            DatabaseUnreachable: The ledger's database is away.
        """
        from fsa_cli.enqueueing import enqueue

        return enqueue(self, args, kwargs, session)

    async def aenqueue(self, *args: Any, session: Any = None, **kwargs: Any) -> str:
        """As `enqueue`, for `async def`: it keeps no event loop waiting.

        Args:
            session: An `AsyncSession`, or a `Session`.
        """
        from fsa_cli.enqueueing import aenqueue

        return await aenqueue(self, args, kwargs, session)

    @cached_property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(inspect.unwrap(self.function))

    @property
    def description(self) -> str:
        """The whole docstring, without its indentation; empty without one."""
        return inspect.getdoc(self.function) or ""

    @property
    def summary(self) -> str:
        """The docstring's first paragraph as one line; empty without a docstring."""
        return " ".join(self.description.split("\n\n")[0].split())

    @property
    def file(self) -> str:
        code: Any = getattr(inspect.unwrap(self.function), "__code__", None)
        return code.co_filename if code else "<unknown>"

    @property
    def line(self) -> int:
        code: Any = getattr(inspect.unwrap(self.function), "__code__", None)
        return code.co_firstlineno if code else 0

    @property
    def place(self) -> str:
        """Where it was written: `file:line`, relative to the current directory if inside it."""
        path = Path(self.file)
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        return f"{path}:{self.line}"


class TaskFunction(Protocol[P, R_co]):
    """What `@task` gives back: the same function, with its Task at hand."""

    __name__: str
    __qualname__: str
    task: Task

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class Registry:
    """The tasks of this process by name, in the order in which they were defined."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}
        self._executions: dict[str, object] = {}

    def add(self, task: Task) -> None:
        """Add *task*.

        A module that is imported once more (reloaded, or under a second name) defines its tasks
        again; the new one takes the old one's place.

        Raises:
            DuplicateTask: another function has that name already.
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
        self._tasks[task.name] = task
        self._executions[task.name] = execution

    def get(self, name: str) -> Task | None:
        return self._tasks.get(name)

    def clear(self) -> None:
        """Forget every task; for tests."""
        self._tasks.clear()
        self._executions.clear()

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[Task]:
        return iter(tuple(self._tasks.values()))

    def __len__(self) -> int:
        return len(self._tasks)


registry = Registry()


def _origin(task: Task) -> tuple[str, str]:
    function = inspect.unwrap(task.function)
    return task.file, getattr(function, "__qualname__", task.name)


def _module_execution(task: Task) -> object:
    """The module's spec, which is a new object each time its body is executed.

    It tells a reloaded module from one that defines a function twice: in both, file and name agree.
    """
    return getattr(inspect.unwrap(task.function), "__globals__", {}).get("__spec__")


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

    The options are the attributes of `Task`. The function can still be called as before; only what
    `fsa` runs gets a session of its own.

    Raises:
        TaskDefinitionError: a name that cannot be used, a generator function, a bad time-out.
        DuplicateTask: another function has that name already.
    """

    def register(function: Callable[P, R]) -> TaskFunction[P, R]:
        made = Task(
            name=getattr(function, "__name__", "") if name is None else name,
            function=function,
            args=dict(args or {}),
            tags=frozenset([tags] if isinstance(tags, str) else tags),
            on_failure=(on_failure,) if callable(on_failure) else tuple(on_failure),
            **options,
        )
        _check(made)
        registry.add(made)
        decorated = cast(TaskFunction[P, R], function)
        decorated.task = made
        return decorated

    return register if function is None else register(function)


def _check(task: Task) -> None:
    function = inspect.unwrap(task.function)

    def wrong(reason: str, hint: str | None = None) -> TaskDefinitionError:
        return TaskDefinitionError(f"task {task.name!r} ({task.place}) {reason}", hint=hint)

    if not callable(function):
        raise TaskDefinitionError(
            f"@task was given {function!r}, which is not a function",
            hint="write @task, or @task(name=...) with named options",
        )
    if task.name in _RESERVED:
        raise wrong("has a name that `fsa runs` uses", 'give it another: @task(name="...")')
    if not _NAME.fullmatch(task.name):
        raise wrong(
            "cannot have this name",
            "letters, digits, _, - and ., beginning with a letter, at most 190",
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise wrong("is a generator function: calling it runs nothing", "return instead of yield")
    if task.timeout_s is not None and not task.timeout_s > 0:
        raise wrong(f"has timeout_s={task.timeout_s}", "seconds, more than 0; None for no limit")
    for option, choices in _CHOICES.items():
        if getattr(task, option) not in get_args(choices):
            known = ", ".join(f'"{choice}"' for choice in get_args(choices))
            raise wrong(f"has {option}={getattr(task, option)!r}", f"it is one of {known}")
    if task.isolation not in (None, "process"):
        raise wrong(f"has isolation={task.isolation!r}", '"process", or None for a thread')
    if not isinstance(task.retries, int) or task.retries < 0:
        raise wrong(f"has retries={task.retries!r}", "a whole number, 0 or more")
    for option in ("backoff_s", "catch_up_window_s", "jitter_s", "start_within_s"):
        value = getattr(task, option)
        if value is not None and not 0 <= value < float("inf"):
            raise wrong(f"has {option}={value!r}", "seconds, 0 or more")
    for option in ("executor", "queue"):
        value = getattr(task, option)
        if value is not None and not (isinstance(value, str) and 0 < len(value) <= 50):
            raise wrong(f"has {option}={value!r}", "a name of at most 50 characters")
    if task.ping is not None and not task.ping.startswith(("http://", "https://")):
        raise wrong(f"has ping={task.ping!r}", "a URL: https://hc-ping.com/...")
    for hook in task.on_failure:
        if not callable(hook):
            raise wrong(f"has on_failure={hook!r}", "a function of one argument, the RunResult")
