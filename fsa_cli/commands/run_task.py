"""`fsa run-task`."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fsa_cli.cli.completion import task_names
from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import option, priority_option, run_after_option, unique_option
from fsa_cli.cli.progress_bar import ProgressBars
from fsa_cli.cli.task_call import ENQUEUES, Call, read
from fsa_cli.cli.task_process import TerminationSignal, leave, prints_to_stderr, terminable
from fsa_cli.database.connections import autocommits
from fsa_cli.exceptions import (
    DatabaseUnreachable,
    FsaError,
    Interrupted,
    Terminated,
    UsageError,
)
from fsa_cli.runner import report
from fsa_cli.runner.execute import execute
from fsa_cli.runner.lifespan import RunAsync
from fsa_cli.runner.retry import RetryPolicy
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.tasks.lookup import database_for
from fsa_cli.tasks.registry import registry
from fsa_cli.tasks.task_context import Progress
from fsa_cli.terminal.formatting import format_elapsed

if TYPE_CHECKING:
    from fsa_cli.processes.recorded_run import RecordedRun
    from fsa_cli.runner.dry_run import DryRun
    from fsa_cli.runner.own_commits import OwnCommits

app = typer.Typer()


#: run-task's own options, which may also stand after NAME, and whether each takes a value.
_OWN = {
    "--dry-run": False,
    "--timeout": True,
    "--retries": True,
    "--backoff": True,
    "--args-json": True,
    "--lock": False,
    "--no-record": False,
    "--enqueue": False,
    **ENQUEUES,
    "--help": False,
    "-h": False,
}


@app.command(context_settings={"allow_interspersed_args": False})
def run_task(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A task or MODULE:FUNCTION; then its own: fsa run-task NAME -h.",
            show_default=False,
            autocompletion=task_names,
        ),
    ],
    argv: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGS", help="The task's own arguments.", hidden=True),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Run it, say what it changes, and roll all of it back."),
    ] = False,
    args_json: Annotated[
        str | None,
        option(
            "run-task",
            "--args-json",
            help="Its arguments as a JSON object, @FILE or -.",
            metavar="JSON",
        ),
    ] = None,
    timeout: Annotated[
        str | None,
        option(
            "run-task",
            "--timeout",
            help="Seconds an attempt may take; by default the task's own.",
            metavar="S",
        ),
    ] = None,
    retries: Annotated[
        str | None,
        option(
            "run-task",
            "--retries",
            help="How often to try again if it fails; by default never.",
            metavar="N",
        ),
    ] = None,
    backoff: Annotated[
        str | None,
        option(
            "run-task",
            "--backoff",
            help="Seconds before a retry, then doubled; else the task's.",
            metavar="S",
        ),
    ] = None,
    lock: Annotated[
        bool,
        option("run-task", "--lock", help="Not while a run that holds its lock goes on: exit 75."),
    ] = False,
    no_record: Annotated[
        bool, option("run-task", "--no-record", help="Leave the run out of `fsa runs`.")
    ] = False,
    enqueue: Annotated[
        bool,
        option(
            "run-task",
            "--enqueue",
            help="Have a scheduler or worker run it soon; prints its id.",
        ),
    ] = False,
    run_after: Annotated[str | None, run_after_option("run-task")] = None,
    priority: Annotated[str | None, priority_option("run-task")] = None,
    unique: Annotated[str | None, unique_option("run-task")] = None,
) -> None:
    """Run one task now, here, in a session of its own, and commit.

    \b
      fsa run-task count_users --no-active --since 2026-01-01 --dry-run
      fsa run-task app.jobs:rebuild_index --timeout 60 --retries 3 --json
    """
    fsa = Fsa.of(context)
    given = {
        "--dry-run": "" if dry_run else None,
        "--args-json": args_json,
        "--timeout": timeout,
        "--retries": retries,
        "--backoff": backoff,
        "--lock": "" if lock else None,
        "--no-record": "" if no_record else None,
        "--enqueue": "" if enqueue else None,
        "--run-after": run_after,
        "--priority": priority,
        "--unique": unique,
    }
    call = read(fsa, name, argv or [], given, _OWN)
    if call.help:
        from fsa_cli.cli.task_help import task_help

        for line in task_help(call.task, fsa.settings.timezone):
            fsa.output.line(line)
        return
    if "--enqueue" in call.options:
        _enqueue(fsa, call)
        return
    if later := sorted(call.options.keys() & ENQUEUES.keys()):
        raise UsageError(f"{later[0]} is about a run elsewhere", hint="with --enqueue")
    bars = ProgressBars(fsa.output)
    from fsa_cli.runner import lifespan
    from fsa_cli.runner.own_commits import OwnCommits

    app, enabled = call.loaded.app, fsa.settings.lifespan
    fsa.tell_of_left = fsa.output.warn
    with lifespan.around(app, enabled, fsa.output.warn) as run_async:
        own_commits = OwnCommits()
        # In a dry run's sandbox a commit keeps nothing.
        with contextlib.nullcontext() if "--dry-run" in call.options else own_commits:
            result, changes, unrecorded = _run(fsa, call, bars, run_async, own_commits)
        if changes is not None and enabled:
            changes.kept.append("what the app's lifespan did")
        if fsa.output.json:
            fsa.output.document(report.document(result, bars.seen, changes))
        if not result.succeeded:
            if unrecorded is not None:
                fsa.output.warn("; ".join([unrecorded.message, *unrecorded.details]))
            raise report.failure_of(result, call.loaded, own_commits.number)
        fsa.tell_of_left = None  # what a task that has succeeded began may come to its end
        if not fsa.output.json:
            _tell(fsa, result, changes)
        if unrecorded is not None:
            raise unrecorded


def _enqueue(fsa: Fsa, call: Call) -> None:
    """Have any free process run it."""
    from fsa_cli.cli.task_call import enqueue

    here = sorted(call.options.keys() - {"--enqueue", "--args-json", *ENQUEUES})
    if here:
        raise UsageError(
            f"--enqueue runs it elsewhere, and {here[0]} is about a run here",
            hint="the task's own options say how it runs there: @task(timeout_s=..., retries=...)",
        )
    enqueue(fsa, call)


def _run(
    fsa: Fsa, call: Call, bars: ProgressBars, run_async: RunAsync, own_commits: OwnCommits
) -> tuple[RunResult, DryRun | None, DatabaseUnreachable | None]:
    task = call.task
    timeout_s = call.number("--timeout")
    retries = int(call.number("--retries", whole=True) or 0)
    backoff_s = call.number("--backoff")
    values = call.values()
    database = database_for(task, call.loaded, fsa.settings)
    fsa.output.detail(f"running {task.name} ({task.place}) in {database!r}")
    record: RecordedRun | None = None
    changes: DryRun | None = None
    result: RunResult | None = None

    def attempt(run: Run) -> RunResult:
        nonlocal changes
        if not run.dry_run:
            return execute(record.attempt(run) if record else run)
        from fsa_cli.runner.dry_run import execute_dry_run

        result, changes = execute_dry_run(run, call.loaded.databases)
        return result

    def failed(result: RunResult, pause_s: float) -> None:
        fsa.output.say(
            f"attempt {result.attempt} of {retries + 1} {report.brief(result)}; "
            f"the next one in {pause_s:g} s"
        )
        if record is not None:
            record.failed(result)

    def tell(progress: Progress) -> None:
        bars(progress)
        if record is not None:
            record.progress(progress)

    run = Run(
        task=task,
        arguments=values,
        app=call.loaded.app,
        database=database,
        timeout_s=timeout_s,
        dry_run="--dry-run" in call.options,
        report=tell,
        run_async=run_async,
    )
    redirected = prints_to_stderr() if fsa.output.json else contextlib.nullcontext()
    policy = RetryPolicy(retries, task.backoff_s if backoff_s is None else backoff_s)

    def again_by(number: signal.Signals) -> FsaError:
        kind = Interrupted if number == signal.SIGINT else Terminated
        ended = "when it had ended" if result is not None else "once more"
        return _unrecorded(kind, f"{task.name} was stopped by {number.name} {ended}", record)

    def again(number: signal.Signals) -> NoReturn:
        leave(fsa, again_by(number))

    try:
        with terminable(again), redirected, bars:
            try:
                record = _begin(fsa, call, run)
                if record is not None:
                    run = replace(run, run_id=record.run_id, stop=record.stop)
                result = policy.execute(run, attempt, failed)
            except TerminationSignal as exc:
                raise _stopped(Terminated, run, exc.signal.name, record, own_commits) from None
            except KeyboardInterrupt:
                raise _stopped(Interrupted, run, "Ctrl-C", record, own_commits) from None
            if record is not None:
                record.ended(result)
    except TerminationSignal as exc:
        raise again_by(exc.signal) from None
    except KeyboardInterrupt:
        raise again_by(signal.SIGINT) from None
    return result, changes, record.unrecorded if record is not None else None


def _begin(fsa: Fsa, call: Call, run: Run) -> RecordedRun | None:
    """The run's record; None if it has none."""
    locks = "--lock" in call.options
    for spelling in ("--no-record", "--dry-run"):
        if spelling in call.options:
            if locks:
                raise UsageError(f"--lock records the run, and {spelling} does not")
            return None
    from fsa_cli.processes import recording

    name = call.task.name if registry.get(call.task.name) is call.task else call.name
    return recording.begin(call.loaded, fsa.settings, run, name, locks=locks, warn=fsa.output.warn)


