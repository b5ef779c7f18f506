"""`fsa db shell`: the database's own client, started with the app's URL."""

from pathlib import Path

import pexpect
import pytest
from sqlalchemy import make_url

from fsa_cli.database.dialects.mysql import mariadb_options
from fsa_cli.database.dialects.postgresql import psql_environment

APP = """
    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware

    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")
"""
# Tells what every user of the machine can see of it, and what only its owner can.
SPY = """#!/bin/sh
echo "arguments: $*"
echo "PGPASSWORD=$PGPASSWORD"
file=${1#--defaults-extra-file=}
if [ -f "$file" ]; then stat -c %a "$file"; cat "$file"; echo "file: $file"; fi
exit 7
"""
SECRET = r"""p@ss/w"o\rd #1"""


@pytest.fixture
def project(write_app, tmp_path: Path) -> Path:
    return write_app(tmp_path, main=APP)


@pytest.mark.parametrize("name", ["postgresql", "mariadb", "sqlite"])
def test_the_real_client_runs_on_the_apps_database(fsa, project, request, name) -> None:
    backend = request.getfixturevalue(name)
    backend.execute("CREATE TABLE here (id integer)")
    backend.execute("INSERT INTO here VALUES (41)")
    words = {
        "postgresql": ["-Atc", "select id + 1 from here"],
        "mariadb": ["-N", "-e", "select id + 1 from here"],
        "sqlite": ["select id + 1 from here"],
    }
    env = {"FSA_DB_URL": backend.async_url}

    done = fsa("db", "shell", "--", *words[name], env=env)
    piped = fsa("db", "shell", env=env, input="select id + 2 from here;\n")

    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
    assert "43" in piped.stdout


def test_a_person_types_at_it_and_ctrl_c_is_the_clients(terminal, project, postgresql) -> None:
    child = terminal("fsa", "db", "shell", env={"FSA_DB_URL": postgresql.url, "PAGER": "cat"})
    child.expect("=#")
    child.sendintr()
    child.expect("=#")
    child.sendline("select 6 * 7 as n;")
    child.expect("42")
    child.sendline("\\q")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


@pytest.mark.parametrize(
    ("client", "url"),
    [("psql", "postgresql+psycopg://me@db/shop"), ("mariadb", "mysql+pymysql://me@db/shop")],
)
def test_the_password_is_never_among_the_arguments(fsa, project, client, url) -> None:
    spy = project / "bin" / client
    spy.parent.mkdir()
    spy.write_text(SPY)
    spy.chmod(0o755)
    url = make_url(url).set(password="sesame").render_as_string(hide_password=False)
    env = {"FSA_DB_URL": url, "PATH": f"{spy.parent}:/usr/bin:/bin"}

    done = fsa("db", "shell", "--", "-e", "select 1", env=env)

    assert done.returncode == 7, done.stderr
    arguments, variable, *told = done.stdout.splitlines()
    assert "select 1" in arguments
    assert "sesame" not in arguments
    if client == "psql":
        assert variable == "PGPASSWORD=sesame"
    else:
        assert variable == "PGPASSWORD="
        assert told[0] == "600"
        assert 'password="sesame"' in told
        assert not Path(told[-1].removeprefix("file: ")).exists()


def test_a_missing_client_and_a_database_in_memory_are_reported(fsa, project) -> None:
    env = {"PATH": str(project), "FSA_DB_URL": "postgresql+psycopg://me:sesame@db/shop"}

    missing = fsa("db", "shell", env=env)
    memory = fsa("db", "shell", env={"FSA_DB_URL": "sqlite://"})

    assert missing.returncode == 3
    assert missing.stderr.startswith("error: psql is not installed\nhint: install it")
    assert memory.returncode == 2
    assert "in-memory" in memory.stderr


def test_psql_gets_the_connection_by_its_environment() -> None:
    url = make_url("postgresql+psycopg://me@db.example:6432/shop").set(password=SECRET)
    url = url.update_query_dict({"sslmode": "require", "application_name": "x"})

    assert psql_environment(url) == {
        "PGHOST": "db.example",
        "PGPORT": "6432",
        "PGUSER": "me",
        "PGPASSWORD": SECRET,
        "PGDATABASE": "shop",
        "PGSSLMODE": "require",
        "PGAPPNAME": "x",
    }


def test_mariadb_gets_the_connection_by_a_file_of_options() -> None:
    url = make_url("mysql+pymysql://me@db.example:3307/shop").set(password=SECRET)
    assert mariadb_options(url.update_query_dict({"ssl_ca": "/ca.pem"})).splitlines() == [
        "[client]",
        'host="db.example"',
        'port="3307"',
        'user="me"',
        r'''password="p@ss/w\"o\\rd #1"''',
        'ssl-ca="/ca.pem"',
    ]
