"""What a run does at this moment: the user's line that it is in, and its database sessions."""

from __future__ import annotations

import asyncio
import linecache
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from fsa_cli.runner.run import Run
from fsa_cli.terminal.masking import mask_head
from fsa_cli.terminal.user_code import is_user_file, relative_path

__all__ = ["RunActivity", "activity_of"]

_LINE = 100
_DEEPEST = 100


@dataclass(frozen=True)
class RunActivity:
    """What a run does.

    Attributes:
        place: `file:line function  source`, the innermost line of the user's; "" if none is known.
        sessions: The numbers by which the server knows the connections that it has in use.
    """

    place: str
    sessions: tuple[int, ...]


def activity_of(run: Run) -> RunActivity:
    """What *run* does, looked at from another thread."""
    statements = run.statements
    frames = list(_frames(statements.thread_id, statements.task))
    place = next((_place(each) for each in reversed(frames) if _is_users(each)), "")
    return RunActivity(place, tuple(statements.session_ids()))


def _frames(thread_id: int | None, task: asyncio.Task[Any] | None) -> Iterator[FrameType]:
    """The frames of a run, the innermost last."""
    if task is None:
        frame = sys._current_frames().get(thread_id or 0)
        stack = []
        while frame is not None:
            stack.append(frame)
            frame = frame.f_back
        yield from reversed(stack)
        return
    awaited: Any = task.get_coro()
    for _ in range(_DEEPEST):
        if awaited is None:
            return
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            yield frame
        inner = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
        # What `statement_cancellation` puts around the task's own coroutine.
        awaited = inner if inner is not None else getattr(awaited, "_coroutine", None)


def _is_users(frame: FrameType) -> bool:
    return is_user_file(frame.f_code.co_filename)


def _place(frame: FrameType) -> str:
    file, line = frame.f_code.co_filename, frame.f_lineno
    source = mask_head(linecache.getline(file, line).strip(), _LINE)
    return f"{relative_path(file)}:{line} {frame.f_code.co_name}  {source}".rstrip()
