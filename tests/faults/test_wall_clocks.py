"""Wall clocks that differ by a minute, and that jump: the database's clock counts."""

import re
import time
from collections.abc import Callable
from pathlib import Path

from support.backends import Backend
from support.clocks import WallClock, build_shim
from support.oracle import Verdict
from support.replicas import Replicas


def test_wall_clocks_that_are_wrong_and_jump_start_nothing_twice_and_nothing_early(
    postgresql: Backend,
    tmp_path: Path,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    shim = build_shim(tmp_path)
    clocks = [
        WallClock(shim, tmp_path / f"clock{number}", ahead_s)
        for number, ahead_s in enumerate((-30.0, 0.0, 30.0))
    ]
    replicas = replicas_on(postgresql)
    replicas.lay_load()
    for clock in clocks:
        replicas.start(environment=clock.environment)
    replicas.wait_up()
    time.sleep(20 if is_long else 4)

    for number in range(30 if is_long else 2):
        clocks[number % 3].set((30.0, -30.0, 0.0, -3.0)[number % 4])
        replicas.faults += 1
        replicas.pause(1.0, 4.0)

    verdict = judged(replicas)
    assert not verdict.statuses["missed"]
    assert not verdict.statuses["interrupted"]
    told_s = re.findall(r"this machine's clock is ([0-9.]+) s ahead", replicas.said)
    # It is as exact as the database answers fast.
    assert any(abs(float(each) - 30) < 1 for each in told_s), replicas.said
