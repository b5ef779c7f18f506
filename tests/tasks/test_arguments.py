"""Forty signatures, with words that fit them and words that do not."""

from __future__ import annotations

import enum
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NewType
from uuid import UUID

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, Field, SecretStr
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import TypedDict

from fsa_cli import TaskContext
from fsa_cli.exceptions import ArgumentError, TaskDefinitionError
from fsa_cli.tasks.arguments import bind, parse, split
from fsa_cli.tasks.signature import signature_of

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


class Color(enum.Enum):
    RED = "red"
    DARK_BLUE = "dark-blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Point:
    x: int
    y: int = 0


class Filter(BaseModel):
    name: str
    limit: int = 10


class Row(TypedDict):
    name: str


class Pair(NamedTuple):
    a: int
    b: int


UserId = NewType("UserId", int)


class Opaque:
    """Nothing that text could become."""


def nothing() -> None: ...
def integer(user_id: int) -> None: ...
def two(source: str, target: str) -> None: ...
def optional(name: str, greeting: str = "hello") -> None: ...
def keyword(*, since: date) -> None: ...
def maybe(*, since: date | None = None) -> None: ...
def old_optional(since: typing.Optional[date] = None) -> None: ...  # noqa: UP045
def flag(active: bool = True) -> None: ...
def required_flag(active: bool) -> None: ...
def maybe_flag(active: bool | None = None) -> None: ...
def negative_flag(no_cache: bool = False) -> None: ...
def number(ratio: float) -> None: ...
def money(amount: Decimal) -> None: ...
def moment(at: datetime) -> None: ...
def clock(at: time) -> None: ...
def length(wait: timedelta = timedelta(0)) -> None: ...
def identity(key: UUID) -> None: ...
def path(file: Path) -> None: ...
def raw(data: bytes) -> None: ...
def words(names: list[str]) -> None: ...
def numbers_option(ids: list[int] = []) -> None: ...  # noqa: B006
def numbers_set(ids: set[int] = set()) -> None: ...  # noqa: B006
def numbers_tuple(ids: tuple[int, ...] = ()) -> None: ...
def sequence(ids: Sequence[int] = ()) -> None: ...
def middle(first: str, rest: list[str], last: str) -> None: ...
def literal(mode: Literal["fast", "slow"] = "fast") -> None: ...
def literal_number(size: Literal[1, 2]) -> None: ...
def color(color: Color) -> None: ...
def level(level: Level = Level.LOW) -> None: ...
def colors(color: list[Color] = []) -> None: ...  # noqa: B006
def mapping(options: dict[str, int]) -> None: ...
def point(point: Point) -> None: ...
def model(filter: Filter | None = None) -> None: ...  # noqa: A002
def models(filters: list[Filter] = []) -> None: ...  # noqa: B006
def typed_dict(row: Row) -> None: ...
def pair(pair: Pair) -> None: ...
def fixed_tuple(size: tuple[int, int]) -> None: ...
def nested(rows: list[list[int]] = []) -> None: ...  # noqa: B006
def union(key: int | UUID) -> None: ...
def either(value: str | dict[str, int]) -> None: ...
def constrained(limit: Annotated[int, Field(gt=0)] = 5) -> None: ...
def new_type(user_id: UserId) -> None: ...
def untyped(name, limit=10, active=False) -> None: ...  # type: ignore[no-untyped-def]
def anything(value: Any) -> None: ...
def positional_only(a: int, b: int = 2, /, c: int = 3) -> None: ...
def rest(first: int, *others: int) -> None: ...
def more(first: int, **others: int) -> None: ...
def secret(token: SecretStr) -> None: ...
def hidden(name: str, client: Opaque | None = None) -> None: ...
def long_name(max_rows: int = 1) -> None: ...
def injected(name: str, session: Session, context: TaskContext, app: FastAPI) -> None: ...


KEY = "6f1c24a4-9d3a-4b53-8b8e-5c9b1f9c1a11"

