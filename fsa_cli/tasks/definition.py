"""A task: a function, and how its runs are executed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from fsa_cli.exceptions import TaskDefinitionError
from fsa_cli.schedules.durations import kept_ms
from fsa_cli.tasks import callables

__all__ = [
    "LONGEST_S",
    "CatchUp",
    "Isolation",
    "OnCrash",
    "Overlap",
    "TaskDefinition",
    "check_definition",
]

Overlap = Literal["skip", "queue", "allow"]
CatchUp = Literal["latest", "all", "none"]
OnCrash = Literal["mark", "retry"]
Isolation = Literal["process"]

#: A time-out of more than a hundred years is no instant any more, nor a timer of the system's.
LONGEST_S = 100 * 365 * 24 * 3600.0

_CHOICES = {"overlap": Overlap, "catch_up": CatchUp, "on_crash": OnCrash}

# `fsa runs show`, `retry` and `cancel` take a run, `fsa runs NAME` a task.
_RESERVED = frozenset({"show", "retry", "cancel"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,189}")


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskDefinition:
    """A function and how its runs are executed.

    Attributes:
        name: Its name in `fsa run-task NAME`; by default the function's.
        function: The user's function, as it was written.
        schedule: Cron text, "every 15m", "@daily", an APScheduler trigger, or several of them. Kept
            as it was given: `fsa_cli.schedules.schedule.parse_schedule` reads it.
        timezone: A name, or a zoneinfo or pytz zone; None is UTC.
        args: The arguments of scheduled runs.
        timeout_s: How long a run may take. An async task is cancelled then; for a sync one see
            `fsa_cli.runner.execute`. None: for ever.
        retries: How often the scheduler executes a run again that failed or took too long. Not a
            sync one whose thread goes on after its time-out.
        backoff_s: The pause before the first of them, doubled each time.
        max_backoff_s: The longest pause.
        backoff_jitter: By which part of it each pause is longer or shorter, by chance: what has
            failed because something was away should not come back all at once.
        retry_on: The exceptions after which a run is executed again; None: every `Exception`, and
            a time-out, which counts as a `TimeoutError`.
        overlap: For an instant that comes while the run before it goes on: "skip" (record it as
            skipped), "queue" (it waits), "allow" (both run). Enqueued runs wait for one another
            with "queue", and if the task has a schedule or a group.
        group: Tasks of one group never run at the same time, on any machine; None: a group of its
            own.
        catch_up: Of the instants at which no scheduler ran, the "latest" is executed, "all", or
            "none".
        catch_up_window_s: How far back that goes.
        start_within_s: How late a run may still start; None is the catch-up window.
        on_crash: For a run whose process died: "mark" (record it as interrupted: at most once) or
            "retry" (execute it again: at least once).
        jitter_s: Runs start up to so much after their instant; how much follows from task and
            instant, so that it is the same on each machine.
        isolation: "process" runs it in a process of its own, which a time-out kills.
        on_failure: Called with the `RunResult` of each run that failed for good, after it.
        ping: A URL that is called when a run starts (`/start`), succeeds, and fails (`/fail`), as
            healthchecks.io has it.
        commit: Whether a run that returns normally commits. False leaves it to the function.
        database: The name of the `Database` whose scope its runs have; None is the app's `db`.
        executor: How its runs are carried: "local", "procrastinate", "celery", or one of another
            package; None is the settings'.
        queue: The broker's queue; None is "fsa.NAMESPACE".
        priority: -100 to 100: of the runs that wait the highest goes first. Where one is asked for,
            `using(priority=...)` goes before it.
        keep: For how long its ended runs are kept, whatever their status: "7d", or a timedelta;
            None is the settings'.
        tags: Words to choose tasks by.
        aliases: The names that it had before, the oldest last: what waits under them is its own.
    """

    name: str
    function: Callable[..., Any]
    schedule: object = None
    timezone: object = None
    args: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float | None = None
    retries: int = 0
    backoff_s: float = 1.0
    max_backoff_s: float = 3600.0
    backoff_jitter: float = 0.1
    retry_on: tuple[type[BaseException], ...] | None = None
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
    priority: int = 0
    keep: timedelta | str | None = None
    tags: frozenset[str] = frozenset()
    aliases: tuple[str, ...] = ()

    @cached_property
    def is_async(self) -> bool:
        """Whether it runs as a coroutine: the outermost of its decorators decides.

        Whatever else comes back that can be awaited is awaited too, in a loop of its own.
        """
        if callables.is_async(self.function):
            return True
        if not callables.wraps_async(self.function):
            return False
        from fsa_cli.tasks.signature import signature_of

        try:
            injected = signature_of(self.function).injected.values()
        except TaskDefinitionError:
            return False  # said where it is run
        # Its loop must be there before it is called: an AsyncSession works on one only.
        return "async_session" in injected

    @property
    def names(self) -> tuple[str, ...]:
        """Its name, and those that it had before."""
        return (self.name, *self.aliases)

    @property
    def oldest_name(self) -> str:
        """The name that its lock and its unique keys go by: a version before shares them."""
        return self.names[-1]

    @property
    def description(self) -> str:
        """The whole docstring, without its indentation; empty without one."""
        return callables.docstring(self.function)

    @property
    def summary(self) -> str:
        """The docstring's first paragraph as one line; empty without a docstring."""
        return " ".join(self.description.split("\n\n")[0].split())

    @property
    def file(self) -> str:
        code: Any = getattr(callables.written_function(self.function), "__code__", None)
        return code.co_filename if code else "<unknown>"

    @property
    def line(self) -> int:
        code: Any = getattr(callables.written_function(self.function), "__code__", None)
        return code.co_firstlineno if code else 0

    @property
    def place(self) -> str:
        """Where it was written: `file:line`, relative to the current directory if inside it."""
        path = Path(self.file)
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        return f"{path}:{self.line}"


