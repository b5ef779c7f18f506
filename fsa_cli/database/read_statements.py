"""Whether a process that only reads may send a statement: read off its words, in doubt not.

The database itself refuses to write in a read-only transaction. What is refused here is what would
lead out of that transaction, or around it: several statements in one text (`COMMIT; BEGIN READ
WRITE; ...`), a compound one (`BEGIN NOT ATOMIC ...`), one that ends the transaction by itself, and
one that writes elsewhere (`INTO OUTFILE`, `COPY ... TO`, `SET GLOBAL`).

How a server reads a backslash in quotes is a setting of its session: a text is read in each way.
"""

from __future__ import annotations

import re

from fsa_cli.exceptions import StatementFailed

__all__ = ["check_reads"]

_HINT = "fsa db shell can write"

_READING = {"select", "with", "values", "table", "show", "explain"}
_SAVEPOINTS = {"savepoint", "release"}
# In a read-only transaction each of these is the server's own error, in its own words.
_REFUSED_BY_SERVER = {"insert", "update", "delete"}
_ALLOWED = {
    "postgresql": _READING
    | _SAVEPOINTS
    | _REFUSED_BY_SERVER
    | {"declare", "fetch", "move", "close", "merge", "create", "alter", "drop", "truncate"},
    "mysql": _READING | _SAVEPOINTS | _REFUSED_BY_SERVER | {"desc", "describe", "replace", "use"},
}
_SETTINGS = r"(?:time_?zone|statement_timeout|lock_timeout|search_path|role|datestyle|sql_mode)"
# What a policy of row level security reads, which an app's listeners set in each transaction: a
# setting with a dot is no server's own. `readonly` has `fsa.ro`.
_CUSTOM = r"(?!fsa\.)[^\W\d][\w$]*+\.[\w$.]++ ?(?:=|to )"
# The words of a statement, after its comments and with `''` for what is quoted.
_ALLOWED_FORMS = {
    "postgresql": re.compile(
        rf"rollback (?:work |transaction )?to |start transaction read only\Z"
        rf"|set (?:local |session )?(?:{_SETTINGS}\b|time zone\b|{_CUSTOM})"
        r"|set transaction (?:isolation level|read only|snapshot)\b[^,]*+\Z"
    ),
    "mysql": re.compile(
        rf"rollback (?:work )?to |start transaction read only\Z"
        r"|(?:create|create or replace|alter|drop|truncate|rename) (?:table|index)\b"
        rf"|set (?:session )?{_SETTINGS} ?(?:=|:=)[^,@]*+\Z"
        r"|set @[\w$.]++ ?(?:=|:=)[^,@]*+\Z"
        r"|set (?:session )?transaction (?:isolation level|read only)\b[^,]*+\Z"
    ),
}

# Also where no blank is before it, as in `select (1)into`, and as MySQL takes it in `1.5into`.
_INTO = re.compile(r"(?<![^\W\d])into\b")
# In others (gbk, sjis) a character can end in the byte of a backslash, and hide it.
_NAMES = re.compile(
    r"\s*set\s+names\s+(['\"]?)(?:utf-?8\w*|unicode|latin-?1|sql_ascii|ascii|binary|default)\1"
    r"(?:\s+collate\s+(['\"]?)\w+\2)?[\s;]*",
    re.IGNORECASE,
)

# A name holds `$` and whatever is not ASCII, and the tag of a text in dollars holds that too. What
# follows `e'...'` on another line goes on with its backslashes.
_POSTGRESQL = r"""
    (?P<skip> --[^\n\r]*+ | /\*(?:(?!/\*|\*/).)*+\*/ )
  | (?P<doubt> /\*|\*/|(?<![\w$\x80-\U0010ffff])[eE]'
                       (?!(?:[^'\\]|''|\\.)*+'(?!(?:\s|--[^\n\r]*+)*+')) )
  | (?P<quoted> (?<![\w$\x80-\U0010ffff])[eE]'(?:[^'\\]|''|\\.)*+'
              | '(?:[^'{single}]|''{single_escape})*+'
              | "(?:[^"]|"")*+"
              | (?<![\w$\x80-\U0010ffff])\$(?P<tag>
                (?:[A-Za-z_\x80-\U0010ffff][\w\x80-\U0010ffff]*+)?)\$.*?\$(?P=tag)\$ )
"""
_MYSQL = r"""
    (?P<skip> (?:--(?=[\0-\x20\x7f]|\Z)|\#)[^\n]*+ | /\*(?!M?!).*?\*/ )
  | (?P<doubt> /\*.*+|\*/|--(?![!-~]) )
  | (?P<quoted> '(?:[^'{single}]|''{single_escape})*+'
              | "(?:[^"{double}]|""{double_escape})*+" | `[^`]*+` )
"""
# A backslash in each kind of quotes, which a setting of the session decides.
_BACKSLASHES = (("", ""), (r"\\", r"|\\."))
_WAYS = [
    {"single": single, "single_escape": in_single, "double": double, "double_escape": in_double}
    for single, in_single in _BACKSLASHES
    for double, in_double in _BACKSLASHES
]
_LEXERS = {
    name: [
        re.compile(each, re.VERBOSE | re.DOTALL)
        for each in dict.fromkeys(text.format(**way) for way in _WAYS)
    ]
    for name, text in (("postgresql", _POSTGRESQL), ("mysql", _MYSQL))
}


def check_reads(sql: str, dialect: str) -> None:
    """Do nothing if *sql* is one statement that leaves a read-only transaction as it is.

    Args:
        dialect: `postgresql`, `mysql` or `mariadb`.

    Raises:
        StatementFailed: It is not, or that cannot be told.
    """
    if _NAMES.fullmatch(sql):
        return
    family = "mysql" if dialect == "mariadb" else dialect
    for lexer in _LEXERS[family]:
        words = _words(lexer.sub(_plain, sql))
        if ";" in words:
            raise StatementFailed("one statement at a time", hint=_HINT)
        if any(sign in words for sign in ("'", '"', "`")):
            raise StatementFailed(
                "the statement has a quote or a comment that does not end, or a comment that is "
                "executed (/*! ... */): fsa cannot tell that it only reads",
                hint=_HINT,
            )
        _check_kind(words, family)


def _check_kind(words: str, family: str) -> None:
    kind = words.lstrip("( ").partition(" ")[0].partition("(")[0]
    if kind not in _ALLOWED[family] and not _ALLOWED_FORMS[family].match(words):
        raise StatementFailed(
            f"{kind.upper() or 'an empty text'} is no statement that only reads", hint=_HINT
        )
    if family == "mysql" and kind not in _REFUSED_BY_SERVER and _INTO.search(words):
        raise StatementFailed("INTO writes a file or a variable: read-only", hint=_HINT)


def _words(sql: str) -> str:
    return " ".join(sql.lower().split()).rstrip("; ").lstrip()


def _plain(match: re.Match[str]) -> str:
    if match["skip"]:
        return " "
    return "'" if match["doubt"] else " q "
