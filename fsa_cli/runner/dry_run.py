"""`--dry-run`: execute a task in a sandbox of every database, and roll it back."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import greenlet_spawn

from fsa_cli.database.connections import check_savepoints
from fsa_cli.exceptions import Refused
from fsa_cli.runner.execute import execute, execute_async, failed_result
from fsa_cli.runner.row_changes import RowChanges, statement_changes
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.runner.signal_handlers import handling
from fsa_cli.tasks.enqueue_capture import capture
from fsa_cli.terminal.masking import mask_head

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

__all__ = ["DryRun", "execute_dry_run"]

_COLUMNS = {
    "inserted": "inserted",
    "updated": "updated",
    "deleted": "deleted",
    "inserted_or_updated": "inserted or updated",
}


@dataclass
class DryRun:
    """The changes of a run, all of them rolled back.

    Attributes:
        tables: For each changed table how many rows were inserted, updated, deleted.
        schema: The statements that changed the schema.
        uncounted: Statements whose changed rows the database does not count.
        enqueued: The tasks whose runs it asked for, and how many of each; none was enqueued.
        kept: Side effects that no rollback undoes.
    """

    tables: list[dict[str, Any]] = field(default_factory=list)
    schema: list[str] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)
    enqueued: list[dict[str, Any]] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    @property
    def columns(self) -> dict[str, str]:
        """The headings of the table that shows `tables`."""
        several = len({row["database"] for row in self.tables}) > 1
        columns = {"database": "database"} if several else {}
        columns["table"] = "table"
        for key, heading in _COLUMNS.items():
            if key != "inserted_or_updated" or any(row[key] for row in self.tables):
                columns[key] = heading
        return columns

    @property
    def changes_something(self) -> bool:
        return bool(self.tables or self.schema or self.uncounted or self.enqueued)

    def add(self, changes: RowChanges) -> None:
        counted = changes.rows()
        for table, counts in sorted(counted.items()):
            numbers = {key: counts[kind] for key, kind in _COLUMNS.items()}  # type: ignore[index]
            self.tables.append({"database": changes.database, "table": table, **numbers})
        self.schema += changes.said("schema")
        self.uncounted += changes.said("uncounted")
        counters = {
            "postgresql": "the numbers that were taken from sequences",
            "mysql": "the numbers that were taken from AUTO_INCREMENT",
            "mariadb": "the numbers that were taken from AUTO_INCREMENT",
        }
        kept = counters.get(changes.dialect)
        if kept and kept not in self.kept and any(c["inserted"] for c in counted.values()):
            self.kept.append(kept)


def execute_dry_run(run: Run, databases: Mapping[str, Database]) -> tuple[RunResult, DryRun]:
    """Execute *run* in a sandbox of each of *databases*, and roll all of it back.

    Runs that it would enqueue are counted. A write over a connection outside the sandboxes
    (an engine of the task's own) raises `Refused`, and so does a database without savepoints. On
    PostgreSQL deferred constraints are checked where a commit would do it.
    """
    check_savepoints(databases.values())
    watched: list[RowChanges] = []

    def watch(name: str, connection: Connection) -> None:
        watched.append(RowChanges(connection, name))

    sandboxes = [db.sandbox(partial(watch, name)) for name, db in databases.items()]
    changes = DryRun()

    async def inside() -> RunResult:
        async with contextlib.AsyncExitStack() as stack:
            for sandbox in sandboxes:
                await stack.enter_async_context(sandbox)
            result = await execute_async(run)
            return await greenlet_spawn(_finish, result, watched, changes)

    def executed() -> RunResult:
        if run.task.is_async:
            with _at_once():
                try:
                    result: RunResult = run.run_async(inside())
                    return result
                except SystemExit as exc:  # of a child coroutine: it ends the loop
                    return failed_result(run, exc)
        with contextlib.ExitStack() as stack:
            for sandbox in sandboxes:
                stack.enter_context(sandbox)
            return _finish(execute(run), watched, changes)

    with _nothing_outside(watched), capture() as held:
        result = executed()
    changes.enqueued += [{"task": name, "runs": number} for name, number in sorted(held.items())]
    return result, changes


def _finish(result: RunResult, watched: list[RowChanges], dry_run: DryRun) -> RunResult:
    if not result.succeeded:
        return result
    for changes in watched:
        dry_run.add(changes)
        if changes.dialect == "postgresql":
            try:
                changes.connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
            except DBAPIError as exc:
                return replace(result, status="failed", value=None, error=exc, at_commit=True)
    dry_run.kept.append("what the task did outside the app's databases")
    return result


@contextlib.contextmanager
def _at_once() -> Iterator[None]:
    """Ctrl-C interrupts a coroutine that blocks its loop, as a sandbox's sync connection does.

    With a handler that is not Python's own, asyncio.run installs none that only cancels.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with handling(interrupt, signal.SIGINT):
        yield


@contextlib.contextmanager
def _nothing_outside(watched: list[RowChanges]) -> Iterator[None]:
    """Refuse to write over any connection that is in no sandbox."""

    def refuse(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if any(changes.connection is connection for changes in watched):
            return
        if statement_changes(statement, connection.dialect.name):
            raise Refused(
                "a dry run covers db's own sessions, and this would have been written for good: "
                f"{mask_head(' '.join(statement.split()), 60)}",
                hint="write through db.session or db.engine, not over another engine",
            )

    event.listen(Engine, "before_cursor_execute", refuse)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", refuse)
