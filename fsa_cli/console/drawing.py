"""The bars of the lanes as SVG: thousands of them, which a template would take too long for."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from markupsafe import Markup, escape

from fsa_cli.runs.lanes import Bar, Lane
from fsa_cli.terminal.escaping import escape_terminal

__all__ = ["ROW_HEIGHT", "lane_svg"]

#: The height of a lane, in pixels.
ROW_HEIGHT = 22
# Where a bar begins below the top of its lane, and how high it is: a state is told by its form too.
_BOXES: Mapping[str, tuple[int, int]] = {
    "running": (5, 12),
    "failed": (2, 18),
    "timed_out": (2, 18),
    "interrupted": (2, 18),
    "missed": (4, 14),
    "cancelled": (9, 4),
    "discarded": (9, 4),
}
_BOX = (7, 8)


def lane_svg(lane: Lane, place: int) -> Markup:
    """The bars of a lane, each with its title and a link to its run, or to the runs it stands for.

    Args:
        place: Its number from the top, from 0 on.
    """
    top = place * ROW_HEIGHT
    name = escape(escape_terminal(lane.task))
    runs = escape(f"runs?task={quote(lane.task, safe='')}&status=")
    return Markup("\n".join([_bar(bar, name, runs, top) for bar in lane.bars]))


def _bar(bar: Bar, name: Markup, runs: Markup, top: int) -> str:
    offset, height = _BOXES.get(bar.status, _BOX)
    hatched = ' fill="url(#hatch)"' if bar.status == "missed" else ""
    drawn = (
        f'<rect class="b s-{escape(bar.status)}"{hatched} x="{bar.start}%" width="{bar.width}%" '
        f'y="{top + offset}" height="{height}">'
        f"<title>{name}: {escape(escape_terminal(bar.label))}</title></rect>"
    )
    if bar.run_id is not None:
        return f'<a href="run?id={quote(bar.run_id, safe="")}" tabindex="-1">{drawn}</a>'
    if bar.since_ms is None:
        return drawn
    these = f"{escape(bar.status)}&amp;since={bar.since_ms}&amp;until={bar.until_ms}"
    return f'<a href="{runs}{these}" tabindex="-1">{drawn}</a>'
