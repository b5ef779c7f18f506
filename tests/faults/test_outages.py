"""The database restarts, is away, and loses connections and answers."""

import time
from collections.abc import Callable, Iterator

import pytest

from support.backends import Backend
from support.engines import SOON
from support.oracle import Verdict
from support.postgresql_server import Server, postgresql_server
from support.proxy import Proxy, proxy_to
from support.replicas import Replicas


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    try:
        with postgresql_server() as server:
            yield server
    except FileNotFoundError as exc:
        pytest.skip(str(exc))


@pytest.fixture
def restartable(own_server: Server) -> Backend:
    """A database whose server may be stopped and started."""
    backend = own_server.database()
    backend.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return backend


def test_a_database_that_crashes_and_restarts_loses_no_instant(
    own_server: Server,
    restartable: Backend,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(restartable)
    replicas.lay_load()
    replicas.start_all()

    for _ in range(6 if is_long else 2):
        replicas.pause(2.0, 4.0)
        own_server.stop()
        replicas.faults += 1
        replicas.pause(0.0, 1.0)
        own_server.start()

    verdict = judged(replicas)
    assert not verdict.statuses["missed"]
    assert "the ledger is back" in replicas.said


@pytest.mark.long
def test_a_database_that_carries_the_runs_too_crashes_and_loses_none(
    own_server: Server,
    restartable: Backend,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(restartable)
    replicas.environment = {"FSA_EXECUTOR": "procrastinate"}
    replicas.lay_load("" if is_long else SOON)
    replicas.prepare()
    replicas.start_with_workers()

    for away_s in (*[0.5] * 5, 60.0) if is_long else (0.5,):
        replicas.pause(2.0, 4.0)
        own_server.stop()
        replicas.faults += 1
        time.sleep(away_s)
        own_server.start()

    judged(replicas, within_s=180)
    assert "the ledger is back" in replicas.said


@pytest.mark.slow
def test_a_database_that_is_away_for_longer_than_the_lease_is_waited_for(
    own_server: Server,
    restartable: Backend,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(restartable)
    replicas.lay_load()
    replicas.start_all()

    for _ in range(3 if is_long else 1):
        time.sleep(3)
        own_server.stop()
        replicas.faults += 1
        time.sleep(replicas.lease_s + (60 if is_long else 3))
        own_server.start()

    judged(replicas, within_s=120)


@pytest.fixture
def proxy(backend: Backend) -> Iterator[Proxy]:
    with proxy_to(backend.url) as proxy:
        yield proxy


@pytest.mark.parametrize("backend", ["postgresql", "mariadb"], indirect=True)
def test_connections_that_are_cut_at_random_lose_no_instant(
    backend: Backend,
    proxy: Proxy,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(backend, proxy.url(backend.url))
    replicas.lay_load()
    replicas.start_all()

    for _ in range(120 if is_long else 12):
        replicas.pause(0.1, 1.0)
        proxy.drop_some(0.3)
        replicas.faults += 1

    judged(replicas)


@pytest.mark.parametrize("backend", ["postgresql", "mariadb"], indirect=True)
def test_an_answer_to_commit_that_is_lost_is_looked_up(
    backend: Backend,
    proxy: Proxy,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(backend, proxy.url(backend.url))
    replicas.lay_load()
    replicas.start_all()

    for number in range(120 if is_long else 15):
        # The next COMMIT of a task's or the ledger's; or the next answer, whatever was asked.
        proxy.lose_answer_to = b"COMMIT" if number % 3 else b""
        replicas.faults += 1
        replicas.pause(0.2, 0.5)

    verdict = judged(replicas)
    assert verdict.statuses["succeeded"] > replicas.faults


@pytest.mark.long
def test_connections_that_are_cut_where_the_database_carries_the_runs_too_lose_none(
    postgresql: Backend,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    with proxy_to(postgresql.url) as proxy:
        replicas = replicas_on(postgresql, proxy.url(postgresql.url))
        replicas.environment = {"FSA_EXECUTOR": "procrastinate"}
        replicas.lay_load()
        replicas.prepare()
        replicas.start_with_workers()

        for number in range(120):
            replicas.pause(0.1, 0.5)
            if number % 2:
                proxy.drop_some(0.3)
            else:  # the next COMMIT, of a task's, the ledger's or the engine's
                proxy.lose_answer_to = b"COMMIT"
            replicas.faults += 1

        judged(replicas, within_s=120)
