"""`fsa run-task`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsa_cli import arguments, report
from fsa_cli.bars import Bars
from fsa_cli.commands import SPELLINGS, Fsa, split_flags
from fsa_cli.completion import task_names
from fsa_cli.exceptions import Interrupted, Terminated, UsageError
from fsa_cli.finding import database_for, find
from fsa_cli.loader import LoadedApp
from fsa_cli.retrying import Retries
from fsa_cli.runner import Run, RunResult, execute
from fsa_cli.settings import Flags
from fsa_cli.signatures import signature_of
from fsa_cli.tasks import Task

if TYPE_CHECKING:
    from fsa_cli.rehearsal import Rehearsal

app = typer.Typer()


def _option(spelling: str, **more: Any) -> Any:
    variable = "FSA_RUN_TASK_" + spelling.lstrip("-").replace("-", "_").upper()
    return typer.Option(spelling, envvar=variable, show_envvar=True, **more)


_LOADING = {"app", "env_file", "env"}
#: run-task's own options, which may also stand after NAME, and whether each takes a value.
_OWN = {
    "--dry-run": False,
    "--timeout": True,
    "--retries": True,
    "--backoff": True,
    "--args-json": True,
    "--help": False,
    "-h": False,
}
_FLAGS = {word: field in {*_LOADING, "database"} for word, field in SPELLINGS.items()} | _OWN


@app.command(context_settings={"allow_interspersed_args": False})
def run_task(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A task, or MODULE:FUNCTION.",
            show_default=False,
            autocompletion=task_names,
        ),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGS", help="The task's own: fsa run-task NAME --help."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Run it, say what it changes, and roll all of it back."),
    ] = False,
    args_json: Annotated[
        str | None,
        _option("--args-json", help="Its arguments as a JSON object, @FILE or -.", metavar="JSON"),
    ] = None,
    timeout: Annotated[
        str | None,
        _option("--timeout", help="Seconds an attempt may take; else the task's own.", metavar="S"),
    ] = None,
    retries: Annotated[
        str | None,
        _option("--retries", help="How often to try again if it fails; else never.", metavar="N"),
    ] = None,
    backoff: Annotated[
        str | None,
        _option("--backoff", help="Seconds before a retry, doubled each time; 1.", metavar="S"),
    ] = None,
) -> None:
    """Run one task now, here, in a session of its own, and commit.

    \b
      fsa run-task count_users
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
    }
    call = _read(fsa, name, words or [], {k: v for k, v in given.items() if v is not None})
    if call.help:
        from fsa_cli import manual

        for line in manual.page(call.task, fsa.settings.timezone):
            fsa.output.line(line)
        return
    bars = Bars(fsa.output)
    result, rehearsal = _run(fsa, call, bars)
    if fsa.output.json:
        fsa.output.document(report.document(result, bars.seen, rehearsal))
    if not result.succeeded:
        raise report.failure(result, call.loaded)
    if not fsa.output.json:
        _tell(fsa, result, rehearsal)


@dataclass(frozen=True)
class _Call:
    """What the words after NAME mean."""

    loaded: LoadedApp
    task: Task
    words: list[str]
    options: dict[str, str]

    @property
    def help(self) -> bool:
        return "--help" in self.options or "-h" in self.options

    def number(self, option: str, *, least: float = 0, whole: bool = False) -> float | None:
        """The value of *option*; None if it was not given."""
        text = self.options.get(option)
        if text is None:
            return None
        try:
            number = int(text) if whole else float(text)
        except ValueError:
            number = -1
        if not least <= number < float("inf") or (option == "--timeout" and number == 0):
            kind = "a whole number" if whole else "seconds"
            more = "more than 0" if option == "--timeout" else "0 or more"
            raise UsageError(f'{option} "{text}": expected {kind}, {more}')
        return number


