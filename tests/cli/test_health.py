"""`fsa health` and what it stands on."""

import json
import os
import time
from pathlib import Path

import pytest

from fastapi_sqlalchemy import Database
from fastapi_sqlalchemy.health import aping, ping
from fsa_cli import heartbeat

APP = """
    from fastapi import FastAPI
    from fastapi_sqlalchemy import Database, DBSessionMiddleware
    reports = Database(name="reports")
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")
    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///reports.db", db=reports)
"""


def test_every_configured_database_is_checked_with_its_latency(
    fsa, write_app, postgresql, tmp_path
) -> None:
    write_app(tmp_path, main=APP)

    done = fsa("health", "--json", env={"FSA_DB_URL_REPORTS": postgresql.url})

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is True
    checks = {check["check"]: check for check in document["checks"]}
    assert set(checks) == {"database default", "pool default", "database reports", "pool reports"}
    assert all(check["ok"] for check in checks.values())
    assert checks["database reports"]["latency_ms"] > 0
    assert checks["database reports"]["detail"].startswith("postgresql ")
    assert checks["database default"]["detail"] == "sqlite shop.db"


@pytest.mark.parametrize("command", [["health"], ["health", "ready"]])
def test_one_database_that_is_not_there_makes_it_exit_1(fsa, write_app, tmp_path, command) -> None:
    write_app(tmp_path, main=APP)

    env = {"FSA_DB_URL_REPORTS": "postgresql+psycopg://me:s3cret@127.0.0.1:1/x"}
    done = fsa(*command, env=env)

    assert done.returncode == 1
    header, *lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert header == ["check", "state", "ms", "detail"]
    states = {cells[0]: cells[1] for cells in lines}
    assert states["database default"] == "ok"
    assert states["database reports"] == "FAILED"
    assert "s3cret" not in done.stdout + done.stderr
    document = json.loads(fsa(*command, "--json", env=env).stdout)
    assert document["ok"] is False


def test_live_is_told_from_the_heartbeat_without_importing_the_app(
    fsa, write_app, tmp_path
) -> None:
    write_app(tmp_path, {"pyproject.toml": ""}, main="raise SystemError('imported')")
    env = {"FSA_STATE_DIR": str(tmp_path / "state")}

    assert fsa("health", "live", env=env).returncode == 1
    file = Path(heartbeat.state_dir(env, str(tmp_path)), "heartbeat")
    file.parent.mkdir(parents=True)
    file.touch()

    fresh = fsa("health", "live", env=env)
    assert fresh.returncode == 0, fresh.stderr
    assert json.loads(fsa("health", "live", "--json", env=env).stdout)["ok"] is True
    assert fsa("health", "live", env=env, cwd=_below(tmp_path)).returncode == 0

    old = time.time() - 10 * heartbeat.STALE_S
    os.utime(file, (old, old))

    stale = fsa("health", "live", env=env)
    assert stale.returncode == 1
    assert "the last heartbeat was" in stale.stderr
    assert fsa("health", "live", "--json", env=env).returncode == 1


def test_two_projects_do_not_share_a_heartbeat(tmp_path) -> None:
    env = {"FSA_STATE_DIR": "/state"}
    for name in ("one", "two"):
        (tmp_path / name / "shop").mkdir(parents=True)

    one = heartbeat.state_dir(env, str(tmp_path / "one" / "shop"))
    two = heartbeat.state_dir(env, str(tmp_path / "two" / "shop"))

    assert one != two
    assert os.path.basename(one).startswith("shop-")  # noqa: PTH119


def test_a_heartbeat_is_as_old_as_the_last_beat(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FSA_STATE_DIR", str(tmp_path))
    assert heartbeat.age_s() is None

    heartbeat.beat()

    age_s = heartbeat.age_s()
    assert age_s is not None
    assert age_s < heartbeat.STALE_S
    assert heartbeat.live() == 0


def test_ping_measures_and_gives_the_connection_back(backend) -> None:
    db = Database(name="pinged")
    db.configure(db_url=backend.url)
    try:
        assert ping(db) > 0
        assert all(pool["checked_out"] == 0 for pool in db.pool_status().values())
    finally:
        db.dispose()


async def test_aping_uses_the_async_engine(postgresql) -> None:
    db = Database(name="pinged")
    db.configure(async_db_url=postgresql.async_url)
    try:
        assert await aping(db) > 0
        assert set(db.pool_status()) == {"async"}
    finally:
        await db.adispose()


def test_ping_of_a_server_that_does_not_answer_ends_in_time(silent_port: int) -> None:
    db = Database(name="silent")
    db.configure(db_url=f"postgresql+psycopg://me@127.0.0.1:{silent_port}/x")

    with pytest.raises(TimeoutError, match=r"no answer within 0\.5 s"):
        ping(db, timeout_s=0.5)


@pytest.fixture
def silent_port():
    """A port that accepts connections and never says a word."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def _below(directory: Path) -> Path:
    below = directory / "pkg" / "deep"
    below.mkdir(parents=True, exist_ok=True)
    return below
