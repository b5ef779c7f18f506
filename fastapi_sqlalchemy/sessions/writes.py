"""Whether a statement writes: a guess, good for a warning, and a certainty, good for a fence.

The guess calls a statement a read where it looks like one. The certainty calls it a read only where
nothing in it could write: no unknown function, no text that was not understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnClause, TextClause
from sqlalchemy.sql import functions, visitors
from sqlalchemy.sql.functions import Function, FunctionElement

__all__ = ["locks_rows", "looks_like_read", "reads_only", "surely_reads", "surely_reads_only"]

# What looks like SQL in a comment or a literal is none; MySQL runs /*! ... */, MariaDB /*M! ... */.
# Without an end it goes to the text's: to look for one at each quote would take quadratic time.
_NOT_SQL = re.compile(
    r"--[^\n]*+|/\*(?!M?!).*?(?:\*/|\Z)|'(?:[^'\\]|''|\\.)*+(?:'|\\?\Z)"
    r"|\"(?:[^\"]|\"\")*+(?:\"|\Z)|`[^`]*+(?:`|\Z)",
    re.S,
)
_READING = re.compile(
    r"(select|show|set|reset|pragma|explain|values|table|desc|describe|savepoint|release|use|"
    r"lock|unlock|declare|fetch|move|close|deallocate|discard)\b",
    re.I,
)
_SURELY_READING = re.compile(r"(select|show|values|table|desc|describe|with)\b", re.I)
_WRITING = re.compile(
    r"\b(insert|update(?!\s+(of|skip|nowait)\b)|delete|merge|replace\s+into|into|call|do|copy)\b",
    re.I,
)
_FOR_UPDATE = re.compile(r"\bfor\s+(no\s+key\s+)?update\b", re.I)
_LOCKING = re.compile(r"\b(for|lock)\b", re.I)
_CALL = re.compile(r"(?<![\w.$@'])([\w.$@']++)\s*+\(")
_DOT = re.compile(r"(?<!\s)\s*+\.\s*+")
# What one database reads as a literal or a comment, and another does not: a backslash in a literal,
# -- without a space (MySQL), \r (PostgreSQL ends a comment there), # (MySQL's comment), $tag$
# (PostgreSQL), a comment in a comment, and quotes in [brackets] (SQLite).
_AMBIGUOUS = re.compile(
    r"\\|--[^\s-]|\r(?!\n)|\#|\$\w*+\$|/\*(?:(?!\*/).)*?/\*|\[[^\[\]'\"`]*+['\"`]", re.S
)

# Functions that write nothing, and keywords that stand before a parenthesis.
_PURE_NAMES = """
    abs array_agg avg bool_and bool_or cast ceil ceiling char_length coalesce concat count
    cume_dist current_date current_time current_timestamp date date_part date_trunc dense_rank
    exists extract first_value floor greatest group_concat ifnull json_agg json_array
    json_build_object json_extract json_object jsonb_agg lag last_value lead least length
    localtime localtimestamp lower ltrim max min mod now nullif rank replace round row_number
    rtrim strftime string_agg substr substring sum to_char trim trunc unnest upper all and any
    as between by case distinct else end except filter from group having in intersect interval
    is join lateral like limit not numeric on or order over partition select then union using
    values varchar when where with
