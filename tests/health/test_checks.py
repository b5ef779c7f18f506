"""`fsa health` and what it stands on."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pexpect
import pytest

from fastapi_sqlalchemy import Database
from fastapi_sqlalchemy.health import aping, ping
from fsa_cli.processes import heartbeat
from fsa_cli.project.state_dir import state_dir
from support.proxy import proxy_to
from support.waiting import DEADLINE_S, wait_until

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


def test_only_the_database_that_is_asked_for_is_checked(fsa, write_app, tmp_path) -> None:
    write_app(tmp_path, main=APP)

    done = fsa("health", "-d", "reports", "--json")

    assert [check["check"] for check in json.loads(done.stdout)["checks"]] == [
        "database reports",
        "pool reports",
    ]


def test_a_missing_driver_is_reported_with_the_line_that_installs_it(
    fsa, write_app, tmp_path
) -> None:
    write_app(tmp_path, main=APP)

    done = fsa("health", env={"FSA_DB_URL": "mssql+pyodbc://me:s3cret@127.0.0.1:1/x"})

    assert done.returncode == 1
    assert "db.session needs a sync driver for 'mssql+pyodbc'" in done.stdout
    assert "pip install pyodbc" in done.stdout


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


OWN = """
    from fastapi_sqlalchemy import db
    from sqlalchemy import text

    def disk():
        return "12 GB free"

    async def queue():
        return str(await db.async_session.scalar(text("select 7")))

    def licence():
        return db.session.scalar(text("select 1")) == 2

    def broken():
        raise LookupError("no such bucket")

    def slow():
        import threading
        threading.Event().wait()
"""


def test_checks_of_the_apps_own_are_run_in_its_session(fsa, write_app, tmp_path) -> None:
    names = ("disk", "queue", "licence", "broken", "slow")
    settings = "\n".join(f'{name} = "own:{name}"' for name in names)
    write_app(tmp_path, {"pyproject.toml": f"[tool.fsa.health]\n{settings}\n"}, main=APP, own=OWN)

    done = fsa("health", "--json", "--timeout", "5")

    assert done.returncode == 1
    document = json.loads(done.stdout)
    checks = {check["check"]: check for check in document["checks"]}
    said = {name: (checks[name]["ok"], checks[name]["detail"]) for name in names}
    assert said == {
        "disk": (True, "12 GB free"),
        "queue": (True, "7"),
        "licence": (False, "RuntimeError: it returned False"),
        "broken": (False, "LookupError: no such bucket"),
        "slow": (False, "TimeoutError: no answer within 5 s"),
    }
    assert checks["queue"]["latency_ms"] > 0


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('"own:disc"', ["[tool.fsa.health] x is 'own:disc'", "did you mean own:disk?"]),
        ('"own"', ["[tool.fsa.health] x must be 'module:function', not 'own'"]),
        ('"nowhere:x"', ["there is no module 'nowhere'"]),
    ],
)
def test_a_check_that_is_not_there_is_a_wrong_setting(
    fsa, write_app, tmp_path, value, says
) -> None:
    write_app(tmp_path, {"pyproject.toml": f"[tool.fsa.health]\nx = {value}\n"}, main=APP, own=OWN)

    done = fsa("health")

    assert done.returncode == 3
    for text in says:
        assert text in done.stderr


def test_wait_ends_when_the_database_has_come_up(
    fsa_process, write_app, postgresql, tmp_path
) -> None:
    write_app(tmp_path, main=APP)
    with proxy_to(postgresql.url) as proxy:
        proxy.silent.set()
        env = {"FSA_DB_URL_REPORTS": proxy.url(postgresql.url)}
        waiting = fsa_process("health", "--wait", "5m", "--timeout", "1", env=env)
        waiting.wait_for("waiting for database reports")
        proxy.silent.clear()
        done = waiting.wait()

    assert done.returncode == 0, done.stderr
    assert "database reports\tok\t" in done.stdout
    assert done.stdout.count("check\t") == 1


def test_servers_that_are_silent_are_asked_at_once(
    fsa_process, write_app, silent_server, tmp_path
) -> None:
    host, port = silent_server.getsockname()
    url = f"postgresql+psycopg://me@{host}:{port}/x"
    write_app(tmp_path, main=APP)

    env = {"FSA_DB_URL": url, "FSA_DB_URL_REPORTS": url, "FSA_LEDGER_URL": url}
    asking = fsa_process("health", "--timeout", "600", env=env)

    # The two databases and the ledger: none of them has been answered.
    connections = [silent_server.accept()[0] for _ in range(3)]
    asking.stop()
    for each in connections:
        each.close()


def test_wait_gives_up_with_exit_1_and_says_what_fails(fsa, write_app, tmp_path) -> None:
    write_app(tmp_path, main=APP)

    env = {"FSA_DB_URL_REPORTS": "postgresql+psycopg://me@127.0.0.1:1/x"}
    done = fsa("health", "ready", "--wait", "2s", env=env)

    assert done.returncode == 1
    assert "database reports\tFAILED" in done.stdout
    assert done.stderr.count("waiting for database reports") == 1
    for words in (["--wait", "soon"], ["--wait", "3 fortnights"], ["--timeout", "0"]):
        assert fsa("health", *words).returncode == 2, words


def test_watch_checks_again_until_it_is_interrupted(fsa_process, write_app, tmp_path) -> None:
    write_app(tmp_path, main=APP)

    watching = fsa_process("health", "--watch", "--json")
    wait_until(lambda: watching.stdout.count("\n") >= 2)
    done = watching.stop(signal.SIGINT)

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(each["ok"] for each in rounds)
    assert rounds[0]["at"] < rounds[1]["at"]


def test_watch_on_a_terminal_redraws_one_screen(terminal, write_app, tmp_path) -> None:
    write_app(tmp_path, main=APP)

    screen = terminal("fsa", "health", "--watch")
    for _ in range(2):
        screen.expect(r"database reports +\x1b\[32mok")
        screen.expect("again every 2 s")
    screen.sendintr()
    screen.expect_exact(pexpect.EOF)
    screen.close()

    assert screen.exitstatus == 0


def test_live_is_read_from_the_heartbeat_without_importing_the_app(
    fsa, write_app, tmp_path
) -> None:
    write_app(tmp_path, {"pyproject.toml": ""}, main="raise SystemError('imported')")
    env = {"FSA_STATE_DIR": str(tmp_path / "state")}

    assert fsa("health", "live", env=env).returncode == 1
    file = Path(state_dir(env, str(tmp_path)), "heartbeat")
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

    one = state_dir(env, str(tmp_path / "one" / "shop"))
    two = state_dir(env, str(tmp_path / "two" / "shop"))

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
def silent_server():
    """It accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE_S)
        yield server


@pytest.fixture
def silent_port(silent_server):
    return silent_server.getsockname()[1]


def _below(directory: Path) -> Path:
    below = directory / "pkg" / "deep"
    below.mkdir(parents=True, exist_ok=True)
    return below
