"""Each colour of text can be read on each ground: a row's is another while the mouse is over it."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

STYLES = files("fsa_cli.console").joinpath("static/console.css").read_text()
PALETTES = [dict(re.findall(r"--(\w+): (#\w{6})", each)) for each in STYLES.split(":root {")[1:]]
# WCAG 2.2, 1.4.3: text of this size.
AT_LEAST = 4.5


@pytest.mark.parametrize("palette", PALETTES, ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["ground", "raised"])
def test_text_can_be_read_on_each_ground(palette: dict[str, str], ground: str) -> None:
    texts = set(re.findall(r"[{; ]color: var\(--(\w+)\)", STYLES)) - {"hink"}
    assert {"ink", "quiet", "good", "bad", "idle"} <= texts

    ratios = {each: contrast(palette[each], palette[ground]) for each in texts}

    assert {each: found for each, found in ratios.items() if found < AT_LEAST} == {}


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours, 1 to 21."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    """WCAG's relative luminance of `#rrggbb`, 0 to 1."""
    red, green, blue = (linear(int(colour[at : at + 2], 16) / 255) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def linear(channel: float) -> float:
    """An sRGB channel, 0 to 1, as light."""
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)
