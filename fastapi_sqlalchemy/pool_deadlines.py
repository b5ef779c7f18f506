"""For `compat`: a deadline for one wait for a connection, as fastapi-async-sqlalchemy has it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator
from typing import Any

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import Pool, QueuePool

from .exceptions import DBSessionError

__all__ = ["PoolTimeoutError", "check_deadline", "deadline", "status_of"]


class PoolTimeoutError(DBSessionError, TimeoutError):
    """No connection was free within `timeout` seconds.

    `pool_status` is what `status_of` says of the pool, `retry_after` what to answer, in seconds.
    """

    def __init__(
        self,
        timeout: float | None = None,
        retry_after: int = 1,
        pool_status: dict[str, Any] | None = None,
    ) -> None:
        self.timeout = timeout
        self.retry_after = retry_after
        self.pool_status = pool_status
        within = "in time" if timeout is None else f"within {timeout:g} s"
        in_use = ""
        if pool_status is not None:
            in_use = f": {pool_status['checked_out']} of {pool_status['capacity']} are in use"
        super().__init__(f"No database connection was free {within}{in_use}.")


def check_deadline(timeout_s: float | None) -> None:
    """Refuse a deadline that is none.

    Raises:
        ValueError: it is not above 0 and finite.
    """
    if timeout_s is not None and not (math.isfinite(timeout_s) and timeout_s > 0):
        raise ValueError("`pool_timeout` must be greater than 0 and finite.")


def status_of(pool: Pool) -> dict[str, Any]:
    """That package's numbers of `pool`; None for those that it does not count."""
    status: dict[str, Any] = dict.fromkeys(
        ("size", "max_overflow", "capacity", "checked_in", "checked_out", "available", "saturation")
    )
    status["pool_class"] = type(pool).__name__
    if isinstance(pool, QueuePool):
        size, out, overflow = pool.size(), pool.checkedout(), pool._max_overflow
        status |= {"size": size, "max_overflow": overflow, "checked_in": pool.checkedin()}
        status["checked_out"] = out
        if size > 0 and overflow >= 0:
            capacity = size + overflow
            status |= {"capacity": capacity, "available": capacity - out}
            status["saturation"] = out / capacity
    return status


@contextlib.asynccontextmanager
async def deadline(pool: Pool, timeout_s: float) -> AsyncGenerator[None, None]:
    """What is inside has `timeout_s` seconds.

    Raises:
        PoolTimeoutError: it took longer, or the engine's own `pool_timeout` was shorter.
    """
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            yield
    except TimeoutError as exc:
        if not limit.expired():  # a driver's, which says nothing of the pool
            raise
        raise PoolTimeoutError(timeout_s, pool_status=status_of(pool)) from exc
    except PoolTimeout as exc:
        own_s = getattr(pool, "_timeout", None)
        raise PoolTimeoutError(own_s, pool_status=status_of(pool)) from exc
