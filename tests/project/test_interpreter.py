"""Another Python is started as this one was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import environment

#: Prints the flags of a process that one with the flags of the command line starts.
STARTER = """
import subprocess, sys
from fsa_cli.project.interpreter import python_command
subprocess.run([*python_command("printer"), "one", "two"], check=True)
"""
PRINTER = """
import json, sys
def main():
    flags = sys.flags
    told = [flags.optimize, flags.dev_mode, sys.warnoptions]
    print(json.dumps([sys.argv[1:], *told]))
"""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), [0, False, []]),
        (("-OO", "-W", "error::UserWarning"), [2, False, ["error::UserWarning"]]),
        (("-X", "dev"), [0, True, ["default"]]),
    ],
)
def test_it_has_the_flags_of_this_one(
    tmp_path: Path, flags: tuple[str, ...], expected: list[object]
) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "printer.py").write_text(PRINTER)
    env = environment({"PYTHONPATH": str(tmp_path / "library")})

    done = subprocess.run(
        [sys.executable, *flags, "-P", "-c", STARTER],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )

    assert done.stderr == ""
    arguments, *told = json.loads(done.stdout)
    assert arguments == ["one", "two"]
    assert told == expected
