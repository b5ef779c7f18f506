"""`fsa docs`: the installed manual, listed, shown, searched."""

import json
import re
from pathlib import Path

import pexpect

from fsa_cli.terminal import manual
from support.processes import OpenTerminal, Run


def test_a_pipe_has_the_list_and_each_page_as_it_is_written(fsa: Run) -> None:
    listed = fsa("docs")
    assert listed.returncode == 0
    names = [line.split("\t")[0] for line in listed.stdout.splitlines()]
    assert names == ["page", *(page.name for page in manual.pages())]
    assert fsa("docs", "production").stdout == manual.get_page("production").text
    shown = json.loads(fsa("docs", "runs", "--json").stdout)
    assert (shown["page"], shown["title"]) == ("runs", "Runs")


def test_every_page_is_ascii_so_that_each_terminal_shows_it() -> None:
    for page in manual.pages():
        assert page.text.isascii(), page.name


def test_a_page_is_searched_and_an_unknown_one_is_guessed(fsa: Run) -> None:
    found = fsa("docs", "--search", "CATCH_UP_window_s seconds").stdout.splitlines()
    assert found[1].startswith("tasks\tEvery argument of `@task`\t| `catch_up_window_s`")
    assert fsa("docs", "--search", "xyzzy").stderr == "no line of the manual has 'xyzzy'\n"
    assert fsa("docs", "kubernetes").stdout == fsa("docs", "production").stdout
    assert "no page '='" in fsa("docs", "--search", "tasks", "=").stderr
    wrong = fsa("docs", "shceduling")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "hint: did you mean scheduling?" in wrong.stderr


def test_what_a_search_finds_is_readable_at_80_columns(terminal: OpenTerminal) -> None:
    child = terminal("fsa", "docs", "--search", "lease", columns=80, env={"NO_COLOR": "1"})
    child.expect(pexpect.EOF)
    lines = str(child.before).splitlines()
    assert max(map(len, lines)) <= 80
    assert "configuring: Behind PgBouncer" in lines
    shown = [line for line in lines if line.startswith("  ")]
    assert all("|" not in line[:3] for line in shown)
    assert any("lease" in line and len(line) > 60 for line in shown)


def test_a_person_reads_it_formatted_and_a_long_one_in_a_pager(
    terminal: OpenTerminal, tmp_path: Path
) -> None:
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\ncat >/dev/null\necho in the pager\n")
    pager.chmod(0o755)
    shown = {}
    for page in ("environments", "tasks"):
        child = terminal("fsa", "docs", page, columns=80, env={"PAGER": str(pager)})
        child.expect(pexpect.EOF)
        shown[page] = str(child.before)
    assert shown["tasks"].strip() == "in the pager"
    assert "# Environments" not in shown["environments"]
    assert "Environments" in shown["environments"]
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown["environments"]).splitlines()
    assert max(map(len, lines)) <= 80
    child = terminal("fsa", "docs", "-h", columns=80)
    child.expect_exact("\x1b[1mOptions:\x1b[0m")
    plain = terminal("fsa", "docs", "-h", columns=80, env={"NO_COLOR": "1"})
    plain.expect(pexpect.EOF)
    assert "Options:" in str(plain.before)
    assert "\x1b[" not in str(plain.before)


def test_at_eighty_columns_a_line_that_is_found_shows_the_word(terminal: OpenTerminal) -> None:
    child = terminal("fsa", "docs", "--search", "enqueue", columns=80)
    child.expect(pexpect.EOF)
    found = [line for line in str(child.before).splitlines() if line.startswith("  ... ")]
    assert found
    assert all("enqueue" in line.lower() for line in found), found
