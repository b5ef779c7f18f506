"""A terminal's whole screen: lines that are drawn again and again, and keys that are pressed."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fsa_cli.terminal.escaping import escape_terminal

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Line", "Screen"]

#: The parts of a line, each a text and a style of Rich's; what acts on a terminal is shown.
Line = Sequence[tuple[str, str]]

_KEYS = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\r": "enter",
    b"\n": "enter",
    b"\x1b": "escape",
    b"\x7f": "escape",
}


class Screen:
    """The screen of this terminal, as long as `open` is entered.

    Args:
        console: On a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._typed = b""

    @property
    def width(self) -> int:
        return self._console.width

    @property
    def height(self) -> int:
        return self._console.height

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Take the screen, and keys as they are pressed; both as they were at the end."""
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
        try:
            # Not TCSAFLUSH, the default: keys that were typed while it started count.
            tty.setcbreak(descriptor, termios.TCSADRAIN)
            with self._console.screen(hide_cursor=True):
                yield
        finally:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

    def draw(self, lines: Sequence[Line]) -> None:
        """Show these lines from the top; one that does not fit ends with an ellipsis."""
        from rich.control import Control
        from rich.text import Text

        shown = []
        for line in lines[: self.height]:
            text = Text(no_wrap=True, overflow="crop", end="")
            for part, style in line:
                text.append(self._showable(part), style)
            if text.cell_len > self.width:
                text.truncate(max(self.width - 3, 0))
                text.append("...", line[-1][1])
            text.truncate(self.width, pad=True)
            shown.append(text)
        blank = Text(" " * self.width, end="")
        shown += [blank] * (self.height - len(shown))
        self._console.control(Control.home())
        for place, text in enumerate(shown):
            self._console.print(text, end="" if place == self.height - 1 else "\n", soft_wrap=True)

    def _showable(self, part: str) -> str:
        encoding = self._console.encoding
        line = escape_terminal(part.replace("\n", " ").replace("\t", " "))
        return line.encode(encoding, "replace").decode(encoding)

    def key(self, within_s: float) -> str | None:
        """The key that is pressed: a letter, `up`, `enter`; None: there is none.

        Raises:
            EOFError: The input has ended.
        """
        if not self._typed:
            descriptor = sys.stdin.fileno()
            if not select.select([descriptor], [], [], within_s)[0]:
                return None
            self._typed = os.read(descriptor, 64)
            if not self._typed:
                raise EOFError
        for sequence, name in _KEYS.items():
            if self._typed.startswith(sequence):
                self._typed = self._typed[len(sequence) :]
                return name
        first, self._typed = self._typed[:1], self._typed[1:]
        return first.decode("latin-1")
