"""A broker's messages: those that name a run are claimed, the others are dropped with a warning."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fsa_cli.processes.events import NodeEvents, NodeListener
from fsa_cli.processes.message_claimer import MessageClaimer
from fsa_cli.processes.node_context import NodeContext
from fsa_cli.processes.run_lifecycle import RunLifecycle, RunSource
from support.ledgers import open_ledger


def test_a_message_that_names_no_run_is_dropped_with_a_warning(tmp_path: Path) -> None:
    warnings: list[str] = []

    class Heard(NodeListener):
        def warned(self, text: str) -> None:
            warnings.append(text)

    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.create()
    context = NodeContext.of(ledger, NodeEvents(Heard()), role="worker", lease_s=20.0, tasks={})
    context.lease.join()

    def build(claimed: object, report: object) -> Any:
        raise AssertionError(claimed)

    source = RunSource(build, lambda run_ids: set(), {})
    claimer = MessageClaimer(context, RunLifecycle(context, source, 1, lambda: False), {})
    claimer.start()
    hostile: list[Any] = [5, None, "", "'; DROP", "x" * 37, ["a"], 10**6000, "\ud800"]
    for each in hostile:
        claimer.take(each).result(5)
    began_s = time.monotonic()
    claimer.take("0" * 32).result(5)  # of another service: nobody here knows it
    claimer.stop()
    ledger.dispose()

    assert time.monotonic() - began_s < 5
    assert len(warnings) == len(hostile)
    assert warnings[0] == "a message is dropped: its run_id is 5, not a run's"
