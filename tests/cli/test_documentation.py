"""Every command and option is told of: in its help and by a variable."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from fsa_cli.cli.command_tree import COMMANDS, _load

# What is asked anew at each call has no variable.
NO_VARIABLE = {"yes", "dry_run", "version"}


def walk(name: str) -> Iterator[tuple[str, Any]]:
    """The command *name* and every command below it, as `scheduler start`."""
    waiting = [(name, _load(name))]
    while waiting:
        path, command = waiting.pop()
        yield path, command
        below = getattr(command, "commands", {})
        waiting.extend((f"{path} {each}", below[each]) for each in below)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_shows_it_in_use(name: str) -> None:
    for path, command in walk(name):
        summary, _, examples = command.help.partition("\b")
        assert summary.strip(), path
        assert f"fsa {path}" in examples or hasattr(command, "commands"), path
        assert len(re.findall(rf"^ *fsa {name}\b", examples, re.MULTILINE)) >= 2, path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help_and_a_variable_of_its_name(name: str) -> None:
    for path, command in walk(name):
        for param in command.params:
            assert getattr(param, "help", ""), (path, param.name)
            if param.param_type_name == "argument" or param.name in NO_VARIABLE:
                continue
            assert param.envvar, (path, param.name)
            words = [w.lstrip("-").replace("-", "_").upper() for w in param.opts if w[:2] == "--"]
            here = path.replace(" ", "_").replace("-", "_").upper()
            expected = {f"FSA_{word}" for word in words}
            expected |= {f"FSA_{here}_{word}" for word in words}
            assert param.envvar in expected, (path, param.name)
            assert param.show_envvar, (path, param.name)
