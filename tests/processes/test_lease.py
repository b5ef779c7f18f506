"""The lease of a process, while the ledger is away and once it is back."""

from __future__ import annotations

import time

from fsa_cli.processes.events import NodeEvents
from fsa_cli.processes.node_context import NodeContext
from support.backends import Backend
from support.ledgers import open_ledger
from support.proxy import proxy_to
from support.waiting import wait_until


def test_a_lease_that_could_not_be_renewed_is_renewed_once_the_ledger_is_back(
    postgresql: Backend,
) -> None:
    with proxy_to(postgresql.url) as proxy:
        ledger = open_ledger(proxy.url(postgresql.url))
        ledger.create()
        lease_s = 20.0
        context = NodeContext.of(ledger, NodeEvents(), role="worker", lease_s=lease_s, tasks={})
        context.lease.join()
        context.lease.start()
        proxy.away.set()
        proxy.drop_all()
        wait_until(lambda: context.outage.is_open, "it is noticed")

        proxy.away.clear()
        back_s = time.monotonic()
        wait_until(lambda: not context.outage.is_open, "it is over")
        assert time.monotonic() - back_s < lease_s / 4 - 1
        context.lease.stop()
        ledger.dispose()
