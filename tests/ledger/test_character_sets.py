"""MariaDB and MySQL: the ledger keeps any text, whatever character set its database has."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from support.backends import Backend
from support.processes import Run
from support.shops import Shop

TASKS = """
@task
def echo(said: str = "") -> str:
    return said + "\\U0001f600"

@task
def fail():
    raise LookupError("\\U0001f600")
"""
ASK = """
from main import echo, fail
echo.enqueue_many([{"said": "a\\U0001f600"}, {"said": "b"}])
echo.using(unique="\\u043a\\u043b\\u044e\\u0447\\U0001f600").enqueue("c\\U0001f600")
fail.enqueue()
"""
STATE = {"FSA_STATE_DIR": "state"}


@pytest.fixture
def database(mariadb: Backend) -> Iterator[Backend]:
    yield mariadb
    mariadb.execute(f"ALTER DATABASE {mariadb.location.database} CHARACTER SET utf8mb4")


@pytest.mark.parametrize("character_set", ["latin1", "utf8mb3", "utf8mb4 COLLATE utf8mb4_bin"])
def test_arguments_results_keys_and_errors_are_kept_whole(
    fsa: Run, database: Backend, tmp_path, character_set: str
) -> None:
    name = database.location.database
    database.execute(f"ALTER DATABASE {name} CHARACTER SET {character_set}")
    shop = Shop(tmp_path, database)
    shop.write(TASKS)
    assert fsa("scheduler", "init").returncode == 0
    assert fsa("shell", "-c", ASK).returncode == 0
    fsa("scheduler", "tick", env=STATE)

    runs = json.loads(fsa("runs", "--json").stdout)

    results = {each["arguments"].get("said"): each["result"] for each in runs}
    smile = "\U0001f600"
    assert results == {
        f"a{smile}": f"a{smile}{smile}",
        "b": f"b{smile}",
        f"c{smile}": f"c{smile}{smile}",
        None: None,
    }
    (failed,) = [each for each in runs if each["status"] == "failed"]
    assert failed["error"]["message"] == smile


def test_a_database_whose_collation_has_changed_keeps_its_schedule(
    fsa: Run, database: Backend, tmp_path
) -> None:
    name = database.location.database
    database.execute(f"ALTER DATABASE {name} COLLATE utf8mb4_unicode_ci")
    shop = Shop(tmp_path, database)
    shop.write('@task(schedule="every 1s")\ndef tick(): ...\n')
    assert fsa("scheduler", "init").returncode == 0
    database.execute(f"ALTER DATABASE {name} COLLATE utf8mb4_general_ci")

    assert fsa("scheduler", "tick", env=STATE).returncode == 0
