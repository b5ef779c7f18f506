"""`fsa db shell`: the database's own client, started with the app's URL."""

from pathlib import Path
from typing import Any

import pexpect
import pytest
from sqlalchemy import make_url

from fsa_cli.database.dialects.mysql import MySQL, mariadb_options
from fsa_cli.database.dialects.postgresql import psql_environment
from support.tls import Certificates, tls_proxy

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


@pytest.mark.parametrize(
    ("driver", "connect_args"),
    [
        ("psycopg", {"sslmode": "verify-ca", "sslrootcert": "other_authority.pem"}),
        ("psycopg2", {"sslmode": "verify-ca", "sslrootcert": "other_authority.pem"}),
        ("asyncpg", {"ssl": "verify-ca"}),
    ],
)
def test_psql_verifies_what_the_apps_connect_args_say(
    fsa, write_app, tmp_path: Path, postgresql, driver: str, connect_args: dict[str, str]
) -> None:
    certificates = Certificates(tmp_path)
    url = make_url(postgresql.url)
    with tls_proxy((url.host, url.port or 5432), certificates) as proxy:
        url = url.set(host="localhost", port=proxy.port, drivername=f"postgresql+{driver}")
        app = f"""
            from fastapi import FastAPI
            from fastapi_sqlalchemy import db

            app = FastAPI()
            tls = {{"connect_args": {connect_args}}}
            db.configure({url.render_as_string(False)!r}, engine_args=tls)
        """
        write_app(tmp_path, main=app)
        env = {"PGSSLROOTCERT": certificates.other_authority}
        refused = fsa("db", "shell", "--", "-c", "select 1", env=env)
    assert refused.returncode == 2
    assert "certificate verify failed" in refused.stderr


def test_a_context_that_psql_cannot_be_told_is_refused(fsa, write_app, tmp_path: Path) -> None:
    app = """
        import ssl

        from fastapi import FastAPI
        from fastapi_sqlalchemy import db

        app = FastAPI()
        tls = {"ssl": ssl.create_default_context()}
        db.configure("postgresql+asyncpg://h/d", engine_args={"connect_args": tls})
    """
    write_app(tmp_path, main=app)
    done = fsa("db", "shell", "--", "-c", "select 1")
    assert (done.returncode, done.stdout) == (3, "")
    assert "cannot be told: 'ssl'" in done.stderr


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


def test_psql_gets_all_that_libpq_has_variables_for() -> None:
    query = "ssl_max_protocol_version=TLSv1.2&sslnegotiation=direct&require_auth=scram-sha-256"
    assert psql_environment(make_url(f"postgresql://db/shop?{query}")) == {
        "PGHOST": "db",
        "PGDATABASE": "shop",
        "PGSSLMAXPROTOCOLVERSION": "TLSv1.2",
        "PGSSLNEGOTIATION": "direct",
        "PGREQUIREAUTH": "scram-sha-256",
    }


def test_mariadb_gets_the_connection_by_a_file_of_options() -> None:
    url = make_url("mysql+pymysql://me@db.example:3307/shop").set(password=SECRET)
    assert mariadb_options(url.update_query_dict({"ssl_ca": "/ca.pem"})).splitlines() == [
        "[client]",
        'host="db.example"',
        'port="3307"',
        'user="me"',
        r'''password="p@ss/w\"o\\rd #1"''',
        'ssl-verify-server-cert="1"',
        'ssl-ca="/ca.pem"',
    ]


@pytest.mark.parametrize(
    ("query", "mariadbs", "mysqls"),
    [
        ("ssl_ca=/ca", ["ssl-verify-server-cert", "ssl-ca"], ["ssl-mode", "ssl-ca"]),
        ("ssl_ca=/ca&ssl_check_hostname=false", ["ssl-ca"], ["ssl-ca"]),
        ("ssl_verify_identity=true", ["ssl-verify-server-cert"], ["ssl-mode"]),
        ("ssl=1", ["ssl"], ["ssl-mode"]),
        ("charset=utf8mb4", ["default-character-set"], ["default-character-set"]),
    ],
)
def test_both_clients_verify_what_the_app_does(
    query: str, mariadbs: list[str], mysqls: list[str]
) -> None:
    url = make_url(f"mysql+pymysql://db/shop?{query}")
    for is_mariadb, expected in ((True, mariadbs), (False, mysqls)):
        lines = mariadb_options(url, is_mariadb=is_mariadb).splitlines()
        assert [
            line.partition("=")[0] for line in lines if "-" in line or "ssl" in line
        ] == expected


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("mysql+pymysql://localhost:3307/shop", ['protocol="tcp"']),
        ("mysql+asyncmy:///shop", ['protocol="tcp"']),
        ("mysql+mysqldb://localhost/shop", []),
        ("mysql+pymysql:///shop?unix_socket=/run/m.sock", []),
        ("mysql+pymysql:///shop?read_default_file=/etc/shop.cnf", []),
    ],
)
def test_a_client_at_localhost_meets_the_server_that_the_driver_meets(
    url: str, protocol: list[str]
) -> None:
    lines = mariadb_options(make_url(url)).splitlines()
    assert [line for line in lines if line.startswith("protocol")] == protocol


@pytest.mark.parametrize(
    ("connect_args", "expected"),
    [
        ({"ssl": {"ca": "/ca.pem"}}, ['ssl-ca="/ca.pem"', 'ssl-verify-server-cert="1"']),
        ({"ssl": {"verify_mode": True}}, ['ssl-verify-server-cert="1"']),
        ({"ssl": {"cipher": "x"}}, ['ssl-cipher="x"', 'ssl="1"']),
        ({"ssl": False}, []),
        ({"ssl_disabled": True, "ssl_ca": "/ca.pem"}, []),
    ],
)
def test_mysqls_client_is_told_the_tls_of_connect_args(
    connect_args: dict[str, Any], expected: list[str]
) -> None:
    url = MySQL().with_connect_args(make_url("mysql+pymysql://db/shop"), connect_args)
    lines = mariadb_options(url).splitlines()
    assert sorted(line for line in lines if line.startswith("ssl")) == sorted(expected)
