"""SQL text as its statements."""

import pytest

from fastapi_sqlalchemy.sandbox.sql_statements import statements


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("", []),
        (" SELECT\n  1 ;", ["SELECT 1"]),
        ("-- first\nSELECT 1; /* then; */ COMMIT", ["SELECT 1", "COMMIT"]),
        ("SELECT 'a;b', 'it''s'; SELECT 2", ["SELECT '', ''", "SELECT 2"]),
        (r"SELECT 'a\'; COMMIT", ["SELECT ''", "COMMIT"]),
        ('UPDATE "a;b" SET x = 1', ['UPDATE "a;b" SET x = 1']),
        ("DO $$ BEGIN COMMIT; END $$; SELECT 1", ["DO ''", "SELECT 1"]),
        ("DO $a$ $$ ; $$ $a$", ["DO ''"]),
        (
            "CREATE TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM b; END;",
            ["CREATE TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM b; END;"],
        ),
    ],
)
def test_text_is_cut_into_statements(sql: str, found: list[str]) -> None:
    assert statements(sql, "postgresql") == found


def test_mysql_escapes_quotes_with_a_backslash() -> None:
    assert statements(r"SELECT 'it\'s; '; COMMIT", "mysql") == ["SELECT ''", "COMMIT"]
