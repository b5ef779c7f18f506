"""Command-line arguments after a task's name, as typed values.

    fsa run-task load users.csv --limit 100 --no-active  ->  {"path": ..., "limit": 100, ...}

A required parameter is an argument, one with a default or keyword-only is an `--option`, a bool is
`--x/--no-x`, a list is repeatable, a dict, dataclass or model is JSON.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fsa_cli.exceptions import ArgumentError, did_you_mean
from fsa_cli.tasks.conversion import Source, quote, read_value, validate
from fsa_cli.tasks.signature import Parameter, Signature
from fsa_cli.terminal.json_values import describe

__all__ = ["bind", "encoded", "parse", "split"]

_NEGATIVE_NUMBER = re.compile(r"-\.?\d.*")

_BASE64 = "base64"  # of a value in the ledger's JSON: {"base64": "/wA="}


def split(
    signature: Signature, argv: Sequence[str], flags: Mapping[str, bool]
) -> tuple[list[str], list[str]]:
    """Divide *argv* into fsa's own flags and the task's arguments: `(fsa's, the task's)`.

    Args:
        signature: The task's; an option of the task is the task's, whatever fsa calls its own.
        argv: All that follows the task's name. `--` ends fsa's flags: its options follow, and
            anything else as an argument. A second `--` ends the options too.
        flags: fsa's flags, and whether each takes a value.
    """
    options = signature.options()
    ours: list[str] = []
    theirs: list[str] = []
    plain: list[str] = []
    ended = False
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        spelling, equals, _ = word.partition("=")
        option = options.get(_spelled(spelling))
        if word == "--":
            if ended:
                plain += rest
                break
            ended = True
        elif option is not None:
            theirs.append(word)
            if option[0].kind == "option" and not equals and rest and _is_value(rest[0]):
                theirs.append(rest.pop(0))
        elif ended:
            plain.append(word)
        elif spelling in flags:
            ours.append(word)
            if flags[spelling] and not equals and rest:
                ours.append(rest.pop(0))
        else:
            theirs.append(word)
    return ours, [*theirs, "--", *plain] if plain else theirs


def parse(
    signature: Signature,
    argv: Sequence[str],
    read_stdin: Callable[[], bytes] | None = None,
    *,
    args_json: str | None = None,
    commands: Collection[str] = (),
) -> dict[str, Any]:
    """The values of *argv* by parameter name; a parameter that is not given keeps its default.

    Args:
        args_json: A JSON object with values by name, or `@file`, or `-`; *argv* goes before it.
        commands: The command's own options, which a wrong one may have meant.

    Raises:
        ArgumentError: with the argument, the value and the expected type.
    """
    source = Source(read_stdin or sys.stdin.buffer.read)
    values = _by_name(signature, args_json, source) if args_json is not None else {}
    given = _sort(signature, argv, values, commands)
    for parameter in signature.parameters:
        if parameter.name in given.flags:
            values[parameter.name] = given.flags[parameter.name]
        elif parameter.name in given.texts:
            values[parameter.name] = read_value(parameter, given.texts[parameter.name], source)
    return values


def bind(signature: Signature, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check values by name (a schedule's `args`, JSON) as those of a command line.

    Raises:
        ArgumentError: an unknown name, a missing one, or a value of the wrong type.
    """
    values = {
        parameter.name: validate(
            parameter, _decoded(parameter, value), describe(value), parameter.name
        )
        for parameter, value in _named(signature, arguments)
    }
    missing = [p.name for p in signature.parameters if p.required and p.name not in arguments]
    if missing:
        raise ArgumentError(f"missing {', '.join(missing)}")
    return values


