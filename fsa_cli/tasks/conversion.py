"""Convert the text given for one parameter to its value.

`@file` reads a value from a file (for a repeatable parameter one per line), `-` from stdin,
`@@` is an `@`; a Path is taken as it is. Pydantic validates, and an error is one line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fsa_cli.exceptions import ArgumentError, did_you_mean
from fsa_cli.tasks.signature import Parameter
from fsa_cli.terminal.masking import mask_within

__all__ = ["Source", "Verbatim", "quote", "read_value", "validate"]

_SHOWN = 60


class Source:
    """Reads `@file` and `-`."""

    def __init__(self, read_stdin: Callable[[], bytes]) -> None:
        self._read_stdin = read_stdin
        self._taken_by: str | None = None

    def read(self, parameter: Parameter, word: str) -> list[str | bytes]:
        """The values of *word*."""
        if parameter.is_path:
            return [word]
        if word.startswith("@@"):
            return [word[1:]]
        content = self.content(parameter.label, word)
        if content is None:
            return [word]
        if parameter.item is bytes:
            return [content]
        try:
            text = content.decode()
        except UnicodeDecodeError as exc:
            raise ArgumentError(f"{parameter.label} {quote(word)}: not UTF-8 ({exc})") from None
        if parameter.many:
            return [line for line in text.splitlines() if line.strip()]
        return [text.removesuffix("\n").removesuffix("\r")]

    def content(self, label: str, word: str) -> bytes | None:
        """The content of `@file` or `-`; None if *word* is neither."""
        if word == "-":
            return self._stdin(label)
        return self._file(label, word) if word.startswith("@") else None

    def _stdin(self, label: str) -> bytes:
        if self._taken_by is not None:
            raise ArgumentError(f"{label} -: standard input was already read for {self._taken_by}")
        self._taken_by = label
        return self._read_stdin()

    def _file(self, label: str, word: str) -> bytes:
        try:
            return Path(word[1:]).read_bytes()
        except OSError as exc:
            raise ArgumentError(
                f"{label} {quote(word)}: cannot read {word[1:]}: {exc.strerror}",
                hint="a value that begins with @ is a file's name; write @@ for an @",
            ) from None


class Verbatim(Source):
    """Reads nothing: `@file` and `-` are values as others, where somebody else sends the text."""

    def __init__(self) -> None:
        super().__init__(bytes)

    def read(self, parameter: Parameter, word: str) -> list[str | bytes]:
        return [word]


def read_value(parameter: Parameter, given: list[str], source: Source) -> Any:
    texts = [text for word in given for text in source.read(parameter, word)]
    read = [_read(parameter, text) for text in texts]
    if parameter.many:
        shown = ", ".join(str(text) for text in texts)
        return validate(parameter, read, shown, parameter.label, items=[str(t) for t in texts])
    return validate(parameter, read[0], str(texts[0]), parameter.label)


def _read(parameter: Parameter, text: str | bytes) -> Any:
    """The input of Pydantic for one text."""
    if isinstance(text, str) and not parameter.is_path:  # a file may have any name
        try:
            text.encode()
        except UnicodeEncodeError:  # the run could not be recorded
            raise _wrong(parameter, text, parameter.label, "not UTF-8") from None
    if parameter.choices:
        if text in parameter.choices:
            return parameter.choices[str(text)]
        raise _wrong(parameter, str(text), parameter.label)
    structured = parameter.reading == "json" or (
        parameter.reading == "either" and str(text).lstrip()[:1] in ("{", "[")
    )
    if not structured:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        shown = _show(parameter, str(text))
        raise ArgumentError(f"{parameter.label} {shown}: not JSON: {exc}") from None


def validate(
    parameter: Parameter, value: Any, shown: str, label: str, items: Sequence[str] = ()
) -> Any:
    try:
        return parameter.adapter.validate_python(value)
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_context=False)[0]
        where = list(error["loc"])
        if items and where and isinstance(where[0], int):
            shown, where = items[where[0]], where[1:]
        if parameter.reading == "text":
            # Of a union every member complains; what was expected says it once.
            plain = error["type"].endswith(("_parsing", "_type")) or "_from_" in error["type"]
            reason = None if plain else _message(error["msg"])
            raise _wrong(parameter, shown, label, reason) from None
        path = ".".join(str(part) for part in where)
        reason = f"{path}: {_message(error['msg'])}" if path else _message(error["msg"])
        raise _wrong(parameter, shown, label, reason) from None


def _message(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    return message[:1].lower() + message[1:]


def _wrong(
    parameter: Parameter, shown: str, label: str, reason: str | None = None
) -> ArgumentError:
    return ArgumentError(
        f"{label} {_show(parameter, shown)}: {reason or f'expected {parameter.expected}'}",
        hint=did_you_mean(shown, parameter.choices, most=2),
    )


def _show(parameter: Parameter, text: str) -> str:
    return "(a secret)" if parameter.is_secret else quote(text)


def quote(text: str) -> str:
    return f'"{mask_within(" ".join(text.split()), _SHOWN)}"'