GOOD: list[tuple[Callable[..., Any], str, dict[str, Any]]] = [
    (nothing, "", {}),
    (integer, "7", {"user_id": 7}),
    (integer, "-7", {"user_id": -7}),
    (integer, "-- -7", {"user_id": -7}),
    (two, "a b", {"source": "a", "target": "b"}),
    (optional, "ann", {"name": "ann"}),
    (optional, "ann --greeting hi", {"name": "ann", "greeting": "hi"}),
    (optional, "--greeting=hi ann", {"name": "ann", "greeting": "hi"}),
    (optional, "--greeting= ann", {"name": "ann", "greeting": ""}),
    (optional, "--greeting=--hi ann", {"name": "ann", "greeting": "--hi"}),
    (optional, "--greeting -hi ann", {"name": "ann", "greeting": "-hi"}),
    (optional, "-- --greeting", {"name": "--greeting"}),
    (keyword, "--since 2026-11-22", {"since": date(2026, 11, 22)}),
    (maybe, "", {}),
    (maybe, "--since 2026-11-22", {"since": date(2026, 11, 22)}),
    (old_optional, "--since 2026-11-22", {"since": date(2026, 11, 22)}),
    (flag, "", {}),
    (flag, "--active", {"active": True}),
    (flag, "--no-active", {"active": False}),
    (flag, "--active=false", {"active": False}),
    (flag, "--no-active=false", {"active": True}),
    (required_flag, "--no-active", {"active": False}),
    (maybe_flag, "--no-active", {"active": False}),
    (negative_flag, "--no-cache", {"no_cache": True}),
    (negative_flag, "--no-no-cache", {"no_cache": False}),
    (number, "1e3", {"ratio": 1000.0}),
    (number, "-.5", {"ratio": -0.5}),
    (money, "1.10", {"amount": Decimal("1.10")}),
    (moment, "2026-11-22T15:30Z", {"at": datetime(2026, 11, 22, 15, 30, tzinfo=UTC)}),
    (clock, "15:30", {"at": time(15, 30)}),
    (length, "--wait PT90M", {"wait": timedelta(minutes=90)}),
    (identity, KEY, {"key": UUID(KEY)}),
    (path, "a/b.csv", {"file": Path("a/b.csv")}),
    (path, "-", {"file": Path("-")}),
    (path, "@a", {"file": Path("@a")}),
    (raw, "ab", {"data": b"ab"}),
    (words, "a b c", {"names": ["a", "b", "c"]}),
    (numbers_option, "", {}),
    (numbers_option, "--ids 1 --ids 2", {"ids": [1, 2]}),
    (numbers_set, "--ids 1 --ids 1", {"ids": {1}}),
    (numbers_tuple, "--ids 1 --ids=2", {"ids": (1, 2)}),
    (sequence, "--ids 3", {"ids": [3]}),
    (middle, "a b c d", {"first": "a", "rest": ["b", "c"], "last": "d"}),
    (literal, "--mode slow", {"mode": "slow"}),
    (literal_number, "2", {"size": 2}),
    (color, "dark-blue", {"color": Color.DARK_BLUE}),
    (level, "--level 2", {"level": Level.HIGH}),
    (colors, "--color red --color red", {"color": [Color.RED, Color.RED]}),
    (mapping, '{"a":1}', {"options": {"a": 1}}),
    (point, '{"x":1}', {"point": Point(1, 0)}),
    (model, '--filter {"name":"a"}', {"filter": Filter(name="a")}),
    (models, '--filters {"name":"a"}', {"filters": [Filter(name="a")]}),
    (typed_dict, '{"name":"a"}', {"row": {"name": "a"}}),
    (pair, "[1,2]", {"pair": Pair(1, 2)}),
    (fixed_tuple, "[3,4]", {"size": (3, 4)}),
    (nested, "--rows [1,2] --rows [3]", {"rows": [[1, 2], [3]]}),
    (union, "5", {"key": 5}),
    (union, KEY, {"key": UUID(KEY)}),
    (either, "a", {"value": "a"}),
    (either, '{"a":1}', {"value": {"a": 1}}),
    (constrained, "--limit 1", {"limit": 1}),
    (new_type, "3", {"user_id": 3}),
    (untyped, "ann --limit 3 --active", {"name": "ann", "limit": 3, "active": True}),
    (anything, "5", {"value": "5"}),
    (positional_only, "1 --b 5 --c 4", {"a": 1, "b": 5, "c": 4}),
    (rest, "1", {"first": 1}),
    (rest, "1 2 3", {"first": 1, "others": [2, 3]}),
    (more, "1", {"first": 1}),
    (hidden, "ann", {"name": "ann"}),
    (long_name, "--max-rows 2", {"max_rows": 2}),
    (long_name, "--max_rows 2", {"max_rows": 2}),
    (injected, "ann", {"name": "ann"}),
]

