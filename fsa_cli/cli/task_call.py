"""The arguments after a task's name: fsa's own, and those of the task."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from shlex import quote
from typing import TYPE_CHECKING, Any

from fsa_cli.cli.flags import LOADING, SPELLINGS, VALUED, split_flags
from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.exceptions import ArgumentError, ConfigurationError, UsageError
from fsa_cli.project.loader import LoadedApp
from fsa_cli.project.settings import Flags
from fsa_cli.tasks import arguments
from fsa_cli.tasks.definition import LONGEST_S, TaskDefinition
from fsa_cli.tasks.lookup import get_task
from fsa_cli.tasks.signature import signature_of

if TYPE_CHECKING:
    from fsa_cli.runs.run_options import RunOptions

__all__ = ["ENQUEUES", "Call", "enqueue", "read"]

#: The options of a command that enqueues a run, and that each takes a value.
ENQUEUES = dict.fromkeys(("--run-after", "--priority", "--unique"), True)

_FLAGS = {word: field in VALUED for word, field in SPELLINGS.items()}


@dataclass(frozen=True)
class Call:
    """A task, its arguments, and the command's own options among them.

    Attributes:
        name: As it was written; `module:function` of one that is not registered.
        own: What options the command has.
    """

    loaded: LoadedApp
    name: str
    task: TaskDefinition
    argv: list[str]
    options: dict[str, str]
    own: Collection[str]

    @property
    def help(self) -> bool:
        return "--help" in self.options or "-h" in self.options

    def values(self) -> dict[str, Any]:
        """The values of the task's parameters.

        Raises:
            ArgumentError: An argument is not what the task takes.
        """
        signature = signature_of(self.task.function)
        try:
            return arguments.parse(
                signature,
                self.argv,
                args_json=self.options.get("--args-json"),
                commands=self.own,
            )
        except ArgumentError as exc:
            exc.hint = exc.hint or f"fsa run-task {quote(self.name)} -h"
            raise

    def number(self, option: str, *, least: float = 0, whole: bool = False) -> float | None:
        """The value of *option*; None if it was not given."""
        text = self.options.get(option)
        if text is None:
            return None
        try:
            number = int(text) if whole else float(text)
        except ValueError:
            number = -1
        is_limit = option == "--timeout"
        most = LONGEST_S if is_limit else sys.float_info.max
        if not least <= number <= most or (is_limit and number == 0):
            kind = "a whole number" if whole else "seconds"
            more = "more than 0, up to 100 years" if is_limit else "0 or more"
            raise UsageError(f'{option} "{text}": expected {kind}, {more}')
        return number


def read(
    fsa: Fsa,
    name: str,
    argv: Sequence[str],
    given: Mapping[str, str | None],
    own: Mapping[str, bool],
) -> Call:
    """Load the app and divide *argv* into fsa's flags and the task's arguments.

    Args:
        given: The command's own options before the name; None: not given.
        own: Its own options that may also come after the name, and whether each takes a value.

    Raises:
        TaskNotFound: There is no such task.
        UsageError: A flag may be fsa's or the task's.
    """
    # The task's arguments are known only when the app is loaded, and these flags choose the app.
    early, _ = split_flags(argv, but={field.name for field in fields(Flags)} - LOADING)
    _apply(fsa, early)
    try:
        loaded = fsa.load()
    except ConfigurationError as exc:
        chosen = [word for word, field in SPELLINGS.items() if getattr(early, field) is not None]
        if word := next((word for word in chosen if word.startswith("--")), None):
            exc.details += (
                f"{word} is fsa's own; a parameter of that name is given after --: "
                f"fsa run-task {name} -- {word} ...",
            )
        raise
    task = get_task(name)
    if name in task.aliases:
        fsa.output.say(f"{name} is {task.name} now")
    signature = signature_of(task.function)
    _refuse_ambiguous(name, early, signature.options())
    ours, theirs = arguments.split(signature, argv, {**_FLAGS, **own})
    late, rest = split_flags(ours)
    _apply(fsa, late)
    options = {option: value for option, value in given.items() if value is not None}
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        if own[word] and not equals:
            if not rest:
                raise UsageError(f"{word} needs a value")
            value = rest.pop(0)
        options[word] = value
    return Call(loaded, name, task, theirs, options, own.keys())


def enqueue(fsa: Fsa, call: Call, *, waits: bool = False) -> None:
    """Enqueue a run, and print its id.

    Args:
        waits: Wait for its end instead, and exit as it ended.
    """
    from fsa_cli.ledger.access import reached
    from fsa_cli.ledger.location import ledger_of
    from fsa_cli.runs import control
    from fsa_cli.runs.enqueue import arguments_of

    control.require_registered(call.name, call.task)
    options = _run_options(call)
    values = arguments_of(call.task, call.values())
    ledger = ledger_of(call.loaded.databases, fsa.settings)
    try:
        with reached(ledger):
            run_id = control.trigger(
                ledger, fsa.settings, call.task, values, fsa.output.warn, options
            )
            if waits:
                control.wait(ledger, run_id, fsa.output)
                return
    finally:
        ledger.dispose()
    if fsa.output.json:
        shown = {"id": run_id, "task": call.task.name, "arguments": json.loads(values)}
        fsa.output.document(shown)
    else:
        fsa.output.line(run_id)


def _run_options(call: Call) -> RunOptions:
    from fsa_cli.runs.run_options import RunOptions
    from fsa_cli.runs.run_view import instant_or_span

    given: dict[str, Any] = {"unique": call.options.get("--unique")}
    if (after := call.options.get("--run-after")) is not None:
        given["run_after"] = instant_or_span(after, "--run-after")
    if (priority := call.options.get("--priority")) is not None:
        try:
            given["priority"] = int(priority)
        except ValueError:
            raise UsageError(f'--priority "{priority}": expected a whole number') from None
    return RunOptions.of(given)


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
