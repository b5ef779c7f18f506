"""The project's folder for state is its user's alone, whoever makes it first."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsa_cli.processes import heartbeat
from fsa_cli.project.state_dir import make_state_dir, state_dir
from fsa_cli.shell.prompts import _history
from support.processes import Process, Run, as_a_user, environment

MAIN = """
    from fastapi import FastAPI
    from fsa_cli import task

    app = FastAPI()

    @task(schedule="every 1h")
    def work() -> int:
        return 1
"""


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(directory: Path) -> set[str]:
    return {
        f"{path.name if path.is_file() else 'folder'} {stat.S_IMODE(path.stat().st_mode):o}"
        for path in directory.rglob("*")
    }


def test_folder_and_files_are_private_whoever_made_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSA_STATE_DIR", str(tmp_path / "a" / "state"))
    heartbeat.beat()
    file = _history("python")
    assert file is not None
    assert modes(tmp_path) == {"folder 700", "heartbeat 600", "python 600"}

    Path(state_dir()).chmod(0o755)
    Path(file).chmod(0o644)
    heartbeat.beat()
    _history("python")

    assert modes(tmp_path) == {"folder 700", "heartbeat 600", "python 600"}


@pytest.mark.parametrize("place", ["state", "beside", "ledger_url"])
def test_the_ledgers_file_is_private(
    place: str, fsa: Run, write_app: Callable[..., Path], tmp_path: Path
) -> None:
    database = 'app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")'
    main = MAIN.replace("app = FastAPI()", f"app = FastAPI()\n    {database}")
    main = main.replace(
        "import task", "import task\n    from fastapi_sqlalchemy import DBSessionMiddleware"
    )
    write_app(tmp_path, main=MAIN if place == "state" else main)
    env = {"FSA_STATE_DIR": "state"}
    if place == "ledger_url":
        env["FSA_LEDGER_URL"] = "sqlite:///new/ledger.db"

    assert fsa("scheduler", "init", env=env).returncode == 0
    (file,) = tmp_path.rglob("*ledger.db")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    assert fsa("scheduler", "status", env=env).returncode in (0, 1)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o664)  # shared with a group
    fsa("scheduler", "status", env=env)
    assert stat.S_IMODE(file.stat().st_mode) == 0o660
    if place != "beside":
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_folder_of_another_user_or_that_others_may_write_is_not_used(
    fsa: Run, write_app: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_app(tmp_path, main=MAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSA_STATE_DIR", str(tmp_path / "state"))
    folder = Path(make_state_dir())
    env = {"FSA_STATE_DIR": str(tmp_path / "state")}

    folder.chmod(0o777)
    done = fsa("scheduler", "init", env=env)
    assert done.returncode == 3
    assert f"other users may write {folder}" in done.stderr
    folder.rmdir()
    if os.geteuid() == 0:
        folder.mkdir(0o700)
        os.chown(folder, 12345, 12345)
    else:
        folder.symlink_to("/usr")
    done = fsa("scheduler", "init", env=env)

    assert done.returncode == 3
    assert "belongs to another user" in done.stderr
    assert _history("python") is None
    with pytest.raises(PermissionError, match="another user"):
        heartbeat.beat()


def test_the_heartbeat_that_cannot_be_read_is_none(
    fsa: Run, write_app: Callable[..., Path], tmp_path: Path
) -> None:
    write_app(tmp_path, main=MAIN)
    file = tmp_path / "main.py"

    for options in ([], ["--json"]):
        done = fsa("health", "live", *options, env={"FSA_STATE_DIR": str(file)})
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
    assert "Not a directory" in fsa("scheduler", "init", env={"FSA_STATE_DIR": str(file)}).stderr


@pytest.mark.slow
def test_a_folder_that_this_user_may_not_enter_is_named(
    fsa: Run, write_app: Callable[..., Path], tmp_path: Path
) -> None:
    write_app(tmp_path, main=MAIN)
    changes = {"FSA_STATE_DIR": str(tmp_path / "state")}
    assert fsa("scheduler", "init", env=changes).returncode == 0
    (tmp_path / "state").chmod(0)
    try:
        for command, code in (
            ("status", 0),
            ("runs", 3),
            ("scheduler init", 3),
            ("health live", 1),
        ):
            done = as_a_user(command, tmp_path, environment(changes))
            assert done.returncode == code, (command, done.stderr)
            told = done.stdout + done.stderr
            if command != "status":  # which says that there is no database
                assert f"Permission denied: '{tmp_path}/state" in told, told
    finally:
        (tmp_path / "state").chmod(0o700)


def test_a_current_directory_that_is_gone_is_said(python: Run, tmp_path: Path) -> None:
    program = """
import os, sys
from fsa_cli.cli.app import main
os.mkdir("gone")
os.chdir("gone")
os.rmdir("../gone")
sys.exit(main(sys.argv[1:]))
"""
    # A file: with -c an import looks into the current directory, which 3.13.0 does not survive.
    (tmp_path / "program.py").write_text(program)
    done = python("program.py", "status")

    assert done.returncode == 3
    assert "error: the current directory does not exist any more" in done.stderr


def test_a_state_home_that_is_relative_is_none() -> None:
    """Else each directory of a project had a ledger of its own."""
    env = {"XDG_STATE_HOME": "state", "HOME": "/home/ann"}
    assert state_dir(env, "/").startswith("/home/ann/.local/state/fsa/")


def test_without_a_home_the_folder_bears_the_users_number() -> None:
    assert state_dir({}, "/").startswith(f"/tmp/fsa-{os.geteuid()}/")


@pytest.mark.parametrize("target", ["/proc", "nowhere"])
def test_a_folder_that_can_hold_none_is_said_and_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    (tmp_path / "volume").symlink_to(target)
    monkeypatch.setenv("FSA_STATE_DIR", str(tmp_path / "volume" / "state"))

    with pytest.raises(FileNotFoundError):
        make_state_dir()


GONE_ELSEWHERE = """
    import os
    from fastapi import FastAPI
    from fastapi_sqlalchemy import db
    from fsa_cli import task

    os.chdir("elsewhere")
    app = FastAPI()
    db.configure("sqlite://")

    @task(schedule="every 1s", isolation="process")
    def work() -> str:
        return "done"
"""


def test_an_app_that_changes_the_directory_takes_neither_the_state_nor_isolated_runs_with_it(
    fsa: Run, fsa_process: Callable[..., Process], write_app: Callable[..., Path], tmp_path: Path
) -> None:
    write_app(tmp_path, main=GONE_ELSEWHERE)
    (tmp_path / "elsewhere").mkdir()
    env = {"FSA_STATE_DIR": str(tmp_path / "state")}

    process = fsa_process("scheduler", "start", env=env)
    process.wait_for("work  succeeded")

    assert fsa("health", "live", env=env).returncode == 0
    assert process.stop().returncode == 0
    (folder,) = (tmp_path / "state").iterdir()
    assert folder.name.startswith(f"{tmp_path.name}-")
    assert (folder / "ledger.db").exists()
