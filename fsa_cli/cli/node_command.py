"""The common part of `fsa scheduler start`, `tick` and `fsa worker start`: options and end."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import option
from fsa_cli.cli.task_process import leave
from fsa_cli.exceptions import FsaError, Interrupted, Terminated
from fsa_cli.processes import heartbeat
from fsa_cli.tasks.registry import registry

if TYPE_CHECKING:
    from sqlalchemy.exc import SQLAlchemyError

    from fsa_cli.processes.assembly import ProcessBuilder
    from fsa_cli.processes.drain import Unfinished
    from fsa_cli.processes.node import Node


class LogFormat(Enum):
    text = "text"
    json = "json"


class HostingOptions:
    """The options of a command that hosts a node, each also a variable: FSA_COMMAND_OPTION.

    Args:
        command: As `scheduler start`.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self.grace = self.option(
            "--grace",
            help="Seconds that running tasks have to end.",
            min=0,
            metavar="S",
        )
        self.concurrency = self.option(
            "--concurrency",
            help="Tasks at a time; half of the app's pool (7).",
            min=1,
            metavar="N",
            show_default=False,
        )
        self.port = self.option(
            "--port",
            help="Serve /livez, /readyz and /metrics.",
            min=0,
            max=65535,
            metavar="N",
        )
        self.host = self.option("--host", help="Where to serve them.", metavar="ADDRESS")
        self.log_format = self.option(
            "--log-format", help="Of each run's line: text, json.", metavar="FORMAT"
        )
        self.executor = self.option(
            "--executor",
            help="local, procrastinate, celery; else the settings'.",
            metavar="NAME",
            show_default=False,
        )

    def option(self, spelling: str, **more: Any) -> Any:
        return option(self._command, spelling, **more)


def process_builder(
    fsa: Fsa, only: Sequence[str] = (), tags: Sequence[str] = (), *, json: bool = False
) -> ProcessBuilder:
    """The builder of the app's node; nothing is connected yet.

    Args:
        json: Log JSON lines; `--json` does so too.
    """
    from fsa_cli.processes.assembly import ProcessBuilder
    from fsa_cli.terminal.lasting_streams import outlast_readers

    outlast_readers()
    loaded = fsa.load()
    json = json or fsa.output.json
    return ProcessBuilder.of(
        loaded, fsa.settings, fsa.output, registry, only=only, tags=tags, json=json
    )


def host_until_signal(
    fsa: Fsa,
    builder: ProcessBuilder,
    node: Node,
    address: str,
    port: int | None,
    introduce: Callable[[], None],
) -> None:
    """Run *node* until a signal comes, with its probes if there is a *port* for them.

    Args:
        introduce: Prints what runs; from then on signals are handled.
    """
    from fsa_cli.processes import probes

    with contextlib.ExitStack() as stack:
        stack.enter_context(node.signals())
        introduce()
        if port is not None:
            served = stack.enter_context(probes.serving(node, address, port))
            builder.log.say("probes", f"probes on http://{address}:{served}/", port=served)
        run_to_end(fsa, builder, node.run)
    builder.log.say("stopped", "stopped: every task that was running has ended")


def run_to_end(fsa: Fsa, builder: ProcessBuilder, run: Callable[[], Unfinished | None]) -> None:
    """Run a node; exit at once on an error, or if runs are left."""
    from sqlalchemy.exc import SQLAlchemyError

    from fsa_cli.processes.run_log import running_for

    try:
        left = run()
    except SQLAlchemyError as exc:
        leave(fsa, _unusable(builder, exc))
    except FsaError as exc:
        leave(fsa, exc)
    fsa.tell_of_left = builder.log.warned
    if left is not None:
        if not left.runs and left.unrecorded is not None:
            leave(fsa, left.unrecorded)
        leave(fsa, _left(left.signal, [running_for(run) for run in left.runs]))
    builder.close()


def _unusable(builder: ProcessBuilder, error: SQLAlchemyError) -> FsaError:
    """The ledger is away, or has refused."""
    from fsa_cli.ledger.access import reached

    try:
        with reached(builder.ledger):
            raise error
    except FsaError as exc:
        return exc


def heartbeat_writer(builder: ProcessBuilder) -> Callable[[], None]:
    """A function that writes the heartbeat; a failure is reported once."""
    failed: list[OSError] = []
    project = str(builder.settings.directory)

    def beat() -> None:
        try:
            heartbeat.beat(project)
        except OSError as exc:
            if not failed:
                builder.log.warned(f"no heartbeat for `fsa health live`: {exc} (set FSA_STATE_DIR)")
            failed.append(exc)

    return beat


def _left(number: signal.Signals, runs: list[str]) -> FsaError:
    kind = Interrupted if number == signal.SIGINT else Terminated
    return kind(
        f"stopped by {number.name} with work left: {', '.join(runs)}",
        details=["what it had not committed is rolled back"],
        hint="--grace S gives running tasks more time",
    )
