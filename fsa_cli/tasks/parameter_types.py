"""Type annotations as command-line types: how text is read, named and limited."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args, get_origin
from uuid import UUID

__all__ = ["SIMPLE", "Reading", "choices_of", "describe_type", "element_of", "reading_of", "unwrap"]

Reading = Literal["text", "json", "either"]

# Type: (its name in usage lines, its name in error messages).
SIMPLE: dict[type, tuple[str, str]] = {
    str: ("TEXT", "text"),
    bytes: ("TEXT", "text"),
    bool: ("BOOL", "true or false"),
    int: ("INTEGER", "a whole number"),
    float: ("NUMBER", "a number"),
    Decimal: ("DECIMAL", "a decimal number"),
    datetime: ("DATETIME", "a date and time like 2026-11-22T15:30"),
    date: ("DATE", "a date like 2026-11-22"),
    time_of_day: ("TIME", "a time like 15:30"),
    timedelta: ("DURATION", "a duration like 01:30:00 or PT90M"),
    UUID: ("UUID", "a UUID"),
}


def unwrap(annotation: Any) -> tuple[Any, str]:
    """The type inside Annotated, Optional and aliases, and the description of an Annotated."""
    described = ""
    while True:
        if get_origin(annotation) is Annotated:
            for extra in annotation.__metadata__:
                for attribute in ("description", "documentation", "help"):
                    text = getattr(extra, attribute, None)
                    described = described or (text if isinstance(text, str) else "")
            annotation = annotation.__origin__
        elif get_origin(annotation) in (typing.Union, types.UnionType):
            members = [arg for arg in get_args(annotation) if arg is not type(None)]
            if len(members) != 1:
                return annotation, described
            annotation = members[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation, described


def element_of(base: Any) -> Any:
    """The element type of a repeatable parameter; None for one of a single value."""
    origin = get_origin(base) or base
    arguments = get_args(base)
    if origin is tuple:
        return arguments[0] if len(arguments) == 2 and arguments[1] is Ellipsis else None
    if isinstance(origin, type) and not issubclass(origin, (str, bytes, Mapping)):
        sequence = issubclass(origin, (list, set, frozenset)) or (
            origin.__module__ == "collections.abc" and issubclass(origin, Iterable)
        )
        if sequence:
            return arguments[0] if arguments else str
    return None


def choices_of(item: Any) -> dict[str, Any]:
    if get_origin(item) is Literal:
        return {str(v.value if isinstance(v, enum.Enum) else v): v for v in get_args(item)}
    if isinstance(item, type) and issubclass(item, enum.Enum):
        return {
            str(member.value) if isinstance(member.value, (str, int)) else member.name: member
            for member in item
        }
    return {}


def reading_of(item: Any) -> Reading:
    origin = get_origin(item) or item
    if origin in (typing.Union, types.UnionType):
        readings = {reading_of(unwrap(arg)[0]) for arg in get_args(item) if arg is not type(None)}
        return readings.pop() if len(readings) == 1 else "either"
    if not isinstance(origin, type):
        return "text"
    structured = (
        issubclass(origin, (Mapping, tuple, list, set, frozenset))
        or typing.is_typeddict(origin)
        or dataclasses.is_dataclass(origin)
        or hasattr(origin, "model_fields")
    )
    return "json" if structured else "text"


def describe_type(item: Any, choices: Mapping[str, Any], reading: Reading) -> tuple[str, str]:
    if choices:
        return "|".join(choices), f"one of {', '.join(choices)}"
    if isinstance(item, type) and issubclass(item, PurePath):
        return "PATH", "a path"
    if isinstance(item, type) and item in SIMPLE:
        return SIMPLE[item]
    name = getattr(item, "__name__", None) or inspect.formatannotation(item)
    if reading == "json":
        return "JSON", f"JSON for {name}"
    if get_origin(item) in (typing.Union, types.UnionType):
        parts = [
            describe_type(unwrap(arg)[0], choices_of(arg), reading_of(arg))
            for arg in get_args(item)
        ]
        return "|".join(word for word, _ in parts), " or ".join(text for _, text in parts)
    return ("TEXT", "text") if item is Any else (name.upper(), name)
