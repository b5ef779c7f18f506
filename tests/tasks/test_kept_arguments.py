"""Arguments that go through the ledger: the task gets what it was given, or nothing is enqueued."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel, Field, PrivateAttr, SecretStr

from fsa_cli.exceptions import ArgumentError
from fsa_cli.tasks.arguments import bind
from fsa_cli.tasks.kept_arguments import are_hidden, as_given, as_shown
from fsa_cli.tasks.signature import signature_of


class Color(Enum):
    RED = "red"


class Size(StrEnum):
    LARGE = "large"


class Credentials(BaseModel):
    user: str
    password: SecretStr


class Hidden(BaseModel):
    number: int
    token: str = Field(default="none", exclude=True)


class Animal(BaseModel):
    name: str
    _made: float = PrivateAttr(default_factory=lambda: math.nan)


class Dog(Animal):
    breed: str = "?"


@dataclass
class Point:
    x: int
    made: float = field(default=math.nan, compare=False)


@dataclass
class Login:
    password: SecretStr


class Silent:
    """Says not what it equals, and is read from text by Pydantic."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls(value),
            serialization=core_schema.to_string_ser_schema(),
        )


BERLIN = ZoneInfo("Europe/Berlin")
KEPT: Sequence[tuple[Any, Any]] = (
    (str, "tea"),
    (Any, [1, (2, 3)]),
    (Any, {"a": None, "b": [True]}),
    (float, math.nan),
    (float, 3),
    (bytes, b"\xff\x00"),
    (list[bytes], [b"\xff", b"a"]),
    (date, date(2026, 1, 2)),
    (datetime, datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN)),
    (datetime, datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=3)))),
    (timedelta, timedelta(days=1, microseconds=1)),
    (Decimal, Decimal("1.10")),
    (UUID, UUID(int=7)),
    (Color, Color.RED),
    (str, Size.LARGE),
    (Path, Path("/etc/x")),
    (set[int], {1, 2}),
    (tuple[int, str], (1, "a")),
    (dict[int, str], {1: "a"}),
    (Animal, Animal(name="rex")),
    (Hidden, Hidden(number=1)),
    (Point, Point(1)),
    (list[Dog], [Dog(name="rex", breed="pug")]),
    (Silent, Silent("x")),
    (int | None, None),
)
CHANGED: Sequence[tuple[Any, Any]] = (
    (date | str, date(2026, 1, 2)),
    (Path | str, Path("x")),
    (UUID | str, UUID(int=7)),
    (Color | str, Color.RED),
    (float | Decimal, Decimal("1.10")),
    (Any, datetime(2026, 1, 2, tzinfo=UTC)),
    (Any, object()),
    (dict, {1: "a"}),
    (Hidden, Hidden(number=1, token="tok")),
    (Animal, Dog(name="rex", breed="pug")),
    (Credentials, Credentials(user="u", password=SecretStr("hunter2"))),
    (Login, Login(SecretStr("hunter2"))),
    (dict[str, SecretStr], {"a": SecretStr("hunter2")}),
    (list[Credentials], [Credentials(user="u", password=SecretStr("hunter2"))]),
)


def name_of(value: object) -> str:
    """The same in each process that collects the tests."""
    return str(getattr(value, "__name__", type(value).__name__))


def taking(annotation: Any) -> Any:
    def function(value: Any) -> None: ...

    function.__annotations__["value"] = annotation
    return signature_of(function)


@pytest.mark.parametrize(("annotation", "value"), KEPT, ids=name_of)
def test_what_json_keeps_is_read_back(annotation: Any, value: Any) -> None:
    signature = taking(annotation)

    document = json.loads(json.dumps(as_given(signature, {"value": value})))

    bind(signature, document)


@pytest.mark.parametrize(("annotation", "value"), CHANGED, ids=name_of)
def test_what_would_come_back_as_another_is_refused(annotation: Any, value: Any) -> None:
    with pytest.raises(ArgumentError, match="value cannot be kept as JSON: the task would get a"):
        as_given(taking(annotation), {"value": value})


@pytest.mark.parametrize(
    ("annotation", "value", "shown"),
    [
        (str, "postgresql://u:secret@h/db", "***"),
        (list[str], ["a", "token=abc123"], "***"),
        (SecretStr, SecretStr("hunter2"), "***"),
        (Credentials, Credentials(user="u", password=SecretStr("hunter2")), "***"),
        (bytes, b"\xff", {"base64": "/w=="}),
        (str, "**bold** ***", "**bold** ***"),
        (int, 7, 7),
    ],
    ids=name_of,
)
def test_who_looks_sees_no_secret(annotation: Any, value: Any, shown: object) -> None:
    document = as_shown(taking(annotation), {"value": value})

    assert document == {"value": shown}
    assert are_hidden(document) is (shown == "***")
