"""What each row of a list has: a page calls these a thousand times, and a macro takes five times as
long."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import quote

from markupsafe import Markup, escape

from fsa_cli.ledger.records import status_words
from fsa_cli.terminal.escaping import escape_terminal
from fsa_cli.terminal.formatting import format_time

__all__ = ["at", "in_address", "iso", "run_link", "safe", "status", "task_link", "word"]


def at(moment: datetime, now: datetime) -> Markup:
    """A moment as a person reads it."""
    return Markup(f'<time datetime="{iso(moment)}">{format_time(moment, now)}</time>')


@lru_cache(maxsize=256)
def status(name: str) -> Markup:
    """A status, with its mark."""
    shown = safe(word(name))
    return Markup(f'<span class="st s-{safe(name)}"><i aria-hidden="true"></i>{shown}</span>')


@lru_cache(maxsize=4096)
def task_link(name: str) -> Markup:
    """The name of a task, which leads to it."""
    return Markup(f'<a class="name" href="task?name={in_address(name)}">{safe(name)}</a>')


def run_link(run_id: str) -> Markup:
    """The beginning of a run's id, which leads to it."""
    return Markup(f'<a class="id" href="run?id={in_address(run_id)}">{safe(run_id[:8])}</a>')


def word(name: object) -> str:
    """A status as a person says it."""
    return status_words(str(name))


def iso(moment: datetime) -> str:
    """A moment for a program, in UTC."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@lru_cache(maxsize=4096)
def safe(text: str) -> str:
    """A name as a page shows it; a page of 300 lanes has each ten times."""
    return str(escape(escape_terminal(text)))


def in_address(text: str) -> str:
    """A name as a part of an address."""
    return text if text.isascii() and text.isalnum() else _quoted(text)


@lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    return quote(text, safe="")