"""
_PURE = frozenset(_PURE_NAMES.split())


def looks_like_read(statement: Any) -> bool:
    """Whether `statement` looks as if it changed no rows."""
    text = _text_of(statement)
    if text is not None:
        return reads_only(text)
    if isinstance(statement, FunctionElement):
        return True
    if not getattr(_unwrapped(statement), "is_select", False):
        return hasattr(statement, "next_value")  # a Sequence
    return not any(getattr(part, "is_dml", False) for part in visitors.iterate(statement))


def surely_reads(statement: Any) -> bool:
    """Whether nothing in `statement` could change a row."""
    text = _text_of(statement)
    if text is not None:
        return surely_reads_only(text)
    if not getattr(_unwrapped(statement), "is_select", False):
        return isinstance(statement, FunctionElement) and _is_pure(statement)
    for part in visitors.iterate(statement):
        if getattr(part, "is_dml", False):
            return False
        if isinstance(part, FunctionElement) and not _is_pure(part):
            return False
        if isinstance(part, TextClause) and not _only_reads(part.text):
            return False
        if isinstance(part, ColumnClause) and part.is_literal and not _only_reads(part.name):
            return False
    return True


def locks_rows(statement: Any) -> bool:
    """Whether `statement`, which reads, may lock rows: SELECT ... FOR UPDATE and the like."""
    text = _text_of(statement)
    if text is not None:
        return _LOCKING.search(_NOT_SQL.sub("''", text)) is not None
    return any(
        getattr(part, "_for_update_arg", None) is not None
        or (isinstance(part, TextClause) and _LOCKING.search(part.text) is not None)
        or any(_LOCKING.search(text) for text in _added_to(part))
        for part in visitors.iterate(_unwrapped(statement))
    )


def _added_to(part: Any) -> Iterator[str]:
    """What `suffix_with` and `with_statement_hint` add: a way to write FOR UPDATE."""
    for suffix, _ in getattr(part, "_suffixes", ()):
        yield str(suffix)
    for _, hint in getattr(part, "_statement_hints", ()):
        yield str(hint)


def reads_only(sql: str) -> bool:
    """Whether `sql` looks as if it changed no rows."""
    return _reads_only_known(sql) if len(sql) <= _MOST_KNOWN else _reads_only(sql)


def _reads_only(sql: str) -> bool:
    bare = _NOT_SQL.sub("''", sql).lstrip(" \t\r\n('")
    if not _READING.match(bare) and bare[:4].lower() != "with":
        return False
    return not _WRITING.search(_FOR_UPDATE.sub("", bare)) or bare[:3].lower() == "set"


# An app has few texts, and executes each of them often.
_MOST_KNOWN = 4000
_reads_only_known = lru_cache(maxsize=200)(_reads_only)


def surely_reads_only(sql: str) -> bool:
    """Whether nothing in `sql` could change a row."""
    bare = _NOT_SQL.sub("''", sql).strip(" \t\r\n(';")
    return _SURELY_READING.match(bare) is not None and _only_reads(sql.rstrip(" \t\r\n;"))


def _only_reads(sql: str) -> bool:
    """Whether `sql`, a statement or a part of one, is understood and changes no row."""
    pieces: list[str] = []
    end = 0
    for match in _NOT_SQL.finditer(sql):
        pieces += sql[end : match.start()], " " if match[0][0] in "-/" else "''"
        end = match.end()
        if match[0][0] == "`" and not match[0][1:-1].isidentifier():  # no quote but MySQL's
            return False
    bare = "".join((*pieces, sql[end:]))
    return (
        not _AMBIGUOUS.search(sql)
        and ";" not in bare
        and not _WRITING.search(_FOR_UPDATE.sub("", bare))
        and all(match[1].lower() in _PURE for match in _CALL.finditer(_DOT.sub(".", bare)))
    )


def _is_pure(function: FunctionElement[Any]) -> bool:
    if type(function).__module__ == functions.__name__ and not isinstance(function, Function):
        return not isinstance(function, functions.next_value)
    return getattr(function, "name", "").lower() in _PURE


def _unwrapped(statement: Any) -> Any:
    """The statement inside `select(User).from_statement(...)`."""
    while not getattr(statement, "is_select", False) and hasattr(statement, "element"):
        statement = statement.element
    return statement


def _text_of(statement: Any) -> str | None:
    """The text of `text()`, also with `.columns()` or in `from_statement()`."""
    while not isinstance(statement, TextClause):
        if not (getattr(statement, "is_text", False) or hasattr(statement, "_compile_options")):
            return None
        if getattr(statement, "element", None) is None:
            return None
        statement = statement.element
    return str(statement.text)
