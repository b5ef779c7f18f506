"""The changes of the statements on a connection: rows by table, and the schema.

The numbers are the database's own, one per statement, without the changes of triggers and of
ON DELETE CASCADE. A rollback to a savepoint takes back the changes after it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, event

from fastapi_sqlalchemy.sandbox.sql_statements import statements
from fsa_cli.terminal.masking import mask_within

__all__ = ["Kind", "RowChanges", "StatementChange", "statement_changes"]

Kind = Literal["inserted", "updated", "deleted", "inserted or updated", "schema", "uncounted"]

_SHOWN = 72
_NAME = r"""(?: "(?:[^"]|"")+" | `[^`]+` | \[[^\]]+\] | [\w$]+ )"""
_ROWS = re.compile(
    rf"""
    (?: (?P<inserted> (?: insert (?:\s+ (?:or\s+\w+|ignore|low_priority|high_priority) )* \s+into
                      | replace \s+ into
                      | copy ) )
      | (?P<updated> update (?:\s+ (?:or\s+\w+|only|ignore|low_priority) )* )
      | (?P<deleted> delete (?:\s+ (?:quick|ignore|low_priority) )* \s+from (?:\s+only)? )
    )
    \s+ (?P<table> {_NAME} (?:\s*\.\s*{_NAME})* )
    """,
    re.I | re.X,
)
_UPSERT = re.compile(
    r"\A(?:insert\s+or\s+replace|replace)\b|\A(?:(?!\bon\s+conflict\b).)*+.*\bdo\s+update\b", re.I
)
_MYSQL_UPSERT = re.compile(r"\bon\s+duplicate\s+key\s+update\b|^replace\b", re.I)
_SCHEMA = re.compile(
    r"(create|alter|drop|rename|comment|grant|revoke|reindex|refresh|import)\b", re.I
)
_UNCOUNTED = re.compile(
    r"(insert|update|delete|replace|merge|copy|truncate|call|do|execute|load)\b", re.I
)
_IN_CTE = re.compile(r"\(\s*((?:insert|update|delete|merge)\b[^()]*)", re.I)
_WORD = re.compile(r"""[()]|"(?:[^"]|"")*"|`[^`]*`|\w+""")
_MAIN = {"select", "insert", "update", "delete", "merge", "values", "replace"}
_SAVEPOINT = re.compile(
    r"(?:(?P<begin>savepoint)|(?P<release>release(?:\s+savepoint)?)"
    r"|(?P<undo>rollback(?:\s+(?:work|transaction))?\s+to(?:\s+savepoint)?))\s+(?P<name>\S+)",
    re.I,
)


class StatementChange(NamedTuple):
    """The change of a statement: a kind, and the table, or the statement itself."""

    kind: Kind
    what: str


def statement_changes(sql: str, dialect: str = "") -> list[StatementChange]:
    """The changes of *sql*, by its keywords; empty if it only reads. Good for a report."""
    found: list[StatementChange] = []
    parts = statements(sql, dialect)
    for part in parts:
        main = part
        if part[:4].lower() == "with":
            found += [StatementChange("uncounted", _short(cte)) for cte in _IN_CTE.findall(part)]
            main = _after_ctes(part)
        effect = _statement_change(main, dialect)
        if effect is not None:
            # The cursor's count is of one statement.
            alone = len(parts) == 1 or effect.kind == "schema"
            found.append(effect if alone else StatementChange("uncounted", _short(main)))
    return found


def _statement_change(statement: str, dialect: str) -> StatementChange | None:
    if _SCHEMA.match(statement):
        return StatementChange("schema", _short(statement))
    rows = _ROWS.match(statement)
    if rows is None or (dialect in ("mysql", "mariadb") and _MYSQL_UPSERT.search(statement)):
        return (
            StatementChange("uncounted", _short(statement)) if _UNCOUNTED.match(statement) else None
        )
    table = re.sub(r'["`\[\]\s]', "", rows["table"])
    if rows["updated"]:
        return StatementChange("updated", table)
    if rows["deleted"]:
        return StatementChange("deleted", table)
    if rows["inserted"].lower() == "copy" and not re.search(r"\bfrom\b", statement, re.I):
        return None
    return StatementChange(
        "inserted or updated" if _UPSERT.search(statement) else "inserted", table
    )


