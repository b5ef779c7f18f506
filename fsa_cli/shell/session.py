"""The session for code that a person writes: at a prompt, in one line, in a file.

Everything runs in the scopes of the app's databases (`async with db():`), on a loop of its own.
Code that does not await runs without a running loop: `asyncio.run()` works as in a script.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import linecache
import sys
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, copy_context
from functools import partial
from traceback import walk_tb
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from fsa_cli.database import readonly
from fsa_cli.database.connections import check_savepoints
from fsa_cli.database.models import counted, mapped_classes, model_names
from fsa_cli.project.environments import Environment, ShellMode
from fsa_cli.project.loader import LoadedApp
from fsa_cli.runner.lifespan import Lifespan
from fsa_cli.terminal.output import Output
from fsa_cli.terminal.user_code import chain_of

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

P = ParamSpec("P")
T = TypeVar("T")

_MODES = {
    "sandbox": "sandbox: everything is rolled back at the end, commits included",
    "read-only": "read-only: the database refuses to write",
}


class Shell:
    """The names, the scopes and the loop that code runs with. A context manager.

    Args:
        loaded: The app.
        database: The name of the database of `db` and `session`.
        mode: `sandbox` rolls everything back at the end, commits included; in `read-only` the
            databases refuse to write.
        environment: Named at the prompt.
        output: For `sql()`.
        lifespan: Whether the app's lifespan runs, on the shell's loop, inside a sandbox.
    """

    def __init__(
        self,
        loaded: LoadedApp,
        database: str = "default",
        *,
        mode: ShellMode = "open",
        environment: Environment | None = None,
        output: Output | None = None,
        lifespan: bool = False,
    ) -> None:
        self.loaded = loaded
        self.db = loaded.database(database)
        self.mode: ShellMode = mode
        self.environment = environment or Environment()
        self.output = output or Output()
        self.names: dict[str, Any] = {}
        self.notes: list[str] = []
        self.banner = ""
        self._lifespan = lifespan
        self._runner = asyncio.Runner()
        self._context: Context = copy_context()
        self._scopes = contextlib.AsyncExitStack()

    def __enter__(self) -> Shell:
        if self.mode == "read-only":
            readonly.enforce()
        self._runner.run(self._open(), context=self._context)
        self._context.run(self._name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._runner.run(self._scopes.aclose(), context=self._context)
        finally:
            self._runner.close()

    def inside(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call *function* where the sessions are open."""
        return self._context.run(function, *args, **kwargs)

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* to its end on the shell's loop. Call it `inside`."""
        # A copy sees the same scopes; the context itself is entered already.
        return self._runner.run(coroutine, context=copy_context())

    def execute(self, code: CodeType) -> Any:
        """Run compiled code, awaiting it if it awaits, and return its value. Call it `inside`."""
        value = eval(code, self.names)
        return self.wait_for(value) if code.co_flags & inspect.CO_COROUTINE else value

    def script(self, source: str, file: str, arguments: list[str] | None = None) -> None:
        """Run a whole program, in which `await` may stand at the top level.

        Args:
            arguments: Its `sys.argv`, after its own name.
        """
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        code = compile(source, file, "exec", PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        sys.argv = [file, *(arguments or [])]
        self.inside(self.execute, code)

    def make_ready_to_await(self) -> None:
        """Make `db.async_session` usable from lines that do not await. Call it `inside`.

        An AsyncSession can only be created on a running loop; later uses find this one.
        Nothing connects; without an async driver it stays as it is.
        """
        from fastapi_sqlalchemy.exceptions import DBSessionError

        async def touch() -> None:
            with contextlib.suppress(DBSessionError):
                _ = self.db.async_session

        self.wait_for(touch())

    def recover(self, error: BaseException) -> bool:
        """Roll back transactions that *error* has broken. Call it `inside`.

        A mistake in Python leaves the transaction as it is, with what was added to the session.

        Returns:
            Whether changes were lost.
        """
        if not _breaks_transactions(error):
            return False
        lost = self.uncommitted
        self.wait_for(self._roll_back())
        return lost

    @property
    def label(self) -> str:
        """The label of the prompt: `production sandbox`; empty for an open shell."""
        mode = "" if self.mode == "open" else self.mode
        return " ".join(part for part in (self.environment.name, mode) if part)

    @property
    def uncommitted(self) -> bool:
        """Whether there are changes that leaving rolls back. Read it `inside`."""
        return any(database.uncommitted for database in self.loaded.databases.values())

    async def _open(self) -> None:
        databases = list(self.loaded.databases.values())
        if self.mode == "sandbox":
            check_savepoints(databases)
            for database in databases:
                await self._scopes.enter_async_context(database.sandbox())
        if self._lifespan:
            lifespan = Lifespan(self.loaded.app)
            await lifespan.start()
            self._scopes.push_async_callback(lifespan.stop)
        for database in databases:
            await self._scopes.enter_async_context(database())

    async def _roll_back(self) -> None:
        from fastapi_sqlalchemy.exceptions import DBSessionError

        for database in self.loaded.databases.values():
            with contextlib.suppress(DBSessionError):
                database.session.rollback()
            with contextlib.suppress(DBSessionError):
                await database.async_session.rollback()

    def _name(self) -> None:
        """Fill `names`. The models come first, so that none of them hides a name of ours."""
        from sqlalchemy import func, select, text

        from fsa_cli.shell.namespace import Client, Runner, Sql
        from fsa_cli.tasks.registry import registry

        models, self.notes = model_names(mapped_classes())
        self.names.update(models)
        self.names.update(
            __name__="__main__",
            __doc__=None,
            app=self.loaded.app,
            db=self.db,
            session=self._session(),
            select=select,
            func=func,
            text=text,
            tasks={task.name: task for task in registry},
            run=Runner(self.loaded),
            sql=Sql(self._sql, self.output),
            client=Client(self.loaded),
        )
        self.banner = self._banner(counted(models), len(registry))

    def _session(self) -> Any:
        """The `Session`; the `AsyncSession` where only that has a driver."""
        from fastapi_sqlalchemy.exceptions import ConfigurationError

        try:
            return self.db.session
        except ConfigurationError as missing:
            try:
                return self.wait_for(_async_session(self.db))
            except ConfigurationError:  # neither driver: the one that the URL names is asked for
                raise missing from None

    def _sql(self, statement: Any, values: dict[str, Any]) -> Any:
        session = self._session()
        # SQLAlchemy 2.0 flushes before a select(), but not before a text().
        for step in (session.flush, partial(session.execute, statement, values)):
            result = step()
            if inspect.iscoroutine(result):
                result = self.wait_for(result)
        return result

    def _banner(self, models: str, tasks: int) -> str:
        return "\n".join(f"{head:<8} {text}" for head, text in self._facts(models, tasks))

    def _facts(self, models: str, tasks: int) -> Iterator[tuple[str, str]]:
        from fsa_cli.database.identity import address

        yield "app", self.loaded.target
        yield "db", address(self.db.url)
        if self.environment.name:
            protected = ", protected" if self.environment.protected else ""
            by = f" (chosen by {self.environment.chosen_by})"
            yield "env", self.environment.name + protected + by
        if self.mode != "open":
            yield "mode", _MODES[self.mode]
        names = "app, db, session, select, func, text, sql, run, client"
        yield "names", f"{names}, tasks ({tasks}), {models}"
        for note in self.notes:
            yield "note", note


def await_hint(error: BaseException) -> str | None:
    """What to write in place of a line that has awaited what gives no awaitable; None: no such."""
    if type(error) is not TypeError or "await" not in str(error):
        return None
    names = [frame.f_code.co_names for frame, _ in walk_tb(error.__traceback__)]
    name = next((each for each in ("session", "run", "sql") if names and each in names[-1]), None)
    if name is None:
        return None
    return f"{name} is not awaited; db.async_session is: await db.async_session.scalar(...)"


async def _async_session(db: Database) -> Any:
    return db.async_session


def _breaks_transactions(error: BaseException) -> bool:
    """Whether *error* may have left a transaction in which nothing more can be done."""
    from sqlalchemy.exc import SQLAlchemyError

    # Ctrl-C cancels the statement that was waited for, and so fails its transaction.
    kinds = (SQLAlchemyError, KeyboardInterrupt)
    return any(isinstance(each, kinds) for each in chain_of(error))