def encoded(signature: Signature, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """*arguments* as `bind` reads them back from JSON: bytes that are no UTF-8 as base64."""
    of_bytes = {parameter.name for parameter in signature.parameters if parameter.item is bytes}
    return {
        name: _as_base64(value) if name in of_bytes else value for name, value in arguments.items()
    }


def _as_base64(value: Any) -> Any:
    if isinstance(value, list | tuple | set | frozenset):
        return [_as_base64(each) for each in value]
    if not isinstance(value, bytes | bytearray):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {_BASE64: base64.b64encode(value).decode()}


def _decoded(parameter: Parameter, value: Any) -> Any:
    if parameter.item is not bytes:
        return value
    if isinstance(value, list):
        return [_decoded(parameter, each) for each in value]
    text = value.get(_BASE64) if isinstance(value, dict) and len(value) == 1 else None
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else value
    except ValueError:
        return value  # which is no bytes, and is said


def _named(signature: Signature, arguments: Mapping[str, Any]) -> Iterator[tuple[Parameter, Any]]:
    parameters = {parameter.name: parameter for parameter in signature.parameters}
    for name, value in arguments.items():
        if name not in parameters:
            raise ArgumentError(
                f"the task has no parameter {name!r}", hint=did_you_mean(name, parameters, most=2)
            )
        yield parameters[name], value


def _by_name(signature: Signature, args_json: str, source: Source) -> dict[str, Any]:
    """The values of `--args-json`."""
    content = source.content("--args-json", args_json)
    try:
        arguments = json.loads(args_json if content is None else content)
    except (ValueError, RecursionError) as exc:
        raise ArgumentError(f"--args-json {quote(args_json)}: not JSON: {exc}") from None
    if not isinstance(arguments, dict):
        raise ArgumentError(
            f'--args-json {quote(args_json)}: expected an object like {{"name": "value"}}'
        )
    values = {}
    for parameter, value in _named(signature, arguments):
        shown = value if isinstance(value, str) else json.dumps(value)
        values[parameter.name] = validate(parameter, value, shown, f"--args-json {parameter.name}")
    return values


@dataclass
class _Given:
    """The texts given for each parameter, before they are read."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)


def _spelled(word: str) -> str:
    """`--max_rows` is `--max-rows`."""
    return word.replace("_", "-") if word.startswith("--") else word


def _is_value(word: str) -> bool:
    return not word.startswith("--")


def _sort(
    signature: Signature, argv: Sequence[str], known: Collection[str], commands: Collection[str]
) -> _Given:
    options = signature.options()
    given = _Given()
    positional: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            positional.extend(rest)
            break
        if word == "-" or not word.startswith("-") or _NEGATIVE_NUMBER.fullmatch(word):
            positional.append(word)
            continue
        spelling, equals, value = word.partition("=")
        if _spelled(spelling) not in options:
            raise _unknown_option(signature, spelling, commands)
        parameter, positive = options[_spelled(spelling)]
        if parameter.kind == "flag":
            if parameter.name in given.flags:
                raise ArgumentError(f"{spelling}: {parameter.option} was given before")
            stated = not equals or validate(parameter, value, value, spelling)
            given.flags[parameter.name] = stated is positive
            continue
        if not equals:
            if not rest or not _is_value(rest[0]):
                raise ArgumentError(f"{spelling} needs a value: {parameter.expected}")
            value = rest.pop(0)
        if parameter.name in given.texts and not parameter.many:
            raise ArgumentError(
                f"{spelling} was given twice", hint="only a list takes several values"
            )
        given.texts.setdefault(parameter.name, []).append(value)
    _place(signature, positional, given)
    missing = [
        f"{parameter.label} ({parameter.expected})"
        for parameter in signature.parameters
        if parameter.required
        and parameter.name not in given.texts
        and parameter.name not in given.flags
        and parameter.name not in known
    ]
    if missing:
        raise ArgumentError(f"missing {', '.join(missing)}")
    return given


def _place(signature: Signature, positional: list[str], given: _Given) -> None:
    """Give each argument its text; a repeatable one takes what the others leave."""
    arguments = [parameter for parameter in signature.parameters if parameter.kind == "argument"]
    repeated = next((i for i, parameter in enumerate(arguments) if parameter.many), None)
    rest = list(positional)
    after = len(arguments) - 1 - repeated if repeated is not None else 0
    for index, parameter in enumerate(arguments):
        if index == repeated:
            count = max(len(rest) - after, 0)
            if count:
                given.texts[parameter.name] = rest[:count]
                rest = rest[count:]
        elif rest:
            given.texts[parameter.name] = [rest.pop(0)]
    if rest:
        takes = ", ".join(p.label for p in arguments)
        raise ArgumentError(
            f"unexpected argument {quote(rest[0])}: the task takes "
            + (takes or f"none but {signature.usage}".removesuffix(" but "))
        )


def _unknown_option(
    signature: Signature, spelling: str, commands: Collection[str]
) -> ArgumentError:
    for parameter in signature.parameters:
        if parameter.kind == "argument" and parameter.option == _spelled(spelling):
            return ArgumentError(
                f"{spelling} is no option: {parameter.label} is an argument",
                hint=f"write its value alone: {signature.usage}",
            )
    meant = did_you_mean(spelling, [*signature.options(), *commands], most=2)
    return ArgumentError(
        f"no such option: {spelling}",
        hint=meant or "a value that begins with a dash comes after --, or as --option=VALUE",
    )
