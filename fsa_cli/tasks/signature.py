"""The parameters of a task: those on a command line, and those that are injected.

def t(user_id: int, *, since: date | None = None, active: bool = True, db: Session)
->  USER_ID  --since DATE  --active/--no-active        and a session
"""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import PurePath
from typing import Any, Literal

from fsa_cli.exceptions import TaskDefinitionError
from fsa_cli.tasks.callables import docstring, wraps_async, written_function
from fsa_cli.tasks.docstrings import documented_parameters
from fsa_cli.tasks.parameter import Parameter, definition_error, read_parameter
from fsa_cli.tasks.parameter_types import SIMPLE, unwrap
from fsa_cli.tasks.task_context import TaskContext

__all__ = ["Injected", "Parameter", "Signature", "signature_of"]

_SHORT = 36

Injected = Literal["session", "async_session", "context", "app"]


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

    @property
    def secrets(self) -> frozenset[str]:
        """The names of those whose values are never shown."""
        return frozenset(each.name for each in self.parameters if each.is_secret)

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
            that no text can become; or a function that does not say what it takes.
    """
    try:
        inspected = inspect.signature(function)
    except ValueError as exc:
        raise TaskDefinitionError(
            f"{getattr(function, '__qualname__', function)!r} does not say what it takes",
            hint="write a function that calls it",
        ) from exc
    documented = documented_parameters(docstring(function))
    parameters: list[Parameter] = []
    injected: dict[str, Injected] = {}
    for name, parameter in inspected.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        annotation = _resolve(function, parameter)
        kind = _injected_kind(annotation)
        if kind is None:
            made = read_parameter(function, parameter, annotation, documented.get(name, ""))
            if made is not None:
                parameters.append(made)
        elif kind == "async_session" and not wraps_async(function):
            raise definition_error(
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


def _resolve(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        default = parameter.default
        known = isinstance(default, (*SIMPLE, enum.Enum, PurePath))
        return type(default) if known else str
    # Often imported under `if TYPE_CHECKING:` only, where a text annotation could not be resolved.
    known_names = {injectable.__name__: injectable for injectable in _injectable().values()}
    namespace = {**known_names, **getattr(written_function(function), "__globals__", {})}
    holder = types.SimpleNamespace(__annotations__={parameter.name: annotation})
    try:
        return typing.get_type_hints(holder, namespace, include_extras=True)[parameter.name]
    except Exception as exc:
        raise definition_error(
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
