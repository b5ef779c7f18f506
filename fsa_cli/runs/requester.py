"""The person who asks for a run."""

from __future__ import annotations

import getpass
import socket
from functools import cache

__all__ = ["requester"]


@cache
def requester() -> str:
    """The person who asks, as the ledger records it: `ann@web1`."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user that has no name
        name = "somebody"
    return f"{name}@{socket.gethostname()}"[:255]
