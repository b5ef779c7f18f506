"""The steps of each second, while the ledger is away and once it is back."""

from __future__ import annotations

import time

from fsa_cli.ledger.pruning import Pruning
from fsa_cli.processes.events import NodeEvents
from fsa_cli.processes.local_dispatcher import LocalDispatcher
from fsa_cli.processes.maintenance import Effects, Maintenance
from fsa_cli.processes.node_context import NodeContext
from fsa_cli.processes.run_lifecycle import RunLifecycle, RunSource
from support.backends import Backend
from support.ledgers import open_ledger
from support.proxy import proxy_to
from support.waiting import wait_until


def test_an_outage_ends_with_the_next_step_that_is_done(postgresql: Backend) -> None:
    """A step that has nothing to ask for is done meanwhile; the one that failed comes after it."""
    with proxy_to(postgresql.url) as proxy:
        ledger = open_ledger(proxy.url(postgresql.url))
        ledger.create()
        context = NodeContext.of(ledger, NodeEvents(), role="worker", lease_s=60.0, tasks={})
        context.lease.join()
        source = RunSource(lambda claimed, report: None, lambda run_ids: set(), {})  # type: ignore[arg-type,return-value]
        lifecycle = RunLifecycle(context, source, 1, lambda: False)
        maintenance = Maintenance(
            *(context, lifecycle, [LocalDispatcher(context, lifecycle, {})]),
            Effects(lambda run_ids: set(), lambda: None),
            fired_until_ms=lambda: 0,
            knows=lambda name: True,
            pruning=Pruning(),
        )
        maintenance.start()
        proxy.away.set()
        proxy.drop_all()
        wait_until(lambda: context.outage.is_open, "it is noticed")

        proxy.away.clear()
        back_s = time.monotonic()
        wait_until(lambda: not context.outage.is_open, "it is over")
        assert time.monotonic() - back_s < 6  # it comes each second, and is given up after ten
        maintenance.stop()
        ledger.dispose()
