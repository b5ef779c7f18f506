"""The transports of asyncpg, aiomysql and asyncmy, where these drivers do not end them in time.

Over TLS each side waits for the other one's goodbye, which asyncio does for 30 s: asyncmy's `close`
lasts as long, and after aiomysql's the transport is left open where the event loop ends before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

__all__ = ["cut", "parted", "transport_of"]

_LOOK_S = 0.001


def transport_of(driver_connection: Any) -> asyncio.Transport | None:
    """That of an open connection; None: its driver has none."""
    writer = getattr(driver_connection, "_writer", None)
    own: asyncio.Transport | None = getattr(driver_connection, "_transport", None)
    return getattr(writer, "transport", None) if own is None else own


def cut(driver_connection: Any) -> None:
    """End a connection without a goodbye; who waits for the server's goes on."""
    if hasattr(driver_connection, "terminate"):  # asyncpg's
        driver_connection.terminate()
    elif (transport := transport_of(driver_connection)) is not None:
        transport.abort()


async def parted(transports: Sequence[asyncio.Transport], until_s: float) -> None:
    """Wait until those of TLS, which are closing, are closed; cut what is not at `until_s`.

    Args:
        until_s: By the running loop's clock.
    """
    loop = asyncio.get_running_loop()
    while left := [each for each in transports if _is_open(each)]:
        if loop.time() >= until_s:
            for each in left:
                each.abort()
            await asyncio.sleep(0)  # their sockets are closed in the loop's next turn
            return
        await asyncio.sleep(_LOOK_S)


def _is_open(transport: asyncio.Transport) -> bool:
    """Whether it is TLS's, above a transport that is not closed: then it has lost that one."""
    is_tls = transport.get_extra_info("sslcontext") is not None
    return is_tls and transport.get_extra_info("socket") is not None
