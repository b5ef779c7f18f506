"""A screen in sections, shortened to what a terminal shows without scrolling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

from fsa_cli.terminal.output import Output

__all__ = ["Section", "Thing", "shorten"]


@dataclass
class Thing:
    """What is said of one thing; a text that was folded has several lines.

    Attributes:
        said: What it is, in any case.
        detail: What more is known of it.
        commands: What shows more, or is the cure.
    """

    said: str
    detail: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [self.said, *self.detail, *self.commands]


@dataclass
class Section:
    """Some of what is seen.

    Attributes:
        left_out: How many things more there are.
        is_over: Whether it gives way before anything is left out that is known of the others.
    """

    heading: str
    things: list[Thing]
    left_out: int = 0
    is_over: bool = False

    @property
    def height(self) -> int:
        more = 1 if self.left_out else 0
        lines = sum(text.count("\n") + 1 for text in self._texts)
        return lines + more + 2 if lines or more else 0

    def tell(self, output: Output) -> None:
        if not self.height:
            return
        output.line("")
        output.heading(self.heading)
        for text in self._texts:
            for line in text.split("\n"):
                output.line(line)
        if self.left_out:
            output.line(f"  and {self.left_out} more")

    @property
    def _texts(self) -> list[str]:
        return list(chain.from_iterable(thing.texts for thing in self.things))


def shorten(sections: list[Section], height: int, width: int) -> bool:
    """Whether something was left out, so that the first lines stay on a terminal of that size.

    The last section goes first, then what is over. Of each other thing, the last one first, the
    detail goes, then its commands, then the rest of its sentence, and at last the things.
    """
    room = height - 2  # a line says that there is more, and the prompt has one

    def is_too_high() -> bool:
        return sum(section.height for section in sections) > room

    if sum(section.height for section in sections) < height:
        return False
    *others, last = sections
    last.things = []
    _shorten([each for each in others if each.is_over], 0, width, is_too_high)
    _shorten([each for each in others if not each.is_over], 1, width, is_too_high)
    return True


def _shorten(
    sections: list[Section], least: int, width: int, is_too_high: Callable[[], bool]
) -> None:
    for step in (_leave_detail, _leave_commands, _leave_rest):
        for thing in reversed([thing for section in sections for thing in section.things]):
            if is_too_high():
                step(thing, width)
    for section in reversed(sections):
        while is_too_high() and len(section.things) > least:
            section.left_out += 1
            section.things.pop()
        if not section.things:
            section.left_out = 0


def _leave_detail(thing: Thing, _width: int) -> None:
    thing.detail = []


def _leave_commands(thing: Thing, _width: int) -> None:
    thing.commands = []


def _leave_rest(thing: Thing, width: int) -> None:
    thing.said = _first_line(thing.said, width)


def _first_line(text: str, width: int) -> str:
    """It ends with an ellipsis where the sentence goes on."""
    first, goes_on, _ = text.partition("\n")
    room = width - 4
    if goes_on and len(first) > room:
        first = first[:room].rpartition(" ")[0] or first[:room]
    return f"{first.rstrip()} ..." if goes_on else first
