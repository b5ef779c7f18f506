"""A screen in sections, shortened to what a terminal shows without scrolling."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from fsa_cli.terminal.output import Output

__all__ = ["Section", "shorten"]


@dataclass
class Section:
    """Some of what is seen: lines for each thing, of which the first says what it is."""

    heading: str
    things: list[list[str]]
    left_out: int = 0

    @property
    def height(self) -> int:
        more = 1 if self.left_out else 0
        return sum(map(len, self.things)) + more + 2 if self.things or more else 0

    def tell(self, output: Output) -> None:
        if not self.height:
            return
        output.heading(f"\n{self.heading}")
        for line in chain.from_iterable(self.things):
            output.line(line)
        if self.left_out:
            output.line(f"  and {self.left_out} more")


def shorten(sections: list[Section], height: int) -> bool:
    """Whether something was left out, so that the first lines stay on a terminal of that *height*.

    The last section goes first, then what more is known of each thing, the last one first, and then
    the things.
    """
    room = height - 2  # a line says that there is more, and the prompt has one

    def is_too_high() -> bool:
        return sum(section.height for section in sections) > room

    if sum(section.height for section in sections) < height:
        return False
    *others, last = sections
    last.things = []
    for section in reversed(others):
        for number in reversed(range(len(section.things))):
            if is_too_high():
                section.things[number] = section.things[number][:1]
    for section in reversed(others):
        while is_too_high() and len(section.things) > 1:
            section.left_out += 1
            section.things.pop()
    return True
