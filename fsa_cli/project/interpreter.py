"""The command that starts another Python as this one was started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["python_command"]


def python_command(module: str) -> list[str]:
    """The command that calls `main()` of *module* in a new process; arguments may follow.

    With this interpreter's flags: `-O` decides about asserts, `-W error` about warnings. And with
    `-P`, as the script `fsa` is started: the current directory comes first only once the app is
    imported. A `types.py` or `queue.py` there would be imported in place of Python's own.
    """
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    code = f"import sys; sys.path.append(sys.argv.pop(1)); from {module} import main; main()"
    # Last on the path: where `python -m fsa_cli` found the package in the current directory.
    home = str(Path(__file__).absolute().parents[2])
    return [sys.executable, *flags, "-P", "-c", code, home]
