"""Values as JSON can hold them: instants in UTC, the rest as text, secrets masked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from typing import Any

from fsa_cli.terminal.masking import mask
from fsa_cli.terminal.secret_names import is_secret_name

__all__ = ["dumps", "jsonable"]


def dumps(value: object, *, indent: int | None = None) -> str:
    """JSON text: instants in UTC as ISO 8601, what JSON cannot hold as text, passwords masked."""
    return json.dumps(_encode(value), ensure_ascii=False, indent=indent)


def _encode(value: object) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case Enum():
            return _encode(value.value)
        case str():
            return mask(value)
        case datetime():
            utc = value.astimezone(UTC) if value.tzinfo else value
            return utc.isoformat().replace("+00:00", "Z")
        case date():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Mapping():
            return {str(key): _encode_of_key(str(key), item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_encode(item) for item in value]
        case _ if is_dataclass(value) and not isinstance(value, type):
            return _encode(asdict(value))
        case _:
            return mask(str(value))


def _encode_of_key(key: str, item: object) -> Any:
    is_secret = isinstance(item, str) and is_secret_name(key)
    return "***" if is_secret else _encode(item)


def jsonable(value: object) -> Any:
    """*value* as JSON can hold it; what it cannot hold as its repr."""
    from pydantic_core import to_jsonable_python  # every command would pay for it

    try:
        return to_jsonable_python(value, fallback=_repr)
    except Exception:  # a cycle, or an object that fails when it is looked at
        return _repr(value)


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # an ORM object whose session is closed
        return object.__repr__(value)
