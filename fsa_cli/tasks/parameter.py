"""One parameter of a task, as a person gives it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from fsa_cli.exceptions import TaskDefinitionError
from fsa_cli.tasks.parameter_types import (
    SIMPLE,
    Reading,
    choices_of,
    describe_type,
    element_of,
    reading_of,
    unwrap,
)
from fsa_cli.terminal.secret_names import is_secret_name

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["Parameter", "definition_error", "read_parameter"]

Kind = Literal["argument", "option", "flag"]


@dataclass(frozen=True)
class Parameter:
    """One parameter that a person can give.

    Attributes:
        name: As in the function.
        kind: An `argument` is positional, an `option` is `--name VALUE`, a `flag` is `--name` or
            `--no-name`.
        many: Whether several values make up a collection.
        reading: How text is read before Pydantic validates it.
        choices: The allowed texts and their values; empty if any text is allowed.
        metavar: Its type in usage lines.
        expected: Its type in error messages.
        item: The type of one value, without Annotated, Optional and the collection.
        help: Its description in the docstring or an Annotated.
    """

    name: str
    kind: Kind
    annotation: Any
    required: bool
    default: Any
    many: bool
    reading: Reading
    choices: Mapping[str, Any]
    metavar: str
    expected: str
    item: Any
    help: str

    @property
    def is_path(self) -> bool:
        return isinstance(self.item, type) and issubclass(self.item, PurePath)

    @property
    def is_secret(self) -> bool:
        """Whether its value is never shown: by its type, or for text by its name."""
        if self.item in (str, bytes) and is_secret_name(self.name):
            return True
        from pydantic import SecretBytes, SecretStr

        return isinstance(self.item, type) and issubclass(self.item, (SecretStr, SecretBytes))

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def negative_option(self) -> str:
        return "--no-" + self.name.replace("_", "-")

    @property
    def label(self) -> str:
        """Its name for a person: `USER_ID` or `--since`."""
        return self.name.upper() if self.kind == "argument" else self.option

    @property
    def usage(self) -> str:
        """How it is written: `USER_ID`, `[--since DATE]`, `[--active/--no-active]`."""
        if self.kind == "argument":
            text = f"{self.label}..." if self.many else self.label
        elif self.kind == "flag":
            text = f"{self.option}/{self.negative_option}"
        else:
            text = f"{self.option} {self.metavar}"
        if not self.required:
            text = f"[{text}]"
        return f"{text}..." if self.many and self.kind == "option" else text

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        from pydantic import TypeAdapter

        return TypeAdapter(self.annotation)


def read_parameter(
    function: Callable[..., Any], parameter: inspect.Parameter, annotation: Any, documented: str
) -> Parameter | None:
    """*parameter* of *function*; None if it has a default and a type that no text can become.

    Args:
        documented: Its description in the docstring.

    Raises:
        TaskDefinitionError: It has such a type, and no default.
    """
    base, described = unwrap(annotation)
    rest = parameter.kind is inspect.Parameter.VAR_POSITIONAL
    required = parameter.default is inspect.Parameter.empty and not rest
    element = base if rest else element_of(base)
    if rest:
        annotation = list[annotation]
    many = element is not None
    item, _ = unwrap(element if many else base)
    kind: Kind = "option"
    if item is bool and not many:
        kind = "flag"
    elif rest or (required and parameter.kind is not inspect.Parameter.KEYWORD_ONLY):
        kind = "argument"
    choices = choices_of(item)
    reading = "text" if choices else reading_of(item)
    metavar, expected = describe_type(item, choices, reading)
    made = Parameter(
        name=parameter.name,
        kind=kind,
        annotation=annotation,
        required=required,
        default=None if rest else parameter.default,
        many=many,
        reading=reading,
        choices=types.MappingProxyType(choices),
        metavar=metavar,
        expected=expected,
        item=item,
        help=described or documented,
    )
    if not (isinstance(item, type) and item in SIMPLE):
        from pydantic.errors import PydanticUserError

        try:
            made.adapter  # noqa: B018
        except (PydanticUserError, TypeError, NameError) as exc:
            if not required:
                return None
            raise definition_error(
                function,
                parameter.name,
                f"has a type that no text can become: {inspect.formatannotation(annotation)}",
                "give it a default, or take a type that Pydantic knows",
                details=str(exc).splitlines()[:1],
            ) from exc
    return made


def definition_error(
    function: Callable[..., Any],
    name: str,
    reason: str,
    hint: str,
    details: Sequence[str] = (),
) -> TaskDefinitionError:
    """The error about the parameter *name* of *function*."""
    where = getattr(function, "__qualname__", repr(function))
    return TaskDefinitionError(f"{where}: parameter {name!r} {reason}", hint=hint, details=details)