def _stopped(
    kind: type[FsaError], run: Run, by: str, record: RecordedRun | None, own_commits: OwnCommits
) -> FsaError:
    """Record that the run was stopped, and say so."""
    kept = not run.dry_run and run.database is not None and autocommits(run.database)
    fate = "; what it wrote before stays (AUTOCOMMIT)" if kept else " and rolled back"
    if own_commits.number:
        fate = " after it had committed"
    how = kind.__name__.lower()
    if record is not None:
        record.broken(f"stopped by {by}")
        if record.committed:
            fate = " after it had committed"
        elif record.cancelled:
            how = "cancelled"
    return _unrecorded(kind, f"{run.task.name} was {how}{fate}", record)


def _unrecorded(kind: type[FsaError], message: str, record: RecordedRun | None) -> FsaError:
    """An error that says too what the ledger was not told."""
    left = record.unrecorded if record is not None else None
    if left is None:
        return kind(message)
    return kind(message, details=[left.message, *left.details], hint=left.hint)


def _tell(fsa: Fsa, result: RunResult, changes: DryRun | None) -> None:
    output = fsa.output
    ended = f"{result.task.name} succeeded in {format_elapsed(result.duration_ms)}"
    committed = result.task.commit or "not committed: the task says commit=False"
    try:
        if result.value is not None:
            output.line(report.format_result(result.value), exact=True)
    finally:  # it has ended so, whoever reads its value
        if changes is None:
            output.say(f"{ended}, {'committed' if committed is True else committed}")
    if changes is None:
        return
    if changes.tables:
        output.table(changes.tables, changes.columns)
    for heading, statements in (
        ("schema", changes.schema),
        ("rows not counted", changes.uncounted),
    ):
        if statements:
            output.table([{"statement": each} for each in statements], {"statement": heading})
    if changes.enqueued:
        output.table(changes.enqueued, {"task": "would enqueue", "runs": "runs"})
    nothing = "" if changes.changes_something else " it would change nothing:"
    output.say(f"{ended}; a dry run:{nothing} all of it was rolled back")
    output.say(f"not undone: {'; '.join(changes.kept)}")
