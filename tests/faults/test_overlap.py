"""Overlap policies and groups hold over three replicas."""

import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

import pytest

from support.backends import Backend
from support.oracle import Verdict, starts_of
from support.replicas import Replicas, Scheduled

POLICIES = """
ENDS = os.open("ends", os.O_APPEND | os.O_CREAT | os.O_WRONLY)

def define(name, body_s, **options):
    def work(context: TaskContext):
        note(context)
        write(context)
        time.sleep(body_s)
        os.write(ENDS, f"{context.run_id} {time.monotonic_ns()}\\n".encode())

    task(name=name, schedule="every 1s", **options)(work)

define("skips", 1.3)
define("queues", 0.7, overlap="queue")
define("allows", 1.3, overlap="allow")
define("one", 0.6, group="ours", overlap="queue")
define("other", 0.6, group="ours")
"""


@pytest.mark.slow
def test_one_at_a_time_is_one_at_a_time_on_all_replicas(
    backend: Backend,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(backend)
    source = POLICIES
    if backend.name == "sqlite":  # whoever has written holds the file
        source = source.replace("        write(context)\n", "").replace(
            "        os.write(ENDS", "        write(context)\n        os.write(ENDS"
        )
    replicas.lay(
        source,
        [
            Scheduled("skips"),
            Scheduled("queues", overlap="queue"),
            Scheduled("allows", overlap="allow"),
            Scheduled("one", overlap="queue"),
            Scheduled("other"),
        ],
    )
    replicas.start_all()
    time.sleep(600 if is_long else 6)

    judged(replicas)
    ahead_ms = (time.time() - time.monotonic()) * 1000
    ends = dict(line.split() for line in (replicas.directory / "ends").read_text().splitlines())
    by_name: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for start in starts_of(replicas):
        name = "group" if start.task in ("one", "other") else start.task
        by_name[name].append((start.at_ms, int(ends[start.run]) / 1e6 + ahead_ms))

    def overlaps(name: str) -> int:
        return sum(1 for a, b in pairwise(sorted(by_name[name])) if b[0] < a[1])

    assert overlaps("skips") == overlaps("queues") == overlaps("group") == 0
    assert overlaps("allows") > 0
    statuses = dict.fromkeys(("skips", "queues", "allows"), frozenset[str]())
    for name in statuses:
        statuses[name] = frozenset(
            status
            for (status,) in replicas.ledger.rows(
                f"SELECT status FROM fsa_run WHERE task = '{name}'"
            )
        )
    assert statuses["skips"] == {"succeeded", "skipped"}
    assert statuses["queues"] <= {"succeeded", "queued"}
    assert statuses["allows"] == {"succeeded"}
