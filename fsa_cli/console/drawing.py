"""The bars of the lanes as SVG: thousands of them, which a template would take too long for."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote

from markupsafe import Markup, escape

from fsa_cli.runs.lanes import Bar, Lane
from fsa_cli.terminal.escaping import escape_terminal

__all__ = ["ROW_HEIGHT", "lane_svg"]

#: The height of a lane, in pixels.
ROW_HEIGHT = 22


def lane_svg(lane: Lane) -> Markup:
    """The bars of a lane, each with its title and a link to its run, or to the runs it stands for.

    How high each is, and where in its lane, is in the style sheet: a state is told by its form too.
    """
    name = _safe(lane.task)
    runs = f"runs?task={quote(lane.task, safe='')}&amp;status="
    return Markup("".join([_bar(bar, name, runs) for bar in lane.bars]))


def _bar(bar: Bar, name: str, runs: str) -> str:
    status = _safe(bar.status)
    drawn = (
        f'<rect class="b s-{status}" x="{bar.start}%" width="{bar.width}%"><title>{name}: '
        f"{_safe(bar.label)}</title></rect>"
    )
    if bar.run_id is not None:
        return f'<a href="run?id={quote(bar.run_id, safe="")}" tabindex="-1">{drawn}</a>\n'
    if bar.since_ms is None:
        return f"{drawn}\n"
    these = f"{status}&amp;since={bar.since_ms}&amp;until={bar.until_ms}"
    return f'<a href="{runs}{these}" tabindex="-1">{drawn}</a>\n'


@lru_cache(maxsize=4096)
def _safe(text: str) -> str:
    return str(escape(escape_terminal(text)))
