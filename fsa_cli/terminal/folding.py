"""Text in the lines of a terminal: folded between words, and not inside what is to be copied."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Sequence
from typing import TextIO

__all__ = ["columns_of", "fold", "side_by_side"]

# A command with what makes it whole, of which a half would be another command.
_COMMAND = re.compile(
    r"\bfsa(?: (?:db|health|runs|scheduler|worker))? \S+(?: -\S+| [0-9a-f]{8}\b)*"
    r"|\bpip install \S+"
)
_GLUE = "\0"


def fold(text: str, columns: int, *, first: int = 0, indent: int = 0) -> list[str]:
    """*text* in lines of so many *columns*; a word that is longer has a line of its own.

    Args:
        first: How many columns of the first line are taken.
        indent: How many the others leave free.
    """
    lines = textwrap.wrap(
        _COMMAND.sub(lambda found: found[0].replace(" ", _GLUE), text),
        columns,
        initial_indent=" " * first,
        subsequent_indent=" " * indent,
        expand_tabs=False,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
    folded = [line.replace(_GLUE, " ") for line in lines] or [" " * first]
    return [folded[0][first:], *folded[1:]]


def side_by_side(parts: Sequence[str], columns: int) -> list[str]:
    """*parts* in one line if they fit into so many *columns* (0: they do), else a line for each."""
    together = "     ".join(parts)
    return [together] if not columns or len(together) <= columns else list(parts)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether *stream* writes to, or reads from, a terminal."""
    # What an app puts in its place, to have all of it in its log, may have `write` alone.
    return stream is not None and not getattr(stream, "closed", True) and stream.isatty()


def columns_of(stream: TextIO) -> int:
    """The width of the terminal that *stream* writes to; 0: it is none, and nothing is folded."""
    if not is_terminal(stream):
        return 0
    if (asked := os.environ.get("COLUMNS", "")).isdigit():
        return int(asked)
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0
