"""This node's id and lease, and whether it may still trust the lease."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from fsa_cli.ledger import nodes
from fsa_cli.ledger.store import Ledger
from fsa_cli.processes.clock import Clock
from fsa_cli.processes.outage import Outage
from fsa_cli.processes.service import ServiceThread

__all__ = ["LEASE_S", "Lease"]

#: How long the other nodes take one for alive after it was last heard of.
LEASE_S = 20.0

_MARGIN_S = 2.0
_AGAIN_S = 0.5


class Lease(ServiceThread):
    """Renews the lease every quarter of its length, in a thread that no task holds up.

    Args:
        tasks: The hash of each schedule that this node fires.
        rejoined: Called when the node was declared dead and has a new id: the runs of the old one
            are no longer its own.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        outage: Outage,
        *,
        role: str,
        lease_s: float,
        tasks: Mapping[str, str],
        rejoined: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__("lease")
        self._ledger = ledger
        self._clock = clock
        self._outage = outage
        self._role = role
        self._lease_s = lease_s
        self._tasks = tasks
        self._rejoined = rejoined
        self._draining = False
        self._node: nodes.RegisteredNode | None = None
        self._trusted_until_s = 0.0
        self._steady_since_s = time.monotonic()

    @property
    def id(self) -> str:
        assert self._node is not None
        return self._node.id

    @property
    def started_ms(self) -> int:
        assert self._node is not None
        return self._node.started_ms

    @property
    def trusted(self) -> bool:
        """Whether no other node can have declared this one dead; without it nothing starts."""
        return time.monotonic() < self._trusted_until_s

    @property
    def may_reap(self) -> bool:
        """Whether it has been in touch long enough to tell a dead node from a dead database."""
        return self.trusted and time.monotonic() >= self._steady_since_s + self._lease_s / 2

    def join(self) -> None:
        """Register as a node. From `start` on the lease is renewed."""
        asked_s = time.monotonic()
        self._node = nodes.register(
            self._ledger, self._role, round(self._lease_s * 1000), self._tasks
        )
        self._clock.set(self._node.started_ms, asked_s, time.monotonic())
        self._trusted_until_s = asked_s + self._lease_s - _MARGIN_S
        # Nothing was lost before it began: what is expired now is dead.
        self._steady_since_s = asked_s - self._lease_s

    def quiesce(self) -> None:
        """Mark the node as draining with the next renewal."""
        self._draining = True

    def stop(self, within_s: float = 0.0) -> None:
        """Release the lease."""
        self._stopping.set()
        self._trusted_until_s = 0.0
        if self._node is not None:
            self._outage.guard(lambda: nodes.release(self._ledger, self.id))

    def _serve(self) -> None:
        pause_s = self._lease_s / 4
        while not self._stopping.wait(pause_s):
            began_s = time.monotonic()
            # Until it is renewed the ledger counts as away, also where all else has reached it.
            if self._outage.guard(self._renew) and self.trusted:
                pause_s = max(self._lease_s / 4 - (time.monotonic() - began_s), _AGAIN_S)
            else:
                pause_s = _AGAIN_S

    def _renew(self) -> bool:
        asked_s = time.monotonic()
        lapsed = asked_s > self._trusted_until_s
        lease_ms = round(self._lease_s * 1000)
        now_ms = nodes.renew(self._ledger, self.id, lease_ms, draining=self._draining)
        answered_s = time.monotonic()
        if now_ms is None:
            if self._stopping.is_set():
                return True  # it was released meanwhile
            self.join()
            self._steady_since_s = answered_s
            self._rejoined()
            return True
        self._clock.set(now_ms, asked_s, answered_s)
        if lapsed:
            self._steady_since_s = answered_s
        self._trusted_until_s = asked_s + self._lease_s - _MARGIN_S
        return True
