"""`scheduling()`: the scheduler and worker of an app inside its web process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from fsa_cli.runner.lifespan import is_inside

if TYPE_CHECKING:
    from fsa_cli.processes.assembly import ProcessBuilder
    from fsa_cli.processes.node import Node

__all__ = ["scheduling"]


@contextlib.asynccontextmanager
async def scheduling(
    *,
    concurrency: int | None = None,
    grace_s: float = 25.0,
    only: Collection[str] = (),
    tags: Collection[str] = (),
) -> AsyncIterator[None]:
    """Keep the schedule and execute what is enqueued in this process, while inside.

    For an app's lifespan, where one container shall be enough. Any number of processes may do so:
    the ledger lets one of them run an instant. Tasks run in threads and on an event loop of their
    own, and share Python with the requests.

    Args:
        concurrency: How many tasks run at a time; None: half of the app's connection pool.
        grace_s: How long running tasks may go on at the end; then they are rolled back and
            recorded as interrupted.
        only, tags: As `fsa scheduler start --only` and `--tag`.

    Raises:
        FsaError: As `fsa scheduler start` would end with: a setting is wrong, the ledger is away.
    """
    if is_inside():  # of `fsa run-task`, or of a scheduler, which is one already
        yield
        return
    builder, node = await asyncio.to_thread(_started, concurrency, grace_s, only, tags)
    try:
        yield
    finally:
        # What the server does to its tasks at its end must not leave runs without an outcome.
        await asyncio.shield(asyncio.to_thread(_ended, builder, node))


def _started(
    concurrency: int | None, grace_s: float, only: Collection[str], tags: Collection[str]
) -> tuple[ProcessBuilder, Node]:
    from fsa_cli.processes.assembly import ProcessBuilder
    from fsa_cli.project import loader, settings
    from fsa_cli.tasks.registry import registry
    from fsa_cli.terminal.output import Output

    chosen = replace(settings.read(), lifespan=False)  # it is running: the caller is in it
    loaded = loader.load(chosen)
    builder = ProcessBuilder.of(loaded, chosen, Output(), registry, only=only, tags=tags)
    try:
        builder.open()
        node = builder.node(concurrency=concurrency, grace_s=grace_s)
        node.start()
    except BaseException:
        builder.ledger.dispose()
        raise
    return builder, node


def _ended(builder: ProcessBuilder, node: Node) -> None:
    left = node.drain(None)
    if left is not None and left.unrecorded is not None:
        builder.log.warned(left.unrecorded.message)
    builder.executors.close()
    builder.ledger.dispose()
