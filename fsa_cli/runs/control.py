"""Trigger, retry, cancel and await runs; pause and resume tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from shlex import quote
from typing import Any

from sqlalchemy import Row

from fsa_cli.exceptions import (
    ArgumentError,
    FsaError,
    Interrupted,
    TaskFailed,
    TaskNotFound,
    TimedOut,
    UsageError,
    did_you_mean,
)
from fsa_cli.ledger import control, queries
from fsa_cli.ledger.records import status_word, status_words
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import FINAL
from fsa_cli.ledger.values import arguments_in, has_ended
from fsa_cli.project.settings import Settings
from fsa_cli.runner import report
from fsa_cli.runs.enqueue import Enqueuer
from fsa_cli.runs.requester import requester
from fsa_cli.runs.run_options import RunOptions
from fsa_cli.runs.run_view import document, duration_ms, get_run
from fsa_cli.tasks import arguments
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.kept_arguments import are_hidden
from fsa_cli.tasks.registry import registry
from fsa_cli.tasks.signature import signature_of
from fsa_cli.terminal.formatting import format_elapsed
from fsa_cli.terminal.output import Output
from fsa_cli.terminal.user_code import summarize_error

__all__ = [
    "cancel",
    "known",
    "pause",
    "require_registered",
    "resume",
    "retry",
    "retry_many",
    "trigger",
    "wait",
]

_ASKED_EVERY_S = 0.25


def require_registered(name: str, task: TaskDefinition) -> None:
    """Raises TaskNotFound if *task* is a function that is not registered."""
    if registry.get(task.name) is not task:
        raise TaskNotFound(
            f"{name!r} is not a registered task: no scheduler has it",
            hint=f"fsa run-task {name} runs it here",
        )


def _registered(name: str) -> TaskDefinition:
    """The task that a row names. Unlike a person's `module:function`, it is never imported."""
    known([name], [])
    task = registry.get(name)
    assert task is not None
    return task


def trigger(
    ledger: Ledger,
    settings: Settings,
    task: TaskDefinition,
    values: str,
    warn: Callable[[str], None],
    options: RunOptions | None = None,
    *,
    run_id: str | None = None,
    by: str | None = None,
) -> str:
    """Enqueue a run of *task* with *values*, as `arguments_of` returns them; the run's id.

    Args:
        run_id, by: As in `Enqueuer.enqueue`.
    """
    enqueuer = Enqueuer(ledger, settings)
    try:
        given = options or RunOptions()
        (result,) = enqueuer.enqueue(task, [values], given, run_id=run_id, by=by)
        if said := enqueuer.unserved(task, given):
            warn(said)
        return result.id
    finally:
        enqueuer.executors.close()


def retry(
    ledger: Ledger,
    settings: Settings,
    prefix: str,
    warn: Callable[[str], None],
    *,
    run_id: str | None = None,
    by: str | None = None,
) -> Row[Any]:
    """Enqueue a run with the arguments of one that has ended; the new one.

    Its executor and queue are those of its task today, not of the run before.

    Args:
        run_id, by: As in `Enqueuer.enqueue`.

    Raises:
        UsageError: There is no such run, or it has not ended.
        TaskNotFound: Its task is no longer there.
        ArgumentError: Its task takes other arguments now.
    """
    before = get_run(ledger, prefix)
    task = _retryable(before)
    new = trigger(ledger, settings, task, before.arguments, warn, run_id=run_id, by=by)
    return get_run(ledger, new)


def retry_many(
    ledger: Ledger, settings: Settings, before: Sequence[Row[Any]], warn: Callable[[str], None]
) -> list[str]:
    """Enqueue a run with the arguments of each of *before*; the ids of the new ones.

    Those that cannot be run again are left out, with a warning of the reason. Those of a task are
    enqueued together.
    """
    by_task: dict[str, tuple[TaskDefinition, list[str]]] = {}
    for each in before:
        try:
            task = _retryable(each)
        except FsaError as exc:
            warn(f"left out: {each.id[:8]} of {each.task}: {exc.message}")
            continue
        by_task.setdefault(task.name, (task, []))[1].append(each.arguments)
    enqueuer = Enqueuer(ledger, settings)
    new: list[str] = []
    try:
        for task, texts in by_task.values():
            new += [result.id for result in enqueuer.enqueue(task, texts)]
        said = (enqueuer.unserved(task) for task, _ in by_task.values())
        for text in dict.fromkeys(one for one in said if one):
            warn(text)
    finally:
        enqueuer.executors.close()
    return new


