"""`fsa worker`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.node_command import (
    HostingOptions,
    LogFormat,
    heartbeat_writer,
    host_until_signal,
    process_builder,
)
from fsa_cli.exceptions import UsageError

app = typer.Typer()


_options = HostingOptions("worker start")


@app.callback()
def worker() -> None:
    """Execute the runs that were enqueued, or that a scheduler has dispatched to a broker.

    \b
      fsa worker start
      fsa worker start --queue mail --concurrency 20
    """


@app.command()
def start(
    context: typer.Context,
    queue: Annotated[
        list[str] | None,
        _options.option(
            "--queue",
            help="Serve this queue; again for more; by default those of the tasks.",
            metavar="Q",
        ),
    ] = None,
    concurrency: Annotated[int | None, _options.concurrency] = None,
    grace_s: Annotated[float, _options.grace] = 25.0,
    executor: Annotated[str | None, _options.executor] = None,
    port: Annotated[int | None, _options.port] = None,
    host: Annotated[str, _options.host] = "127.0.0.1",
    log_format: Annotated[LogFormat, _options.log_format] = LogFormat.text,
) -> None:
    """Execute runs as they come, each in a session of its own, until stopped.

    With a broker this hosts its own worker; without one (`local`), the ledger is the queue. It
    fires no schedule: fsa scheduler start. SIGTERM and Ctrl-C: nothing more is started, running
    tasks end. Exits 0 if all have ended.

    \b
      fsa worker start
      fsa worker start --executor procrastinate --queue mail --concurrency 20
    """
    from fsa_cli.ledger.nodes import namespaces_beside
    from fsa_cli.runs.executor import LOCAL
    from fsa_cli.runs.executor_registry import queue_name
    from fsa_cli.runs.scheduler_view import place

    fsa = Fsa.of(context)
    fsa.use_executor(executor)
    builder = process_builder(fsa, json=log_format is LogFormat.json)
    if not builder.tasks:
        raise UsageError("no task is registered: there is nothing to run", hint="fsa tasks")
    source = builder.executors.named(fsa.settings.executor or LOCAL)
    if queue and not source.carries:
        raise UsageError(
            f"--queue is a broker's, and {source.name} has one queue",
            hint="--executor procrastinate, or celery",
        )
    theirs = builder.executors.brokers(builder.tasks).get(source.name, (source, builder.tasks))[1]
    queues = queue or sorted({queue_name(task, fsa.settings.namespace) for task in theirs})
    builder.open()
    others = namespaces_beside(builder.ledger)
    node = builder.worker(
        source, queues, concurrency=concurrency, grace_s=grace_s, pulse=heartbeat_writer(builder)
    )
    served = ", ".join(queues) if source.carries else "the ledger's queue"

    def introduce() -> None:
        text = f"fsa worker {os.getpid()}: {source.name}, {served}. Ctrl-C or SIGTERM stops it."
        builder.log.say("started", text, pid=os.getpid(), executor=source.name, queues=queues)
        if not builder.log.json:
            ledger = builder.ledger
            fsa.output.say(place(ledger.where, ledger.namespace, others))

    host_until_signal(fsa, builder, node, host, port, introduce)
