"""Requests that enqueue in their own transaction, in a web server that is killed now and then."""

import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from support.backends import Backend
from support.engines import SOON, Engine, engines
from support.processes import Start
from support.replicas import Replicas
from support.waiting import wait_until

ORDERS = """
@task
def ship(n: int, context: TaskContext):
    note(context)
    write(context)

@app.post("/orders/{n}")
def order(n: int, ends: str):
    db.session.execute(text("INSERT INTO orders (n) VALUES (:n)"), {"n": n})
    ship.using(session=db.session).enqueue(n=n)
    if ends == "raises":
        raise LookupError("after it was enqueued")
    if ends == "commits":
        db.session.commit()

@app.post("/async-orders/{n}")
async def async_order(n: int, ends: str):
    await db.async_session.execute(text("INSERT INTO orders (n) VALUES (:n)"), {"n": n})
    await ship.using(session=db.async_session).aenqueue(n=n)
    if ends == "raises":
        raise LookupError("after it was enqueued")
    if ends == "commits":
        await db.async_session.commit()
"""


class Web:
    """The app behind uvicorn, which is killed and started again."""

    def __init__(self, start: Start, replicas: Replicas) -> None:
        self._start = start
        self._replicas = replicas
        self.begin()

    def begin(self) -> None:
        process = self._start(
            *(sys.executable, "-m", "uvicorn", "main:app", "--port", "0", "--no-access-log"),
            cwd=self._replicas.directory,
            env=self._replicas.environment,
        )
        process.wait_for("Uvicorn running on")
        match = re.search(r"Uvicorn running on (http://\S+)", process.stderr)
        assert match, process
        self.process, self.url = process, match[1]

    def kill(self) -> None:
        self.process.kill()
        self.begin()


@engines("procrastinate", "redis")
def test_a_request_that_commits_leaves_a_run_and_one_that_does_not_leaves_none(
    engine: Engine,
    postgresql: Backend,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    start: Start,
    noted: Callable[[str], None],
) -> None:
    replicas = replicas_on(postgresql)
    replicas.environment = engine.environment
    more = "" if is_long else SOON
    source = more + ORDERS.replace("@task\n", f'@task(queue="{engine.queue}")\n')
    replicas.lay(source, [])
    postgresql.execute("CREATE TABLE orders (n INTEGER PRIMARY KEY)")
    replicas.prepare()
    replicas.start(command="worker")
    web = Web(start, replicas)
    replicas.wait_up()
    number = 1000 if is_long else 100
    answered: dict[int, int] = {}

    def ask(n: int) -> None:
        ends = ("commits", "raises", "commits", "leaves")[n % 4]
        path = f"{'orders' if n % 3 else 'async-orders'}/{n}"
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            try:
                answer = httpx.post(f"{web.url}/{path}", params={"ends": ends}, timeout=30)
            except httpx.ConnectError:  # it is being started
                time.sleep(0.05)
                continue
            except httpx.TransportError:  # it was killed
                return
            answered[n] = answer.status_code
            return
        raise AssertionError(f"{path} was not asked: nobody serves")

    with ThreadPoolExecutor(4) as pool:
        for first in range(0, number, 50):
            asked = [pool.submit(ask, n) for n in range(first, first + 50)]
            replicas.pause(0.1, 0.6)
            web.kill()
            replicas.faults += 1
            for each in asked:
                each.result()

    def open_runs() -> list[tuple[str, str]]:
        return postgresql.rows("SELECT id, status FROM fsa_run WHERE finished_ms IS NULL")

    wait_until(lambda: not open_runs(), "every run has ended", within_s=90)
    orders = {n for (n,) in postgresql.rows("SELECT n FROM orders")}
    runs = postgresql.rows("SELECT (arguments::json ->> 'n')::integer, status FROM fsa_run")
    noted(
        f"{number} requests, {number - len(answered)} of them cut off by {replicas.faults} kills; "
        f"{len(orders)} have committed; answered: {dict(Counter(answered.values()))}"
    )
    assert sorted(runs) == sorted((n, "succeeded") for n in orders)
    assert {n for n, status in answered.items() if status == 200 and n % 2 == 0} <= orders
    assert not [n for n in orders if n % 4 in (1, 3)]
    assert len(orders) > number / 4
    effects = postgresql.rows("SELECT run FROM effects")
    assert len(effects) == len(set(effects)) == len(orders)
    assert replicas.faults > 0
    assert replicas.stop() == [0]
