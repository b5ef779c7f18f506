"""The lanes: thousands of bars as SVG, which a template would take too long for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup, escape

from fsa_cli.console.parts import in_address, safe
from fsa_cli.runs.lanes import Bar, Lane
from fsa_cli.terminal.escaping import escape_terminal

__all__ = ["ROW_HEIGHT", "lane_bars", "lane_labels"]

#: The height of a lane, in pixels.
ROW_HEIGHT = 22
#: Of a run's id in a link: a thousand of them are what a page weighs. Of five million runs one in
#: 200,000 links is another's beginning too.
_ID_LENGTH, _LINK_LENGTH = 32, 10


def lane_labels(lanes: Sequence[Lane]) -> Markup:
    """The names of lanes, each of which leads to its task, and in words what is drawn."""
    return Markup("\n".join([_label(lane) for lane in lanes]))


def lane_bars(lanes: Sequence[Lane]) -> Markup:
    """The bars of lanes, each with its title and a link to its run, or to the runs it stands for.

    How high each is, and where in its lane, is in the style sheet: a state is told by its form too.
    """
    return Markup("\n".join([_bars(lane, number) for number, lane in enumerate(lanes)]))


def _label(lane: Lane) -> str:
    name, note = safe(lane.task), f" <em>{escape(lane.note)}</em>" if lane.note else ""
    return (
        f'<li id="n-{name}"><a href="task?name={in_address(lane.task)}" title="{name}">{name}</a>'
        f'{note}<span class="sr">: {escape(escape_terminal(lane.summary))}</span></li>'
    )


def _bars(lane: Lane, number: int) -> str:
    name = safe(lane.task)
    runs = f"runs?task={in_address(lane.task)}&amp;status="
    bars = "".join([_bar(bar, name, runs) for bar in lane.bars])
    base = ROW_HEIGHT - 0.5
    return (
        f'<g id="l-{name}" transform="translate(0 {number * ROW_HEIGHT})">'
        f'<line class="base" x2="100%" y1="{base}" y2="{base}"/>\n{bars}</g>'
    )


def _bar(bar: Bar, name: str, runs: str) -> str:
    status, label = safe(bar.status), bar.label
    if not _is_plain(label):
        label = escape(escape_terminal(label))
    drawn = (
        f'<rect class="b s-{status}" x="{bar.start}%" width="{bar.width}%">'
        f"<title>{name}: {label}</title></rect>"
    )
    if bar.run_id is not None:
        run_id = bar.run_id
        if len(run_id) == _ID_LENGTH and run_id.isalnum():
            run_id = run_id[:_LINK_LENGTH]
        return f'<a href="run?id={in_address(run_id)}" tabindex="-1">{drawn}</a>\n'
    if bar.since_ms is None:
        return f"{drawn}\n"
    these = f"{status}&amp;since={bar.since_ms}&amp;until={bar.until_ms}"
    return f'<a href="{runs}{these}" tabindex="-1">{drawn}</a>\n'


# Nearly every label is so: to escape it anyway takes as long as the rest of the bar.
_is_plain = re.compile(r"[\w ,.:]*", re.ASCII).fullmatch
