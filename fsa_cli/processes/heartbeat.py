"""The heartbeat's file, for probes that may touch neither the app nor the database.

Kubernetes gives a liveness probe one second, and runs it every few: no pathlib here, whose import
would cost more than all the rest.
"""

# ruff: noqa: PTH116, PTH118, PTH123, SIM105

from __future__ import annotations

import os
import sys
import time

from fsa_cli.project.state_dir import make_private_file, make_state_dir, state_dir

#: An older heartbeat means that the process is dead: it writes one every few seconds.
STALE_S = 30.0
_FILE = "heartbeat"


def path() -> str:
    """The heartbeat's file."""
    return os.path.join(state_dir(), _FILE)


def beat(project: str | None = None) -> None:
    """Write the heartbeat: this process is alive now.

    Args:
        project: Where it was started; the app, or a task, may have changed the directory.
    """
    file = os.path.join(make_state_dir(project), _FILE)
    make_private_file(file)
    with open(file, "w", encoding="ascii") as stream:
        stream.write(f"{os.getpid()}\n")


def age_s() -> float | None:
    """How long ago the last heartbeat was; None if there is none."""
    try:
        return max(time.time() - os.stat(path()).st_mtime, 0.0)
    except (FileNotFoundError, NotADirectoryError):
        return None


def live() -> int:
    """Print whether the heartbeat is recent; the exit code, 0 or 1."""
    try:
        age, where = age_s(), path()
    except OSError as exc:  # another user's folder, a current directory that is gone
        return _not_alive(f"the heartbeat cannot be read: {exc}")
    if age is None:
        return _not_alive(f"there is no heartbeat at {where}")
    if age > STALE_S:
        return _not_alive(f"the last heartbeat was {age:.0f} s ago")
    sys.stdout.write(f"alive: heartbeat {age:.1f} s ago\n")
    return 0


def _not_alive(why: str) -> int:
    try:
        sys.stderr.write(f"not alive: {why}\n")
    except OSError:
        pass
    return 1
