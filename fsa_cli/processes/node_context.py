"""`NodeContext`: what every part of a node works with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fsa_cli.ledger.store import Ledger
from fsa_cli.processes.clock import Clock
from fsa_cli.processes.events import NodeEvents
from fsa_cli.processes.lease import Lease
from fsa_cli.processes.outage import Outage

__all__ = ["NodeContext"]


@dataclass(frozen=True)
class NodeContext:
    """The ledger, its clock, this process's lease, and who hears of what happens."""

    ledger: Ledger
    clock: Clock
    outage: Outage
    lease: Lease
    events: NodeEvents

    @classmethod
    def of(
        cls,
        ledger: Ledger,
        events: NodeEvents,
        *,
        role: str,
        lease_s: float,
        tasks: Mapping[str, str],
    ) -> NodeContext:
        """The context of a node that has not joined yet.

        Args:
            tasks: The hash of each schedule that it fires, and the services of a worker.
        """
        clock, outage = Clock(), Outage(events.warned, ledger.where)

        def rejoined() -> None:
            events.warned("this node was declared dead; it has a new id")

        lease = Lease(
            ledger, clock, outage, role=role, lease_s=lease_s, tasks=tasks, rejoined=rejoined
        )
        return cls(ledger, clock, outage, lease, events)
