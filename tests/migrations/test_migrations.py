"""Alembic through `fsa db`: with and without an alembic.ini, on sync and async drivers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, text

from support.backends import connect_postgresql, read_only
from support.migrating import APP, HOOK
from support.postgresql_server import postgresql_server
from support.processes import FSA

HIDE = "import sys\nfor name in {names}: sys.modules[name] = None\n"
SYNC_DRIVERS = {
    "postgresql": ("psycopg", "psycopg2", "pg8000"),
    "mariadb": ("pymysql", "MySQLdb", "mariadb", "mysql"),
    "sqlite": (),
}
ASYNC_DRIVER = {"postgresql": "asyncpg", "mariadb": "asyncmy", "sqlite": "aiosqlite"}
MIGRATION = '''
"""{message}"""
import sqlalchemy as sa
from alembic import op

revision = {revision!r}
down_revision = {down!r}


def upgrade():
    {up}


def downgrade():
    {down_sql}
'''

KINDS = """
import sqlalchemy as sa

class Money(sa.TypeDecorator):
    impl = sa.Numeric(12, 2)
    cache_ok = True
"""


def add_column(project: Path) -> None:
    main = project / "main.py"
    name = "    name: Mapped[str] = mapped_column(String(80))\n"
    more = "    note: Mapped[str | None] = mapped_column(String(20))\n"
    main.write_text(main.read_text().replace(name, name + more))


def write_migration(
    folder: Path,
    revision: str,
    down: str | None = None,
    *,
    up: str = "pass",
    down_sql: str = "pass",
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = MIGRATION.format(
        message=f"the {revision} one", revision=revision, down=down, up=up, down_sql=down_sql
    )
    (folder / f"{revision}.py").write_text(text)


@pytest.fixture
def project(write_app, tmp_path: Path) -> Path:
    return write_app(tmp_path, main=APP)


@pytest.fixture
def alembic_init(project: Path):
    """`alembic init`, as its users run it."""

    def init(template: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "alembic", "init", "-t", template, "scripts"],
            cwd=project,
            check=True,
            capture_output=True,
        )

    return init


def columns(backend, table: str = "users") -> set[str]:
    if backend.name == "sqlite":
        return {row[1] for row in backend.rows(f"PRAGMA table_info({table})")}
    schema = "public" if backend.name == "postgresql" else backend.location.database
    return {
        name
        for (name,) in backend.rows(
            "SELECT column_name FROM information_schema.columns"
            f" WHERE table_schema = '{schema}' AND table_name = '{table}'"
        )
    }


@pytest.mark.parametrize("driver", ["sync", "async"])
def test_without_an_ini_it_writes_applies_and_takes_back(fsa, project, backend, driver) -> None:
    url = backend.url
    if driver == "async":
        source = HIDE.format(names=SYNC_DRIVERS[backend.name]) + (project / "main.py").read_text()
        (project / "main.py").write_text(source)
        url = backend.with_driver(ASYNC_DRIVER[backend.name])
    env = {"FSA_DB_URL": url}
    backend.execute("CREATE TABLE fsa_runs (id integer)")

    written = fsa("db", "revision", "--autogenerate", "-m", "first", env=env)
    assert written.returncode == 0, written.stderr
    assert "add table users" in written.stderr
    first = project / written.stdout.strip()
    assert first.parent == project / "migrations" / "versions"
    assert "fsa_runs" not in first.read_text()

    upgraded = json.loads(fsa("db", "upgrade", "--json", env=env).stdout)
    assert [step["direction"] for step in upgraded["steps"]] == ["upgrade"]
    assert upgraded["at_head"] is True
    assert columns(backend) == {"id", "name"}
    assert columns(backend, "fsa_runs") == {"id"}

    if driver == "async":
        backend.assert_released()
        return
    add_column(project)
    again = json.loads(
        fsa("db", "revision", "--autogenerate", "-m", "add note", "--json", env=env).stdout
    )
    assert again["changes"] == ["add column users.note"]

    behind = fsa("db", "current", "--json", env=env)
    assert behind.returncode == 5
    state = json.loads(behind.stdout)
    assert state["current"] == upgraded["current"]
    assert [each["message"] for each in state["pending"]] == ["add note"]
    assert json.loads(behind.stderr)["error"] == "schema_behind"

    assert fsa("db", "upgrade", "-q", env=env).returncode == 0
    assert columns(backend) == {"id", "name", "note"}
    nothing = fsa("db", "revision", "--autogenerate", "--json", env=env)
    assert json.loads(nothing.stdout) == {"revision": None, "changes": []}

    back = fsa("db", "downgrade", "-1", "--yes", env=env)
    assert (back.returncode, columns(backend)) == (0, {"id", "name"}), back.stderr
    stamped = fsa("db", "stamp", "head", env=env)
    assert (stamped.returncode, columns(backend)) == (0, {"id", "name"})
    wrong = fsa("db", "check", env=env)
    assert wrong.returncode == 5
    assert "missing column\tusers\tnote" in wrong.stdout
    backend.assert_released()


@pytest.mark.parametrize("schemas", [("sales",), ("public",), ("sales", None)], ids=str)
def test_tables_in_a_schema_are_compared_there(fsa, project, postgresql, schemas) -> None:
    """`db check` and a migration that is written see the same."""
    env = {"FSA_DB_URL": postgresql.url}
    postgresql.execute("CREATE SCHEMA sales")
    postgresql.execute("CREATE TABLE sales.others_too (id int); CREATE TABLE fsa_runs (id int)")
    first, *more = schemas
    main = (project / "main.py").read_text()
    table = f'__tablename__ = "users"; __table_args__ = {{"schema": "{first}"}}'
    main = main.replace('__tablename__ = "users"', table)
    if more:
        main += "class Note(Base):\n    __tablename__ = 'notes'\n"
        main += f"    user: Mapped[int] = mapped_column(ForeignKey('{first}.users.id'), "
        main += "primary_key=True)\n"
        main = main.replace("import String", "import ForeignKey, String")
    (project / "main.py").write_text(main)

    assert fsa("db", "revision", "--autogenerate", "-m", "first", env=env).returncode == 0
    written = (project / "migrations" / "versions").glob("*_first.py")
    assert "fsa_runs" not in next(written).read_text()
    if first == "sales":
        postgresql.execute("ALTER SCHEMA sales RENAME TO elsewhere")
        for words in (["create"], ["upgrade"]):
            assert 'op.execute("CREATE SCHEMA' in fsa("db", *words, env=env).stderr
        postgresql.execute("ALTER SCHEMA elsewhere RENAME TO sales")
    done = fsa("db", "upgrade", env=env)
    assert done.returncode == 0, done.stderr
    assert fsa("db", "check", env=env).returncode == 0
    nothing = fsa("db", "revision", "--autogenerate", "--json", env=env)
    assert json.loads(nothing.stdout) == {"revision": None, "changes": []}

    add_column(project)
    assert fsa("db", "check", env=env).returncode == 5
    assert "CREATE" not in fsa("db", "check", "--sql", env=env).stdout
    again = fsa("db", "revision", "--autogenerate", "--json", env=env)
    place = "users" if first == "public" else f"{first}.users"
    assert json.loads(again.stdout)["changes"] == [f"add column {place}.note"]
    assert fsa("db", "upgrade", env=env).returncode == 0
    assert fsa("db", "check", env=env).returncode == 0


def test_a_migration_imports_the_types_of_the_teams_own(fsa, project, backend) -> None:
    env = {"FSA_DB_URL": backend.url}
    (project / "shop_kinds.py").write_text(KINDS)
    main = (project / "main.py").read_text()
    main = main.replace("import String", "import String; from shop_kinds import Money")
    main = main.replace(
        "mapped_column(String(80))",
        "mapped_column(String(80))\n    price: Mapped[object] = mapped_column(Money)",
    )
    (project / "main.py").write_text(main)

    made = fsa("db", "revision", "--autogenerate", "-m", "first", env=env)
    assert made.returncode == 0, made.stderr
    script = project / made.stdout.strip()
    assert "import shop_kinds\n" in script.read_text()
    assert fsa("db", "upgrade", env=env).returncode == 0
    assert fsa("db", "check", env=env).returncode == 0

    script.write_text(script.read_text().replace("import shop_kinds\n", ""))
    assert fsa("db", "downgrade", "base", "--yes", env=env).returncode == 0
    failed = fsa("db", "upgrade", env=env)
    assert failed.returncode == 1
    assert "hint: the migration has no import of shop_kinds: write it at its top" in failed.stderr


def test_a_database_that_has_its_tables_begins_with_a_baseline(fsa, project, backend) -> None:
    env = {"FSA_DB_URL": backend.url}
    assert fsa("db", "create", "--yes", env=env).returncode == 0
    same = fsa("db", "revision", "--autogenerate", "-m", "begin", env=env)
    assert (same.returncode, "fsa db revision --baseline" in same.stderr) == (0, True), same.stderr

    begun = fsa("db", "revision", "--baseline", "-m", "begin", env=env)
    assert begun.returncode == 0, begun.stderr
    assert 'create_table("users"' in (project / begun.stdout.strip()).read_text().replace("'", '"')
    assert "fsa db stamp head" in begun.stderr
    assert fsa("db", "stamp", "head", env=env).returncode == 0
    assert fsa("db", "current", env=env).returncode == 0
    assert fsa("db", "check", env=env).returncode == 0
    again = fsa("db", "revision", "--baseline", env=env)
    assert (again.returncode, "there are migrations" in again.stderr) == (2, True), again.stderr

    add_column(project)
    assert fsa("db", "revision", "--autogenerate", "-m", "note", env=env).returncode == 0
    assert fsa("db", "upgrade", env=env).returncode == 0
    empty = {"FSA_DB_URL": "sqlite:///empty.db"}
    assert fsa("db", "upgrade", env=empty).returncode == 0
    assert fsa("db", "check", env=empty).returncode == 0


def test_a_database_that_is_ahead_of_the_code_is_said_to_be(fsa, project, sqlite) -> None:
    """A deploy was rolled back, its migration was not."""
    env = {"FSA_DB_URL": sqlite.url}
    assert fsa("db", "revision", "--autogenerate", "-m", "first", env=env).returncode == 0
    assert fsa("db", "upgrade", env=env).returncode == 0
    sqlite.execute("UPDATE alembic_version SET version_num = 'ffff'")
    for command in ("current", "history", "check"):
        done = fsa("db", command, env=env)
        assert done.returncode == 1
        assert "the database is at revision ffff, which these migrations do not" in done.stderr
        assert "hint: a newer release or another branch has migrated it" in done.stderr
    assert "fsa db current says where" in fsa("db", "upgrade", env=env).stderr


def test_history_and_current_tell_what_is_applied(fsa, project, sqlite) -> None:
    folder = project / "migrations" / "versions"
    write_migration(folder, "aaa1")
    write_migration(folder, "bbb2", "aaa1")
    write_migration(folder, "ccc3", "bbb2")
    env = {"FSA_DB_URL": sqlite.url}
    assert fsa("db", "upgrade", "bbb2", env=env).returncode == 0

    assert fsa("db", "history", env=env).stdout.splitlines() == [
        "revision\tafter\tmessage\tstate",
        "ccc3\tbbb2\tthe ccc3 one\tto apply",
        "bbb2\taaa1\tthe bbb2 one\tcurrent",
        "aaa1\t\tthe aaa1 one\tapplied",
    ]
    current = fsa("db", "current", env=env)
    assert current.returncode == 5
    assert current.stdout.splitlines()[1:] == [
        "bbb2\tthe bbb2 one\tcurrent",
        "ccc3\tthe ccc3 one\tto apply",
    ]
    refused = fsa("db", "revision", "--autogenerate", env=env)
    assert (refused.returncode, len(list(folder.glob("*.py")))) == (5, 3)
    unreachable = {"FSA_DB_URL": "postgresql+psycopg://me:sesame@127.0.0.1:1/x"}
    listed = fsa("db", "history", "--json", env=unreachable)
    assert [each["state"] for each in json.loads(listed.stdout)] == [None, None, None]
    assert fsa("db", "current", env=unreachable).returncode == 4


@pytest.mark.parametrize("template", ["generic", "async", "pyproject"])
def test_the_files_of_alembic_init_work_as_they_are(
    fsa, project, alembic_init, postgresql, template
) -> None:
    """Their env.py names neither a URL nor models, and has a sync or an async engine."""
    (project / "pyproject.toml").touch()
    alembic_init(template)
    (project / "deep").mkdir()
    driver = "psycopg2" if template == "async" else "psycopg"
    env = {"FSA_DB_URL": postgresql.with_driver(driver), "FSA_APP": str(project / "main.py")}

    written = fsa("db", "revision", "--autogenerate", "-m", "first", env=env)
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith("scripts/versions/")
    done = fsa("db", "upgrade", cwd=project / "deep", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("upgrade ") == 1, done.stderr
    assert columns(postgresql) == {"id", "name"}


def test_the_only_alembic_ini_below_the_project_is_used(fsa, project, alembic_init, sqlite) -> None:
    alembic_init("generic")
    service = project / "src" / "service"
    service.mkdir(parents=True)
    for name in ("alembic.ini", "scripts"):
        (project / name).rename(service / name)
    ini = service / "alembic.ini"
    ini.write_text(ini.read_text().replace("%(here)s/scripts", "scripts"))
    write_migration(service / "scripts" / "versions", "one")
    env = {"FSA_DB_URL": sqlite.url}

    checked, health = fsa("db", "check", env=env), fsa("health", env=env)

    assert (checked.returncode, health.returncode) == (5, 1)
    assert "hint: fsa db upgrade" in checked.stderr
    assert "has no revision, head is one" in health.stdout
    assert fsa("db", "upgrade", env=env).returncode == 0
    assert "current, head" in fsa("db", "current", env=env).stdout
    (project / "other").mkdir()
    (project / "other" / "alembic.ini").write_text("[alembic]\n")
    several = fsa("db", "current", env=env)
    assert several.returncode == 2
    assert "which migrations? There are 2 alembic.ini below" in several.stderr
    assert "hint: ALEMBIC_CONFIG=other/alembic.ini names one" in several.stderr
    assert fsa("db", "revision", "-m", "third", env=env).returncode == 2
    assert not (project / "migrations").exists()
    named = {**env, "ALEMBIC_CONFIG": "src/service/alembic.ini"}
    assert "current, head" in fsa("db", "current", env=named).stdout


def test_an_env_py_of_another_database_is_refused(fsa, project, alembic_init, sqlite) -> None:
    alembic_init("generic")
    environment = project / "scripts" / "env.py"
    theirs = 'config = context.config\nconfig.set_main_option("sqlalchemy.url", "sqlite:///o.db")'
    environment.write_text(environment.read_text().replace("config = context.config", theirs))

    done = fsa("db", "current", env={"FSA_DB_URL": sqlite.url})

    assert done.returncode == 3
    assert "connects to another database than the app" in done.stderr


def test_an_env_py_of_another_server_in_the_query_is_refused(
    fsa, project, alembic_init, postgresql
) -> None:
    """Both databases have the same name and their hosts in the query, as Cloud SQL writes it."""
    alembic_init("generic")
    place = postgresql.location
    url = (
        f"postgresql+psycopg://{place.username}@/{place.database}"
        f"?host={place.host or '/var/run/postgresql'}&port={place.port or 5432}"
    )
    environment = project / "scripts" / "env.py"
    with postgresql_server() as server:
        with connect_postgresql(server.url) as connection:
            connection.execute(f'CREATE DATABASE "{place.database}"')
        other = f"postgresql+psycopg://postgres@/{place.database}?host=127.0.0.1&port={server.port}"
        theirs = f'config = context.config\nconfig.set_main_option("sqlalchemy.url", "{other}")'
        environment.write_text(environment.read_text().replace("config = context.config", theirs))
        env = {"FSA_DB_URL": url, "PGPASSWORD": place.password or ""}

        done = fsa("db", "upgrade", "--yes", env=env)

    assert done.returncode == 3, done.stderr
    assert "connects to another database than the app" in done.stderr
    assert f"127.0.0.1:{server.port}" in done.stderr


def test_a_migration_on_a_standby_is_told_why_nothing_can_be_written(
    fsa, project, postgresql
) -> None:
    env = {"FSA_DB_URL": postgresql.url}
    done = fsa("db", "revision", "-m", "x", env=env)
    assert done.returncode == 0, done
    with read_only(postgresql):
        done = fsa("db", "upgrade", env=env)
    assert done.returncode == 1
    assert "hint: nothing can be written there" in done.stderr


def test_a_migration_that_raises_is_reported_with_its_line(fsa, project, postgresql) -> None:
    folder = project / "migrations" / "versions"
    write_migration(folder, "aaa1", up="op.execute('create table one (id integer)')")
    write_migration(folder, "bbb2", "aaa1", up="op.execute('create tabel two (id integer)')")

    done = fsa("db", "upgrade", env={"FSA_DB_URL": postgresql.url})

    assert done.returncode == 1
    assert "migrations/versions/bbb2.py, line 11, in upgrade" in done.stderr
    assert "SyntaxError" in done.stderr
    assert "hint: fsa db current" in done.stderr
    assert len(done.stderr.splitlines()) <= 8
    assert postgresql.rows("SELECT to_regclass('one')") == [(None,)]


def test_sql_is_printed_and_nothing_connects(fsa, project) -> None:
    write_migration(
        project / "migrations" / "versions",
        "aaa1",
        up="op.create_table('one', sa.Column('id', sa.Integer))",
    )

    done = fsa("db", "upgrade", "--sql", env={"FSA_DB_URL": "postgresql+psycopg://127.0.0.1:1/x"})

    assert done.returncode == 0, done.stderr
    assert "CREATE TABLE one" in done.stdout
    reading, writing = os.pipe()
    os.close(reading)
    unread = subprocess.run(
        [FSA, "db", "upgrade", "--sql"], cwd=project, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (unread.returncode, unread.stderr) == (141, b"")

    write_migration(project / "migrations" / "versions", "bbb2", "aaa1", up="1 / 0")
    failed = fsa("db", "upgrade", "--sql")
    assert (failed.returncode, failed.stdout) == (1, "")


def test_a_downgrade_asks_and_a_protected_one_wants_the_name(
    fsa, terminal, write_app, tmp_path
) -> None:
    write_app(
        tmp_path, {"pyproject.toml": "[tool.fsa.env.production]\nprotected = true\n"}, main=APP
    )
    write_migration(tmp_path / "migrations" / "versions", "aaa1")
    assert fsa("db", "upgrade").returncode == 0

    assert fsa("db", "downgrade").returncode == 6
    protected = {"FSA_ENV": "production"}
    assert fsa("db", "downgrade", "--yes", env=protected).returncode == 6
    child = terminal("fsa", "db", "downgrade", "base", env=protected)
    child.expect(r"take every migration back, aaa1 \(the aaa1 one\).*\(shop.db\)")
    child.sendline("shop.db")
    child.expect("downgrade aaa1")
    child.expect("has no revision")
    assert fsa("db", "upgrade", "--confirm", "shop.db", env=protected).returncode == 0


def test_without_migrations_or_alembic_it_says_what_to_do(fsa, project) -> None:
    none = fsa("db", "upgrade")
    assert none.returncode == 2
    assert "this project has no migrations" in none.stderr

    hidden = "import sys\nsys.modules['alembic'] = None\n"
    (project / "main.py").write_text(hidden + (project / "main.py").read_text())
    missing = fsa("db", "upgrade")
    assert missing.returncode == 3
    assert "hint: pip install 'fastapi-sqlalchemy[alembic]'" in missing.stderr


def test_health_fails_where_the_schema_is_behind(fsa, project, sqlite) -> None:
    write_migration(project / "migrations" / "versions", "aaa1")
    env = {"FSA_DB_URL": sqlite.url}

    behind = fsa("health", "--json", env=env)
    assert fsa("db", "upgrade", env=env).returncode == 0
    well = fsa("health", "--json", env=env)

    schema = [
        next(each for each in json.loads(done.stdout)["checks"] if each["check"] == "schema")
        for done in (behind, well)
    ]
    assert [each["ok"] for each in schema] == [False, True]
    assert "not at head" in schema[0]["detail"]
    assert (behind.returncode, well.returncode) == (1, 0)


@pytest.mark.parametrize("driver", ["sync", "async"])
def test_three_pods_that_upgrade_at_once_all_exit_with_0(
    fsa_process, project, backend, driver
) -> None:
    """One migrates; the others wait, also while an index is built that waits for them."""
    url = backend.url
    if driver == "async":
        source = HIDE.format(names=SYNC_DRIVERS[backend.name]) + (project / "main.py").read_text()
        (project / "main.py").write_text(source)
        url = backend.with_driver(ASYNC_DRIVER[backend.name])
    folder = project / "migrations" / "versions"
    slow = "op.create_table('one', sa.Column('id', sa.Integer)); import time; time.sleep(1)"
    write_migration(folder, "aaa1", up=slow)
    if backend.name == "postgresql":
        concurrently = "with op.get_context().autocommit_block():\n"
        concurrently += "        op.execute('CREATE INDEX CONCURRENTLY i ON one (id)')"
        write_migration(folder, "bbb2", "aaa1", up=concurrently)

    started = [fsa_process("db", "upgrade", env={"FSA_DB_URL": url}) for _ in range(3)]
    ended = [each.wait() for each in started]

    assert [each.returncode for each in ended] == [0, 0, 0], [each.stderr for each in ended]
    said = [each.stderr for each in ended]
    assert sum("upgrade aaa1" in each for each in said) == 1
    assert sum("another process migrates this database" in each for each in said) == 2
    assert not list(project.glob("*.lock"))
    backend.assert_released()


def test_behind_a_pooler_in_transaction_mode_one_of_them_migrates(
    fsa_process, project, pgbouncer
) -> None:
    slow = "op.create_table('one', sa.Column('id', sa.Integer)); import time; time.sleep(3)"
    write_migration(project / "migrations" / "versions", "aaa1", up=slow)

    env = {"FSA_DB_URL": pgbouncer.url}
    ended = [each.wait() for each in [fsa_process("db", "upgrade", env=env) for _ in range(3)]]

    assert [each.returncode for each in ended] == [0, 0, 0], [each.stderr for each in ended]
    assert sum("upgrade aaa1" in each.stderr for each in ended) == 1


def test_a_lock_of_the_sites_is_not_waited_for_but_tried_again(
    fsa_process, write_app, tmp_path, backend
) -> None:
    """In a protected environment by itself; the site goes on meanwhile."""
    protected = "[tool.fsa.env.production]\nprotected = true\n"
    project = write_app(tmp_path, {"pyproject.toml": protected}, main=APP)
    backend.execute("CREATE TABLE users (id integer, name varchar(80))")
    folder = project / "migrations" / "versions"
    more = "op.add_column('users', sa.Column({!r}, sa.Integer))"
    write_migration(folder, "aaa1", up=more.format("a"))
    write_migration(folder, "bbb2", "aaa1", up=more.format("b"))
    name = Path(backend.location.database).name
    engine = create_engine(backend.url, poolclass=NullPool)
    with engine.connect() as reader:
        if backend.name == "sqlite":
            reader.exec_driver_sql("BEGIN EXCLUSIVE")
        else:
            reader.execute(text("SELECT * FROM users"))
        env = {"FSA_DB_URL": backend.url, "FSA_ENV": "production"}
        upgrade = fsa_process("db", "upgrade", "--confirm", name, env=env)
        if backend.name == "sqlite":
            ended = upgrade.wait()
            assert ended.returncode == 1
            assert "database is locked" in ended.stderr
            return
        upgrade.wait_for("a lock was not free within 2 s")
        assert backend.rows("SELECT * FROM users") == []
        reader.rollback()
    ended = upgrade.wait()

    assert ended.returncode == 0, ended.stderr
    assert columns(backend) == {"id", "name", "a", "b"}
    assert "the schema is at head: bbb2" in ended.stderr


def test_a_migration_that_uses_op_when_it_is_read_is_shown_and_applied(
    fsa, project, backend
) -> None:
    folder = project / "migrations" / "versions"
    write_migration(folder, "aaa1")
    script = folder / "aaa1.py"
    script.write_text(script.read_text() + "\n\nis_lite = op.get_bind().dialect.name\n")
    env = {"FSA_DB_URL": backend.url}

    assert fsa("db", "current", env=env).returncode == 5
    assert "aaa1\t\tthe aaa1 one\tto apply" in fsa("db", "history", env=env).stdout
    assert "not at head" in fsa("health", env=env).stdout
    assert fsa("db", "upgrade", env=env).returncode == 0
    assert "aaa1\tthe aaa1 one\tcurrent, head" in fsa("db", "current", env=env).stdout
    away = {"FSA_DB_URL": "postgresql+psycopg://me@127.0.0.1:1/x"}
    assert "aaa1\t\tthe aaa1 one\t" in fsa("db", "history", env=away).stdout
    assert fsa("db", "downgrade", "--yes", env=env).returncode == 0

    script.write_text(script.read_text() + "\nraise RuntimeError('broken')\n")
    for command in ("current", "history"):
        broken = fsa("db", command, env=env)
        assert broken.returncode == 1
        assert "RuntimeError: broken" in broken.stderr
        assert f"fsa db {command}" not in broken.stderr


def test_several_heads_are_upgraded_or_merged(fsa, project, sqlite) -> None:
    folder = project / "migrations" / "versions"
    for each in ("aaa1", "bbb2"):
        write_migration(folder, each)
    env = {"FSA_DB_URL": sqlite.url}

    refused = fsa("db", "upgrade", env=env)
    assert refused.returncode == 1
    assert "hint: fsa db upgrade heads applies them all; fsa db merge joins" in refused.stderr
    assert fsa("db", "upgrade", "heads", env=env).returncode == 0
    written = fsa("db", "merge", "-m", "one again", env=env)
    assert written.returncode == 0, written.stderr
    assert "one_again" in written.stdout
    assert fsa("db", "upgrade", env=env).returncode == 0
    assert fsa("db", "merge", env=env).returncode == 2
    assert fsa("db", "upgrade", "--lock-timeout", "soon", env=env).returncode == 2


def test_x_reaches_the_env_py_and_sqlite_is_told_of_batch_mode(
    fsa, project, alembic_init, sqlite
) -> None:
    alembic_init("generic")
    environment = project / "scripts" / "env.py"
    told = "print(context.get_x_argument(as_dictionary=True))\n"
    environment.write_text(environment.read_text() + told)
    write_migration(project / "scripts" / "versions", "aaa1")
    alter = "op.alter_column('users', 'name', nullable=False)"
    write_migration(project / "scripts" / "versions", "bbb2", "aaa1", up=alter)
    env = {"FSA_DB_URL": sqlite.url}
    sqlite.execute("CREATE TABLE users (id integer, name varchar(80))")

    done = fsa("db", "upgrade", "aaa1", "-x", "tenant=a", "-x", "dry=1", env=env)
    assert "{'tenant': 'a', 'dry': '1'}" in done.stderr
    failed = fsa("db", "upgrade", env=env)
    assert failed.returncode == 1
    assert "op.batch_alter_table" in failed.stderr


def test_the_teams_own_alembic_leaves_the_ledger_alone(
    fsa, python, project, alembic_init, backend
) -> None:
    alembic_init("generic")
    ini = project / "alembic.ini"
    url = backend.url.replace("%", "%%")
    ini.write_text(ini.read_text().replace("driver://user:pass@localhost/dbname", url))
    environment = project / "scripts" / "env.py"
    models = "from main import Base\ntarget_metadata = Base.metadata"
    environment.write_text(environment.read_text().replace("target_metadata = None", models))
    env = {"FSA_DB_URL": backend.url}
    assert fsa("db", "create", env=env).returncode == 0
    assert fsa("db", "stamp", "head", env=env).returncode == 0

    made = fsa("scheduler", "init", env=env)
    assert "would drop the tables fsa_*" in made.stderr
    assert python("-m", "alembic", "check").returncode != 0
    hook = environment.read_text().replace("connection=connection,", HOOK)
    environment.write_text("from fsa_cli import include_name\n" + hook)
    checked = python("-m", "alembic", "check")
    assert checked.returncode == 0, checked.stderr
    assert "would drop" not in fsa("scheduler", "init", env=env).stderr
    assert fsa("db", "current", env=env).returncode == 0
