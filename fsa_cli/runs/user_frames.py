"""The lines of a traceback that are the user's."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fsa_cli.terminal.user_code import is_user_file, relative_path

__all__ = ["Frame", "own_frames"]

_FRAME = re.compile(
    r'  File "([^"\n]{1,400})", line (\d{1,9}), in ([^\n]{1,200})(?:\n    ([^\n]*))?'
)


@dataclass(frozen=True, slots=True)
class Frame:
    """A line of a traceback."""

    place: str
    function: str
    source: str


def own_frames(traceback: str) -> list[Frame]:
    """The lines of a traceback that are the user's, the innermost first."""
    found = [
        Frame(f"{relative_path(file)}:{line}", function, (source or "").strip())
        for file, line, function, source in _FRAME.findall(traceback)
        if is_user_file(file)
    ]
    return found[::-1]
