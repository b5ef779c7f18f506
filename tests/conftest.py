"""The fixtures of the whole suite live in `support`; this file names them and shares work out."""

import gc
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("fsa", deadline=None)
settings.load_profile("fsa")

# PyMySQL reads the machine's certificates for each connection, which takes up to 50 ms of CPU; no
# test trusts one of them.
os.environ["SSL_CERT_FILE"] = ""

pytest_plugins = [
    "support.databases",
    "support.ledgers",
    "support.models",
    "support.processes",
    "support.shops",
    "support.stores",
    "support.web",
    "support.engines",
    "support.pgbouncer",
    "support.browser",
]


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Three for each processor, since tests wait half the time; none for a test that is named."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    if config.getoption("usepdb") or any("::" in argument for argument in config.args):
        return 0
    return min(3 * len(os.sched_getaffinity(0)), 12)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have two processes make the tests of faults, and all of them the others.

    A test of faults runs three replicas or more, and asks how late they are.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if "tests/faults/" not in nodeid:
                return nodeid
            return f"faults {zlib.crc32(nodeid.encode()) % 2}"

    return Scheduling(config, log)


#: What a test asks for that takes seconds: a server or a driver of one, a terminal, a process that
#: stays.
_SLOW_FIXTURES = {
    "aiomysql",
    "browser",
    "asyncmy",
    "asyncpg",
    "engine",
    "fsa_process",
    "mariadb",
    "mariadb_server",
    "postgresql",
    "postgresql_server",
    "psycopg",
    "psycopg2",
    "pymysql",
    "serve_process",
    "start",
    "terminal",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `quick` what asks for SQLite only, and starts no more than `fsa` itself."""
    library = Path(__file__).parent / "library"
    faults = Path(__file__).parent / "faults"
    for item in items:
        if library in item.path.parents:
            item.add_marker(pytest.mark.library)
        asked = set(getattr(item, "fixturenames", ()))
        parameters = getattr(item, "callspec", None)
        if parameters is not None:
            asked.update(str(value) for value in parameters.params.values())
        slow = faults in item.path.parents or item.get_closest_marker("slow")
        if asked.isdisjoint(_SLOW_FIXTURES) and not slow:
            item.add_marker(pytest.mark.quick)


@pytest.fixture(scope="module", autouse=True)
def _freeze() -> None:
    """What has been imported until now stays: to look through it takes 0.2 s each time.

    Hundreds of tests collect garbage before they count what is left.
    """
    gc.collect()
    gc.freeze()
