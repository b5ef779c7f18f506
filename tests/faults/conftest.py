"""`--faults=long` gives each fault test as many faults as the README's table says."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support import databases
from support.backends import Backend, PostgreSQL
from support.databases import PostgreSQLServer
from support.oracle import Verdict, assert_nothing_left, judge
from support.pgbouncer import UNPREPARED, pgbouncer_of
from support.postgresql_server import postgresql_server as private_server
from support.replicas import Replicas, replicas_in

#: What is shown at the end of the test run: figures by test, and remarks.
_FIGURES: list[tuple[str, list[str]]] = []
_NOTES: list[tuple[str, str]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--faults", choices=["short", "long"], default="short", help="how many faults there are"
    )
    parser.addoption(
        "--pooled", action="store_true", help="all replicas on PostgreSQL are behind PgBouncer"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: only with --faults=long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _is_long(config):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQLServer]:
    """A server of their own, if its programs are here: they need more connections than most have.

    Five processes that work at once hold a hundred.
    """
    try:
        with private_server() as private:
            server = PostgreSQLServer(private.url)
            databases.found["postgresql of the faults"] = f"{server.version()} (started here)"
            yield server
            server.close()
    except FileNotFoundError as exc:
        databases.skip("postgresql", str(exc))


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    return _is_long(request.config)


def _is_long(config: pytest.Config) -> bool:
    return bool(config.getoption("--faults", default="short") == "long")


Lay = Callable[..., Replicas]


@pytest.fixture
def replicas_on(
    tmp_path: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lay]:
    """`replicas_on(backend, url="")`: an app's directory, and nobody who runs it yet.

    With `--pooled` they reach PostgreSQL through a PgBouncer, unless *url* says how.
    """
    with ExitStack() as stack:

        def make(
            backend: Backend, url: str = "", engine_args: Mapping[str, object] | None = None
        ) -> Replicas:
            pooled = request.config.getoption("--pooled", default=False)
            if pooled and not url and isinstance(backend, PostgreSQL):
                pooler = stack.enter_context(pgbouncer_of(backend, tmp_path_factory, 40))
                url, engine_args = pooler.url, UNPREPARED
            return stack.enter_context(replicas_in(tmp_path, backend, url, engine_args))

        yield make


Judge = Callable[..., Verdict]


@pytest.fixture
def judged(request: pytest.FixtureRequest) -> Judge:
    """`judged(replicas)`: wait until all has ended, stop the replicas, and ask the oracle.

    It asserts that nothing is wrong; its figures are shown at the end of the test run.
    """

    def ask(replicas: Replicas, *, within_s: float = 60.0) -> Verdict:
        cut_ms = replicas.settle(within_s=within_s)
        assert_nothing_left(replicas)
        codes = replicas.stop()
        verdict = judge(replicas, cut_ms)
        _FIGURES.append((request.node.name, _cells(verdict)))
        assert codes == [0] * len(codes), replicas.said[-3000:]
        replicas.backend.assert_released()
        verdict.assert_kept()
        return verdict

    return ask


@pytest.fixture
def noted(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """`noted(text)`: figures to show at the end of the test run."""
    return lambda text: _NOTES.append((request.node.name, text))


_HEAD = ("faults", "instants", "ok", "marked", "missed", "skipped", "failed", "p50", "p99", "back")


def _cells(verdict: Verdict) -> list[str]:
    ended = verdict.statuses
    cells = (
        verdict.faults,
        verdict.instants,
        ended["succeeded"],
        ended["interrupted"],
        ended["missed"],
        ended["skipped"],
        ended["failed"],
        f"{verdict.percentile(0.5):.0f} ms",
        f"{verdict.percentile(0.99):.0f} ms",
        f"{max(verdict.recovered_s, default=0):.1f} s",
        len(verdict.violations),
    )
    return [str(cell) for cell in cells]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if output := getattr(session.config, "workeroutput", None):
        output["faults"] = [_FIGURES, _NOTES]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for ours, theirs in zip(
        (_FIGURES, _NOTES), getattr(node, "workeroutput", {}).get("faults", ()), strict=False
    ):
        ours.extend(theirs)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    write = terminalreporter.write_line
    for name, text in _NOTES:
        write(f"{name}: {text}")
    if not _FIGURES:
        return
    width = max(len(name) for name, _ in _FIGURES)
    write("")
    write(f"{'':<{width}}  " + "".join(f"{name:>9}" for name in (*_HEAD, "wrong")))
    for name, cells in _FIGURES:
        write(f"{name:<{width}}  " + "".join(f"{cell:>9}" for cell in cells))