BAD: list[tuple[Callable[..., Any], str, str]] = [
    (nothing, "x", 'unexpected argument "x": the task takes none'),
    (nothing, "--x", "no such option: --x"),
    (nothing, "-x", "no such option: -x"),
    (integer, "", "missing USER_ID (a whole number)"),
    (integer, "seven", 'USER_ID "seven": expected a whole number'),
    (integer, "7.5", 'USER_ID "7.5": expected a whole number'),
    (integer, "7 8", 'unexpected argument "8": the task takes USER_ID'),
    (integer, "--user-id 7", "--user-id is no option: USER_ID is an argument"),
    (two, "a", "missing TARGET (text)"),
    (two, "", "missing SOURCE (text), TARGET (text)"),
    (optional, "ann --greting hi", "no such option: --greting"),
    (optional, "ann --greeting", "--greeting needs a value: text"),
    (optional, "ann --greeting --x", "--greeting needs a value: text"),
    (optional, "ann --greeting a --greeting b", "--greeting was given twice"),
    (keyword, "", "missing --since (a date like 2026-11-22)"),
    (keyword, "--since yesterday", '--since "yesterday": expected a date like 2026-11-22'),
    (maybe, "--since 2026-13-01", '--since "2026-13-01": expected a date like 2026-11-22'),
    (flag, "--active=perhaps", '--active "perhaps": expected true or false'),
    (flag, "--active --no-active", "--no-active: --active was given before"),
    (flag, "--active true", 'unexpected argument "true": the task takes none'),
    (required_flag, "", "missing --active (true or false)"),
    (number, "much", 'RATIO "much": expected a number'),
    (money, "1,10", 'AMOUNT "1,10": expected a decimal number'),
    (moment, "soon", 'AT "soon": expected a date and time like 2026-11-22T15:30'),
    (clock, "25:00", 'AT "25:00": expected a time like 15:30'),
    (length, "--wait long", '--wait "long": expected a duration like 01:30:00 or PT90M'),
    (identity, "6f1c", 'KEY "6f1c": expected a UUID'),
    (words, "", "missing NAMES (text)"),
    (numbers_option, "--ids 1 --ids two", '--ids "two": expected a whole number'),
    (middle, "a b", "missing REST (text)"),
    (literal, "--mode fsat", '--mode "fsat": expected one of fast, slow'),
    (literal_number, "3", 'SIZE "3": expected one of 1, 2'),
    (color, "RED", 'COLOR "RED": expected one of red, dark-blue'),
    (level, "--level 3", '--level "3": expected one of 1, 2'),
    (mapping, "a=1", 'OPTIONS "a=1": not JSON: Expecting value: line 1 column 1 (char 0)'),
    (mapping, '{"a":"b"}', 'OPTIONS "{"a":"b"}": a: should be a valid integer'),
    (point, '{"y":1}', 'POINT "{"y":1}": x: field required'),
    (model, '--filter {"limit":"x"}', '--filter "{"limit":"x"}": name: field required'),
    (models, "--filters {}", '--filters "{}": name: field required'),
    (fixed_tuple, "[1]", 'SIZE "[1]": 1: field required'),
    (union, "x", 'KEY "x": expected a whole number or a UUID'),
    (constrained, "--limit 0", '--limit "0": should be greater than 0'),
    (constrained, "--limit x", '--limit "x": expected a whole number'),
    (untyped, "ann --limit x", '--limit "x": expected a whole number'),
    (rest, "1 x", 'OTHERS "x": expected a whole number'),
    (more, "1 --x 2", "no such option: --x"),
    (hidden, "ann --client x", "no such option: --client"),
    (injected, "ann --session x", "no such option: --session"),
]


