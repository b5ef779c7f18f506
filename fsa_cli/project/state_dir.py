"""The project's folder for state: the heartbeat, the shell's history, a ledger without a database.

The folder is its user's alone (0700), and so are the files in it (0600), whoever of us makes them.

`fsa health live` reads it: no pathlib here, whose import would cost more than all the rest.
"""

# ruff: noqa: PTH101, PTH102, PTH109, PTH110, PTH116, PTH117, PTH118, PTH119, PTH120, SIM105

from __future__ import annotations

import errno
import os
import stat
from zlib import crc32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def state_dir(environ: Mapping[str, str] | None = None, directory: str | None = None) -> str:
    """This project's folder for state: under FSA_STATE_DIR, or in the user's own state folder.

    Without a home it is in one that bears the user's number under /tmp. The project is the nearest
    directory with a pyproject.toml, or the current one.
    """
    env = os.environ if environ is None else environ
    base = env.get("FSA_STATE_DIR") or _own_base(env)
    here = project = directory or os.getcwd()
    while not os.path.exists(os.path.join(project, "pyproject.toml")):
        above = os.path.dirname(project)
        if above == project:
            project = here
            break
        project = above
    name = os.path.basename(project) or "root"
    return os.path.join(base, f"{name}-{crc32(os.fsencode(project)):08x}")


def make_state_dir(project: str | None = None) -> str:
    """`state_dir()` of *project*, made if it is missing; only this user reads and writes it.

    Raises:
        OSError: It cannot be made; a PermissionError where another user has it, or may write it.
    """
    directory = state_dir(directory=project)
    if not os.environ.get("FSA_STATE_DIR"):
        _make(os.path.dirname(directory))
        _check_own(os.path.dirname(directory))
    _make(directory)
    _check_own(directory)
    if stat.S_IMODE(os.stat(directory).st_mode) & 0o077:
        os.chmod(directory, 0o700)
    return directory


def make_private_file(path: str) -> None:
    """Make the file *path* with mode 0600 if it is missing, and take from others what they may.

    A group that may write it was let in on purpose, and keeps that.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
    try:
        os.close(os.open(path, flags | os.O_EXCL, 0o600))
    except FileExistsError:
        found = os.stat(path)
        mode = stat.S_IMODE(found.st_mode)
        allowed = mode & (0o660 if mode & 0o020 else 0o600)
        if mode == allowed or found.st_uid != os.geteuid() or not stat.S_ISREG(found.st_mode):
            return
        try:
            os.chmod(path, allowed)
        except OSError as exc:
            if exc.errno != errno.EROFS:
                raise


def _own_base(env: Mapping[str, str]) -> str:
    home = env.get("XDG_STATE_HOME")
    # A relative one is none: https://specifications.freedesktop.org/basedir-spec
    if home and os.path.isabs(home):
        return os.path.join(home, "fsa")
    if home := env.get("HOME"):
        return os.path.join(home, ".local", "state", "fsa")
    return f"/tmp/fsa-{os.geteuid()}"


def _make(directory: str) -> None:
    above = os.path.dirname(directory)
    if above not in ("", directory) and not os.path.lexists(above):
        _make(above)
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass


def _check_own(directory: str) -> None:
    """Check that it is a directory of this user's, which no other may write."""
    for found in (os.lstat(directory), os.stat(directory)):  # of a link too: it may be turned
        if found.st_uid != os.geteuid():
            raise PermissionError(
                f"{directory} belongs to another user (number {found.st_uid}) and is not used"
            )
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{directory} is not a directory")
    if found.st_mode & 0o022:
        raise PermissionError(
            f"other users may write {directory}, and it is not used before `chmod 700 {directory}`"
        )
