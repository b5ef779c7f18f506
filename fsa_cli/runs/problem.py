"""One thing that needs a look."""

from __future__ import annotations

from dataclasses import dataclass

from fsa_cli.ledger.time import instant_of
from fsa_cli.terminal.formatting import format_time

__all__ = ["Problem", "since"]


@dataclass(frozen=True)
class Problem:
    """Something that needs a look.

    Attributes:
        subject: A task, or a kind of process.
        said: What is wrong.
        detail: What was said about it: an error, a place.
        commands: What shows more, or is the cure.
        is_task: Whether the subject is a task.
    """

    subject: str
    said: str
    detail: str = ""
    commands: tuple[str, ...] = ()
    is_task: bool = False

    @property
    def text(self) -> str:
        return f"{self.subject}: {self.said}"


def since(ms: int, now_ms: int) -> str:
    """An instant of the past, as `format_time`."""
    return format_time(instant_of(ms), instant_of(now_ms))