def no_stdin() -> bytes:
    raise AssertionError("standard input was read")


@pytest.mark.parametrize(
    ("function", "line", "expected"), GOOD, ids=[f"{f.__name__} {w}" for f, w, _ in GOOD]
)
def test_words_become_typed_values(
    function: Callable[..., Any], line: str, expected: dict[str, Any]
) -> None:
    values = parse(signature_of(function), line.split(), no_stdin)

    assert values == expected
    assert {name: type(value) for name, value in values.items()} == {
        name: type(value) for name, value in expected.items()
    }


@pytest.mark.parametrize(
    ("function", "line", "message"), BAD, ids=[f"{f.__name__} {w}" for f, w, _ in BAD]
)
def test_a_wrong_word_is_named_with_what_was_expected(
    function: Callable[..., Any], line: str, message: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse(signature_of(function), line.split(), no_stdin)

    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2


def test_forty_signatures_are_shown() -> None:
    assert len({function for function, _, _ in GOOD}) >= 40


@pytest.mark.parametrize(
    ("function", "line", "hint"),
    [
        (optional, "a --greting x", "did you mean --greeting?"),
        (literal, "--mode fsat", "did you mean fast?"),
        (integer, "--user-id 1", "write its value alone: USER_ID"),
        (words, "--- x", "a value that begins with a dash comes after --, or as --option=VALUE"),
    ],
)
def test_a_hint_says_what_to_write(function: Callable[..., Any], line: str, hint: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse(signature_of(function), line.split(), no_stdin)

    assert caught.value.hint == hint


def test_a_secret_is_not_repeated_in_an_error() -> None:
    def task(token: Annotated[SecretStr, Field(min_length=20)]) -> None: ...

    task.__annotations__["token"] = Annotated[SecretStr, Field(min_length=20)]
    with pytest.raises(ArgumentError) as caught:
        parse(signature_of(task), ["hunter2"], no_stdin)

    assert "hunter2" not in caught.value.message


def test_a_long_value_is_cut_in_an_error() -> None:
    with pytest.raises(ArgumentError) as caught:
        parse(signature_of(integer), ["x" * 500], no_stdin)

    assert len(caught.value.message) < 120


def test_at_reads_a_value_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "options.json"
    file.write_text('{"a": 1}\n')

    assert parse(signature_of(mapping), [f"@{file}"]) == {"options": {"a": 1}}


def test_a_file_ends_with_its_text_not_with_a_newline(tmp_path: Path) -> None:
    file = tmp_path / "name"
    file.write_text("ann\n")

    assert parse(signature_of(optional), [f"@{file}"]) == {"name": "ann"}


def test_a_list_reads_one_value_per_line(tmp_path: Path) -> None:
    file = tmp_path / "ids"
    file.write_text("1\n\n2\n")

    assert parse(signature_of(numbers_option), [f"--ids=@{file}", "--ids=3"]) == {"ids": [1, 2, 3]}


def test_bytes_are_read_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"\xff\x00\n")

    assert parse(signature_of(raw), [f"@{file}"]) == {"data": b"\xff\x00\n"}


def test_a_doubled_at_is_an_at() -> None:
    assert parse(signature_of(optional), ["@@home"]) == {"name": "@home"}


def test_a_dash_reads_standard_input() -> None:
    assert parse(signature_of(mapping), ["-"], lambda: b'{"a": 2}') == {"options": {"a": 2}}


def test_standard_input_is_read_once() -> None:
    with pytest.raises(ArgumentError, match="already read for SOURCE"):
        parse(signature_of(two), ["-", "-"], lambda: b"x")


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"cannot read .*/none: No such file"):
        parse(signature_of(optional), [f"@{tmp_path}/none"])


