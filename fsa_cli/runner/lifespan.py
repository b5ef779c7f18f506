"""The app's lifespan around tasks, where `[tool.fsa] lifespan = true` asks for it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Callable, Coroutine, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from fsa_cli.exceptions import FsaError, LifespanFailed
from fsa_cli.runner.event_loop import Runner, run_async
from fsa_cli.terminal.escaping import escape_record
from fsa_cli.terminal.user_code import summarize_error, user_frame

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["Lifespan", "around", "is_inside"]

logger = logging.getLogger("fsa.runner")
logger.addFilter(escape_record)

RunAsync = Callable[[Coroutine[Any, Any, Any]], Any]

_LONG_S = 10.0

_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("fsa_lifespan", default=False)


def is_inside() -> bool:
    """Whether the caller is a lifespan that fsa runs, and no web server."""
    return _inside.get()


class Lifespan:
    """An app's lifespan on the running event loop, asked for as a server does it.

    It is one task from its start to its end, for a task group or a cancel scope that it opens.
    https://asgi.readthedocs.io/en/latest/specs/lifespan.html
    """

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self._asked: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self._answered = asyncio.Event()
        self._refusal: str | None = None
        self._error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Run its first half.

        Raises:
            LifespanFailed: It has raised.
        """
        self._task = asyncio.create_task(self._serve(), name="lifespan")
        await self._ask("startup")

    async def stop(self) -> None:
        """Run its second half.

        Raises:
            LifespanFailed: It has raised.
        """
        assert self._task is not None
        if not self._task.done():
            await self._ask("shutdown")

    async def _ask(self, phase: str) -> None:
        self._answered.clear()
        self._asked.put_nowait({"type": f"lifespan.{phase}"})
        await self._answer("begun" if phase == "startup" else "ended")
        # The error itself, which ends the task, comes right after its text.
        if self._task is not None and (phase == "shutdown" or self._refusal is not None):
            await asyncio.wait({self._task})
        error, what = self._error, "began" if phase == "startup" else "ended"
        if error is None and self._refusal is None:
            return
        told = summarize_error(error) if error is not None else str(self._refusal)
        frame = user_frame(error) if error is not None else None
        raise LifespanFailed(
            f"the app's lifespan failed when it {what}: {told}",
            details=frame.lines() if frame is not None else [],
            hint="[tool.fsa] lifespan = true has it run around tasks",
        ) from error

    async def _answer(self, done: str) -> None:
        """Wait for the app; it may load a model for minutes, but nobody should wonder why."""
        try:
            async with asyncio.timeout(_LONG_S):
                await self._answered.wait()
        except TimeoutError:
            logger.warning(
                "the app's lifespan has not %s after %g s: waiting for it", done, _LONG_S
            )
            await self._answered.wait()

    async def _serve(self) -> None:
        _inside.set(True)
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": {},
        }
        try:
            await self._app(scope, self._asked.get, self._send)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:  # whatever it is, it must not end the loop of the tasks
            self._error = exc
        finally:
            self._answered.set()

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"].endswith(".failed"):
            self._refusal = message.get("message") or "it has refused"
        self._answered.set()


@contextlib.contextmanager
def around(
    app: Starlette, enabled: bool, warn: Callable[[str], None] = lambda text: None
) -> Iterator[RunAsync]:
    """Run *app*'s lifespan while inside, on the loop of the function that this gives.

    That is `run_async` if it is not *enabled*. Call it in this thread alone: between the calls
    the loop stands still.

    Args:
        warn: Told that the end of the lifespan has failed too, after what was raised inside.

    Raises:
        LifespanFailed: The lifespan has raised.
    """
    if not enabled:
        yield run_async
        return

    with Runner() as runner:
        # As asyncio.run: no ContextVar that one task has set is seen by the next.
        def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
            return runner.run(coroutine, context=contextvars.copy_context())

        lifespan = run(_create(app))
        run(lifespan.start())
        try:
            yield run
        except BaseException:
            try:
                run(lifespan.stop())
            except FsaError as exc:
                warn(exc.message)
            raise
        run(lifespan.stop())


async def _create(app: Starlette) -> Lifespan:
    return Lifespan(app)
