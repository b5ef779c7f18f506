"""Arguments as the ledger keeps them: as JSON, for who gets them again, or for who looks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any

from fsa_cli.exceptions import ArgumentError
from fsa_cli.tasks.arguments import bind, encoded
from fsa_cli.tasks.signature import Signature
from fsa_cli.terminal.json_values import describe, jsonable
from fsa_cli.terminal.masking import mask

__all__ = ["are_hidden", "as_given", "as_shown"]

HIDDEN = "***"
#: What Pydantic writes in place of a SecretStr.
_SECRET = "**********"


def as_given(signature: Signature, values: Mapping[str, Any]) -> Any:
    """As JSON that `bind` reads as the values that the task would have got here.

    Raises:
        ArgumentError: One is none of the task's, or comes back as another.
    """
    bound = bind(signature, values)
    document = jsonable(encoded(signature, values))
    if not isinstance(document, dict):
        return document
    again = bind(signature, document)
    for name, value in bound.items():
        if not _alike(value, again[name]):
            kind, other = type(value).__name__, type(again[name]).__name__
            raise ArgumentError(
                f"{name} cannot be kept as JSON: the task would get "
                + ("another value" if kind == other else f"a {other} for the {kind}"),
                hint="annotate it as what it is, without what JSON leaves out (a secret, exclude=)",
            )
    return document


def as_shown(signature: Signature, values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON for who looks: `***` in place of each value that is a secret, or holds one."""
    secret = signature.secrets
    document = {name: jsonable(value) for name, value in encoded(signature, values).items()}
    return {
        name: HIDDEN if name in secret or _holds_secret(value) else value
        for name, value in document.items()
    }


def are_hidden(values: Mapping[str, Any]) -> bool:
    """Whether one of them is there for who looks alone."""
    return any(value == HIDDEN for value in values.values())


def _holds_secret(value: object) -> bool:
    match value:
        case str():
            return value == _SECRET or mask(value) != value
        case list():
            return any(map(_holds_secret, value))
        case dict():
            return any(map(_holds_secret, value.values()))
    return False


def _alike(one: Any, other: Any) -> bool:
    """Whether a value that was read back from JSON is the one that was written.

    What does not say what it equals counts by its type. JSON has no tuples and no zones: a list is
    as good, and the same instant.
    """
    match one:
        case float() if math.isnan(one):
            return isinstance(other, float) and math.isnan(other)
        case str() | bytes() | bool() | int():
            return bool(one == other)
        case datetime() if one.tzinfo is not None and isinstance(other, datetime):
            return other.tzinfo is not None and one.timestamp() == other.timestamp()
        case Mapping() if isinstance(other, Mapping):
            return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
        case Sequence() if isinstance(other, Sequence) and not isinstance(other, str | bytes):
            return len(one) == len(other) and all(map(_alike, one, other))
        case Set() if isinstance(other, Set):
            return len(one) == len(other) and (one == other or not _says_equal(next(iter(one))))
    if type(one) is not type(other):
        return _is_equal(one, other)
    if (names := _field_names(one)) is not None:
        return all(_alike(getattr(one, name), getattr(other, name)) for name in names)
    return not _says_equal(one) or _is_equal(one, other)


def _field_names(value: Any) -> list[str] | None:
    """Of a model or a dataclass: a private attribute, or a time stamp of its own, may differ."""
    if (model := getattr(type(value), "model_fields", None)) is not None:
        return list(model)
    if is_dataclass(value):
        return [field.name for field in fields(value) if field.init and field.compare]
    return None


def _says_equal(value: object) -> bool:
    return type(value).__eq__ is not object.__eq__


def _is_equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # an array's
        return describe(one) == describe(other)