def _after_ctes(statement: str) -> str:
    depth = 0
    for match in _WORD.finditer(statement):
        word = match[0].lower()
        depth += (word == "(") - (word == ")")
        if depth == 0 and word in _MAIN:
            return statement[match.start() :]
    return statement


def _short(statement: str) -> str:
    return mask_within(statement, _SHOWN)


@dataclass
class _Frame:
    """The changes since a savepoint."""

    savepoint: str = ""
    rows: Counter[tuple[Kind, str]] = field(default_factory=Counter)
    said: list[StatementChange] = field(default_factory=list)

    def clear(self) -> None:
        self.rows.clear()
        self.said.clear()


class RowChanges:
    """The changes on one connection since this object watches it."""

    def __init__(self, connection: Connection, database: str) -> None:
        self.connection = connection
        self.database = database
        self._frames = [_Frame()]
        # SQLite counts the rows of a RETURNING when they have been fetched.
        self._waiting: tuple[StatementChange, Any, int] | None = None
        event.listen(connection, "before_cursor_execute", self._before)
        event.listen(connection, "after_cursor_execute", self._after)

    @property
    def dialect(self) -> str:
        return self.connection.dialect.name

    def rows(self) -> dict[str, Counter[Kind]]:
        """How many rows of each table were inserted, updated, deleted."""
        self._settle()
        tables: dict[str, Counter[Kind]] = {}
        for frame in self._frames:
            for (kind, table), count in frame.rows.items():
                if count:
                    tables.setdefault(table, Counter())[kind] += count
        return tables

    def said(self, kind: Kind) -> list[str]:
        """The statements of a kind that has no number of rows, each once."""
        every = (effect for frame in self._frames for effect in frame.said)
        return list(dict.fromkeys(effect.what for effect in every if effect.kind == kind))

    def _before(self, *args: Any) -> None:
        self._settle()

    def _after(
        self,
        connection: Connection,
        cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        executemany: bool,
    ) -> None:
        if self._moved(statement):
            return
        top = self._frames[-1]
        for effect in statement_changes(statement, self.dialect):
            if effect.kind in ("schema", "uncounted"):
                top.said.append(effect)
            elif self.dialect == "sqlite" and "returning" in statement.lower():
                self._waiting = (effect, cursor, self._total())
            elif cursor.rowcount >= 0:
                top.rows[effect] += cursor.rowcount
            elif executemany and effect.kind == "inserted":  # asyncpg counts none of them
                top.rows[effect] += len(parameters)
            else:
                top.said.append(StatementChange("uncounted", _short(" ".join(statement.split()))))

    def _settle(self) -> None:
        if self._waiting is not None:
            effect, cursor, before = self._waiting
            self._waiting = None
            # Where not all rows were fetched, only the connection knows.
            self._frames[-1].rows[effect] += (
                cursor.rowcount if cursor.rowcount > 0 else self._total() - before
            )

    def _total(self) -> int:
        driver_connection: Any = self.connection.connection.driver_connection
        return int(driver_connection.total_changes)

    def _moved(self, statement: str) -> bool:
        """Follow SAVEPOINT, RELEASE and ROLLBACK TO."""
        match = _SAVEPOINT.match(statement.strip())
        if match is None:
            return False
        name = match["name"].strip('"`;').lower()
        if match["begin"]:
            self._frames.append(_Frame(name))
            return True
        nth = next((n for n in _downwards(self._frames) if self._frames[n].savepoint == name), 0)
        if not nth:
            return True
        above = self._frames[nth + 1 :]
        del self._frames[nth + 1 :]
        if match["undo"]:
            self._frames[nth].clear()  # the savepoint itself stays
        else:
            released = self._frames.pop()
            for frame in (released, *above):
                self._frames[-1].rows.update(frame.rows)
                self._frames[-1].said += frame.said
        return True


def _downwards(frames: list[_Frame]) -> Iterator[int]:
    return iter(range(len(frames) - 1, 0, -1))
