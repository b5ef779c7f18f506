"""The names of `fsa shell` beside the app's own: `run`, `sql` and `client`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from fsa_cli.exceptions import ConfigurationError, FsaError, TaskNotFound
from fsa_cli.terminal.output import Output

if TYPE_CHECKING:
    from fsa_cli.project.loader import LoadedApp
    from fsa_cli.runner.run import Run, RunResult
    from fsa_cli.tasks.definition import TaskDefinition

_MOST_ROWS = 1000


class Runner:
    """`run`: runs a task as `fsa run-task` does, in a scope and a transaction of its own.

        run("count_users", active=False)

    Returns its result, and raises its exception.
    """

    def __init__(self, loaded: LoadedApp) -> None:
        self._loaded = loaded

    def __repr__(self) -> str:
        return 'run("task", ...): runs a task and returns its result'

    def __call__(
        self, task: str | TaskDefinition | Callable[..., Any], *args: Any, **arguments: Any
    ) -> Any:
        from fsa_cli.runner.run import Run
        from fsa_cli.tasks.signature import signature_of

        found = _task(task)
        injected = signature_of(found.function).injected
        free = [
            name for name in inspect.signature(found.function).parameters if name not in injected
        ]
        run = Run(
            task=found,
            arguments={**dict(zip(free, args, strict=False)), **arguments},
            app=self._loaded.app,
            database=self._loaded.database(found.database or "default"),
        )
        result = _execute(run)
        if result.error is not None:
            raise result.error
        return result.value


class Sql:
    """`sql`: prints the rows of a statement as a table.

        sql("select name, born from users where id = :id", id=1)

    It is part of the shell's transaction: it sees what is not committed, and commits nothing.
    """

    def __init__(self, execute: Callable[[Any, dict[str, Any]], Any], output: Output):
        self._execute = execute
        self._output = output

    def __repr__(self) -> str:
        return 'sql("select ...", limit=1000, name=value): prints the answer as a table'

    def __call__(self, statement: str, /, *, limit: int | None = _MOST_ROWS, **values: Any) -> None:
        """Print the first *limit* rows of *statement*; None prints all.

        Args:
            values: Of its `:name` parameters. Without any, a colon is a colon.
        """
        from sqlalchemy import text

        from fsa_cli.database import query

        result: Any = self._execute(
            text(statement if values else statement.replace(":", "\\:")), values
        )
        if not result.returns_rows:
            count = result.rowcount
            changed = f"{count} row{'s' if count != 1 else ''}" if count >= 0 else "done"
            self._output.say(f"{changed}; session.commit() commits it")
            return
        names = query.unique(result.keys())
        rows = [
            dict(zip(names, map(query.value, row), strict=True))
            for row in (result if limit is None else itertools.islice(result, limit))
        ]
        more = limit is not None and result.fetchone() is not None
        result.close()
        self._output.table(rows, {name: name for name in names}, wraps=names)
        count = len(rows)
        if more:
            self._output.say(f"the first {count} rows; limit=None prints all")
        else:
            self._output.say(f"{count} row{'s' if count != 1 else ''}")


class Client:
    """`client`: Starlette's TestClient on the app, in this process; created when it is first used.

        client.get("/users").json()

    Its requests have sessions of their own. Lifespan handlers run inside `with client:` only.
    """

    def __init__(self, loaded: LoadedApp) -> None:
        self._loaded = loaded
        self._test_client: Any = None

    def __repr__(self) -> str:
        return f'client: requests to {self._loaded.target}, as client.get("/")'

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # a prompt that looks for `_repr_html_` and the like
            raise AttributeError(name)
        return getattr(self._client(), name)

    def __dir__(self) -> list[str]:
        return [name for name in dir(self._client()) if not name.startswith("_")]

    def __enter__(self) -> Any:
        return self._client().__enter__()

    def __exit__(self, *exc_info: Any) -> Any:
        return self._client().__exit__(*exc_info)

    def _client(self) -> Any:
        if self._test_client is None:
            try:
                from starlette.testclient import TestClient
            except (ImportError, RuntimeError) as exc:
                raise _noted(
                    ConfigurationError(
                        "client needs an HTTP client, and none is installed",
                        hint="pip install httpx2",
                    )
                ) from exc
            self._test_client = TestClient(self._loaded.app)
        return self._test_client


def _task(task: str | TaskDefinition | Callable[..., Any]) -> TaskDefinition:
    from fsa_cli.tasks.definition import TaskDefinition
    from fsa_cli.tasks.registry import registry

    found = task if isinstance(task, TaskDefinition) else getattr(task, "task", None)
    if isinstance(task, str):
        found = registry.get(task)
    if isinstance(found, TaskDefinition):
        return found
    known = ", ".join(each.name for each in registry) or "none"
    raise _noted(TaskNotFound(f"there is no task {task!r}", hint=f"there are {known}"))


def _noted(error: FsaError) -> FsaError:
    """*error* with its hint also where a prompt shows its traceback."""
    error.add_note(f"hint: {error.hint}")
    return error


def _execute(run: Run) -> RunResult:
    """Execute a run here; one that may await in a thread if a loop runs in this one."""
    from fsa_cli.runner.execute import execute
    from fsa_cli.tasks.callables import wraps_async

    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        if wraps_async(run.task.function):
            outcome: Future[RunResult] = Future()
            context = copy_context()

            def work() -> None:
                try:
                    outcome.set_result(context.run(execute, run))
                except BaseException as exc:
                    outcome.set_exception(exc)

            threading.Thread(target=work, name=f"run {run.task.name}").start()
            return outcome.result()
    return execute(run)