def check_definition(task: TaskDefinition) -> None:
    function = task.function

    def wrong(reason: str, hint: str | None = None) -> TaskDefinitionError:
        return TaskDefinitionError(f"task {task.name!r} ({task.place}) {reason}", hint=hint)

    _check_callable(function)
    if not task.name and not hasattr(function, "__name__"):
        raise wrong("has no name of its own", 'give it one: @task(name="...")')
    if task.name in _RESERVED:
        raise wrong("has a name that `fsa runs` uses", 'give it another: @task(name="...")')
    if not _NAME.fullmatch(task.name):
        raise wrong(
            "cannot have this name",
            "letters, digits, _, - and ., beginning with a letter, at most 190",
        )
    for alias in task.aliases:
        if not (isinstance(alias, str) and _NAME.fullmatch(alias)):
            raise wrong(f"has the alias {alias!r}", "a name that it had before")
    if len(set(task.names)) < len(task.names):
        raise wrong("has a name twice", "aliases are the names that it had before")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise wrong("is a generator function: calling it runs nothing", "return instead of yield")
    limit_s = task.timeout_s
    if limit_s is not None and not (_is_number(limit_s) and 0 < limit_s <= LONGEST_S):
        raise wrong(
            f"has timeout_s={limit_s!r}",
            "seconds, more than 0, up to 100 years; None for no limit",
        )
    for option, choices in _CHOICES.items():
        if getattr(task, option) not in get_args(choices):
            known = ", ".join(f'"{choice}"' for choice in get_args(choices))
            raise wrong(f"has {option}={getattr(task, option)!r}", f"it is one of {known}")
    if task.isolation not in (None, "process"):
        raise wrong(f"has isolation={task.isolation!r}", '"process", or None for a thread')
    if not isinstance(task.retries, int) or task.retries < 0:
        raise wrong(f"has retries={task.retries!r}", "a whole number, 0 or more")
    if not (_is_number(task.backoff_jitter) and 0 <= task.backoff_jitter <= 1):
        raise wrong(f"has backoff_jitter={task.backoff_jitter!r}", "a part from 0 to 1")
    for kind in task.retry_on or ():
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise wrong(f"has retry_on={kind!r}", "a class of exceptions, or several")
    for option in ("backoff_s", "max_backoff_s", "catch_up_window_s", "jitter_s", "start_within_s"):
        value = getattr(task, option)
        if value is not None and not (_is_number(value) and 0 <= value < float("inf")):
            raise wrong(f"has {option}={value!r}", "seconds, 0 or more")
    priority = task.priority
    if type(priority) is not int or not -100 <= priority <= 100:
        raise wrong(f"has priority={priority!r}", "a whole number from -100 to 100")
    for option, most in (("executor", 50), ("queue", 50), ("group", 189)):
        value = getattr(task, option)
        if value is not None and not (isinstance(value, str) and 0 < len(value) <= most):
            raise wrong(f"has {option}={value!r}", f"a name of at most {most} characters")
    if task.keep is not None and kept_ms(task.keep) is None:
        raise wrong(f"has keep={task.keep!r}", '"7d", "12h" or a timedelta, a minute or more')
    if task.ping is not None and not task.ping.startswith(("http://", "https://")):
        raise wrong(f"has ping={task.ping!r}", "a URL: https://hc-ping.com/...")
    for hook in task.on_failure:
        if not callable(hook):
            raise wrong(f"has on_failure={hook!r}", "a function of one argument, the RunResult")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _check_callable(function: Any) -> None:
    """Check that it can be called as it stands, and can be known again."""
    name = getattr(function, "__qualname__", None) or repr(function)
    calls = f"write a function that calls it: @task(name=...) def run(): {name}()"
    if isinstance(function, classmethod):
        reason, hint = f"the classmethod {name}, whose class does not exist yet", calls
    elif not callable(function):
        reason = f"{function!r}, which is not a function"
        hint = "write @task, or @task(name=...) with named options"
    elif inspect.isclass(function):
        reason, hint = f"the class {name}", f"a call of it runs nothing: task({name}(), name=...)"
    elif inspect.ismethod(function):
        reason, hint = f"the bound method {name}", calls
    elif inspect.isbuiltin(function):
        reason, hint = f"{name}, which is built in", calls
    elif type(function).__hash__ is None:
        reason, hint = f"{name}, which cannot be hashed", "@dataclass(eq=False), or a function"
    elif (taken := _object_taken(function)) is not None:
        reason, hint = f"{name}, which takes {taken!r}, and is called without an object", calls
    else:
        return
    raise TaskDefinitionError(f"@task was given {reason}", hint=hint)


def _object_taken(function: Any) -> str | None:
    """The `self` or `cls` of a function in a class's body."""
    written = callables.written_function(function)
    around, _, _ = getattr(written, "__qualname__", "").rpartition(".")
    if not around or around.endswith("<locals>"):
        return None
    try:
        first = next(iter(inspect.signature(function).parameters), None)
    except ValueError:
        return None
    return first if first in ("self", "cls") else None
