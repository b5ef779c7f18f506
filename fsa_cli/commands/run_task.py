"""`fsa run-task`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from types import FrameType
from typing import Annotated

import typer

from fsa_cli import arguments, report
from fsa_cli.bars import Bars
from fsa_cli.commands import SPELLINGS, Fsa, split_flags
from fsa_cli.exceptions import Interrupted, Terminated, UsageError
from fsa_cli.finding import database_for, find
from fsa_cli.loader import LoadedApp
from fsa_cli.runner import Run, RunResult, execute
from fsa_cli.settings import Flags
from fsa_cli.signatures import signature_of
from fsa_cli.tasks import Task

app = typer.Typer()

_LOADING = {"app", "env_file", "env"}
_FLAGS = {
    **{word: field in {*_LOADING, "database"} for word, field in SPELLINGS.items()},
    "--timeout": True,
    "--help": False,
    "-h": False,
}


@app.command(context_settings={"allow_interspersed_args": False})
def run_task(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A task, or MODULE:FUNCTION.", show_default=False)
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ARGS]...", help="The task's own: fsa run-task NAME --help."),
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            help="Seconds that it may take, instead of the task's own limit.",
            envvar="FSA_RUN_TASK_TIMEOUT",
            show_envvar=True,
            metavar="S",
        ),
    ] = None,
) -> None:
    """Run one task now, here, in a session of its own, and commit.

    \b
      fsa run-task count_users
      fsa run-task count_users --no-active --since 2026-01-01
      fsa run-task app.jobs:rebuild_index --timeout 60 --json
    """
    fsa = Fsa.of(context)
    call = _read(fsa, name, words or [], timeout_s)
    if call.help:
        from fsa_cli import manual

        for line in manual.page(call.task, fsa.settings.timezone):
            fsa.output.line(line)
        return
    result = _run(fsa, call)
    if fsa.output.json:
        fsa.output.document(report.document(result))
    if not result.succeeded:
        raise report.failure(result, call.loaded)
    if not fsa.output.json:
        _tell(fsa, result)


@dataclass(frozen=True)
class _Call:
    """What the words after NAME mean."""

    loaded: LoadedApp
    task: Task
    words: list[str]
    timeout_s: float | None
    help: bool


def _read(fsa: Fsa, name: str, words: Sequence[str], timeout_s: float | None) -> _Call:
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
    help_asked = False
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        if word == "--timeout":
            timeout_s = _seconds(value if equals else rest.pop(0) if rest else "")
        else:
            help_asked = True
    return _Call(loaded, task, theirs, timeout_s, help_asked)


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


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UsageError(f'--timeout "{text}": expected seconds, more than 0')
    return seconds


def _run(fsa: Fsa, call: _Call) -> RunResult:
    task = call.task
    values = arguments.parse(signature_of(task.function), call.words)
    database = database_for(task, call.loaded, fsa.settings)
    if call.timeout_s is not None and not call.timeout_s > 0:
        raise UsageError(f"--timeout {call.timeout_s:g}: expected seconds, more than 0")
    fsa.output.detail(f"running {task.name} ({task.place}) in {database!r}")
    bars = Bars(fsa.output)
    order = Run(
        task=task,
        arguments=values,
        app=call.loaded.app,
        database=database,
        timeout_s=call.timeout_s,
        report=bars,
    )
    redirected = _prints_to_stderr() if fsa.output.json else contextlib.nullcontext()
    try:
        with _terminable(), redirected, bars:
            return execute(order)
    except _Terminate:
        raise Terminated(f"{task.name} was terminated and rolled back") from None
    except KeyboardInterrupt:
        raise Interrupted(f"{task.name} was interrupted and rolled back") from None


def _tell(fsa: Fsa, result: RunResult) -> None:
    if result.value is not None:
        fsa.output.line(report.shown(result.value))
    committed = "committed" if result.task.commit else "not committed: the task says commit=False"
    fsa.output.say(
        f"{result.task.name} succeeded in {report.took(result.duration_ms)}, {committed}"
    )


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
