"""The project's folder for state: the heartbeat, the shell's history, a ledger without a database.

`fsa health live` reads it: no pathlib here, whose import would cost more than all the rest.
"""

# ruff: noqa: PTH109, PTH110, PTH118, PTH119, PTH120

from __future__ import annotations

import os
from zlib import crc32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def state_dir(environ: Mapping[str, str] | None = None, directory: str | None = None) -> str:
    """This project's folder for state: under FSA_STATE_DIR, or in the user's own state folder.

    The project is the nearest directory with a pyproject.toml, or the current one.
    """
    env = os.environ if environ is None else environ
    home = env.get("XDG_STATE_HOME") or os.path.join(env.get("HOME") or "/tmp", ".local", "state")
    base = env.get("FSA_STATE_DIR") or os.path.join(home, "fsa")
    here = project = directory or os.getcwd()
    while not os.path.exists(os.path.join(project, "pyproject.toml")):
        above = os.path.dirname(project)
        if above == project:
            project = here
            break
        project = above
    name = os.path.basename(project) or "root"
    return os.path.join(base, f"{name}-{crc32(project.encode()):08x}")
