"""SQL text as its statements: enough to see what kind each is, and which table it names."""

from __future__ import annotations

import re

__all__ = ["statements"]

_TOKEN = r"""
    (?P<comment> --[^\n]* | /\*.*?(?:\*/|\Z) )
  | (?P<name> "(?:[^"]|"")*+(?:"|\Z) | `[^`]*+(?:`|\Z) )
  | (?P<literal> '(?:[^'{escape}]|''{escaped})*+(?:'|\Z)
                 | (?<![\w$])\$(?P<tag>(?!\d)\w*+)\$.*?(?:\$(?P=tag)\$|\Z) )
  | (?P<end> ; )
"""
_STANDARD = re.compile(_TOKEN.format(escape="", escaped=""), re.X | re.S)
_MYSQL = re.compile(_TOKEN.format(escape=r"\\", escaped=r"|\\."), re.X | re.S)
# Comments that MySQL and MariaDB execute: /*!40101 ... */, /*M! ... */.
_EXECUTED = re.compile(r"/\*M?!\d*(.*?)\*/", re.S)
# Their bodies have statements of their own.
_WITH_BODY = re.compile(r"\s*create\b[^;]*?\b(trigger|function|procedure|event)\b", re.I)


def statements(sql: str, dialect: str = "") -> list[str]:
    """The statements of `sql`, each on one line, without comments and with `''` for literals.

    `dialect` is SQLAlchemy's name of it. What has a body, such as CREATE TRIGGER, is one statement.
    """
    token = _STANDARD
    if dialect in ("mysql", "mariadb"):
        token, sql = _MYSQL, _EXECUTED.sub(r" \1 ", sql)
    marked = token.sub(_mark, sql)
    parts = [marked] if _WITH_BODY.match(marked) else marked.split("\0")
    return [line for part in parts if (line := " ".join(part.replace("\0", ";").split()))]


def _mark(match: re.Match[str]) -> str:
    if match["comment"]:
        return " "
    if match["literal"]:
        return "''"
    return "\0" if match["end"] else match["name"]
