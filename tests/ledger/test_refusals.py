"""A ledger that may not be created, may not be written, or has no room left: what `fsa` says."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from support.backends import Backend
from support.processes import Run, as_a_user, environment
from support.shops import Shop
from support.waiting import wait_until

TASKS = """
@task(schedule="every 1s")
def ship(): ...
"""
READS_AND_WRITES = "pg_read_all_data, pg_write_all_data"
FULL = {
    "postgresql": """
    CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE EXCEPTION 'could not extend file "base/1": No space left on device'
        USING ERRCODE = 'disk_full';
    END $$;
    CREATE TRIGGER full_disk BEFORE INSERT ON fsa_run FOR EACH ROW EXECUTE FUNCTION full_disk();
    """,
    "mariadb": """
    CREATE TRIGGER full_disk BEFORE INSERT ON fsa_run FOR EACH ROW SIGNAL SQLSTATE 'HY000'
    SET MYSQL_ERRNO = 1114, MESSAGE_TEXT = "The table 'fsa_run' is full";
    """,
}
# SQLite's file may grow no more: what it says is the same as on a disk that is full.
LIMITED = """
import resource, sys
from fsa_cli.cli.app import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Backend:
    backend: Backend = request.getfixturevalue(request.param)
    return backend


@pytest.fixture
def writer(server: Backend) -> Iterator[str]:
    """The URL of a user who may write every table and create none."""
    name = f"{server.location.database}_w"
    if server.name == "postgresql":
        server.execute(f"CREATE ROLE {name} LOGIN; GRANT {READS_AND_WRITES} TO {name}")
    else:
        server.execute(f"CREATE USER {name}; GRANT SELECT, INSERT, UPDATE, DELETE ON *.* TO {name}")
    url = make_url(server.url).set(username=name, password=None)
    yield url.render_as_string(hide_password=False)
    if server.name == "postgresql":
        server.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
    else:
        server.execute(f"DROP USER {name}")


def test_a_user_who_may_create_nothing_is_given_the_sql(
    fsa: Run, tmp_path: Path, server: Backend, writer: str
) -> None:
    Shop(tmp_path, server).write(TASKS)
    env = {"FSA_DB_URL": writer}
    for command in ("scheduler init", "scheduler start", "worker start", "run-task ship --enqueue"):
        done = fsa(*command.split(), env=env)
        assert done.returncode == 3, command
        assert "error: the ledger's tables cannot be created\n" in done.stderr
        assert f"as {make_url(writer).username}\n" in done.stderr
        assert "denied" in done.stderr
        assert "hint: fsa scheduler init --sql prints them" in done.stderr
        assert len(done.stderr.splitlines()) <= 5
    assert fsa("run-task", "ship", env=env).returncode == 0
    health = fsa("health", env=env)
    assert health.returncode == 1
    assert "no ledger of runs yet; fsa scheduler start creates it" in health.stdout
    assert "fsa scheduler init" in fsa("status", env=env).stdout

    statements = fsa("scheduler", "init", "--sql", env=env).stdout
    server.execute(statements)
    assert fsa("scheduler", "init", env=env).returncode == 0


def test_a_full_disk_is_no_outage(fsa: Run, tmp_path: Path, server: Backend) -> None:
    Shop(tmp_path, server).write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    server.execute(FULL[server.name])
    done = fsa("run-task", "ship", "--enqueue")
    assert done.returncode == 3
    assert "error: the disk of the ledger's database is full" in done.stderr
    assert "hint: the disk of the database is full: make room there" in done.stderr
    ran = fsa("run-task", "ship")
    assert ran.returncode == 0
    assert "not recorded: the disk of the ledger's database is full" in ran.stderr


def test_a_scheduler_says_that_the_disk_is_full(
    fsa: Run, fsa_process, tmp_path: Path, postgresql: Backend
) -> None:
    shop = Shop(tmp_path, postgresql)
    shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    process = fsa_process("scheduler", "start")
    # One that starts and finds that it can write nothing ends with an error.
    wait_until(lambda: shop.ledger("SELECT 1 FROM fsa_run"))
    postgresql.execute(FULL["postgresql"])
    wait_until(lambda: "warning: the disk of the ledger's database is full: " in process.stderr)
    postgresql.execute("DROP TRIGGER full_disk ON fsa_run")
    wait_until(lambda: "the ledger is back after" in process.stderr)
    assert "cannot be reached" not in process.stop().stderr


