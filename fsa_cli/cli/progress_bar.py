"""`TaskContext.progress` as a bar on a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from fsa_cli.tasks.task_context import Progress
from fsa_cli.terminal.escaping import escape_terminal
from fsa_cli.terminal.folding import is_terminal
from fsa_cli.terminal.output import Output

if TYPE_CHECKING:
    from rich.progress import Progress as Display
    from rich.progress import TaskID

__all__ = ["ProgressBars"]


class ProgressBars:
    """Draws a bar on stderr for each progress. Rich is imported with the first one."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._display: Display | None = None
        self._shown: dict[int, TaskID] = {}
        # Kept, so that no other one has the same id.
        self._seen: dict[int, Progress] = {}

    @property
    def is_shown(self) -> bool:
        return is_terminal(sys.stderr) and not self._output.json and not self._output.quiet

    @property
    def seen(self) -> list[Progress]:
        """Every progress, in the order in which they began."""
        return list(self._seen.values())

    def __call__(self, progress: Progress) -> None:
        self._seen[id(progress)] = progress
        if self._display is None:
            # Asked once: what Rich puts in the place of stderr is no terminal before Rich 14.3.
            if not self.is_shown:
                return
            self._display = self._start()
        text = escape_terminal(progress.text)
        key = id(progress)
        if key not in self._shown:
            self._shown[key] = self._display.add_task(text, total=progress.total)
        self._display.update(self._shown[key], completed=progress.done, description=text)
        if progress.finished and progress.total is None:
            self._display.update(self._shown[key], total=progress.done)

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._display is not None:
            self._display.stop()

    def _start(self) -> Display:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column

        display = Progress(
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(
                    no_wrap=True, overflow="ellipsis", max_width=self._output.narration.width // 3
                ),
            ),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._output.narration,
            # What the task prints goes above the bar, but never from a pipe to the terminal.
            redirect_stdout=is_terminal(sys.stdout),
        )
        display.start()
        return display
