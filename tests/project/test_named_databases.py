"""`[tool.fsa] database`: apps that configure their engines themselves."""

import pytest
from sqlalchemy import make_url

NO_DB = "from fastapi import FastAPI\nimport core.db\napp = FastAPI()\n"
CORE = """
    from functools import lru_cache
    from sqlalchemy import create_engine
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
    from sqlalchemy.orm import scoped_session, sessionmaker

    URL = {url!r}
    engine = create_engine(URL)
    async_engine = create_async_engine({async_url!r})
    Session = sessionmaker(bind=engine)
    AsyncSession = async_sessionmaker(async_engine)
    scoped = scoped_session(Session)
    other = sessionmaker()

    class settings:
        DATABASE_URL = URL

    @lru_cache
    def make():
        return Session
"""
NAMES = [
    "engine",
    "async_engine",
    "Session",
    "AsyncSession",
    "scoped",
    "make",
    "settings.DATABASE_URL",
]


@pytest.fixture
def project(write_app, tmp_path, backend):
    def write(named: str):
        core = CORE.format(url=backend.url, async_url=backend.async_url)
        files = {"core/db.py": core, "pyproject.toml": f"[tool.fsa]\n{named}\n"}
        return write_app(tmp_path, files, main=NO_DB)

    return write


@pytest.mark.parametrize("name", NAMES)
def test_a_database_is_named_by_the_apps_own_object(fsa, project, backend, name) -> None:
    backend.execute("CREATE TABLE users (id integer)")
    project(f'database = "core.db:{name}"')

    done = fsa("db", "query", "select count(*) from users")
    assert (done.returncode, done.stdout.split()[-1]) == (0, "0"), done.stderr
    again = fsa("health")
    assert again.returncode == 0, again.stderr
    assert f"databases.default\tcore.db:{name}" in fsa("config").stdout


def test_a_table_names_several_and_fsa_db_url_replaces_one(fsa, project, backend, tmp_path) -> None:
    project(f'database = {{ default = "core.db:URL", reports = "sqlite:///{tmp_path}/r.db" }}')

    def name(*flags: str, **env: str) -> str:
        done = fsa(*flags, "db", "show", "--json", env=env)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    assert make_url(backend.url).database.rpartition("/")[2] in name()
    assert "r.db" in name("-d", "reports")
    assert "s.db" in name("-d", "reports", FSA_DB_URL_REPORTS=f"sqlite:///{tmp_path}/s.db")


def test_what_names_no_database_is_refused(fsa, write_app, tmp_path) -> None:
    core = CORE.format(url="sqlite:///a.db", async_url="sqlite+aiosqlite:///a.db")
    write_app(tmp_path, {"core/db.py": core}, main=NO_DB)

    unnamed = fsa("db", "show")
    assert unnamed.returncode == 3
    assert "there is core.db:engine" in unnamed.stderr
    assert 'hint: write [tool.fsa] database = "core.db:async_engine"' in unnamed.stderr or (
        'hint: write [tool.fsa] database = "core.db:engine"' in unnamed.stderr
    )
    for value, words in {
        '"core.db:other"': "is not a database but a sessionmaker",
        '"core.db:nothing"': "cannot be imported",
        '"core.db:lru_cache"': "core.db:lru_cache",
        "3": "must be a string or a table of strings",
    }.items():
        (tmp_path / "pyproject.toml").write_text(f"[tool.fsa]\ndatabase = {value}\n")
        refused = fsa("db", "show")
        assert (refused.returncode, words in refused.stderr) == (3, True), refused.stderr
    own = "from fastapi_sqlalchemy import db\ndb.configure(db_url='sqlite:///own.db')\n"
    (tmp_path / "pyproject.toml").write_text('[tool.fsa]\ndatabase = "core.db:engine"\n')
    (tmp_path / "main.py").write_text(NO_DB + own)
    assert "there are two databases 'default'" in fsa("db", "show").stderr


def test_without_an_app_an_alembic_ini_is_enough_for_fsa_db(
    fsa, python, write_app, tmp_path, backend
) -> None:
    assert python("-m", "alembic", "init", "scripts").returncode == 0
    ini = tmp_path / "alembic.ini"
    url = backend.url.replace("%", "%%")
    ini.write_text(ini.read_text().replace("driver://user:pass@localhost/dbname", url))
    versions = {
        "scripts/versions/a1.py": "revision = 'a1'\ndown_revision = None\n"
        "def upgrade(): pass\ndef downgrade(): pass\n"
    }
    write_app(tmp_path, versions)

    assert fsa("db", "current").returncode == 5
    done = fsa("db", "upgrade")
    assert done.returncode == 0, done.stderr
    assert backend.rows("SELECT version_num FROM alembic_version") == [("a1",)]
    assert fsa("health").returncode == 3  # which looks for the app
    elsewhere = fsa("db", "current", env={"FSA_DB_URL": f"sqlite:///{tmp_path}/other.db"})
    assert elsewhere.returncode in (3, 5)
