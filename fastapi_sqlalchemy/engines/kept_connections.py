"""How many connections a pool keeps open, of those that it may open at most."""

from __future__ import annotations

from sqlalchemy.pool import Pool, QueuePool

__all__ = ["keep"]


def keep(pool: Pool, count: int) -> None:
    """Have `pool` keep up to `count` connections open, and open no more in all than before.

    It closes what is given back beyond its size: a process that is always busy would open those
    anew for each piece of work. An async pool must not have been used yet.

    SQLAlchemy looks at these attributes at each checkout and return, and has no public name for
    them. Without an end, `_max_overflow` is -1.
    """
    if not isinstance(pool, QueuePool):
        return
    with pool._overflow_lock:
        missing, spare = count - pool.size(), pool._max_overflow
        more = missing if spare < 0 else min(missing, spare)
        if more > 0:
            pool._pool.maxsize += more
            pool._overflow -= more
            if spare >= 0:
                pool._max_overflow -= more