def _retryable(before: Row[Any]) -> TaskDefinition:
    """The task of a run that can be run again; raises as `retry`."""
    task = _registered(before.task)
    values = arguments_in(before.arguments, before.id)
    signature = signature_of(task.function)
    if are_hidden(values) or signature.secrets & values.keys():
        raise UsageError(
            f"the run {before.id[:8]} was given a secret, which the ledger has not kept",
            hint=f"fsa run-task {task.name} runs it anew",
        )
    try:
        arguments.bind(signature, values)
    except FsaError:
        raise
    except Exception as exc:  # a validator of the user's
        raise ArgumentError(
            f"{before.task} does not take the arguments of the run {before.id[:8]}: "
            f"{summarize_error(exc)}"
        ) from exc
    if before.status not in FINAL:
        status = status_word(before.status)
        raise UsageError(
            f"the run {before.id[:8]} of {before.task} has not ended: it is {status}",
            hint=f"fsa runs cancel {before.id[:8]}",
        )
    return task


def cancel(ledger: Ledger, prefix: str) -> tuple[Row[Any], str]:
    """Cancel a run; the run, and its status before: `queued` or `running`.

    Raises:
        UsageError: There is no such run, or it has ended.
    """
    wanted = get_run(ledger, prefix)
    was = control.cancel(ledger, wanted.id)
    if was is None:
        raise UsageError(f"the run {wanted.id[:8]} of {wanted.task} has ended: {wanted.status}")
    return get_run(ledger, wanted.id), was


def pause(ledger: Ledger, names: Sequence[str], by: str | None = None) -> list[str]:
    """Pause these tasks, or without names all that have a schedule; the names of the paused.

    Args:
        by: Who asks; None: the user of this process.

    Raises:
        UsageError: One of them has none.
    """
    tasks = queries.tasks(ledger)
    scheduled = [
        *(task.name for task in registry if task.schedule is not None),
        *(each.name for each in tasks if each.schedule_hash is not None),
    ]
    wanted = known(names, [each.name for each in tasks]) or scheduled
    for name in wanted:
        if name not in scheduled:
            raise UsageError(
                f"{name} has no schedule that could be paused",
                hint=f"what waits of it: fsa runs cancel --task {quote(name)} --status queued",
            )
    return control.pause(ledger, sorted(set(wanted)), by or requester())


def resume(ledger: Ledger, names: Sequence[str]) -> list[str]:
    """Resume these tasks, or without names all that are paused; the names of the resumed."""
    tasks = queries.tasks(ledger)
    wanted = known(names, [each.name for each in tasks]) or [
        each.name for each in tasks if each.paused_ms is not None
    ]
    return control.resume(ledger, wanted)


def known(names: Sequence[str], recorded: Collection[str]) -> list[str]:
    """*names*, each of a task that is registered here, or known to the ledger.

    One that a registered task had before is that task's name now.

    Raises:
        TaskNotFound: With a did-you-mean.
    """
    there = {*recorded, *(name for task in registry for name in task.names)}
    for name in names:
        if name not in there:
            raise TaskNotFound(
                f"there is no task {name!r}",
                hint=did_you_mean(name, there) or "fsa tasks lists them",
            )
    tasks = {name: registry.get(name) for name in names}
    return [name if task is None else task.name for name, task in tasks.items()]


def wait(ledger: Ledger, run_id: str, output: Output) -> None:
    """Wait until a run has ended, and show its result.

    Raises:
        TaskFailed, TimedOut: As it has ended.
        Interrupted: Nobody waits any more; the run goes on.
    """
    try:
        while not has_ended((run := get_run(ledger, run_id)).status, run.finished_ms):
            time.sleep(_ASKED_EVERY_S)
    except KeyboardInterrupt:
        raise Interrupted(
            f"the run {run_id[:8]} goes on", hint=f"fsa runs cancel {run_id[:8]}"
        ) from None
    if output.json:
        output.document(document(run))
    if run.status != "succeeded":
        raise _ended(run)
    if not output.json:
        if run.result is not None:
            output.line(report.format_result(document(run)["result"]), exact=True)
        output.say(f"{run.task} succeeded in {format_elapsed(duration_ms(run, None) or 0)}")


def _ended(run: Row[Any]) -> FsaError:
    kind = TimedOut if run.status == "timed_out" else TaskFailed
    said = f"{run.error_type or ''}: {run.error or ''}".strip(": ")
    word = status_words(run.status)
    return kind(
        f"{run.task} {'has ' if kind is TimedOut else 'was ' if run.status != 'failed' else ''}"
        f"{word}{f': {said}' if said else ''}",
        hint=f"fsa runs show {run.id[:8]}",
    )
