"""What is shown on a terminal, in a pipe, as JSON; and that passwords are not."""

import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from urllib.parse import quote

import pexpect
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsa_cli.exceptions import TaskNotFound
from fsa_cli.terminal.folding import fold, side_by_side
from fsa_cli.terminal.json_values import dumps
from fsa_cli.terminal.masking import mask
from fsa_cli.terminal.output import Output
from support.processes import OpenTerminal, Run

ROWS: list[dict[str, object]] = [
    {"name": "a\tb", "count": 1, "when": None, "hidden": 1},
    {"name": "line\nbreak", "count": 20, "when": datetime(2026, 1, 2, 3, 4, tzinfo=UTC)},
]
COLUMNS = {"name": "Name", "count": "Count", "when": "When"}


def test_a_table_in_a_pipe_is_tab_separated_and_never_cut(capsys) -> None:
    Output().table([{"name": "x" * 500, "count": 1}, *ROWS], COLUMNS)

    header, long, *lines = capsys.readouterr().out.splitlines()
    assert header == "Name\tCount\tWhen"
    assert long == "x" * 500 + "\t1\t"
    assert [len(line.split("\t")) for line in lines] == [3, 3]
    assert lines[1] == "line break\t20\t2026-01-02 03:04:00+00:00"


def test_a_table_as_json_has_every_key(capsys) -> None:
    Output(json=True).table(ROWS, COLUMNS)

    first, second = json.loads(capsys.readouterr().out)
    assert first == {"name": "a\tb", "count": 1, "when": None, "hidden": 1}
    assert second["when"] == "2026-01-02T03:04:00Z"


def test_json_says_instants_in_utc_and_the_rest_as_text() -> None:
    class Color(Enum):
        RED = "red"

    east = timezone(timedelta(hours=2))
    value = [
        datetime(2026, 1, 1, 1, tzinfo=east),
        date(2026, 1, 1),
        timedelta(minutes=1),
        Decimal("1.10"),
        Path("/x"),
        Color.RED,
        {1: {2}},
        [float("nan"), float("-inf")],
    ]

    assert json.loads(dumps(value)) == [
        "2025-12-31T23:00:00Z",
        "2026-01-01",
        60.0,
        "1.10",
        "/x",
        "red",
        {"1": [2]},
        ["nan", "-inf"],
    ]


def test_narration_goes_to_stderr_and_is_silent_where_it_was_asked_to_be(capsys) -> None:
    for output in (Output(), Output(quiet=True), Output(json=True)):
        output.say("told")
        output.detail("detailed")
        output.warn("warned")
    Output(verbose=1).detail("detailed")

    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == ["told", *["warning: warned"] * 3, "detailed"]


def test_an_error_has_at_most_eight_lines_and_keeps_its_hint(capsys) -> None:
    error = TaskNotFound("no such task", details=[f"line {i}" for i in range(20)], hint="try x")

    Output().error(error)

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 8
    assert lines[0] == "error: no such task"
    assert lines[-1] == "hint: try x"


def test_an_error_as_json_is_one_object_on_stderr(capsys) -> None:
    Output(json=True).error(TaskNotFound("no such task", hint="try x", details=["there"]))

    shown = capsys.readouterr()
    assert shown.out == ""
    assert json.loads(shown.err) == {
        "error": "task_not_found",
        "message": "no such task",
        "exit_code": 2,
        "details": ["there"],
        "hint": "try x",
    }


PASSWORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="'\""),
    min_size=6,
    max_size=30,
)


@given(PASSWORDS)
def test_a_password_in_a_url_is_never_shown(password: str) -> None:
    for spelled in (quote(password, safe=""), password.replace("/", "").replace(" ", "")):
        for url in (
            f"postgresql+psycopg://me:{spelled}@db.example:5432/shop?sslmode=require",
            f"mysql://:{spelled}@db/shop",
        ):
            shown = mask(f"cannot connect to {url}: refused")
            assert f":{spelled}@" not in shown
            assert ":***@" in shown
            assert "refused" in shown


@given(PASSWORDS)
def test_a_password_in_a_query_string_is_never_shown(password: str) -> None:
    spelled = quote(password, safe="")

    shown = mask(f"postgresql://db/shop?user=me&password={spelled}&sslmode=require")

    assert shown == "postgresql://db/shop?user=me&password=***&sslmode=require"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("password='two words' host=h", "password=*** host=h"),
        ('{"password": "x y", "a": 1}', '{"password": ***, "a": 1}'),
        ("API_KEY=abc", "API_KEY=***"),
        ("http://example.com:8000/a@b", "http://example.com:8000/a@b"),
        ("http://me:pw@example.com/x", "http://me:***@example.com/x"),
        ("pg://u:a/b@c@h/d", "pg://u:***@h/d"),
        ("sqlite:///shop.db", "sqlite:///shop.db"),
        ("password authentication failed", "password authentication failed"),
        ("2026-01-01 12:00:00", "2026-01-01 12:00:00"),
    ],
)
def test_what_is_masked_and_what_is_not(text: str, shown: str) -> None:
    assert mask(text) == shown


def test_a_line_is_folded_between_words_and_never_inside_a_command() -> None:
    path = "/srv/a/path/that/is/longer/than/the/whole/line/of/this/terminal"
    text = f"either pip install 'psycopg[binary]', fsa runs show 729fbde6 or {path} then"
    assert fold(text, 40, first=7, indent=7) == [
        "either",
        "       pip install 'psycopg[binary]',",
        "       fsa runs show 729fbde6 or",
        f"       {path}",
        "       then",
    ]
    assert fold("", 40, first=7) == [""]
    assert side_by_side(["fsa runs", "fsa tasks"], 22) == ["fsa runs     fsa tasks"]
    assert side_by_side(["fsa runs", "fsa tasks"], 21) == ["fsa runs", "fsa tasks"]


def test_errors_are_folded_on_a_terminal_only(
    fsa: Run, terminal: OpenTerminal, tmp_path: Path
) -> None:
    (tmp_path / "main.py").write_text("from fastapi import FastAPI\napp = FastAPI()\n")
    env = {"FSA_DB_URL": f"postgresql+psycopg://me@127.0.0.1:1/{'a' * 30}", "NO_COLOR": "1"}
    shown = terminal("fsa", "db", "show", env=env, columns=80)
    shown.expect(pexpect.EOF)
    lines = str(shown.before).splitlines()
    assert max(map(len, lines)) <= 80
    assert "port 1 failed: Connection refused" in " ".join(line.strip() for line in lines)
    assert any(line.startswith("    ") for line in lines)
    whole = fsa("db", "show", env=env).stderr
    assert 'connection to server at "127.0.0.1", port 1 failed: Connection refused\n' in whole


def test_json_holds_no_escape_of_half_a_character() -> None:
    """jq, PostgreSQL and most others refuse it."""
    text = dumps({"a\ud800": ["\udfff\ud83d", "\U0001f600"]})
    text.encode()
    assert json.loads(text) == {"a\\ud800": ["\\udfff\\ud83d", "\U0001f600"]}
