"""Values as JSON can hold them: instants in UTC, the rest as text, secrets masked."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from typing import Any

from fsa_cli.terminal.masking import MAX_TEXT_LENGTH, mask, mask_head
from fsa_cli.terminal.secret_names import is_secret_name
from fsa_cli.terminal.user_code import is_from_outside

__all__ = ["describe", "dumps", "jsonable", "jsonable_within"]

_MAX_DEPTH = 100

_LONGEST_BITS = 14_000

_HALF = re.compile(r"[\ud800-\udfff]")


def dumps(value: object, *, indent: int | None = None) -> str:
    """JSON text: instants in UTC as ISO 8601, what JSON cannot hold as text, passwords masked."""
    text = json.dumps(_encode(value), ensure_ascii=False, indent=indent)
    # Half a character as text that names it: its escape is JSON to Python, not to jq or PostgreSQL.
    return text if text.isascii() else _HALF.sub(lambda half: rf"\\u{ord(half[0]):x}", text)


def _encode(value: object) -> Any:
    match value:
        case int() if not isinstance(value, bool) and value.bit_length() > _LONGEST_BITS:
            return hex(value)  # Python refuses to write so many decimal digits
        case float() if not math.isfinite(value):
            return str(value)
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
            items = list(value)
            return [*map(_encode_behind, [None, *items], items)]
        case _ if is_dataclass(value) and not isinstance(value, type):
            return _encode(asdict(value))
        case _:
            return mask(str(value))


def _encode_behind(before: object, item: object) -> Any:
    """An argument of a command behind its option, `--password`, as in a text."""
    match before, item:
        case str(option), str(argument) if option.startswith("--") and "=" not in option:
            if is_secret_name(option) and not argument.startswith("-"):
                return "***"
    return _encode(item)


def _encode_of_key(key: str, item: object) -> Any:
    return "***" if isinstance(item, str) and is_secret_name(key) else _encode(item)


def jsonable(value: object) -> Any:
    """*value* as JSON can hold it; what it cannot hold as its repr."""
    from pydantic_core import to_jsonable_python  # every command would pay for it

    try:
        return to_jsonable_python(value, fallback=describe)
    except BaseException as exc:  # a cycle, or an object that fails when it is looked at
        if is_from_outside(exc):
            raise
        return describe(value)


def jsonable_within(value: object, length: int = MAX_TEXT_LENGTH) -> Any:
    """*value* as JSON can hold it in about *length* characters; else the beginning of its text.

    What is beyond that length is not looked at, so it takes no time: a task may return anything.
    """
    beginning, room = _beginning(value, length, _MAX_DEPTH)
    held = jsonable(beginning)
    if room > 0:
        text = json.dumps(held, ensure_ascii=False)
        if len(text) <= length:
            return held
    text = held if isinstance(held, str) else json.dumps(held, ensure_ascii=False)
    return mask_head(text, length // 2) + " ... (cut)"


def _beginning(value: object, room: int, depth: int) -> tuple[object, int]:
    """As much of *value* as *room* characters hold, and what is left of them: 0 if it was cut."""
    if isinstance(value, str | bytes | bytearray):
        if len(value) < room:
            return value, room - len(value)
        return mask_head(value, room) if isinstance(value, str) else value[:room], 0
    if depth == 0 or type(value) not in (dict, list, tuple, set, frozenset):
        return value, room - 1
    items: list[Any] = []
    keyed = isinstance(value, dict)
    for each in value.items() if isinstance(value, dict) else value:  # type: ignore[attr-defined]
        if room <= 0:
            break
        if keyed:
            key, left = _beginning(each[0], room, depth - 1)
            item, room = _beginning(each[1], left, depth - 1)
            items.append((key, item))
        else:
            item, room = _beginning(each, room, depth - 1)
            items.append(item)
        room -= 2
    return (dict(items) if keyed else items), max(room, 0)


def describe(value: object) -> str:
    """`repr(value)`, also where that raises."""
    zoneinfo = sys.modules.get("zoneinfo")  # what is not imported has no values
    if zoneinfo is not None and isinstance(value, zoneinfo.ZoneInfo) and value.key:
        return str(value.key)
    try:
        return str.__str__(repr(value))
    except BaseException as exc:  # an ORM object whose session is closed, a number of 5,000 digits
        if is_from_outside(exc):
            raise
        return object.__repr__(value)
