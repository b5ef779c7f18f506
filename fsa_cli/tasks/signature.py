"""The parameters of a task: those on a command line, and those that are injected.

def t(user_id: int, *, since: date | None = None, active: bool = True, db: Session)
->  USER_ID  --since DATE  --active/--no-active        and a session
"""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from fsa_cli.exceptions import TaskDefinitionError
from fsa_cli.tasks.context import TaskContext
from fsa_cli.tasks.docstrings import documented_parameters
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

__all__ = ["Injected", "Parameter", "Signature", "signature_of"]

_SHORT = 36

Kind = Literal["argument", "option", "flag"]
Injected = Literal["session", "async_session", "context", "app"]


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


@dataclass(frozen=True)
class Signature:
    """A task's parameters: those that a person gives, and those that the runner gives."""

    parameters: tuple[Parameter, ...]
    injected: Mapping[str, Injected]
    inspected: inspect.Signature

    @property
    def pieces(self) -> list[str]:
        """The parameters as they are written: arguments first, then options."""
        ordered = sorted(self.parameters, key=lambda p: p.kind != "argument")
        return [parameter.usage for parameter in ordered]

    @property
    def usage(self) -> str:
        """`USER_ID [--since DATE]`."""
        return " ".join(self.pieces)

    @property
    def short_usage(self) -> str:
        """`USER_ID [OPTIONS]`, where all of it would be too long for a table."""
        if len(self.usage) <= _SHORT:
            return self.usage
        needed = [p.usage for p in self.parameters if p.kind == "argument" or p.required]
        return " ".join([*needed, "[OPTIONS]"])

    def options(self) -> dict[str, tuple[Parameter, bool]]:
        """Every spelling of an option: its parameter, and False where it is the `--no-` form."""
        found: dict[str, tuple[Parameter, bool]] = {}
        for parameter in self.parameters:
            if parameter.kind == "flag":
                found[parameter.negative_option] = (parameter, False)
        for parameter in self.parameters:
            if parameter.kind != "argument":
                found[parameter.option] = (parameter, True)
        return found

    def call(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The values as positional and keyword arguments of the function."""
        positional: list[Any] = []
        named: dict[str, Any] = {}
        kinds = [p.kind for p in self.inspected.parameters.values()]
        rest = inspect.Parameter.VAR_POSITIONAL in kinds
        for name, parameter in self.inspected.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                positional.extend(values.get(name, ()))
            elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY or (
                rest and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            ):
                positional.append(values.get(name, parameter.default))
            elif name in values:
                named[name] = values[name]
        return positional, named


@lru_cache(maxsize=1024)
def signature_of(function: Callable[..., Any]) -> Signature:
    """Read *function*'s signature.

    Raises:
        TaskDefinitionError: an annotation that cannot be resolved, or a type without a default
            that no text can become.
    """
    inspected = inspect.signature(function)
    documented = documented_parameters(inspect.getdoc(function) or "")
    parameters: list[Parameter] = []
    injected: dict[str, Injected] = {}
    for name, parameter in inspected.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        annotation = _resolve(function, parameter)
        kind = _injected_kind(annotation)
        if kind is None:
            made = _read_parameter(function, parameter, annotation, documented.get(name, ""))
            if made is not None:
                parameters.append(made)
        elif kind == "async_session" and not inspect.iscoroutinefunction(inspect.unwrap(function)):
            raise _wrong(
                function, name, "is an AsyncSession", "use Session, or make the task async"
            )
        else:
            injected[name] = kind
    return Signature(tuple(parameters), types.MappingProxyType(injected), inspected)


@cache
def _injectable() -> dict[Injected, type]:
    """The types that are injected. The frameworks are imported with the app, not for a `--help`."""
    from fastapi import FastAPI
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    return {
        "session": Session,
        "async_session": AsyncSession,
        "context": TaskContext,
        "app": FastAPI,
    }


def _wrong(
    function: Callable[..., Any],
    name: str,
    reason: str,
    hint: str,
    details: Sequence[str] = (),
) -> TaskDefinitionError:
    where = getattr(function, "__qualname__", repr(function))
    return TaskDefinitionError(f"{where}: parameter {name!r} {reason}", hint=hint, details=details)


def _resolve(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        default = parameter.default
        known = isinstance(default, (*SIMPLE, enum.Enum, PurePath))
        return type(default) if known else str
    # Often imported under `if TYPE_CHECKING:` only, where a text annotation could not be resolved.
    known_names = {injectable.__name__: injectable for injectable in _injectable().values()}
    namespace = {**known_names, **getattr(inspect.unwrap(function), "__globals__", {})}
    holder = types.SimpleNamespace(__annotations__={parameter.name: annotation})
    try:
        return typing.get_type_hints(holder, namespace, include_extras=True)[parameter.name]
    except Exception as exc:
        raise _wrong(
            function,
            parameter.name,
            f"is annotated {annotation!r}, which cannot be resolved: {exc}",
            "import the name at the top of the module, not under `if TYPE_CHECKING:`",
        ) from exc


def _injected_kind(annotation: Any) -> Injected | None:
    base, _ = unwrap(annotation)
    if isinstance(base, type):
        for kind, injectable in _injectable().items():
            if issubclass(base, injectable):
                return kind
    return None


def _read_parameter(
    function: Callable[..., Any], parameter: inspect.Parameter, annotation: Any, documented: str
) -> Parameter | None:
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
            raise _wrong(
                function,
                parameter.name,
                f"has a type that no text can become: {inspect.formatannotation(annotation)}",
                "give it a default, or take a type that Pydantic knows",
                details=str(exc).splitlines()[:1],
            ) from exc
    return made
