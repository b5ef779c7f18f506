"""Screens that are shortened to what a terminal shows."""

from __future__ import annotations

from dataclasses import replace

from fsa_cli.cli.sections import Section, Thing, shorten


def test_a_sentence_that_is_shortened_ends_with_an_ellipsis_within_the_width() -> None:
    folded = Thing("  mail  nobody alive\n        knows it", commands=["        fsa runs mail"])
    whole = Thing("  ship  paused", commands=["        fsa runs ship"])
    section = Section("needs a look", [folded, whole])

    assert shorten([section, Section("next", [Thing("  in 4 s  tidy")])], height=6, width=20)

    assert [thing.texts for thing in section.things] == [["  mail  nobody ..."], ["  ship  paused"]]
    assert section.height == 4


def test_what_a_run_waits_for_stays_when_what_is_over_can_give_way() -> None:
    hangs = Thing("  8a3c  ship\n    waits for a lock", ["    in main.py:7"], ["    fsa runs show"])
    over = [Thing(f"  {name}  missed once", commands=["    fsa runs"]) for name in ("tea", "milk")]

    def screen(height: int) -> list[list[list[str]]]:
        sections = [
            Section("needs a look", [Thing("  tidy  paused", commands=["    fsa resume"])]),
            Section("running", [replace(hangs)]),
            Section("over since yesterday", [replace(each) for each in over], is_over=True),
            Section("next", [Thing("  in 4 s  tidy")]),
        ]
        assert shorten(sections, height, 80)
        assert sum(section.height for section in sections) <= height - 2
        return [[thing.texts for thing in section.things] for section in sections]

    paused = ["  tidy  paused", "    fsa resume"]
    assert screen(16) == [[paused], [hangs.texts], [[over[0].said], [over[1].said]], []]
    assert screen(12) == [[paused], [hangs.texts], [], []]
    assert screen(11) == [[paused], [[hangs.said, *hangs.commands]], [], []]
    assert screen(10) == [[paused], [[hangs.said]], [], []]
    assert screen(9) == [[["  tidy  paused"]], [[hangs.said]], [], []]
