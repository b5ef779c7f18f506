"""README's examples are run as they are written there."""

import re
import shutil
from pathlib import Path

import pytest

from support.manual import README, ROOT, blocks, sh
from support.processes import Completed, run

pytestmark = pytest.mark.slow

RUN_BY_CI = {"Running the tests"}  # it is what runs this file
RUN_HERE = {"Quick start"}


def run_sh(script: str, directory: Path) -> Completed:
    done = run("bash", "-euo", "pipefail", "-c", script, cwd=directory)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done


def test_every_sh_block_is_run() -> None:
    assert {b.heading for b in blocks(README) if b.language == "sh"} == RUN_HERE | RUN_BY_CI


def test_the_quick_start_prints_what_is_shown(tmp_path: Path) -> None:
    """What is installed here stands in for its first lines, which `.ci/run` runs in full."""
    examples = shutil.ignore_patterns("*.db*", "__pycache__")
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=examples)
    setup = ("python3 -m venv", ". .venv", "pip install")
    lines = [line for line in sh(README, "Quick start").splitlines() if not line.startswith(setup)]
    (shown,) = [
        b.text for b in blocks(README) if b.heading == "Quick start" and b.language == "text"
    ]
    printed = run_sh("exec 2>&1\n" + "\n".join(lines), tmp_path).stdout
    duration = re.compile(r"(?<= in )[^,]+(?=, )")
    assert duration.sub("a moment", printed) == duration.sub("a moment", shown)