@pytest.mark.slow
def test_a_full_disk_under_a_file_is_no_outage(
    fsa: Run, python: Run, tmp_path: Path, sqlite: Backend
) -> None:
    Shop(tmp_path, sqlite).write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    for command in ("scheduler start", "runs", "scheduler pause ship"):
        done = python("-c", LIMITED, *command.split())
        assert done.returncode == 3, command
        assert "error: the ledger's database refuses" in done.stderr
        assert "hint: the disk under the database's file is full, or fails" in done.stderr
    assert "is full, or fails" in python("-c", LIMITED, "health").stdout
    status = python("-c", LIMITED, "status")
    assert (status.returncode, "is full, or fails" in status.stdout) == (0, True)


@pytest.mark.slow
def test_the_file_that_cannot_be_written_is_named(
    fsa: Run, tmp_path: Path, sqlite: Backend
) -> None:
    """`fsa status` said that all is well, and SQLite's "readonly database" names no file."""
    Shop(tmp_path, sqlite).write(TASKS)
    ledger = tmp_path / "ledger.db"
    changes = {"FSA_LEDGER_URL": f"sqlite:///{ledger}"}
    assert fsa("scheduler", "init", env=changes).returncode == 0
    ledger.chmod(0o444)

    seen = as_a_user("status", tmp_path, environment(changes))
    refused = as_a_user("scheduler pause ship", tmp_path, environment(changes))

    assert (seen.returncode, refused.returncode) == (0, 3)
    is_written = f"{ledger} may not be written by this user: its mode is 0"
    assert f"ledger     {is_written}" in seen.stdout
    assert f"  {is_written}" in refused.stderr
    # The reader has made the files beside it with its mode, and they stay when it is cured.
    ledger.chmod(0o644)
    refused = as_a_user("scheduler pause ship", tmp_path, environment(changes))
    assert (refused.returncode, f"{ledger}-shm may not" in refused.stderr) == (3, True)
    Path(f"{ledger}-shm").chmod(0o644)
    assert as_a_user("scheduler pause ship", tmp_path, environment(changes)).returncode == 0


def test_a_ledger_that_is_no_file_of_sqlites_is_no_outage(
    fsa: Run, tmp_path: Path, sqlite: Backend
) -> None:
    Shop(tmp_path, sqlite).write(TASKS)
    (tmp_path / "text.db").write_text("no database")
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "link.db").symlink_to("nowhere/ledger.db")
    said = {
        "text": "the file is no SQLite database, or a damaged one",
        "folder": f"{tmp_path}/folder.db is a directory",
        "link": f"{tmp_path}/link.db is a link to nowhere/ledger.db, which does not exist",
    }
    for name, text in said.items():
        env = {"FSA_LEDGER_URL": f"sqlite:///{tmp_path}/{name}.db"}
        for command in ("status", "runs", "scheduler init", "scheduler start"):
            done = fsa(*command.split(), env=env)
            assert done.returncode == (0 if command == "status" else 3), (name, command)
            assert text in done.stdout + done.stderr, (name, command)
            assert len(done.stderr.splitlines()) < 8


@pytest.mark.slow
def test_a_folder_that_is_read_only_is_no_outage(fsa: Run, tmp_path: Path, sqlite: Backend) -> None:
    Shop(tmp_path, sqlite).write(TASKS)
    (ledger := tmp_path / "files").mkdir()
    env = environment({"FSA_LEDGER_URL": f"sqlite:///{ledger}/ledger.db"})

    def said(command: str) -> str:
        done = as_a_user(command, tmp_path, env)
        assert done.returncode == 3, command
        return done.stderr

    ledger.chmod(0o555)
    assert f"  {ledger} may not be written by this user: its mode is 0555" in said("scheduler init")
    ledger.chmod(0o755)
    assert fsa("scheduler", "init", env={"FSA_LEDGER_URL": env["FSA_LEDGER_URL"]}).returncode == 0
    ledger.chmod(0o555)
    try:
        for command in ("scheduler start", "runs", "scheduler pause ship"):
            assert "hint: nothing can be written there: a read-only file or folder" in said(command)
    finally:
        ledger.chmod(0o755)