def test_a_file_that_is_not_text_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"\xff")

    with pytest.raises(ArgumentError, match="not UTF-8"):
        parse(signature_of(optional), [f"@{tmp_path}/data"])


def test_an_annotation_that_is_only_imported_for_type_checking_is_injected() -> None:
    signature = signature_of(injected)

    assert dict(signature.injected) == {"session": "session", "context": "context", "app": "app"}
    assert [parameter.name for parameter in signature.parameters] == ["name"]


def test_an_async_session_is_for_async_tasks() -> None:
    async def good(session: AsyncSession) -> None: ...
    def bad(session: AsyncSession) -> None: ...

    assert dict(signature_of(good).injected) == {"session": "async_session"}
    with pytest.raises(TaskDefinitionError, match="'session' is an AsyncSession"):
        signature_of(bad)


def test_an_annotation_that_cannot_be_resolved_names_the_parameter() -> None:
    def task(user: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(TaskDefinitionError, match=r"task: parameter 'user' is annotated 'Missing'"):
        signature_of(task)


def test_a_required_type_that_text_cannot_become_is_refused() -> None:
    def task(client: Opaque) -> None: ...

    with pytest.raises(TaskDefinitionError, match="'client' has a type that no text can become"):
        signature_of(task)


@pytest.mark.parametrize(
    ("function", "usage"),
    [
        (nothing, ""),
        (optional, "NAME [--greeting TEXT]"),
        (flag, "[--active/--no-active]"),
        (keyword, "--since DATE"),
        (words, "NAMES..."),
        (numbers_option, "[--ids INTEGER]..."),
        (literal, "[--mode fast|slow]"),
        (model, "[--filter JSON]"),
        (rest, "FIRST [OTHERS...]"),
        (union, "KEY"),
        (old_optional, "[--since DATE]"),
    ],
)
def test_the_usage_line_shows_what_a_task_takes(function: Callable[..., Any], usage: str) -> None:
    assert signature_of(function).usage == usage


@pytest.mark.parametrize(
    ("function", "line", "call"),
    [
        (positional_only, "1 --c 4", ([1, 2], {"c": 4})),
        (rest, "1 2 3", ([1, 2, 3], {})),
        (optional, "ann --greeting hi", ([], {"name": "ann", "greeting": "hi"})),
    ],
)
def test_values_are_passed_as_the_function_takes_them(
    function: Callable[..., Any], line: str, call: tuple[list[Any], dict[str, Any]]
) -> None:
    signature = signature_of(function)

    assert signature.call(parse(signature, line.split())) == call


def test_help_comes_from_annotated_and_from_the_docstring() -> None:
    def task(a: int, b: int = 1, c: int = 2) -> None:
        """Do it.

        Args:
            a: The first,
                on two lines.
            b (int): The second.

        Returns:
            c: Not a parameter.
        """

    task.__annotations__["c"] = Annotated[int, Field(description="The third.")]
    texts = {parameter.name: parameter.help for parameter in signature_of(task).parameters}

    assert texts == {"a": "The first, on two lines.", "b": "The second.", "c": "The third."}


def test_help_comes_from_sphinx_docstrings_too() -> None:
    def task(a: int, b: int) -> None:
        """Do it.

        :param a: The first.
        :param int b: The second,
            on two lines.
        :returns: nothing
        """

    texts = {parameter.name: parameter.help for parameter in signature_of(task).parameters}

    assert texts == {"a": "The first.", "b": "The second, on two lines."}


FLAGS = {"--json": False, "-q": False, "--app": True, "--timeout": True}


@pytest.mark.parametrize(
    ("function", "line", "ours", "theirs"),
    [
        (optional, "ann --json", "--json", "ann"),
        (optional, "--timeout 5 ann -q", "--timeout 5 -q", "ann"),
        (optional, "--timeout=5 ann", "--timeout=5", "ann"),
        (optional, "ann -- --json", "", "ann -- --json"),
        (optional, "-- -x --greeting -q", "", "--greeting -q -- -x"),
        (optional, "--json -- --greeting", "--json", "--greeting"),
        (optional, "--json -- -- --greeting", "--json", "-- --greeting"),
        (optional, "--greeting -q ann", "", "--greeting -q ann"),
        (optional, "--greeting --json ann", "--json", "--greeting ann"),
        (numbers_option, "--app a:b --ids 1", "--app a:b", "--ids 1"),
    ],
)
def test_fsas_flags_after_the_name_are_fsas(
    function: Callable[..., Any], line: str, ours: str, theirs: str
) -> None:
    assert split(signature_of(function), line.split(), FLAGS) == (ours.split(), theirs.split())


def test_a_flag_that_the_task_has_too_is_the_tasks() -> None:
    def task(*, json: str, timeout: int = 1) -> None: ...

    words = ["--json", "x", "--timeout", "3", "-q"]

    assert split(signature_of(task), words, FLAGS) == (["-q"], words[:4])


def test_json_gives_values_by_name_and_words_go_before_it() -> None:
    signature = signature_of(optional)

    assert parse(signature, [], args_json='{"name": "ann"}') == {"name": "ann"}
    given = '{"name": "ann", "greeting": "hi"}'
    assert parse(signature, ["bob"], args_json=given) == {"name": "bob", "greeting": "hi"}
    since = parse(signature_of(keyword), [], args_json='{"since": "2026-11-22"}')
    assert since == {"since": date(2026, 11, 22)}
    assert parse(signature_of(mapping), [], lambda: b'{"options": {"a": 1}}', args_json="-") == {
        "options": {"a": 1}
    }


@pytest.mark.parametrize(
    ("function", "args_json", "message"),
    [
        (optional, "{", '--args-json "{": not JSON: '),
        (optional, "[1]", '--args-json "[1]": expected an object like {"name": "value"}'),
        (optional, '{"nam": "x"}', "the task has no parameter 'nam'"),
        (optional, "{}", "missing NAME (text)"),
        (keyword, '{"since": "soon"}', '--args-json since "soon": expected a date like 2026'),
        (integer, '{"user_id": [1]}', '--args-json user_id "[1]": expected a whole number'),
        (optional, "@none", '--args-json "@none": cannot read none: No such file'),
    ],
)
def test_wrong_json_is_named_with_what_was_expected(
    function: Callable[..., Any], args_json: str, message: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse(signature_of(function), [], no_stdin, args_json=args_json)

    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("function", "line", "values"), GOOD, ids=[f"{f.__name__} {w}" for f, w, _ in GOOD]
)
def test_typed_values_reach_the_function(
    function: Callable[..., Any], line: str, values: dict[str, Any]
) -> None:
    """From the words to the call: the function is called as its signature wants it."""
    signature = signature_of(function)
    positional, named = signature.call(parse(signature, line.split(), no_stdin))

    bound = inspect.signature(function).bind_partial(*positional, **named)

    received = {name: bound.arguments[name] for name in values}
    assert received == values | {n: tuple(values[n]) for n in {"others"} & values.keys()}


def test_text_with_a_secrets_name_is_not_repeated_either() -> None:
    def task(password: Annotated[str, Field(min_length=20)]) -> None: ...

    task.__annotations__["password"] = Annotated[str, Field(min_length=20)]
    with pytest.raises(ArgumentError) as caught:
        parse(signature_of(task), ["hunter2"], no_stdin)

    assert caught.value.message == (
        "PASSWORD (a secret): string should have at least 20 characters"
    )


def test_values_by_name_are_checked_as_words_are() -> None:
    signature = signature_of(keyword)

    assert bind(signature, {"since": "2026-11-22"}) == {"since": date(2026, 11, 22)}
    assert bind(signature, {"since": date(2026, 11, 22)}) == {"since": date(2026, 11, 22)}
    with pytest.raises(ArgumentError, match="missing since"):
        bind(signature, {})
    with pytest.raises(ArgumentError, match="no parameter 'sinc'") as caught:
        bind(signature, {"sinc": 1})
    assert caught.value.hint == "did you mean since?"
    with pytest.raises(ArgumentError, match="since \"'x'\": expected a date"):
        bind(signature, {"since": "x"})
