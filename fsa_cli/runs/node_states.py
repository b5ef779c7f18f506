"""Which processes of the ledger live, and whether one of them keeps the schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Row

from fsa_cli.ledger import nodes as ledger_nodes
from fsa_cli.ledger.records import OPEN_STATES
from fsa_cli.ledger.store import Ledger

__all__ = ["is_kept", "is_schedule_kept", "lives", "node_state", "roles_alive"]


def node_state(each: Row[Any], now_ms: int) -> str:
    """A node whose lease is over is dead, whether or not another one has noticed."""
    return "dead" if each.state in OPEN_STATES and each.lease_until_ms < now_ms else str(each.state)


def lives(node: Row[Any], now_ms: int) -> bool:
    """Whether a process holds its lease."""
    return node_state(node, now_ms) in OPEN_STATES


def is_schedule_kept(nodes: Iterable[Row[Any]], now_ms: int) -> bool:
    """Whether of these nodes one fires what comes: a scheduler, or an `fsa scheduler tick` that was
    there since yesterday."""
    return any(
        each.role == "tick" or (each.role == "scheduler" and lives(each, now_ms)) for each in nodes
    )


def is_kept(ledger: Ledger, now_ms: int) -> bool:
    """As `is_schedule_kept`, of the nodes that the ledger lists."""
    listed = ledger.read(lambda connection: ledger_nodes.listed(connection, ledger, now_ms))
    return is_schedule_kept(listed, now_ms)


def roles_alive(nodes: Iterable[Row[Any]], now_ms: int) -> set[str]:
    """The roles of those that live."""
    return {each.role for each in nodes if lives(each, now_ms)}