def _read(fsa: Fsa, name: str, words: Sequence[str], given: Mapping[str, str]) -> _Call:
    # Which words are the task's is known only when the app is loaded, and these say which app.
    early, _ = split_flags(words, but={field.name for field in fields(Flags)} - _LOADING)
    _apply(fsa, early)
    loaded = fsa.load()
    task = find(name)
    signature = signature_of(task.function)
    _refuse_ambiguous(name, early, signature.options())
    ours, theirs = arguments.split(signature, words, _FLAGS)
    late, rest = split_flags(ours)
    _apply(fsa, late)
    options = dict(given)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        if _OWN[word] and not equals:
            if not rest:
                raise UsageError(f"{word} needs a value")
            value = rest.pop(0)
        options[word] = value
    return _Call(loaded, task, theirs, options)


def _apply(fsa: Fsa, flags: Flags) -> None:
    given = {f.name: getattr(flags, f.name) for f in fields(flags)}
    changed = {name: value for name, value in given.items() if value is not None}
    if any(getattr(fsa.flags, name) != value for name, value in changed.items()):
        fsa.set(**changed)


def _refuse_ambiguous(name: str, early: Flags, options: Collection[str]) -> None:
    for word, field in SPELLINGS.items():
        if getattr(early, field) is not None and word in options:
            raise UsageError(
                f"{word} after {name!r} may be fsa's, and the task has a parameter of that name",
                hint=f"fsa's goes before the name, the task's after --: {name} -- {word} ...",
            )


def _run(fsa: Fsa, call: _Call, bars: Bars) -> tuple[RunResult, Rehearsal | None]:
    task = call.task
    timeout_s = call.number("--timeout")
    retries = int(call.number("--retries", whole=True) or 0)
    backoff_s = call.number("--backoff")
    values = arguments.parse(
        signature_of(task.function), call.words, args_json=call.options.get("--args-json")
    )
    database = database_for(task, call.loaded, fsa.settings)
    fsa.output.detail(f"running {task.name} ({task.place}) in {database!r}")
    rehearsal: Rehearsal | None = None

    def make(run: Run) -> RunResult:
        nonlocal rehearsal
        if not run.dry_run:
            return execute(run)
        from fsa_cli.rehearsal import rehearse

        result, rehearsal = rehearse(run, call.loaded.databases)
        return result

    def failed(result: RunResult, pause_s: float) -> None:
        fsa.output.say(
            f"attempt {result.attempt} of {retries + 1} {report.brief(result)}; "
            f"the next one in {pause_s:g} s"
        )

    order = Run(
        task=task,
        arguments=values,
        app=call.loaded.app,
        database=database,
        timeout_s=timeout_s,
        dry_run="--dry-run" in call.options,
        report=bars,
    )
    redirected = _prints_to_stderr() if fsa.output.json else contextlib.nullcontext()
    try:
        with _terminable(), redirected, bars:
            policy = Retries(retries, 1.0 if backoff_s is None else backoff_s)
            return policy.make(order, make, failed), rehearsal
    except _Terminate:
        raise Terminated(f"{task.name} was terminated and rolled back") from None
    except KeyboardInterrupt:
        raise Interrupted(f"{task.name} was interrupted and rolled back") from None


def _tell(fsa: Fsa, result: RunResult, rehearsal: Rehearsal | None) -> None:
    output = fsa.output
    if result.value is not None:
        output.line(report.shown(result.value))
    ended = f"{result.task.name} succeeded in {report.took(result.duration_ms)}"
    if rehearsal is None:
        committed = result.task.commit or "not committed: the task says commit=False"
        output.say(f"{ended}, {'committed' if committed is True else committed}")
        return
    if rehearsal.tables:
        output.table(rehearsal.tables, rehearsal.columns)
    for heading, statements in (
        ("schema", rehearsal.schema),
        ("rows not counted", rehearsal.uncounted),
    ):
        if statements:
            output.table([{"statement": each} for each in statements], {"statement": heading})
    nothing = "" if rehearsal.changes_something else " it would change nothing:"
    output.say(f"{ended}; a dry run:{nothing} all of it was rolled back")
    output.say(f"not undone: {'; '.join(rehearsal.kept)}")


class _Terminate(KeyboardInterrupt):
    """SIGTERM came. Like Ctrl-C it reaches the task wherever it is, and psycopg knows it."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the task as Ctrl-C does; also as PID 1, where it would be ignored."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminate

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _prints_to_stderr() -> Iterator[None]:
    """What the task prints, and what its child processes print, goes to stderr."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
